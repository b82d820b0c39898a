"""Judges every run group of a baseline against new runs: score, documents, first-token time.

from lcfbench.analysis.gate.check import check_run_groups
baseline, new = (read_run_groups([Path(x)], prompts=True) for x in ("results/baseline", "results"))
check_run_groups(baseline, new, max_drop=0.01).exit(strict=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.compare import comparable
from lcfbench.analysis.gate import (
    RUNS,
    Checked,
    Item,
    Outcome,
    Shift,
    decide,
    score_item,
    score_shift,
    time_item,
)
from lcfbench.analysis.gate.times import CAVEAT, ONCE, blocks, time_shift, typical
from lcfbench.analysis.matching import (
    ABSENT,
    CODE,
    COMPUTED,
    EXPLAINS,
    PROMPTS,
    REFUSED,
    Pairing,
    changes,
    differing,
    full_name,
    listed,
    name_of,
    other_machine,
    reading_order,
    refuse,
    short_names,
    value_of,
)
from lcfbench.analysis.run_groups import joined, too_many_failed
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lcfbench.analysis.run_groups import RunGroup, RunGroups

GUARDED = (*REFUSED, *COMPUTED)  # what must agree between a baseline and what is checked against it
# which run a run is
KEY = (*"pair task subject scoring mode control options task_options seed".split(),)
NAMES = (*"pair task scoring mode control".split(),)  # of them those that every run records
SIDES = ("baseline", "new")


def check_run_groups(
    baseline: RunGroups,
    new: RunGroups,
    max_drop: float,
    max_slowdown: float | None = None,
    allow: Sequence[str] = (),
) -> Checked:
    """Judges every group of the baseline.

    max_drop, max_slowdown: fractions. allow: fields of `GUARDED` that may differ. Raises UserError
    where a field differs that must not, and where more than one new run could be meant.
    """
    pairs, missing, more = pair_up(baseline.groups, new.groups, allow)
    refuse(pairs, (*GUARDED, PROMPTS), allow, "check", SIDES)
    checked = Checked([], max_drop, max_slowdown)
    names = dict(zip(map(id, baseline.groups), short_names(baseline.groups), strict=True))
    common = [len(joined(b, n)[2]) for b, n in pairs]
    untimed = [_not_timed(b, n) for b, n in pairs]
    scored = [i for i, pair in enumerate(pairs) if len(comparable(*pair)[0])]
    timed = (
        {i: blocks(*pairs[i]) for i, why in enumerate(untimed) if not why} if max_slowdown is not None else {}
    )
    family = len(scored) + sum(len(found) >= RUNS for found in timed.values())
    shifts: dict[tuple[str, int], Shift] = {}
    means: dict[int, tuple[float, float]] = {}
    for i in scored:  # the scores of one pair are in use at a time
        before, now = comparable(*pairs[i])
        shifts["score", i] = score_shift(now, before, max_drop, family)
        means[i] = float(before.mean()), float(now.mean())
    shifts |= {("time", i): time_shift(found, max_slowdown or 0.0, family) for i, found in timed.items()}
    outcomes = dict(zip(shifts, decide(list(shifts.values())), strict=True))
    for i, (b, n) in enumerate(pairs):
        about = {"name": names[id(b)], "task": b.task, "mode": name_of(b)}
        if found := shifts.get(("score", i)):
            checked.items.append(score_item(about, found, outcomes["score", i], means[i], max_drop))
        if found := shifts.get(("time", i)):
            judged = outcomes["time", i], typical(timed[i]), max_slowdown or 0.0
            checked.items.append(time_item(about, found, *judged))
        elif max_slowdown is not None:
            text = f"not compared: {untimed[i]}"
            checked.items.append(Item(**about, aspect="first token", outcome=Outcome.UNSURE, text=text))
        lacking = lacks(b, n, common[i])
        if i not in scored and common[i]:
            lacking.append(f"not judged: {too_many_failed(b, n)}")
        elif not lacking and i not in scored:
            lacking = ["the baseline has no documents"]
        absent: dict[str, Any] = {**about, "outcome": Outcome.INCOMPLETE}
        if text := "; ".join(lacking):
            checked.items.append(Item(**absent, aspect="documents", n=common[i], text=text))
        if text := _one_sided(b, n, allow):
            checked.items.append(Item(**absent, aspect="fields", text=text))
        checked.notes += [f"{about['name']}: {text}" for text in _notes(b, n, common[i])]
    for group in missing:
        about = {"name": names[id(group)], "task": group.task, "mode": name_of(group)}
        text = f"no such run{_nearest(group, new.groups)}"
        checked.items.append(Item(**about, aspect="documents", outcome=Outcome.INCOMPLETE, text=text))
    # what cannot be read cannot be guarded; a baseline with a broken file must not pass in silence
    for text in baseline.left_out:
        checked.items.append(Item("baseline", "baseline", "file", "documents", Outcome.INCOMPLETE, text=text))
    if more:
        checked.notes.append(f"not in the baseline, so not checked: {listed(more)}")
    if max_slowdown is not None:
        checked.notes += [CAVEAT] + [ONCE] * any(len(found) < RUNS for found in timed.values())
    return checked


def pair_up(
    baseline: Sequence[RunGroup], new: Sequence[RunGroup], allow: Sequence[str] = ()
) -> tuple[list[Pairing], list[RunGroup], list[RunGroup]]:
    """Returns (baseline, new) groups of the same key, and the rest of the baseline and of the new.

    Raises UserError where several new groups could be meant: an older run left in the folder must
    not answer for a newer one.
    """
    pairs: list[Pairing] = []
    missing: list[RunGroup] = []
    taken: set[int] = set()
    own = ({*EXPLAINS} - {*CODE}) | {"adapter_config", "limit"}
    names = [name for name in NAMES if name not in allow]
    near_old, near_new = (_by_names(groups, names) for groups in (baseline, new))
    for group in sorted(baseline, key=reading_order):
        key = _names_of(group, names)
        rivals = [other for other in near_old[key] if _alike(group, other, allow)]
        found = [other for other in near_new.get(key, ()) if _alike(group, other, allow)]
        named, by_name = (
            [one for one in some if one.manifest.adapter == group.manifest.adapter]
            for some in (rivals, found)
        )
        if len(named) == 1 and by_name:  # of several adapters the one of this name
            found = by_name
        elif len(rivals) > 1:  # told apart by what else their identity says, such as the adapter
            found = [one for one in found if not differing(group, one, own)]
        if len(found) > 1:
            apart = sorted(
                {
                    name
                    for one in found
                    for name in differing(found[0], one, (*EXPLAINS, "adapter_config", "limit"))
                }
            )
            ids = ", ".join(one.run_ids[0] for one in found)
            what = f"{full_name(group)}: {len(found)} new runs could be meant ({ids})"
            raise UserError(
                f"{what}; they differ in {', '.join(apart) or 'nothing recorded'}.",
                "Name the one run folder, or keep one of them.",
            )
        if any(id(one) in taken for one in found):
            raise UserError(
                f"{full_name(found[0])} could be several of the baseline's runs.",
                "Give the run folder, with its manifest.",
            )
        pairs += [(group, one) for one in found]
        missing += [] if found else [group]
        taken |= {id(one) for one in found}
    return pairs, missing, [group for group in new if id(group) not in taken]


def lacks(b: RunGroup, n: RunGroup, shared: int) -> list[str]:
    """What the new group lacks that the baseline has, in words; seed by seed.

    shared: documents both have.
    """
    import numpy as np

    found = []
    hashes = (
        []
        if len(b.runs) == 1 and shared == b.n
        else sorted(
            str(name)
            for old, now in zip(b.runs, n.runs, strict=True)
            for name in _names(old, np.setdiff1d(old.codes, now.codes))
        )
    )
    if hashes:
        few = ", ".join(hashes[:3]) + (", …" if len(hashes) > 3 else "")
        found.append(f"{len(hashes):,} of the baseline's documents are missing ({few})")
    if n.state in ("running", "interrupted"):
        found.append(f"not finished ({n.state})")
    if len(np.setdiff1d(n.failed, b.failed)):
        failed = f"{n.errors:,} of {n.n:,} documents failed, {b.errors:,} in the baseline"
        found.append(f"{failed}; the first: {first_error(n)}")
    return found


def first_error(group: RunGroup) -> str:
    """What went wrong first, as its row says."""
    from lcfbench.results.reader import Reading

    for run in group.runs:
        for part in Reading([Path(run.manifest.folder)], ("error",)):
            if part.run_id == run.run_id and (texts := part.table["error"].drop_null().to_pylist()):
                return str(texts[0])
    return "no message"


def _names(run: Any, codes: np.ndarray) -> list[str]:
    import numpy as np

    if not len(codes):
        return []
    at = np.flatnonzero(np.isin(run.codes, codes))
    return list(dict.fromkeys(run.hashes.take(at).to_pylist()))


def _names_of(group: RunGroup, names: Sequence[str]) -> tuple[Any, ...]:
    """What two groups that are alike share for certain; of thousands only these are looked at closely."""
    return len(group.runs), *(getattr(group, name) for name in names)


def _by_names(groups: Sequence[RunGroup], names: Sequence[str]) -> dict[tuple[Any, ...], list[RunGroup]]:
    found: dict[tuple[Any, ...], list[RunGroup]] = {}
    for group in groups:
        found.setdefault(_names_of(group, names), []).append(group)
    return found


def _alike(a: RunGroup, b: RunGroup, allow: Sequence[str]) -> bool:
    """Whether both are the same run of the same thing.

    What a file does not record cannot tell two apart.
    """
    if a.subject != b.subject or len(a.runs) != len(b.runs):
        return False
    return all(
        x == y or ABSENT in (x, y)
        for name in KEY
        if name not in ("subject", *allow)
        for x, y in [(value_of(a, name), value_of(b, name))]
    )


def _not_timed(b: RunGroup, n: RunGroup) -> str:
    """Why times cannot be compared; empty where they can."""
    return other_machine(b, n) or ", ".join(changes(differing(b, n, COMPUTED)))


def _recorded(b: RunGroup, n: RunGroup) -> dict[str, list[str]]:
    """Guarded fields that do not stand on both sides, by where they do."""
    found: dict[str, list[str]] = {"neither": [], **{side: [] for side in SIDES}}
    for name in GUARDED:
        known = [side for side, group in zip(SIDES, (b, n), strict=True) if value_of(group, name) != ABSENT]
        if len(known) < 2:
            found[known[0] if known else "neither"].append(name)
    return found


def _one_sided(b: RunGroup, n: RunGroup, allow: Sequence[str]) -> str:
    """Returns the fields that only one side records, in words."""
    recorded = _recorded(b, n)
    halves = {side: [name for name in recorded[side] if name not in allow] for side in SIDES}
    texts = [
        f"recorded in the {side} only, so whether it is the same is not known: {', '.join(x)}"
        for side, x in halves.items()
        if x
    ]
    return "; ".join([*texts, "record again, or --allow each FIELD"]) if texts else ""


def _notes(b: RunGroup, n: RunGroup, shared: int) -> list[str]:
    """Returns facts that may explain a change, and cautions."""
    notes = []
    if differs := changes(differing(b, n, (*REFUSED, *EXPLAINS, PROMPTS))):
        notes.append(f"differs: {'; '.join(differs)}")
    if absent := _recorded(b, n)["neither"]:
        notes.append(f"recorded on neither side, so not checked: {', '.join(absent)}")
    if b.state in ("running", "interrupted"):
        notes.append(f"the baseline is not finished, {b.n:,} documents")
    for side, group in (("baseline", b), ("new", n)):
        if twice := _repeated(group):
            notes.append(f"{side}: {twice:,} rows repeat a document; each counts once")
    if more := n.n - shared:
        notes.append(f"{more:,} documents are not in the baseline, so not checked")
    if b.run_ids == n.run_ids and b.manifest.folder == n.manifest.folder:
        notes.append("the baseline and the new run are the same files; such a check guards nothing")
    return notes


def _repeated(group: RunGroup) -> int:
    """Rows beyond the first of a document."""
    import numpy as np

    if len(group.runs) == 1:
        return len(group.runs[0].codes) - group.n
    return sum(len(run.codes) - len(np.unique(run.codes)) for run in group.runs)


def _nearest(group: RunGroup, new: Sequence[RunGroup]) -> str:
    """The new run that comes closest, and what sets it apart."""
    names = [name for name in KEY if name != "subject"]
    asked = [one for one in new if one.task]
    found = [one for one in asked if one.task == group.task] or asked
    if not found:
        return ""
    closest = min(found, key=lambda one: len(differing(group, one, names)))
    apart = "; ".join(changes(differing(group, closest, names))) or "only in its seeds"
    return f"; the nearest, {full_name(closest)}, differs: {apart}"
