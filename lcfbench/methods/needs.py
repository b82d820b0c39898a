"""Which methods a pair allows: what each needs of both models, against what they are capable of.

>>> check_needs("kvcomm", receiver, sharer)  # UserError: layers 0, 1, 2 … keep a recurrent state
"""

from __future__ import annotations

from lcfbench import registry
from lcfbench.adapters.config import AdapterConfig
from lcfbench.errors import UserError
from lcfbench.methods.base import Method
from lcfbench.models.capabilities import Capability
from lcfbench.models.protocol import LanguageModel


def check_needs(
    mode: str, receiver: LanguageModel, sharer: LanguageModel, config: AdapterConfig | None = None
) -> None:
    """Raises UserError where a model lacks what a method needs, with the methods that do work.

    config: of its adapter; without it, any adapter of the method.
    """
    for need, role, reason in lacking(mode, receiver, sharer, config):
        lm = {"receiver": receiver, "sharer": sharer}[role]
        raise UserError(
            f"{mode} needs a {role} with the capability {need!r}, which {lm.name} lacks: {reason}.",
            f"{works_with(receiver, sharer)}; see `lcfbench doctor --model {lm.name}`.",
        )


def lacking(
    mode: str, receiver: LanguageModel, sharer: LanguageModel, config: AdapterConfig | None = None
) -> list[tuple[Capability, str, str]]:
    """Returns what a method needs and does not find: the capability, the role, the reason."""
    kind: type[Method] = registry.load("methods", mode)
    models, needs = {"receiver": receiver, "sharer": sharer}, kind.needs_with(config)
    if kind.adapter_kinds and not (
        config is None and kind.adapter_optional
    ):  # the shape of its cache says which layers an adapter is for
        bare = [role for role in kind.roles if not models[role].geometry.layers]
        if bare:
            return [("edit", bare[0], models[bare[0]].capabilities.lacks("edit"))]
    return [
        (need, role, reason)
        for role in kind.roles
        for need in ("text", *needs.get(role, ()))
        if (reason := models[role].capabilities.lacks(need))
    ]


def works_with(receiver: LanguageModel, sharer: LanguageModel) -> str:
    """Names the methods that a pair allows, as a phrase."""
    able = {
        mode: registry.load("methods", mode).needs_with(None)
        for mode in registry.method_names()
        if not lacking(mode, receiver, sharer)
    }
    if not able:
        return "No method works with these models"
    only_text = not any(needs for each in able.values() for needs in each.values())
    return f"{'Text methods only' if only_text else 'With these models these work'}: {', '.join(able)}"
