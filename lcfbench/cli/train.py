"""`lcfbench train`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from lcfbench.cli.console import echo
from lcfbench.cli.options import flags, merged
from lcfbench.cli.progress import TrainLine
from lcfbench.cli.signals import interrupted
from lcfbench.training.processes import check_launch, count, number


@flags("lcfbench.training.recipe:TrainRecipe")
def train(
    mode: Annotated[
        str | None,
        typer.Option(help="A method, instead of --adapter. On different-context tasks lcf trains LCF-X."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="YAML file of settings, or one of `lcfbench ls recipes`; flags win over it."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes of this machine that divide each batch, each with its own GPU if any."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Train adapters for a pair of frozen models; `run --adapter` takes what it saves.

    Ctrl-C saves the best states so far and a checkpoint.
    """
    if processes and processes > 1 and count() == 1:
        from lcfbench.cli.launch import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    check_launch(processes)
    from lcfbench.training.recipe import TrainRecipe

    given["adapters"] = given["adapters"] or mode
    chosen: TrainRecipe = merged(TrainRecipe, given, recipe, "train")
    from lcfbench import api
    from lcfbench.training.options import expanded

    chosen = expanded(chosen)

    try:
        folders = api.train(chosen, progress=TrainLine())
    except KeyboardInterrupt:
        interrupted()
    tasks = ",".join(t.split("*")[0] for t in chosen.dev or chosen.task)
    if number() > 0:
        return
    for spec, folder in zip(chosen.specs(), folders, strict=True):
        pair = shlex.quote(chosen.pair)
        again = f"lcfbench run --mode {spec.mode} --pair {pair} --task {tasks} --adapter {folder}"
        echo(f"saved {folder}; use it with: {again}")
