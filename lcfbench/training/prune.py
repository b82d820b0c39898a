"""Layer pruning after training, without fine-tuning (LCF, arXiv 2605.22863v2; methods.md, section 5): most layers of an adapter can go.

1. Layers whose gates are shut go. 2. Layers that hurt go, found by leaving out one layer at a time on the *dev* split. 3. The rest are ranked by
what their absence costs, and the first K stay. All ablations of a batch share its two prefills, so that they cost minutes, not a run a layer.

>>> report = prune(PruneRecipe(Path("adapters/mine"), dev="splitfacts", keep=9), progress)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.card import card
from lcfbench.adapters.config import WEIGHTS, read_config, weights_sha256
from lcfbench.adapters.files import PICTURE, REPORT, check_free, load, making, save, stored_dtype
from lcfbench.errors import UserError
from lcfbench.methods.create import method_class
from lcfbench.methods.load_pair import other_revisions
from lcfbench.models.causal_lm import CausalLM
from lcfbench.progress import PruneProgress
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.task import load_task
from lcfbench.training.ablation import Bench, Found, method_for
from lcfbench.training.recipe import PruneRecipe

SHUT = 0.01  # a soft gate is never quite shut: below this share of the edit, for keys and for values, it counts as shut
SAME = 1e-9  # scores nearer than this are equal


def prune(recipe: PruneRecipe, progress: PruneProgress) -> dict[str, Any]:
    """Prunes by the three steps, saves the smaller adapter with its card, `pruning.json` and `pruning.png`, and returns the report.

    Raises UserError: an adapter that cannot be pruned, one that does not fit the pair or the task, none of whose layers helps, an --out that is taken.
    """
    began = time.perf_counter()
    config = read_config(recipe.adapter)
    if recipe.keep is not None and recipe.keep > len(config.layers):
        raise UserError(
            f"--keep is {recipe.keep}; this adapter has {len(config.layers)} layers.",
            "Keep 1 or more of them.",
        )
    check_free(recipe.folder, recipe.force)
    task = load_task(recipe.dev, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options)
    task.metric(recipe.scoring)
    mode = method_for(config.kind, config.training.get("method"))
    names = split_pair(recipe.pair or f"{config.receiver}:{config.sharer}")
    receiver = CausalLM.load(
        find_model(names[0], offline=recipe.offline), dtype=recipe.dtype, device=recipe.device
    )
    one = names[0] == names[1] or method_class(mode).roles == ("receiver",)
    sharer = (
        receiver
        if one
        else CausalLM.load(
            find_model(names[1], offline=recipe.offline), dtype=recipe.dtype, device=recipe.device
        )
    )
    config.check_fits(receiver.geometry, sharer.geometry, str(recipe.adapter))
    whole = load(recipe.adapter, receiver.device, receiver.dtype)
    if other := other_revisions(whole.config, receiver, sharer):
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

    alive = audit(whole)
    progress.say(
        f"{mode} on {len(documents)} dev documents of {task.name}: {len(whole.config.layers) - len(alive)} of {len(whole.config.layers)} "
        f"layers have shut gates, {len(alive)} are left out in turn."
    )
    if not alive:
        raise UserError(
            f"every gate of {recipe.adapter} is shut: it changes nothing.",
            "Train it longer, or with -o gate_init=1.",
        )
    audited = whole.select(alive) if len(alive) < len(whole.config.layers) else whole
    makers: dict[str, Callable[[], Adapter]] = {"whole": lambda: whole} | (
        {} if audited is whole else {"audited": lambda: audited}
    )
    for i in range(len(alive)):
        makers[f"without {i}"] = partial(audited.select, [j for j in range(len(alive)) if j != i])
    with torch.inference_mode():
        found = bench.measure(makers, deranged=("whole",))
        base, without = (
            found.get(("audited", "matched"), found["whole", "matched"]),
            [found[f"without {i}", "matched"] for i in range(len(alive))],
        )
        rows = judge(whole, alive, base, without, recipe.keep)
        keep = [i for i, row in enumerate(rows) if row["fate"] == "kept"]
        if not keep:
            raise UserError(
                f"{recipe.adapter} does better without any one of its layers on {task.name}.",
                "Raise --limit, or train it longer.",
            )
        found |= bench.measure({"pruned": lambda: whole.select(keep)}, deranged=("pruned",))
    report = {
        "adapter": recipe.adapter.resolve().name,
        "sha256": weights_sha256(recipe.adapter),
        "pair": f"{config.receiver}:{config.sharer}",
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
        "asked": recipe.keep,
        "kept": [rows[i]["layer"] for i in keep],
        "whole": {"layers": len(rows), "params": whole.params, **means_of(found, "whole")},
        "pruned": {"layers": len(keep), **means_of(found, "pruned")},
        "layers": rows,
    }
    return save_pruned(recipe, report, keep, began)


def audit(adapter: Adapter) -> list[int]:
    """Stack indices that pass the gate audit: hard gates open for keys or values; soft ones that let `SHUT` or more of either through."""
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
    """One row a layer of the stack with its gates, what leaving it out changes, and its fate: shut, hurts, outranked or kept.

    A layer hurts where the score rises without it; where the score stays, where the gold answer's likelihood rises.
    """
    gates = torch.sigmoid(whole.gate_logit.float()).tolist()
    rows: list[dict[str, Any]] = [
        {
            "layer": t,
            "reads": s,
            "logit_key": k,
            "logit_value": v,
            "gate_key": gates[i][0],
            "gate_value": gates[i][1],
            "fate": "shut",
        }
        | dict.fromkeys(("score_without", "loglik_without", "importance", "loglik_importance", "rank"))
        for i, (t, s, (k, v)) in enumerate(
            zip(whole.config.layers, whole.config.layer_map, whole.gate_logit.tolist(), strict=True)
        )
    ]
    for i, left in zip(alive, without, strict=True):
        lost = {
            "importance": base["score"] - left["score"],
            "loglik_importance": base["loglik"] - left["loglik"],
        }
        rows[i] |= {
            "score_without": left["score"],
            "loglik_without": left["loglik"],
            **lost,
            "fate": "hurts" if _worth(lost) < (0, 0) else "kept",
        }
    helpful = sorted(
        (i for i in alive if rows[i]["fate"] == "kept"), key=lambda i: _worth(rows[i]), reverse=True
    )
    for rank, i in enumerate(helpful):
        rows[i]["rank"] = rank + 1
        if keep is not None and rank >= keep:
            rows[i]["fate"] = "outranked"
    return rows


def _worth(row: dict[str, Any]) -> tuple[float, float]:
    """What sorts layers: the score that is lost without it, then the likelihood."""
    score = row["importance"] if abs(row["importance"]) > SAME else 0.0
    return score, row["loglik_importance"]


def means_of(found: Found, name: str) -> dict[str, Any]:
    """What was measured of one adapter; `deranged` is None for a method that sends nothing."""
    return {control: found.get((name, control)) for control in ("matched", "deranged")}


def save_pruned(recipe: PruneRecipe, report: dict[str, Any], keep: list[int], began: float) -> dict[str, Any]:
    """The kept layers with card, report and picture, all of them or nothing. Returns the completed report."""
    from lcfbench.analysis.plots.layers import draw_layers

    shorter = load(recipe.adapter).select(keep)  # from the file again: as exact as it was saved
    fates = {
        fate: [r["layer"] for r in report["layers"] if r["fate"] == fate]
        for fate in ("shut", "hurts", "outranked")
    }
    facts = {
        k: report[k]
        for k in (
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
        )
    }
    facts |= {
        "dropped": fates,
        "whole": report["whole"],
        "pruned": report["pruned"] | {"params": shorter.params},
    }
    if earlier := shorter.config.training.get("pruned"):
        facts["earlier"] = earlier
    shorter.config = shorter.config.model_copy(
        update={"training": shorter.config.training | {"pruned": facts}}
    )
    place = recipe.folder
    with making(place, recipe.force) as folder:
        save(shorter, folder, card(shorter), stored_dtype(recipe.adapter))
        report["whole"]["bytes"] = (recipe.adapter / WEIGHTS).stat().st_size
        report["pruned"] |= {"params": shorter.params, "bytes": (folder / WEIGHTS).stat().st_size}
        report["seconds"] = round(time.perf_counter() - began, 1)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        draw_layers(report, folder / PICTURE)
    return report | {"folder": str(place)}
