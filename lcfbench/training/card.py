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
from lcfbench.assets import ALIASES

REPO = "ORG/NAME"  # stands for the repository until `adapter push` knows it
FATES = {"shut": "shut", "hurts": "harmful", "outranked": "of least importance"}
NAMES = {"lcf": "LCF", "lcfx": "LCF-X", "c2c": "C2C", "lora": "LoRA"}


def card(adapter: Adapter) -> str:
    """Markdown with the model hub's metadata block on top."""
    c, t = adapter.config, adapter.config.training
    head = f"# {NAMES.get(c.kind, c.kind)} adapter, {c.receiver} ← {c.sharer}\n"
    facts = [
        f"- receiver {c.receiver}, sharer {c.sharer}; both stay frozen",
        f"- {adapter.params:,} parameters in {len(c.layers)} of {c.receiver_geometry.layers} receiver layers",
        f"- options {c.options}; token alignment {c.token_alignment}",
    ]
    if t.get("imported_from"):
        facts.append(f"- imported from {t['imported_from']}")
    if t.get("tasks"):
        facts += [
            f"- trained on the train split of {', '.join(map(str, t['tasks']))}: {t.get('steps')} steps of {t.get('batch_size')}, AdamW, "
            f"lr {t.get('lr')}, warm-up {t.get('warmup')}, clip {t.get('clip')}, weight decay {t.get('weight_decay')}, seed {t.get('seed')}",
            f"- models in {t.get('models_dtype')} on {t.get('device')}, {t.get('minutes')} minutes",
        ]
    mode, task = t.get("method") or c.kind.removesuffix("x"), next(iter(_tasks(t)), "TASK")
    run = f"lcfbench run --mode {mode} --pair {c.receiver}:{c.sharer} --task {task} --adapter adapters/mine"
    use = f"\n```\nlcfbench adapter pull {REPO} --out adapters/mine\n{run}\n```\n"
    return f"---\n{metadata(c)}---\n\n{head}\n" + "\n".join(facts) + "\n" + use + _dev(t) + _pruned(t.get("pruned"))


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
    return name if name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).is_dir() else None


def _tasks(training: dict[str, Any]) -> list[str]:
    """Names of the tasks it was trained on, without their weights in a mixture."""
    return [str(task).partition("*")[0] for task in training.get("tasks", [])]


def _dataset(task: str) -> str | None:
    """The Hub id of the data a task is made of; None for generated ones and unknown names."""
    from lcfbench.task_files import read_task, task_names

    if task.startswith("chat:"):
        return hub_id(task.removeprefix("chat:"))
    return read_task(task).get("dataset_path") if task in task_names() else None


def _dev(t: dict[str, Any]) -> str:
    curve = t.get("dev") or []
    if not curve:
        return ""
    columns = [k for k in curve[0] if k not in {"step", "loss"}]
    table = ["| step | loss | " + " | ".join(columns) + " |", "| ---: |" + " ---: |" * (len(columns) + 1)]
    table += [f"| {p['step']} | {p['loss']:.3f} | " + " | ".join(f"{p[k]:.3f}" for k in columns) + " |" for p in curve]
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
    gone = "; ".join(f"{why} {', '.join(map(str, p['dropped'][fate]))}" for fate, why in FATES.items() if p["dropped"].get(fate))
    return (
        f"\n## Pruned from {p['adapter']}\n\n"
        f"Without fine-tuning, on {p['documents']} dev documents of {p['task']} ({p['metric']}): gate audit, single-layer ablation, ranking. "
        f"Layers kept: {', '.join(map(str, p['kept']))}. Left out: {gone or 'none'}.\n\n" + "\n".join(lines) + "\n\n"
        "The layers were chosen on these very documents, so the pruned row flatters; a test split decides.\n"
    )
