"""Receiver-only throughput beside lm-eval's `hf`, from documents to scores, in turn, as ratios.

Ends with one JSON line.

    python -m benchmarks.receiver_vs_lm_eval --documents 96 --repeats 3

Same rows, dtype, threads and batch size. lm-eval loads a model of its own from the same folder:
what the harness does to its copy must not speed the peer up. Both sides do all of it: ours makes
documents of the rows, renders, tokenises, answers and scores; lm-eval builds its requests
(`build_all_requests`), tokenises, batches by its own rules, answers, filters and scores. `ratio` is
of the whole; `without_building` leaves out what happens before the models are asked (our documents,
its requests). Scores are compared before a time counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._sides import batched
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.process_docs import Rows
from lcfbench.tasks.task import Task, load_task

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

TARGETS: dict[Scoring, float] = {"letters": 1.2, "cloze": 3.0, "generate": 1.2}
Scores = dict[str, float]
Clock = Callable[[], float]


def ours(
    task: Task, end: CausalLM, scoring: Scoring, limit: int, size: int, clock: Clock
) -> tuple[Scores, float]:
    """Each document's score, and the seconds without building documents."""
    documents = task.documents(scoring=scoring, limit=limit, receiver_chat=end.has_chat)
    began = clock()
    outcomes = batched(create("receiver", end, end), documents, size)
    scores = {d.doc_id: task.score(d, outcomes[d.hash])["score"] for d in documents}
    return scores, clock() - began


def theirs(
    task: Task, lm: HFLM, scoring: Scoring, rows: Rows, chat: bool, clock: Clock
) -> tuple[Scores, float]:
    """The same of lm-eval, in the order of its own `simple_evaluate`."""
    inner: Any = copy.copy(task.lm_eval_task(scoring))
    inner.dataset, inner._instances = {"test": rows}, None
    inner.build_all_requests(apply_chat_template=chat, chat_template=lm.apply_chat_template if chat else None)
    began = clock()
    requests = inner.instances
    for request, got in zip(
        requests, getattr(lm, requests[0].request_type)(requests, disable_tqdm=True), strict=True
    ):
        request.resps.append(got)
    inner.apply_filters()
    name, primary = inner._filters[0].name, task.metric(scoring)
    by_document: dict[int, list[Any]] = {}
    for request in requests:
        by_document.setdefault(request.doc_id, []).append(request)
    scores = {}
    for number, made in by_document.items():
        ordered = sorted(made, key=lambda r: r.idx)
        scores[str(rows[number]["id"])] = float(
            inner.process_results(rows[number], [r.filtered_resps[name] for r in ordered])[primary]
        )
    return scores, clock() - began


def compared(task: Task, end: CausalLM, lm: HFLM, scoring: Scoring, given: Any) -> dict[str, Any]:
    """One line of results: both sides in turn on one scoring."""
    documents: list[Document] = task.documents(
        scoring=scoring, limit=given.documents, receiver_chat=end.has_chat
    )
    rows, chat, clock = (
        Rows(dict(d.native) for d in documents),
        documents[0].chat and end.has_chat,
        CLOCKS[given.clock],
    )
    inside: dict[str, list[float]] = {"ours": [], "lm-eval": []}
    differing = 0

    def check(returned: dict[str, tuple[Scores, float]]) -> None:
        nonlocal differing
        mine, other = (returned[side][0] for side in inside)
        assert mine.keys() == other.keys(), "the two sides scored different documents"
        differing = sum(mine[k] != other[k] for k in mine)
        if differing and end.dtype == torch.float32:
            raise SystemExit(
                f"{scoring}: {differing} of {len(mine)} scores differ in float32: the times mean nothing."
            )
        for side, taken in inside.items():
            taken.append(returned[side][1])

    few = min(
        given.batch_size, given.documents
    )  # kernels and templates warm up; a whole round would take too long
    ours(task, end, scoring, few, given.batch_size, clock)
    theirs(task, lm, scoring, Rows(rows[:few]), chat, clock)
    sides: dict[str, Callable[[], tuple[Scores, float]]] = {
        "ours": lambda: ours(task, end, scoring, given.documents, given.batch_size, clock),
        "lm-eval": lambda: theirs(task, lm, scoring, rows, chat, clock),
    }
    times = turns(sides, given.repeats, warm_up=0, clock=clock, check=check)
    return {
        "case": scoring,
        "claim": f"receiver alone, {given.task} {scoring}: documents/s, ours ÷ lm-eval hf",
        "target": TARGETS[scoring],
        "ratio": ratio(times, "lm-eval", "ours"),
        "without_building": ratio(inside, "lm-eval", "ours"),
        "documents_per_s": {side: given.documents / taken for side, taken in seconds(times).items()},
        "differing": differing,
    }


def main() -> None:
    """Prints a line a scoring, then JSON."""
    defaults = {
        "model": "smollm2-135m",
        "task": "openbookqa",
        "documents": 96,
        "batch_size": 16,
        "repeats": 3,
        "dtype": "auto",
    }
    given = parser(__doc__, **defaults, scorings=",".join(TARGETS)).parse_args()
    quiet_libraries()
    from lm_eval.models.huggingface import HFLM

    found = find_model(given.model)
    end, task = CausalLM.load(found, dtype=given.dtype), load_task(given.task)
    dtype = str(end.dtype).removeprefix("torch.")
    lm = HFLM(pretrained=str(found.path), dtype=dtype, batch_size=given.batch_size, device=str(end.device))
    out, began = [], time.perf_counter()
    for scoring in given.scorings.split(","):
        line = compared(task, end, lm, scoring, given)
        out.append(line)
        speed = line["documents_per_s"]
        print(
            f"{scoring}: ours {speed['ours']:.1f} documents/s, lm-eval hf {speed['lm-eval']:.1f}, "
            f"{shown(line['ratio'])}×; ",
            end="",
        )
        print(
            f"without building {shown(line['without_building'])}×; scores differing {line['differing']}",
            flush=True,
        )
    more = {"model": end.name, "dtype": dtype, "documents": given.documents, "batch_size": given.batch_size}
    report("receiver_vs_lm_eval", out, given.out, **more, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
