"""lm-eval's own command line with the model `lcfbench` and our tasks in it.

>>> main(["run", "--model", "lcfbench", "--model_args", "pair=a:b,mode=t2t", "--tasks", "hellaswag"])
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import lm_eval.evaluator
import lm_eval.tasks
from lm_eval._cli import HarnessCLI
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.utils import setup_logging

from lcfbench.doors.lm_eval_model import CACHES, PairLM, check_greedy, refused_rolling
from lcfbench.doors.lm_eval_tasks import task_folder
from lcfbench.errors import UserError
from lcfbench.tasks.stock_files import Splits

NAME = "lcfbench"
STEP = "See `lcfbench lm-eval run --help`."
MISTAKES = (ValueError, TypeError, KeyError, FileNotFoundError)  # what lm-eval raises for bad arguments


def main(arguments: Sequence[str]) -> None:
    """Runs lm-eval on these arguments. Raises UserError for mistakes that it or the pair finds."""
    setup_logging()
    parser = HarnessCLI()
    for each in (parser._parser, *parser._subparsers.choices.values()):
        each.error = refuse  # type: ignore[method-assign]
    with ExitStack() as stack:
        put = lambda *where: stack.enter_context(patch.object(*where))  # noqa: E731
        put(sys, "argv", ["lm-eval", *arguments])
        put(lm_eval.tasks, "TaskManager", _manager(lm_eval.tasks.TaskManager))
        put(EvaluatorConfig, "from_cli", partial(_configured, EvaluatorConfig.from_cli))
        put(EvaluatorConfig, "process_tasks", _tasks_found(EvaluatorConfig.process_tasks))
        put(lm_eval.evaluator, "evaluate", partial(_evaluated, lm_eval.evaluator.evaluate))
        put(ConfigurableTask, "download", _downloaded(ConfigurableTask.download))
        parser.execute(parser.parse_args())


def refuse(message: str) -> NoReturn:
    """argparse's report of a mistake, in one line."""
    raise UserError(f"lm-eval: {message.rstrip('.')}.", STEP)


def _manager(base: Any) -> Any:
    """lm-eval's index of tasks, which finds ours too."""

    class Manager(base):  # type: ignore[misc]
        def __init__(self, *args: Any, include_path: Any = None, **kwargs: Any) -> None:
            given = include_path if isinstance(include_path, list | tuple) else [include_path]
            for path in filter(None, given):
                if not Path(path).is_dir():
                    raise UserError(f"--include_path {path}: there is no such folder.", "Check the path.")
            super().__init__(*args, include_path=[*filter(None, given), task_folder()], **kwargs)

    return Manager


def _configured(original: Any, namespace: argparse.Namespace) -> EvaluatorConfig:
    """The merged settings of flags and a YAML file, checked before anything is loaded."""
    try:
        config = original(namespace)
    except MISTAKES as error:
        raise UserError(f"lm-eval: {_said(error)}.", STEP) from error
    if not config.tasks:
        raise UserError("lm-eval: no tasks are given.", "`lcfbench lm-eval ls tasks` lists them.")
    if config.model != NAME:
        return config
    if config.use_cache:
        raise UserError(f"{CACHES}: with --use_cache answers could be another's.", "Leave it out.")
    if config.cache_requests:
        raise UserError(f"{CACHES}: with --cache_requests prompts could be another's.", "Leave it out.")
    args = config.model_args = dict(config.model_args or {})
    if "batch_size" in args:
        config.batch_size = args.pop("batch_size")
    asked = getattr(namespace, "device", None)
    if asked and "device" in args:
        raise UserError(f"--device {asked} and device={args['device']} are both given.", "Give one.")
    default = EvaluatorConfig().device  # lm-eval's is cuda:0, on every machine
    config.device = args.pop("device", asked or (config.device if config.device != default else "auto"))
    given = {**args, "batch_size": config.batch_size, "device": config.device}
    args["model"] = PairLM(**given).pair.label  # folders of results are named after it
    config.metadata = {**args, **config.metadata}
    return config


def _tasks_found(original: Any) -> Any:
    def process_tasks(self: EvaluatorConfig, metadata: dict[str, Any] | None = None) -> Any:
        try:
            return original(self, metadata)
        except MISTAKES as error:
            raise UserError(f"lm-eval: {_said(error)}.", "`lcfbench lm-eval ls tasks` lists them.") from error

    return process_tasks


def _evaluated(original: Any, lm: Any, task_dict: Any, **settings: Any) -> Any:
    """lm-eval's loop, behind a look at the tasks: no model is loaded for one that cannot be asked."""
    tasks: dict[str, Any] = task_dict["tasks"]
    if not isinstance(lm, PairLM):
        if split := [n for n, t in tasks.items() if getattr(t, "split", False)]:
            what = f"{', '.join(split)} gives two models different contexts."
            raise UserError(what, "Use --model lcfbench.")
        return original(lm=lm, task_dict=task_dict, **settings)
    check_tasks(tasks)
    return original(lm=lm, task_dict=task_dict, **settings)


def _downloaded(original: Any) -> Any:
    """Data of lm-eval's tasks come from where ours do: the mirror, the cache or the Hub."""

    def download(self: ConfigurableTask, *args: Any, **kwargs: Any) -> None:
        if callable(self.config.custom_dataset):
            original(self, *args, **kwargs)
        else:
            self.dataset = Splits(self.config, False)

    return download


def check_tasks(tasks: dict[str, Any]) -> None:
    """Raises UserError for tasks that a pair cannot answer."""
    if rolling := [n for n, t in tasks.items() if t.OUTPUT_TYPE == "loglikelihood_rolling"]:
        raise refused_rolling(rolling)
    for name, task in tasks.items():
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"{name} shows images or plays sounds; a pair reads text.", "Take it out.")
        if task.OUTPUT_TYPE == "generate_until":
            check_greedy(task.config.generation_kwargs or {}, name)


def _said(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split()).rstrip(".")
