"""c2c: one fuser a layer, K and V apart, edits the receiver's cache token by token (Cache-to-Cache, arXiv 2510.03215v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.document import Document
from lcfbench.errors import UserError
from lcfbench.methods._fusion import Fusion


@dataclass
class C2C(Fusion):
    """Needs the same text on both sides: its fusers join token with token."""

    adapter_kinds: ClassVar[tuple[str, ...]] = ("c2c",)

    def check(self, document: Document) -> None:
        if not document.shared:
            raise UserError(
                f"task {document.task} gives the models different contexts; C2C fuses token by token.",
                "Use --mode lcf, t2t or kvcomm there.",
            )
