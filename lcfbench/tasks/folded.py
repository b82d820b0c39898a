"""Rows and documents of a long task lie in a file without a name, and come into memory when asked for.

The first `KEPT` of a store stay in memory, so that a short task never touches the disk.

>>> from lcfbench.tasks.folded import FoldedRows, Store
>>> rows = FoldedRows([{"id": i} for i in range(2000)], Store())
>>> len(rows), rows[1999], list(rows.features)
(2000, {'id': 1999}, ['id'])
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast, overload

from lcfbench.tasks.document import Document
from lcfbench.tasks.process_docs import Row, Rows

KEPT = 512  # objects of a store that stay in memory
RECENT = 512  # further ones that are in memory, those last asked for: batches are smaller
SHARED = (
    "task",
    "scoring",
    "shared",
    "chat",
    "until",
    "request_until",
    "max_new_tokens",
    "examples",
)  # by a task's documents, or by many of them


class Store:
    """Objects by number. What is no plain data, or finds no room on the disk, stays in memory."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._ends = array("q", [0])
        self._file: IO[bytes] | None = None
        self._guard = threading.Lock()
        self._same: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def same(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the first tuple that was equal to this one."""
        return self._same.setdefault(values, values)

    def put(self, value: Any) -> int:
        """Takes an object; returns its number."""
        with self._guard:
            number, end = len(self._ends) - 1, self._ends[-1]
            if number < KEPT:
                self._held[number] = value
            else:
                try:
                    end += self._append(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), end)
                except (OSError, pickle.PicklingError, TypeError, AttributeError, RecursionError):
                    self._held[number] = value
            self._ends.append(end)
            return number

    def get(self, number: int) -> Any:
        """Returns an object, the same one as long as it is among the `RECENT`."""
        with self._guard:
            if number in self._held:
                return self._held[number]
            if number in self._recent:
                self._recent.move_to_end(number)
                return self._recent[number]
            begin, end = self._ends[number], self._ends[number + 1]
            found = pickle.loads(self._read(begin, end - begin))
            self._recent[number] = found
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            return found

    def _append(self, data: bytes, at: int) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - gone with the store
        self._file.seek(at)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        return len(data)

    def _read(self, at: int, size: int) -> bytes:
        assert self._file is not None
        parts = []
        while size > 0:
            if hasattr(os, "pread"):  # a forked process has the same place in the file
                part = os.pread(self._file.fileno(), size, at)
            else:
                self._file.seek(at)
                part = self._file.read(size)
            if not part:
                raise OSError("a temporary file was cut short")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)


class FoldedRows(Sequence[Row]):
    """Rows of a task in a store, with the `features` that lm-eval asks a dataset for."""

    def __init__(self, rows: Iterable[Row], store: Store) -> None:
        self._store, self._numbers = store, array("q", map(store.put, rows))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(map(self._store.get, self._numbers[index]))
        return cast("Row", self._store.get(self._numbers[index]))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


class Picked(Sequence[Row]):
    """Some rows of a table in an order of their own, each in memory when its turn comes."""

    def __init__(self, rows: Sequence[Row], places: Iterable[int]) -> None:
        self._table, self._places = rows, array("q", places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Picked: ...
    def __getitem__(self, index: int | slice) -> Row | Picked:
        if isinstance(index, slice):
            return Picked(self._table, self._places[index])
        return self._table[self._places[index]]

    def __len__(self) -> int:
        return len(self._places)


def folded(document: Document, store: Store) -> Document:
    """Returns a document equal to this one whose texts and row lie in a store.

    Documents that are made of others, or dealt to several sharers, stay as they are.
    """
    if document.parts or document.rival or document.sharers or document.requests:
        return document
    return cast("Document", _Folded(document, store))


class _Folded:
    """A document that has its hash and what all of its task share; the rest lies in a store.

    It is a `Document` to everyone but `type`: a subclass would have the room of its attributes too.
    """

    __slots__ = ("_number", "_shared", "_store", "hash")

    if TYPE_CHECKING:
        _number: int
        _shared: tuple[Any, ...]
        _store: Store
        hash: str

    def __init__(self, document: Document, store: Store) -> None:
        shared = store.same(tuple(getattr(document, name) for name in SHARED))
        own = {"hash": document.hash, "_shared": shared, "_store": store, "_number": store.put(document)}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def whole(self) -> Document:
        """The document as it was."""
        return cast("Document", self._store.get(self._number))

    @property
    def __class__(self) -> Any:
        return Document  # what `dataclasses.replace` makes of it is a document as any other

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("a document stays one")

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.whole,)


def _itself(document: Document) -> Document:
    return document


def _lying(name: str) -> property:
    return property(lambda self: getattr(self.whole, name))


def _shared(place: int) -> property:
    return property(lambda self: self._shared[place])


_OF_A_CLASS = (*"__dict__ __weakref__ __module__ __qualname__ __doc__ __annotations__".split(),)
for _name, _value in vars(Document).items():
    if _name not in vars(_Folded) and _name not in _OF_A_CLASS:
        setattr(_Folded, _name, _lying(_name) if isinstance(_value, cached_property) else _value)
for _field in fields(Document):
    _how = _shared(SHARED.index(_field.name)) if _field.name in SHARED else _lying(_field.name)
    setattr(_Folded, _field.name, _how)
