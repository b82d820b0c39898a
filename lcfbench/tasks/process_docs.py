"""Turns the rows of a data set into lm-eval's documents, one row at a time, and counts dropped rows.

In `my_task.py`, for a YAML that says `process_docs: !function my_task.row`:

>>> from lcfbench.tasks.process_docs import per_row
>>> @per_row
... def row(raw, index):
...     return {"id": raw["id"], "question": raw["q"]} if raw["q"] else "no question"
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lcfbench.errors import UserError

Row = dict[str, Any]
Raw = Callable[[Iterable[Mapping[str, Any]], str], list[Row]]


class Rows(list[Row]):
    """Documents with the `features` that lm-eval asks a dataset for."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def per_row(
    function: Callable[..., Row | str] | None = None, *, raw: Raw | None = None
) -> Callable[..., Any]:
    """Makes `process_docs` of a function from (raw row, its index, **options) to a document.

    The function returns a text, the reason, for a row that is dropped. raw: from (table, split) to the
    raw rows of that split, for data whose splits or rows are not the task's own.
    """
    if function is None:
        return functools.partial(per_row, raw=raw)

    @functools.wraps(function)
    def process_docs(dataset: Iterable[Mapping[str, Any]]) -> Any:
        from datasets import Dataset  # lm-eval on its own wants one back

        return Dataset.from_list(keep(function, raw(dataset, "test") if raw else dataset)[0])

    process_docs.row, process_docs.raw = function, raw  # type: ignore[attr-defined]
    return process_docs


def part_of(text: str, shares: Mapping[str, int]) -> str:
    """The part that `text` belongs to, on every machine, by its sha256. shares: in per cent, in all 100."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    raise AssertionError(f"shares {dict(shares)} do not sum to 100")


def keep(
    function: Callable[..., Row | str], raw: Iterable[Mapping[str, Any]], **options: Any
) -> tuple[Rows, Counter[str]]:
    """The documents of all rows, and the number of dropped rows by reason."""
    kept, dropped = Rows(), Counter[str]()
    for index, row in enumerate(raw):
        made = function(row, index, **options)
        if isinstance(made, str):
            dropped[made] += 1
        elif isinstance(made, Mapping):
            kept.append(made)
        else:
            what = f"{function.__name__} gives {type(made).__name__} for row {index + 1}."
            raise UserError(what, "Return a dict of fields, or a text that says why the row is left out.")
    return kept, dropped
