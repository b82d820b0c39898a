"""Completes a task file that a user wrote: lm-eval's own YAML as it is, or a few lines about a table.

What a file leaves out follows from stated rules; what this package cannot run as lm-eval would is an
error, never another task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.sources.local_data import SPLIT_NAMES, Files, columns_of, find_local, splits_of
from lcfbench.tasks.columns import Columns, infer

Config = dict[str, Any]
UNSUPPORTED = {  # keys of lm-eval's that would make another task if they were ignored
    "use_prompt": "promptsource templates",
    "doc_to_image": "images",
    "doc_to_audio": "audio",
    "doc_to_decontamination_query": "",
}
OUTPUTS = ("multiple_choice", "generate_until")
OURS = (  # keys of metadata that this package reads
    "version description licence context chat default_scoring scorings views request full sharer noted "
    "options generator splits manifest dataset_names until request_until max_new_tokens columns"
).split()
SHARE = "train_share"
_SHARE = {
    "default": 0,
    "help": "per cent of the rows for training, 10 more for validation; the rest is asked (0: all are)",
}


def completed(config: Config, path: Path, base: Callable[[str], Config]) -> Config:
    """The file with all that `tasks.task` needs. base: reads a form of this package by its name.

    Raises UserError for a group of tasks, for what cannot be run, and for data that are not there.
    """
    who = path.name
    if isinstance(config.get("task"), list) or isinstance(config.get("group"), list):
        raise UserError(f"{who} is a group of tasks, not a task.", "Name the file of one of its tasks.")
    extra = _metadata(config, who)
    config = {**config, "metadata": extra, "task": config.get("task") or path.stem}
    if "generator" in extra:
        return config
    _refuse_others(config, who)
    config = _located(config, path)
    if not config.get("doc_to_text"):
        config = _from_columns(config, path, base)
    extra = config["metadata"]
    for key, value in (("description", ""), ("licence", "not stated")):
        extra.setdefault(key, value or f"{path.stem} ({who})")
    extra.setdefault("context", "different" if "sharer" in extra.get("views", {}) else "shared")
    if "scorings" not in extra:
        extra["scorings"] = {_scoring(config): {"primary": _primary(config, who)}}
    extra.setdefault("default_scoring", next(iter(extra["scorings"]), ""))
    if extra["context"] == "different" and "sharer" not in {*extra.get("views", {}), *extra}:
        raise UserError(
            f"{who}: the contexts are different, but nothing says what the sharer reads.",
            'Add metadata: {views: {sharer: "{{a_column}}"}}.',
        )
    return config


def _metadata(config: Config, who: str) -> Config:
    extra = config.get("metadata") or {}
    if not isinstance(extra, dict):
        raise UserError(f"{who}: metadata is no mapping.", "Write metadata: {description: ...}.")
    for key in extra:
        if key not in OURS and (near := difflib.get_close_matches(str(key), OURS, n=1, cutoff=0.8)):
            raise UserError(f"{who}: metadata has no key {key!r}.", f"Did you mean {near[0]}?")
    return dict(extra)


def _refuse_others(config: Config, who: str) -> None:
    def cannot(what: str, step: str) -> UserError:
        return UserError(f"{who}: {what} cannot be run here.", step)

    for key, what in UNSUPPORTED.items():
        if what and config.get(key):
            raise cannot(f"{key} ({what})", "Use a task of text.")
    output = config.get("output_type", "generate_until")
    if output not in OUTPUTS:
        raise cannot(f"output_type: {output}", f"Use {' or '.join(OUTPUTS)}.")
    if config.get("num_fewshot"):
        raise cannot(
            f"num_fewshot: {config['num_fewshot']}", "Leave it out: tasks are asked without examples."
        )
    if (config.get("repeats") or 1) != 1:
        raise cannot(f"repeats: {config['repeats']}", "Leave it out: each document is asked once.")
    if config.get("custom_dataset"):
        raise cannot("custom_dataset", "Name data by dataset_path, or a metadata.generator (docs/tasks.md).")
    if not isinstance(config.get("dataset_path"), str):
        raise UserError(f"{who} names no data.", "Add dataset_path: questions.csv, or a Hub id.")
    name = config.get("dataset_name")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{who}: dataset_name: {name!r} is no text.", "Put it in quotes.")


def _located(config: Config, path: Path) -> Config:
    """Finds local data beside the file, and the splits that are asked and trained on."""
    kwargs = config.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise UserError(f"{path.name}: dataset_kwargs is no mapping.", "Write {data_files: questions.csv}.")
    try:
        files = find_local(path.parent, config["dataset_path"], kwargs.get("data_files"))
        have = splits_of(files) if files else []
    except UserError as error:
        raise UserError(f"{path.name}: {error.what}", error.next_step) from error
    extra = {**config["metadata"], **({"files": files} if files else {})}
    config = {**config, "metadata": extra}
    keys = {split: f"{'training' if split == 'train' else split}_split" for split in SPLIT_NAMES}
    if files and not any(config.get(key) for key in keys.values()):
        for split, known in SPLIT_NAMES.items():
            if here := next((name for name in have if name.lower() in known), None):
                config[keys[split]] = here
        if len(have) == 1:
            config |= {"test_split": have[0], "training_split": None, "validation_split": None}
    if not config.get("test_split"):  # lm-eval asks the validation split then; it is not for training too
        config["test_split"], config["validation_split"] = config.get("validation_split"), None
    if not config.get("test_split"):
        step = f"Add test_split: {have[0] if have else 'test'}."
        raise UserError(f"{path.name} names no split to ask.", step)
    for key in keys.values():
        if (name := config.get(key)) and files and name not in have:
            what = f"{path.name}: {key}: {name}: the data have no such split."
            raise UserError(what, f"They have {', '.join(have)}.")
    if files and not config.get("training_split") and not config.get("validation_split"):
        extra["options"] = {SHARE: dict(_SHARE), **(extra.get("options") or {})}
    return config


def _from_columns(config: Config, path: Path, base: Callable[[str], Config]) -> Config:
    """A file without doc_to_text: prompts, choices and gold from the columns of its table."""
    for key in ("doc_to_choice", "doc_to_target", "process_docs", "process_results", "output_type"):
        if config.get(key):
            raise UserError(f"{path.name} has {key} but no doc_to_text.", 'Add doc_to_text: "{{question}}".')
    extra = config["metadata"]
    said = extra.get("columns") or {}
    if not isinstance(said, dict):
        raise UserError(
            f"{path.name}: metadata.columns is no mapping.", "Write {question: NAME, answer: NAME}."
        )
    files: Files | None = extra.get("files")
    if files is None and not {"question", "answer"} <= set(said):
        raise UserError(
            f"{path.name} has no doc_to_text, and its data are on the Hub.",
            "Say metadata: {columns: {question: NAME, answer: NAME, choices: NAME}}.",
        )
    try:
        names = columns_of(files, config["test_split"]) if files else _mentioned(said)
        found = own_columns(names, said, extra.get("context"))
    except UserError as error:
        raise UserError(f"{path.name}: {error.what}", error.next_step) from error
    form = base("_own_choice.yaml" if found.choices else "_own_text.yaml")
    theirs = dict(form["metadata"])
    if found.sharer_context:
        theirs |= base("_own_different.yaml")["metadata"]
    return {**form, **config, "metadata": {**theirs, **extra, "columns": found}}


def own_columns(names: list[str], said: Config, context: str | None) -> Columns:
    """`infer`; where contexts are different, a context without a reader is the sharer's."""
    from dataclasses import replace

    found = infer(names, said)
    if context == "different" and found.context and not found.sharer_context:
        return replace(found, sharer_context=found.context, context="")
    return found


def _mentioned(said: Config) -> list[str]:
    every = [
        v
        for k, value in said.items()
        if k != "answer_as"
        for v in (value if isinstance(value, list) else [value])
    ]
    return [str(v) for v in every]


def _scoring(config: Config) -> str:
    """letters where the choices are the letters A, B, …; cloze for other choices; else generate."""
    if config.get("output_type", "generate_until") == "generate_until":
        return "generate"
    choices = config.get("doc_to_choice")
    letters = [chr(65 + i) for i in range(len(choices))] if isinstance(choices, list) else None
    return "letters" if choices == letters and letters else "cloze"


def _primary(config: Config, who: str) -> str:
    """The first metric that the file lists; by lm-eval's defaults acc, or exact_match."""
    default = "exact_match" if _scoring(config) == "generate" else "acc"
    metrics = config.get("metric_list")
    if metrics is None:
        return default
    if (
        not isinstance(metrics, list)
        or not all(isinstance(m, dict) and "metric" in m for m in metrics)
        or not metrics
    ):
        raise UserError(f"{who}: metric_list is no list of metrics.", "Write metric_list: [{metric: acc}].")
    names = [m["metric"] for m in metrics]
    if "acc_mutual_info" in names:
        raise UserError(f"{who}: metric acc_mutual_info cannot be run here.", "Leave it out.")
    return str(getattr(names[0], "__name__", names[0]))
