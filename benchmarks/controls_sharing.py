"""What the controls cost.

LCF matched, deranged and silent with the receiver in one `run`, beside LCF alone, in turn, as
ratios.

    python -m benchmarks.controls_sharing --documents 32 --repeats 3

Both sides call `lcfbench.evaluation.runner.run` on the same documents into fresh folders without
batch-1 latencies. The clock runs from the first run's begin, when models and data are loaded, until
the last one's rows are sealed. The other three are made apart as well, once: their times tell what
sharing saves, and every row of the joint run must be theirs, score and log-likelihoods bit for bit.
Ends with one JSON line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.runner import run
from lcfbench.progress import quiet_libraries
from lcfbench.results.schema import SAMPLES
from lcfbench.tasks.document import Scoring

CASES: dict[str, tuple[str, Scoring]] = {
    "letters": ("openbookqa", "letters"),
    "cloze": ("openbookqa", "cloze"),
    "splitfacts": ("splitfacts", "cloze"),
}
TARGET = 1.6
CONTROLS = ["matched", "deranged", "silent"]
Rows = dict[tuple[str, str], tuple[Any, ...]]  # (run id, document) → what was answered


class Watch:
    """A progress that remembers when the first run began and whether a document failed.

    Other messages are dropped.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.began = clock, 0.0

    def begin(self, *_: Any) -> None:
        self.began = self.began or self.clock()

    def warn(self, text: str) -> None:
        if "failed" in text:
            raise SystemExit(f"{text}: the times mean nothing.")

    def say(self, *_: Any) -> None: ...

    def rolling(self, *_: Any) -> None: ...

    def update(self, *_: Any) -> None: ...

    def end(self, *_: Any) -> None: ...


def timed(clock: Callable[[], float], **asked: Any) -> tuple[Rows, float]:
    """All rows of one recipe's runs, and the seconds they took once everything was loaded."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(clock)
        ids = list(run(Recipe(**asked, out=Path(folder), fresh=True, latency_documents=0), watch))
        taken = clock() - watch.began
        rows: Rows = {}
        for run_id in ids:
            table = pq.read_table(
                Path(folder, run_id, SAMPLES), columns=["doc_hash", "score", "choices_loglikelihood"]
            )
            rows |= {
                (run_id, row["doc_hash"]): (row["score"], row["choices_loglikelihood"])
                for row in table.to_pylist()
            }
    return rows, taken


Timed = Callable[[], tuple[Rows, float]]


def shared(head: dict[str, Any], sides: dict[str, Timed], others: list[Timed], given: Any) -> dict[str, Any]:
    """One line of results: `alone` and `joint` in turn, and the runs of `joint` made apart, once.

    head: case, claim and target. others: the runs of `joint` beside that of `alone`.
    """
    inside: dict[str, list[float]] = {"alone": [], "joint": []}
    last: dict[str, Rows] = {}

    def check(returned: dict[str, tuple[Rows, float]]) -> None:
        for side, taken in inside.items():
            last[side], spent = returned[side]
            taken.append(spent)

    turns(sides, given.repeats, warm_up=0, clock=CLOCKS[given.clock], check=check)
    apart, spent = dict(last["alone"]), seconds(inside)["alone"]
    for other in others:
        rows, more = other()
        apart, spent = apart | rows, spent + more
    joint = last["joint"]
    if joint.keys() != apart.keys():
        raise SystemExit(f"{head['case']}: the joint run has other runs or documents than those made apart.")
    return head | {
        "better": "lower",
        "ratio": ratio(inside, "joint", "alone"),
        "apart_to_alone": spent / seconds(inside)["alone"],
        "seconds": {**seconds(inside), "apart": spent},
        "rows": len(joint),
        "differing": sum(joint[k] != apart[k] for k in joint),
        "scores_differing": sum(joint[k][0] != apart[k][0] for k in joint),
    }


def compared(task: str, scoring: Scoring, given: Any) -> dict[str, Any]:
    """One line of results."""
    asked = {
        "pair": given.pair,
        "task": [task],
        "scoring": scoring,
        "limit": given.documents,
        "batch_size": given.batch_size,
        "dtype": given.dtype,
    }

    def of(mode: list[str], control: list[str]) -> Timed:
        return lambda: timed(CLOCKS[given.clock], **asked, mode=mode, control=control)

    head = {
        "case": scoring if task == "openbookqa" else task,
        "claim": f"LCF matched+deranged+silent and receiver in one run ÷ LCF alone, {task} {scoring}: time",
        "target": TARGET,
    }
    sides = {"alone": of(["lcf"], ["matched"]), "joint": of(["receiver", "lcf"], CONTROLS)}
    others = [of([m], [c]) for m, c in (("receiver", "matched"), ("lcf", "deranged"), ("lcf", "silent"))]
    return shared(head, sides, others, given)


def main() -> None:
    """Prints a line a case, then JSON."""
    defaults: dict[str, Any] = {
        "pair": "smollm2-135m:gemma3-270m",
        "documents": 32,
        "repeats": 3,
        "batch_size": 16,
        "dtype": "auto",
    }
    options = parser(__doc__, **defaults, cases=",".join(CASES))
    given = options.parse_args()
    if unknown := set(given.cases.split(",")) - set(CASES):
        options.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    quiet_libraries()
    out = []
    for name in given.cases.split(","):
        line = compared(*CASES[name], given)
        out.append(line)
        print(
            f"{name}: four in one run take {shown(line['ratio'])}× LCF alone "
            f"(made apart {line['apart_to_alone']:.2f}×); ",
            end="",
        )
        print(
            f"{line['differing']} of {line['rows']} rows differ from those made apart, "
            f"{line['scores_differing']} scores",
            flush=True,
        )
    report(
        "controls_sharing",
        out,
        given.out,
        **{k: getattr(given, k) for k in ("pair", "dtype", "documents", "batch_size")},
    )


if __name__ == "__main__":
    main()
