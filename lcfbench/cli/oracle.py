"""`lcfbench oracle …`: how much could be gained and how much can be mapped, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.cli import options
from lcfbench.cli.console import echo, note
from lcfbench.cli.options import JsonOption
from lcfbench.progress import quiet_libraries
from lcfbench.tables import Column, Table

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.oracle.record import OracleRun

Shown = tuple[dict[str, Any], Table, Callable[[], list[Path]]]
NUMBERS = ("r2_k", "r2_v", "cosine_k", "cosine_v", "mean_cosine_k", "mean_cosine_v")
HEADS = ("R²\nkeys", "R²\nvalues", "cosine\nkeys", "cosine\nvalues", "by mean\nkeys", "by mean\nvalues")
VARIABLES = (*options.SHARED, "out")

oracle_app = options.group("What could be gained, and what can be mapped, before training.")


@oracle_app.command("enrich")
@options.flags("lcfbench.oracle.recipe:Enrich", VARIABLES)
def enrich(as_json: JsonOption = False, **given: Any) -> None:
    """Measure whether a cache of the same length that has seen more would answer better.

    Three conditions: direct, with examples or both texts in front, and the question's slice alone.
    """
    from lcfbench.oracle.recipe import Enrich

    chosen: Enrich = options.merged(Enrich, given, None, "oracle enrich")
    quiet_libraries()
    from lcfbench.oracle.enrich import run_enrich

    found = run_enrich(chosen, note)
    _show(found, enrich_parts(found), as_json)


@oracle_app.command("transform")
@options.flags("lcfbench.oracle.recipe:Transform", VARIABLES)
def transform(as_json: JsonOption = False, **given: Any) -> None:
    """Measure how much of the receiver's cache a linear map of the sharer's explains on the same text.

    R² and cosine, layer by layer.
    """
    from lcfbench.oracle.recipe import Transform

    chosen: Transform = options.merged(Transform, given, None, "oracle transform")
    quiet_libraries()
    from lcfbench.oracle.transform import run_transform

    found = run_transform(chosen, note)
    _show(found, transform_parts(found), as_json)


def _show(run: OracleRun, shown: Shown, as_json: bool) -> None:
    summary, table, draw = shown
    plots = draw()  # always: a command that was killed may have left some of them
    if as_json:
        echo(json.dumps({**summary, "folder": str(run.folder), "plots": [str(p) for p in plots]}))
        return
    from lcfbench.cli import tables

    table.remarks.append(("", summary["sentence"]))
    tables.show(table)
    note(f"recorded in {run.folder}; plots: {', '.join(p.name for p in plots if p.suffix == '.png')}")


# -- enrich ---------------------------------------------------------------------------------------


def condition_names(identity: dict[str, Any]) -> dict[str, str]:
    """Names of the three conditions in tables and plots."""
    examples = f"{len(identity['examples'])} examples in front"
    front = examples if identity["before"] == "examples" else "both texts"
    return {
        "direct": "direct: question alone",
        "kept": f"kept: {front}",
        "oracle": "oracle: question's slice",
    }


def enrich_parts(run: OracleRun) -> Shown:
    """The summary for machines, the table, and a function that draws the plots."""
    from lcfbench.analysis.plots.oracle import plot_enrich
    from lcfbench.analysis.stats import mean_interval, paired_difference

    rows, manifest = run.table("rows"), run.manifest()
    identity = manifest["identity"]
    names = condition_names(identity)
    score = {c: rows[rows["condition"] == c].sort_values("doc_index")["score"].to_numpy() for c in names}
    tokens = {"direct": "question_tokens", "kept": "kept_tokens", "oracle": "question_tokens"}
    lines: list[dict[str, Any]] = []
    cells: list[list[str]] = []
    for c, name in names.items():
        some = rows[rows["condition"] == c]
        mean, change = mean_interval(score[c]), paired_difference(score[c], score["direct"])
        length = float(some[tokens[c]].mean()) - 1
        lines.append(
            {"condition": c, "name": name, "score": mean.value, "low": mean.low, "high": mean.high}
            | {"change": change.value, "change_low": change.low, "change_high": change.high, "p": change.p}
            | {"gold_ll": float(some["gold_ll"].mean()), "cache_tokens": length}
        )
        gained = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        interval = f"{100 * mean.low:.0f}–{100 * mean.high:.0f}"
        cells.append(
            [name, f"{100 * mean.value:.1f}", interval, "–" if c == "direct" else gained, f"{length:.0f}"]
        )
    heads = ("score %", "95 %", "change [95 %]", "cache\ntokens")
    n, layers = manifest["documents"], _best_layers(rows) if identity["per_layer"] else []
    title = f"{identity['task']} ({identity['scoring']}), {identity['model']}, {n} documents"
    summary = {
        "oracle": "enrich",
        **{key: identity[key] for key in ("model", "task", "scoring")},
        "documents": n,
        "metric": manifest["metric"],
        "conditions": lines,
        "layers": layers,
        "sentence": enrich_sentence(lines, layers, n),
    }
    table = Table(title, [Column("condition", wrap=True), *(Column(h, right=True) for h in heads)], cells)
    return summary, table, lambda: plot_enrich(rows, names, title, run.folder)


def enrich_sentence(lines: list[dict[str, Any]], layers: list[dict[str, Any]], documents: int) -> str:
    """Says in words what the three numbers mean."""
    kept, oracle = lines[1], lines[2]

    def change(line: dict[str, Any]) -> str:
        low, high = 100 * line["change_low"], 100 * line["change_high"]
        return f"{100 * line['change']:+.1f} points (95 % {low:+.1f} to {high:+.1f})"

    if oracle["change_low"] > 0:
        more = "A cache of the same length that has seen more answers better by"
        text = f"{more} {change(oracle)}: editing the cache can gain that much here"
    elif oracle["change_high"] < 0:
        why = "the text it has seen does not survive without the entries it attends to"
        text = f"The slice alone answers worse by {change(oracle)}: {why}"
    else:
        text = f"No gain shown at n={documents} from the enriched slice: {change(oracle)}"
    text += f"; with everything kept it is {change(kept)}."
    if not layers:
        return text
    by_likelihood = "gold_ll" in layers[0]
    gains = (
        f"{x['layer']} ({x['gold_ll']:+.2f} nats)"
        if by_likelihood
        else f"{x['layer']} ({100 * x['score']:+.1f})"
        for x in layers
    )
    of = " in the right answer's likelihood" if by_likelihood else ""
    return f"{text} Largest gain{of} from one layer: {', '.join(gains)}."


def _best_layers(rows: pd.DataFrame, count: int = 3) -> list[dict[str, Any]]:
    """The layers whose enrichment alone gains most.

    Compared by the right answer's log-likelihood where it is known, else by the score.
    """
    direct = rows[rows["condition"] == "direct"][["score", "gold_ll"]].mean()
    change = rows[rows["condition"] == "layer"].groupby("layer")[["score", "gold_ll"]].mean() - direct
    by = "gold_ll" if change["gold_ll"].notna().all() else "score"
    top = change.sort_values(by, ascending=False, kind="stable").head(count)
    found = zip(top.index.tolist(), top.to_dict("records"), strict=True)
    return [{"layer": int(n), **{str(k): float(v) for k, v in row.items() if v == v}} for n, row in found]


# -- transform ------------------------------------------------------------------------------------


def transform_parts(run: OracleRun) -> Shown:
    """The summary for machines, the table, and a function that draws the plots."""
    from lcfbench.analysis.plots.oracle import plot_points, plot_transform

    rows, manifest = run.table("rows"), run.manifest()
    identity = manifest["identity"]
    chosen = rows[rows["chosen"]]
    mean = {name: float(chosen[name].mean()) for name in NUMBERS}
    cells = [
        [str(line["receiver_layer"]), str(line["sharer_layers"]), *(f"{line[n]:.2f}" for n in NUMBERS)]
        for line in chosen.to_dict("records")
    ]
    cells.append(["mean", "", *(f"{mean[n]:.2f}" for n in NUMBERS)])
    pair = f"{identity['receiver']} ← {identity['sharer']}"
    mapped = f"{identity['map']} map, {identity['sources']} sharer layer(s)"
    how = "best of all sharer layers" if identity["map"] == "best" else mapped
    fitted, held_out = manifest["train_tokens"], manifest["held_out_tokens"]
    facts = f"{identity['source']}; {fitted:,} tokens fitted, {held_out:,} held out; {how}"
    summary = {
        "oracle": "transform",
        **{key: identity[key] for key in ("receiver", "sharer", "source", "map", "sources")},
        "train_tokens": fitted,
        "held_out_tokens": held_out,
        **mean,
        "layer_map": chosen["sharer_layers"].tolist(),
        "sentence": transform_sentence(chosen, mean, manifest),
    }
    columns = [Column(head, right=True) for head in ("receiver\nlayer", "sharer\nlayer", *HEADS)]
    table = Table((pair, facts), columns, cells, [*[""] * len(chosen), "bold"])

    def draw() -> list[Path]:
        drawn = plot_transform(rows, pair, facts, run.folder)
        return drawn + plot_points(run.table("points"), pair, facts, run.folder)

    return summary, table, draw


def transform_sentence(chosen: pd.DataFrame, mean: dict[str, float], manifest: dict[str, Any]) -> str:
    """Says in words what the fit means."""
    by_layer = chosen.set_index("receiver_layer")[["r2_k", "r2_v"]].mean(axis=1)
    text = (
        f"On held-out text a linear map of the sharer's cache meets {100 * mean['r2_k']:.0f} % of the "
        f"variance of the receiver's keys and {100 * mean['r2_v']:.0f} % of its values; best in layer "
        f"{by_layer.idxmax()}, worst in layer {by_layer.idxmin()}. "
        "Cosines of keys are high for any map: even `by mean`, which reads nothing, has them."
    )
    if manifest["train_tokens"] < 2 * manifest["inputs"]:
        few = f"{manifest['train_tokens']:,} tokens are few for {manifest['inputs']:,} inputs"
        text += f" {few}: more --tokens would raise it."
    return text
