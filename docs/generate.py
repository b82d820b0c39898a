"""Writes `docs/reference/*.md` and `docs/benchmarks/*.md` from the code that they describe.

python docs/generate.py            # writes the pages that changed
python docs/generate.py --check    # writes nothing; ends with 1 where a page is not current
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
WHOLE = ("reference", "benchmarks")  # folders that hold nothing else
NOTE = "<!-- written by docs/generate.py: change the code, then run `make docs` -->\n"


CLAIMS = """# What papers claim, and what holds here

Each paper's headline claim, the measurement here that is closest to it, and a verdict. The rows are in
`results/claims`, each folder with its `recipe.yaml`; this page is made from them. The same verdicts of your
own runs, on your models and tasks:

```bash
lcfbench run --recipe results/claims/split/recipe.yaml --out my-claims/split
lcfbench claims my-claims
```

The models here are small (135 and 270 million parameters), one seed: that a claim does not hold here says
nothing of the models that its paper used, and that one is not measured says nothing at all."""


def pages() -> dict[str, str]:
    """The text of every reference page, by file name."""
    made = {
        "cli.md": cli(),
        "api.md": api(),
        "options.md": options(),
        "tasks.md": tasks(),
        "results.md": results(),
        "recipes.md": recipes(),
        "published.md": published(),
        "plugin.md": plugin(),
    }
    return {name: f"{NOTE}\n{text.strip()}\n" for name, text in made.items()}


def every_page() -> dict[Path, str]:
    """The text of every page that is written here, by path."""
    sys.path.insert(0, str(ROOT / "docs"))
    import benchmark_pages

    made = {REFERENCE / name: text for name, text in pages().items()}
    made |= {ROOT / "docs" / "claims.md": f"{NOTE}\n{claims().strip()}\n"}
    return made | {path: f"{NOTE}\n{text.strip()}\n" for path, text in benchmark_pages.pages().items()}


def claims() -> str:
    """What papers claim, held against the runs of `results/claims`."""
    from lcfbench.analysis.claims import judge_claims, page
    from lcfbench.analysis.run_groups import read_run_groups

    found = read_run_groups([ROOT / "results" / "claims"])
    if found.warnings:
        raise SystemExit("\n".join(found.warnings))
    return "\n\n".join([CLAIMS, page(judge_claims(found.groups))])


def stale() -> list[str]:
    """The pages whose file is not what the code says."""
    return [_shown(path) for path, text in every_page().items() if _read(path) != text]


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# -- the command line ------------------------------------------------------------------------------------


def cli() -> str:
    """`--help` of every verb."""
    parts = [
        "# Command line",
        "What `--help` prints for every verb. Settings come from a YAML file (`--recipe`), then from"
        " environment variables (`LCFBENCH_*`), then from flags; the later wins.",
    ]
    for path, command, context in commands():
        name = " ".join(path)
        parts += [f"{'#' * min(len(path) + 1, 3)} {name}", f"```text\n{_help(command, context)}\n```"]
    return "\n\n".join(parts)


def commands() -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every command of the command line, groups before their verbs: words, command, context."""
    import typer

    from lcfbench.cli.app import app

    yield from _below(("lcfbench",), typer.main.get_command(app), None)


def _below(path: tuple[str, ...], command: Any, parent: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    context = command.context_class(
        command, info_name=path[-1], parent=parent, terminal_width=100, max_content_width=100
    )
    yield path, command, context
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            _, found, _ = command.resolve_command(context, [name])  # now a verb has its flags
            yield from _below((*path, name), found, context)


def _help(command: Any, context: Any) -> str:
    return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


# -- the Python API --------------------------------------------------------------------------------------


def api() -> str:
    """Signatures and docstrings of the names that `import lcfbench` gives."""
    import lcfbench

    parts = ["# Python API", f"`import lcfbench`. {_prose(lcfbench.__doc__)}"]
    names = [name for name in getattr(lcfbench, "__all__", []) if not name.startswith("_")]
    found = {name: getattr(lcfbench, name) for name in names}
    for name, thing in sorted(found.items(), key=lambda item: (inspect.isclass(item[1]), item[0])):
        parts += [f"## {name}", *(_class(name, thing) if inspect.isclass(thing) else _function(name, thing))]
    return "\n\n".join(parts)


def _function(name: str, thing: Any) -> list[str]:
    text = _documented(thing.__doc__, inspect.signature(thing).parameters)
    return [f"```python\n{name}{_signature(thing)}\n```", text]


def _class(name: str, kind: type) -> list[str]:
    fields = [key for base in kind.__mro__ for key in vars(base).get("__annotations__", {})]
    parts = [_documented(kind.__doc__, fields)]
    if settings := getattr(kind, "model_fields", None):
        heads = ("setting", "type", "default", "meaning")
        parts.append(_table(heads, [_setting(key, field) for key, field in settings.items()]))
    members = []
    for key, member in vars(kind).items():
        if key.startswith("_") or not getattr(member, "__doc__", None):
            continue
        text = " ".join((inspect.getdoc(member) or "").split())
        if isinstance(member, property):
            members.append(f"- `{key}`: {text}")
        elif inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
            members.append(f"- `{key}{_signature(getattr(kind, key), wide=True)}`: {text}")
    return [*parts, *(["Members:", "\n".join(members)] if members else [])]


def _documented(text: str | None, names: Iterable[str]) -> str:
    """A docstring whose `name: meaning` parts are a list."""
    left, meanings = _explained(text or "", names)
    listed = "\n".join(f"- `{key}`: {meaning}" for key, meaning in meanings.items())
    before, sign, errors = left.partition("Raises ") if listed else (left, "", "")
    return "\n\n".join(part for part in (_prose(before), listed, sign + errors) if part)


def _signature(thing: Any, wide: bool = False) -> str:
    """The signature without `self`; over several lines where it is long, if not `wide`."""
    signature = inspect.signature(thing)
    shown = [_parameter(p) for p in signature.parameters.values() if p.name != "self"]
    kinds = [p.kind for p in signature.parameters.values() if p.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    given_back = signature.return_annotation
    back = "" if given_back is inspect.Signature.empty else f" -> {_type(given_back)}"
    line = f"({', '.join(shown)}){back}"
    return line if wide or len(line) < 90 else "(\n" + "".join(f"    {p},\n" for p in shown) + f"){back}"


def _parameter(parameter: inspect.Parameter) -> str:
    """A parameter as it is written in a signature."""
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    of = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
    equals = " = " if of else "="
    default = "" if parameter.default is parameter.empty else f"{equals}{parameter.default!r}"
    return f"{star}{parameter.name}{of}{default}"


def _setting(key: str, field: Any) -> tuple[str, ...]:
    """A pydantic field as a table row."""
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else f"`{default}`"
    return f"`{key}`", f"`{_type(field.annotation)}`", shown, field.description or ""


# -- methods, adapters, tasks ----------------------------------------------------------------------------


def options() -> str:
    """Options of every method and of every kind of adapter."""
    from lcfbench.adapters.base import Adapter, adapter_class
    from lcfbench.methods.base import option_fields
    from lcfbench.methods.create import method_class

    parts = [
        "# Options of methods and adapters",
        "`-o KEY=VALUE` sets an option of the method (`run`, `bench`) or of the adapter (`train`,"
        " `adapter size`). An option that no method or adapter knows is an error.",
        "## Methods",
    ]
    for name in _ours("methods"):
        kind = method_class(name)
        parts += [
            f"### {name}",
            *_options(kind, {f.name: (f.type, _default(f)) for f in option_fields(kind)}),
        ]
        if kind.adapter_kinds:
            may = " It runs without one too." if kind.adapter_optional else ""
            parts.append(f"Adapter: {', '.join(f'`{k}`' for k in kind.adapter_kinds)}.{may}")
    parts += ["## Adapters", "The defaults are the papers'; `train` starts from the small-scale settings."]
    parts.append(_prose(Adapter.__doc__))
    for name in _ours("adapters"):
        kind = adapter_class(name)
        parameters = inspect.signature(kind.__init__, eval_str=True).parameters.values()
        known = {p.name: (p.annotation, p.default) for p in parameters if p.name not in ("self", "config")}
        parts += [f"### {name} adapter", *_options(kind, known)]
    return "\n\n".join(parts)


def _ours(group: str) -> list[str]:
    """Names that come with the package, without those of plugins on this machine."""
    from lcfbench import registry

    return [name for name in registry.names(group) if registry.find(group, name).source == registry.OURS]


def _options(kind: type, known: dict[str, tuple[Any, Any]]) -> list[str]:
    """The docstring of a class, and a table of its options: name → (type, default)."""
    text, meanings = _explained(_module(kind), known)
    rows = [
        (f"`{key}`", f"`{_type(of)}`", f"`{default}`", meanings.get(key, ""))
        for key, (of, default) in known.items()
    ]
    return [_prose(text), *([_table(("option", "type", "default", "meaning"), rows)] if rows else [])]


def tasks() -> str:
    """Every task: data, contexts, scorings, options."""
    from lcfbench.tasks.yaml_files import describe

    parts = ["# Tasks", "`--task-option KEY=VALUE` sets an option of a task."]
    for name in _ours("tasks"):
        task = describe(name)
        scorings = ", ".join(
            f"`{s}`" + (" (default)" if s == task["default_scoring"] else "") for s in task["scorings"]
        )
        parts += [
            f"## {name}",
            task["description"],
            f"- contexts: {task['context']}\n- data: {task['dataset']} ({task['licence']})",
            f"- scoring: {scorings}",
        ]
        rows = [
            (f"`{key}`", f"`{option['default']}`", _option_help(option))
            for key, option in task["options"].items()
        ]
        parts += [_table(("option", "default", "what it sets"), rows)] if rows else []
    return "\n\n".join(parts)


def _option_help(option: dict[str, Any]) -> str:
    choices = f" ({', '.join(option['choices'])})" if "choices" in option else ""
    return str(option.get("help", "")) + choices


# -- what is recorded ------------------------------------------------------------------------------------


def results() -> str:
    """Every column of the rows and every key of the manifest."""
    from lcfbench.results.schema import COLUMNS, DESCRIPTIONS, KEYS, SCHEMA_VERSION

    rows = [
        (f"`{name}`", column.__name__, "" if name in KEYS else "yes", DESCRIPTIONS[name])
        for name, column in COLUMNS.items()
    ]
    return "\n\n".join(
        [
            "# Columns and manifest keys",
            f"Schema version {SCHEMA_VERSION}. Older files still open; columns that they lack are empty.",
            "## Columns",
            "`samples.parquet` has one row a document. `null`: whether the value may be missing.",
            _table(("column", "type", "null", "meaning"), rows),
            *_manifest(),
            *_identity(),
        ]
    )


def _manifest() -> list[str]:
    """The manifest's keys, then those of the objects inside it."""
    try:
        from lcfbench.results import manifest
    except ImportError:
        return []
    parts = ["## Manifest", "`manifest.json` has one object a run."]
    models = [manifest.Manifest, *_models_in(manifest.Manifest)]
    for model in models:
        rows = [
            (f"`{key}`", f"`{_type(field.annotation)}`", field.description or "")
            for key, field in model.model_fields.items()
            if not field.exclude
        ]
        above = [] if model is manifest.Manifest else [f"### {model.__name__}", _prose(model.__doc__)]
        parts += [*above, _table(("key", "type", "meaning"), rows)]
    return parts


def _identity() -> list[str]:
    """Settings and circumstances that name a run."""
    from lcfbench.evaluation.identity import BEHAVIOUR, CIRCUMSTANCES, IDENTITY_FIELDS, OTHER_FIELDS
    from lcfbench.evaluation.recipe import Recipe

    settings = [
        (f"`{key}`", "yes" if key in IDENTITY_FIELDS else "no")
        for key in Recipe.model_fields
        if key in IDENTITY_FIELDS | OTHER_FIELDS
    ]
    return [
        "## Identity",
        "`identity` in the manifest, whose digest names the run. Two runs with equal identities are one run.",
        "Settings:",
        _table(("setting", "part of the identity"), settings),
        "Circumstances, which may change without another setting (a new run then says which changed):",
        _table(("key", "meaning"), [(f"`{key}`", text) for key, text in CIRCUMSTANCES.items()]),
        f"The behaviour number is {BEHAVIOUR}. It is raised by hand where a new version of the package may"
        " answer otherwise than the one before.",
    ]


def _models_in(model: Any) -> list[Any]:
    """The pydantic models that stand inside a model, each once, in order."""
    found: list[Any] = []
    for field in model.model_fields.values():
        for kind in [field.annotation, *_inside(field.annotation)]:
            if hasattr(kind, "model_fields") and kind not in found:
                found += [kind, *(k for k in _models_in(kind) if k not in found)]
    return list(dict.fromkeys(found))


def _inside(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _inside(part)


# -- the papers ------------------------------------------------------------------------------------------


def recipes() -> str:
    """The packaged recipes in full."""
    from lcfbench.config import packaged_recipes

    parts = ["# Packaged recipes", "`--recipe NAME` takes one; flags win over what stands in it."]
    for name, path in packaged_recipes().items():
        text = path.read_text()
        verbs = [verb for verb in ("train", "run") if verb in yaml.safe_load(text)]
        shown = "\n".join(f"lcfbench {verb} --recipe {name}" for verb in verbs)
        parts += [f"## {name}", f"```bash\n{shown}\n```", f"```yaml\n{text.strip()}\n```"]
    return "\n\n".join(parts)


def published() -> str:
    """The numbers that the papers give for pairs and tasks of ours."""
    from lcfbench.analysis.plots.published import NUMBERS

    heads = ("pair", "task", "method", "score %", "metric", "adapter MB", "first token ms", "source")
    rows = [
        (
            *(n.pair, n.task, n.label, f"{100 * n.score:.2f}", n.metric),
            *(_cell(n.adapter_mb), _cell(n.ttft_ms), n.source),
        )
        for n in NUMBERS
    ]
    return "\n\n".join(
        [
            "# Published numbers",
            "Other people's measurements, with their hardware, prompts and scoring. `lcfbench plot frontier"
            " --published` draws them hollow beside yours; they are never mixed with what was measured here.",
            _table(heads, rows),
        ]
    )


def plugin() -> str:
    """The files of the example plugin."""
    folder = ROOT / "examples" / "plugin"
    files = [*sorted((folder / "lcfbench_example").rglob("*.*")), folder / "pyproject.toml"]
    parts = [
        "# The example plugin",
        "Every file of `examples/plugin`, with one method, adapter, task and control.",
    ]
    for file in (f for f in files if f.suffix in (".py", ".yaml", ".toml")):
        text, language = file.read_text(encoding="utf-8").strip(), file.suffix.strip(".")
        if len(text.splitlines()) > 2:
            parts += [f"## {file.relative_to(folder).as_posix()}", f"```{language}\n{text}\n```"]
    return "\n\n".join(parts)


# -- text ------------------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _prose(text: str | None) -> str:
    """A docstring as Markdown: examples (`>>>`, indented blocks) become code."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        code = block.startswith((">>>", "    "))
        out.append(f"```python\n{inspect.cleandoc(block)}\n```" if code else block)
    return "\n\n".join(out)


def _explained(text: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Takes `name: meaning` and `name, other: meaning` out of a docstring: what is left, and the meanings."""
    either = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)"
    start = re.compile(rf"(?:^|(?<=[.;\]] ))((?:{either})(?:, (?:{either}))*): ")
    left, found = [], {}
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith((">>>", "    ")):
            left.append(block)
            continue
        before, *parts = start.split(" ".join(block.split()))
        left += [before.strip()] if before.strip() else []
        for keys, meaning in zip(parts[::2], parts[1::2], strict=True):
            first, *others = keys.split(", ")
            meaning, sign, errors = meaning.partition("Raises ")
            left += [sign + errors] if sign else []
            found[first] = meaning.strip()
            found |= {other: f"see `{first}`" for other in others}
    return "\n\n".join(left), found


def _module(kind: type) -> str:
    """The module's first paragraph (without its name), then the class's docstring where it has its own."""
    first = (inspect.getmodule(kind).__doc__ or "").strip().partition("\n\n")[0]
    own = kind.__doc__ if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(") else ""
    first = first.partition(": ")[2] or first
    return f"{first[:1].upper()}{first[1:]}\n\n{inspect.cleandoc(own)}"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else ""


def _type(annotation: Any) -> str:
    """A type as one writes it: `list[str] | None`, or the words of a Literal."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, str):
        return annotation
    if annotation is type(None):
        return "None"
    if origin is Annotated:
        return _type(inside[0])
    if origin in (Union, UnionType):
        return " | ".join(_type(part) for part in inside)
    if origin is Literal:
        return " | ".join(repr(word) for word in inside)
    if inside and isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(_type(part) for part in inside)}]"
    return getattr(annotation, "__name__", str(annotation))


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main() -> int:
    """Writes the pages, or with `--check` names those that are not current."""
    if "--check" in sys.argv[1:]:
        old = stale()
        print("\n".join(f"{name} is not current: run `make docs`" for name in old))
        return 1 if old else 0
    made = every_page()
    for folder in {path.parent for path in made}:
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.md"):
            if path not in made and folder.name in WHOLE:
                path.unlink()
    for path, text in made.items():
        if _read(path) != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {_shown(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
