"""`lcfbench bench`: batch-1 latency of every method, phase by phase, beside what this machine could do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.options import DeviceOption, DtypeOption, OfflineOption, OptionsOption, PairOption


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command()(bench)


def bench(
    mode: Annotated[
        str | None,
        typer.Option(help="Methods, comma-separated; see `lcfbench ls methods`. [default: receiver,t2t,lcf]"),
    ] = None,
    pair: PairOption = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Tasks whose text is read, comma-separated. [default: those the methods' adapters were made for]"
        ),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            help="Lengths of the receiver's prompt, template included, comma-separated. [default: 64,256]"
        ),
    ] = None,
    answer_tokens: Annotated[
        str | None, typer.Option(help="Lengths of the answer, comma-separated. [default: 1,32]")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Lengths of the note of methods that write one, comma-separated. [default: 16,64]"),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed passes of each, in turn. [default: 7]")] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Passes before them that are not timed. [default: 2]")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="Adapter folder; repeatable. [default: the one that ships]")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    attention: Annotated[
        str | None, typer.Option(help="sdpa, eager or flash_attention_2. [default: sdpa]")
    ] = None,
    option: OptionsOption = None,
    offline: OfflineOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON line to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON line, no table.")] = False,
) -> None:
    """Time every method for one document at a time, warm: each phase, its spread, and how near it is to what this machine can do."""
    from lcfbench.config import parse_assignments
    from lcfbench.latency.recipe import BenchRecipe

    given: dict[str, Any] = dict(
        mode=mode, pair=pair, task=task, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, budget=budget, repeats=repeats,
        warm_up=warm_up, adapter=adapter, dtype=dtype, device=device, attention=attention, options=parse_assignments(option, "-o"),
        offline=offline,
    )  # fmt: skip
    chosen = BenchRecipe.merge(None, given, "bench")
    from lcfbench.cli.latency_view import bench_and_show

    bench_and_show(chosen, out, as_json)
