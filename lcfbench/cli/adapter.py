"""`lcfbench adapter …`: sizes, contents, pruning, the Hub, and fusers in C2C's layout."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli import options
from lcfbench.cli.console import echo
from lcfbench.cli.options import ForceOption, JsonOption, OfflineOption
from lcfbench.cli.progress import PruneLine
from lcfbench.cli.signals import interrupted
from lcfbench.errors import UserError, unknown
from lcfbench.progress import duration, quiet_libraries
from lcfbench.tables import Column, Table, printable

FATES = {"kept": "kept", "outranked": "-", "hurts": "hurts", "shut": "gates shut"}
AdapterArgument = Annotated[Path, typer.Argument(help="An adapter folder, or the name of a shipped one.")]

adapter_app = options.group("Adapters: size, contents, pruning, to and from the Hub.")


def _size_flags() -> list[inspect.Parameter]:
    """Flags of `adapter size`: the kinds there are, and the fields of a training it has in common."""
    from lcfbench.registry import kinds
    from lcfbench.training.recipe import TrainRecipe

    mode = typer.Option(help="Kind of adapter.", metavar="|".join(kinds()))
    common = [n for n in ("pair", "options", "offline", "trust_remote_code") if n in TrainRecipe.model_fields]
    return [
        options.parameter("mode", Annotated[str, mode], "lcf"),
        *(options.flag(n, TrainRecipe.model_fields[n], n in options.SHARED) for n in common),
    ]


@adapter_app.command("size")
@options.late(_size_flags)
def adapter_size(as_json: JsonOption = False, **given: Any) -> None:
    """Parameters and bytes of an adapter from the geometry of the pair alone: no weights, no network.

    Options are those of the adapter (width, hidden, …) and `layers`, the number of receiver layers.
    """
    from lcfbench.training.recipe import TrainRecipe

    mode = given.pop("mode")
    asked: TrainRecipe = options.merged(TrainRecipe, given, None, "adapter size")
    size = size_of(mode, asked.pair, dict(asked.options), asked.offline, asked.trust_remote_code)
    form = "{kind} {pair}: {params:,} parameters in {layers} layers, {mb_bf16} MB in bf16"
    echo(json.dumps(size) if as_json else form.format(**size))


def size_of(
    kind: str, pair: str, given: dict[str, str], offline: bool, trusted: bool = False
) -> dict[str, Any]:
    """Counts parameters and bytes of a fresh adapter for a pair, built without storage."""
    import torch

    from lcfbench.adapters.base import build
    from lcfbench.adapters.config import pair_config
    from lcfbench.adapters.options import adapter_options
    from lcfbench.models.layout import geometry_named
    from lcfbench.registry import kinds
    from lcfbench.sources.models import split_pair

    if kind not in kinds():
        raise unknown("adapter kind", kind, kinds(), "lcfbench adapter size --help")
    layers = given.pop("layers", None)
    if layers is not None and not layers.isdecimal():
        raise UserError(f"layers={layers} is not a number.", "Use -o layers=9, say.")
    settings, alignment = adapter_options(kind, given, small_scale=False)
    receiver, sharer = (
        (name, geometry_named(name, offline=offline, trust_remote_code=trusted)) for name in split_pair(pair)
    )
    count = int(layers) if layers else None
    config = pair_config(kind, receiver, sharer, options=settings, layers=count, **alignment)
    with torch.device("meta"):
        params = build(config).params
    return {
        "kind": kind,
        "pair": pair,
        "params": params,
        "layers": len(config.layers),
        "bytes_bf16": 2 * params,
        "mb_bf16": round(2 * params / 1e6, 1),
        "options": settings,
    }


@adapter_app.command("find")
def adapter_find(
    mode: Annotated[str, typer.Option(help="A method that runs adapters.")],
    pair: Annotated[
        str, typer.Option(help="RECEIVER:SHARER: aliases, Hub ids (NAME@REVISION) or local folders.")
    ],
    task: Annotated[
        str | None, typer.Option(help="A task; without it, what an adapter at hand is for.")
    ] = None,
    offline: OfflineOption = None,
) -> None:
    """Show which adapter a run takes where none is given, and where it is.

    A released fuser is imported for that, and an adapter of the Hub fetched.
    """
    from lcfbench.evaluation.plan import look_up, variants_of, with_tasks
    from lcfbench.evaluation.recipe import Recipe

    quiet_libraries()
    asked = {"mode": mode, "pair": pair, "task": task, "offline": bool(offline)}
    recipe = with_tasks(Recipe.merge(None, asked))
    for name, variants in variants_of(recipe, look_up(recipe)).items():
        for variant in variants:
            echo(f"{variant.mode} on {name}: {variant.why or 'runs no adapter'}")


@adapter_app.command("info")
def adapter_info(
    folder: Annotated[
        Path, typer.Argument(help="An adapter folder, its weights file, or the name of a shipped one.")
    ],
    as_json: JsonOption = False,
) -> None:
    """What an adapter fits, how large it is, what it is proven to do, how it was trained, its gates."""
    facts = adapter_facts(folder)
    if as_json:
        echo(json.dumps(facts))
        return
    training, proofs = dict(facts.pop("training")), facts.pop("proof")
    logits = [v for row in facts.pop("gate_logits_key_value") for v in row]
    facts["params"], facts["bytes"] = f"{facts['params']:,}", f"{facts['bytes']:,}"
    facts["layers"] = f"{len(facts['layers'])} of the receiver's: {ranges(facts['layers'])}"
    facts["layer_map"] = f"they read the sharer's {', '.join(map(str, facts['layer_map']))}"
    facts["gate logits"] = f"{min(logits):.2f} to {max(logits):.2f}"
    if source := facts.pop("source"):
        facts["fetched from"] = "@".join(str(source[n]) for n in ("repository", "commit") if n in source)
    curve = training.pop("dev", [])
    lines = [f"{key.replace('_', ' ')}: {said(value)}" for key, value in facts.items()]
    lines += [f"proof {each['sentence']}" for each in proofs] or ["proof: none"]
    lines += [f"training {key.replace('_', ' ')}: {said(value)}" for key, value in training.items()]
    for point in curve:
        values = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
        lines.append("dev " + ", ".join(values))
    echo("\n".join(printable(line, one_line=True) for line in lines))


def said(value: Any) -> str:
    """A fact for people: yes, no, –, and lists and settings without brackets and quotes."""
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {said(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value))
    return str(value)


def adapter_facts(place: Path) -> dict[str, Any]:
    """The facts of an adapter: a folder, its weights file, or a shipped adapter's name. Raises UserError."""
    from lcfbench.adapters.config import SOURCE, WEIGHTS, read_config, weights_sha256
    from lcfbench.adapters.files import load
    from lcfbench.adapters.select import find_adapter
    from lcfbench.parsing import load_json
    from lcfbench.publishing.adapter import sound_proofs

    folder = find_adapter(place.parent if place.suffix == ".safetensors" else place)
    config, adapter = read_config(folder), load(folder)
    return {
        "folder": str(folder),
        "kind": config.kind,
        "receiver": config.receiver,
        "sharer": config.sharer,
        "params": adapter.params,
        "bytes": (folder / WEIGHTS).stat().st_size,
        "sha256": weights_sha256(folder),
        "layers": list(config.layers),
        "layer_map": list(config.layer_map),
        "layers_open": len(adapter.open_layers()),
        "token_alignment": config.token_alignment,
        "options": config.options,
        "source": load_json(folder / SOURCE, "source") if (folder / SOURCE).is_file() else None,
        "proof": [
            {"sentence": proof.sentence, **proof.model_dump(mode="json", exclude={"documents"})}
            for proof in sound_proofs(folder)
        ],
        "training": config.training,
        "gate_logits_key_value": [[round(float(v), 3) for v in row] for row in adapter.gate_logit],
    }


@adapter_app.command("import-c2c")
def adapter_import(
    fuser: Annotated[
        str, typer.Argument(help="A fuser as C2C releases them: a folder, or ORG/NAME/SUBFOLDER on the Hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    dtype: Annotated[str, typer.Option(help="Of the matrices as saved.", metavar="bf16|fp32")] = "bf16",
    force: ForceOption = False,
    offline: OfflineOption = None,
) -> None:
    """Make an adapter of a fuser in C2C's released layout.

    For instance nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser.
    """
    import torch

    from lcfbench.adapters.c2c_files import import_to

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in dtypes:
        raise UserError(f"--dtype {dtype}.", "Use bf16 or fp32.")
    adapter = import_to(fuser, out, force=force, dtype=dtypes[dtype], offline=bool(offline))
    c = adapter.config
    echo(f"saved {out}: {adapter.params:,} parameters for {c.receiver}:{c.sharer}")


@adapter_app.command("compose")
def adapter_compose(
    hub: Annotated[Path, typer.Argument(help="A folder of codecs, as `train --mode hub -o hub=` makes it.")],
    pair: Annotated[str, typer.Option(help="RECEIVER:SHARER, two models of the hub.")],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    force: ForceOption = False,
    offline: OfflineOption = None,
) -> None:
    """Make a pair's adapter of two codecs of a hub: the sharer's encoder, the receiver's decoder.

    The two need never have been trained together.
    """
    from lcfbench.methods.hub import compose

    quiet_libraries()
    adapter = compose(hub, pair, out, force=force, offline=bool(offline))
    test = f"lcfbench run --mode hub --pair {shlex.quote(pair)} --adapter {shlex.quote(str(out))}"
    echo(f"saved {out}: {adapter.params:,} parameters; use it with: {test}")


@adapter_app.command("prune")
@options.flags("lcfbench.training.recipe:PruneRecipe")
def adapter_prune(adapter: AdapterArgument, as_json: JsonOption = False, **given: Any) -> None:
    """Leave out layers: those with shut gates, those that hurt, and all but the K most important ones.

    No fine-tuning. A layer's importance is the loss on the dev split without it; both models read
    each batch once for all layers. Beside the smaller adapter and its card: pruning.json and pruning.png.
    """
    from lcfbench.adapters.select import find_adapter
    from lcfbench.training.recipe import PruneRecipe

    given["adapter"] = find_adapter(adapter)
    recipe: PruneRecipe = options.merged(PruneRecipe, given, None, "adapter prune")
    quiet_libraries()
    try:
        from lcfbench.training.prune import prune

        reports = prune(recipe, PruneLine())
    except KeyboardInterrupt:
        interrupted("nothing was written")
    if as_json:
        echo(json.dumps(reports[0] if len(reports) == 1 else reports))
        return
    from lcfbench.cli import tables

    for report in reports:
        tables.show(layers_table(report), before_after(report))
    first = reports[0]
    pair = recipe.pair or first["pair"]
    test = f"lcfbench run --mode {first['method']} --pair {shlex.quote(pair)} --task {first['task']}"
    test += "".join(f" --adapter {report['folder']}" for report in reports)
    saved = ", ".join(report["folder"] for report in reports)
    echo(f"saved {saved}; judge {'it' if len(reports) == 1 else 'them'} on the test split: {test}")


def layers_table(report: dict[str, Any]) -> Table:
    """A line a layer: gates, the loss without it, its rank and fate."""
    soft = report["gate"] == "soft"
    gate, (key, value) = (
        ("gate", ("gate_key", "gate_value")) if soft else ("logit", ("logit_key", "logit_value"))
    )
    heads = ("layer", "reads", f"{gate} K", f"{gate} V", f"{report['metric']} lost", "logl. lost", "rank")
    rows = []
    for row in report["layers"]:
        tried = row["importance"] is not None
        lost = [f"{100 * row['importance']:+.1f}", f"{row['loglik_importance']:+.4f}"] if tried else ["", ""]
        gates = [f"{row[key]:.2f}", f"{row[value]:.2f}"]
        rows.append(
            [str(row["layer"]), str(row["reads"]), *gates, *lost, str(row["rank"] or ""), FATES[row["fate"]]]
        )
    styles = ["" if row["fate"] == "kept" else "dim" for row in report["layers"]]
    return Table("", [*(Column(head, right=True) for head in heads), Column("")], rows, styles)


def before_after(report: dict[str, Any]) -> Table:
    """The whole adapter and the pruned one side by side."""
    heads = ("layers", "MB", "matched", "deranged", "log-likelihood")
    rows = []
    for name in ("whole", "pruned"):
        one = report[name]
        deranged = f"{100 * one['deranged']['score']:.1f}" if one["deranged"] else "sends nothing"
        matched, loglik = f"{100 * one['matched']['score']:.1f}", f"{one['matched']['loglik']:.3f}"
        rows.append([name, str(one["layers"]), f"{one['bytes'] / 1e6:.2f}", matched, deranged, loglik])
    n, kept, asked = report["documents"], len(report["kept"]), report["asked"]
    split = (
        f"{report['task']}, {n} dev documents; the layers were chosen on them, so the pruned line flatters."
    )
    remarks = [("", f"{split} {duration(report['seconds'])}.")]
    if asked is not None and kept < asked:
        remarks.append(("", f"Only {kept} layers help, so {kept} stay, not {asked}."))
    columns = [Column(""), *(Column(head, right=True) for head in heads)]
    return Table("", columns, rows, remarks=remarks)


def ranges(numbers: list[int]) -> str:
    """`0–3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
