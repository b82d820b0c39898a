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
from typing import Any, TypeAlias

from lcfbench.analysis.run_groups import RunGroup, comparable_scores, joined, too_many_failed
from lcfbench.analysis.stats import mean_interval, paired

Nearest: TypeAlias = Callable[[RunGroup, Sequence[RunGroup]], tuple[RunGroup | None, str]]
MODE, DERIVED = "orf", "derived"  # what stands in the columns mode and control
EITHER = (
    "right when either model alone is right (the larger of two scores); "
    "from the rows of receiver and sharer, not run"
)


def derived_lines(
    found: Sequence[tuple[RunGroup, dict[str, Any]]], asked: Callable[[RunGroup], Any], nearest: Nearest
) -> list[dict[str, Any]]:
    """Returns a summary line for every receiver and sharer that belong together.

    found: groups with their summary lines. asked: what must agree between the two beside pair, task
    and scoring. nearest: chooses the run of the sharer. Where too many documents failed, or several runs
    fit equally well and differ, the line has no score and its `verdict_text` says why.
    """
    import numpy as np

    together: dict[str, dict[str, list[tuple[RunGroup, dict[str, Any]]]]] = {}
    for group, line in found:
        if group.mode in ("receiver", "sharer") and group.control == "matched":
            key = repr([group.pair, group.task, group.scoring, asked(group)])
            together.setdefault(key, {}).setdefault(group.mode, []).append((group, line))
    lines = []
    for members_ in together.values():
        bases = {id(group): line for group, line in members_.get("receiver", [])}
        receivers, sharers = ([g for g, _ in members_.get(mode, [])] for mode in ("receiver", "sharer"))
        if (chosen := _belonging(receivers, sharers, nearest)) is None:
            continue
        one, other, why = chosen
        base = bases[id(one)]
        receiver, either = np.zeros(0), np.zeros(0)
        if other is not None:
            receiver, sharer, _ = comparable_scores(one, other)
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
                "run_id": "+".join([*one.run_ids, *(other.run_ids if other is not None else ())]),
                "reliable": other is not None,
            }
            | {"n": got.n, "errors": 0, "sends": False, "score": got.value, "low": got.low, "high": got.high}
            | {"ttft_n": 0, "ttea_n": 0, "won_n": 0, "adapter_params": 0, "message_bytes": math.nan}
            | {"gain": gain.value, "gain_low": low, "gain_high": high, "gain_n": gain.n}
            | {"verdict": DERIVED, "verdict_text": f"{EITHER}; not computed: {why}" if why else EITHER}
        )
    return lines


def _belonging(
    receivers: Sequence[RunGroup], sharers: Sequence[RunGroup], nearest: Nearest
) -> tuple[RunGroup, RunGroup | None, str] | None:
    """Returns the receiver and the sharer that are nearest to each other and share the most documents.

    None where none share any. Without a sharer where nothing can be computed, and why.
    """
    import numpy as np

    found, doubts = [], []
    for one in receivers:
        other, why = nearest(one, sharers)
        back, why_back = nearest(other, receivers) if other is not None else (None, "")
        if other is not None and back is one:
            scores = np.maximum(*joined(one, other)[:2])
            found.append((one, other, scores))
        elif back is None and (why or why_back):
            doubts.append((one, None, why_back or why))
    if not found:
        return doubts[0] if doubts else None
    most = max(len(scores) for _, _, scores in found)
    fits = [pair for pair in found if len(pair[2]) == most]
    one, other, scores = fits[0]
    if any(not np.array_equal(scores, more) for _, _, more in fits[1:]):
        return one, None, f"{len(fits)} pairs of runs fit equally well; name one of them"
    why = too_many_failed(one, other)
    return one, None if why else other, why
