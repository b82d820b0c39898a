"""identical: the receiver's own model stands in for the sharer, through an adapter trained that way: what a second model adds is the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.errors import UserError
from lcfbench.methods.lcf import LCF
from lcfbench.tasks.document import Document


@dataclass
class Identical(LCF):
    """An LCF, LCF-X or C2C adapter of the pair A:A (C2C, arXiv 2510.03215v2, its "identical" row; methods.md, section 7). Only A is loaded.

    On different contexts the receiver's model reads the sharer's view too, so this says what a sharer that thinks exactly alike is worth.
    """

    roles: ClassVar[tuple[str, ...]] = ("receiver",)
    adapter_kinds: ClassVar[tuple[str, ...]] = ("lcf", "lcfx", "c2c")

    def __post_init__(self) -> None:
        self.sharer = self.receiver
        super().__post_init__()

    def check(self, document: Document) -> None:
        assert self.adapter is not None
        if not self.pooled and not document.shared:
            raise UserError(
                f"task {document.task} gives the models different contexts; this {self.adapter.config.kind} adapter fuses token by token.",
                "Use an LCF-X adapter (kind lcfx).",
            )
