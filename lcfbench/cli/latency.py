"""`lcfbench bench`: the latency of every method, phase by phase, one document at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.console import echo, note, warn
from lcfbench.cli.options import flags, merged
from lcfbench.cli.signals import interrupted
from lcfbench.errors import UserError
from lcfbench.files import check_output, locked, standard_stream, write_output
from lcfbench.progress import quiet_libraries
from lcfbench.tables import Cell, Column, Table

GAP = 0.05  # phases add up to the whole within this share of it
LEGEND = (
    "ms: medians of n repeats. IQR: distance of the quartiles. ttft: to the first answer token, everything "
    "in between; tpot: each further token; ttea: to the end of the answer."
)
TAILS = ("p95", "p99")
COMPARED = (
    "b/a: the median of the second table by that of the first, with a bootstrap's 95 % interval; beside the "
    "receiver: the same of each method's time by that of the receiver alone."
)


@flags("lcfbench.latency.recipe:BenchRecipe")
def bench(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(help="YAML file of settings, or one of `lcfbench ls recipes`; flags win over it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON line to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON line, no table.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Measure nothing: compare two files of --out."),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway", help="With --compare: also tables of other machines, dtypes, threads or weights."
        ),
    ] = False,
    **given: Any,
) -> None:
    """Time every method for one document at a time, warm: each phase and its spread, and one JSON line.

    Ctrl-C prints what was timed until then.
    """
    from lcfbench.latency.recipe import BenchRecipe

    if compare is not None:
        _refuse_others(context, ("recipe", "out", *given))
        return show_compared(*compare, anyway, as_json)
    if anyway:
        raise UserError("--anyway goes with --compare.", "Leave it out, or give --compare A.json B.json.")
    asked: BenchRecipe = merged(BenchRecipe, given, recipe, "bench")
    if out is not None and not (folder := out.absolute().parent).is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}.", "Make it, or name another file.")
    if out is not None:
        check_output(out)
    asked.check_names()
    quiet_libraries()
    from lcfbench.cli.terminal import StatusLine
    from lcfbench.latency.grid import measure, result
    from lcfbench.latency.plan import plan

    stopped = False
    held = locked(out) if out is not None and not check_output(out) else nullcontext()
    with held, StatusLine("loading models") as line:
        planned = plan(asked)
        try:
            for done, total in measure(planned):
                line.update(f"pass {done} of {total}")
        except KeyboardInterrupt:
            stopped = True
    found = result(planned, stopped)
    for each in planned.left_out:
        note(f"left out: {each['mode']} on {each['task']}: {each['why']}")
    if not found["rows"] and not stopped:
        raise UserError("nothing could be timed: see above.", "Change the options that it names.")
    if not as_json:
        show(found)
    line_of_json = json.dumps(found, allow_nan=False)
    if out is not None:
        write_output(out, line_of_json.encode() + b"\n")
    if out is None or not standard_stream(out):
        echo(line_of_json)
    if stopped:
        interrupted("what was timed until then is above" if found["rows"] else "nothing was timed")


def _refuse_others(context: typer.Context, names: Iterable[str]) -> None:
    """Raises UserError for a flag that says how to measure, beside --compare."""
    sources = {name: context.get_parameter_source(name) for name in names}
    if others := [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]:
        flag = "-o" if others[0] == "options" else f"--{others[0].replace('_', '-')}"
        raise UserError(f"--compare measures nothing: {flag} would have no effect.", "Leave it out.")


def show(found: dict[str, Any]) -> None:
    """Prints a table for each task, prompt and answer length, and how steady the machine was.

    Warns of phases that do not add up.
    """
    from lcfbench.cli import tables

    rows = found["rows"]
    blocks = groupby(rows, lambda r: (r["task"], r["prompt_tokens"], r["answer_tokens"]))
    tables.show(*(table(list(some), *key) for key, some in blocks))
    if rows:
        note(conditions(found))
    for row in rows:
        if row["phases_gap_percent"] > 100 * GAP:
            gap = f"its phases differ from the whole by {row['phases_gap_percent']} %"
            warn(f"{label(row)} on {row['task']}: {gap}.")


def conditions(found: dict[str, Any]) -> str:
    """One sentence on where and how a table was measured."""
    machine, matmul = found["machine"], found["matmul_ms"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cpus']} cores"
    parts = [where, found["dtype"], "random weights" if found["random_weights"] else "real weights"]
    if matmul:
        iqr = 100 * (matmul["q3"] - matmul["q1"]) / matmul["median"]
        parts.append(f"fixed matmul {number(matmul['median'])} ms, IQR {iqr:.1f} %")
        parts.append(f"{found['thrown_away']} repeats thrown away (drift over {found['drift']:g} %)")
    if found["partial"]:
        parts.append(f"partial: not all have {found['repeats']} repeats")
    return "; ".join(parts)


def label(row: dict[str, Any]) -> str:
    """A method, with its budget where it has one."""
    label, budget = row["label"], row["budget"]
    return label if budget is None or f"budget={budget}" in label.split() else f"{label} {budget}"


def table(rows: list[dict[str, Any]], task: str, prompt: int, answer: int) -> Table:
    """Two lines a method, medians and quartile distances, and one for each tail that n allows."""
    from lcfbench.models.timing import PHASES

    names = (*PHASES, "ttft", *(["tpot"] if answer > 1 else []), "ttea")
    cells: list[list[Cell]] = []
    styles: list[str] = []
    for row in rows:
        ms = row["ms"]
        cells.append([label(row), *(number(ms[c]["median"]) if c in ms else "–" for c in names)])
        spread = (number(ms[c]["q3"] - ms[c]["q1"]) if c in ms else "" for c in names)
        cells.append([f"  IQR, n={row['n']}", *spread])
        tails = [tail for tail in TAILS if tail in ms["ttea"]]
        cells += [[f"  {tail}", *(number(ms[c][tail]) if c in ms else "" for c in names)] for tail in tails]
        styles += ["", *["dim"] * (1 + len(tails))]
    title = f"{task}: {prompt} prompt tokens, {answer} answer token{'s'[: answer > 1]}"
    if rows[0]["random_weights"]:
        title += "; random weights"
    columns = [Column("ms", wrap=True), *(Column(c, right=True, optional=c == "decode") for c in names)]
    return Table(title, columns, cells, styles, legend=LEGEND)


def number(ms: float) -> str:
    """Three figures are enough: 0.42, 4.2, 42.1, 421, 4,210."""
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def show_compared(first: Path, second: Path, anyway: bool, as_json: bool) -> None:
    """Prints two tables side by side, the largest differences, and one JSON line. Raises UserError."""
    from lcfbench.cli import tables
    from lcfbench.latency.compare import check_comparable, compared, only_in_one, read_table

    a, b = read_table(first), read_table(second)
    if not anyway:
        check_comparable(a, b)
    rows = compared(a, b)
    shown = [row for row in rows if row["time"] in ("ttft", "ttea")]
    if not as_json:
        blocks = groupby(shown, lambda r: (r["task"], r["prompt_tokens"], r["answer_tokens"]))
        tables.show(*(_compared_table(list(some), *key) for key, some in blocks))
    ratios = [row["ratio"] for row in shown]
    beside = [row["beside_receiver"]["ratio"] for row in shown if row["beside_receiver"]]
    furthest = {"times": _furthest(ratios), "beside_receiver": _furthest(beside)}
    if a.matmul_ms and b.matmul_ms:
        furthest["matmul"] = _furthest([b.matmul_ms["median"] / a.matmul_ms["median"]])
    words = {"times": "ttft and ttea", "beside_receiver": "beside the receiver", "matmul": "the fixed matmul"}
    told = [f"{words[name]} {value:+.1f} %" for name, value in furthest.items() if value is not None]
    note(f"furthest apart: {', '.join(told)}")
    for count, path in zip(only_in_one(a, b), (first, second), strict=True):
        if count:
            note(f"{count} row{'s'[: count > 1]} in {path} alone")
    line = {"benchmark": "lcfbench bench --compare", "a": str(first), "b": str(second), "anyway": anyway}
    echo(json.dumps({**line, "furthest_percent": furthest, "rows": rows}, allow_nan=False))


def _furthest(ratios: list[float]) -> float | None:
    """The ratio furthest from 1, in percent."""
    return max((round(100 * (r - 1), 2) for r in ratios), key=abs, default=None)


def _compared_table(rows: list[dict[str, Any]], task: str, prompt: int, answer: int) -> Table:
    """A line a method and time."""
    cells = []
    for row in rows:
        beside = row["beside_receiver"]
        times = [number(row["a_ms"]), number(row["b_ms"])]
        cells.append([label(row), row["time"], *times, _interval(row), _interval(beside) if beside else "–"])
    names = [Column("method", wrap=True), Column("time")]
    names += [Column(name, right=True) for name in ("a ms", "b ms", "b/a", "beside receiver")]
    title = f"{task}: {prompt} prompt tokens, {answer} answer token{'s'[: answer > 1]}"
    return Table(title, names, cells, legend=COMPARED)


def _interval(found: dict[str, float]) -> str:
    return f"{found['ratio']:.3f} ({found['low']:.2f}–{found['high']:.2f})"
