"""Which methods and kinds of adapter there are: the files of their folders, so that listing them costs no import of torch."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
NO_METHODS = {"base", "create", "load_pair"}
NO_KINDS = {"base", "config", "files", "card", "hub", "select", "dense_fit", "ridge", "c2c_files"}


def method_names() -> list[str]:
    """Names of all methods: the files of `methods/` that are no helpers. Imports none of them."""
    return _names("methods", NO_METHODS)


def method_summaries() -> dict[str, str]:
    """First docstring line of every method, read without importing it."""
    folder = PACKAGE / "methods"
    return {
        n: (ast.get_docstring(ast.parse((folder / f"{n}.py").read_text())) or "").splitlines()[0]
        for n in method_names()
    }


def kinds() -> list[str]:
    """Kinds of adapter: the files of `adapters/` that are no helpers."""
    return _names("adapters", NO_KINDS)


def _names(folder: str, helpers: set[str]) -> list[str]:
    return sorted(
        p.stem
        for p in (PACKAGE / folder).glob("*.py")
        if not p.stem.startswith("_") and p.stem not in helpers
    )


@cache
def class_in(module: str, base: type) -> type:
    """The one class of a module that is a subclass of `base`."""
    found = [
        c
        for c in vars(importlib.import_module(module)).values()
        if isinstance(c, type) and issubclass(c, base) and c.__module__ == module
    ]
    assert len(found) == 1, f"{module} must define exactly one {base.__name__}, found {found}"
    return found[0]
