"""Writes an adapter's card: metadata for the Hub, facts, training, scores on the dev split.

>>> huggingface_hub.ModelCard(card(adapter)).data.base_model
['HuggingFaceTB/SmolLM2-135M-Instruct', 'google/gemma-3-270m']
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from lcfbench.adapters.base import Adapter, adapter_class, method_of
from lcfbench.adapters.config import TAG, AdapterConfig
from lcfbench.errors import UserError
from lcfbench.parsing import parse_yaml
from lcfbench.sources.models import hub_id
from lcfbench.tables import Column, Table

REPO = "ORG/NAME"  # stands for the repository until `adapter push` knows it
FATES = {"shut": "shut", "hurts": "harmful", "outranked": "of least importance"}
BASELINES = {
    "single": "`single` baseline: no sharer",
    "identical": "`identical` baseline: the receiver's model on both sides",
}
ALONE = ("single", "lora")  # methods without a sharer


def card(adapter: Adapter) -> str:
    """Returns the card: Markdown with the Hub's metadata block on top."""
    c, t, mode = adapter.config, adapter.config.training, method_of(adapter.config)
    alone = mode in ALONE
    baseline = f" ({BASELINES[mode]})" if mode in BASELINES else ""
    options = f", options {t['method_options']}" if t.get("method_options") else ""
    facts = [
        f"receiver {c.receiver}, no sharer; nothing is sent"
        if alone
        else f"receiver {c.receiver}, sharer {c.sharer}; both stay frozen",
        f"method `{mode}`{options}",
        f"{adapter.params:,} parameters in {len(c.layers)} of {c.receiver_geometry.layers} receiver layers",
        *_ranks(adapter),
        f"options {c.options}; token alignment {c.token_alignment}",
        *(_imported(t, adapter) if t.get("imported_from") else []),
        *(_trained(t, c.tasks) if t.get("tasks") else []),
    ]
    models = c.receiver if alone else f"{c.receiver} ← {c.sharer}"
    task = next(iter(c.tasks), "TASK")
    return (
        f"---\n{metadata(c)}---\n\n# {adapter_class(c.kind).title or c.kind} adapter, {models}{baseline}\n\n"
        + "".join(f"- {fact}\n" for fact in facts)
        + f"\n```\nlcfbench adapter pull {REPO} --out adapters/mine\n"
        + f"lcfbench run --mode {mode} --pair {shlex.quote(':'.join(c.pair))} --task {task} "
        + "--adapter adapters/mine\n```\n"
        + _results(t)
        + _dev(t)
        + _pruned(t.get("pruned"))
    )


def metadata(config: AdapterConfig) -> str:
    """Returns the metadata block as YAML: base models and data sets by their Hub ids.

    Only a known licence is named. Dev scores are no evaluation results (`model-index`): the saved
    state was chosen by them.
    """
    t = config.training
    found: dict[str, Any] = {
        "library_name": "lcfbench",
        "license": t.get("license"),
        "base_model": list(dict.fromkeys(filter(None, map(hub_id, config.pair)))),
        "base_model_relation": "adapter",
        "datasets": list(dict.fromkeys(filter(None, map(_dataset, config.tasks)))),
        "tags": [TAG, "latent-communication", config.kind, *(["pruned"] if t.get("pruned") else [])],
    }
    if not found["base_model"]:
        del found["base_model_relation"]
    return yaml.safe_dump({k: v for k, v in found.items() if v}, sort_keys=False, allow_unicode=True)


def refreshed(text: str, config: AdapterConfig) -> str:
    """Returns a card with present metadata; the author's own words and entries stay, tags are added."""
    ours = parse_yaml(metadata(config), "card")
    _, mark, rest = text.partition("---\n") if text.startswith("---\n") else ("", "", "")
    block, end, body = rest.partition("\n---\n")
    try:
        theirs = (parse_yaml(block, "card") or {}) if mark and end else None
    except UserError:  # the card's own words stay below
        theirs = None
    if not isinstance(theirs, dict):  # there is no metadata between the marks
        return f"---\n{metadata(config)}---\n\n{text}"
    for key in ("tags", "base_model"):  # by which `run` finds it
        own = theirs.get(key) or []
        theirs[key] = list(dict.fromkeys([*(own if isinstance(own, list) else [own]), *ours.get(key, [])]))
    return f"---\n{yaml.safe_dump(ours | theirs, sort_keys=False, allow_unicode=True)}---\n{body}"


def _dataset(task: str) -> str | None:
    """The Hub id of a task's data; None for generated data, local files and unknown tasks."""
    from lcfbench.tasks.yaml_files import read_task, task_names

    if task.startswith("chat:"):
        return hub_id(task.removeprefix("chat:"))
    if task not in task_names():
        return None
    config = read_task(task)
    return None if "files" in config["metadata"] else config.get("dataset_path")


def _ranks(adapter: Adapter) -> list[str]:
    if adapter.ranks is None:
        return []
    width = adapter.config.receiver_geometry.kv_width
    key, value = (min(rank, width) for rank in adapter.ranks)
    return [f"a layer's edit has rank {key} for keys and {value} for values at most (of {width})"]


def _imported(t: dict[str, Any], adapter: Adapter) -> list[str]:
    layout = ", in C2C's released layout; its authors trained it (arXiv 2510.03215)"
    gates = f"{len(adapter.open_layers())} layers have an open gate"
    return [f"imported from {t['imported_from']}{layout if t.get('format') == 'C2C' else ''}", gates]


def _trained(t: dict[str, Any], tasks: list[str]) -> list[str]:
    """The training in a few lines: settings, all that differs from the plain training, machine."""
    others = t.get("data_seed", t.get("seed")) != t.get("seed")
    seed = f"seed {t.get('seed')}" + (f" (of the examples: {t['data_seed']})" if others else "")
    on = f"on the train split of {', '.join(map(str, t['tasks']))}"
    facts = [
        f"trained {on}: {t.get('steps')} steps of "
        f"{t.get('batch_size')}, AdamW, lr {t.get('lr')}, warm-up {t.get('warmup')}, clip {t.get('clip')}, "
        f"weight decay {t.get('weight_decay')}, {seed}"
        if t.get("steps") != 0
        else f"fitted {on}, {seed}; no step was trained"
    ]
    if fit := t.get("fit"):
        judged = f", R² {fit['r2']} on every tenth document, which was held out" if "r2" in fit else ""
        facts.append(
            f"closed form from {fit.get('tokens')} tokens of {fit.get('documents')} documents{judged}; "
            f"sha256 of the documents {str(fit.get('documents_sha256'))[:12]}"
        )
    if t.get("failed"):
        facts.append(f"the training stopped early: its {t['failed']} was not finite")
    if t.get("contexts"):
        facts.append(f"contexts of the two models in its examples: {' and '.join(t['contexts'])}")
    if t.get("task_options"):
        facts.append(f"task options {t['task_options']}")
    if "coqa_split" in tasks:
        facts.append(
            "the train part of coqa_split is cut from CoQA's validation stories: of CoQA, only coqa_split's "
            "own test part is unseen"
        )
    if t.get("senders", "matched") != "matched":
        facts.append(
            "trained on the messages of other documents: what it gains is adaptation, not communication"
        )
    if t.get("supervise", "all") != "all":
        facts.append(f"only the {t['supervise']} step of each answer was supervised")
    if t.get("targets", "gold") != "gold":
        facts.append(
            f"targets are not the gold answers but what the {t['targets']} writes when it reads both contexts"
        )
    if t.get("loss_mean", "document") != "document":
        facts.append(f"the loss is a mean over {t['loss_mean']}s")
    machine = f" ({t['machine']})" if t.get("machine") else ""
    several = f", {n} processes" if (n := t.get("processes", 1)) != 1 else ""
    place = f"{t.get('device')}{machine}{several}"
    models = f"models in {t.get('models_dtype')} on {place}, {t.get('minutes')} minutes"
    if beside := t.get("beside"):
        number = f"{len(beside)} adapters were trained side by side: {', '.join(beside)}"
        own = "its own time and an equal share of the reading that they have in common"
        models += f" ({own}; {number})"
    return [*facts, models]


def _results(t: dict[str, Any]) -> str:
    """Scores on test splits and notes, where an author added them to the config's `training`."""
    rows, notes = t.get("results") or [], f"{t['notes'].strip()}\n" if t.get("notes") else ""
    if not rows:
        return f"\n## Notes\n\n{notes}" if notes else ""

    def cells(row: dict[str, Any]) -> list[str]:
        low, high = row.get("low"), row.get("high")
        return [
            *("" if row.get(k) is None else str(row[k]) for k in ("task", "mode", "control", "documents")),
            _number(row.get("score"), ".3f"),
            "" if low is None or high is None else f"{low:.3f} to {high:.3f}",
            _number(row.get("message_bytes"), ",.0f"),
        ]

    heads = ("documents", "score", "95 % interval", "message bytes")
    columns = [Column("task"), Column("mode"), Column("control"), *(Column(h, right=True) for h in heads)]
    table = Table("", columns, [cells(row) for row in rows]).markdown()
    return f"\n## Test results\n\n{table}" + (f"\n{notes}" if notes else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _dev(t: dict[str, Any]) -> str:
    curve = t.get("dev") or []
    if not curve:
        return ""
    names = [k for k in curve[0] if k not in {"step", "loss"}]
    rows = [[str(p["step"]), *(_number(p.get(k), ".3f") for k in ("loss", *names))] for p in curve]
    table = Table("", [Column(name, right=True) for name in ("step", "loss", *names)], rows).markdown()
    whole = ", of the whole adapter" if t.get("pruned") else ""
    return (
        f"\n## Dev split ({t.get('dev_documents')} documents a task{whole})\n\n{table}\n"
        "`deranged` gives every document the message of another one: what is left of the gain there is "
        "adaptation of the receiver, not communication. The saved state is the best by matched dev "
        "accuracy.\n"
    )


def _took(p: dict[str, Any]) -> str:
    return f" It took {p['seconds']:.0f} seconds." if isinstance(p.get("seconds"), (int, float)) else ""


def _pruned(p: dict[str, Any] | None) -> str:
    """The layers that pruning left out, and what that cost."""
    if not p:
        return ""
    rows = []
    for name in ("whole", "pruned"):
        one = p[name]
        deranged = f"{one['deranged']['score']:.3f}" if one.get("deranged") else ""
        matched = f"{one['matched']['score']:.3f}", deranged, f"{one['matched']['loglik']:.3f}"
        rows.append([name, str(one["layers"]), f"{one['params']:,}", *matched])
    heads = ("layers", "parameters", "matched", "deranged", "log-likelihood")
    table = Table("", [Column(""), *(Column(head, right=True) for head in heads)], rows).markdown()
    dropped = ((why, p["dropped"].get(fate)) for fate, why in FATES.items())
    gone = "; ".join(f"{why} {', '.join(map(str, layers))}" for why, layers in dropped if layers)
    return (
        f"\n## Pruned from {p['adapter']}\n\n"
        f"Without fine-tuning, on {p['documents']} dev documents of {p['task']} ({p['metric']}): gate audit, "
        f"single-layer ablation, ranking. Layers kept: {', '.join(map(str, p['kept']))}. "
        f"Left out: {gone or 'none'}.{_took(p)}\n\n{table}\n"
        "The layers were chosen on these very documents, so the pruned row flatters; a test split decides.\n"
    )
