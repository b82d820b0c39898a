"""ORF, the routing oracle: right when either model alone is right. Computed from stored rows of `receiver` and `sharer`; nothing is run.

A method that beats the receiver by less than ORF may have learned no more than when to leave the answer to the other model (methods.md, 7).
For scores between 0 and 1 (F1) it takes the larger of the two.

    from lcfbench.analysis.orf import derived_lines
    derived_lines(heads, lines, scores, manifests)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.stats import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd

MODE, DERIVED = "orf", "derived"  # what stands in the columns mode and control
EITHER = "right when either model alone is right (the larger of two scores); from the rows of receiver and sharer, not run"
SAME = ("dtype", "attention", "device", "task_options", "task_sha256", "data_sha256")  # of the two runs' identities


def derived_lines(
    heads: Mapping[str, Mapping[str, Any]],
    lines: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, pd.Series],
    manifests: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A summary line for every receiver and sharer run that belong together; of several such pairs the one that shares most documents.

    heads, lines, scores: by run id: the names of a run, its summary line, its score by document hash.
    """
    import numpy as np

    groups: dict[str, dict[str, list[str]]] = {}
    for run_id, head in heads.items():
        if head["mode"] in ("receiver", "sharer"):
            groups.setdefault(_key(head, manifests.get(run_id, {})), {}).setdefault(head["mode"], []).append(run_id)
    found = []
    for group in groups.values():
        pairs = [(r, s) for r in group.get("receiver", []) for s in group.get("sharer", [])]
        shared = {pair: scores[pair[0]].index.intersection(scores[pair[1]].index) for pair in pairs}
        best = max(shared, key=lambda pair: (len(shared[pair]), pair), default=None)
        if best is None or not len(shared[best]):
            continue
        receiver, sharer = (scores[run_id].loc[shared[best]].to_numpy() for run_id in best)
        either = np.maximum(receiver, sharer)
        got, gain = mean_interval(either), paired_difference(either, receiver)
        base = lines[best[0]]
        found.append(
            {**heads[best[0]], "mode": MODE, "label": MODE, "control": DERIVED, "state": DERIVED, "run_id": "+".join(best)}
            | {"n": got.n, "errors": 0, "metric": base["metric"], "score": got.value, "low": got.low, "high": got.high}
            | {"chance": base["chance"], "ttft_n": 0, "ttea_n": 0, "adapter_params": 0, "message_bytes": math.nan}
            | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high, "gain_n": gain.n}
            | {"verdict": DERIVED, "verdict_text": EITHER}
        )
    return found


def _key(head: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What must agree between the two runs: the pair, what is asked and how it is computed."""
    identity = manifest.get("identity", {})
    return repr([head[k] for k in ("pair", "task", "scoring", "seed")] + [identity.get(k) for k in SAME])
