"""Says of each row of a user's task whether it can be asked, and what is wrong where it cannot.

Templates and functions of a task are code of its author's and may raise anything: here, and nowhere
else, that becomes the field at fault and a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lcfbench.errors import UserError
from lcfbench.sources.local_data import is_empty
from lcfbench.tasks.columns import HALF_PAIR
from lcfbench.tasks.document import View
from lcfbench.tasks.lm_eval import LONGEST, seconds
from lcfbench.tasks.process_docs import Row, Rows

AUTHORS = (Exception, SystemExit)  # what an author's function or template may raise has no bounds
FIELDS = ("doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix")
PATIENCE = 5.0  # seconds for one row's templates
NO_TEXTS = "the choices are no list of texts"
Fault = tuple[str, str]  # field, what is wrong


def fault_of(task: Any, row: Row, views: Callable[[], Iterable[tuple[str, View]]]) -> Fault | None:
    """The field of a row that cannot be asked and why; None where all is well.

    task: lm-eval's. views: makes the other views, as (name, view).
    """
    field = FIELDS[0]
    made: dict[str, Any] = {}
    try:
        with seconds(PATIENCE):
            for field in FIELDS:
                form = getattr(task.config, field)
                if isinstance(form, str) and form in row and is_empty(row[form]):
                    return field, f"column {form} is empty"
                if form is None and field != "doc_to_target":
                    continue
                make = task.doc_to_prefix if field == "gen_prefix" else getattr(task, field)
                made[field] = make(row)
            if fault := _fault(task, made):
                return fault
            field = "views"
            for role, view in views():
                field = f"views.{role}"
                if not (view.user.strip() or view.prefix.strip()):
                    return field, "the prompt is empty"
    except AUTHORS as error:
        return field, said(error)
    return None


def _fault(task: Any, made: Mapping[str, Any]) -> Fault | None:
    """What is wrong with a row's text, choices and gold."""
    text = made["doc_to_text"]
    if not isinstance(text, str):
        return "doc_to_text", f"gives {type(text).__name__}, not text"
    if not text.strip():
        return "doc_to_text", "the prompt is empty"
    if HALF_PAIR.search(text):
        return "doc_to_text", "holds half a surrogate pair, which is no character"
    if len(text) > LONGEST:
        return "doc_to_text", f"gives more than {LONGEST:,} characters"
    gold = made["doc_to_target"]
    if task.OUTPUT_TYPE != "multiple_choice":
        golds = gold if isinstance(gold, list) else [gold]
        return ("doc_to_target", "the answer is empty") if not golds or any(map(is_empty, golds)) else None
    if "doc_to_choice" not in made:
        return "doc_to_choice", "is missing"
    choices = made["doc_to_choice"]
    if no_texts(choices):
        return "doc_to_choice", NO_TEXTS
    if any(not c.strip() for c in choices):
        return "doc_to_choice", "a choice is empty"
    if len(choices) < 2:
        return "doc_to_choice", f"{len(choices)} choices"
    if len(set(choices)) < len(choices):
        return "doc_to_choice", "two choices are equal"
    for each in gold if isinstance(gold, list) and gold else [gold]:
        if isinstance(each, str) and each in choices and not isinstance(gold, list):
            continue
        whole = isinstance(each, int) or (isinstance(each, float) and each.is_integer())
        if not whole or not 0 <= each < len(choices):
            shown = " ".join(repr(each).split())[:40]
            return "doc_to_target", f"the answer names no choice ({shown} of {len(choices)})"
    return None


def no_texts(choices: Any) -> bool:
    """Whether the choices are something else than a list of texts; lm-eval fails on numbers."""
    return not isinstance(choices, list) or not all(isinstance(c, str) for c in choices)


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:160]
    kind = type(error).__name__
    return text if kind in ("UserError", "UndefinedError", "RefusedError") else f"{kind}: {text}"


def as_rows(made: Any, who: str) -> list[Row]:
    """The rows that `process_docs` or a generator gave. Raises UserError where it gave something else."""
    try:
        rows = list(made.to_list() if hasattr(made, "to_list") else made)
    except AUTHORS as error:
        raise UserError(f"{who} failed: {said(error)}.", "Mend the function.") from error
    if not rows:
        raise UserError(f"{who} gives no rows.", "Let it return the documents.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            what = f"{who}: row {number} is {type(row).__name__}, not a mapping of fields"
            raise UserError(f"{what}.", "Return a Dataset or a list of dicts.")
    return [dict(row) for row in rows]


def dataset_of(rows: list[Row], who: str) -> Any:
    """The rows as lm-eval gives them to `process_docs`. Raises UserError for columns of mixed kinds."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        return Dataset.from_list(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        for name in rows[0]:
            kinds = {type(row[name]).__name__ for row in rows if row.get(name) is not None}
            if len(kinds) > 1:
                what = f"{who}: column {name} mixes {' and '.join(sorted(kinds))}"
                raise UserError(f"{what}.", "Write all its cells in one form.") from error
        raise UserError(f"{who}: its rows make no table ({said(error)}).", "Mend the data.") from error


def identified(rows: Iterable[Row]) -> tuple[Rows, list[int], list[int]]:
    """The rows, each with an id of its own; a row that stands there twice with its id is left out.

    A row without an id gets its number, counted from 0. Returns the rows, the number of each in
    `rows`, from 1, and the numbers of those left out.
    """
    kept, numbers, twice = Rows(), [], []
    contents: dict[str, set[str]] = {}
    for index, row in enumerate(rows):
        own = row.get("id")
        own = index if is_empty(own) else own
        name = (
            str(own) if isinstance(own, str | int | float) else json.dumps(own, default=str, sort_keys=True)
        )
        body = json.dumps(row, default=str, sort_keys=True, ensure_ascii=False)
        seen = contents.setdefault(name, set())
        if body in seen:
            twice.append(index + 1)
            continue
        seen.add(body)
        kept.append({**row, "id": name if len(seen) == 1 else f"{name}#{len(seen)}"})
        numbers.append(index + 1)
    return kept, numbers, twice
