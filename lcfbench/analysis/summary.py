"""One line a run: how good, how sure, how fast, how big, and did anything get across.

    from lcfbench.analysis.summary import summarise
    summarise(runs.rows, runs.manifests)[["task", "label", "control", "score", "verdict"]]

Scores are fractions here; tables and plots show percent. A document that failed counts as wrong and stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from lcfbench.analysis.orf import derived_lines
from lcfbench.analysis.stats import mean_interval, paired_difference, verdict

if TYPE_CHECKING:
    import pandas as pd

Manifests: TypeAlias = Mapping[str, Mapping[str, Any]]
Scores: TypeAlias = "dict[str, pd.Series]"  # run_id → score by doc_hash
BASELINE = "receiver"  # gain is measured against this method
GROUP = ["pair", "task", "scoring"]  # one table, one row of panels
FIGURES = (
    *("n", "errors", "metric", "score", "low", "high", "chance", "ttft_ms", "ttft_n", "ttea_ms", "ttea_n", "docs_per_s"),
    *("adapter_params", "adapter_mb", "message_bytes", "gain", "gain_low", "gain_high", "gain_n", "content", "content_low"),
    *("content_high", "content_n", "matched_score", "deranged_score", "verdict", "verdict_text"),
)
COLUMNS = ("pair", "receiver", "task", "scoring", "mode", "label", "control", "seed", "run_id", "state", *FIGURES)


def summarise(rows: pd.DataFrame, manifests: Manifests | None = None) -> pd.DataFrame:
    """A line per run, ordered for reading: by pair, task and scoring, the receiver alone first, methods without adapter next. Where the
    receiver and the sharer were both run alone there is a line more, `orf`, whose control is "derived" (see orf.py).

    rows, manifests: as `store.read_runs` gives them; without manifests a run's options are unknown and labels are plainer.

    Columns: `label` is the mode plus whatever options tell apart two runs of it. `score` with its 95 % interval `low`, `high`.
    `ttft_ms`, `ttea_ms`: medians of batch 1 over `ttft_n`, `ttea_n` documents; `docs_per_s` is batched, another number.
    `adapter_mb` in 10⁶ bytes, NaN without an adapter. `message_bytes`: median. `gain` (over the receiver alone) and `content`
    (over the deranged run): paired over the documents both have. `verdict` is stats.verdict's label, "" where nothing is sent.
    """
    import pandas as pd

    manifests = manifests or {}
    runs = {str(run_id): part for run_id, part in rows.groupby("run_id", sort=True)}
    scores = {run_id: _scores(part) for run_id, part in runs.items()}
    heads = {run_id: _head(part, manifests.get(run_id, {})) for run_id, part in runs.items()}
    labels = _labels(heads, manifests)
    lines = {}
    for run_id, part in runs.items():
        line = {**heads[run_id], "run_id": run_id, "label": labels[run_id]}
        line |= _figures(part, scores[run_id], manifests.get(run_id, {})) | _gain(run_id, heads, scores, manifests)
        lines[run_id] = line | _content(run_id, heads, scores, manifests, line["message_bytes"])
    derived = derived_lines(heads, lines, scores, manifests)
    return _ordered(pd.DataFrame([*lines.values(), *derived], columns=list(COLUMNS)))


def _scores(part: pd.DataFrame) -> pd.Series:
    """doc_hash → score; what failed is 0."""
    scored = part["score"].where(part["error"].isna(), 0.0).fillna(0.0).astype(float)
    return scored.set_axis(part["doc_hash"]).sort_index()


def _head(part: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pair", "receiver", "task", "scoring", "mode", "control", "seed")
    head: dict[str, Any] = {name: _first(part[name]) for name in names}
    head |= {name: str(head[name] or "") for name in ("pair", "task", "scoring", "mode", "control")}
    return {**head, "receiver": head["receiver"] or head["pair"].partition(":")[0], "state": manifest.get("state", "unknown")}


def _figures(part: pd.DataFrame, score: pd.Series, manifest: Mapping[str, Any]) -> dict[str, Any]:
    got = mean_interval(score.to_numpy())
    batched, adapter = part["amortized_ms"].mean(), part["adapter_bytes"].max()
    chance = manifest.get("chance")
    return {
        "n": len(part),
        "errors": int(part["error"].notna().sum()),
        "metric": _first(part["metric"]) or "accuracy",
        **{"score": got.value, "low": got.low, "high": got.high},
        "chance": float(chance) if chance is not None else math.nan,
        **{"ttft_ms": part["ttft_ms"].median(), "ttft_n": int(part["ttft_ms"].notna().sum())},
        **{"ttea_ms": part["ttea_ms"].median(), "ttea_n": int(part["ttea_ms"].notna().sum())},
        "docs_per_s": 1000 / batched if batched > 0 else math.nan,
        "adapter_params": part["adapter_params"].max(),
        "adapter_mb": adapter / 1e6 if adapter > 0 else math.nan,
        "message_bytes": part["message_bytes"].median(),
    }


def _gain(run_id: str, heads: dict[str, dict], scores: Scores, manifests: Manifests) -> dict[str, Any]:
    """Over the receiver alone, whichever sharer stood beside it."""
    head, same = heads[run_id], _receiver_key(run_id, manifests)
    keys = ("receiver", "task", "scoring")
    alike = [r for r, h in heads.items() if h["mode"] == BASELINE and all(h[k] == head[k] for k in keys)]
    alike = [r for r in alike if _receiver_key(r, manifests) == same]
    if head["mode"] == BASELINE or not (base := _widest(run_id, alike, scores)):
        return {"gain": math.nan, "gain_low": math.nan, "gain_high": math.nan, "gain_n": 0}
    got = paired_difference(*_paired(scores[run_id], scores[base]))
    return {"gain": got.value, "gain_low": got.low, "gain_high": got.high, "gain_n": got.n}


def _receiver_key(run_id: str, manifests: Manifests) -> Any:
    """What must agree for a receiver alone to be this run's baseline: its weights, how it computes, what it is asked."""
    identity = manifests.get(run_id, {}).get("identity", {})
    asked = [identity.get(k) for k in ("dtype", "attention", "device", "task_options", "task_sha256", "data_sha256")]
    return asked, (identity.get("revisions") or [None])[0]


def by_subject(rows: pd.DataFrame, manifests: Manifests) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
    """Rows and manifests in which every subject of a task is a task of its own (`mmlu_redux/astronomy`); others stay as they are."""
    subject = rows["subject"].fillna("").where(rows["subject"].notna(), "")
    ending = ("/" + subject).where(subject != "", "")
    parts = rows.assign(task=rows["task"] + ending, run_id=rows["run_id"] + ending)
    runs = dict(zip(parts["run_id"], rows["run_id"], strict=True))
    return parts, {part: manifests.get(run, {}) for part, run in runs.items()}


def _content(run_id: str, heads: dict[str, dict], scores: Scores, manifests: Manifests, sent: float) -> dict[str, Any]:
    """Over the same run with another document's message."""
    if heads[run_id]["control"] != "matched":
        return {"verdict": "", "verdict_text": ""}
    key = _twin_key(run_id, heads, manifests)
    twins = [r for r, h in heads.items() if h["control"] == "deranged" and _twin_key(r, heads, manifests) == key]
    if not (twin := _widest(run_id, twins, scores)):
        untested = "not tested with another document's message (no deranged run)"
        return {"verdict": "untested", "verdict_text": untested} if sent > 0 else {"verdict": "", "verdict_text": ""}
    got = verdict(*_paired(scores[run_id], scores[twin]))
    content = got.content
    return {
        **{"content": content.value, "content_low": content.low, "content_high": content.high, "content_n": content.n},
        **{"matched_score": got.matched, "deranged_score": got.deranged, "verdict": got.label, "verdict_text": got.text},
    }


def _twin_key(run_id: str, heads: dict[str, dict], manifests: Manifests) -> Any:
    """What a matched and its deranged run have in common: all that changes the answer, but the control and which documents."""
    head = {name: heads[run_id][name] for name in (*GROUP, "mode", "seed")}
    identity = manifests.get(run_id, {}).get("identity", {})
    return head, {name: value for name, value in identity.items() if name not in ("control", "limit", "batch_size")}


def _widest(run_id: str, others: list[str], scores: Scores) -> str | None:
    """The other run that shares the most documents; None where none shares any."""
    shared = {other: len(scores[run_id].index.intersection(scores[other].index)) for other in others}
    best = max(shared, key=lambda other: (shared[other], other), default=None)
    return best if best and shared[best] else None


def _paired(a: pd.Series, b: pd.Series) -> tuple[Any, Any]:
    both = a.index.intersection(b.index)
    return a.loc[both].to_numpy(), b.loc[both].to_numpy()


def _labels(heads: dict[str, dict], manifests: Manifests) -> dict[str, str]:
    """The mode, and where several runs share it, the options that tell them apart."""
    groups: dict[tuple, list[str]] = {}
    for run_id, head in heads.items():
        groups.setdefault(tuple(head[name] for name in (*GROUP, "mode", "control")), []).append(run_id)
    labels = {}
    for members in groups.values():
        flat = {r: _flat(manifests.get(r, {}).get("identity", {"run": r[-6:]})) for r in members}
        names = list(dict.fromkeys(name for options in flat.values() for name in options))
        tell = [name for name in names if len({repr(options.get(name)) for options in flat.values()}) > 1]
        tell = [name for name in tell if not all(_is_digest(options.get(name)) for options in flat.values())] or tell
        for r in members:
            told = [f"{name.rpartition('.')[2]}={_short(flat[r][name])}" for name in tell if flat[r].get(name) is not None]
            labels[r] = " ".join([heads[r]["mode"], *told])
    return labels


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return found


def _short(value: Any) -> str:
    return str(value)[:6] if _is_digest(value) else str(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 32 and not value.strip("0123456789abcdef")


def _first(column: pd.Series) -> Any:
    known = column.dropna()
    return known.iloc[0] if len(known) else None


def _ordered(lines: pd.DataFrame) -> pd.DataFrame:
    rank = {"matched": 0, "deranged": 1}
    keys = lines.assign(_base=lines["mode"] != BASELINE, _mb=lines["adapter_mb"].fillna(0), _rank=lines["control"].map(rank).fillna(2))
    by = [*GROUP, "_base", "_mb", "mode", "label", "_rank", "control", "seed", "run_id"]
    return lines.loc[keys.sort_values(by, kind="stable").index].reset_index(drop=True)
