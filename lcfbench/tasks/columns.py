"""Questions from the columns of a table: names are inferred by stated rules, never by guessing.

Names are compared in lower case, with `_` for spaces. The answer is a letter, a choice's text or a
number, the same in all rows; where several readings fit equally well, the reader must say which.

>>> found = infer(["question", "a", "b", "answer"], {})
>>> found.choices, found.answer
(('a', 'b'), 'answer')
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcfbench.errors import UserError, unknown
from lcfbench.sources.local_data import is_empty
from lcfbench.tasks.process_docs import Row, Rows

LETTERS = "ABCDEFGHIJ"
NAMES = {
    "question": ("question", "query", "problem", "prompt", "input", "question_stem"),
    "answer": (
        "answer",
        "gold",
        "label",
        "target",
        "correct",
        "correct_answer",
        "answerkey",
        "answer_key",
        "answers",
    ),
    "choices": ("choices", "options", "endings"),
    "context": ("context", "passage", "story", "paragraph"),
    "receiver_context": ("receiver_context", "receiver_text", "receiver"),
    "sharer_context": ("sharer_context", "sharer_text", "sharer"),
    "id": ("id", "qid", "question_id", "idx"),
    "subject": ("subject", "category", "topic"),
}
HALF_PAIR = re.compile("[\ud800-\udfff]")
ANSWERS = ("letter", "text", "number from 0", "number from 1")
_NUMBERED = re.compile(r"(?:choice|option|answer)?[_ ]?(?:([a-j])|(\d\d?))")
Problem = tuple[int, str, str]  # row number from 1, field, what is wrong


@dataclass(frozen=True)
class Columns:
    """The column that holds each part of a question; empty where there is none.

    choices: one column with a list, or a column a choice. answer_as: one of ANSWERS, or "" to see.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    context: str = ""
    receiver_context: str = ""
    sharer_context: str = ""
    id: str = ""
    subject: str = ""
    answer_as: str = ""


def infer(names: Sequence[str], said: Mapping[str, Any]) -> Columns:
    """The columns that `said` (metadata.columns) names, the others by their usual names.

    Raises UserError for a column that is not there, and where question or answer cannot be told.
    """
    known = {str(name).strip().lower().replace(" ", "_"): name for name in names}
    found: dict[str, Any] = {}
    for part, value in said.items():
        if part not in (*NAMES, "answer_as"):
            raise unknown(
                "part of metadata.columns", str(part), [*NAMES, "answer_as"], "lcfbench task --help"
            )
        if part == "answer_as":
            if value not in ANSWERS:
                raise unknown("metadata.columns.answer_as", str(value), ANSWERS, "lcfbench task --help")
            found[part] = value
            continue
        given = value if isinstance(value, list) and part == "choices" else [value]
        for name in given:
            if name not in names:
                raise UserError(
                    f"metadata.columns.{part}: there is no column {name!r}.",
                    f"The columns are {', '.join(map(str, names))}.",
                )
        found[part] = tuple(given) if part == "choices" else value
    for part, usual in NAMES.items():
        if part not in found and (here := next((known[n] for n in usual if n in known), None)) is not None:
            found[part] = (here,) if part == "choices" else here
    if "choices" not in said and (several := _several(known, set(map(str, found.values())))):
        found["choices"] = several
    for part in ("question", "answer"):
        if part not in found:
            raise UserError(
                f"no column is called {part} (or {', '.join(NAMES[part][1:4])}, …); "
                f"the columns are {', '.join(map(str, names)) or 'none'}.",
                f"Rename one, or say in the task's YAML metadata: {{columns: {{{part}: NAME}}}}.",
            )
    return Columns(**found)


def _several(known: Mapping[str, str], taken: set[str]) -> tuple[str, ...]:
    """Columns that hold a choice each: a, b, c; choice1, choice2; option_a, option_b."""
    found: dict[str, dict[int, str]] = {}
    for key, name in known.items():
        if name not in taken and (m := _NUMBERED.fullmatch(key)):
            head, place = key[: m.start(1) if m[1] else m.start(2)], ord(m[1]) - 97 if m[1] else int(m[2])
            found.setdefault(f"{head}{'a' if m[1] else '1'}", {})[place] = name
    rows = [tuple(by[i] for i in sorted(by)) for by in found.values() if _run(sorted(by))]
    return sorted(rows, key=len)[-1] if rows else ()


def _run(places: list[int]) -> bool:
    return (
        len(places) >= 2 and places[0] in (0, 1) and places == list(range(places[0], places[0] + len(places)))
    )


def documents(raw: Sequence[Mapping[str, Any]], columns: Columns) -> tuple[Rows, Counter[str], list[Problem]]:
    """The rows as documents, the number dropped by reason, and each problem with its row.

    A document has id, question, answer, receiver_context, sharer_context, subject, and with choices
    options, letters, gold and letter. Raises UserError where the answers can be read in several ways.
    """
    kept, dropped, problems = Rows(), Counter[str](), list[Problem]()
    choices = [_choices(row, columns) if columns.choices else [] for row in raw]
    reading = columns.answer_as or (_reading(raw, choices, columns) if columns.choices else "text")
    for index, row in enumerate(raw):
        made = _document(row, index, choices[index], columns, reading)
        if isinstance(made, tuple):
            dropped[made[1]] += 1
            problems.append((index + 1, *made))
        else:
            kept.append(made)
    return kept, dropped, problems


def _document(
    row: Mapping[str, Any], index: int, choices: list[str] | str, c: Columns, reading: str
) -> Row | tuple[str, str]:
    """A document, or the field at fault and the reason."""
    if is_empty(row[c.question]):
        return c.question, "the question is empty"
    answer = answer_of(row[c.answer])
    if is_empty(answer):
        return c.answer, "the answer is empty"
    texts = (c.question, c.context, c.receiver_context, c.sharer_context, c.subject)
    for name in (name for name in texts if name):
        if why := _no_text(row[name]):
            return name, why
    for each in answer if isinstance(answer, list) else [answer]:
        if why := _no_text(each):
            return c.answer, why
    if isinstance(choices, str):
        return ", ".join(c.choices), choices
    for name in (c.sharer_context,) if c.sharer_context else ():
        if is_empty(row[name]):
            return name, "the sharer's context is empty"
    shared = str(row[c.context]) if c.context and not is_empty(row[c.context]) else ""
    contexts = {
        part: str(row[name]) if name and not is_empty(row[name]) else ""
        for part, name in (("receiver_context", c.receiver_context), ("sharer_context", c.sharer_context))
    }
    contexts = {part: "\n\n".join(filter(None, (shared, text))) for part, text in contexts.items()}
    made: Row = {
        "id": index if not c.id or is_empty(row[c.id]) else row[c.id],
        "question": str(row[c.question]).strip(),
        "subject": str(row[c.subject]) if c.subject and not is_empty(row[c.subject]) else "",
        **contexts,
    }
    if not c.choices:
        golds = answer if isinstance(answer, list) else [answer]
        golds = [str(g).strip() for g in golds if not is_empty(g)]
        return {**made, "answers": golds, "answer": golds[0]} if golds else (c.answer, "the answer is empty")
    gold = _gold(answer, choices, reading)
    if gold is None:
        return c.answer, f"the answer names no choice (read as a {reading})"
    letters = list(LETTERS[: len(choices)])
    return {**made, "options": choices, "letters": letters, "gold": gold, "letter": letters[gold]}


def answer_of(value: Any) -> Any:
    """The answer in a cell: of `{text: [...], answer_start: [...]}`, as in SQuAD, the texts."""
    return value["text"] if isinstance(value, Mapping) and "text" in value else value


def _no_text(value: Any) -> str:
    """Says why a cell makes no text; numbers, dates and the like are written out."""
    if isinstance(value, Mapping | list | bytes):
        return f"holds {'bytes' if isinstance(value, bytes) else 'a nested value'}, not text"
    if isinstance(value, str) and HALF_PAIR.search(value):
        return "holds half a surrogate pair, which is no character"
    return ""


def _choices(row: Mapping[str, Any], c: Columns) -> list[str] | str:
    """The texts of a row's choices, or the reason why there are none."""
    if len(c.choices) > 1:
        cells: Any = [row[name] for name in c.choices]
        while cells and is_empty(cells[-1]):
            cells.pop()  # a row may have fewer choices than the table has columns
    else:
        value = row[c.choices[0]]
        value = _lettered(value) if isinstance(value, Mapping) else value
        cells = _cells(value) if isinstance(value, str) else value
        if not isinstance(cells, list):
            return "the choices are no list"
        cells = [cell.get("text") if isinstance(cell, Mapping) else cell for cell in cells]
    if any(is_empty(cell) or _no_text(cell) for cell in cells):
        return "a choice is empty or no text"
    texts = [str(cell).strip() for cell in cells]
    if not 2 <= len(texts) <= len(LETTERS):
        return f"{len(texts)} choices (2 to {len(LETTERS)} can be asked)"
    return texts if len(set(texts)) == len(texts) else "two choices are equal"


def _lettered(value: Mapping[str, Any]) -> Any:
    """The choices of `{text: [...], label: [...]}` and of `{A: ..., B: ...}`; None for other mappings."""
    if "text" in value:
        return value["text"]
    known = {key: text for key, text in value.items() if text is not None}  # parquet has every key
    return list(known.values()) if [*known] == list(LETTERS[: len(known)]) else None


def _cells(text: str) -> Any:
    """A list written in a cell: JSON, else separated by | or ;."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None
    sign = "|" if "|" in text else ";"
    return [part.strip() for part in text.split(sign)]


def _reading(raw: Sequence[Mapping[str, Any]], choices: Sequence[list[str] | str], c: Columns) -> str:
    """The one way to read the answers that fits most rows. Raises UserError where two fit as well."""
    asked = [
        (i, answer_of(row[c.answer]), options)
        for i, (row, options) in enumerate(zip(raw, choices, strict=True))
        if isinstance(options, list) and not is_empty(row[c.answer])
    ]
    golds = {form: [_gold(answer, options, form) for _, answer, options in asked] for form in ANSWERS}
    fits = {form: sum(g is not None for g in found) for form, found in golds.items()}
    best = max(fits.values(), default=0)
    if not best:
        return ANSWERS[0]
    first, *others = [form for form, n in fits.items() if n == best]
    for other in others:
        for (i, answer, _), one, two in zip(asked, golds[first], golds[other], strict=True):
            if one != two:
                what = f"row {i + 1}, {c.answer}: {answer!r} may be a {first} or a {other}"
                raise UserError(
                    f"{what}; both fit {best} of {len(asked)} rows.",
                    "Say metadata: {columns: {answer_as: letter, text, number from 0 or number from 1}}.",
                )
    return first


def _gold(answer: Any, choices: Sequence[str], form: str) -> int | None:
    """Index of the choice that an answer names under one reading; None where it names none."""
    text = str(answer).strip()
    if isinstance(answer, bool | list | dict):
        return None
    if form == "text":
        return choices.index(text) if text in choices else None
    if form == "letter":
        text = text.strip("().: ").upper()
        place = LETTERS.find(text) if len(text) == 1 else -1
    else:
        whole = re.fullmatch(r"(\d{1,3})(?:\.0)?", text)
        place = int(whole[1]) - int(form[-1]) if whole else -1
    return place if 0 <= place < len(choices) else None
