"""`lcfbench run` and `lcfbench demo`."""

from __future__ import annotations

import gc
import importlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcfbench.cli.analysis import draw_frontier, show_runs, write_report
from lcfbench.cli.console import echo, note
from lcfbench.cli.options import SHARED, flags, merged
from lcfbench.cli.progress import RunProgress, TrainLine
from lcfbench.cli.signals import interrupted
from lcfbench.config import check_trained
from lcfbench.errors import Exit, UserError
from lcfbench.progress import quiet_libraries

if TYPE_CHECKING:
    from lcfbench.evaluation.recipe import Recipe

RecipeOption = Annotated[
    str | None,
    typer.Option(
        envvar="LCFBENCH_RECIPE",
        help="YAML file of settings, or one of `lcfbench ls recipes`; flags win over LCFBENCH_*, both over "
        "the file.",
    ),
]
VARIABLES = (
    *SHARED,
    "mode",
    "task",
    "control",
    "scoring",
    "limit",
    "seed",
    "seeds",
    "batch_size",
    "latency_documents",
    "attention",
    "out",
)
LIBRARIES = (
    "lm_eval.api.task",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",  # imports what every architecture does
    "lcfbench.api",
)


@flags("lcfbench.evaluation.recipe:Recipe", VARIABLES)
def run(
    recipe: RecipeOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the prompts of both models and their token counts; load no weights."
        ),
    ] = False,
    **given: Any,
) -> None:
    """Let a pair answer tasks under one or more methods, and record every document."""
    from lcfbench.evaluation.recipe import Recipe

    chosen = merged(Recipe, given, recipe, "run")
    if dry_run and (chosen.only or chosen.shard):
        flag = "--only" if chosen.only else "--shard"
        raise UserError(
            f"--dry-run prints prompts of tasks, and {flag} names runs.", "Leave one of them out."
        )
    if dry_run:
        print_prompts(chosen)
    else:
        chosen.check_names()
        check_trained(recipe, chosen.adapter)
        run_and_show(chosen)


DEMO: tuple[dict[str, Any], ...] = (
    {
        "pair": "smollm2-135m:gemma3-270m+planted",
        "mode": "receiver,sharer,t2t,lcf,c2c",
        "task": "planted",
        "adapter": [
            f"smollm2-135m.gemma3-270m+planted.{name}"
            for name in ("lcf16-planted", "lcf64-9L-planted", "c2c64-planted")
        ],
    },
    {"mode": "receiver,full_context,t2t,lcf", "task": "splitfacts,splitfacts_heldout,openbookqa"},
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs and figures.")] = Path("results/demo"),
    limit: Annotated[int, typer.Option(min=2, help="Documents a task, two or more.")] = 64,
) -> None:
    """Run the main comparisons on the embedded pair: runs, tables, frontier plot, report.

    The same question for both models (planted: the sharer was taught the answers; OpenBookQA: it knows
    nothing more), and different notes for each (splitfacts).
    """
    from lcfbench.evaluation.recipe import Recipe

    same = {"control": "matched,deranged", "scoring": "cloze", "options": {"budget": "32"}}
    for chosen in DEMO:
        recipe = Recipe.merge(None, chosen | same | {"limit": limit, "out": out})
        recipe.check_names()
        run_and_show(recipe)
    for path in draw_frontier([out]):
        echo(f"frontier: {path}")
    echo(f"report: {write_report([out], out / 'report.html', 'html')}")


def run_and_show(recipe: Recipe) -> None:
    """Runs a recipe whose names were checked, and prints the table of its runs.

    Ctrl-C keeps what is recorded and exits 130. Exits 1 where too many documents of a run failed.
    """
    try:
        import_libraries()
        from lcfbench.api import run

        if recipe.train:
            from lcfbench.training.on_demand import train_missing

            try:
                recipe = train_missing(recipe, TrainLine())
            except KeyboardInterrupt:
                interrupted("the training is not finished, and no run has begun")
        results = run(recipe, progress=RunProgress())
    except KeyboardInterrupt:
        interrupted(f"what is recorded stays in {recipe.out}; the same command goes on from there")
    if recipe.shard and not results.folders:
        note("no run is complete yet: the process that ends the last part puts it together.")
        return
    show_runs(results.folders)
    note(f"recorded in {recipe.out}; this table again: lcfbench show {recipe.out}")
    if "receiver" not in recipe.methods:
        note("without the receiver alone no gain can be judged: add --mode receiver.")
    if failed := results.failed():
        for sentence in failed.values():
            echo(f"failed: {sentence}", stderr=True)
        raise typer.Exit(Exit.FAILED)


def print_prompts(recipe: Recipe) -> None:
    """Prints the prompts of each task's first documents, with token counts: a JSON object a document.

    All that can be checked without a model is checked as for a run; adapters that do not exist yet are
    only named.
    """
    quiet_libraries()
    from lcfbench.adapters.finding import Found, on_this_disk
    from lcfbench.adapters.select import find_adapters
    from lcfbench.evaluation.plan import look_up, proofs_of, variants_of, wanted_by, with_tasks
    from lcfbench.methods.load_pair import CONDITIONS, load_pair, roles_of
    from lcfbench.models.tokenizers import load_tokenizers
    from lcfbench.sources.models import split_sharers
    from lcfbench.tasks.chat_template import check_thinking
    from lcfbench.tasks.preview import preview

    recipe = with_tasks(recipe)
    tasks = look_up(recipe)
    if recipe.attention != "auto":  # only the model's own code says whether it has that one
        conditions = recipe.model_dump(include=CONDITIONS | {"thinking"})
        load_pair(recipe.pair, roles=roles_of(recipe.methods), weights=(), several=True, **conditions)
    name, sharer_names = split_sharers(recipe.pair)
    conditions = recipe.model_dump(include={"offline", "trust_remote_code", "thinking"})
    ends = [load_tokenizers(f"{name}:{sharer}", **conditions) for sharer in sharer_names]
    receiver, sharers = ends[0][0], [sharer for _, sharer in ends]
    check_thinking([receiver, *sharers], {task.name: task.chat for task in tasks})
    named = [folder for place in recipe.adapter for folder in find_adapters(place, len(sharers))]
    later = [str(place) for place in named if len(place.parts) > 1 and not place.exists()]
    missing = [each for each in wanted_by(recipe, tasks) if not isinstance(on_this_disk(each), Found)]
    if later:
        note(f"a run needs {', '.join(later)}, not there yet.")
    elif not missing:
        proofs_of(recipe, tasks, variants_of(recipe, tasks))
    for each in missing:
        pair = shlex.quote(recipe.pair)
        note(
            f"no adapter for {each.mode} on {each.task} is on this disk; `lcfbench adapter find --mode "
            f"{each.mode} --pair {pair} --task {each.task}` says where a run would get one."
        )
    for task in tasks:
        documents = task.documents(
            scoring=recipe.scoring, limit=recipe.limit or 1, receiver_chat=bool(receiver.chat_template)
        )
        for entry in preview(documents, receiver, *sharers):
            echo(json.dumps(entry, indent=1))


def import_libraries() -> None:
    """Imports what every run imports, with the garbage collector at rest, and silences it.

    The collector would walk through all modules again and again, a tenth of the time; afterwards it
    need not look at them at all. What transformers takes of torch comes first: each operator that is
    defined there looks through all modules that are there by then (0.1 s; `benchmarks.cold_start`).
    """
    gc.disable()
    try:
        from torch import distributed

        if distributed.is_available():
            importlib.import_module("torch.distributed.tensor")
        importlib.import_module("torch._dynamo")
        quiet_libraries()
        for name in LIBRARIES:
            importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
