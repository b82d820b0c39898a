"""What a sweep over adapters costs.

LCF-64, LCF-128 and C2C-64 in one `run`, beside LCF-64 alone, in turn, as ratios.

    python -m benchmarks.sweep_sharing --documents 32 --repeats 3

The clock is that of `controls_sharing`. Each adapter is run alone as well, once: their times tell what
sharing saves, and every row of the joint run must be theirs, score and log-likelihoods bit for bit.
Weights are random, all gates open: time and equality need no training. Ends with one JSON line.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks._common import CLOCKS, parser, report, shown
from benchmarks._sides import random_adapter
from benchmarks.controls_sharing import Timed, shared, timed
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
    asked = {"pair": given.pair, "task": [task], "limit": given.documents, "control": ["matched"]}
    asked |= {"batch_size": given.batch_size, "dtype": given.dtype}

    def of(mode: list[str], names: list[str]) -> Timed:
        adapter = [folders[name] for name in names]
        return lambda: timed(CLOCKS[given.clock], **asked, mode=mode, adapter=adapter)

    first, *others = ADAPTERS
    alone = {name: of([ADAPTERS[name][0]], [name]) for name in ADAPTERS}
    claim = f"{', '.join(ADAPTERS)} in one run ÷ {first} alone, {task}: time"
    sides = {"alone": alone[first], "joint": of(["lcf", "c2c"], [*ADAPTERS])}
    head = {"case": task, "claim": claim, "target": TARGET}
    return shared(head, sides, [alone[name] for name in others], given)


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
