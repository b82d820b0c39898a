"""One line a method: how good, how sure, how fast, how big, and did anything get across.

    from lcfbench.analysis.summary import summarise
    summarise(read_run_groups([Path("results")]).cells)[["task", "label", "control", "score", "verdict"]]

Scores are fractions here; tables and plots show percent. A document that failed counts as wrong and stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.orf import DERIVED, derived_lines
from lcfbench.analysis.run_groups import OF_THE_SEED, RunGroup, held_against, joined
from lcfbench.analysis.stats import DELTA, Paired, mean_interval, paired
from lcfbench.analysis.verdict import Evidence, verdicts
from lcfbench.controls.names import CONTROLS

if TYPE_CHECKING:
    import pandas as pd

ALONE = "receiver"  # gain is measured against this method
SHOWN = ("matched", "deranged")  # controls from which something follows: those that are drawn
GROUP = ["pair", "task", "scoring"]  # one table, one row of panels
FIGURES = (
    "n", "errors", "sends", "metric", "score", "low", "high", "seeds", "seed_sd", "chance", "ttft_ms", "ttft_n", "ttea_ms", "ttea_n", "docs_per_s",
    "adapter_params", "adapter_mb", "message_bytes", "gain", "gain_low", "gain_high", "gain_n", "content", "content_low", "content_high",
    "content_n", "matched_score", "deranged_score", "p", "p_holm", "p_equivalence", "detectable", "family", "verdict", "verdict_text",
)  # fmt: skip
COLUMNS = (
    "pair",
    "receiver",
    "task",
    "scoring",
    "mode",
    "label",
    "control",
    "seed",
    "run_id",
    "state",
    *FIGURES,
)
ASKED = (
    "dtype",
    "attention",
    "device",
    "task_options",
    "task_sha256",
)  # what must agree for two methods to be held against each other


def summarise(cells: Sequence[RunGroup], delta: float = DELTA) -> pd.DataFrame:
    """A line per cell, ordered for reading: by pair, task and scoring, the receiver alone first, methods without adapter next. Where the
    receiver and the sharer were both run alone there is a line more, `orf`, whose control is "derived" (see orf.py).

    Columns: `label` is the mode plus whatever tells apart two of it. `score` with its 95 % interval over documents `low`, `high`; `seeds`,
    `seed_sd`: number of seeds and the standard deviation of their scores (NaN for one). `ttft_ms`, `ttea_ms`: medians of batch 1 over
    `ttft_n`, `ttea_n` documents; `docs_per_s` is batched, another number. `adapter_mb` in 10⁶ bytes, NaN without an adapter.
    `message_bytes`: median. `gain` (over the receiver alone) and `content` (over the deranged run): paired over the documents both have.
    `verdict`, `verdict_text`: see verdict.py, "" where nothing is sent; `p_holm` is corrected over the `family` of all verdicts in this
    summary. delta: contents smaller than this count as none.
    """
    import pandas as pd

    lines = [{**_head(cell), **_figures(cell)} for cell in cells]
    gains = [_gain(cell, cells) for cell in cells]
    for line, gain in zip(lines, gains, strict=True):
        low, high = gain.interval() if gain else (math.nan, math.nan)
        line |= {
            "gain": gain.value if gain else math.nan,
            "gain_low": low,
            "gain_high": high,
            "gain_n": gain.n if gain else 0,
        }
    _judge(lines, cells, gains, delta)
    derived = derived_lines(list(zip(cells, lines, strict=True)), _asked)
    return _ordered(pd.DataFrame([*lines, *derived], columns=list(COLUMNS)))


def _head(cell: RunGroup) -> dict[str, Any]:
    head = {
        name: getattr(cell, name)
        for name in ("pair", "receiver", "task", "scoring", "mode", "label", "control", "seed", "state")
    }
    return {**head, "seed": head["seed"] if len(cell.seeds) == 1 else None, "run_id": "+".join(cell.run_ids)}


def _figures(cell: RunGroup) -> dict[str, Any]:
    got = mean_interval(cell.scores)
    size, chance = cell.median("adapter_bytes"), cell.manifest.chance
    return {
        **{
            "n": cell.n,
            "errors": cell.errors,
            "sends": cell.sends,
            "metric": cell.metric,
            "score": got.value,
            "low": got.low,
            "high": got.high,
        },
        **{"seeds": len(cell.seeds), "seed_sd": _deviation(cell.seed_scores)},
        "chance": float(chance) if chance is not None else math.nan,
        **_timed(cell, "ttft"),
        **_timed(cell, "ttea"),
        "docs_per_s": cell.documents_per_s,
        "adapter_params": cell.median("adapter_params"),
        "adapter_mb": size / 1e6 if size > 0 else math.nan,
        "message_bytes": cell.median("message_bytes"),
    }


def _timed(cell: RunGroup, name: str) -> dict[str, Any]:
    import numpy as np

    _, values = cell.timed[f"{name}_ms"]
    return {f"{name}_ms": float(np.median(values)) if len(values) else math.nan, f"{name}_n": len(values)}


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


def _gain(cell: RunGroup, cells: Sequence[RunGroup]) -> Paired | None:
    """Over the receiver alone, whichever sharer stood beside it."""
    if cell.mode == ALONE:
        return None
    key = _receiver_key(cell)
    base = widest(cell, [c for c in cells if c.mode == ALONE and _receiver_key(c) == key])
    return paired(*held_against(cell, base)[:2]) if base else None


def _receiver_key(cell: RunGroup) -> Any:
    """What must agree for a receiver alone to be this cell's baseline: its weights, how it computes, what it is asked."""
    return [
        cell.receiver,
        cell.task,
        cell.scoring,
        _asked(cell),
        (cell.identity.get("revisions") or [None])[0],
    ]


def _asked(cell: RunGroup) -> list[Any]:
    return [cell.identity.get(name) for name in ASKED]


def _judge(
    lines: list[dict[str, Any]], cells: Sequence[RunGroup], gains: Sequence[Paired | None], delta: float
) -> None:
    """Verdicts of all matched cells that send something, as one family."""
    for line in lines:
        line |= {"verdict": "", "verdict_text": ""}
    judged: list[tuple[dict[str, Any], Evidence]] = []
    for cell, line, gain in zip(cells, lines, gains, strict=True):
        if cell.control != "matched":
            continue
        twin = twin_of(cell, cells, "deranged")
        if twin:
            own, other, left_out = held_against(cell, twin)
            judged.append((line, Evidence(own, other, gain, left_out)))
        elif cell.sends:
            judged.append((line, Evidence(cell.scores, None, gain)))
    for (line, _), got in zip(judged, verdicts([evidence for _, evidence in judged], delta), strict=True):
        content = got.content
        line |= {
            "content": content.value,
            "content_low": content.low,
            "content_high": content.high,
            "content_n": content.n,
        }
        line |= {
            "matched_score": got.matched,
            "deranged_score": got.deranged,
            "verdict": got.label,
            "verdict_text": got.text,
        }
        line |= {
            "p": got.p,
            "p_holm": got.p_holm,
            "p_equivalence": got.p_equivalence_holm,
            "detectable": got.detectable,
            "family": got.family,
        }


def twin_of(cell: RunGroup, cells: Sequence[RunGroup], control: str) -> RunGroup | None:
    """The same under another control: all that changes the answer agrees, but the control and which documents."""
    key = _twin_key(cell)
    return widest(cell, [c for c in cells if c.control == control and _twin_key(c) == key])


def _twin_key(cell: RunGroup) -> Any:
    apart = ("control", "limit", "batch_size", *OF_THE_SEED)
    head = [getattr(cell, name) for name in (*GROUP, "mode")]
    return head, {name: value for name, value in cell.identity.items() if name not in apart}


def widest(cell: RunGroup, others: Sequence[RunGroup]) -> RunGroup | None:
    """The other cell that shares the most documents; None where none shares any."""
    shared = {i: len(joined(cell, other)[2]) for i, other in enumerate(others)}
    best = max(shared, key=lambda i: (shared[i], others[i].run_ids), default=None)
    return others[best] if best is not None and shared[best] else None


def _ordered(lines: pd.DataFrame) -> pd.DataFrame:
    rank = {control: i for i, control in enumerate(CONTROLS)}
    keys = lines.assign(
        _base=lines["mode"] != ALONE,
        _mb=lines["adapter_mb"].fillna(0),
        _rank=lines["control"].map(rank).fillna(len(rank)),
    )
    by = [*GROUP, "_base", "_mb", "mode", "label", "_rank", "control", "run_id"]
    return lines.loc[keys.sort_values(by, kind="stable").index].reset_index(drop=True)


__all__ = ["ALONE", "DERIVED", "GROUP", "SHOWN", "summarise", "twin_of", "widest"]
