"""What a person sees: progress lines, tables, lists. Everything here prints; nothing here computes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from lcfbench.errors import Exit, UserError, unknown

if TYPE_CHECKING:
    from lcfbench.recipe import Recipe

err, out = Console(stderr=True, highlight=False), Console(highlight=False)
LISTS = ("models", "tasks", "methods", "adapters", "runs")
QUIET_SECONDS = 10.0  # without a terminal, one progress line this often


class RunProgress:
    """One live line a run: documents, accuracy ± 95 % interval, milliseconds a document."""

    def __init__(self) -> None:
        self.title, self.last, self.total, self.before, self.spoke = "", "", 0, 0, 0.0
        self.status: Status | None = None

    def say(self, text: str) -> None:
        err.print(text, style="dim")

    def begin(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.before, self.spoke = title, total, done, time.monotonic()
        resumed = f", {done} recorded before" if done else ""
        self.last = f"{title}: {total} documents{resumed}"
        self.status = err.status(self.last) if err.is_terminal else None
        if self.status is not None:
            self.status.start()

    def update(self, right: float, documents: int, ms: float) -> None:
        from lcfbench.analysis.stats import wilson

        low, high = wilson(round(right), documents)
        self.last = f"{self.title}: {self.before + documents}/{self.total}, score {right / documents:.3f} ± {(high - low) / 2:.3f}, {ms:.0f} ms a document"
        if self.status is not None:
            self.status.update(self.last)
        elif time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            err.print(self.last)

    def end(self) -> None:
        if self.status is not None:
            self.status.stop()
        err.print(self.last)


class TrainLine:
    """Loss, share of supervised tokens right, gates open, examples a second."""

    def __init__(self) -> None:
        self.spoke = 0.0

    def say(self, text: str) -> None:
        err.print(text)

    def step(self, step: int, steps: int, loss: float, right: float, gates_open: int, gates: int, examples_per_s: float) -> None:
        if step in (1, steps) or time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            err.print(
                f"step {step}/{steps}  loss {loss:.3f}  right {right:.2f}  gates open {gates_open}/{gates}  {examples_per_s:.1f} examples/s"
            )


def run_and_show(recipe: Recipe) -> None:
    """Runs a recipe and prints the table of what it made. Ctrl-C keeps what is recorded and exits 130."""
    from lcfbench.runner import check_names, run

    check_names(recipe)
    quiet_libraries()
    finished: list[str] = []
    try:
        for run_id in run(recipe, RunProgress()):
            finished.append(run_id)
    except KeyboardInterrupt:
        err.print(f"interrupted: what is recorded stays in {recipe.out}; the same command goes on from there.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    show_runs([recipe.out / run_id for run_id in finished], "table")


def train_and_show(settings: dict[str, Any]) -> None:
    """Trains an adapter and says where it is."""
    from lcfbench.training.trainer import TrainRecipe, train

    quiet_libraries()
    try:
        folder = train(TrainRecipe(**settings), TrainLine())
    except KeyboardInterrupt:
        err.print("interrupted: no adapter was saved.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    out.print(
        f"saved {folder}; use it with: lcfbench run --mode {settings['mode']} --pair {settings['pair']} --task {','.join(settings['task'])} --adapter {folder}",
        soft_wrap=True,
    )


def print_prompts(recipe: Recipe, limit: int) -> None:
    """The exact prompts of the first documents of every task, with token counts."""
    from lcfbench.assets import find_model, split_pair
    from lcfbench.dry_run import preview
    from lcfbench.harness import load_task
    from lcfbench.runner import check_names

    check_names(recipe)
    quiet_libraries()
    from transformers import AutoTokenizer

    ends = [(name, AutoTokenizer.from_pretrained(find_model(name, offline=recipe.offline).path)) for name in split_pair(recipe.pair)]
    for name in recipe.task:
        task = load_task(name, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options)
        documents = task.documents(scoring=recipe.scoring, limit=limit, receiver_chat=bool(ends[0][1].chat_template))
        for entry in preview(documents, ends[0][1], ends[1][1]):
            out.print(json.dumps(entry, indent=1, ensure_ascii=False), soft_wrap=True, markup=False)


def show_runs(paths: Sequence[Path], form: str) -> None:
    """The summary of recorded runs, as a table or for machines."""
    from lcfbench.analysis import show
    from lcfbench.analysis.summary import summarise
    from lcfbench.store import read_runs

    runs = read_runs(list(paths))
    for warning in runs.warnings:
        err.print(f"warning: {warning}", style="yellow")
    summary = summarise(runs.rows, runs.manifests)
    if form == "table":
        out.print(show.table(summary))
    else:
        typer.echo({"json": show.to_json, "csv": show.to_csv, "markdown": show.to_markdown}[form](summary))


def draw_frontier(paths: Sequence[Path], folder: Path | None, published: bool) -> list[Path]:
    """Draws the frontier of recorded runs; returns the files."""
    from lcfbench.analysis.frontier import plot
    from lcfbench.analysis.summary import summarise
    from lcfbench.store import read_runs

    runs = read_runs(list(paths))
    for warning in runs.warnings:
        err.print(f"warning: {warning}", style="yellow")
    return plot(summarise(runs.rows, runs.manifests), folder or (paths[0] if paths[0].is_dir() else paths[0].parent), published=published)


def listing(what: str, results: Path, as_json: bool) -> None:
    """`lcfbench ls`."""
    if what not in LISTS:
        raise unknown("list", what, LISTS, "lcfbench ls --help")
    rows = _rows(what, results)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if what == "tasks":  # options and licences are in --json
        rows = [
            {k: ", ".join(r[k]) if isinstance(r[k], list) else r[k] for k in ("name", "context", "scorings", "description")} for r in rows
        ]
    if not rows:
        out.print(f"no {what} yet" + (f" in {results}" if what == "runs" else ""))
        return
    table = Table(box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    out.print(table)


def _rows(what: str, results: Path) -> list[dict[str, Any]]:
    if what == "models":
        from lcfbench.doctor import models_table

        return models_table()
    if what == "tasks":
        from lcfbench.harness import describe, task_names

        return [describe(name) for name in task_names()]
    if what == "methods":
        from lcfbench.catalogue import method_summaries

        return [{"method": name, "what it does": text.partition(": ")[2] or text} for name, text in method_summaries().items()]
    if what == "adapters":
        from lcfbench.shipped import adapters_table

        return adapters_table([p for p in (Path("adapters"),) if p.is_dir()])
    from lcfbench.store import list_runs

    return [{k: m.get(k, "") for k in ("run_id", "state", "documents", "errors", "started_at")} for m in list_runs(results)]


def print_doctor(offline: bool, as_json: bool) -> bool:
    """Prints every check; True when all are well."""
    from lcfbench.doctor import checks

    quiet_libraries()
    found = checks(offline)
    if as_json:
        typer.echo(json.dumps([vars(c) for c in found], indent=1, default=str))
    else:
        for check in found:
            out.print(
                f"{'ok ' if check.ok else 'NO '} {check.name}: {check.detail}"
                + (f"\n    → {check.next_step}" if not check.ok and check.next_step else ""),
                soft_wrap=True,
                markup=False,
            )
    return all(c.ok for c in found)


def size_of(mode: str, pair: str, options: dict[str, str], offline: bool) -> dict[str, Any]:
    """Parameters and bytes of a fresh adapter for a pair, built without storage."""
    import torch

    from lcfbench.adapters.base import build
    from lcfbench.adapters.config import kinds, pair_config
    from lcfbench.assets import geometry, split_pair
    from lcfbench.training.options import adapter_options

    if mode not in kinds():
        raise unknown("adapter kind", mode, kinds(), "lcfbench adapter size --help")
    layers = options.pop("layers", None)
    if layers is not None and not layers.isdigit():
        raise UserError(f"layers={layers} is not a number.", "Use -o layers=9, say.")
    settings, alignment = adapter_options(mode, options, small_scale=False)
    receiver, sharer = split_pair(pair)
    config = pair_config(
        mode,
        (receiver, geometry(receiver, offline=offline)),
        (sharer, geometry(sharer, offline=offline)),
        options=settings,
        layers=int(layers) if layers else None,
        **alignment,
    )
    with torch.device("meta"):
        params = build(config).params
    return {
        "kind": mode,
        "pair": pair,
        "params": params,
        "layers": len(config.layers),
        "bytes_bf16": 2 * params,
        "mb_bf16": round(2 * params / 1e6, 1),
        "options": settings,
    }


def print_adapter(folder: Path, as_json: bool) -> None:
    """`lcfbench adapter info`."""
    from lcfbench.adapters.config import WEIGHTS, read_config, weights_sha256
    from lcfbench.adapters.files import load
    from lcfbench.shipped import FOLDER

    place = folder.parent if folder.suffix == ".safetensors" else folder
    if not place.exists() and (FOLDER / place.name).is_dir():
        place = FOLDER / place.name
    config = read_config(place)
    adapter = load(place)
    gates = [[round(float(v), 3) for v in row] for row in adapter.gate_logit]
    facts = {
        "kind": config.kind,
        "receiver": config.receiver,
        "sharer": config.sharer,
        "params": adapter.params,
        "bytes": (place / WEIGHTS).stat().st_size,
        "sha256": weights_sha256(place),
        "layers": list(config.layers),
        "layer_map": list(config.layer_map),
        "layers_open": len(adapter.open_layers()),
        "token_alignment": config.token_alignment,
        "options": config.options,
        "training": config.training,
    }
    if as_json:
        typer.echo(json.dumps({**facts, "gate_logits_key_value": gates}))
        return
    for key, value in facts.items():
        if key != "training":
            out.print(f"{key}: {value}", markup=False)
    for key, value in config.training.items():
        if key != "dev":
            out.print(f"training {key}: {value}", markup=False)
    for point in config.training.get("dev", []):
        out.print("dev " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items()), markup=False)


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries that speak to developers stay out of a user's terminal; their errors do not."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(transformers|torch|lm_eval)")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
