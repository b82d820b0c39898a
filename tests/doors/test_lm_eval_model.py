"""A pair within lm-eval: equal to `lcfbench run` to the bit, and alone to lm-eval's own `hf`."""

from __future__ import annotations

import json

import lm_eval.evaluator
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

import lcfbench
from lcfbench.doors.answering_pair import Answered
from lcfbench.doors.lm_eval_model import PairLM
from lcfbench.doors.lm_eval_tasks import task_folder
from lcfbench.errors import UserError
from lcfbench.tasks.task import Outcome
from tests import helpers

SAME = {"dtype": "float32", "device": "cpu", "seed": 0, "batch_size": 4}


def evaluated(lm, task, limit=6, **settings):
    given = {"include_defaults": False, "metadata": settings.pop("metadata", {})}
    settings["task_manager"] = TaskManager(include_path=task_folder(), **given)  # lm-eval's own take seconds
    got = lm_eval.evaluator.simple_evaluate(
        model=lm, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=True, **settings
    )
    (samples,) = got["samples"].values()
    return got, samples


# -- equal to `lcfbench run` -------------------------------------------------------------------------

METHODS = [
    ("receiver", "matched"),
    ("t2t", "matched"),
    ("t2t", "deranged"),
    ("t2t", "silent"),
    ("lcf", "matched"),
    ("lcf", "deranged"),
    ("lcf", "zero"),
    ("lcf", "noise"),
]
TASKS = [
    ("openbookqa", "letters", "lcf"),
    ("openbookqa", "cloze", "lcf"),
    ("openbookqa", "generate", "lcf"),
    ("planted", None, "lcf"),
    ("splitfacts", None, "lcfx"),
    ("splitfacts", "generate", "lcfx"),
]


def recorded(out, pair, name, scoring, mode, control, **settings):
    """The rows of `lcfbench run`, by document."""
    found = lcfbench.run(
        pair=pair, task=[name], mode=[mode], control=[control], scoring=scoring, limit=6, out=out,
        latency_documents=0, **{k: v for k, v in SAME.items()}, **settings,
    )  # fmt: skip
    return {row["doc_id"]: row for row in helpers.rows(found.folders[0])}, found


@pytest.mark.parametrize(("mode", "control"), METHODS)
@pytest.mark.parametrize(("name", "scoring", "kind"), TASKS)
def test_our_tasks_are_answered_as_by_run(
    request, tmp_path, plain_pair, adapters, name, scoring, kind, mode, control
):
    if name == "openbookqa":
        request.getfixturevalue("mirror")
    given = {"adapter": adapters[kind]} if mode == "lcf" else {}
    options = {"budget": "4"} if mode == "t2t" else {}
    lm = PairLM(pair=plain_pair, mode=mode, control=control, **given, **options, **SAME)
    got, samples = evaluated(lm, f"lcfbench_{name}", metadata={"scoring": scoring} if scoring else {})
    more = {"adapter": [given["adapter"]]} if given else {}
    rows, found = recorded(
        tmp_path,
        plain_pair,
        name,
        scoring,
        mode,
        control,
        **more,
        options={k: [v] for k, v in options.items()},
    )
    assert len(samples) == len(rows) == 6
    for sample in samples:
        row = rows[str(sample["doc"]["id"])]
        if scoring == "generate":
            assert sample["resps"] == [[row["prediction"]]]
        else:
            assert [r[0][0] for r in sample["resps"]] == json.loads(row["choices_loglikelihood"])[-1]
        message = sample["arguments"][0][-1]["lcfbench"]
        same = ("message_text", "message_bytes", "sharer_prompt", "receiver_prompt", "sharer_tokens")
        assert {k: message[k] for k in same} == {k: row[k] for k in same}
        senders = {r["doc_hash"]: r["doc_id"] for r in rows.values()}
        assert message["message_from"] == senders.get(row["message_from"])
    (metrics,) = got["results"].values()
    primary = next(iter(rows.values()))["metric"]
    assert metrics[f"{primary},none"] == pytest.approx(found.samples["score"].mean())


@pytest.mark.parametrize("mode", ["receiver", "t2t"])
@pytest.mark.parametrize("scoring", ["letters", "generate"])
def test_chats_are_answered_as_by_run(mirror, tmp_path, chat_pair, scoring, mode):
    options = {"budget": "4"} if mode == "t2t" else {}
    lm = PairLM(pair=chat_pair, mode=mode, **options, **SAME)
    _, samples = evaluated(lm, "lcfbench_openbookqa", metadata={"scoring": scoring}, apply_chat_template=True)
    rows, _ = recorded(
        tmp_path,
        chat_pair,
        "openbookqa",
        scoring,
        mode,
        "matched",
        options={k: [v] for k, v in options.items()},
    )
    for sample in samples:
        row = rows[str(sample["doc"]["id"])]
        answers = [r[0] if scoring == "generate" else r[0][0] for r in sample["resps"]]
        assert answers == (
            [row["prediction"]] if scoring == "generate" else json.loads(row["choices_loglikelihood"])[-1]
        )
        assert sample["arguments"][0][-1]["lcfbench"]["receiver_prompt"] == row["receiver_prompt"]
        assert "<|im_start|>user\n" in row["receiver_prompt"]


# -- equal to `hf` -----------------------------------------------------------------------------------

WORDS = "The quick brown fox jumps over the lazy dog and the key of Kafi is in the orange box".split()


def _words(i: int, n: int = 6) -> str:
    return " ".join(WORDS[(i * 5 + k * 3) % len(WORDS)] for k in range(n))


ROWS = {
    "hellaswag": lambda i: {
        "activity_label": f"Boxes {i}", "ctx_a": _words(i), "ctx_b": _words(i + 1),
        "endings": [_words(i + k, 4) for k in range(4)], "label": str(i % 4),
    },
    "piqa": lambda i: {"goal": _words(i), "sol1": _words(i + 1), "sol2": _words(i + 2), "label": i % 2},
    "openbookqa": lambda i: {
        "id": str(i), "question_stem": _words(i), "answerKey": "ABCD"[i % 4],
        "choices": {"text": [_words(i + k, 2) for k in range(4)], "label": list("ABCD")},
    },
    "gsm8k": lambda i: {"question": f"{_words(i)} {i}?", "answer": f"{_words(i + 1)}\n#### {i}"},
    "lambada_openai": lambda i: {"text": f"{_words(i, 9)} Seoul"},
    "winogrande": lambda i: {
        "sentence": f"{_words(i)} _ is in the {WORDS[i % 7]}.", "option1": "Kafi", "option2": "Zona",
        "answer": str(1 + i % 2),
    },
    "boolq": lambda i: {"passage": _words(i, 10), "question": _words(i + 1), "label": i % 2, "idx": i},
    "mmlu_anatomy": lambda i: {
        "question": _words(i), "choices": [_words(i + k, 2) for k in range(4)], "answer": i % 4,
        "subject": "anatomy",
    },
}  # fmt: skip
FILES = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
}


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """A task of lm-eval's own files, on rows made here."""
    root = tmp_path_factory.mktemp("rows")

    def build(name: str, **over):
        file = root / f"{name}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps(ROWS[name](i)) + "\n" for i in range(12)))
        path = helpers.Path(lm_eval.evaluator.__file__).parent / "tasks" / FILES[name]
        config = load_yaml(path, resolve_func=True)
        splits = {config.get(f"{s}_split") for s in ("training", "validation", "test", "fewshot")} - {None}
        files = dict.fromkeys(splits, str(file))
        config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        gone = ("tag", "group", "task_list")
        return ConfigurableTask(config={k: v for k, v in (config | over).items() if k not in gone})

    return build


def both(pair, task_of, limit=4, mode="receiver", **settings):
    """The samples of a task by the pair's receiver and by lm-eval's own model."""
    found = []
    folder = pair.split(":")[0]
    theirs = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)
    settings.setdefault("gen_kwargs", {"max_gen_toks": 12})
    for lm in (PairLM(pair=pair, mode=mode, **SAME), theirs):
        found.append(evaluated(lm, task_of(), limit, **settings))
    return found


def assert_same(mine, theirs):
    (got, samples), (wanted, others) = mine, theirs
    assert len(samples) == len(others) > 0
    for a, b in zip(samples, others, strict=True):
        assert [x[0] for x in a["arguments"]] == [x[0] for x in b["arguments"]]  # the very same prompts
        for one, other in zip(a["resps"], b["resps"], strict=True):
            if isinstance(other[0], str):
                assert one == other
            else:
                assert one[0][0] == pytest.approx(other[0][0], abs=2e-4)
                assert one[0][1] == other[0][1]
    numbers = [
        {k: v for k, v in r["results"].popitem()[1].items() if "stderr" not in k} for r in (got, wanted)
    ]
    assert numbers[0] == {
        k: pytest.approx(v, rel=1e-3) if "perplex" in k else v for k, v in numbers[1].items()
    }


@pytest.mark.parametrize("shots", [None, 0, 2])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_the_receiver_alone_is_hf(stock, chat_pair, name, chat, shots):
    mine, theirs = both(chat_pair, lambda: stock(name), apply_chat_template=chat, num_fewshot=shots)
    assert_same(mine, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"system_instruction": "Answer in one word."},
        {"apply_chat_template": True, "system_instruction": "Answer in one word."},
        {"apply_chat_template": True, "fewshot_as_multiturn": False},
        {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."},
        {"gen_kwargs": {"max_gen_toks": 5, "until": ["o"]}},
    ],
)
@pytest.mark.parametrize("name", ["gsm8k", "hellaswag", "winogrande", "mmlu_anatomy"])
def test_the_receiver_alone_is_hf_under_every_wording(stock, chat_pair, name, settings):
    mine, theirs = both(chat_pair, lambda: stock(name), limit=4, num_fewshot=2, **settings)
    assert_same(mine, theirs)


# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "gsm8k"])
def test_stock_tasks_get_messages_of_other_documents(stock, plain_pair, name):
    """Deranged, no text of a document gets a message from that document, whatever its choices."""
    lm = PairLM(pair=plain_pair, mode="t2t", control="deranged", budget=4, **SAME)
    _, samples = evaluated(lm, stock(name), limit=8, num_fewshot=0, gen_kwargs={"max_gen_toks": 4})
    for sample in samples:
        messages = [
            a[-1]["lcfbench"] for a in sample["arguments"] if isinstance(a[-1], dict) and "lcfbench" in a[-1]
        ]
        assert len(messages) == (2 if name == "winogrande" else 1)
        for n, message in enumerate(messages):
            sender, _, part = message["message_from"].partition(".")
            assert int(sender) != sample["doc_id"] and part == (str(n) if name == "winogrande" else "")


def test_one_sharer_pass_serves_all_choices(stock, plain_pair, adapters):
    lm = PairLM(pair=plain_pair, mode="lcf", adapter=adapters["lcf"], **{**SAME, "batch_size": 1})
    read = []
    sharer, prefill = lm.pair.method.sharer, lm.pair.method.sharer.prefill
    sharer.prefill = lambda rows, *rest: read.append(len(rows)) or prefill(rows, *rest)
    evaluated(lm, stock("hellaswag"), limit=3)
    assert read == [1, 1, 1]  # four choices each


def test_the_config_says_what_decided(stock, plain_pair, adapters):
    lm = PairLM(pair=plain_pair, mode="lcf", adapter=adapters["lcf"], control="deranged", **SAME)
    got, _ = evaluated(lm, stock("piqa"), limit=2)
    config = got["config"]
    assert (config["mode"], config["control"], config["adapter"]) == ("lcf", "deranged", "lcf")
    assert len(config["adapter_sha256"]) == 64 and len(config["revisions"]) == 2
    assert config["dtypes"] == ["float32", "float32"]


def test_a_form_changes_what_crosses_and_is_recorded(plain_pair, adapters):
    """In each sample and in the config."""
    sizes = {}
    for form in (None, "native", "int8"):
        given = {"adapter": adapters["lcfx"], **({"wire": form} if form else {})}
        lm = PairLM(pair=plain_pair, mode="lcf", **given, **SAME)
        got, samples = evaluated(lm, "lcfbench_splitfacts", limit=3)
        assert got["config"].get("wire") == form
        crossed = [sample["arguments"][0][-1]["lcfbench"] for sample in samples]
        assert {message.get("wire") for message in crossed} == {form}
        sizes[form] = [message["message_bytes"] for message in crossed]
    both = zip(sizes["int8"], sizes["native"], sizes[None], strict=True)
    assert all(0 < small < whole != counted for small, whole, counted in both)


@pytest.mark.parametrize(("mode", "form"), [("t2t", "int8"), ("lcf", "int8"), ("lcf", "native")])
def test_messages_cross_as_bytes_as_in_run(tmp_path, plain_pair, adapters, mode, form):
    """Answers and sizes are those of `run --wire`; text has its one form."""
    given = {"adapter": adapters["lcfx"]} if mode == "lcf" else {}
    lm = PairLM(pair=plain_pair, mode=mode, wire=form, **given, **SAME)
    _, samples = evaluated(lm, "lcfbench_splitfacts")
    more = {"adapter": [given["adapter"]]} if given else {}
    rows, _ = recorded(tmp_path, plain_pair, "splitfacts", None, mode, "matched", **more, wire=[form])
    for sample in samples:
        row = rows[str(sample["doc"]["id"])]
        assert [r[0][0] for r in sample["resps"]] == json.loads(row["choices_loglikelihood"])[-1]
        assert sample["arguments"][0][-1]["lcfbench"]["message_bytes"] == row["message_bytes"] > 0
        assert row["wire"] == ("native" if mode == "t2t" else form)
    assert lm.get_model_info()["wire"] == ("native" if mode == "t2t" else form)


# -- refusals ----------------------------------------------------------------------------------------

WRONG = [
    ({"mode": None}, "needs mode="),
    ({"pair": None}, "needs pair="),
    ({"mode": "t2"}, "unknown method 't2'. Did you mean t2t"),
    ({"mode": "receiver,t2t"}, "takes one mode"),
    ({"mode": ["receiver"]}, "takes one mode"),
    ({"control": "matched,deranged"}, "takes one control"),
    ({"control": "nois"}, "unknown control"),
    ({"mode": "receiver", "control": "deranged"}, "sends no message"),
    ({"mode": "lcf"}, "lcf needs an adapter"),
    ({"mode": "lcf", "adapter": "nosuch"}, "nosuch holds no adapter"),
    ({"adapter": "x"}, "x holds no adapter"),
    ({"adapter": "lcfx-shared"}, "lcfx-shared holds no adapter"),
    ({"budgt": 4}, "'budgt'"),
    ({"budget": "x"}, "budget=x"),
    ({"budget": "4,8"}, "one value of each option"),
    ({"batch_size": "auto"}, "batch_size=auto"),
    ({"batch_size": 0}, "batch-size"),
    ({"seed": -1}, "seed"),
    ({"dtype": "float3"}, "dtype"),
    ({"device": "cpu:9"}, "device"),
    ({"thinking": "maybe"}, "thinking"),
    ({"attention": "fast"}, "attention"),
    ({"limit": 4}, "'limit'"),
    ({"wire": "int3"}, "wire"),
    ({"wire": ["native", "int8"]}, "takes one wire"),
    ({"wire": "native,int8"}, "takes one wire"),
    ({"mode": "receiver", "wire": "int8"}, "receiver sends no message, so wire=int8 has no use"),
    ({"model": "a:b"}, "differ"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(g) for g, _ in WRONG])
def test_wrong_arguments_are_refused_before_a_model_is_loaded(monkeypatch, plain_pair, given, said):
    monkeypatch.setattr("lcfbench.doors.answering_pair.load_pair", None)
    with pytest.raises(UserError) as caught:
        PairLM(**{"pair": plain_pair, "mode": "t2t", **given})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_asked_is_refused(stock, plain_pair, chat_pair, adapters, tmp_path):
    lm = PairLM(pair=plain_pair, mode="t2t", **SAME)
    with pytest.raises(UserError, match="draws its answers at random"):
        evaluated(lm, stock("gsm8k"), gen_kwargs={"do_sample": True, "temperature": 0.7})
    with pytest.raises(UserError, match="num_beams=4"):
        evaluated(lm, stock("gsm8k"), gen_kwargs={"num_beams": 4})
    with pytest.raises(UserError, match="loglikelihood_rolling"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("text",), 0, ("wiki", 0, 1))])
    with pytest.raises(UserError, match="use_cache"):
        evaluated(lm, stock("piqa"), use_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no chat template"):
        evaluated(lm, stock("piqa"), apply_chat_template=True)
    with pytest.raises(UserError, match="at least two documents"):
        evaluated(PairLM(pair=plain_pair, mode="t2t", control="deranged", **SAME), stock("piqa"), limit=1)
    with pytest.raises(UserError, match="have no room; document 0 of piqa"):
        long = {"doc_to_text": "{{goal * 400}}"}
        evaluated(lm, stock("piqa", **long), limit=2)
    with pytest.raises(UserError, match="different contexts"):
        evaluated(PairLM(pair=plain_pair, mode="lcf", adapter=adapters["lcf"], **SAME), "lcfbench_splitfacts")
    with pytest.raises(UserError, match="another prompt than"):
        evaluated(
            PairLM(pair=chat_pair, mode="t2t", **SAME),
            "lcfbench_planted",
            apply_chat_template=True,
            system_instruction="Be brief.",
        )
    with pytest.raises(UserError, match="no chat template is used"):
        evaluated(_thinking(chat_pair), stock("piqa"))


def test_a_thought_without_end_ranks_no_choice(plain_pair, stock, monkeypatch):
    """Of log-likelihoods that are all as low lm-eval takes the first choice, which may be right."""
    lm = PairLM(pair=plain_pair, mode="receiver", **SAME)
    unfinished = Answered(Outcome(parsed=False), {}, 1, 1)
    monkeypatch.setattr(lm.pair, "answers", lambda documents, **_: {d.hash: unfinished for d in documents})
    with pytest.raises(UserError, match="piqa, document 0: the thought before it has no end"):
        evaluated(lm, stock("piqa"), limit=2)


def _thinking(pair):
    lm = PairLM(pair=pair, mode="receiver", **SAME)
    for tokenizer in lm.pair.tokenizers:
        tokenizer.thinking = "on"
        tokenizer.chat_template = tokenizer.chat_template + "{# <think> </think> #}"
    return lm
