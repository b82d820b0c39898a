"""`lcfbench oracle …`: what could be gained and what can be mapped, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcfbench.cli.options import (
    DeviceOption,
    DtypeOption,
    OfflineOption,
    OutOption,
    PairOption,
    TaskOptionsOption,
)

oracle_app = typer.Typer(
    no_args_is_help=True,
    help="What could be gained, and what can be mapped, before training.",
    rich_markup_mode=None,
)

SeedOption = Annotated[int, typer.Option(help="Which documents, and which examples.")]
BatchOption = Annotated[int, typer.Option(help="Documents a batch.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Compute again what is recorded.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@oracle_app.command("enrich")
def enrich(
    model: Annotated[
        str, typer.Option(help="The model that answers: an alias, a Hub id or a folder.")
    ] = "smollm2-135m",
    task: Annotated[str, typer.Option(help="See `lcfbench ls tasks`.")] = "openbookqa",
    before: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="What stands in front: examples (of the train split) or context (the other side's text). [default: by task]",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(help="Examples.")] = 4,
    limit: Annotated[int, typer.Option(help="Documents.")] = 64,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also enrich one layer at a time.")] = False,
    positions: Annotated[
        str,
        typer.Option(
            help="Rotary positions of the slice: direct (as without anything in front) or kept (where they were)."
        ),
    ] = "direct",
    scoring: Annotated[
        str | None, typer.Option(help="letters, cloze or generate. [default: the task's own]")
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    task_option: TaskOptionsOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    out: OutOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Would a cache that has seen more, of the same length, answer better? Direct, few-shot and the question's slice alone."""
    from lcfbench.cli.oracle_view import enrich_and_show
    from lcfbench.config import parse_assignments

    settings = dict(
        model=model, task=task, before=before, shots=shots, limit=limit, per_layer=per_layer, positions=positions, scoring=scoring, seed=seed,
        batch_size=batch_size, task_options=parse_assignments(task_option, "--task-option"), dtype=dtype or "auto", device=device or "auto",
        offline=bool(offline), out=out or Path("results"), fresh=fresh,
    )  # fmt: skip
    enrich_and_show(settings, as_json)


@oracle_app.command("transform")
def transform(
    pair: PairOption = None,
    task: Annotated[
        str, typer.Option(help="Its train split is the text. See `lcfbench ls tasks`.")
    ] = "splitfacts",
    text: Annotated[
        Path | None, typer.Option(help="A file of plain text instead, paragraphs apart by blank lines.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Receiver tokens, a fifth of the texts held out.")] = 8000,
    layer_map: Annotated[
        str,
        typer.Option(
            "--map",
            help="proportional, terminal, nearest, or best: every receiver layer from every sharer layer.",
        ),
    ] = "proportional",
    sources: Annotated[int, typer.Option(help="Sharer layers a receiver layer is mapped from, 1 to 3.")] = 1,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    task_option: TaskOptionsOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    out: OutOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """How much of the receiver's cache can be mapped linearly from the sharer's on the same text? R² and cosine, layer by layer."""
    from lcfbench.cli.oracle_view import transform_and_show
    from lcfbench.config import parse_assignments

    settings = dict(
        pair=pair or "smollm2-135m:gemma3-270m", task=task, text=text, tokens=tokens, map=layer_map, sources=sources, seed=seed,
        batch_size=batch_size, task_options=parse_assignments(task_option, "--task-option"), dtype=dtype or "auto", device=device or "auto",
        offline=bool(offline), out=out or Path("results"), fresh=fresh,
    )  # fmt: skip
    transform_and_show(settings, as_json)
