"""Files of the repository that a page links to (`../results/frontier.png`) become files of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
PAGES = [
    "CHANGELOG.md",
    "benchmarks/README.md",
    "benchmarks/results/table.md",
    "examples/plugin/README.md",
    "results/README.md",
    "results/ablation/README.md",
]


def on_files(files: Files, config: Any) -> Files:
    """Adds `PAGES` and every file outside `docs/` that a page links to, below `repository/`."""
    linked = set(PAGES)
    for source in [*(ROOT / "docs").rglob("*.md"), *(ROOT / page for page in PAGES)]:
        folder = source.parent.relative_to(ROOT).as_posix()
        targets = re.findall(r"\]\(([^)#\s:]+)", source.read_text(encoding="utf-8"))
        linked |= {posixpath.normpath(posixpath.join(folder, target)) for target in targets}
    for name in sorted(linked):
        if not name.startswith(("docs/", "..")) and (ROOT / name).is_file():
            files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links that leave `docs/` to their copy."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", here, match[2]))
        if here.startswith("repository") or target.startswith(("docs", "..")):
            return match[0]
        return match[1] + posixpath.relpath(f"repository/{target}", here or ".")

    return LINK.sub(moved, markdown)
