"""`lcfbench adapter …`: sizes, contents, pruning, the Hub, and fusers in C2C's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.options import (
    DeviceOption,
    DtypeOption,
    OfflineOption,
    OptionsOption,
    PairOption,
    TaskOptionsOption,
)
from lcfbench.errors import UserError

adapter_app = typer.Typer(
    no_args_is_help=True,
    help="Adapters: size, contents, pruning, to and from the Hub.",
    rich_markup_mode=None,
)


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
    from lcfbench.cli.lists import size_of
    from lcfbench.config import parse_assignments

    size = size_of(mode, pair or "smollm2-135m:gemma3-270m", parse_assignments(option, "-o"), bool(offline))
    typer.echo(
        json.dumps(size)
        if as_json
        else "{kind} {pair}: {params:,} parameters in {layers} layers, {mb_bf16} MB in bf16".format(**size)
    )


@adapter_app.command("info")
def adapter_info(
    folder: Annotated[
        Path, typer.Argument(help="An adapter folder, its weights file, or the name of a shipped one.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What an adapter fits, how large it is, how it was trained, which gates are open."""
    from lcfbench.cli.lists import print_adapter

    print_adapter(folder, as_json)


@adapter_app.command("import-c2c")
def adapter_import(
    fuser: Annotated[
        str, typer.Argument(help="A fuser as C2C releases them: a folder, or ORG/NAME/SUBFOLDER on the Hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    dtype: Annotated[str, typer.Option(help="bf16 or fp32: of the matrices as saved.")] = "bf16",
    force: Annotated[bool, typer.Option("--force", help="Replace the adapter in --out.")] = False,
    offline: OfflineOption = None,
) -> None:
    """Make an adapter of a fuser in C2C's released layout.

    For instance nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser.
    """
    import torch

    from lcfbench.adapters.c2c_files import import_to

    if dtype not in ("bf16", "fp32"):
        raise UserError(f"--dtype {dtype}.", "Use bf16 or fp32.")
    adapter = import_to(
        fuser,
        out,
        force=force,
        dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
        offline=bool(offline),
    )
    typer.echo(
        f"saved {out}: {adapter.params:,} parameters for {adapter.config.receiver}:{adapter.config.sharer}"
    )


@adapter_app.command("prune")
def adapter_prune(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, or the name of a shipped one.")],
    dev: Annotated[str, typer.Option(help="Task whose validation split decides; never the test split.")],
    keep: Annotated[
        int | None, typer.Option(help="Layers that stay at most. [default: all that help]")
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(envvar="LCFBENCH_PAIR", help="RECEIVER:SHARER. [default: the adapter's own pair]"),
    ] = None,
    limit: Annotated[int, typer.Option(help="Dev documents.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Documents a batch.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the documents and the derangement.")] = 0,
    scoring: Annotated[
        str | None, typer.Option(help="letters, cloze or generate. [default: the task's own]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the smaller adapter. [default: adapters/NAME-9L for --keep 9]"),
    ] = None,
    option: OptionsOption = None,
    task_option: TaskOptionsOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the adapter in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Leave out layers: those with shut gates, those that hurt, and all but the K most important ones.

    No fine-tuning. Importance is what the dev split loses without a layer; both models read each batch once for all layers.
    Beside the smaller adapter and its card stand pruning.json and pruning.png.
    """
    from lcfbench.cli.adapter_view import prune_and_show
    from lcfbench.config import parse_assignments

    settings: dict[str, Any] = dict(
        adapter=adapter, dev=dev, keep=keep, pair=pair, limit=limit, batch_size=batch_size, seed=seed, scoring=scoring, out=out,
        options=parse_assignments(option, "-o"), task_options=parse_assignments(task_option, "--task-option"), dtype=dtype or "auto",
        device=device or "auto", offline=bool(offline), force=force,
    )  # fmt: skip
    prune_and_show(settings, as_json)


@adapter_app.command("push")
def adapter_push(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, or the name of a shipped one.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub; made where there is none.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Only for those you let in.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch; made where there is none. [default: main]")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    offline: OfflineOption = None,
) -> None:
    """Upload an adapter to the Hub: weights, config and card, nothing else of its folder. Needs a token (`hf auth login`)."""
    from lcfbench.cli.adapter_view import push_and_show

    push_and_show(adapter, repo_id, private, revision, message, bool(offline))


@adapter_app.command("pull")
def adapter_pull(
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME[@REVISION]", help="Repository on the Hub; a branch, tag or commit of it."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter. [default: adapters/NAME]")] = None,
    subfolder: Annotated[
        str, typer.Option(help="Where in the repository the adapter lies. [default: at its root]")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the adapter in --out.")] = False,
    offline: OfflineOption = None,
) -> None:
    """Fetch an adapter from the Hub, a mirror or the Hub's cache; it is put in place only once it has been loaded whole."""
    from lcfbench.cli.adapter_view import pull_and_show

    pull_and_show(repo_id, out, subfolder, force, bool(offline))
