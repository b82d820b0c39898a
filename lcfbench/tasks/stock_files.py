"""Files of lm-eval's own tasks: their config, what of it cannot be asked, their class and their data."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.python_files import files_digest
from lcfbench.tasks.lm_eval import as_they_stand, sandbox
from lcfbench.tasks.stock_index import LISTING, PREFIX, Leaf, folder
from lcfbench.tasks.usable import AUTHORS, said

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's order
PLAIN = ("until", "do_sample", "temperature", "top_p", "top_k", *LIMITS)


def config_of(one: Leaf) -> dict[str, Any]:
    """The task's config with its functions, as lm-eval's factory makes it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = {}
    with guarded(f"{one.name}: its file cannot be read"):
        for resolve in (False, True) if one.file else ():  # nothing is imported of a file that is refused
            config = copy.deepcopy(load_yaml(folder() / one.file, resolve_func=resolve))
            refuse(one.name, config)
    config |= copy.deepcopy(dict(one.over))
    refuse(one.name, config)
    config["task"] = one.name.removeprefix(PREFIX)
    return {k: v for k, v in config.items() if k not in ("tag", "group", "task_list", "include")}


def refuse(name: str, config: Mapping[str, Any]) -> None:
    """Raises UserError for what cannot be asked as lm-eval would ask it."""

    def cannot(why: str) -> UserError:
        return UserError(f"{name} cannot be run: {why}.", f"Choose another: {LISTING}.")

    output = config.get("output_type", "generate_until")
    if output == "loglikelihood_rolling":
        raise cannot("it scores the likelihood of whole texts (loglikelihood_rolling), so nothing is asked")
    for key, what in (("doc_to_image", "images"), ("doc_to_audio", "audio")):
        if config.get(key):
            raise cannot(f"its documents hold {what}")
    if config.get("use_prompt"):
        raise cannot("its prompts come from promptsource")
    if config.get("unsafe_code"):
        raise cannot("its score runs code that a model wrote")
    if "class" in config and not (isinstance(config["class"], str) or _asks_plainly(config["class"])):
        raise cannot("it is a Python class that builds its own requests")
    if (config.get("repeats") or 1) != 1:
        raise cannot(f"each document is asked {config['repeats']} times and the answers are drawn by chance")
    written = config.get("generation_kwargs") or {}
    drawn = written.get("do_sample", float(written.get("temperature") or 0) > 0)
    if output == "generate_until" and drawn:
        raise cannot("its answers are drawn by chance (do_sample), and answers here are greedy")
    strange = sorted(set(written) - set(PLAIN))
    if output == "generate_until" and strange:
        raise cannot(f"its generation has a setting that is not known here ({', '.join(strange)})")


def _asks_plainly(kind: Any) -> bool:
    from lm_eval.api.task import ConfigurableTask

    return (
        issubclass(kind, ConfigurableTask) and kind.construct_requests is ConfigurableTask.construct_requests
    )


def shots_of(name: str, config: dict[str, Any], asked: int | None) -> int:
    """The number of examples, which is also written into the config as lm-eval does."""
    fixed = config.get("num_fewshot")
    if asked is not None and fixed == 0 and asked:
        raise UserError(
            f"{name} is asked without examples: its file says num_fewshot: 0.", "Leave --shots out."
        )
    config["num_fewshot"] = int(fixed or 0) if asked is None else asked
    return int(config["num_fewshot"])


def class_of(config: dict[str, Any], offline: bool) -> Any:
    """lm-eval's class whose data come through our sources, a split only when it is read."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    datasets.disable_progress_bars()  # of `map` and `filter`, which tasks call for their documents
    sandbox()
    base: Any = config.pop("class", ConfigurableTask)

    class Stock(base):
        def download(self, *args: Any, **kwargs: Any) -> None:
            if callable(self.config.custom_dataset):
                super().download(*args, **kwargs)
            else:
                self.dataset = Splits(self.config, offline)

        def fewshot_docs(self) -> Any:
            return super().fewshot_docs() if self.config.num_fewshot else None  # else a split is read in vain

    return Stock


class Splits(dict[str, Any]):
    """Splits of a data set, each loaded when it is first asked for."""

    def __init__(self, config: Any, offline: bool) -> None:
        super().__init__()
        kwargs = {k: v for k, v in (config.dataset_kwargs or {}).items() if k != "trust_remote_code"}
        self._about = config.dataset_path, config.dataset_name, kwargs, offline

    def __missing__(self, split: str) -> Any:
        from lcfbench.sources.datasets import load_split

        path, name, kwargs, offline = self._about
        self[split] = load_split(path, name, split, kwargs, offline=offline)
        return self[split]


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns what lm-eval's task code raises into one line; our own errors pass."""
    try:
        with as_they_stand():
            yield
    except UserError:
        raise
    except AUTHORS as error:
        step = f"Choose another: {LISTING}."
        missing = error.name.partition(".")[0] if isinstance(error, ImportError) and error.name else ""
        if missing and importlib.util.find_spec(missing) is None:
            step = f"Install it: pip install {missing}."
        raise UserError(f"{what}: {said(error)}.", step) from error


def digest_of(one: Leaf) -> str:
    """Digest of a task's file, of the files that it includes, and of the Python files beside them."""
    from lm_eval.tasks._yaml_loader import load_yaml

    over = hashlib.sha256(json.dumps(one.over, sort_keys=True, default=str).encode()).hexdigest()
    files = dict[Path, None]()
    todo = [folder() / one.file] if one.file else []
    while todo:
        file = todo.pop()
        if file in files or not file.is_file():
            continue
        files[file] = None
        text = file.read_text(encoding="utf-8")
        named = load_yaml(file, resolve_func=False, recursive=False).get("include") or []
        todo += [(file.parent / name).resolve() for name in ([named] if isinstance(named, str) else named)]
        if "!function" in text:
            files.update(dict.fromkeys(sorted(file.parent.glob("*.py"))))
    return hashlib.sha256(f"{over}{files_digest(files)}".encode()).hexdigest()
