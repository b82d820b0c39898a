"""Is the new code slower, or was the machine busy? Decided over whole runs, since a machine changes its mind between two of them.

    from lcfbench.analysis.gate.times import time_shift
    time_shift([(new_ms, baseline_ms) for each seed of `--seeds 0,1,2`], max_slowdown=0.1)

A block is one recorded run of either side, a seed of `--seeds`; the sittings of a resumed run are one. Its documents share whatever the
machine did while it ran, so a block counts once: as the mean log ratio over the documents timed alone in both. A t interval over the blocks'
means decides; fewer than three blocks decide nothing. Even many blocks of one sitting share what the machine does between two sittings: the
baseline for speed belongs in the same job, the two sides run alternately.
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

MANY = 1000  # runs; nobody times more
CAVEAT = (
    "time: a run (a seed of --seeds) is one observation. Runs of one sitting share what the machine does between two sittings: record the "
    "baseline in the same job, the two sides alternately, seed by seed"
)
ONCE = "time: --seeds repeats only what a seed changes; a method that draws nothing is run once, unless a --limit draws its documents"


def blocks(baseline: RunGroup, new: RunGroup) -> list[tuple[np.ndarray, np.ndarray]]:
    """(new, baseline) milliseconds to the first token of the documents timed alone in both, run by run; runs without any left out."""
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
    """Of (new, baseline) times of the same documents, a pair of vectors a block. With fewer than three blocks there is no test."""
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
    """Geometric means of the blocks' geometric means, baseline first: their ratio is the change that is tested."""
    import numpy as np

    logs = [(np.log(before).mean(), np.log(now).mean()) for now, before in blocks]
    before, now = np.exp(np.mean(logs, axis=0)) if logs else (math.nan, math.nan)
    return float(before), float(now)


def _enough(spread: float, distance: float, n: int, family: int) -> int | None:
    """So many runs a side would decide if the truth is what was seen; None where no number in reason would."""
    import numpy as np

    width = spread * _widths(ALPHA if distance > 0 else ALPHA / family)
    decides = np.flatnonzero(width <= abs(distance))
    return max(RUNS + int(decides[0]), n + 1) if len(decides) else None


@cache
def _widths(alpha: float) -> np.ndarray:
    """Of 3, 4, … runs: how far from the limit, in standard deviations, a mean must truly lie to be told from it 4 times in 5."""
    import numpy as np
    from scipy.special import stdtrit

    n = np.arange(RUNS, MANY + 1)
    return (stdtrit(n - 1, 1 - alpha) + stdtrit(n - 1, POWER)) / np.sqrt(n)
