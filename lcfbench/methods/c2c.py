"""c2c: one fuser a layer, K and V apart, edits the receiver's cache token by token (Cache-to-Cache, arXiv 2510.03215v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.errors import UserError, unknown
from lcfbench.methods._fusion import Fusion
from lcfbench.tasks.document import Document

CLOSED = ("dropped", "retained")


@dataclass
class C2C(Fusion):
    """Needs the same text on both sides: its fusers join token with token.

    closed: what happens to layers whose gates are both shut: `dropped` (at load, never computed) or `retained` (computed and gated away, as
    the reference does). The answers are the same, the time is not: published latencies are those of `retained`.
    """

    closed: str = "dropped"

    adapter_kinds: ClassVar[tuple[str, ...]] = ("c2c",)

    def __post_init__(self) -> None:
        if self.closed not in CLOSED:
            raise unknown("value of closed", self.closed, CLOSED, "lcfbench ls methods")
        whole = self.adapter
        super().__post_init__()
        if self.closed == "retained":
            self.adapter = whole

    def check(self, document: Document) -> None:
        if not document.shared:
            raise UserError(
                f"task {document.task} gives the models different contexts; C2C fuses token by token.",
                "Use --mode lcf, t2t or kvcomm there.",
            )
