"""Prunes layers of a trained adapter, without fine-tuning: most can go (LCF, arXiv 2605.22863v2).

1. Layers with shut gates go. 2. Layers that hurt go, found by leaving out one layer at a time on
the *dev* split. 3. The rest are ranked by the loss of score without them, and the first K stay. All
ablations of a batch share its two prefills, so that they take minutes, not a run a layer.

>>> recipe = PruneRecipe(adapter=Path("adapters/mine"), dev="splitfacts", keep=[9, 6])
>>> reports = prune(recipe, progress)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.card import card
from lcfbench.adapters.config import WEIGHTS, read_config, recorded_names, weights_sha256
from lcfbench.adapters.files import PICTURE, REPORT, load, making, save, stored_dtype
from lcfbench.errors import UserError
from lcfbench.methods.create import method_class
from lcfbench.methods.load_pair import CONDITIONS, load_adapter, load_pair, other_revisions
from lcfbench.methods.needs import check_needs
from lcfbench.progress import PruneProgress
from lcfbench.tasks.task import load_task
from lcfbench.training.ablation import Bench, Found, method_for
from lcfbench.training.recipe import PruneRecipe

SHUT = 0.01  # a soft gate counts as shut below this share of the edit, for keys and for values
SAME = 1e-9  # scores nearer than this are equal
FACTS = (
    "adapter",
    "sha256",
    "method",
    "task",
    "task_options",
    "split",
    "documents",
    "seed",
    "metric",
    "kept",
    "seconds",
)


def prune(recipe: PruneRecipe, progress: PruneProgress) -> list[dict[str, Any]]:
    """Prunes, saves each smaller adapter with its card and report, and returns the reports.

    Several numbers of layers share the ablation.

    Raises UserError: an adapter that cannot be pruned, one that does not fit the pair or the task,
    one without a layer that helps, an --out that is taken, or that another process writes.
    """
    read_config(recipe.adapter)
    with ExitStack() as stack:
        places = recipe.folders().items()
        return _prune(recipe, progress, {k: stack.enter_context(making(f, recipe.force)) for k, f in places})


def _prune(
    recipe: PruneRecipe, progress: PruneProgress, folders: dict[int | None, Path]
) -> list[dict[str, Any]]:
    began = time.perf_counter()
    config = read_config(recipe.adapter)
    if above := [keep for keep in folders if keep is not None and keep > len(config.layers)]:
        raise UserError(
            f"--keep is {above[0]}; this adapter has {len(config.layers)} layers.", "Keep 1 or more of them."
        )
    task = load_task(recipe.dev, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options)
    task.metric(recipe.scoring)
    mode = method_for(config.kind, config.training.get("method"))
    pair = load_pair(
        recipe.pair or ":".join(config.pair),
        roles=method_class(mode).roles,
        **recipe.model_dump(include=CONDITIONS),
    )
    receiver, sharer = pair.models_for(method_class(mode).roles)
    check_needs(mode, receiver, sharer, config)
    whole = load_adapter(recipe.adapter, pair, mode)
    if other := other_revisions(config, receiver, sharer):
        progress.warn(
            f"adapter {recipe.adapter.name} was trained on other weights: {other}. Expect it to do worse."
        )
    documents = task.documents(
        scoring=recipe.scoring, split="validation", limit=recipe.limit, receiver_chat=receiver.has_chat
    )
    bench = Bench(
        receiver, sharer, mode, recipe.options, task, documents, recipe.batch_size, recipe.seed, progress
    )
    bench.check(whole)

    alive, count = audit(whole), len(config.layers)
    progress.say(
        f"{mode} on {len(documents)} dev documents of {task.name}: {count - len(alive)} of {count} "
        f"layers have shut gates, {len(alive)} are left out in turn."
    )
    if not alive:
        raise UserError(
            f"every gate of {recipe.adapter} is shut: it changes nothing.",
            "Train it longer, or with -o gate_init=1.",
        )
    base, without, found = ablate(bench, whole, alive)
    rows = {asked: judge(whole, alive, base, without, asked) for asked in folders}
    kept = {asked: [i for i, row in enumerate(some) if row["fate"] == "kept"] for asked, some in rows.items()}
    if not all(kept.values()):
        raise UserError(
            f"{recipe.adapter} does better without any one of its layers on {task.name}.",
            "Raise --limit, or train it longer.",
        )
    makers = {f"pruned {asked}": partial(whole.select, keep) for asked, keep in kept.items()}
    with torch.inference_mode():
        found |= bench.measure(makers, deranged=tuple(makers))
    facts = {
        "adapter": recipe.adapter.resolve().name,
        "sha256": weights_sha256(recipe.adapter),
        "pair": ":".join(recorded_names(pair.names)),
        "method": mode,
        "options": bench.method(whole).options(),
        "gate": whole.gate_mode,
        "task": task.name,
        "task_options": task.options,
        "split": "validation",
        "scoring": documents[0].scoring,
        "metric": task.metric(documents[0].scoring),
        "documents": len(documents),
        "seed": recipe.seed,
        "models_dtype": str(receiver.dtype).removeprefix("torch."),
        "whole": {"layers": count, "params": whole.params, **means_of(found, "whole")},
    }
    reports = []
    for asked, folder in folders.items():
        report = facts | {
            "asked": asked,
            "kept": [rows[asked][i]["layer"] for i in kept[asked]],
            "pruned": {"layers": len(kept[asked]), **means_of(found, f"pruned {asked}")},
            "layers": rows[asked],
            "seconds": round(time.perf_counter() - began, 1),
        }
        report = save_pruned(recipe, report, kept[asked], folder)
        reports.append(report | {"folder": str(recipe.folders()[asked])})
    return reports


@torch.inference_mode()
def ablate(
    bench: Bench, whole: Adapter, alive: list[int]
) -> tuple[dict[str, float], list[dict[str, float]], Found]:
    """Measures the adapter without each of its `alive` layers in turn.

    Returns the means of the adapter with all of them, those without each, and all that was measured.
    """
    audited = whole.select(alive) if len(alive) < len(whole.config.layers) else whole
    makers: dict[str, Callable[[], Adapter]] = {"whole": lambda: whole}
    if audited is not whole:
        makers["audited"] = lambda: audited
    for i in range(len(alive)):
        makers[f"without {i}"] = partial(audited.select, [j for j in range(len(alive)) if j != i])
    found = bench.measure(makers, deranged=("whole",))
    base = found.get(("audited", "matched"), found["whole", "matched"])
    without = [found[f"without {i}", "matched"] for i in range(len(alive))]
    return base, without, found


def audit(adapter: Adapter) -> list[int]:
    """Returns the stack indices with open gates; soft ones count from `SHUT` on."""
    if adapter.gate_mode == "soft":
        return (torch.sigmoid(adapter.gate_logit.float()) >= SHUT).any(1).nonzero()[:, 0].tolist()
    return adapter.open_layers()


def judge(
    whole: Adapter,
    alive: list[int],
    base: dict[str, float],
    without: list[dict[str, float]],
    keep: int | None,
) -> list[dict[str, Any]]:
    """Returns a row for each layer: its gates, the loss without it, and its fate.

    Fates are shut, hurts, outranked and kept. A layer hurts where the score rises without it; where
    the score is equal, where the gold answer's likelihood rises.
    """
    gates, logits = torch.sigmoid(whole.gate_logit.float()).tolist(), whole.gate_logit.tolist()
    unmeasured = dict.fromkeys(("score_without", "loglik_without", "importance", "loglik_importance", "rank"))
    rows: list[dict[str, Any]] = []
    for i, (layer, reads) in enumerate(zip(whole.config.layers, whole.config.layer_map, strict=True)):
        row = {"layer": layer, "reads": reads, "logit_key": logits[i][0], "logit_value": logits[i][1]}
        rows.append(row | {"gate_key": gates[i][0], "gate_value": gates[i][1], "fate": "shut"} | unmeasured)
    for i, left in zip(alive, without, strict=True):
        rows[i]["score_without"], rows[i]["loglik_without"] = left["score"], left["loglik"]
        rows[i]["importance"] = base["score"] - left["score"]
        rows[i]["loglik_importance"] = base["loglik"] - left["loglik"]
        rows[i]["fate"] = "hurts" if _worth(rows[i]) < (0, 0) else "kept"
    helpful = [i for i in alive if rows[i]["fate"] == "kept"]
    helpful.sort(key=lambda i: _worth(rows[i]), reverse=True)
    for rank, i in enumerate(helpful):
        rows[i]["rank"] = rank + 1
        if keep is not None and rank >= keep:
            rows[i]["fate"] = "outranked"
    return rows


def _worth(row: dict[str, Any]) -> tuple[float, float]:
    """Returns the sort key of layers: the score that is lost without it, then the likelihood."""
    score = row["importance"] if abs(row["importance"]) > SAME else 0.0
    return score, row["loglik_importance"]


def means_of(found: Found, name: str) -> dict[str, Any]:
    """Returns the means of one adapter; `deranged` is None for a method that sends nothing."""
    return {control: found.get((name, control)) for control in ("matched", "deranged")}


def save_pruned(recipe: PruneRecipe, report: dict[str, Any], keep: list[int], folder: Path) -> dict[str, Any]:
    """Saves the kept layers in `folder` with card, report and figure. Returns the full report."""
    from lcfbench.analysis.plots.layers import draw_layers  # matplotlib is slow to import

    shorter = load(recipe.adapter).select(keep)  # from the file again: as exact as it was saved
    dropped = {
        fate: [r["layer"] for r in report["layers"] if r["fate"] == fate]
        for fate in ("shut", "hurts", "outranked")
    }
    pruned = report["pruned"] | {"params": shorter.params}
    facts = {k: report[k] for k in FACTS} | {"dropped": dropped, "whole": report["whole"], "pruned": pruned}
    if earlier := shorter.config.training.get("pruned"):
        facts["earlier"] = earlier
    training = shorter.config.training | {"pruned": facts}
    shorter.config = shorter.config.model_copy(update={"training": training})
    save(shorter, folder, card(shorter), stored_dtype(recipe.adapter))
    whole = report["whole"] | {"bytes": (recipe.adapter / WEIGHTS).stat().st_size}
    pruned |= {"bytes": (folder / WEIGHTS).stat().st_size}
    report = report | {"whole": whole, "pruned": pruned}
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    draw_layers(report, folder / PICTURE)
    return report
