"""What could be gained at all, from the runs without training; and what was, from all runs. No torch.

>>> found = headroom(Path("results/probe-x/runs"), chance=1 / 3)        # doctest: +SKIP
>>> stops(found)                                                              # doctest: +SKIP
[]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcfbench.analysis.run_groups import RunGroup, comparable_scores, joined, read_run_groups
from lcfbench.analysis.stats import DELTA, Paired, Scores, mean_interval, paired
from lcfbench.analysis.stats.power import needed, smallest_visible
from lcfbench.analysis.summary import summarise

CEILING = 0.97  # a receiver alone that scores more leaves nothing to gain
FEW = 32  # documents: with fewer an interval that holds guessing or no gain says little
KEPT = (  # columns of a summary that the page needs
    "mode control n errors score low high ttft_ms adapter_mb adapter_params message_bytes gain gain_low "
    "gain_high content content_low content_high p_holm verdict verdict_text"
).split()


def groups_of(runs: Path) -> dict[tuple[str, str], RunGroup]:
    """The recorded runs by mode and control."""
    return {(g.mode, g.control): g for g in read_run_groups([runs]).groups}


def headroom(runs: Path, chance: float | None) -> dict[str, Any]:
    """Scores alone, of either and of both contexts; the differences to the receiver; what n shows.

    either: right where one of both models is, the ceiling of routing. It is compared with a sharer
    that guesses, which would be right now and then too.
    """
    import numpy as np

    groups = groups_of(runs)
    receiver, sharer, codes = joined(groups["receiver", "matched"], groups["sharer", "matched"])
    either = np.maximum(receiver, sharer)
    guessing = receiver + (1 - receiver) * (chance or 0.0)
    scores: dict[str, Any] = {
        "receiver": _interval(receiver),
        "sharer": _interval(sharer),
        "either": _interval(either),
    }
    gains = {"either": _difference(paired(either, guessing))}
    if full := groups.get(("full_context", "matched")):
        both, alone, _ = joined(full, groups["receiver", "matched"])
        scores["full_context"] = _interval(both)
        gains["full_context"] = _difference(paired(both, alone))
    return {"n": len(codes), "scores": scores, "gains": gains, "guessing": float(guessing.mean())} | visible(
        groups
    )


def visible(groups: Mapping[tuple[str, str], RunGroup]) -> dict[str, Any]:
    """How wide an interval of content these documents give, and the smallest that they show.

    Both from the noise of the text method: its answers with its own and with another's message.
    """
    own, other, _ = comparable_scores(groups["t2t", "matched"], groups["t2t", "deranged"])
    pair = paired(own, other)
    low, high = pair.interval()
    least = smallest_visible(pair)
    return {"half_width": (high - low) / 2, "detectable": None if math.isnan(least) else least}


def stops(found: Mapping[str, Any], chance: float | None) -> list[str]:
    """Reasons why a training cannot show anything here, in words; none where it may."""
    scores, gains, n = found["scores"], found["gains"], found["n"]
    reasons = []
    if scores["receiver"]["value"] >= CEILING:
        reasons.append(f"the receiver alone is right on {100 * scores['receiver']['value']:.0f} %")
    alone = [scores[name] for name in ("receiver", "sharer", "full_context") if name in scores]
    if chance is not None and n >= FEW and all(s["low"] <= chance <= s["high"] for s in alone):
        reasons.append("no model answers better than by guessing")
    elif n >= FEW and all(g["value"] <= 0 or g["high"] < DELTA for g in gains.values()):
        reasons.append("neither the other model's answers nor the other text would help the receiver")
    if all(s["value"] == 0 for s in alone):
        reasons.append("no answer is right at all")
    return reasons


def outcome(runs: Path, mode: str) -> dict[str, Any]:
    """Summary lines of text and of the trained method, and that method against text."""
    found = read_run_groups([runs]).groups
    summary = summarise(found)
    lines = [{k: _json(v) for k, v in line.items() if k in KEPT} for line in summary.to_dict("records")]
    groups = {(g.mode, g.control): g for g in found}
    out: dict[str, Any] = {"lines": lines}
    if (mode, "matched") in groups:
        own, text, _ = joined(groups[mode, "matched"], groups["t2t", "matched"])
        out["against_text"] = _difference(paired(own, text))
        if (mode, "deranged") in groups:
            pair = paired(*comparable_scores(groups[mode, "matched"], groups[mode, "deranged"])[:2])
            out["needed"] = needed(pair.spread, pair.value) if pair.n else None
    return out


def line_of(lines: list[dict[str, Any]], mode: str, control: str = "matched") -> dict[str, Any] | None:
    """The summary line of a method under a control; None where it was not run."""
    return next((x for x in lines if (x["mode"], x["control"]) == (mode, control)), None)


def _interval(values: Scores) -> dict[str, Any]:
    got = mean_interval(values)
    return {"value": got.value, "low": got.low, "high": got.high}


def _difference(pair: Paired) -> dict[str, Any]:
    low, high = pair.interval()
    return {"value": pair.value, "low": low, "high": high, "n": pair.n}


def _json(value: Any) -> Any:
    """A cell as a JSON value; null for what is not a number."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
