"""README and docs: reference pages are current, links resolve, shown commands exist, README stays short."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "examples", "examples/plugin", "results", "results/ablation")
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name / "README.md" for name in FOLDERS),
]
PAGES = [path for path in WRITTEN if path.is_file()]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
MAKE = re.compile(r"\bmake ([a-z]+)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


def test_reference_pages_are_current() -> None:
    """`make docs` (or `python docs/generate.py`) writes them again."""
    assert generate().stale() == []


def test_every_column_and_manifest_key_has_a_meaning() -> None:
    page = (ROOT / "docs" / "reference" / "results.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if not row.rstrip(" |").strip() or row.endswith("|  |")] == []


# -- links ---------------------------------------------------------------------------------------------------


def prose(path: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", path.read_text()))


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs name them."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    shown = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    own = {page for page in shown if not page.startswith("repository/")}
    assert own == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert [page for page in shown - own if not (ROOT / page.removeprefix("repository/")).is_file()] == []


def test_the_site_builds(tmp_path: Path) -> None:
    """`make docs`: mkdocs fails for broken links and for pages outside the navigation."""
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "results" / "frontier-shared.png").is_file()


# -- commands ------------------------------------------------------------------------------------------------


@cache
def verbs() -> dict[tuple[str, ...], tuple[Any, Any]]:
    return {path[1:]: (command, context) for path, command, context in generate().commands()}


def shown_commands(path: Path) -> list[str]:
    """Lines of shell blocks and YAML blocks, and code in the text, that call the command line."""
    text = path.read_text()
    blocks = [body for language, body in BLOCK.findall(text) if language in ("bash", "yaml", "")]
    lines = [
        re.sub(r"^\s*(- )?(run: )?", "", part)
        for body in blocks
        for line in body.splitlines()
        for part in line.split(";")
    ]
    inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    return [line for line in [*lines, *inline] if line.startswith(("lcfbench ", "accelerate launch "))]


def problem(line: str) -> str | None:
    """Why the command line does not take this; None where it does. Values are not looked at."""
    line = re.split(r"\|\|?\s|&&", line)[0].replace("…", "")
    line = re.sub(r"^accelerate launch .*-m (?=lcfbench )", "", line)
    if line.startswith("accelerate "):  # not ours
        return None
    words = shlex.split(line, comments=True)[1:]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in verbs():
        path = (*path, words.pop(0))
    if path == ("lm-eval",):  # its words are lm-eval's
        return None
    command, context = verbs()[path]
    if hasattr(command, "list_commands") and words:
        alternatives = words[0].split("|")
        if all((*path, word) in verbs() for word in alternatives):
            return None
        if not (words[0].startswith("-") or "lcfbench" in words[0]):
            return f"no verb {words[0]}"
    known = {option for p in command.get_params(context) for option in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in words if re.match(r"--?[a-zA-Z]", w) and w.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name)
def test_shown_commands_exist(path: Path) -> None:
    bad = {line: why for line in shown_commands(path) if (why := problem(line))}
    assert bad == {}


def test_the_check_of_commands_finds_mistakes() -> None:
    assert problem("lcfbench run --mode lcf --task splitfacts -o width=3") is None
    assert problem("lcfbench run --modus lcf") == "no option --modus"
    assert problem("lcfbench fly --mode lcf") == "no verb fly"
    assert problem("lcfbench adapter fly x") == "no verb fly"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_shown_make_targets_and_modules_exist(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    code = "\n".join([*(body for _, body in BLOCK.findall(text)), *re.findall(r"`([^`\n]+)`", text)])
    assert set(MAKE.findall(code)) - targets == set()
    for module in re.findall(r"python -m (benchmarks\.\w+|lcfbench[\w.]*)", code):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or place.is_dir()


@pytest.mark.parametrize("path", [p for p in PAGES if "reference" not in p.parts], ids=name)
def test_shown_python_calls_what_there_is(path: Path) -> None:
    """Names of the package exist, and calls give keywords that it takes."""
    import lcfbench

    settings = {
        "run": lcfbench.Recipe.model_fields,
        "plan": lcfbench.Recipe.model_fields,
        "train": lcfbench.TrainRecipe.model_fields,
    }
    for language, body in BLOCK.findall(path.read_text()):
        for node in ast.walk(ast.parse(body)) if language == "python" else ():
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lcfbench":
                assert node.attr in lcfbench.__all__
            if isinstance(node, ast.Call) and re.fullmatch(r"lcfbench\.\w+", ast.unparse(node.func)):
                verb = ast.unparse(node.func).removeprefix("lcfbench.")
                known = {*inspect.signature(getattr(lcfbench, verb)).parameters, *settings.get(verb, ())}
                assert {word.arg for word in node.keywords} <= known
