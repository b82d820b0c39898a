"""c2c: one fuser a layer edits the receiver's cache token by token (C2C, arXiv 2510.03215v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lcfbench.methods._fusion import Fusion


@dataclass
class C2C(Fusion):
    """Needs the same text on both sides: its fusers join token with token.

    closed: layers whose gates are both shut are `dropped` (at load, never computed) or `retained`
    (computed and gated away, as the reference does). The answers are the same, the time is not:
    published latencies are those of `retained`.
    """

    closed: Literal["dropped", "retained"] = "dropped"

    adapter_kinds: ClassVar[tuple[str, ...]] = ("c2c",)

    def __post_init__(self) -> None:
        whole = self.adapter
        super().__post_init__()
        if self.closed == "retained":
            self.adapter = whole
