"""One line a method: how good, how sure, how fast, how big, and did anything get across.

    from lcfbench.analysis.summary import summarise
    summarise(read_run_groups([Path("results")]).groups)[["task", "label", "score", "verdict"]]

Scores are fractions here; tables and plots show percent. A document that failed counts as wrong and
stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.families import members
from lcfbench.analysis.orf import DERIVED, derived_lines
from lcfbench.analysis.recorded import WINNERS
from lcfbench.analysis.run_groups import (
    OF_THE_SEED,
    RunGroup,
    comparable_scores,
    joined,
    read_run_groups,
    too_many_failed,
)
from lcfbench.analysis.stats import DELTA, Paired, mean_interval, paired
from lcfbench.analysis.verdict import LABELS, Evidence, bounds, judge
from lcfbench.controls.names import CONTROLS, WITHOUT_CONTENT
from lcfbench.errors import UserError
from lcfbench.results.reader import Paths, as_paths, warn_all

if TYPE_CHECKING:
    import pandas as pd

ALONE = "receiver"  # gain is measured against this method
SHOWN = ("matched", "deranged")  # controls from which something follows: those that are drawn
GROUP = ["pair", "task", "scoring"]  # one table, one row of panels
COLUMNS = tuple(
    """pair receiver task scoring mode label control seed run_id state n errors unparsed sends metric score
    low high seeds seed_sd
    chance ttft_ms ttft_n ttea_ms ttea_n docs_per_s adapter_params adapter_mb message_bytes
    gain gain_low gain_high gain_n content content_low content_high content_n matched_score deranged_score
    worst_control worst_score
    p p_holm p_equivalence detectable family verdict verdict_text note reliable
    won_message won_message_low won_message_high won_text won_text_low won_text_high
    won_neither won_neither_low won_neither_high won_n
    flops short series place whole pruned""".split()
)
# what may change a computed number without changing the question
COMPUTED = ("batch_size", "versions", "behaviour", "version")
DRAWN = ("limit", "seed", "data_sha256", "split_manifest_sha256", "prompts_sha256")
# what must agree for two methods to be compared
ASKED = ("dtype", "attention", "device", "task_options", "task_sha256", "prompt_sha256")


def summarise(groups: Sequence[RunGroup], delta: float = DELTA) -> pd.DataFrame:
    """Returns a line for each group, by pair, task and scoring, the receiver alone first.

    Where the receiver and the sharer were both run alone there is a line more, `orf`, whose control
    is "derived" (see orf.py).

    Columns: `label` is the mode and the settings that tell it from another. `score` with its 95 %
    interval over documents `low`, `high`; `seeds`, `seed_sd`: number of seeds and the standard
    deviation of their scores (NaN for one). `unparsed`: share of answers that could not be read.
    `ttft_ms`, `ttea_ms`: medians of batch 1 over `ttft_n`,
    `ttea_n` documents; `docs_per_s` is batched, another number. `adapter_mb` in 10⁶ bytes, NaN
    without an adapter. `message_bytes`: median. `gain` (over the receiver alone) and `content`
    (over the deranged run): paired over the documents both have. `verdict`, `verdict_text`: see
    verdict.py, "" where nothing is sent; `p_holm` is corrected over the `family` of all verdicts in
    this summary. `reliable`: false where more than `MOST_FAILED` of the documents failed, so that the
    score says little of the method. `won_message`, `won_text`, `won_neither`: under control conflict the
    shares of the `won_n` documents whose answer is the message's, the receiver's own text's, or neither's
    value, each with its 95 % interval; NaN under other controls. `flops`: median over
    documents. `short`, `series`, `place`, `whole`, `pruned`: the line that the group belongs to in a
    figure (families.py). delta: contents smaller than this count as none.
    """
    import pandas as pd

    lines = [
        {**_head(group), **_figures(group), **member._asdict()}
        for group, member in zip(groups, members(groups), strict=True)
    ]
    judged: list[dict[str, Any]] = []
    for line, got in zip(judged, judge(_evidence(lines, groups, judged), delta), strict=True):
        content = {"content": got.content.value, "content_low": got.content.low}
        content |= {"content_high": got.content.high, "content_n": got.content.n}
        line |= content | {"matched_score": got.matched, "deranged_score": got.deranged}
        line |= {"worst_control": got.control if got.compared else "", "worst_score": got.control_score}
        line |= {"verdict": got.label, "verdict_text": got.text, "p_equivalence": got.p_equivalence_holm}
        line |= {name: getattr(got, name) for name in ("p", "p_holm", "detectable", "family")}
    derived = derived_lines(list(zip(groups, lines, strict=True)), _asked, nearest)
    return _ordered(pd.DataFrame([*lines, *derived], columns=list(COLUMNS)))


def _head(group: RunGroup) -> dict[str, Any]:
    head = {
        name: getattr(group, name)
        for name in ("pair", "receiver", "task", "scoring", "mode", "label", "control", "seed", "state")
    }
    return {
        **head,
        "seed": head["seed"] if len(group.seeds) == 1 else None,
        "run_id": "+".join(group.run_ids),
    }


def _figures(group: RunGroup) -> dict[str, Any]:
    got = mean_interval(group.scores)
    size, chance = group.median("adapter_bytes"), group.manifest.chance
    found = {name: getattr(group, name) for name in ("n", "errors", "unparsed", "sends", "metric")}
    found |= {"score": got.value, "low": got.low, "high": got.high, "reliable": group.reliable}
    found |= {"seeds": len(group.seeds), "seed_sd": _deviation(group.seed_scores)}
    found |= {"chance": math.nan if chance is None else chance, "docs_per_s": group.documents_per_s}
    found |= {name: group.median(name) for name in ("adapter_params", "message_bytes", "flops")}
    found |= {"adapter_mb": size / 1e6 if size > 0 else math.nan}
    return {**found, **_won(group), **_timed(group, "ttft"), **_timed(group, "ttea")}


def _won(group: RunGroup) -> dict[str, Any]:
    """Who won where the message and the receiver's text disagree: shares with their intervals."""
    found: dict[str, Any] = {}
    for winner in WINNERS:
        got = mean_interval(group.won(winner))
        name = f"won_{winner}"
        found |= {name: got.value, f"{name}_low": got.low, f"{name}_high": got.high, "won_n": got.n}
    return found


def _timed(group: RunGroup, name: str) -> dict[str, Any]:
    import numpy as np

    _, values = group.timed(f"{name}_ms")
    return {f"{name}_ms": float(np.median(values)) if len(values) else math.nan, f"{name}_n": len(values)}


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


class Gain(NamedTuple):
    """The gain over the receiver alone, its ends for documents that failed, and what must be known of it."""

    pair: Paired | None = None
    ends: Sequence[Paired] = ()
    note: str = ""


def _gain(group: RunGroup, receivers: Sequence[RunGroup]) -> Gain:
    """Over the receiver alone; `nearest` says over which of its runs."""
    if group.mode == ALONE:
        return Gain()
    base, note = nearest(group, receivers)
    if base is None:
        return Gain(note=f"no gain: {note}" if note else "")
    if why := too_many_failed(group, base):
        return Gain(note=f"no gain: {why}")
    own, alone, left_out = comparable_scores(group, base)
    note = f"gain: {note}" if note else ""
    return Gain(paired(own, alone), bounds(own, alone, left_out), note)


def _receiver_key(group: RunGroup) -> Any:
    """Returns what a receiver alone must share to be this group's baseline."""
    return [
        group.receiver,
        group.task,
        group.scoring,
        _asked(group),
        (group.identity.get("revisions") or [None])[0],
    ]


def _asked(group: RunGroup) -> list[Any]:
    return [group.identity.get(name) for name in ASKED]


def _evidence(
    lines: Sequence[dict[str, Any]], groups: Sequence[RunGroup], judged: list[dict[str, Any]]
) -> Iterator[Evidence]:
    """Yields the evidence of all matched groups that send something, one family, and adds their lines.

    Every line gets its gain. The scores of one group and of those it is held against are in use at a time.
    """
    receivers = _by(_receiver_key, (group for group in groups if group.mode == ALONE))
    deranged = _by(_twin_key, (group for group in groups if group.control == "deranged"))
    further = _by(_twin_key, (group for group in groups if group.control in WITHOUT_CONTENT[1:]))
    settings = {hashable(_twin_key(group)) for group in groups if group.control == "matched"}
    # runs under a control whose settings no matched run has, by method
    strays = _by(
        _method_key,
        (
            group
            for group in groups
            if group.control in WITHOUT_CONTENT and hashable(_twin_key(group)) not in settings
        ),
    )
    for group, line in zip(groups, lines, strict=True):
        gain = _gain(group, receivers.get(hashable(_receiver_key(group)), ()))
        low, high = gain.pair.interval() if gain.pair else (math.nan, math.nan)
        value, n = (gain.pair.value, gain.pair.n) if gain.pair else (math.nan, 0)
        line |= {"note": gain.note, "gain": value, "gain_low": low, "gain_high": high, "gain_n": n}
        line |= {"verdict": "", "verdict_text": ""}
        if group.control != "matched":
            continue
        mine = deranged.get(hashable(_twin_key(group)), [])
        stray = strays.get(hashable(_method_key(group)), [])
        twin, note = nearest(group, mine)
        if twin:
            own, other, left_out = comparable_scores(group, twin)
            failed = too_many_failed(group, twin)
            others, notes = _others(group, further.get(hashable(_twin_key(group)), []), stray)
            notes = [f"content: {note}"] * bool(note) + notes + _inapplicable(group)
            line["note"] = "; ".join(x for x in (line["note"], *notes) if x)
            judged.append(line)
            yield Evidence(own, other, gain.pair, left_out, failed, gain_bounds=gain.ends, others=others)
        elif group.sends:
            failed = too_many_failed(group, group)
            note = note or _unfit(group, "deranged", mine, stray)
            sole: dict[str, Any] = {"failed": failed, "ambiguous": note, "gain_bounds": gain.ends}
            line["note"] = "; ".join(x for x in (line["note"], *_inapplicable(group)) if x)
            judged.append(line)
            yield Evidence(group.scores, None, gain.pair, **sole)


def _others(
    group: RunGroup, found: Sequence[RunGroup], stray: Sequence[RunGroup]
) -> tuple[list[Evidence], list[str]]:
    """The same method under the controls without content beside deranged, and what must be said of them.

    Of those that were run and are not compared a sentence says why. stray: runs of the method whose
    settings no matched run has.
    """
    others, notes = [], []
    for control in WITHOUT_CONTENT[1:]:
        same = [each for each in found if each.control == control]
        twin, note = nearest(group, same)
        if twin is None:
            why = note or _unfit(group, control, same, stray)
            notes += [f"{control} is not compared: {why}"] if why else []
        elif why := too_many_failed(group, twin):
            notes.append(f"{control} is not compared: {why}")
        else:
            own, other, left_out = comparable_scores(group, twin)
            others.append(Evidence(own, other, left_out=left_out, control=control))
            notes += [f"{control}: {note}"] if note else []
    return others, notes


def _unfit(group: RunGroup, control: str, same: Sequence[RunGroup], stray: Sequence[RunGroup]) -> str:
    """Why no run under a control is held against this one although the method has some; "" without any.

    same: those of equal settings, none of which shares a document. stray: those of other settings.
    """
    if same:
        return f"its {control} run has none of these documents"
    differing = [_differing(group, each) for each in stray if each.control == control]
    if not differing:
        return ""
    fewest = min(differing, key=len)
    return f"its {control} run differs in {', '.join(fewest)}"


def _differing(a: RunGroup, b: RunGroup) -> list[str]:
    """Names of the parts of the identity in which two runs of a method differ, those of `_twin_key`."""
    (_, code, first), (_, other, second) = _twin_key(a), _twin_key(b)
    names = sorted({*first, *second})
    found = [name for name in names if first.get(name) != second.get(name)]
    return found + ["plugins"] * (code != other)


def _inapplicable(group: RunGroup) -> list[str]:
    """A sentence for the controls that were asked for and cannot be run of the method, by reason."""
    reasons: dict[str, list[str]] = {}
    for control, why in (group.manifest.controls_left_out or {}).items():
        reasons.setdefault(why, []).append(control)
    return [
        f"{', '.join(names)} {'do' if len(names) > 1 else 'does'} not apply: {why}"
        for why, names in reasons.items()
    ]


def _by(key: Callable[[RunGroup], Any], groups: Iterable[RunGroup]) -> dict[Hashable, list[RunGroup]]:
    """The groups by a key, in order."""
    found: dict[Hashable, list[RunGroup]] = {}
    for group in groups:
        found.setdefault(hashable(key(group)), []).append(group)
    return found


def hashable(value: Any) -> Hashable:
    """Returns a value of JSON as one that can be looked up; equal where the values are."""
    if isinstance(value, Mapping):
        return frozenset((name, hashable(part)) for name, part in value.items())
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple)) else value


def twin_of(group: RunGroup, groups: Sequence[RunGroup], control: str) -> RunGroup | None:
    """Returns the same method under another control, equal in all else that changes answers."""
    return nearest(group, twins_of(group, groups, control))[0]


def twins_of(group: RunGroup, groups: Sequence[RunGroup], control: str) -> list[RunGroup]:
    """Returns all runs of the same method under another control."""
    key = _twin_key(group)
    return [c for c in groups if c.control == control and _twin_key(c) == key]


def _method_key(group: RunGroup) -> Any:
    """What two runs of one method on one task share, whatever their settings."""
    return [getattr(group, name) for name in (*GROUP, "mode")]


def _twin_key(group: RunGroup) -> Any:
    apart = ("control", "limit", "batch_size", "plugins", *OF_THE_SEED)
    head = [getattr(group, name) for name in (*GROUP, "mode")]
    plugins = group.identity.get("plugins") or {}
    code = {name: found for name, found in plugins.items() if not name.startswith("controls/")}
    return head, code, {name: value for name, value in group.identity.items() if name not in apart}


def set_apart(group: RunGroup, others: Sequence[RunGroup]) -> list[str]:
    """Returns the settings in which the most alike of these runs differs from a run: why it is no twin."""
    _, code, own = _twin_key(group)

    def names(other: RunGroup) -> list[str]:
        _, theirs, settings = _twin_key(other)
        found = [name for name in {**own, **settings} if own.get(name) != settings.get(name)]
        return found + (["plugins"] if code != theirs else [])

    return min(map(names, others), key=len, default=[])


def nearest(group: RunGroup, others: Sequence[RunGroup]) -> tuple[RunGroup | None, str]:
    """Returns the run that a group is measured against, and what must be said of the choice.

    The one that agrees in most of `COMPUTED`, then shares the most documents, then agrees in limit and
    seed. Where several are as near and score the shared documents differently none is taken.
    """
    shared = {id(other): len(joined(group, other)[2]) for other in others}

    def differing(other: RunGroup, names: Sequence[str]) -> list[str]:
        return [n for n in names if group.identity.get(n) != other.identity.get(n)]

    def distance(other: RunGroup) -> tuple[int, int, int]:
        return len(differing(other, COMPUTED)), -shared[id(other)], len(differing(other, DRAWN))

    found = sorted((o for o in others if shared[id(o)]), key=lambda o: (distance(o), o.run_ids))
    if not found:
        return None, ""
    fits = [other for other in found if distance(other) == distance(found[0])]
    if any(not _same_scores(group, fits[0], other) for other in fits[1:]):
        names = ", ".join("+".join(other.run_ids) for other in fits[:3])
        apart = sorted(
            {n for n in (*COMPUTED, *DRAWN) for o in fits[1:] if o.identity.get(n) != fits[0].identity.get(n)}
        )
        what = f" and differ in {', '.join(apart)}" if apart else ""
        return None, f"{len(fits)} runs fit equally well ({names}){what}; name one of them"
    apart = differing(found[0], COMPUTED)
    what = ", ".join(f"{n} {_shown(found[0], n)}, here {_shown(group, n)}" for n in apart)
    return found[0], f"the other run was computed otherwise ({what})" if apart else ""


def _shown(group: RunGroup, name: str) -> str:
    value = group.identity.get(name)
    return (
        "not recorded"
        if value is None
        else " ".join(map(str, value.values()))
        if isinstance(value, dict)
        else str(value)
    )


def _same_scores(group: RunGroup, a: RunGroup, b: RunGroup) -> bool:
    """Whether two candidates say the same of the documents that they share with a group."""
    import numpy as np

    (_, first, codes_a), (_, second, codes_b) = joined(group, a), joined(group, b)
    return bool(np.array_equal(codes_a, codes_b) and np.array_equal(first, second))


def _ordered(lines: pd.DataFrame) -> pd.DataFrame:
    rank = {control: i for i, control in enumerate(CONTROLS)}
    keys = lines.assign(
        _base=lines["mode"] != ALONE,
        _mb=lines["adapter_mb"].fillna(0),
        _rank=lines["control"].map(rank).fillna(len(rank)),
    )
    by = [*GROUP, "_base", "_mb", "mode", "place", "label", "_rank", "control", "run_id"]
    return lines.loc[keys.sort_values(by, kind="stable").index].reset_index(drop=True)


def judged(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the lines that have a verdict, by task, best first.

    Raises UserError where there are none.
    """
    lines = summary[~summary["verdict"].fillna("").isin(["", DERIVED])]
    if not len(lines):
        step = "Run a method that does, with --control matched,deranged."
        raise UserError("no run here sends a message.", step)
    rank = lines["verdict"].map({label: i for i, label in enumerate(LABELS)})
    keys = lines.assign(_rank=rank, _content=-lines["content"].fillna(-9.0))
    order = keys.sort_values([*GROUP, "_rank", "_content"], kind="stable").index
    return lines.loc[order].reset_index(drop=True)


def load_summary(paths: Paths, delta: float = DELTA, by_subject: bool = False) -> pd.DataFrame:
    """Returns `summarise` of every run under `paths`: a row for each group of runs.

    A file that cannot be read gives a UserWarning. Raises UserError where nothing can be read.
    """
    found = read_run_groups(as_paths(paths), by_subject)
    warn_all(found.warnings)
    return summarise(found.groups, delta)


def verdicts(paths: Paths, delta: float = DELTA) -> pd.DataFrame:
    """Returns the rows of `load_summary` that have a verdict, best first.

    Their `verdict_text` says it in a sentence. Raises UserError also where no run sends a message.
    """
    return judged(load_summary(paths, delta))
