"""What a sweep over adapters costs.

LCF-64, LCF-128 and C2C-64 in one `run`, beside LCF-64 alone, in turn, as ratios.

    python -m benchmarks.sweep_sharing --documents 32 --repeats 3

The clock is that of `controls_sharing`. Each adapter is run alone as well, once: their times tell what
sharing saves, and every row of the joint run must be theirs, score and log-likelihoods bit for bit.
Weights are random, all gates open: time and equality need no training. Ends with one JSON line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._sides import random_adapter
from benchmarks.controls_sharing import Rows, timed
from lcfbench.adapters.files import save
from lcfbench.methods.load_pair import load_pair
from lcfbench.progress import quiet_libraries

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LCF-64": ("lcf", {"width": 64}),
    "LCF-128": ("lcf", {"width": 128}),
    "C2C-64": ("c2c", {"hidden": 64, "intermediate": 64}),
}
TASKS = ("planted", "openbookqa")  # both models read the same
TARGET = 1.5


def make_adapters(pair: str, folder: Path) -> dict[str, Path]:
    """Saves the adapters for a pair; returns their folders by name."""
    ends = load_pair(pair)
    for name, (kind, options) in ADAPTERS.items():
        save(random_adapter(kind, ends.receiver, ends.sharer, options), folder / name, "")
    return {name: folder / name for name in ADAPTERS}


def compared(task: str, folders: dict[str, Path], given: Any) -> dict[str, Any]:
    """One line of results."""
    clock = CLOCKS[given.clock]
    asked = {"pair": given.pair, "task": [task], "limit": given.documents, "control": ["matched"]}
    asked |= {"batch_size": given.batch_size, "dtype": given.dtype}
    inside: dict[str, list[float]] = {"alone": [], "joint": []}
    last: dict[str, Rows] = {}

    def alone(name: str) -> tuple[Rows, float]:
        return timed(clock, **asked, mode=[ADAPTERS[name][0]], adapter=[folders[name]])

    def check(returned: dict[str, tuple[Rows, float]]) -> None:
        for side, taken in inside.items():
            last[side], spent = returned[side]
            taken.append(spent)

    first, *others = ADAPTERS
    sides: dict[str, Callable[[], tuple[Rows, float]]] = {
        "alone": lambda: alone(first),
        "joint": lambda: timed(clock, **asked, mode=["lcf", "c2c"], adapter=list(folders.values())),
    }
    turns(sides, given.repeats, warm_up=0, clock=clock, check=check)
    apart, spent = dict(last["alone"]), seconds(inside)["alone"]
    for name in others:
        rows, more = alone(name)
        apart, spent = apart | rows, spent + more
    joint = last["joint"]
    if joint.keys() != apart.keys():
        raise SystemExit(f"{task}: the joint run has other runs or documents than those made apart.")
    return {
        "case": task,
        "claim": f"{', '.join(ADAPTERS)} in one run ÷ {first} alone, {task}: time",
        "target": TARGET,
        "better": "lower",
        "ratio": ratio(inside, "joint", "alone"),
        "apart_to_alone": spent / seconds(inside)["alone"],
        "seconds": {**seconds(inside), "apart": spent},
        "rows": len(joint),
        "differing": sum(joint[k] != apart[k] for k in joint),
    }


def main() -> None:
    """Prints a line a task, then JSON."""
    defaults: dict[str, Any] = {"pair": "smollm2-135m:gemma3-270m", "documents": 32, "repeats": 3}
    defaults |= {"batch_size": 16, "dtype": "auto"}
    given = parser(__doc__, **defaults, cases=",".join(TASKS)).parse_args()
    quiet_libraries()
    out = []
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(given.pair, Path(folder))
        for task in given.cases.split(","):
            line = compared(task, folders, given)
            out.append(line)
            apart, differing = f"{line['apart_to_alone']:.2f}", line["differing"]
            print(
                f"{task}: three in one run take {shown(line['ratio'])}× one (made apart {apart}×); ", end=""
            )
            print(f"{differing} of {line['rows']} rows differ", flush=True)
    report(
        "sweep_sharing",
        out,
        given.out,
        **{k: getattr(given, k) for k in ("pair", "dtype", "documents", "batch_size")},
    )


if __name__ == "__main__":
    main()
