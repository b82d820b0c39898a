"""The command line: thin verbs, heavy imports inside them, so that `--help` answers at once.

Exit codes: 0 done, 2 a mistake in what was asked or what is there (one line and the next step), 130 interrupted (what is recorded stays);
`check` also ends with 1 (surely worse), 3 (inconclusive) and 4 (incomplete).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.adapter import adapter_app
from lcfbench.cli.analysis import register as register_analysis
from lcfbench.cli.latency import register as register_bench
from lcfbench.cli.options import (
    DeviceOption,
    DtypeOption,
    OfflineOption,
    OptionsOption,
    OutOption,
    PairOption,
    TaskOptionsOption,
)
from lcfbench.cli.oracle import oracle_app
from lcfbench.errors import Exit, UserError

ClickException: Any = typer.BadParameter.__mro__[2]  # typer brings its own copy of click in some versions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="When one language model passes what it knows to another: how much gets across, how fast, and how do we know?",
)
app.add_typer(adapter_app, name="adapter")
app.add_typer(oracle_app, name="oracle")


@app.command()
def run(
    mode: Annotated[
        str | None,
        typer.Option(
            envvar="LCFBENCH_MODE",
            help="Methods, comma-separated; see `lcfbench ls methods`. [default: receiver,lcf]",
        ),
    ] = None,
    pair: PairOption = None,
    task: Annotated[
        str | None,
        typer.Option(
            envvar="LCFBENCH_TASK",
            help="Tasks, comma-separated; see `lcfbench ls tasks`. [default: splitfacts]",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            envvar="LCFBENCH_CONTROL",
            help="matched, deranged (the message of another document), zero, noise, silent. [default: matched]",
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(envvar="LCFBENCH_SCORING", help="letters, cloze or generate. [default: the task's own]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(envvar="LCFBENCH_LIMIT", help="Documents a task. [default: all]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(envvar="LCFBENCH_SEED", help="Seed of samples, splits and derangements. [default: 0]"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            envvar="LCFBENCH_SEEDS",
            help="Several seeds, comma-separated: each a run where there is randomness.",
        ),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="Adapter folder; repeatable. [default: the one that ships for the pair and task]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(envvar="LCFBENCH_BATCH_SIZE", help="Documents a batch. [default: 16]")
    ] = None,
    latency_documents: Annotated[
        int | None,
        typer.Option(
            envvar="LCFBENCH_LATENCY_DOCUMENTS",
            help="Documents also timed alone, warm, for the latency columns. [default: 5]",
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    attention: Annotated[
        str | None,
        typer.Option(envvar="LCFBENCH_ATTENTION", help="sdpa, eager or flash_attention_2. [default: sdpa]"),
    ] = None,
    out: OutOption = None,
    option: OptionsOption = None,
    task_option: TaskOptionsOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            envvar="LCFBENCH_RECIPE",
            help="YAML file with any of these settings, or a packaged recipe; flags win over LCFBENCH_*, both over the file.",
        ),
    ] = None,
    offline: OfflineOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what is recorded of these runs and start over.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the prompts both models would see and their token counts; load no weights.",
        ),
    ] = False,
) -> None:
    """Let a pair answer tasks under one or more methods, and record every document."""
    from lcfbench.config import parse_assignments
    from lcfbench.evaluation.recipe import Recipe

    given: dict[str, Any] = dict(
        mode=mode, pair=pair, task=task, control=control, scoring=scoring, limit=limit, seed=seed, seeds=seeds, adapter=adapter,
        batch_size=batch_size, latency_documents=latency_documents, dtype=dtype, device=device, attention=attention, out=out,
        offline=offline, fresh=fresh or None,
        options=parse_assignments(option, "-o"), task_options=parse_assignments(task_option, "--task-option"),
    )  # fmt: skip
    chosen = Recipe.merge(recipe, given, "run")
    if dry_run:
        from lcfbench.cli.verbs import print_prompts

        print_prompts(chosen, limit=chosen.limit or 1)
        return
    from lcfbench.cli.verbs import run_and_show

    run_and_show(chosen)


@app.command()
def train(
    mode: Annotated[
        str | None,
        typer.Option(
            help="A method with an adapter. On different-context tasks lcf trains LCF-X. [default: lcf]"
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --mode, repeatable: METHOD:key=value,… Several are trained side by side over the same prefills."
        ),
    ] = None,
    pair: PairOption = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Tasks whose train split is used, comma-separated, NAME*WEIGHT; chat:DATASET is a chat data set. [default: splitfacts]"
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            help="Tasks whose validation split chooses the saved state. [default: those trained on]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: 200]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step. [default: 16]")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Forward passes a step, for batches that do not fit. [default: 1]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate (AdamW, linear warm-up and decay). [default: 3e-4]"),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Warm-up steps; below 1, a share of all steps. [default: 20]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. [default: 0]")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initialisation and the order of examples. [default: 0]")
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(help="What the answer is: letters, cloze or generate. [default: the task's own]"),
    ] = None,
    loss_mean: Annotated[
        str | None,
        typer.Option(
            help="document: a long answer weighs no more than a short one; token: every token alike. [default: document]"
        ),
    ] = None,
    train_documents: Annotated[
        int | None,
        typer.Option(help="Examples to draw from. [default: steps × batch size, or all there are]"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longer chat examples are left out. [default: 2048]")
    ] = None,
    dev_documents: Annotated[
        int | None, typer.Option(help="Documents of the dev split a task for each evaluation. [default: 64]")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between dev evaluations. [default: 50]")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints; a killed training resumes there. [default: 50]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new adapter. [default: adapters/new]")
    ] = None,
    option: OptionsOption = None,
    task_option: TaskOptionsOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="YAML file, or a packaged recipe (`lcfbench ls recipes`); flags win over it."),
    ] = None,
    tracker: Annotated[
        str | None, typer.Option(help="Also log to tensorboard or trackio, where installed.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the adapter in --out; forget a checkpoint there.")
    ] = False,
) -> None:
    """Train adapters for a pair of frozen models; `run --adapter` takes what it saves."""
    from lcfbench.cli.verbs import train_and_show
    from lcfbench.config import parse_assignments
    from lcfbench.training.recipe import TrainRecipe

    given: dict[str, Any] = dict(
        adapters=adapter or mode, pair=pair, task=task, dev=dev, steps=steps, batch_size=batch_size, accumulate=accumulate, lr=lr, warmup=warmup,
        weight_decay=weight_decay, seed=seed, scoring=scoring, loss_mean=loss_mean, train_documents=train_documents, max_tokens=max_tokens,
        dev_documents=dev_documents, eval_every=eval_every, save_every=save_every, out=out, options=parse_assignments(option, "-o"),
        task_options=parse_assignments(task_option, "--task-option"), tracker=tracker, dtype=dtype, device=device, offline=offline,
        force=force or None,
    )  # fmt: skip
    train_and_show(TrainRecipe.merge(recipe, given, "train"))


register_analysis(app)
register_bench(app)


@app.command("ls")
def ls(
    what: Annotated[str, typer.Argument(help="models, tasks, methods, adapters, recipes or runs.")],
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """List what there is."""
    from lcfbench.cli.lists import listing

    listing(what, out or Path("results"), as_json)


@app.command()
def doctor(
    offline: OfflineOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """Check versions, devices, what resolves from where, task files and data."""
    from lcfbench.cli.lists import print_doctor

    if not print_doctor(bool(offline), as_json):
        raise typer.Exit(Exit.USER)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs and figures.")] = Path("results/demo"),
    limit: Annotated[int, typer.Option(help="Documents a task.")] = 64,
) -> None:
    """The main job on the embedded pair and real data: runs, table, frontier plot, report."""
    from lcfbench.cli import verbs

    verbs.demo(out, limit)


def main() -> None:
    """Entry point. Whatever a user can get wrong is one line and exit code 2; Ctrl-C is 130; a reader that leaves (`| head`) is no error."""
    try:
        sys.exit(app(prog_name="lcfbench", standalone_mode=False))
    except UserError as error:
        complain(f"{error.what} {error.next_step}")
    except ClickException as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            typer.echo(error.format_message(), err=True)
            sys.exit(Exit.USER)
        complain(
            f"{error.format_message().rstrip('.')}. See `{context.command_path if context else 'lcfbench'} --help`."
        )
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted.", err=True)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains once more when it flushes
        sys.exit(Exit.OK)
    except OSError as error:
        complain(
            f"{error.filename or 'input or output'}: {error.strerror or error}. Check the path, its permissions and the disk."
        )


def complain(text: str) -> None:
    """One line, exit code 2."""
    typer.echo(f"lcfbench: {' '.join(text.split())}", err=True)
    sys.exit(Exit.USER)


if __name__ == "__main__":
    main()
