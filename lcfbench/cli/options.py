"""Flags of the command line. Those that set something are made from the fields of the settings models.

A verb with settings names its model; the model is imported only when the verb is called or its help
is asked for, so that `lcfbench --help` and mistakes in a verb's name stay quick:

    @app.command()
    @flags("lcfbench.evaluation.recipe:Recipe")
    def run(recipe: RecipeOption = None, **given: Any) -> None: ...
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

from lcfbench.cli.clean import clean
from lcfbench.errors import UserError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from lcfbench.config import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the adapter in --out.")]
OfflineOption = Annotated[
    bool | None,
    typer.Option("--offline/--online", envvar="LCFBENCH_OFFLINE", help="Use only what is on this machine."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", envvar="LCFBENCH_OUT", help="Folder of runs. [default: results]")
]
RunsArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Results folders, run folders or parquet files. [default: results]"),
]

FLAGS = {  # of fields whose flag is not simply their name
    "adapters": ("--adapter",),
    "before": ("--with",),
    "offline": ("--offline/--online",),
    "options": ("-o", "--option"),
    "task_options": ("--task-option",),
    "train_options": ("--train-option",),
}
# fields that LCFBENCH_* sets for every verb
SHARED = ("pair", "dtype", "device", "receiver_device", "sharer_device", "device_map", "offline")
Verb = TypeVar("Verb", bound=Callable[..., None])


class VerbGroup(TyperGroup):
    """A group of verbs whose settings become flags at the moment a verb is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the verb, with its flags. Click calls it to run a verb, print its help or complete it."""
        name, command, rest = super().resolve_command(ctx, args)
        declare = getattr(getattr(command, "callback", None), "declare", None)
        command = declare(name) if declare else command
        if command is not None:
            if not (hasattr(command, "commands") or command.ignore_unknown_options):  # another's words
                _refuse_empty(rest, f"{ctx.command_path} {name}")
            help_of = command.get_help
            command.get_help = lambda ctx: clean(help_of(ctx))  # type: ignore[method-assign]
        return name, command, rest

    def get_help(self, ctx: Any) -> str:
        return clean(super().get_help(ctx))


def _refuse_empty(words: list[str], path: str) -> None:
    """Raises UserError for an empty value: typer reads an empty path as the current folder."""
    for before, word in pairwise(["", *words]):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            name = word.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise UserError(f"{name} is empty.", f"Give it a value, or leave it out. See `{path} --help`.")


def group(help: str, completion: bool = False) -> typer.Typer:
    """Makes a group of verbs: plain help, errors left to `main`."""
    return typer.Typer(
        cls=VerbGroup,
        no_args_is_help=True,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=help,
    )


def late(parameters: Callable[[], list[inspect.Parameter]]) -> Callable[[Verb], Verb]:
    """Gives a verb, beside its own parameters, those that a function makes once the verb is called."""

    def decorated(verb: Verb) -> Verb:
        own = [
            p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD
        ]
        taken = {p.name for p in own}

        def declare(name: str) -> Any:
            def command(**given: Any) -> None:
                verb(**given)

            made = [p for p in parameters() if p.name not in taken]
            command.__doc__ = verb.__doc__
            command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
            command.__annotations__ = {}
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(name)(command)
            made_command = typer.main.get_command(app)
            for option in made_command.params:
                if getattr(option, "multiple", False):
                    option.value_from_envvar = partial(_whole, option)  # type: ignore[method-assign]
            return made_command

        verb.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        verb.declare = declare  # type: ignore[attr-defined]
        return verb

    return decorated


def _whole(option: Any, context: Any) -> list[str] | None:
    """The value of an option's variable as one text: click splits it at spaces, which paths may have."""
    text = option.resolve_envvar_value(context)
    return [text] if text else None


def flags(model: str, environment: Iterable[str] = SHARED) -> Callable[[Verb], Verb]:
    """Gives a verb a flag for each field of a settings model that is not one of its own parameters.

    model: `module:Class`. environment: the fields that a variable LCFBENCH_FIELD also sets. The verb
    gets them as keywords, None where they were not given; `merged` makes the model of them.
    """

    def parameters() -> list[inspect.Parameter]:
        module, _, kind = model.partition(":")
        fields = getattr(importlib.import_module(module), kind).model_fields
        return [flag(name, field, name in environment) for name, field in fields.items()]

    return late(parameters)


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter of a verb that has no default where none is given."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def merged(model: type[Settings], given: dict[str, Any], recipe: str | None, section: str) -> Any:
    """The settings that flags and a recipe ask for. Raises UserError for what is wrong in them."""
    from lcfbench.config import parse_several

    chosen: dict[str, Any] = {}
    for name, value in given.items():
        kind = _kind(model.model_fields[name])
        if kind is dict:
            *_, values = get_args(model.model_fields[name].annotation)
            given_as = "-o" if name == "options" else f"--{name.replace('_', '-')}"
            value = parse_several(value, given_as)
            if values is str:  # one that is given twice has both values, as with a comma
                value = {key: ",".join(dict.fromkeys(each)) for key, each in value.items()}
        elif kind is list and value and _has_commas(name, model.model_fields[name]):
            value = ",".join(value)
        chosen[name] = value
    return model.merge(recipe, chosen, section)


def _kind(field: FieldInfo) -> Any:
    """The type of a field, without None: list, dict, Literal or the plain type."""
    hint = field.annotation
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    return get_origin(hint) or hint


def flag(name: str, field: FieldInfo, variable: bool) -> inspect.Parameter:
    """The flag of a field: its name, type, choices, default and help. variable: LCFBENCH_NAME sets it too."""
    kind, text = _kind(field), field.description or ""
    hint = {list: list[str], dict: list[str]}.get(kind, kind if kind in (int, float, bool) else str)
    repeatable = kind is dict or (kind is list and not _has_commas(name, field))
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if kind is list:
        default = ",".join(map(str, default or ()))
    if repeatable:
        text += " Repeatable."
    if default not in (None, "", {}) and kind is not bool:
        text += f" [default: {default:g}]" if isinstance(default, float) else f" [default: {default}]"
    option = typer.Option(
        *FLAGS.get(name, (f"--{name.replace('_', '-')}",)),
        help=text,
        metavar=_metavar(kind, field.annotation, repeatable),
        envvar=f"LCFBENCH_{name.upper()}" if variable else None,
        show_default=False,
    )
    if field.is_required():
        return parameter(name, Annotated[hint, option])
    return parameter(name, Annotated[hint | None, option], None)  # type: ignore[valid-type]


def _metavar(kind: Any, annotation: Any, repeatable: bool) -> str | None:
    """The value of a flag in its help: choices, KEY=VALUE, a list, or a type."""
    choices = [
        c
        for hint in (annotation, *get_args(annotation))
        if get_origin(hint) is Literal
        for c in get_args(hint)
    ]
    if choices:
        return "|".join(choices)
    names = {
        dict: "KEY=VALUE",
        list: "VALUE" if repeatable else "A,B,…",
        Path: "PATH",
        int: "INTEGER",
        float: "NUMBER",
    }
    return None if kind is bool else names.get(kind, "TEXT")


def _has_commas(name: str, field: FieldInfo) -> bool:
    """Whether a list is written with commas; paths and adapters with options are given one by one."""
    return name not in FLAGS and Path not in get_args(field.annotation)
