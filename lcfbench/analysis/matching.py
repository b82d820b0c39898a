"""Which recorded results belong together, and whether they may be compared.

    from lcfbench.analysis.matching import REFUSED, match, refuse
    pairs, left_a, left_b = match(a.groups, b.groups)
    refuse(pairs, REFUSED, allow=[], verb="compare")

Two results are comparable when they answer the same questions, scored by the same rule. All else
may differ: it is what is compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from lcfbench.analysis.naming import is_digest
from lcfbench.analysis.recorded import ROLES
from lcfbench.analysis.run_groups import OF_THE_SEED
from lcfbench.errors import UserError, unknown

if TYPE_CHECKING:
    from lcfbench.analysis.run_groups import RunGroup, RunGroups

Pairing: TypeAlias = "tuple[RunGroup, RunGroup]"
# what must agree, or the scores answer different questions
REFUSED = tuple(
    "task scoring metric task_options task_sha256 data_sha256 split_manifest_sha256 prompt_sha256".split()
)
COMPUTED = ("dtype", "device", "attention")  # a gate also holds still how numbers are computed
CODE = ("versions", "behaviour", "plugins", "version")  # what ran; older runs say `version` only
EXPLAINS = (
    *"pair revisions mode options adapter_sha256 control".split(),
    *COMPUTED,
    "batch_size",
    "wire",
    "seed",
    *CODE,
)
PROMPTS = "prompts"  # compared document by document; no field of the identity
OWN = ("pair", "task", "scoring", "metric", "mode", "control")  # of the rows; others are the manifest's
MACHINE = ("cpu", "device", "gpu", "threads")
ABSENT = "not recorded"
SIDES = ("A", "B")
LISTED = 8  # names in a sentence


def value_of(group: RunGroup, name: str) -> Any:
    """A group's value of a field of the run's identity; `ABSENT` where its file does not tell."""
    if name == "seed":
        return list(group.seeds)
    if name == "prompt_sha256":
        return group.identity.get(name, "the task's own")
    if name == "metric" and not group.n:  # its name stands in the rows
        return ABSENT
    if name in OWN:
        return getattr(group, name)
    if name not in OF_THE_SEED or len(group.runs) == 1:
        return group.identity.get(name, ABSENT)
    by_seed = [run.manifest.identity.get(name, ABSENT) for run in group.runs]
    return (
        ABSENT if ABSENT in by_seed else by_seed[0] if all(one == by_seed[0] for one in by_seed) else by_seed
    )


def differing(a: RunGroup, b: RunGroup, names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that both record and that differ, with both values.

    Of `PROMPTS` the two numbers are the documents whose prompts differ and the documents compared.
    """
    found = {name: (value_of(a, name), value_of(b, name)) for name in names if name != PROMPTS}
    found = {name: two for name, two in found.items() if two[0] != two[1] and ABSENT not in two}
    if PROMPTS in names and (apart := prompts_apart(a, b))[0]:
        found[PROMPTS] = apart
    return found


def prompts_apart(a: RunGroup, b: RunGroup) -> tuple[int, int]:
    """Returns on how many shared documents the prompts differ, and how many were compared.

    Only under the same method and control, and where both record prompts. A receiver's prompt with
    a generated message in it is left out: it changes with the message.
    """
    import numpy as np

    if (a.mode, a.control) != (b.mode, b.control):
        return 0, 0
    apart, seen = [], []
    for role in ROLES:
        (codes_a, prompts_a), (codes_b, prompts_b) = a.prompts(role), b.prompts(role)
        shared, at_a, at_b = np.intersect1d(codes_a, codes_b, return_indices=True)
        apart.append(shared[prompts_a[at_a] != prompts_b[at_b]])
        seen.append(shared)
    return len(np.unique(np.concatenate(apart))), len(np.unique(np.concatenate(seen)))


def unrecorded(a: RunGroup, b: RunGroup, names: Iterable[str]) -> list[str]:
    """Returns the fields that one of the two does not record, as older files do."""
    return [name for name in names if ABSENT in (value_of(a, name), value_of(b, name))]


def machines(group: RunGroup) -> list[dict[str, Any]] | None:
    """Returns the machines of all runs and sessions, each once; None where one is not recorded."""
    found: list[dict[str, Any]] = []
    for run in group.runs:
        sessions = [session.environment for session in run.manifest.sessions]
        for where in sessions or [run.manifest.environment]:
            if not where:
                return None
            seen = {name: getattr(where, name, None) for name in MACHINE}
            found += [] if seen in found else [seen]
    return found


def other_machine(a: RunGroup, b: RunGroup) -> str:
    """Why times of the two cannot be compared; empty where they can."""
    first, second = machines(a), machines(b)
    if first is None or second is None:
        return "the machine is not recorded"
    apart = {name: list(dict.fromkeys(shown(one[name]) for one in first + second)) for name in MACHINE}
    words = [f"{name} {' → '.join(values)}" for name, values in apart.items() if len(values) > 1]
    several = "several machines" if len(first) + len(second) > 2 else "other machine"
    return f"{several} ({', '.join(words)})" if words else ""


def name_of(group: RunGroup) -> str:
    """`lcf (deranged)`: method and control, as a person calls it.

    An ordinary run needs no control named.
    """
    return group.label if group.control in ("matched", "") else f"{group.label} ({group.control})"


def full_name(group: RunGroup) -> str:
    """Pair, task, scoring and method of a group."""
    if not group.task:  # no row tells
        return f"{group.run_ids[0]} (no documents)"
    return f"{group.task} {name_of(group)} ({group.scoring}, {group.pair})"


def short_names(groups: Sequence[RunGroup]) -> list[str]:
    """Returns short names that differ: task and method, then scoring, pair and run if needed."""
    parts: list[Callable[[RunGroup], str]] = [
        lambda c: f"{c.task} {name_of(c)}",
        lambda c: f"{c.task} {name_of(c)} ({c.scoring})",
        lambda c: f"{c.task} {name_of(c)} ({c.scoring}, {c.pair})",
        lambda c: f"{c.task} {name_of(c)} ({c.run_ids[0]})",
    ]
    names = [full_name(group) for group in groups]
    unnamed = set(range(len(groups)))
    for part in parts:
        called = [part(group) if group.task else full_name(group) for group in groups]
        times = Counter(called)
        for i in [i for i in unnamed if times[called[i]] == 1]:
            names[i] = called[i]
            unnamed.discard(i)
    return [f"{name} {i + 1}" if i in unnamed else name for i, name in enumerate(names)]


def listed(groups: Sequence[RunGroup], among: Sequence[RunGroup] = ()) -> str:
    """Their short names, told apart from all of `among` too; of many only the first."""
    names = dict(zip(map(id, among or groups), short_names(among or groups), strict=True))
    return first_few([names[id(group)] for group in groups])


def first_few(names: Sequence[str]) -> str:
    """The first eight and how many more."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def labelled(groups: RunGroups, label: str | None, side: str) -> RunGroups:
    """Returns the groups of a label, else of a method; all where none is given.

    Raises UserError with the nearest labels where there is none.
    """
    if label is None:
        return groups
    found = [g for g in groups.groups if g.label == label] or [g for g in groups.groups if g.mode == label]
    if not found:
        known = dict.fromkeys(group.label for group in groups.groups)
        raise unknown(f"label in {side}", label, list(known), "lcfbench show")
    return replace(groups, groups=found)


def match(
    a: Sequence[RunGroup], b: Sequence[RunGroup]
) -> tuple[list[Pairing], list[RunGroup], list[RunGroup]]:
    """Pairs of groups that ask the same, ordered for reading, and what is left of either side.

    First those that agree in everything, then in ever less, and last, method against method, the
    only ones of a task on both sides. Where several groups could be meant none is taken.
    """
    stages: list[Callable[[RunGroup], Any]] = [
        lambda c: (*same(c), {k: v for k, v in c.identity.items() if k not in CODE}),
        lambda c: (*same(c), c.manifest.adapter),
        same,
        lambda c: (c.pair, c.task, c.subject, c.scoring, c.mode, c.control),
        lambda c: (c.task, c.subject, c.scoring, c.mode, c.control),
        lambda c: (c.task, c.subject, c.scoring, c.control),
        lambda c: (c.task, c.subject),
    ]
    pairs: list[Pairing] = []
    left_a, left_b = list(a), list(b)
    for stage in stages:
        ours, theirs = _grouped(left_a, stage), _grouped(left_b, stage)
        found = [
            (ours[key][0], theirs[key][0]) for key in ours if len(ours[key]) == len(theirs.get(key, ())) == 1
        ]
        pairs += found
        taken = {id(group) for pair in found for group in pair}
        left_a, left_b = ([group for group in left if id(group) not in taken] for left in (left_a, left_b))
    if not pairs and len(left_a) == len(left_b) == 1:  # two single results: a person means these
        pairs, left_a, left_b = [(left_a[0], left_b[0])], [], []
    return sorted(pairs, key=lambda pair: reading_order(pair[0])), left_a, left_b


def reading_order(group: RunGroup) -> tuple[Any, ...]:
    """By task, the receiver alone first, an ordinary run before its controls."""
    return (
        group.task,
        group.scoring,
        group.pair,
        group.mode != "receiver",
        group.label,
        group.control != "matched",
        group.control,
        group.run_ids,
    )


def same(group: RunGroup) -> tuple[Any, ...]:
    """What two runs of one thing have in common."""
    options = (value_of(group, "options"), value_of(group, "task_options"))
    return group.pair, group.task, group.subject, group.scoring, group.mode, group.control, *options


def clashes(
    a: RunGroup, b: RunGroup, names: Sequence[str], allow: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Fields of `names` that keep the two from being compared, with both values."""
    return {name: two for name, two in differing(a, b, names).items() if name not in allow}


def known_fields(names: Sequence[str], allow: Sequence[str], verb: str) -> None:
    """Raises UserError where `allow` names what is not one of `names`."""
    for name in allow:
        if name not in names:
            raise unknown("field", name, names, f"lcfbench {verb} --help")


def refuse(
    pairs: Iterable[Pairing],
    names: Sequence[str],
    allow: Sequence[str],
    verb: str,
    sides: tuple[str, str] = SIDES,
) -> None:
    """Raises UserError for the first pair that differs in a field of `names` outside `allow`."""
    known_fields(names, allow, verb)
    for a, b in pairs:
        if found := clashes(a, b, names, allow):
            one, other = full_name(a), full_name(b)
            who = (
                f"{one}: {sides[0]} and {sides[1]}"
                if one == other
                else f"{sides[0]} ({one}) and {sides[1]} ({other})"
            )
            what = f"not comparable: {who} differ in {told_apart(found, sides)}."
            raise UserError(what, f"To go on all the same: {allowing(found)}.")


def allowing(names: Iterable[str]) -> str:
    """The options that let these fields differ."""
    return " ".join(f"--allow {name}" for name in names)


def told_apart(two: dict[str, tuple[Any, Any]], sides: tuple[str, str] = SIDES) -> str:
    """Returns `metric (A acc, B f1), task_options.hops (A 2, B 3)`."""
    parts = [f"{name} ({sides[0]} {one}, {sides[1]} {other})" for name, one, other in _leaves(two)]
    return ", ".join([*parts, *_prompts(two)])


def changes(two: dict[str, tuple[Any, Any]]) -> list[str]:
    """Returns `mode receiver → lcf`, one for each field; of options only those that differ."""
    return [*(f"{name} {one} → {other}" for name, one, other in _leaves(two)), *_prompts(two)]


def _prompts(two: dict[str, tuple[Any, Any]]) -> list[str]:
    return ["prompts on {} of {} documents".format(*two[PROMPTS])] if PROMPTS in two else []


def _leaves(two: dict[str, tuple[Any, Any]]) -> list[tuple[str, str, str]]:
    """Field and both values as text; of dicts only the keys that differ."""
    lines = []
    for name, (one, other) in two.items():
        if name == PROMPTS:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            keys = [key for key in {**one, **other} if one.get(key, ABSENT) != other.get(key, ABSENT)]
            lines += [(f"{name}.{key}", shown(one.get(key, "–")), shown(other.get(key, "–"))) for key in keys]
        else:
            lines.append((name, shown(one), shown(other)))
    return lines


def shown(value: Any) -> str:
    """A value in a sentence: digests shortened, `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(shown(part) for part in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:10] if is_digest(text) else text


def _grouped(groups: Iterable[RunGroup], key: Callable[[RunGroup], Any]) -> dict[str, list[RunGroup]]:
    together: dict[str, list[RunGroup]] = {}
    for group in groups:
        together.setdefault(json.dumps(key(group), sort_keys=True, default=str), []).append(group)
    return together
