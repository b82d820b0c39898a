"""lm-eval's own tasks by name: the index, groups, options, and what is refused in one line."""

from __future__ import annotations

import json
from functools import cache

import pytest

from lcfbench.cli.task import page_of
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.tasks import stock_index
from lcfbench.tasks.groups import expand, find_group
from lcfbench.tasks.inspection import inspect
from lcfbench.tasks.stock_index import index, leaf, leaves
from lcfbench.tasks.task import Outcome, Task, load_task
from lcfbench.tasks.yaml_files import describe
from tests.helpers import keep_table

pytest.importorskip("lm_eval")


@cache
def task_manager():
    """lm-eval's list of its tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load(name: str, **more):
    return load_task(f"lm-eval/{name}", offline=True, **more)


def test_the_index_is_lm_evals():
    manager = task_manager()
    kinds = {kind: {n for n, f in index().items() if f["kind"] == kind} for kind in ("group", "tag")}
    assert set(index()) == set(manager.all_tasks)
    assert kinds["group"] == set(manager.all_groups) and kinds["tag"] == set(manager.all_tags)


def test_the_index_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path))
    root = tmp_path / "tasks" / "one"
    root.mkdir(parents=True)
    (root / "a.yaml").write_text("task: a\ndataset_path: o/a\noutput_type: multiple_choice\n")
    monkeypatch.setattr(stock_index, "folder", lambda: tmp_path / "tasks")
    stock_index._state.cache_clear()
    stock_index._index.cache_clear()
    try:
        assert set(index()) == {"a"}
        (kept,) = (tmp_path / "lm-eval").glob("*.json")
        kept.write_text(json.dumps({"b": {"kind": "task", "file": "b.yaml"}}))
        stock_index._index.cache_clear()
        assert set(index()) == {"b"}, "what is kept is read"
        kept.write_text('{"b": {"ki')
        stock_index._index.cache_clear()
        assert set(index()) == {"a"}, "a file cut by a kill is made again"
    finally:
        stock_index._state.cache_clear()
        stock_index._index.cache_clear()


@pytest.mark.parametrize("group", ["mmlu", "ai2_arc", "mmlu_pro", "bbh", "flan_held_in", "blimp"])
def test_groups_stand_for_the_tasks_that_lm_eval_would_ask(group):
    """The names that lm-eval's own factory builds, without its data."""
    from unittest.mock import patch

    built: list[str] = []

    class Nothing:
        def __init__(self, config=None, **_):
            self.config = type("C", (), {"task": config["task"]})()
            built.append(config["task"])

        task_name = "x"

    manager = task_manager()
    with patch("lm_eval.tasks._factory.ConfigurableTask", Nothing):
        manager.load(group)
    mine = [
        one.name.removeprefix("lm-eval/").rpartition("::")[2].split("~")[0]
        for one in leaves(f"lm-eval/{group}")
    ]
    assert sorted(mine) == sorted(name.rpartition("::")[2] for name in built)


def test_a_group_in_a_recipe_is_its_tasks():
    assert Recipe(task="lm-eval/ai2_arc").task == ["lm-eval/arc_challenge", "lm-eval/arc_easy"]
    assert expand(["openbookqa", "lm-eval/mmlu"])[:2] == ["openbookqa", "lm-eval/mmlu_abstract_algebra"]
    group = find_group("lm-eval/mmlu")
    assert group is not None and len(group.members) == 57 and group.weighting == "documents"


def test_what_a_group_lays_over_a_task_is_kept(mirror):
    """openllm asks MMLU with five examples, the task's own file with none."""
    name = next(one.name for one in leaves("lm-eval/openllm") if one.name.endswith("mmlu_abstract_algebra"))
    assert "::" in name and leaf(name).over["num_fewshot"] == 5
    task = load_task(name, offline=True)
    assert task.shots == 5 and task.documents(limit=1)[0].receiver.user.count("Answer:") == 6


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wikitext", "loglikelihood_rolling"),
        ("pile_10k", "loglikelihood_rolling"),
        ("humaneval", "runs code"),
        ("mbpp", "runs code"),
        ("gsm8k_cot_self_consistency", "times|drawn by chance"),
        ("mmmu_val_art", "images|builds its own requests"),
        ("squadv2", "builds its own requests"),
        ("nosuch", "unknown lm-eval task 'nosuch'"),
        ("mmlu", "is a group of tasks"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(name, why):
    with pytest.raises(UserError, match=why) as error:
        load(name)
    assert "\n" not in str(error.value) and "lm-eval" in str(error.value)


def test_unknown_names_suggest_near_ones():
    with pytest.raises(UserError, match="hellaswag"):
        load("helaswag")


def test_data_that_are_not_there_are_named():
    with pytest.raises(UserError, match="cannot find split 'test' of config 'ARC-Easy'"):
        load("arc_easy").documents(limit=1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"metric": "nosuch"}, "unknown metric"),
        ({"chat": "perhaps"}, "chat"),
        ({"fewshot_seed": "x"}, "fewshot_seed"),
        ({"nosuch": "1"}, "unknown option"),
    ],
)
def test_wrong_options_are_named(mirror, options, why):
    with pytest.raises(UserError, match=why):
        load("piqa", options=options)


def test_the_metric_is_chosen(mirror):
    assert load("hellaswag").metric() == "acc"
    assert load("hellaswag", options={"metric": "acc_norm"}).metric() == "acc_norm"
    gsm8k = load("gsm8k", options={"metric": "exact_match,flexible-extract"})
    (document,) = gsm8k.documents(limit=1)
    number = document.gold.rpartition("#### ")[2]
    found = gsm8k.score(document, Outcome(text=f"I think it is {number}."))
    assert found["score"] == 1.0 and found["exact_match,strict-match"] == 0.0
    assert load("gsm8k").score(document, Outcome(text=f"So.\n#### {number}"))["score"] == 1.0


def test_limits_take_the_first_documents(mirror):
    task = load("piqa")
    few, more = task.documents(limit=3), task.documents(limit=6)
    assert [d.doc_id for d in more] == [str(i) for i in range(6)] and few == more[:3]
    assert not task.drawn(3)
    shots = load("arc_challenge", shots=2)
    few = [d.receiver.user for d in shots.documents(limit=2)]
    assert [d.receiver.user for d in shots.documents(limit=5)][:2] == few, "examples stay with their document"


def test_examples_where_a_file_forbids_them(mirror):
    name = next(n for n, f in index().items() if f.get("shots") == 0 and f["kind"] == "task")
    with pytest.raises(UserError, match="num_fewshot: 0"):
        load(name, shots=3)


def test_the_digest_covers_files_and_what_a_group_lays_over(mirror):
    one = load("mmlu_abstract_algebra").yaml_sha256
    assert one == load("mmlu_abstract_algebra").yaml_sha256 != load("mmlu_anatomy").yaml_sha256
    name = next(one.name for one in leaves("lm-eval/openllm") if one.name.endswith("mmlu_abstract_algebra"))
    from lcfbench.tasks.stock_files import digest_of

    assert digest_of(leaf(name)) != one


def test_templates_of_own_tasks_stay_strict(mirror):
    """lm-eval's own templates may print None; a user's may not, in the same process."""
    from lcfbench.tasks.lm_eval import RefusedError, sandbox

    load("piqa").documents(limit=1)
    with pytest.raises(RefusedError):
        sandbox().from_string("{{ x }}").render(x=None)


def test_a_template_is_compiled_once_for_each_of_both_rules(mirror):
    from lcfbench.tasks.lm_eval import RefusedError, as_they_stand, sandbox

    env, texts = sandbox(), ("{{ x }}", "{{ none }}")  # a constant is filled in where it is compiled
    with as_they_stand():
        assert [env.from_string(text).render(x=None) for text in texts] == ["None", "None"]
    for text in texts:
        with pytest.raises(RefusedError):
            env.from_string(text).render(x=None)
    assert env.from_string("{{ x }}") is env.from_string("{{ x }}")


def test_describe_needs_no_lm_eval():
    facts = describe("lm-eval/gsm8k")
    assert facts["default_scoring"] == "generate" and "metric" in facts["options"]


def test_lists_and_pages_say_that_examples_are_lm_evals(mirror):
    facts = inspect("lm-eval/hellaswag", {}, limit=2, offline=True)
    assert facts["examples"] == describe("lm-eval/hellaswag")["examples"]
    assert "  worked examples (--shots): as lm-eval takes them" in page_of(facts, [])


def test_an_example_of_mathematics_shows_its_solution(mirror):
    (document,) = load_task("gsm8k", offline=True, shots=2).documents(limit=1)
    shots, asked = document.receiver.user.rsplit("\n\n", 1)
    assert (
        shots.count("The answer is \\boxed{") == shots.count("Problem:") == 2 and asked.count("Problem:") == 1
    )
    assert document.sharer == document.receiver and "boxed{" not in document.request.user


@pytest.mark.parametrize(("name", "why"), [("math500", "no train"), ("splitfacts", "several steps")])
def test_tasks_without_examples_say_so(mirror, name, why):
    with pytest.raises(UserError, match=why):
        load_task(name, offline=True, shots=2).documents(limit=1)


def test_examples_are_no_questions_of_the_test_split(mirror):
    task = load_task("openbookqa", offline=True, shots=5)
    document, other = task.documents(limit=2)
    bare = {d.receiver.user for d in load_task("openbookqa", offline=True).documents()}
    *shots, asked = document.receiver.user.split("Question: ")[1:]
    assert len(shots) == 5 and f"Question: {asked}" in bare
    assert other.receiver.user.split("Question: ")[1:-1] == shots, "the same for all documents"
    assert not any(f"Question: {s.split('Answer:')[0]}" in bare for s in shots)


def test_examples_on_different_contexts_are_the_receivers(mirror):
    task = load_task("hotpotqa_split", offline=True, shots=1)
    (document,), (bare,) = (t.documents(limit=1) for t in (task, load_task("hotpotqa_split", offline=True)))
    assert document.receiver.user.endswith(bare.receiver.user) and document.receiver != bare.receiver
    assert document.full.user.endswith(bare.full.user) and document.full != bare.full
    assert document.sharer == bare.sharer and document.request == bare.request


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A mirror with one document of tasks whose first metric is no score of a document."""
    asked = {"question": "Is it?", "correct_answers": ["yes"], "incorrect_answers": ["no"]}
    for repo, config, split, row in [
        ("truthfulqa/truthful_qa", "generation", "validation", asked),
        ("jannalu/crows_pairs_multilingual", "english", "test", {"sent_more": "A is.", "sent_less": "B is."}),
        (
            "pbevan11/EQ-Bench",
            "default",
            "validation",
            {"prompt": "Rate it.", "reference_answer_fullscale": "{}"},
        ),
    ]:
        keep_table(tmp_path, repo, config, split, [row])
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))


def test_a_score_is_from_0_to_1_and_more_of_it_is_better(small):
    task = load("truthfulqa_gen")
    assert task.metric() == "bleu_acc"
    found = task.score(task.documents()[0], Outcome(text="yes it is so, he said"))
    assert found["bleu_max"] > 1 and found["score"] == found["bleu_acc"] == 1
    assert load("crows_pairs_english", options={"metric": "pct_stereotype"}).metric() == "pct_stereotype"
    for name in ("crows_pairs_english", "eq_bench"):
        with pytest.raises(UserError, match="between 0 and 1, of which more is better"):
            load(name)


@pytest.mark.parametrize(
    ("name", "split"), [("openbookqa", "train"), ("ceval", "train"), ("mmlu_pro", "validation")]
)
def test_no_document_is_one_of_its_own_examples(mirror, name, split, monkeypatch):
    """In a training the answer would stand in the prompt. Of each table the first 300 rows are taken."""
    whole = Task._fetched

    def first(self, split):
        table = whole(self, split)
        return table.select(range(min(len(table), 300)))

    monkeypatch.setattr(Task, "_fetched", first)
    task, bare = (load_task(name, offline=True, shots=n) for n in (4, 0))
    asked = task.documents(split=split)
    rows = task._worked_examples().every
    examples = {str(row["id"]) for row in rows}
    subjects = 1 if name == "openbookqa" else len({row["subject"] for row in rows})
    assert len(examples) == 4 * subjects and not examples & {d.doc_id for d in asked}
    assert {d.doc_id for d in bare.documents(split=split)} == examples | {d.doc_id for d in asked}
    few = task.documents(split=split, limit=5)
    assert [d.doc_id for d in few] == [d.doc_id for d in asked][:5]
