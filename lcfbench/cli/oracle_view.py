"""What `lcfbench oracle` prints: a table in 80 columns, one sentence that says what the numbers mean, and where the plots are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcfbench.cli.console import note, out, quiet_libraries

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.oracle.record import OracleRun


def enrich_and_show(settings: dict[str, Any], as_json: bool) -> None:
    """Measures what an enriched cache gains, or finds it recorded, and shows it."""
    quiet_libraries()
    from lcfbench.oracle.enrich import run_enrich
    from lcfbench.oracle.recipe import Enrich

    _show(run_enrich(Enrich.merge(None, settings, "oracle enrich"), note), as_json)


def transform_and_show(settings: dict[str, Any], as_json: bool) -> None:
    """Fits the maps between two models' caches, or finds them recorded, and shows them."""
    quiet_libraries()
    from lcfbench.oracle.recipe import Transform
    from lcfbench.oracle.transform import run_transform

    _show(run_transform(Transform.merge(None, settings, "oracle transform"), note), as_json)


def _show(place: OracleRun, as_json: bool) -> None:
    summary, table, draw = (
        enrich_parts if place.manifest()["identity"]["oracle"] == "enrich" else transform_parts
    )(place)
    plots = sorted(place.folder.glob("*.png")) or draw()
    if as_json:
        typer.echo(json.dumps({**summary, "folder": str(place.folder), "plots": [str(p) for p in plots]}))
        return
    out.print(table)
    out.print(summary["sentence"])
    note(f"recorded in {place.folder}; plots: {', '.join(p.name for p in plots if p.suffix == '.png')}")


# -- enrich -----------------------------------------------------------------------------------------------------------------------------


def condition_names(identity: dict[str, Any]) -> dict[str, str]:
    """What the three conditions are called in tables and plots."""
    front = (
        f"{len(identity['examples'])} examples in front" if identity["before"] == "examples" else "both texts"
    )
    return {
        "direct": "direct: question alone",
        "kept": f"kept: {front}",
        "oracle": "oracle: question's slice",
    }


def enrich_parts(place: OracleRun) -> tuple[dict[str, Any], Any, Any]:
    """The summary (for machines), the table, and what draws the plots."""
    from rich.table import Table

    from lcfbench.analysis.plots.oracle import plot_enrich
    from lcfbench.analysis.stats import mean_interval, paired_difference

    rows, manifest = place.table("rows"), place.manifest()
    identity = manifest["identity"]
    names = condition_names(identity)
    score = {c: rows[rows["condition"] == c].sort_values("doc_index")["score"].to_numpy() for c in names}
    tokens = {"direct": "question_tokens", "kept": "kept_tokens", "oracle": "question_tokens"}
    lines: list[dict[str, Any]] = []
    for c, name in names.items():
        some, found, d = (
            rows[rows["condition"] == c],
            mean_interval(score[c]),
            paired_difference(score[c], score["direct"]),
        )
        lines.append({
            "condition": c, "name": name, "score": found.value, "low": found.low, "high": found.high, "change": d.value, "change_low": d.low,
            "change_high": d.high, "p": d.p, "gold_ll": float(some["gold_ll"].mean()), "cache_tokens": float(some[tokens[c]].mean()) - 1,
        })  # fmt: skip
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("condition", "score %", "95 %", "change [95 %]", "cache\ntokens"):
        grid.add_column(
            head,
            justify="left" if head == "condition" else "right",
            vertical="bottom",
            no_wrap=head != "condition",
        )
    for line in lines:
        change = (
            f"{100 * line['change']:+.1f} [{100 * line['change_low']:+.1f}, {100 * line['change_high']:+.1f}]"
        )
        cells = f"{100 * line['score']:.1f}", f"{100 * line['low']:.0f}–{100 * line['high']:.0f}"
        grid.add_row(
            line["name"],
            *cells,
            "–" if line["condition"] == "direct" else change,
            f"{line['cache_tokens']:.0f}",
        )
    layers = _best_layers(rows) if identity["per_layer"] else []
    title = (
        f"{identity['task']} ({identity['scoring']}), {identity['model']}, {manifest['documents']} documents"
    )
    summary = {
        "oracle": "enrich", "model": identity["model"], "task": identity["task"], "scoring": identity["scoring"], "documents": manifest["documents"],
        "metric": manifest["metric"], "conditions": lines, "layers": layers, "sentence": enrich_sentence(lines, layers, manifest["documents"]),
    }  # fmt: skip
    return summary, _headed(title, grid), lambda: plot_enrich(rows, names, title, place.folder)


def enrich_sentence(lines: list[dict[str, Any]], layers: list[dict[str, Any]], documents: int) -> str:
    """What the three numbers mean."""
    kept, oracle = lines[1], lines[2]

    def change(line: dict[str, Any]) -> str:
        return f"{100 * line['change']:+.1f} points (95 % {100 * line['change_low']:+.1f} to {100 * line['change_high']:+.1f})"

    if oracle["change_low"] > 0:
        said = f"A cache of the same length that has seen more answers better by {change(oracle)}: editing the cache can gain that much here"
    elif oracle["change_high"] < 0:
        said = f"The slice alone answers worse by {change(oracle)}: what it has seen does not survive without the entries it attends to"
    else:
        said = f"No gain shown at n={documents} from the enriched slice: {change(oracle)}"
    said += f"; with everything kept it is {change(kept)}."
    if layers:
        said += (
            " Largest gain in the right answer's likelihood from one layer: "
            if "gold_ll" in layers[0]
            else " Largest gain from one layer: "
        )
        said += ", ".join(
            f"{x['layer']} ({x['gold_ll']:+.2f} nats)"
            if "gold_ll" in x
            else f"{x['layer']} ({100 * x['score']:+.1f})"
            for x in layers
        )
        said += "."
    return said


def _best_layers(rows: pd.DataFrame, count: int = 3) -> list[dict[str, Any]]:
    """The layers whose enrichment alone gains most, by the right answer's log-likelihood where there is one, else by the score."""
    direct = rows[rows["condition"] == "direct"][["score", "gold_ll"]].mean()
    change = rows[rows["condition"] == "layer"].groupby("layer")[["score", "gold_ll"]].mean() - direct
    by = "gold_ll" if change["gold_ll"].notna().all() else "score"
    top = change.sort_values(by, ascending=False, kind="stable").head(count)
    rows_by_layer = zip(top.index.tolist(), top.to_dict("records"), strict=True)
    return [
        {"layer": int(n), **{str(k): float(v) for k, v in row.items() if v == v}} for n, row in rows_by_layer
    ]


# -- transform --------------------------------------------------------------------------------------------------------------------------


def transform_parts(place: OracleRun) -> tuple[dict[str, Any], Any, Any]:
    """The summary (for machines), the table, and what draws the plots."""
    from rich.table import Table

    from lcfbench.analysis.plots.oracle import plot_points, plot_transform

    rows, manifest = place.table("rows"), place.manifest()
    identity = manifest["identity"]
    chosen = rows[rows["chosen"]]
    numbers = ["r2_k", "r2_v", "cosine_k", "cosine_v", "mean_cosine_k", "mean_cosine_v"]
    mean = {name: float(chosen[name].mean()) for name in numbers}
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    heads = (
        "receiver\nlayer",
        "sharer\nlayer",
        "R²\nkeys",
        "R²\nvalues",
        "cosine\nkeys",
        "cosine\nvalues",
        "by mean\nkeys",
        "by mean\nvalues",
    )
    for head in heads:
        grid.add_column(head, justify="right", no_wrap=True)
    for line in chosen.to_dict("records"):
        grid.add_row(str(line["receiver_layer"]), line["sharer_layers"], *(f"{line[n]:.2f}" for n in numbers))
    grid.add_row("mean", "", *(f"{mean[n]:.2f}" for n in numbers), style="bold")
    pair = f"{identity['receiver']} ← {identity['sharer']}"
    how = (
        "best of all sharer layers"
        if identity["map"] == "best"
        else f"{identity['map']} map, {identity['sources']} sharer layer(s)"
    )
    facts = f"{identity['source']}; {manifest['train_tokens']:,} tokens fitted, {manifest['held_out_tokens']:,} held out; {how}"
    summary = {
        "oracle": "transform", "receiver": identity["receiver"], "sharer": identity["sharer"], "source": identity["source"], "map": identity["map"],
        "sources": identity["sources"], "train_tokens": manifest["train_tokens"], "held_out_tokens": manifest["held_out_tokens"], **mean,
        "layer_map": chosen["sharer_layers"].tolist(), "sentence": transform_sentence(chosen, mean, manifest),
    }  # fmt: skip

    def draw() -> list[Path]:
        return plot_transform(rows, pair, facts, place.folder) + plot_points(
            place.table("points"), pair, facts, place.folder
        )

    return summary, _headed(f"{pair}\n{facts}", grid), draw


def transform_sentence(chosen: pd.DataFrame, mean: dict[str, float], manifest: dict[str, Any]) -> str:
    """What the fit means."""
    both = sorted(
        ((k + v) / 2, int(t))
        for t, k, v in zip(chosen["receiver_layer"], chosen["r2_k"], chosen["r2_v"], strict=True)
    )
    at = both[-1][1], both[0][1]
    said = (
        f"On held-out text a linear map of the sharer's cache meets {100 * mean['r2_k']:.0f} % of the variance of the receiver's keys and "
        f"{100 * mean['r2_v']:.0f} % of its values; best in layer {at[0]}, worst in layer {at[1]}. Cosines are high for keys whatever is mapped: "
        "`by mean` reads nothing."
    )
    if manifest["train_tokens"] < 2 * manifest["inputs"]:
        said += f" {manifest['train_tokens']:,} tokens are few for {manifest['inputs']:,} inputs: more --tokens would raise it."
    return said


def _headed(title: str, grid: Any) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    return Group(Text(title, style="bold"), Padding(grid, (0, 0, 1, 2)))
