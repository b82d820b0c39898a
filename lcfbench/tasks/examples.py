"""Worked examples in front of a question: where they come from, and which of them a question gets.

A task file says it under `metadata.examples`, in lm-eval's terms: `dataset_path`, `dataset_name`, `split`
(as the data set calls it), `process_docs`; and `by`, the field by which they are picked: a question gets
those whose field has the value of its own, in the order of the data set.

>>> from lcfbench.tasks.examples import source_of
>>> source_of({"split": "dev", "by": "subject"}).by
'subject'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.samplers import ContextSampler

Row = dict[str, Any]
KEY = "examples"  # of metadata; also what the split of their rows is called here
FORM = "Write examples: {split: dev, by: subject}."


@dataclass(frozen=True)
class Source:
    """Where a task's worked examples come from; what is None is as the task's own.

    split: as the data set calls it; None: the task's train split, else its validation split. by: the field
    whose value picks them; None: the same ones for all questions, drawn by the seed. files: local data
    behind `dataset_path`, by split.
    """

    dataset_path: str | None = None
    dataset_name: str | None = None
    split: str | None = None
    process_docs: Callable[..., Any] | None = None
    by: str | None = None
    files: Any = None


def mistakes_in(said: Any, generated: bool) -> list[tuple[str, str]]:
    """What is wrong with `metadata.examples`, and the next step of each."""
    if said is None:
        return []
    if not isinstance(said, Mapping):
        return [("metadata.examples is no mapping", FORM)]
    if generated:
        return [("metadata.examples: a generated task has no data set", "Leave it out.")]
    known = [f.name for f in fields(Source) if f.name != "files"]
    found = []
    for key, value in said.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            step = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
            found.append((f"metadata.examples has no key {key!r}", step))
        elif key == "process_docs" and not (callable(value) or isinstance(value, str)):
            found.append((f"metadata.examples.{key}: {value!r} is no function", "Write !function file.name."))
        elif key != "process_docs" and not (isinstance(value, str) and value):
            found.append((f"metadata.examples.{key}: {value!r} is no text", FORM))
    if "dataset_path" in said and "split" not in said:
        found.append(("metadata.examples names a data set and no split", "Add split: train."))
    if "dataset_path" not in said:
        found += [
            (f"metadata.examples has {key} and no dataset_path", "Name the data set, or leave it out.")
            for key in ("dataset_name", "process_docs")
            if key in said
        ]
    return found


def source_of(said: Mapping[str, Any] | None) -> Source:
    """What a checked `metadata.examples` says."""
    return Source(**(said or {}))


def usual_split(splits: Collection[str]) -> str | None:
    """The split of a task whose rows are worked examples where nothing is said; None where it has none."""
    return next((s for s in ("train", "validation") if s in splits), None)


def place_of(said: Any, splits: Collection[str]) -> str:
    """Where a task takes worked examples from, in a few words; "" where it has no rows for them.

    said: `metadata.examples`, None without it. splits: those of the task.

    >>> place_of({"dataset_path": "cais/mmlu", "split": "dev", "by": "subject"}, ["test"])
    'cais/mmlu dev, by subject'
    """
    said = said if isinstance(said, Mapping) else {}
    split = said.get("split") or usual_split(splits)
    if split is None:
        return ""
    place = " ".join(filter(None, (said.get("dataset_path"), split)))
    return f"{place}, by {said['by']}" if said.get("by") else place


@dataclass(frozen=True)
class Examples:
    """The worked examples of a task.

    rows: by the value of the field `by`; all under "" where there is none. count: how many a question gets.
    who: the task and the data they come from, for errors.
    """

    rows: Mapping[str, list[Row]]
    count: int
    who: str
    by: str | None = None

    def whose(self, row: Row) -> str:
        """The value of a row's field; "" where all get the same. Raises UserError for a row without it."""
        return "" if self.by is None else value_of(row, self.by, self.who)

    def of(self, row: Row) -> list[Row]:
        """Those of a question. Raises UserError where there are too few."""
        value = self.whose(row)
        found = self.rows.get(value, [])
        if len(found) < self.count:
            of = f" of {self.by} {value}" if self.by else ""
            raise UserError(
                f"{self.who} gives {len(found)} examples{of}, not {self.count}.",
                "Ask for fewer with --shots.",
            )
        return found

    @property
    def every(self) -> list[Row]:
        """All that stand in front of any question."""
        return [row for rows in self.rows.values() for row in rows]

    @property
    def sha256(self) -> str:
        """Digest of all of them."""
        text = json.dumps(self.rows, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def value_of(row: Row, by: str, who: str) -> str:
    """The value by which examples are picked. Raises UserError for a row that has none."""
    if row.get(by) is None:
        have = ", ".join(map(str, row))
        raise UserError(f"{who}: document {row.get('id')} has no field {by!r} to pick by.", f"It has {have}.")
    return str(row[by])


@cache
def _picker() -> Callable[[Examples], ContextSampler]:
    """The class of samplers that pick. It is made on demand: importing lm-eval is slow."""
    from lm_eval.api.samplers import ContextSampler

    class Picker(ContextSampler):
        """lm-eval's sampler that gives each question its own examples."""

        def __init__(self, examples: Examples) -> None:
            super().__init__(examples.every)
            self._examples = examples

        def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Row]:
            return replace(self._examples, count=n).of(eval_doc)[:n]

    return Picker


def sampler(examples: Examples) -> ContextSampler:
    """lm-eval's sampler on these examples; where they are picked, it must be given each question."""
    from lm_eval.api.samplers import FirstNSampler

    return FirstNSampler(examples.of({})) if examples.by is None else _picker()(examples)
