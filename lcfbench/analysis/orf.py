"""ORF, the routing oracle: right when either model alone is right.

Computed from stored rows of `receiver` and `sharer`; nothing is run.

A method that beats the receiver by less than ORF may have learned no more than when to leave the
answer to the other model. For scores between 0 and 1 (F1) it takes the larger of
the two.

    from lcfbench.analysis.orf import derived_lines
    derived_lines(cells_and_lines, asked)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lcfbench.analysis.run_groups import RunGroup, joined
from lcfbench.analysis.stats import mean_interval, paired

MODE, DERIVED = "orf", "derived"  # what stands in the columns mode and control
EITHER = (
    "right when either model alone is right (the larger of two scores); "
    "from the rows of receiver and sharer, not run"
)


def derived_lines(
    found: Sequence[tuple[RunGroup, dict[str, Any]]], asked: Callable[[RunGroup], Any]
) -> list[dict[str, Any]]:
    """Returns a summary line for every receiver and sharer that belong together.

    found: groups with their summary lines. asked: what must agree between the two beside pair, task
    and scoring.
    """
    import numpy as np

    together: dict[str, dict[str, list[tuple[RunGroup, dict[str, Any]]]]] = {}
    for group, line in found:
        if group.mode in ("receiver", "sharer"):
            key = repr([group.pair, group.task, group.scoring, asked(group)])
            together.setdefault(key, {}).setdefault(group.mode, []).append((group, line))
    lines = []
    for members_ in together.values():
        pairs = [(r, s) for r in members_.get("receiver", []) for s in members_.get("sharer", [])]
        shared = [(len(joined(r[0], s[0])[2]), i) for i, (r, s) in enumerate(pairs)]
        if not shared or not max(shared)[0]:
            continue
        (one, base), (other, _) = pairs[max(shared)[1]]
        receiver, sharer, _ = joined(one, other)
        either = np.maximum(receiver, sharer)
        got, gain = mean_interval(either), paired(either, receiver)
        low, high = gain.interval()
        lines.append(
            {
                name: base[name]
                for name in ("pair", "receiver", "task", "scoring", "seed", "metric", "chance", "seeds")
            }
            | {
                "mode": MODE,
                "label": MODE,
                "control": DERIVED,
                "state": DERIVED,
                "run_id": "+".join([*one.run_ids, *other.run_ids]),
            }
            | {"n": got.n, "errors": 0, "sends": False, "score": got.value, "low": got.low, "high": got.high}
            | {"ttft_n": 0, "ttea_n": 0, "adapter_params": 0, "message_bytes": math.nan}
            | {"gain": gain.value, "gain_low": low, "gain_high": high, "gain_n": gain.n}
            | {"verdict": DERIVED, "verdict_text": EITHER}
        )
    return lines
