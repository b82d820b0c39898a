"""Documents of a task, as text, before any tokenizer has seen them.

A `View` is the text that one model reads. A `Document` holds the views of both models, the way it is
scored, and the row from which lm-eval computes its own metrics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from lcfbench.errors import UserError

Scoring = Literal["letters", "cloze", "generate"]
BACKGROUND = (
    "In one sentence, state the background knowledge that helps most to answer this question. "
    "Do not answer it.\nQuestion: {}\n"
)
NOTE = "<<note>>"  # stands in `Document.noted` where a method that sends text puts the note


@dataclass(frozen=True)
class View:
    """One model's prompt as plain text: the user's turn and the beginning of the answer.

    prefix: lm-eval's `gen_prefix`. history: earlier turns of a chat as (role, text), oldest first;
    roles are `system`, `user` and `assistant`.
    """

    user: str
    prefix: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def seen(self) -> dict[str, Any]:
        """The part that a document's hash covers; the history only where there is one."""
        seen: dict[str, Any] = {"user": self.user, "prefix": self.prefix}
        return seen | {"history": [list(turn) for turn in self.history]} if self.history else seen


def view_of(turns: Sequence[tuple[str, str]]) -> View:
    """Turns as (role, text) as a view; the last is the user's, or the assistant's that begins the answer.

    Raises UserError for a chat that asks nothing.
    """
    *before, (role, content) = turns
    prefix = ""
    if role == "assistant" and before:
        prefix, (*before, (role, content)) = content, before
    if role != "user":
        raise UserError(f"a chat that ends with a turn of {role} asks nothing.", "End it with the user's.")
    return View(content, prefix, tuple(before))


def background_request(question: str) -> View:
    """What a sharer that writes is asked about a question that both models read."""
    return View(BACKGROUND.format(question), "Background knowledge: It is known that")


@dataclass(frozen=True)
class Phrasing:
    """Facts that a model can be taught, in one wording: for each a prompt and its continuation.

    weight: how often it is taught beside the other wordings; 0 is only measured. All wordings of a task
    hold the same facts in the same order.
    """

    name: str
    weight: int
    facts: tuple[tuple[View, str], ...]


@dataclass(frozen=True)
class Step:
    """One ranking among closed choices.

    choices: continuations exactly as they are scored (lm-eval's, with their leading space).
    gold: index of the right one; several when the key is ambiguous.
    lead: text appended to the prompt before the choices of this step; `{0}`, `{1}` are the texts picked
        in earlier steps, without spaces at their ends. A pick itself is not appended: the lead repeats it.
    """

    choices: tuple[str, ...]
    gold: tuple[int, ...]
    lead: str = ""

    def led(self, picked: Sequence[str]) -> str:
        """`lead` with the texts picked so far filled in."""
        return self.lead.format(*(text.strip() for text in picked)) if self.lead else ""


@dataclass(frozen=True)
class Document:
    """One question to the pair.

    receiver, sharer: each model's view; equal on shared-context tasks.
    full: both contexts in one view (the ceiling of text); equal to `receiver` on shared-context tasks.
    request: the question to a sharer that writes its message as text; `request.prefix` counts as the
        first words of the note.
    noted: the receiver's view with a note in it; the marker `NOTE` stands where the note goes.
    steps: closed choices, ranked one step after another (empty when `scoring` is "generate").
    until, request_until: strings that end the answer, and the note.
    chat: False where the task is plain text even for models with a chat template.
    native: lm-eval's own document, for its `process_results`.
    rival: where the receiver's own text contradicts the message, the document with the text's answer as
    the right one.
    parts: where each choice has a prompt of its own, a document a choice with that one choice; () else.
    sharers, requests: what each of several sharers reads, where a task deals the sharer's text to several,
    and the question to each; () else. Together they say what `sharer` does, so they are not in the hash.
    examples: whose worked examples stand in front, where not all documents have the same ones: documents of
    one text begin alike. The views hold them, so it is not in the hash.
    """

    task: str
    doc_id: str
    receiver: View
    sharer: View
    full: View
    request: View
    noted: View
    scoring: Scoring
    gold: str
    steps: tuple[Step, ...] = ()
    shared: bool = True
    chat: bool = True
    subject: str = ""
    until: tuple[str, ...] = ()
    request_until: tuple[str, ...] = ()
    max_new_tokens: int = 64
    native: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    parts: tuple[Document, ...] = ()
    rival: Document | None = field(default=None, repr=False, compare=False)
    sharers: tuple[View, ...] = ()
    requests: tuple[View, ...] = ()
    examples: str = ""

    @property
    def content(self) -> tuple[View, View, str]:
        """Both models' views and the right answer: equal for documents that ask the same."""
        return self.receiver, self.sharer, self.gold

    @cached_property
    def dealt(self) -> tuple[Document, ...]:
        """The document as each of its sharers meets it, with the same receiver; () where it has one."""
        alone: dict[str, Any] = {"sharers": (), "requests": ()}
        both = zip(self.sharers, self.requests, strict=True)
        return tuple(replace(self, sharer=view, request=asked, **alone) for view, asked in both)

    def met_by(self, count: int) -> tuple[Document, ...]:
        """The document as each sharer meets it: its own part, or what all read on shared contexts.

        Raises UserError where the task deals its text to another number.
        """
        if count == 1:
            return (self,)
        if not self.shared and len(self.dealt) != count:
            what = f"task {self.task} deals the sharer's text to {max(len(self.dealt), 1)}"
            step = f"Use --task-option sharers={count} where the task has it, or splitfacts_several."
            raise UserError(f"{what}, and --pair names {count} sharers.", step)
        return self.dealt or (self,) * count

    @cached_property
    def hash(self) -> str:
        """16 hex digits over all that a model could see or be scored on: the key that joins runs."""
        views = [v.seen() for v in (self.receiver, self.sharer, self.full)]
        steps = [[list(s.choices), list(s.gold), s.lead] for s in self.steps]
        seen = [
            self.task,
            self.doc_id,
            *views,
            self.scoring,
            self.gold,
            *steps,
            *(p.hash for p in self.parts),
        ]
        return hashlib.sha256(json.dumps(seen, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
