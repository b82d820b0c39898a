"""Every Eval Ever's own validator, where its package is there.

It wants Python 3.12 and an older huggingface_hub, so that it mostly stands in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from lcfbench.errors import UserError

SEPARATELY = (
    "not validated here; in an environment of its own: uvx --from every-eval-ever every_eval_ever validate "
    "'{out}/data/*/*/*/*.json*'"
)


def validated(out: Path, records: Sequence[Path]) -> str:
    """Returns the version of the validator that found nothing wrong; empty where it is not there.

    out: the folder that holds `data`. Raises UserError with its first finding.
    """
    if not find_spec("every_eval_ever"):
        return ""
    core = import_module("every_eval_ever.validator.validation_core")
    files = [f for r in records for f in (r, r.with_name(f"{r.stem}_samples.jsonl"))]
    names = {path.relative_to(out).as_posix(): path for path in files}
    for name, path in names.items():
        report = core.validate_file(
            path,
            repo_path=name,
            available_files=frozenset(names),
            read_repo_file=lambda asked: names[asked].read_text("utf-8"),
            run_semantic_checks=True,
        )
        if found := [*report.errors, *report.warnings]:
            first = f"{found[0].get('loc')}: {found[0].get('msg')}"
            raise UserError(f"{path} is not valid by every-eval-ever ({first}).", "Please report this.")
    try:
        return version("every-eval-ever")
    except PackageNotFoundError:
        return "of this folder"
