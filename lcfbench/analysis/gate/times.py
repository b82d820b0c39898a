"""Decides whether new code is slower, over whole runs: a machine's speed drifts between runs.

    from lcfbench.analysis.gate.times import time_shift
    time_shift([(new_ms, baseline_ms) for each seed of `--seeds 0,1,2`], max_slowdown=0.1)

A block is one recorded run of either side, a seed of `--seeds`; the sessions of a resumed run are
one. Its documents share what the machine did while it ran, so a block counts once: as the mean
log ratio over the documents timed alone in both. A t interval over the blocks' means decides; fewer
than three blocks decide nothing. Even many blocks of one session share what the machine does
between two sessions: the baseline for speed belongs in the same job, the two sides run alternately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING

from lcfbench.analysis.gate import ALPHA, POWER, RUNS, Shift

if TYPE_CHECKING:
    import numpy as np

    from lcfbench.analysis.run_groups import RunGroup

MANY = 1000  # runs
CAVEAT = (
    "time: a run (a seed of --seeds) is one observation. Runs of one session share what the machine does "
    "between two sessions: record the baseline in the same job, the two sides alternately, seed by seed"
)
ONCE = (
    "time: --seeds repeats only what a seed changes; a method that draws nothing is run once, unless "
    "a --limit draws its documents"
)


def blocks(baseline: RunGroup, new: RunGroup) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (new, baseline) first-token milliseconds of documents timed in both, for each run."""
    import numpy as np

    found = []
    for before, now in zip(baseline.runs, new.runs, strict=True):
        (codes_b, ms_b), (codes_n, ms_n) = before.timed["ttft_ms"], now.timed["ttft_ms"]
        _, at_b, at_n = np.intersect1d(codes_b, codes_n, return_indices=True)
        known = (ms_b[at_b] > 0) & (ms_n[at_n] > 0)
        if known.any():
            found.append((ms_n[at_n][known], ms_b[at_b][known]))
    return found


def time_shift(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], max_slowdown: float, family: int = 1
) -> Shift:
    """Of (new, baseline) times of the same documents, a pair of vectors a block.

    With fewer than three blocks there is no test.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    moved = np.array(
        [
            np.log(np.asarray(before, dtype=float) / np.asarray(now, dtype=float)).mean()
            for now, before in blocks
        ]
    )
    n, limit = len(moved), -math.log1p(max_slowdown)
    value = float(moved.mean()) if n else math.nan
    if n < RUNS:
        return Shift(value, math.nan, math.nan, n, math.nan, False, lambda: RUNS)
    spread = float(moved.std(ddof=1))
    error = spread / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - ALPHA)) * error
    # clocks that repeat to the last digit leave no error: then the mean itself is the bound
    p = float(stdtr(n - 1, (value - limit) / error)) if error > 0 else float(value >= limit)
    return Shift(
        value,
        value - half,
        value + half,
        n,
        p,
        value - half > limit,
        partial(_enough, spread, value - limit, n, family),
    )


def typical(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Returns geometric means, baseline first; their ratio is the tested change."""
    import numpy as np

    logs = [(np.log(before).mean(), np.log(now).mean()) for now, before in blocks]
    before, now = np.exp(np.mean(logs, axis=0)) if logs else (math.nan, math.nan)
    return float(before), float(now)


def _enough(spread: float, distance: float, n: int, family: int) -> int | None:
    """Returns the runs a side that would decide if the truth is as seen; None where none would."""
    import numpy as np

    width = spread * _widths(ALPHA if distance > 0 else ALPHA / family)
    decides = np.flatnonzero(width <= abs(distance))
    return max(RUNS + int(decides[0]), n + 1) if len(decides) else None


@cache
def _widths(alpha: float) -> np.ndarray:
    """Returns, for 3, 4, … runs, the distance from the limit seen 4 times in 5 (in deviations)."""
    import numpy as np
    from scipy.special import stdtrit

    n = np.arange(RUNS, MANY + 1)
    return (stdtrit(n - 1, 1 - alpha) + stdtrit(n - 1, POWER)) / np.sqrt(n)
