"""Text that reaches the receiver as a note: where it reads it, and how it is cut to bytes.

>>> cut_bytes("Zürich", 2), cut_bytes("Zürich", 3), cut_bytes("Zürich", 4, "last")
('Z', 'Zü', 'rich')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcfbench.methods.base import prompt
from lcfbench.models.protocol import LanguageModel
from lcfbench.tasks.document import NOTE, Document
from lcfbench.tasks.prompts import Prompt


def with_note(lm: LanguageModel, document: Document, text: str) -> Prompt:
    """Returns the receiver's prompt with the text where the task wants notes."""
    return prompt(lm, replace(document.noted, user=document.noted.user.replace(NOTE, text)), document)


def with_notes(lm: LanguageModel, documents: Sequence[Document], texts: Sequence[str]) -> list[Prompt]:
    """Returns each document's prompt with its note."""
    return [with_note(lm, d, text) for d, text in zip(documents, texts, strict=True)]


def in_one(document: Document, notes: Sequence[str]) -> str:
    """Returns the notes of several sharers as one: a line each where the task's note has its own line."""
    own_line = NOTE in document.noted.user.split("\n")
    return ("\n" if own_line else " ").join(note for note in notes if note) if len(notes) > 1 else notes[0]


def cut_bytes(text: str, limit: int, end: str = "first") -> str:
    """Returns at most `limit` UTF-8 bytes of the text, never half a character.

    end: the end of the text that is kept, `first` or `last`.
    """
    whole = text.encode()
    if len(whole) <= limit:
        return text
    return (whole[:limit] if end == "first" else whole[len(whole) - limit :]).decode(errors="ignore")
