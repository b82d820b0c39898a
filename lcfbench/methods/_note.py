"""What methods share that send text: where the receiver reads it, and how it is cut to a number of bytes.

>>> cut_bytes("Zürich", 2), cut_bytes("Zürich", 3), cut_bytes("Zürich", 4, "last")
('Z', 'Zü', 'rich')
"""

from __future__ import annotations

from dataclasses import replace

from lcfbench.methods.base import prompt
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.document import NOTE, Document
from lcfbench.tasks.prompts import Prompt

ENDS = ("first", "last")


def in_context(receiver: CausalLM, document: Document, text: str) -> Prompt:
    """The receiver's prompt with the text inside its own context, where the task wants notes."""
    return prompt(receiver, replace(document.noted, user=document.noted.user.replace(NOTE, text)), document)


def cut_bytes(text: str, limit: int, end: str = "first") -> str:
    """At most `limit` UTF-8 bytes of the text, never half a character. end: which end of it is kept, `first` or `last`."""
    whole = text.encode()
    if len(whole) <= limit:
        return text
    return (whole[:limit] if end == "first" else whole[len(whole) - limit :]).decode(errors="ignore")
