"""`lcfbench adapter …`: sizes, contents, and fusers in C2C's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lcfbench.cli_options import OfflineOption, OptionsOption, PairOption

adapter_app = typer.Typer(no_args_is_help=True, help="Sizes and contents of adapters.", rich_markup_mode=None)


@adapter_app.command("size")
def adapter_size(
    mode: Annotated[str, typer.Option(help="lcf, lcfx or c2c.")] = "lcf",
    pair: PairOption = None,
    option: OptionsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    offline: OfflineOption = None,
) -> None:
    """Parameters and bytes of an adapter from the geometry of the pair alone: no weights, no network.

    Options are those of the adapter (width, hidden, …) and `layers`, the number of receiver layers it keeps.
    """
    from lcfbench.recipe import parse_assignments
    from lcfbench.ui.lists import size_of

    size = size_of(mode, pair or "smollm2-135m:gemma3-270m", parse_assignments(option, "-o"), bool(offline))
    typer.echo(
        json.dumps(size) if as_json else "{kind} {pair}: {params:,} parameters in {layers} layers, {mb_bf16} MB in bf16".format(**size)
    )


@adapter_app.command("info")
def adapter_info(
    folder: Annotated[Path, typer.Argument(help="An adapter folder, its weights file, or the name of a shipped one.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What an adapter fits, how large it is, how it was trained, which gates are open."""
    from lcfbench.ui.lists import print_adapter

    print_adapter(folder, as_json)


@adapter_app.command("import-c2c")
def adapter_import(
    folder: Annotated[Path, typer.Argument(help="A fuser as C2C releases them: config.json and final/.")],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the adapter in --out.")] = False,
) -> None:
    """Make an adapter of a fuser in C2C's released layout."""
    from lcfbench.ui.lists import import_fuser

    typer.echo(import_fuser(folder, out, force))
