"""From a method's name to a method ready to respond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from lcfbench import registry
from lcfbench.adapters.base import Adapter
from lcfbench.errors import UserError, unknown
from lcfbench.methods.base import Method, option_fields
from lcfbench.models.causal_lm import CausalLM


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises UserError with the nearest names when there is none."""
    return registry.load("methods", name)


def sides(kind: type[Method], first: str, second: str) -> tuple[str, str]:
    """Which of a pair's models stand on both sides: one alone stands on both, and on the side it is not used it is never called."""
    alone: dict[tuple[str, ...], tuple[str, str]] = {
        ("receiver",): (first, first),
        ("sharer",): (second, second),
    }
    return alone.get(kind.roles, (first, second))


def check_options(kinds: Mapping[str, type[Method]], given: Iterable[str]) -> None:
    """Raises UserError for an option that none of these methods has."""
    known = {f.name for kind in kinds.values() for f in option_fields(kind)}
    for key in given:
        if key not in known:
            raise unknown(f"option of {', '.join(kinds)}", key, known, "lcfbench ls methods")


def parse_options(kind: type[Method], name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Option texts from the command line, converted to the fields' types. UserError for unknown names and unfit values."""
    fields, hints = {f.name: f for f in option_fields(kind)}, get_type_hints(kind)
    out: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            raise unknown(
                f"option of {name}",
                key,
                fields,
                f"lcfbench ls methods  ({name} takes {', '.join(fields) or 'no options'})",
            )
        try:
            out[key] = hints[key](text)
        except ValueError as error:
            raise UserError(
                f"option {key}={text} of {name} must be of type {hints[key].__name__}.",
                f"Default: {fields[key].default}.",
            ) from error
    return out


def create(
    name: str,
    receiver: CausalLM,
    sharer: CausalLM,
    adapter: Adapter | None = None,
    options: Mapping[str, str] | None = None,
) -> Method:
    """A method ready to respond."""
    kind = method_class(name)
    if kind.adapter_kinds and adapter is None:
        raise UserError(
            f"method {name} needs an adapter and none ships for {receiver.name}:{sharer.name}.",
            "Pass --adapter FOLDER, or make one with `lcfbench train`.",
        )
    if adapter is not None and kind.adapter_kinds and adapter.config.kind not in kind.adapter_kinds:
        raise UserError(
            f"method {name} runs adapters of kind {', '.join(kind.adapter_kinds)}, not {adapter.config.kind}.",
            f"Use --mode {adapter.config.own_method}.",
        )
    chosen = parse_options(kind, name, options or {})
    if (
        adapter is not None and kind.adapter_kinds
    ):  # what it was trained under holds where nothing else is asked for
        trained = adapter.config.training.get("method_options") or {}
        chosen = {f.name: trained[f.name] for f in option_fields(kind) if f.name in trained} | chosen
    return kind(receiver, sharer, adapter if kind.adapter_kinds else None, **chosen)
