"""lm-eval's own tasks under the receiver alone equal `lm_eval --model hf`: every number, every text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches, length
from lcfbench.evaluation.parts import batch_of, together
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.sources.datasets import load_split
from lcfbench.sources.models import find_model
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.task import Task, load_task
from tests import helpers

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402

REAL = {  # data of the mirror: how many documents
    "hellaswag": 6,
    "piqa": 6,
    "openbookqa": 6,
    "arc_challenge": 6,
    "commonsense_qa": 6,
    "mmlu_abstract_algebra": 6,
    "ceval-valid_law": 3,
    "gsm8k": 3,
    "hendrycks_math500": 3,
    "minerva_math500": 2,
}
GAP = [
    "The box did not fit in the bag because the _ was too small.",
    "Ada gave the key to Bo because _ was leaving town.",
    "_ came home late, so the dog barked at Kim.",
    "The lamp beside the chair fell when the _ was pushed over by the cat.",
]
MADE: dict[str, tuple[str, list[dict]]] = {
    "winogrande": (
        "allenai/winogrande/winogrande_xl/validation",
        [
            {"sentence": s, "option1": "box", "option2": "the bag", "answer": str(i % 2 + 1)}
            for i, s in enumerate(GAP)
        ],
    ),
    "lambada_openai": (
        "EleutherAI/lambada_openai/default/test",
        [{"text": f"{n} went to the river and saw the boat"} for n in ("Ada", "Bo and Kim", "Nobody ever")],
    ),
    "cola": (
        "nyu-mll/glue/cola/validation",
        [
            {"sentence": s, "label": i % 2}
            for i, s in enumerate(("A cat sat.", "Cat the a.", "He runs.", "Go it."))
        ],
    ),
    "mrpc": (
        "nyu-mll/glue/mrpc/validation",
        [{"sentence1": f"A is {i}.", "sentence2": f"It is {i}.", "label": i % 2} for i in range(4)],
    ),
    "boolq": (
        "aps/super_glue/boolq/validation",
        [{"passage": f"Rain fell on day {i}.", "question": "did it rain", "label": i % 2} for i in range(3)],
    ),
    "sciq": (
        "allenai/sciq/default/test",
        [
            {
                "question": f"what is {i} plus one",
                "support": " Numbers.",
                "distractor1": "none",
                "distractor2": "all of them",
                "distractor3": "red",
                "correct_answer": str(i + 1),
            }
            for i in range(3)
        ],
    ),
}


@pytest.fixture
def made(tmp_path, monkeypatch) -> None:
    for place, rows in MADE.values():
        file = tmp_path / "datasets" / f"{place}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))


@pytest.fixture(autouse=True)
def same_data(monkeypatch):
    """lm-eval fetches nothing: its data sets are those of the mirror."""
    torch.set_num_threads(1)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of pip and lscpu

    class Splits(dict):
        def __init__(self, path, name):
            self.of = path, name

        def __missing__(self, split):
            for there in (
                split,
                "test",
                "validation",
            ):  # a train split that is only there to draw examples from
                try:
                    return load_split(*self.of, there, {}, offline=True)
                except Exception as error:
                    last = error
            raise last

    monkeypatch.setattr("datasets.load_dataset", lambda path, name=None, **_: Splits(path, name))


@cache
def manager():
    """lm-eval's list of its tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def compare(name: str, limit: int, options: Mapping[str, str], shots: int | None = None, **theirs) -> None:
    end = helpers.causal_lm(chat=True, positions=16_384)
    task = load_task(f"lm-eval/{name}", offline=True, options=options, shots=shots)
    documents = task.documents(limit=limit)
    method, mine = create("receiver", end, end), {}
    with torch.inference_mode():
        for group in batches(documents, 4):
            batch = batch_of(group, group, Clock())
            outcomes, _ = together(group, *answer(method.respond(batch), batch))
            mine |= {d.doc_id: (o, task.score(d, o)) for d, o in zip(group, outcomes, strict=True)}
    got = lm_eval.simple_evaluate(
        model=HFLM(pretrained=end.model, tokenizer=end.tokenizer, batch_size=4, device="cpu"),
        tasks=[name],
        task_manager=manager(),
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
        **theirs,
    )
    found = {k: v for k, v in got["results"][name].items() if "," in k and "stderr" not in k}
    assert task.summary([mine[d.doc_id][1] for d in documents]) == pytest.approx(found, rel=1e-4, nan_ok=True)
    assert len({s["doc_id"] for s in got["samples"][name]}) == len(documents)
    for sample in got["samples"][name]:
        outcome, scores = mine[str(sample["doc_id"])]
        reference = [r[0] for r in sample["resps"]]
        if outcome.text is not None:
            assert outcome.text == reference[0]
        else:
            ranked = outcome.loglikelihoods[0]
            assert [ll for ll, _ in ranked] == pytest.approx([float(ll) for ll, _ in reference], abs=3e-4)
            assert [g for _, g in ranked] == [str(g) == "True" for _, g in reference]
        key = f",{sample['filter']}" if len(task.lm_eval_task()._filters) > 1 else ""
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float) and metric != "perplexity":
                assert scores[f"{metric}{key}"] == pytest.approx(float(sample[metric]))


TURNS = ("openbookqa", "gsm8k", "minerva_math500")  # tasks that are also asked with a turn an example
WAYS = [(name, chat) for name in REAL for chat in ("no", "yes", *(["multiturn"] if name in TURNS else []))]


@pytest.mark.parametrize(("name", "chat"), WAYS)
def test_stock_tasks_equal_lm_eval(mirror, name, chat):
    as_flags = {"apply_chat_template": chat != "no", "fewshot_as_multiturn": chat == "multiturn"}
    compare(name, REAL[name], {"chat": chat}, **as_flags)


@pytest.mark.parametrize("chat", ["no", "yes"])
@pytest.mark.parametrize("name", MADE)
def test_stock_tasks_on_made_data_equal_lm_eval(made, name, chat):
    compare(
        name,
        4 if name in ("winogrande", "cola", "mrpc") else 3,
        {"chat": chat},
        apply_chat_template=chat != "no",
    )


@pytest.mark.parametrize(
    ("name", "shots"), [("mmlu_abstract_algebra", 3), ("arc_challenge", 2), ("gsm8k", 1)]
)
def test_shots_are_drawn_as_lm_eval_draws_them(mirror, name, shots):
    compare(name, 3, {}, shots, num_fewshot=shots)


def test_examples_come_from_the_seed_that_is_asked_for(mirror):
    compare("arc_challenge", 3, {"fewshot_seed": "7"}, 2, num_fewshot=2, fewshot_random_seed=7)


def test_a_system_instruction_is_lm_evals(mirror):
    text = "You answer in one word."
    both = {"system_instruction": text}
    compare("piqa", 3, {"system": text, "chat": "yes"}, apply_chat_template=True, **both)
    compare("piqa", 3, {"system": text}, **both)


def compare_ours(
    task: Task, scoring: Scoring, limit: int, end: CausalLM, gap: float, of: int | None = None
) -> list[Document]:
    """Our own task with its examples, beside `simple_evaluate` on its own lm-eval task.

    limit: documents that are asked: where `of` is given, the shortest of so many, two of a subject.
    """
    chat = end.has_chat
    documents = task.documents(scoring=scoring, limit=of or limit, receiver_chat=chat)
    if of is not None:
        alike = groupby(sorted(documents, key=lambda d: (d.subject, length(d))), lambda d: d.subject)
        documents = sorted((d for _, some in alike for d in islice(some, 2)), key=length)[:limit]
    inner = task.lm_eval_task(scoring)
    places = {row["id"]: i for i, row in enumerate(inner.test_docs())}
    method, mine = create("receiver", end, end), {}
    with torch.inference_mode():
        for group in batches(documents, 4):
            batch = batch_of(group, group, Clock())
            mine |= zip((d.doc_id for d in group), answer(method.respond(batch), batch)[0], strict=True)
    got = lm_eval.simple_evaluate(
        model=HFLM(pretrained=end.model, tokenizer=end.tokenizer, batch_size=4, device="cpu"),
        tasks=[inner],
        task_manager=manager(),
        samples={inner.config.task: sorted(places[d.doc_id] for d in documents)},
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
    )
    samples = got["samples"][inner.config.task]
    assert len({sample["doc_id"] for sample in samples}) == len(documents) == limit
    asked = {d.doc_id: d for d in documents}
    for sample in samples:
        reference = [r[0] for r in sample["resps"]]
        ident = str(sample["doc"]["id"])
        if scoring == "generate":
            assert mine[ident].text == reference[0]
        else:
            ranked = [ll for ll, _ in mine[ident].loglikelihoods[0]]
            assert ranked == pytest.approx([float(ll) for ll, _ in reference], abs=gap)
        for metric in sample["metrics"]:
            assert task.score(asked[ident], mine[ident])[metric] == pytest.approx(float(sample[metric]))
    return documents


SCORINGS: tuple[Scoring, ...] = ("letters", "cloze", "generate")


@pytest.mark.parametrize("scoring", SCORINGS)
def test_our_task_with_examples_equals_lm_eval(mirror, scoring):
    end = helpers.causal_lm(chat=True, positions=4096)
    compare_ours(load_task("openbookqa", offline=True, shots=3), scoring, 4, end, 3e-4)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("chat", [False, True])
def test_examples_of_the_subject_equal_lm_evals(tmp_path, monkeypatch, scoring, chat):
    """Each question has those of its own subject on both sides."""
    subjects, facts = ("anatomy", "law", "virology"), {"error_type": "ok", "correct_answer": None}
    options = ["a bone", "a river", "the third of them", "no"]
    for repo, split, count in (("edinburgh-dawg/mmlu-redux-2.0", "test", 3), ("cais/mmlu", "dev", 5)):
        rows = [
            {"question": f"What is {split} {i} of {s}?", "subject": s, "choices": options, "answer": i % 4}
            for s in subjects
            for i in range(count)
        ]
        helpers.keep_table(tmp_path, repo, "all", split, [{**row, **facts} for row in rows])
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    end = helpers.causal_lm(chat=chat, positions=4096)
    task = load_task("mmlu_redux", offline=True, shots=5)
    documents = compare_ours(task, scoring, 7, end, 3e-4)
    assert {d.examples for d in documents} == set(subjects)
    for d in documents:
        assert d.receiver.user.count(f" of {d.subject}?") == 6, "five examples and the question"


@pytest.mark.real
def test_five_examples_of_the_subject_equal_lm_evals_on_real_weights(mirror):
    end = CausalLM.load(find_model("smollm2-135m", offline=True), dtype="float32")
    documents = compare_ours(load_task("mmlu_redux", offline=True, shots=5), "letters", 6, end, 1e-3, of=128)
    assert len({d.examples for d in documents}) >= 3


def test_a_mirror_is_read_without_a_network(made):
    rows = load_split("allenai/sciq", None, "test", {}, offline=True)
    assert list(rows) == MADE["sciq"][1]
