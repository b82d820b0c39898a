"""Which methods there are: the files of `methods/`, read as text, so that listing them costs no import of torch."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent / "methods"


def method_names() -> list[str]:
    """Names of all methods: the files of this folder that are not helpers. Imports none of them."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_") and p.stem != "base")


def method_summaries() -> dict[str, str]:
    """First docstring line of every method, read without importing it."""
    return {n: (ast.get_docstring(ast.parse((FOLDER / f"{n}.py").read_text())) or "").splitlines()[0] for n in method_names()}
