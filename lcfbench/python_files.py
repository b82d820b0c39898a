"""Python files of tasks and plugins: what they import and define, their digest, and their import.

>>> source_files(Path("tasks/squad_split.py"))       # with the modules that it imports, directly or not
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from lcfbench.errors import UserError

PACKAGE = Path(__file__).parent
_imported_as: dict[str, str] = {}  # digest of each file beside a plugin when it was imported


def parse(file: Path) -> ast.Module:
    """The syntax tree of a file. Raises UserError where it cannot be read."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"), file.name)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file} cannot be read as Python: {error}.", "Mend the file.") from error


def files_digest(files: Iterable[Path]) -> str:
    """sha256 over the bytes of files and their places relative to the first, wherever that lies."""
    every = list(files)
    root = every[0].parent

    def place(file: Path) -> str:
        ours = PACKAGE in file.parents and root not in (file.parent, *file.parents)
        return file.name if ours else Path(os.path.relpath(file, root)).as_posix()

    parts = sorted(place(file).encode() + b"\0" + file.read_bytes() + b"\0" for file in every)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def source_files(file: Path, with_tasks: bool = False) -> list[Path]:
    """The file, then every module of its own folder or package that it imports, directly or not.

    with_tasks: modules of `lcfbench.tasks` count as well; no other module of ours ever does.
    """
    found = dict.fromkeys([file, *_inits(file)])
    todo = list(found)
    while todo:
        fresh = [f for f in dict.fromkeys(_imported(todo.pop(), with_tasks)) if f not in found]
        found |= dict.fromkeys(fresh)
        todo += fresh
    return list(found)


def _inits(file: Path) -> list[Path]:
    """`__init__.py` of each package round a file, innermost first: Python runs them before it."""
    found: list[Path] = []
    for folder in file.parents:
        if folder == PACKAGE or not (folder / "__init__.py").is_file():
            break
        found.append(folder / "__init__.py")
    return found


def _imported(file: Path, with_tasks: bool) -> Iterator[Path]:
    inits = [] if PACKAGE in file.parents else _inits(file)
    top = inits[-1].parent if inits else None
    for node in ast.walk(parse(file)):
        level, modules = 0, [""]
        if isinstance(node, ast.ImportFrom):
            level, stem = node.level, node.module or ""
            modules = [stem, *(f"{stem}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        for parts in ([p for p in module.split(".") if p] for module in modules):
            folder = file.parents[level - 1] if level else file.parent
            if not level and parts[:1] == ["lcfbench"]:
                counts = with_tasks and parts[1:2] == ["tasks"]
                folder, parts = PACKAGE / "tasks", parts[2:] if counts else []
            elif not level and top and parts[:1] == [top.name]:
                folder = top.parent
            for i in range(1, len(parts) + 1):
                here = folder.joinpath(*parts[:i])
                places = here.with_name(f"{here.name}.py"), here / "__init__.py"
                yield from (place for place in places if place.is_file())


def extended(file: Path) -> set[str]:
    """Dotted names of all classes that the classes of a file extend, judged by its imports alone."""
    tree, origin = parse(file), dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            origin |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            origin |= {a.asname: a.name for a in node.names if a.asname}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = [ast.unparse(base).partition(".") for c in classes for base in c.bases]
    return {origin.get(head, head) + dot + rest for head, dot, rest in bases}


def docstring(file: Path, class_name: str = "") -> str:
    """The first docstring line of a class, else of its module, else of a class in it; may be empty."""
    tree = parse(file)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    nodes: list[ast.ClassDef | ast.Module] = [c for c in classes if c.name == class_name]
    texts = (ast.get_docstring(node) for node in [*nodes, tree, *classes])
    return next((text.splitlines()[0] for text in texts if text), "")


def import_file(file: Path, name: str = "") -> ModuleType:
    """Imports a file that belongs to no package, anew each time; it can import files beside it.

    name: of the module; without one the file's own and a few digits of its place.
    """
    beside = {str(f): files_digest(source_files(f)) for f in source_files(file) if PACKAGE not in f.parents}
    changed = {f for f, digest in beside.items() if _imported_as.get(f, digest) != digest} | {str(file)}
    stems = {Path(f).stem for f in beside}
    for key, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        other = key in stems and place in _imported_as and place not in beside
        if place in changed or other:  # changed since, or a helper of this name from another folder
            del sys.modules[key]
    _imported_as.update(beside)
    name = name or f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # so that its classes pickle
    folder, path = str(file.parent), list(sys.path)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path if folder in path else [*path, folder]
    return module
