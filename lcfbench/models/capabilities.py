"""What a loaded model allows, and why it does not allow the rest.

`text`: it reads and writes. `edit`: entries of its cache can be read out and changed in place.
`prefix`: entries can be put in front of a text. `handover`: its cache is all that it keeps of a text,
so that another text can follow on a copy of it. `rotate`: keys can be moved to other positions.
`latent`: its last hidden state can be its next input. `activations`: hidden states between its layers
can be read and changed.

>>> lm.capabilities.lacks("rotate")
"layer 0's values change with the position (positions are absolute)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from lcfbench.models import activations
from lcfbench.models.latent import lacking
from lcfbench.models.layout import layers_named

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

Capability = Literal["text", "edit", "prefix", "handover", "rotate", "latent", "activations"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)
CACHE: tuple[Capability, ...] = ("text", "edit", "prefix", "handover", "rotate")  # of reading and its cache
MEANING: dict[Capability, str] = {
    "text": "reads and writes text",
    "edit": "entries of its cache can be read out and changed",
    "prefix": "entries can be put in front of a text",
    "handover": "a text can follow on another one's cache",
    "rotate": "keys can be moved to other positions",
    "latent": "its last hidden state can be its next input",
    "activations": "hidden states between its layers can be read and changed",
}


@dataclass(frozen=True)
class Capabilities:
    """missing: the reason why a capability is not there, by its name."""

    missing: Mapping[str, str] = field(default_factory=dict)

    def lacks(self, name: str) -> str:
        """The reason why a capability is missing; empty where it is there."""
        return self.missing.get(name, "")

    def record(self) -> dict[str, str | bool]:
        """Each capability as JSON: true, or the reason why not."""
        return {name: self.missing.get(name) or True for name in CAPABILITIES}


def presumed(lm: CausalLM) -> Capabilities:
    """What a model that was not checked should allow, by what its cache keeps and how it is read."""
    if lm.reading == "whole":
        return Capabilities(dict.fromkeys(CAPABILITIES[1:], lm.layout.reason or "its cache is not used"))
    missing = {}
    if lm.layout.recurrent:
        missing["handover"] = f"{layers_named(lm.layout.recurrent)} keep a recurrent state"
    if lm.weights and lm.rotary.reason:  # texts are read to find out
        missing["rotate"] = lm.rotary.reason
    if why := lacking(lm):
        missing["latent"] = why
    if why := activations.lacking(lm):
        missing["activations"] = why
    return Capabilities(missing)
