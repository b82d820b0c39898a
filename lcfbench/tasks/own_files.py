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
from lcfbench.sources import hub_data
from lcfbench.sources.local_data import SPLIT_NAMES, Files, columns_of, find_local, splits_of
from lcfbench.tasks.columns import Columns, infer
from lcfbench.tasks.examples import KEY as EXAMPLES
from lcfbench.tasks.examples import mistakes_in

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
    "options generator splits manifest dataset_names until request_until max_new_tokens columns examples"
).split()
KWARGS = {"data_files", "trust_remote_code", "streaming"}  # the last two change no row
SHARE = "train_share"
_SHARE = {
    "default": 0,
    "help": "per cent of the rows for training, 10 more for validation; the rest is asked (0: all are)",
}


def completed(
    config: Config, path: Path, base: Callable[[str], Config], offline: bool | None = None
) -> Config:
    """The file with all that `tasks.task` needs. base: reads a form of this package by its name.

    offline: whether the Hub may be asked for splits and columns; None: only this disk, and what it does
    not know is left open. Raises UserError for a group of tasks, for what cannot be run, and for data
    that are not there; one error tells all mistakes of the file.
    """
    who = path.name
    if isinstance(config.get("task"), list) or isinstance(config.get("group"), list):
        raise UserError(
            f"{who} is a group of tasks, not a task.",
            "Give it to --task, or name the file of one of its tasks.",
        )
    extra = config.get("metadata") or {}
    generated = isinstance(extra, dict) and "generator" in extra
    mistakes = [*_in_metadata(extra), *([] if generated else _in_file(config))]
    if mistakes:
        raise told(who, [*mistakes, *_in_data(config, path)])
    config = {**config, "metadata": dict(extra), "task": config.get("task") or path.stem}
    extra = config["metadata"]
    if "generator" in extra:
        return config
    written = config.get("generation_kwargs") or {}
    if isinstance(written.get("until"), str):  # lm-eval takes a text for a list of one
        config["generation_kwargs"] = {**written, "until": [written["until"]]}
    config = _with_examples(_located(config, path, offline), path)
    if not config.get("doc_to_text"):
        config = _from_columns(config, path, base, offline)
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


Mistake = tuple[str, str]  # what is wrong, and the next step


def told(who: str, mistakes: list[Mistake]) -> UserError:
    """One error for all mistakes of a file."""
    if len(mistakes) == 1:
        return UserError(f"{who}: {mistakes[0][0]}.", mistakes[0][1])
    every = " ".join(f"({n}) {what}. {step}" for n, (what, step) in enumerate(mistakes, 1))
    return UserError(f"{who}: {len(mistakes)} mistakes.", every)


def _in_metadata(extra: Any) -> list[Mistake]:
    """Mistakes in the keys of metadata."""
    if not isinstance(extra, dict):
        return [("metadata is no mapping", "Write metadata: {description: ...}.")]
    found: list[Mistake] = []
    for key in extra:
        if key not in OURS and (near := difflib.get_close_matches(str(key), OURS, n=1, cutoff=0.8)):
            found.append((f"metadata has no key {key!r}", f"Did you mean {near[0]}?"))
    for key, example in (("options", "{x: {default: 0}}"), ("views", "{sharer: ...}")):
        if not isinstance(extra.get(key) or {}, dict):
            found.append((f"metadata.{key} is not a mapping", f"Write {key}: {example}."))
    if not isinstance(extra.get("chat", True), bool):
        found.append((f"metadata.chat: {extra['chat']!r} is no yes or no", "Write true or false."))
    if not isinstance(extra.get("columns") or {}, dict):
        found.append(("metadata.columns is no mapping", "Write {question: NAME, answer: NAME}."))
    return found + mistakes_in(extra.get(EXAMPLES), "generator" in extra)


def _in_file(config: Config) -> list[Mistake]:
    """Keys of lm-eval's that would make another task here, and data that are not named."""
    found: list[Mistake] = []
    for key, what in UNSUPPORTED.items():
        if what and config.get(key):
            found.append((f"{key} ({what}) cannot be run here", "Use a task of text."))
    output = config.get("output_type", "generate_until")
    if output not in OUTPUTS:
        found.append((f"output_type: {output} cannot be run here", f"Use {' or '.join(OUTPUTS)}."))
    if shots := config.get("num_fewshot"):
        found.append(
            (f"num_fewshot: {shots} cannot be run here", "Leave it out: tasks are asked without examples.")
        )
    if (config.get("repeats") or 1) != 1:
        step = "Leave it out: each document is asked once."
        found.append((f"repeats: {config['repeats']} cannot be run here", step))
    if config.get("custom_dataset"):
        step = "Name data by dataset_path, or a metadata.generator (docs/tasks.md)."
        found.append(("custom_dataset cannot be run here", step))
    written = config.get("generation_kwargs") or {}
    if not isinstance(written, dict):
        found.append(("generation_kwargs is no mapping", 'Write {until: ["\\n"], max_gen_toks: 32}.'))
        written = {}
    until = written.get("until", [])
    if not isinstance(until, str) and not (
        isinstance(until, list) and all(isinstance(x, str) for x in until)
    ):
        found.append((f"generation_kwargs.until: {until!r} is no list of texts", 'Write until: ["\\n"].'))
    if written.get("do_sample"):
        found.append(("do_sample: answers are greedy here", "Leave it out, or say do_sample: false."))
    if not isinstance(config.get("dataset_path"), str):
        others = [str(key) for key in config if key != "dataset_path"]
        near = difflib.get_close_matches("dataset_path", others, n=1, cutoff=0.8)
        hint = f"Did you mean dataset_path for {near[0]}? " if near else ""
        found.append(("it names no data", f"{hint}Add dataset_path: questions.csv, or a Hub id."))
    name = config.get("dataset_name")
    if name is not None and not isinstance(name, str):
        found.append((f"dataset_name: {name!r} is no text", "Put it in quotes."))
    kwargs = config.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        found.append(("dataset_kwargs is no mapping", "Write {data_files: questions.csv}."))
    elif strange := sorted(map(str, kwargs.keys() - KWARGS)):
        step = "Leave it out; a table's separator is found by itself."
        found.append((f"dataset_kwargs: {', '.join(strange)} cannot be used here", step))
    return found


def _in_data(config: Config, path: Path) -> list[Mistake]:
    """What is wrong with the data of a file that has other mistakes."""
    sound = isinstance(config.get("dataset_path"), str) and isinstance(config.get("dataset_name") or "", str)
    parts = (config.get(name) or {} for name in ("metadata", "dataset_kwargs"))
    if not sound or not all(isinstance(part, dict) for part in parts):
        return []
    extra = {**(config.get("metadata") or {}), "options": {}}
    try:
        _located({**config, "metadata": extra}, path, None)
    except UserError as error:
        return [(error.what.removeprefix(f"{path.name}").lstrip(": ").rstrip("."), error.next_step)]
    return []


def _located(config: Config, path: Path, offline: bool | None) -> Config:
    """Finds local data beside the file, and the splits that are asked and trained on."""
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    keys = {split: f"{'training' if split == 'train' else split}_split" for split in SPLIT_NAMES}
    said = any(config.get(key) for key in keys.values())
    try:
        files = find_local(path.parent, config["dataset_path"], named)
        have = splits_of(files) if files else []
        if files is None:
            hub_data.check_id(config["dataset_path"])
            if named:
                raise UserError(
                    "data_files of a Hub data set cannot be used here.", "Name its config and split."
                )
            if not said:
                have = hub_data.splits(
                    config["dataset_path"], config.get("dataset_name") or "default", offline
                )
                have = have or ["test"]  # left open
    except UserError as error:
        raise UserError(f"{path.name}: {error.what}", error.next_step) from error
    extra = {**config["metadata"], **({"files": files} if files else {})}
    config = {**config, "metadata": extra}
    if have and not said:
        for split, known in SPLIT_NAMES.items():
            if here := next((name for name in have if name.lower() in known), None):
                config[keys[split]] = here
        if len(have) == 1:
            config |= {"test_split": have[0], "training_split": None, "validation_split": None}
    if not config.get("test_split"):  # lm-eval asks the validation split then; it is not for training too
        config["test_split"], config["validation_split"] = config.get("validation_split"), None
    if not config.get("test_split"):
        step = f"Add test_split: {have[0] if have else 'test'}."
        there = f"; the data have {', '.join(have)}" if have else ""
        raise UserError(f"{path.name} names no split to ask{there}.", step)
    wrong = [(key, config[key]) for key in keys.values() if files and config.get(key) not in (None, *have)]
    if wrong:
        raise told(
            path.name,
            [(f"{k}: {n}: the data have no such split", f"They have {', '.join(have)}.") for k, n in wrong],
        )
    if files and not config.get("training_split") and not config.get("validation_split"):
        extra["options"] = {SHARE: dict(_SHARE), **(extra.get("options") or {})}
    return config


def _with_examples(config: Config, path: Path) -> Config:
    """Finds the local data that `metadata.examples` names; of the task's own data, checks the split."""
    extra = config["metadata"]
    said = extra.get(EXAMPLES)
    if not said or "split" not in said:
        return config
    try:
        if (place := said.get("dataset_path")) is None:
            files = extra.get("files")
        elif (files := find_local(path.parent, place, None)) is None:
            hub_data.check_id(place)
        if files and said["split"] not in (have := splits_of(files)):
            raise UserError(f"the data have no split {said['split']!r}.", f"They have {', '.join(have)}.")
    except UserError as error:
        raise UserError(f"{path.name}: metadata.examples: {error.what}", error.next_step) from error
    if place is not None and files:
        said = {**said, "files": files}
    return {**config, "metadata": {**extra, EXAMPLES: said}}


def _from_columns(config: Config, path: Path, base: Callable[[str], Config], offline: bool | None) -> Config:
    """A file without doc_to_text: prompts, choices and gold from the columns of its table."""
    for key in ("doc_to_choice", "doc_to_target", "process_docs", "process_results", "output_type"):
        if config.get(key):
            raise UserError(f"{path.name} has {key} but no doc_to_text.", 'Add doc_to_text: "{{question}}".')
    extra = config["metadata"]
    said = extra.get("columns") or {}
    files: Files | None = extra.get("files")
    context = extra.get("context")
    try:
        if files:
            names: list[str] | None = columns_of(files, config["test_split"])
        elif {"question", "answer", "choices"} <= set(said):
            names = _mentioned(said)
        else:
            where = config["dataset_path"], config.get("dataset_name") or "default", config["test_split"]
            names = hub_data.columns(*where, offline)
        found = own_columns(names, said, context) if names else Columns("", "", ("",))  # left open
    except UserError as error:
        raise UserError(f"{path.name}: {error.what}", error.next_step) from error
    if files is None and found.sharer_context and context is None and "sharer_context" not in said:
        what = f"{path.name}: column {found.sharer_context} is for the sharer alone."
        raise UserError(what, "Say metadata: {context: different}.")  # lists show it without the data
    form = base("_own_choice.yaml" if found.choices else "_own_text.yaml")
    theirs = dict(form["metadata"])
    if found.sharer_context or (not names and context == "different"):
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
