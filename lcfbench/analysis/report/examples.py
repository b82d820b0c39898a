"""Documents on which the methods disagree, with what each model saw.

    examples(source)[0].cases[0].answers[0].prediction

Chosen from the scores alone, the same ones every time: as many different patterns of right and
wrong as there is room for, those first that tell most: right with its own message and wrong with
another's, or wrong although the receiver alone is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.report.entries import NONE, cut, places_named, plain
from lcfbench.analysis.report.source import Source
from lcfbench.analysis.run_groups import RunGroup
from lcfbench.analysis.summary import ALONE, SHOWN
from lcfbench.results.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

MOST = 12  # documents a task
METHODS = 40  # a pattern is a number in base 3 and has to fit into 64 bits
LONG = 6000  # characters of a prompt that are shown
RIGHT, WRONG, ABSENT = 1, 0, 2
UNRECORDED = "prompts were not recorded by this version"
KINDS = ("crosses", "harms", "reversed", "mixed")
TOLD = {
    "crosses": "right with its own message, wrong with another document's",
    "harms": "wrong, although the receiver alone is right",
    "reversed": "wrong with its own message, right with another document's",
    "mixed": "methods disagree",
}


class Answer(NamedTuple):
    """What one method answered."""

    method: str
    control: str
    prediction: str
    score: float
    error: str


class Shown(NamedTuple):
    """A text that one or several methods' model saw, or a message. whose: the methods."""

    whose: str
    text: str


class Case(NamedTuple):
    """One document. kind: why it is here, in words."""

    doc_id: str
    gold: str
    kind: str
    answers: list[Answer]
    receiver_prompts: list[Shown]
    sharer_prompts: list[Shown]
    messages: list[Shown]
    unrecorded: str


class Examples(NamedTuple):
    """One task. disagree: documents on which not all methods are right or all wrong, of `n`."""

    heading: str
    disagree: int
    n: int
    cases: list[Case]


def examples(source: Source) -> list[Examples]:
    """Up to `MOST` documents of every pair, task and scoring on which methods disagree."""
    found = []
    for key in source.by_task:
        groups = [group for group in source.groups_of(key) if group.control in SHOWN and group.n][:METHODS]
        if len(groups) < 2:
            continue
        codes, right = patterns(groups)
        chosen = choose(right, groups)
        hashes = {code: _hash(code, groups) for code in codes[[index for index, _ in chosen]].tolist()}
        rows = source.rows({group.run_ids[0] for group in groups}, set(hashes.values()))
        names = _names(rows.values(), groups, source)
        cases = [
            _case(hashes[int(codes[index])], int(codes[index]), kind, groups, rows, names, source)
            for index, kind in chosen
        ]
        heading = f"{key[1]} ({key[2]}), {places_named(key[0])}"
        found.append(Examples(heading, int(_disagree(right).sum()), len(codes), cases))
    return found


def patterns(groups: Sequence[RunGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes (D,) of all documents and (D, groups): right (score ≥ ½), wrong or absent."""
    import numpy as np

    codes = np.unique(np.concatenate([group.codes for group in groups]))
    right = np.full((len(codes), len(groups)), ABSENT, dtype=np.uint8)
    for column, group in enumerate(groups):
        right[np.searchsorted(codes, group.codes), column] = group.scores >= 0.5
    return codes, right


def choose(right: np.ndarray, groups: Sequence[RunGroup], most: int = MOST) -> list[tuple[int, str]]:
    """Rows of `right` to show, each with its kind.

    Kinds take turns; within one, documents that all methods answered and frequent patterns come
    first. A pattern comes again only when no other is left.
    """
    import numpy as np

    keys = right.astype(np.uint64) @ (np.uint64(3) ** np.arange(right.shape[1], dtype=np.uint64))
    mixed = np.flatnonzero(_disagree(right))
    if not len(mixed):
        return []
    patterns_, first, counts = np.unique(keys[mixed], return_index=True, return_counts=True)
    rows = right[mixed[first]]
    order = np.lexsort((patterns_, -counts, (rows == ABSENT).sum(axis=1)))
    queues = [[int(i) for i in order[of_kind[order]][:most]] for of_kind in _kinds(rows, groups)]
    chosen: list[tuple[int, int]] = []  # pattern, kind
    while len(chosen) < most and any(queues):
        for kind, queue in enumerate(queues):
            taken = {pattern for pattern, _ in chosen}
            queue[:] = [pattern for pattern in queue if pattern not in taken]
            if queue and len(chosen) < most:
                chosen.append((queue.pop(0), kind))
    shown = [(int(mixed[first[pattern]]), KINDS[kind]) for pattern, kind in chosen]
    for again in range(1, most):  # room left: a second document of every pattern, a third …
        for pattern, kind in chosen:
            if len(shown) < most and counts[pattern] > again:
                place = np.flatnonzero(keys[mixed] == patterns_[pattern])[again]
                shown.append((int(mixed[place]), KINDS[kind]))
    return sorted(shown, key=lambda found: KINDS.index(found[1]))


def _kinds(rows: np.ndarray, groups: Sequence[RunGroup]) -> list[np.ndarray]:
    """For each of `KINDS`, which patterns are of it."""
    import numpy as np

    where = {(group.label, group.control): column for column, group in enumerate(groups)}
    none = np.zeros(len(rows), dtype=bool)
    crosses, back, harms = none.copy(), none.copy(), none.copy()
    bases = [column for column, group in enumerate(groups) if group.mode == ALONE]
    for (label, control), own in where.items():
        if control != "matched":
            continue
        other = where.get((label, "deranged"))
        if other is not None:
            crosses |= (rows[:, own] == RIGHT) & (rows[:, other] == WRONG)
            back |= (rows[:, own] == WRONG) & (rows[:, other] == RIGHT)
        for base in bases:
            harms |= (rows[:, base] == RIGHT) & (rows[:, own] == WRONG)
    return [crosses, harms, back, ~none]


def _disagree(right: np.ndarray) -> np.ndarray:
    return (right == RIGHT).any(axis=1) & (right == WRONG).any(axis=1)


def _hash(code: int, groups: Sequence[RunGroup]) -> str:
    import numpy as np

    for group in groups:
        place = int(np.searchsorted(group.codes, np.uint64(code)))
        if place < group.n and group.codes[place] == code:
            return str(group.hashes[place])
    raise AssertionError("a code without a document")


def _names(rows: Iterable[Mapping[str, Any]], groups: Sequence[RunGroup], source: Source) -> dict[str, str]:
    """Hash → id of every document whose message was used."""
    senders = {str(row["message_from"]) for row in rows if row.get("message_from")}
    runs = {group.run_ids[0] for group in groups if group.control == "deranged"}
    found = source.rows(runs, senders, ("run_id", "doc_hash", "doc_id"))
    return {doc_hash: row["doc_id"] for (_, doc_hash), row in found.items() if row.get("doc_id")}


def _case(
    doc_hash: str,
    code: int,
    kind: str,
    groups: Sequence[RunGroup],
    rows: Mapping[tuple[str, str], dict[str, Any]],
    documents: Mapping[str, str],
    source: Source,
) -> Case:
    import numpy as np

    sending = {group.label for group in groups if group.sends}
    names = {
        id(group): (group.label, str(group.control) if group.label in sending else "") for group in groups
    }
    seen = [
        (group, rows[group.run_ids[0], doc_hash]) for group in groups if (group.run_ids[0], doc_hash) in rows
    ]
    answers = []
    for group, row in seen:
        score = float(group.scores[np.searchsorted(group.codes, np.uint64(code))])
        said, error = cut(row.get("prediction") or NONE, 300), row.get("error") or ""
        answers.append(Answer(*names[id(group)], said, score, error))
    whose = [(_named(*names[id(group)]), group.manifest, row) for group, row in seen]
    messages = [(name, _message(row, manifest, documents)) for name, manifest, row in whose]
    recorded = any(row.get("receiver_prompt") or row.get("sharer_prompt") for _, row in seen)
    first: Mapping[str, Any] = seen[0][1] if seen else {}
    return Case(
        str(first.get("doc_id") or doc_hash),
        str(first.get("gold") or NONE),
        _told(kind, answers, {group.label for group in groups if group.mode == ALONE}),
        answers,
        _alike([(name, row.get("receiver_prompt")) for name, _, row in whose]),
        _alike([(name, row.get("sharer_prompt")) for name, _, row in whose]),
        [Shown(name, message) for name, message in messages if message],
        "" if recorded else UNRECORDED,
    )


def _alike(texts: Sequence[tuple[str, str | None]]) -> list[Shown]:
    """Equal texts once, with everybody who saw them."""
    whose: dict[str, list[str]] = {}
    for name, text in texts:
        if text:
            whose.setdefault(text, []).append(name)
    return [Shown("; ".join(names), cut(text, LONG)) for text, names in whose.items()]


def _told(kind: str, answers: Sequence[Answer], bases: set[str]) -> str:
    """The kind in words, with the methods it is true of."""
    right = {(answer.method, answer.control or "matched"): answer.score >= 0.5 for answer in answers}
    who = []
    for (method, control), good in right.items():
        other = right.get((method, "deranged"))
        is_of = {"crosses": good and other is False, "harms": not good, "reversed": not good and other}
        if control == "matched" and method not in bases and is_of.get(kind):
            who.append(method)
    return f"{TOLD[kind]}: {', '.join(who)}" if who else TOLD[kind]


def _message(row: Mapping[str, Any], manifest: Manifest, documents: Mapping[str, str]) -> str:
    """The text, or what else was sent and whose it was; empty where nothing was."""
    size, sender = row.get("message_bytes") or 0, row.get("message_from")
    if not size and not row.get("message_text"):
        return ""
    whose = ""
    if sender:
        own = sender == row["doc_hash"]
        whose = f", made for {'this document' if own else f'document {documents.get(sender, sender)}'}"
    if row.get("message_text"):
        return f"“{cut(row['message_text'], LONG)}”{whose}"
    chosen = manifest.gates or manifest.calibration
    layers = (chosen and chosen.layers) or []
    return f"{plain(size)} bytes" + (f" in {len(layers)} layers" if layers else "") + f" of numbers{whose}"


def _named(label: str, control: str) -> str:
    return f"{label}, {control}" if control else label
