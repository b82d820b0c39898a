"""Makes a method, ready to respond, from its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from lcfbench import registry
from lcfbench.adapters.base import Adapter, own_method
from lcfbench.config import convert
from lcfbench.errors import UserError, unknown
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.needs import check_needs
from lcfbench.models.protocol import LanguageModel


def method_class(name: str) -> type[Method]:
    """Returns the class of a method. Raises UserError with the nearest names when there is none."""
    return registry.load("methods", name)


def sides(kind: type[Method], first: str, second: str) -> tuple[str, str]:
    """Returns the models of both sides: a method that runs one model has it on both."""
    left = first if "receiver" in kind.roles else second
    return left, second if "sharer" in kind.roles else first


def parse_options(kind: type[Method], name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Converts option texts to the types of the method's fields.

    Raises UserError for unknown names and unfit values.
    """
    fields, hints = {f.name: f for f in option_fields(kind)}, get_type_hints(kind, include_extras=True)
    out: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            listing = "lcfbench ls methods"
            raise unknown(f"option of {name}", key, fields, listing)
        out[key] = convert(key, text, hints[key], fields[key].default, name)
    return out


def create(
    name: str,
    receiver: LanguageModel,
    sharer: LanguageModel,
    adapter: Adapter | None = None,
    options: Mapping[str, str] | None = None,
) -> Method:
    """Makes a method ready to respond.

    Options that an adapter was trained under hold where no other value is given. Raises UserError
    where the adapter is missing or of another kind, and where a model lacks what the method needs.
    """
    kind = method_class(name)
    if kind.adapter_kinds and adapter is None and not kind.adapter_optional:
        raise UserError(
            f"method {name} needs an adapter and none ships for {receiver.name}:{sharer.name}.",
            "Pass --adapter FOLDER, or make one with `lcfbench train`.",
        )
    if adapter is not None and kind.adapter_kinds and adapter.config.kind not in kind.adapter_kinds:
        raise UserError(
            f"method {name} runs {', '.join(kind.adapter_kinds)} adapters, not {adapter.config.kind}.",
            f"Use --mode {own_method(adapter.config.kind)}.",
        )
    check_needs(name, receiver, sharer, adapter.config if adapter is not None else None)
    chosen = parse_options(kind, name, options or {})
    if adapter is not None and kind.adapter_kinds:
        trained = adapter.config.training.get("method_options") or {}
        chosen = {f.name: trained[f.name] for f in option_fields(kind) if f.name in trained} | chosen
    return kind(receiver, sharer, adapter if kind.adapter_kinds else None, **chosen)
