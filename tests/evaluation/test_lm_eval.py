"""The receiver alone equals lm-eval's `hf`: log-likelihoods, generations and metrics are the same."""

from __future__ import annotations

import pytest
import torch

from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.timing import Clock
from lcfbench.tasks.task import load_task
from tests import helpers

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of pip and lscpu


def ours(task, end, scoring, limit, **options):
    """Scores by document id through our loop."""
    documents = task.documents(scoring=scoring, limit=limit, receiver_chat=end.has_chat)
    method, out = create("receiver", end, end), {}
    with torch.inference_mode():
        for group in batches(documents, 4):
            batch = Batch(group, group, Clock())
            for d, o in zip(group, answer(method.respond(batch), batch)[0], strict=True):
                out[d.doc_id] = (o, task.score(d, o))
    return documents, out


def theirs(task, end, scoring, documents, chat):
    """The same documents through lm-eval's `simple_evaluate` and its `hf` model, by document id."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    inner = task.lm_eval_task(scoring)
    wanted = {d.doc_id for d in documents}
    indices = [i for i, row in enumerate(inner.test_docs()) if str(row["id"]) in wanted]
    lm = HFLM(pretrained=end.model, tokenizer=end.tokenizer, batch_size=4, device="cpu")
    got = lm_eval.simple_evaluate(
        model=lm,
        tasks=[inner],
        task_manager=TaskManager(include_defaults=False),  # lm-eval's own tasks take seconds
        samples={inner.config.task: indices},
        apply_chat_template=chat,
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    return {str(s["doc"]["id"]): s for s in got["samples"][inner.config.task]}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("name", "scoring"),
    [
        ("openbookqa", "letters"),
        ("openbookqa", "cloze"),
        ("arc_challenge", "letters"),
        ("mmlu_pro", "letters"),
        ("ceval", "letters"),
        ("ceval", "cloze"),
        ("medqa", "letters"),
    ],
)
def test_choices_equal_simple_evaluate(mirror, name, scoring, chat):
    end = helpers.causal_lm(chat=chat, positions=4096)
    task = load_task(name, offline=True)
    documents, mine = ours(task, end, scoring, 6)
    sample = theirs(task, end, scoring, documents, chat)
    assert len(sample) == len(mine) == 6
    for key, (outcome, scores) in mine.items():
        reference = [r[0] for r in sample[key]["resps"]]
        assert [ll for ll, _ in outcome.loglikelihoods[0]] == pytest.approx(
            [float(ll) for ll, _ in reference], abs=2e-4
        )
        assert [g for _, g in outcome.loglikelihoods[0]] == [str(g) == "True" for _, g in reference]
        for metric in sample[key]["metrics"]:
            assert scores[metric] == pytest.approx(float(sample[key][metric]))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("openbookqa", {}), ("gsm8k", {"answer_tokens": "24"}), ("math500", {"answer_tokens": "24"})],
)
def test_generations_equal_simple_evaluate(mirror, name, options, chat):
    end = helpers.causal_lm(chat=chat, positions=4096)
    task = load_task(name, offline=True, options=options)
    documents, mine = ours(task, end, "generate", 5)
    sample = theirs(task, end, "generate", documents, chat)
    for key, (outcome, scores) in mine.items():
        assert outcome.text == sample[key]["resps"][0][0]
        for metric in sample[key]["metrics"]:
            assert scores[metric] == pytest.approx(float(sample[key][metric]))
