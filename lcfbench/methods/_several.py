"""Several sharers: each makes a message of its own, and the receiver takes them in together.

A method that says `joins` makes the message of one sharer in `send` and reads the messages of all in
`receive`; nothing else in it knows how many there are.

>>> method = SeveralSharers([create("t2t", receiver, sharer) for sharer in pair.sharers], "row")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lcfbench.config import Join
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import in_one
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.methods.excerpt import own_text
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.tasks.document import Document


class SeveralSharers(Method):
    """A method between a receiver and several sharers: the same method for each of them.

    methods: one a sharer, in their order. join: see `Method.joins`. exchanged: the number of the one sharer
    whose message of a document comes from the document in `message_from`; None where all do. Raises
    UserError where the messages of two sharers cannot be joined.
    """

    def __init__(
        self, methods: Sequence[Method], join: Join, exchanged: Callable[[Document], int] | None = None
    ) -> None:
        first = methods[0]
        super().__init__(first.receiver, first.sharer, first.adapter)
        self.methods, self.join, self.exchanged = list(methods), join, exchanged
        for other in self.methods[1:]:
            first.check_beside(other)
        names = (
            "sends",
            "sends_text",
            "uses_sharer_cache",
            "seeded",
            "roles",
            "adapter_kinds",
            "joins",
            "needs",
        )
        vars(self).update({name: getattr(first, name) for name in names})

    def each(self, change: Callable[[Method], Method]) -> SeveralSharers:
        """Returns the same with every sharer's method changed."""
        return SeveralSharers([change(method) for method in self.methods], self.join, self.exchanged)

    def exchanging(self, which: Callable[[Document], int]) -> SeveralSharers:
        """Returns the same, where the message of one sharer alone comes from another document."""
        return SeveralSharers(self.methods, self.join, which)

    @property
    def sharers(self) -> Sequence[LanguageModel]:
        return [method.sharer for method in self.methods]

    def senders(self, document: Document, sender: Document) -> list[Document]:
        """Returns the document that each sharer's message comes from."""
        at = None if self.exchanged is None else self.exchanged(document)
        return [sender if at is None or k == at else document for k in range(len(self.methods))]

    def dealt(self, document: Document) -> tuple[Document, ...]:
        """Returns the document as each sharer meets it: its own part, or what all read on shared contexts."""
        return document.met_by(len(self.methods))

    def batches(self, batch: Batch) -> list[Batch]:
        """Returns the batch as each sharer meets it."""
        both = zip(batch.documents, batch.message_from, strict=True)
        senders = [self.senders(document, sender) for document, sender in both]
        return [
            Batch(
                [self.dealt(d)[k] for d in batch.documents],
                [self.dealt(row[k])[k] for row in senders],
                batch.clock,
                batch.wire,
                stored=_stored_by(k, batch),
            )
            for k in range(len(self.methods))
        ]

    def check(self, document: Document) -> None:
        """Raises UserError where the task deals its text to another number of sharers."""
        for method, mine in zip(self.methods, self.dealt(document), strict=True):
            method.check(mine)

    def check_length(self, document: Document, sender: Document) -> None:
        beside = 0
        rows = zip(self.methods, self.dealt(document), self.senders(document, sender), strict=True)
        for k, (method, mine, source) in enumerate(rows):
            theirs = self.dealt(source)[k]
            method.check_length(mine, theirs)
            beside += method.beside(mine, theirs)
        check_room(self.receiver, prompt(self.receiver, document.receiver, document), document, beside)

    @property
    def added(self) -> int:
        return sum(method.added for method in self.methods)

    def words(self, batch: Batch) -> list[str] | None:
        parts = [
            method.words(each) or [own_text(sender) for sender in each.message_from]
            for method, each in zip(self.methods, self.batches(batch), strict=True)
        ]
        both = zip(batch.documents, zip(*parts, strict=True), strict=True)
        return [in_one(document, texts) for document, texts in both]

    def options(self) -> dict[str, Any]:
        """Those of the method; of an option that adapters set each in their own way, all values."""
        every = [method.options() for method in self.methods]
        rows = {name: [own.get(name) for own in every] for name in every[0]}
        return {name: row[0] if all(x == row[0] for x in row) else row for name, row in rows.items()}

    @property
    def calibration(self) -> int:
        return max(method.calibration for method in self.methods)

    def calibrate(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Calibrates each sharer's method on its own part of the documents."""
        found = [
            method.calibrate([self.dealt(document)[k] for document in documents])
            for k, method in enumerate(self.methods)
        ]
        return {"sharers": found}

    def recall(self, settled: Mapping[str, Any]) -> None:
        for method, found in zip(self.methods, settled["sharers"], strict=True):
            method.recall(found)

    def respond(self, batch: Batch) -> State:
        pairs = zip(self.methods, self.batches(batch), strict=True)
        sent = [method.send(each) for method, each in pairs]
        return self.methods[0].receive(replace(batch), sent, self.join)


def _stored_by(sharer: int, batch: Batch) -> dict[int, bytes] | None:
    """Returns what crossed before from one of the sharers, by row; None where nothing is replayed."""
    if batch.stored is None:
        return None
    rows = len(batch.documents)
    return {row: batch.stored.get(sharer * rows + row, b"") for row in range(rows)}
