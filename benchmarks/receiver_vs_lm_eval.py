"""Receiver-only throughput beside lm-eval's `hf`, from documents to scores, in turn, as ratios.

Ends with one JSON line.

    python -m benchmarks.receiver_vs_lm_eval --documents 96 --repeats 3

`few-shot` asks questions of three subjects of MMLU-Redux with five examples of the subject (`--shots 5`), on
lm-eval's side by its own task of them. There a third side is ours without reading once the beginning that
prompts share.

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
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._sides import batched
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.folded import FoldedRows
from lcfbench.tasks.process_docs import Rows
from lcfbench.tasks.stock import StockTask
from lcfbench.tasks.task import Task, load_task

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

TARGETS = {"letters": 2.2, "cloze": 5.5, "generate": 2.2, "few-shot": 3.0}
SUBJECTS = ("anatomy", "college_medicine", "high_school_geography")  # of the few-shot case
SHOTS = 5
Scores = dict[str, float]
Clock = Callable[[], float]


def ours(
    task: Task, end: CausalLM, scoring: Scoring | None, limit: int, size: int, clock: Clock
) -> tuple[Scores, float]:
    """Each document's score, and the seconds without building documents."""
    if isinstance(task, StockTask):
        task._worded_once.clear()
    documents = task.documents(scoring=scoring, limit=limit, receiver_chat=end.has_chat)
    began = clock()
    outcomes = batched(create("receiver", end, end), documents, size)
    scores = {d.doc_id: task.score(d, outcomes[d.hash])["score"] for d in documents}
    return scores, clock() - began


@contextmanager
def plain_templates() -> Iterator[None]:
    """Within it lm-eval fills in templates as it does by itself: the harness compiles each of them once."""
    import lm_eval.utils
    from jinja2 import Environment

    ours = lm_eval.utils.env
    plain = Environment(loader=ours.loader, undefined=ours.undefined, keep_trailing_newline=True)
    plain.filters.update(ours.filters)
    lm_eval.utils.env = plain
    try:
        yield
    finally:
        lm_eval.utils.env = ours


def theirs(
    task: Task, lm: HFLM, scoring: Scoring | None, rows: Rows, chat: bool, clock: Clock
) -> tuple[Scores, float]:
    """The same of lm-eval, in the order of its own `simple_evaluate`."""
    inner: Any = copy.copy(task.lm_eval_task(scoring))
    inner.dataset, inner._instances = {"test": rows}, None
    inner.set_config("num_fewshot", task.shots)
    with plain_templates():
        inner.build_all_requests(
            apply_chat_template=chat, chat_template=lm.apply_chat_template if chat else None
        )
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
        scores[str(rows[number].get("id", number))] = float(
            inner.process_results(rows[number], [r.filtered_resps[name] for r in ordered])[primary]
        )
    return scores, clock() - began


def redux(limit: int) -> Task:
    """MMLU-Redux with five examples of the subject, so many questions of each of the subjects."""
    task = load_task("mmlu_redux", offline=True, shots=SHOTS)
    rows = [
        list(islice((r for r in task._natural("test") if r["subject"] == subject), limit))
        for subject in SUBJECTS
    ]
    task._rows["test"] = FoldedRows([row for some in rows for row in some], task._store)
    return task


def asked_of(scoring: str, given: Any) -> tuple[Task, Scoring | None, str]:
    """The task of a case, its scoring, and what it is called."""
    if scoring != "few-shot":
        return load_task(given.task), scoring, f"{given.task} {scoring}"  # type: ignore[return-value]
    task = redux(max(given.documents // len(SUBJECTS), 2))
    return task, None, f"MMLU-Redux with {SHOTS} examples"


def compared(name: str, end: CausalLM, lm: HFLM, given: Any) -> dict[str, Any]:
    """One line of results: both sides in turn on one case."""
    clock, size = CLOCKS[given.clock], given.batch_size
    task, scoring, what = asked_of(name, given)
    asked: list[Document] = task.documents(scoring=scoring, limit=given.documents, receiver_chat=end.has_chat)
    rows, chat = Rows(dict(d.native) for d in asked), asked[0].chat and end.has_chat

    def mine() -> tuple[Scores, float]:
        end.shared.beginnings, task._leads = OrderedDict(), {}  # as in a process that has just begun
        return ours(task, end, scoring, len(rows), size, clock)

    def unshared() -> tuple[Scores, float]:
        end.shared.beginning_first = False
        try:
            return mine()
        finally:
            end.shared.beginning_first = True

    sides: dict[str, Callable[[], tuple[Scores, float]]] = {
        "ours": mine,
        "lm-eval": lambda: theirs(task, lm, scoring, rows, chat, clock),
    }
    if name == "few-shot":
        sides["unshared"] = unshared
    inside: dict[str, list[float]] = {side: [] for side in sides}
    differing = 0

    def check(returned: dict[str, tuple[Scores, float]]) -> None:
        nonlocal differing
        here, other = (returned[side][0] for side in ("ours", "lm-eval"))
        assert here.keys() == other.keys(), "the two sides scored different documents"
        differing = sum(here[k] != other[k] for k in here)
        if differing and end.dtype == torch.float32:
            raise SystemExit(
                f"{name}: {differing} of {len(here)} scores differ in float32: the times mean nothing."
            )
        for side, taken in inside.items():
            taken.append(returned[side][1])

    # kernels and templates warm up; a whole round would take too long
    ours(task, end, scoring, min(size, len(rows)), size, clock)
    theirs(task, lm, scoring, Rows(rows[:size]), chat, clock)
    times = turns(sides, given.repeats, warm_up=0, clock=clock, check=check)
    more = {"unshared_to_ours": ratio(times, "unshared", "ours")} if "unshared" in sides else {}
    return {
        "case": name,
        "claim": f"receiver alone, {what}: documents/s, ours ÷ lm-eval hf",
        "target": TARGETS[name],
        "ratio": ratio(times, "lm-eval", "ours"),
        "without_building": ratio(inside, "lm-eval", "ours"),
        "documents_per_s": {side: len(rows) / taken for side, taken in seconds(times).items()},
        "differing": differing,
        **more,
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
    end = CausalLM.load(found, dtype=given.dtype)
    dtype = str(end.dtype).removeprefix("torch.")
    lm = HFLM(pretrained=str(found.path), dtype=dtype, batch_size=given.batch_size, device=str(end.device))
    out, began = [], time.perf_counter()
    for scoring in given.scorings.split(","):
        line = compared(scoring, end, lm, given)
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
