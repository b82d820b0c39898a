"""identical: a second copy of the receiver is the sharer; a second model's worth is the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.methods.lcf import LCF


@dataclass
class Identical(LCF):
    """Runs an LCF, LCF-X or C2C adapter of the pair A:A (C2C, arXiv 2510.03215v2, "identical").

    Only A is loaded. On different contexts the receiver's model reads the sharer's view too, so
    this shows the worth of a sharer that is exactly alike.
    """

    roles: ClassVar[tuple[str, ...]] = ("receiver",)
    adapter_kinds: ClassVar[tuple[str, ...]] = ("lcf", "lcfx", "c2c")

    def __post_init__(self) -> None:
        self.sharer = self.receiver
        super().__post_init__()
