"""The parts of a probe, one function each, made of runs, an oracle, a training and statistics.

Every function returns nothing and fills the dict of its part with JSON values (see record.py).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcfbench.adapters.base import adapter_class
from lcfbench.adapters.config import WEIGHTS, read_config
from lcfbench.adapters.options import adapter_options
from lcfbench.config import PLACES
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.runner import run
from lcfbench.methods.base import prompt
from lcfbench.methods.create import method_class, parse_options
from lcfbench.methods.load_pair import Pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.conformance import conformance, sample_rows
from lcfbench.oracle.enrich import run_enrich
from lcfbench.oracle.recipe import Enrich
from lcfbench.probing import timed
from lcfbench.probing.gain import groups_of, headroom
from lcfbench.probing.plan import ENOUGH_STEPS, EVALUATIONS, EXAMPLES, Plan, Speeds, plan, replan
from lcfbench.probing.progress import Deadline, ProbeProgress
from lcfbench.probing.recipe import ProbeRecipe
from lcfbench.probing.record import Record, TimeUp
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.task import Task, load_task
from lcfbench.training.options import split_options
from lcfbench.training.recipe import CHECKPOINT, AdapterSpec, TrainRecipe
from lcfbench.training.setup import adapter_kind, trainable
from lcfbench.training.trainer import train

COUNTED = 1000  # documents of a task that are counted; a larger task has "1,000 or more"
MEASURED = 64  # of them whose prompts are measured
RATES = {"lcfx": 1e-3, "dense": 5e-4}  # with which the shipped adapters learnt; others: as `train`
CUT = (("receiver", "matched"), ("sharer", "matched"), ("t2t", "matched"), ("t2t", "deranged"))
GRACE = 0.1  # of the minutes: the last runs may end so much late


@dataclass
class Opened:
    """What the parts share while models are loaded. pair: None once they are let go."""

    recipe: ProbeRecipe
    task: Task
    mode: str
    documents: list[Document]
    pair: Pair | None = None


def mode_for(recipe: ProbeRecipe, task: Task) -> str:
    """The method to train: the one asked for, else the one that has worked on such a task.

    LCF fuses shared text token by token. On different contexts LCF-X has carried words and names,
    and dense alignment alone has carried text (docs/methods). Raises UserError for a method
    without an adapter.
    """
    scoring = recipe.scoring or task.default_scoring
    written = not task.shared and scoring == "generate"
    mode = recipe.mode or ("dense" if written else "lcf")
    trainable(AdapterSpec(mode, mode))
    check_options(recipe, task, mode)
    return mode


def check_options(recipe: ProbeRecipe, task: Task, mode: str) -> None:
    """Raises UserError for options that neither the method nor its adapter takes."""
    kind, method = kind_of(mode, task), method_class(mode)
    for_method, for_adapter, _ = split_options(kind, method, {}, recipe.options)
    adapter_options(kind, for_adapter)
    parse_options(method, mode, for_method)


def kind_of(mode: str, task: Task) -> str:
    """The kind of adapter that a method trains on a task."""
    context = "shared" if task.shared else "different"
    return adapter_kind(method_class(mode), (context,), AdapterSpec(mode, mode))


def train_recipe(recipe: ProbeRecipe, task: Task, mode: str, planned: Plan | None, out: Path) -> TrainRecipe:
    """The settings of the short training. planned: None where only its speed is measured."""
    kind = kind_of(mode, task)
    steps = planned.steps if planned else 2
    every = max(-(-steps // EVALUATIONS), 1)
    small = {"width": "32"} if "width" in adapter_class(kind).small_scale else {}
    source = recipe.train_task or recipe.task_name
    same = {"pair", "seed", "dtype", "offline", "scoring", "trust_remote_code", *PLACES}
    return TrainRecipe(
        **recipe.model_dump(include=same),
        adapters=[mode],
        task=[source],
        steps=steps,
        batch_size=EXAMPLES,
        lr=recipe.lr or RATES.get(kind, TrainRecipe.model_fields["lr"].default),
        warmup=min(20, max(steps // 5, 1)),
        dev_documents=planned.dev_documents if planned else 2,
        eval_every=every,
        save_every=every,
        options={**small, **recipe.options},
        task_options=recipe.task_options,
        out=out,
    )


# -- a, b: models and task ------------------------------------------------------------------------


def models(opened: Opened, found: dict[str, Any], loading: float) -> None:
    """Loaded models, what they are, and whether they compute what they should."""
    pair, longest = opened.pair, 0
    assert pair is not None
    for d in timed.spread_out(opened.documents):
        longest = max(longest, len(prompt(pair.receiver, d.full, d).ids))
    found["load_seconds"] = loading
    for role, lm in (("receiver", pair.receiver), ("sharer", pair.sharer)):
        if role == "sharer" and lm is pair.receiver:
            found[role] = found["receiver"]
            continue
        checked = conformance(lm, sample_rows(lm, longest))
        found[role] = facts(lm) | {"checks": [check.record() for check in checked.text_checks]}


def facts(lm: CausalLM) -> dict[str, Any]:
    """A model in numbers."""
    g = lm.geometry
    return {
        "name": lm.name,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "layers": g.layers,
        "kv_heads": g.kv_heads,
        "head_dim": g.head_dim,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "chat": lm.has_chat,
        "layer_masks": lm.takes_layer_masks,
        "max_positions": lm.max_positions,
    }


def broken(part: Mapping[str, Any]) -> list[str]:
    """The checks that failed, with the model."""
    return [
        f"{part[role]['name']}: {check['name']}"
        for role in ("receiver", "sharer")
        for check in part[role]["checks"]
        if not check["ok"]
    ]


def task_facts(opened: Opened, found: dict[str, Any]) -> None:
    """How many documents, how long, by guessing how good, and what the messages would weigh."""
    pair, task, documents = opened.pair, opened.task, opened.documents
    assert pair is not None
    some = timed.spread_out(documents, MEASURED)
    sides: dict[str, tuple[CausalLM, str]] = {
        "receiver": (pair.receiver, "receiver"),
        "sharer": (pair.sharer, "sharer"),
    }
    if not task.shared:
        sides["both contexts"] = (pair.receiver, "full")
    steps = [d.steps[-1] for d in documents if d.steps]
    found |= {
        "documents": len(documents),
        "more": len(documents) == COUNTED,
        "context": "shared" if task.shared else "different",
        "scoring": documents[0].scoring,
        "metric": task.metric(opened.recipe.scoring),
        "scorings": list(task.scorings),
        "chance": sum(len(s.gold) / len(s.choices) for s in steps) / len(steps) if steps else None,
        "prompts": {name: lengths(lm, some, view) for name, (lm, view) in sides.items()},
        "mode": opened.mode,
        "one_model": pair.receiver is pair.sharer,
    }
    g, tokens = pair.sharer.geometry, found["prompts"]["sharer"]["tokens"]
    found["cache_bytes"] = 2 * g.layers * g.kv_width * tokens * pair.sharer.dtype.itemsize


def lengths(lm: CausalLM, some: Sequence[Document], view: str) -> dict[str, int]:
    """Median and largest number of tokens of a view, and its median of characters."""
    tokens = sorted(len(prompt(lm, getattr(d, view), d).ids) for d in some)
    seen: list[View] = [getattr(d, view) for d in some]
    characters = sorted(len(v.user) + len(v.prefix) for v in seen)
    middle = len(tokens) // 2
    return {"tokens": tokens[middle], "longest": tokens[-1], "characters": characters[middle]}


# -- plan -----------------------------------------------------------------------------------------


def speeds(opened: Opened, found: dict[str, Any], record: Record, say: ProbeProgress) -> None:
    """Measures a document of each method and a training step, then plans the minutes."""
    recipe, task, pair = opened.recipe, opened.task, opened.pair
    assert pair is not None
    some = timed.spread_out(opened.documents)
    modes = baseline_modes(task)
    once = timed.baselines(pair, modes, some, recipe.budget)
    note_bytes = once.pop("note_bytes")
    a_document = sum(once.values()) + once["t2t"]  # text under two controls
    if not task.shared:  # the oracle reads both forms of the receiver's prompt
        a_document += (2 * once["receiver"] + once["full_context"]) / 2
    try:
        learnt = timed.training(
            train_recipe(recipe, task, opened.mode, None, record.folder / "adapter"), pair, some, say.say
        )
    except UserError as error:  # nothing to learn from, or not for this method
        learnt, found["untrainable"] = {}, str(error)
    speed = Speeds(
        baseline=a_document,
        final=2 * learnt.get("document", 0.0),
        step=learnt.get("step", 0.0),
        dev=2 * learnt.get("document", 0.0),
        fixed=3 * record.parts["models"]["load_seconds"] + learnt.get("start", 0.0),
    )
    planned = plan(
        speed, seconds=record.left, available=len(opened.documents), examples=bool(learnt), limit=recipe.limit
    )
    enough = ENOUGH_STEPS * speed.step + 64 * (speed.baseline + speed.final) + 1.5 * speed.fixed
    found |= {
        "seconds_a_document": once,
        "note_bytes": note_bytes,
        "learnt": learnt,
        "speeds": asdict(speed),
        "plan": planned.record(),
        "enough_minutes": math.ceil((enough + record.seconds) / 60 * 1.3) if learnt else None,
    }


def let_go(opened: Opened) -> None:
    """Frees the models: a run and a training load their own."""
    opened.pair = None
    gc.collect()


# -- c to g ---------------------------------------------------------------------------------------


def baseline_modes(task: Task) -> list[str]:
    """Methods that need no training; with shared contexts the full context is the receiver's own."""
    return ["receiver", "sharer", *([] if task.shared else ["full_context"]), "t2t"]


def run_recipe(recipe: ProbeRecipe, documents: int, out: Path, **more: Any) -> Recipe:
    """The settings of a run over the planned documents."""
    same = set(ProbeRecipe.model_fields) & set(Recipe.model_fields) - {
        "mode",
        "options",
        "limit",
        "out",
        "fresh",
        "task",
    }
    return Recipe(
        **recipe.model_dump(include=same),
        task=[recipe.task],
        control=["matched", "deranged"],
        limit=documents,
        latency_documents=3,
        out=out,
        **more,
    )


def baselines(record: Record, task: Task, found: dict[str, Any], progress: ProbeProgress) -> None:
    """Runs what needs no training, on the planned documents."""
    recipe, planned = record.recipe, Plan(**record.parts["plan"]["plan"])
    chosen = run_recipe(
        recipe,
        planned.documents,
        record.folder / "runs",
        mode=baseline_modes(task),
        options={"budget": str(recipe.budget)},
    )
    found["runs"] = list(run(chosen, Deadline(progress, late(record))))
    found["documents"] = planned.documents


def so_far(record: Record) -> dict[str, dict[str, Any]]:
    """For the page alone: the scores of runs that the time has cut, longest documents first."""
    groups = groups_of(record.folder / "runs") if any((record.folder / "runs").glob("*/")) else {}
    if any(not groups.get(key) or not groups[key].n for key in CUT):
        return {}
    found = headroom(record.folder / "runs", record.parts["task"]["chance"])
    return {
        "alone": {"documents": found["n"], "seconds": 0.0, "unfinished": True},
        "gain": found | {"seconds": 0.0},
    }


def gained(record: Record, task: Task, found: dict[str, Any], say: ProbeProgress) -> None:
    """What could be gained: by routing, by text, and by an edited cache where contexts differ."""
    recipe, n = record.recipe, record.parts["alone"]["documents"]
    found |= headroom(record.folder / "runs", record.parts["task"]["chance"])
    found["oracle"] = None
    if task.shared or record.left <= 0:
        return
    same = {"seed", "task_options", "dtype", "device", "attention", "offline", "batch_size", "scoring"}
    same.add("trust_remote_code")
    chosen = Enrich(
        **recipe.model_dump(include=same),
        model=recipe.names[0],
        task=recipe.task_name,
        before="context",
        limit=max(min(n, MEASURED), 2),
        out=record.folder,
    )
    try:
        rows = run_enrich(chosen, say.say).table("rows")
    except UserError as error:  # prompts without a common ending have no slice
        found["oracle"] = {"why": str(error)}
        return
    from lcfbench.analysis.stats import paired

    by = {c: part.sort_values("doc_index")["score"].to_numpy() for c, part in rows.groupby("condition")}
    pair = paired(by["oracle"], by["direct"])
    low, high = pair.interval()
    found["oracle"] = {"n": pair.n, "value": pair.value, "low": low, "high": high}


def replanned(record: Record) -> None:
    """Plans the training again, once, when it is known how long the runs without training took."""
    part = record.parts["plan"]
    if "slower" in part or not part["plan"]["steps"]:
        return
    took, speed = record.parts["alone"]["seconds"], Speeds(**part["speeds"])
    planned, part["slower"] = replan(Plan(**part["plan"]), speed, took=took, seconds=record.left)
    part["plan"] = planned.record()
    record.save()


def training(record: Record, task: Task, found: dict[str, Any], progress: ProbeProgress) -> None:
    """Trains for the planned steps, or until what comes after it must begin."""
    recipe, planned, mode = record.recipe, Plan(**record.parts["plan"]["plan"]), record.parts["task"]["mode"]
    out = record.folder / "adapter"
    chosen = train_recipe(recipe, task, mode, planned, out)
    found |= learning_set(chosen, task, recipe, planned)
    after = 1.2 * planned.final_seconds + record.parts["models"]["load_seconds"]
    line = Deadline(progress, record.end - after)
    found |= {"out_of_time": False, "failed": ""}
    if not (out / WEIGHTS).exists() or (out / CHECKPOINT).exists():
        try:
            train(chosen, line)
        except TimeUp:
            found["out_of_time"] = True
        except UserError as error:  # out of memory, a loss that is not finite: the page says it
            found["failed"] = str(error)
    found |= {"planned": planned.steps, "steps": line.steps, "saved": False, "curve": []}
    if (out / WEIGHTS).exists():
        notes = read_config(out).training
        curve = [{k.rpartition("/")[2]: v for k, v in point.items()} for point in notes["dev"]]
        found |= {"curve": curve, "saved": bool(curve), "steps": max(line.steps, int(notes["steps"]))}
        found["adapter_bytes"] = (out / WEIGHTS).stat().st_size


def learning_set(chosen: TrainRecipe, task: Task, recipe: ProbeRecipe, planned: Plan) -> dict[str, Any]:
    """How many different examples are learnt, and how many documents that are asked are among them."""
    [source] = chosen.task
    learnt = load_task(
        source, seed=recipe.seed, offline=recipe.offline, options=chosen.task_options
    ).documents(scoring=chosen.scoring, split="train", limit=chosen.drawn)
    asked = task.documents(scoring=recipe.scoring, limit=planned.documents)
    texts = {d.content for d in learnt}
    return {"source": source, "examples": len(texts), "also_asked": sum(d.content in texts for d in asked)}


def measured(record: Record, task: Task, found: dict[str, Any], progress: ProbeProgress) -> None:
    """Runs the trained method with its own and with other documents' messages."""
    planned, mode = Plan(**record.parts["plan"]["plan"]), record.parts["task"]["mode"]
    chosen = run_recipe(
        record.recipe,
        planned.documents,
        record.folder / "runs",
        mode=[mode],
        adapter=[record.folder / "adapter"],
    )
    found["runs"] = list(run(chosen, Deadline(progress, late(record))))


def late(record: Record) -> float:
    """The moment at which a run is stopped: at the end of the minutes and a little."""
    return record.end + 60 * GRACE * record.recipe.minutes
