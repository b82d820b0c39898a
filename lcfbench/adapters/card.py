"""The card that goes with an adapter: the model hub's metadata, what it is, how it was made, what it scored on the dev split.

>>> huggingface_hub.ModelCard(card(adapter)).data.base_model
['HuggingFaceTB/SmolLM2-135M-Instruct', 'google/gemma-3-270m']
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.sources.models import ALIASES

REPO = "ORG/NAME"  # stands for the repository until `adapter push` knows it
FATES = {"shut": "shut", "hurts": "harmful", "outranked": "of least importance"}
NAMES = {
    "lcf": "LCF",
    "lcfx": "LCF-X",
    "c2c": "C2C",
    "lora": "LoRA",
    "dense": "dense-alignment",
    "prefix": "latent-prefix",
}
BASELINES = {
    "single": "`single` baseline: no sharer",
    "identical": "`identical` baseline: the receiver's model on both sides",
}
RESULTS = ("task", "mode", "control", "documents", "score", "95 % interval", "message bytes")


def card(adapter: Adapter) -> str:
    """Markdown with the model hub's metadata block on top."""
    c, t = adapter.config, adapter.config.training
    mode = c.method
    alone, baseline = mode in ("single", "lora"), f" ({BASELINES[mode]})" if mode in BASELINES else ""
    head = f"# {NAMES.get(c.kind, c.kind)} adapter, {c.receiver if alone else f'{c.receiver} ← {c.sharer}'}{baseline}\n"
    facts = [
        f"- receiver {c.receiver}, no sharer; nothing is sent"
        if alone
        else f"- receiver {c.receiver}, sharer {c.sharer}; both stay frozen",
        f"- method `{mode}`" + (f", options {t['method_options']}" if t.get("method_options") else ""),
        f"- {adapter.params:,} parameters in {len(c.layers)} of {c.receiver_geometry.layers} receiver layers",
        f"- options {c.options}; token alignment {c.token_alignment}",
    ]
    if t.get("imported_from"):
        facts.append(f"- imported from {t['imported_from']}")
    if t.get("tasks"):
        seed = f"seed {t.get('seed')}" + (
            f" (of the examples: {t['data_seed']})"
            if t.get("data_seed", t.get("seed")) != t.get("seed")
            else ""
        )
        facts += [
            f"- trained on the train split of {', '.join(map(str, t['tasks']))}: {t.get('steps')} steps of {t.get('batch_size')}, AdamW, "
            f"lr {t.get('lr')}, warm-up {t.get('warmup')}, clip {t.get('clip')}, weight decay {t.get('weight_decay')}, {seed}",
            *_deviations(t),
            f"- models in {t.get('models_dtype')} on {t.get('device')}{f' ({machine})' if (machine := t.get('machine')) else ''}, "
            f"{t.get('minutes')} minutes{_share(t.get('beside') or [])}",
        ]
    task = next(iter(_tasks(t)), "TASK")
    run = f"lcfbench run --mode {mode} --pair {c.receiver}:{c.sharer} --task {task} --adapter adapters/mine"
    use = f"\n```\nlcfbench adapter pull {REPO} --out adapters/mine\n{run}\n```\n"
    return (
        f"---\n{metadata(c)}---\n\n{head}\n"
        + "\n".join(facts)
        + "\n"
        + use
        + _results(t)
        + _dev(t)
        + _pruned(t.get("pruned"))
    )


def metadata(config: AdapterConfig) -> str:
    """The metadata block as YAML: base models by their Hub ids and data sets where they have one; a licence only where it is known.

    Dev scores are not offered as evaluation results (`model-index`): the saved state was chosen by them.
    """
    t = config.training
    found: dict[str, Any] = {
        "library_name": "lcfbench",
        "license": t.get("license"),
        "base_model": list(dict.fromkeys(filter(None, map(hub_id, (config.receiver, config.sharer))))),
        "base_model_relation": "adapter",
        "datasets": list(dict.fromkeys(filter(None, map(_dataset, _tasks(t))))),
        "tags": ["lcfbench", "latent-communication", config.kind, *(["pruned"] if t.get("pruned") else [])],
    }
    if not found["base_model"]:
        del found["base_model_relation"]
    return yaml.safe_dump({k: v for k, v in found.items() if v}, sort_keys=False, allow_unicode=True)


def refreshed(text: str, config: AdapterConfig) -> str:
    """A card with today's metadata: what its author wrote stands, what is missing is filled in."""
    ours = yaml.safe_load(metadata(config))
    _, mark, rest = text.partition("---\n") if text.startswith("---\n") else ("", "", "")
    block, end, body = rest.partition("\n---\n")
    if not mark or not end:
        return f"---\n{metadata(config)}---\n\n{text}"
    try:
        theirs = yaml.safe_load(block) or {}
    except yaml.YAMLError:
        theirs = None
    if not isinstance(theirs, dict):  # what stands between the marks is no metadata
        return f"---\n{metadata(config)}---\n\n{text}"
    return f"---\n{yaml.safe_dump(ours | theirs, sort_keys=False, allow_unicode=True)}---\n{body}"


def hub_id(name: str) -> str | None:
    """The Hub id of a model named by alias or id; None for a folder."""
    if name.lower() in ALIASES:
        return ALIASES[name.lower()]
    return (
        name
        if name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).is_dir()
        else None
    )


def _tasks(training: dict[str, Any]) -> list[str]:
    """Names of the tasks it was trained on, without their weights in a mixture."""
    return [str(task).partition("*")[0] for task in training.get("tasks", [])]


def _dataset(task: str) -> str | None:
    """The Hub id of the data a task is made of; None for generated ones and unknown names."""
    from lcfbench.tasks.yaml_files import read_task, task_names

    if task.startswith("chat:"):
        return hub_id(task.removeprefix("chat:"))
    return read_task(task).get("dataset_path") if task in task_names() else None


def _deviations(t: dict[str, Any]) -> list[str]:
    """What a training did otherwise than the plain one, and what a reader of its scores must know of its data."""
    said = []
    if t.get("contexts"):
        said.append(f"- contexts of the two models in its examples: {' and '.join(t['contexts'])}")
    if t.get("task_options"):
        said.append(f"- task options {t['task_options']}")
    if "coqa_split" in _tasks(t):
        said.append(
            "- the train part of coqa_split is cut from CoQA's validation stories: of CoQA, only coqa_split's own test part is unseen"
        )
    if t.get("senders", "matched") != "matched":
        said.append(
            "- trained on the messages of other documents: what it gains is adaptation, not communication"
        )
    if t.get("supervise", "all") != "all":
        said.append(f"- only the {t['supervise']} step of each answer was supervised")
    if t.get("targets", "gold") != "gold":
        said.append(
            f"- targets are not the gold answers but what the {t['targets']} writes when it reads both contexts"
        )
    if t.get("loss_mean", "document") != "document":
        said.append(f"- the loss is a mean over {t['loss_mean']}s")
    return said


def _share(beside: list[str]) -> str:
    """`beside` holds all adapters of a training that had several, this one too."""
    return (
        f" (its equal share of the step time; {len(beside)} adapters were trained side by side: {', '.join(beside)})"
        if beside
        else ""
    )


def _results(t: dict[str, Any]) -> str:
    """Scores on test splits, where someone has added them as `results` to the adapter's config, and what they say, its `notes`."""
    rows, notes = t.get("results") or [], f"{t['notes'].strip()}\n" if t.get("notes") else ""
    if not rows:
        return f"\n## Notes\n\n{notes}" if notes else ""
    table = ["| " + " | ".join(RESULTS) + " |", "| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        score = "" if row.get("score") is None else f"{row['score']:.3f}"
        interval = (
            ""
            if row.get("low") is None or row.get("high") is None
            else f"{row['low']:.3f} to {row['high']:.3f}"
        )
        sent = "" if row.get("message_bytes") is None else f"{row['message_bytes']:,.0f}"
        cells = [
            row.get("task"),
            row.get("mode"),
            row.get("control"),
            row.get("documents"),
            score,
            interval,
            sent,
        ]
        table.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n## Test results\n\n" + "\n".join(table) + "\n" + (f"\n{notes}" if notes else "")


def _dev(t: dict[str, Any]) -> str:
    curve = t.get("dev") or []
    if not curve:
        return ""
    columns = [k for k in curve[0] if k not in {"step", "loss"}]
    table = ["| step | loss | " + " | ".join(columns) + " |", "| ---: |" + " ---: |" * (len(columns) + 1)]
    table += [
        f"| {p['step']} | {p['loss']:.3f} | " + " | ".join(f"{p[k]:.3f}" for k in columns) + " |"
        for p in curve
    ]
    whole = ", of the whole adapter" if t.get("pruned") else ""
    return (
        f"\n## Dev split ({t.get('dev_documents')} documents a task{whole})\n\n" + "\n".join(table) + "\n\n"
        "`deranged` gives every document the message of another one: what is left of the gain there is adaptation of the receiver, "
        "not communication. The saved state is the best by matched dev accuracy.\n"
    )


def _pruned(p: dict[str, Any] | None) -> str:
    """What pruning left out and what it cost."""
    if not p:
        return ""
    lines = [
        "| | layers | parameters | matched | deranged | log-likelihood |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ("whole", "pruned"):
        one = p[name]
        deranged = f"{one['deranged']['score']:.3f}" if one.get("deranged") else ""
        lines.append(
            f"| {name} | {one['layers']} | {one['params']:,} | {one['matched']['score']:.3f} | {deranged} | {one['matched']['loglik']:.3f} |"
        )
    gone = "; ".join(
        f"{why} {', '.join(map(str, p['dropped'][fate]))}"
        for fate, why in FATES.items()
        if p["dropped"].get(fate)
    )
    return (
        f"\n## Pruned from {p['adapter']}\n\n"
        f"Without fine-tuning, on {p['documents']} dev documents of {p['task']} ({p['metric']}): gate audit, single-layer ablation, ranking. "
        f"Layers kept: {', '.join(map(str, p['kept']))}. Left out: {gone or 'none'}.\n\n"
        + "\n".join(lines)
        + "\n\n"
        "The layers were chosen on these very documents, so the pruned row flatters; a test split decides.\n"
    )
