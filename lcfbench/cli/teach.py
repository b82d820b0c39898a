"""`lcfbench teach`."""

from __future__ import annotations

import shlex
from typing import Any

from lcfbench.cli.console import echo
from lcfbench.cli.options import flags, merged
from lcfbench.cli.progress import TeachLine
from lcfbench.cli.signals import interrupted


@flags("lcfbench.teaching.recipe:TeachRecipe")
def teach(**given: Any) -> None:
    """Teach a model what a task is about; `--pair RECEIVER:MODEL+NAME` takes what it saves.

    A LoRA learns the facts of `planted`, or the train split of another task (a specialist). Ctrl-C keeps a
    checkpoint, and the same command goes on.
    """
    from lcfbench.teaching.recipe import TeachRecipe, usable_as

    chosen: TeachRecipe = merged(TeachRecipe, given, None, "teach")
    from lcfbench import api

    try:
        folder = api.teach(chosen, progress=TeachLine())
    except KeyboardInterrupt:
        interrupted()
    pair = f"smollm2-135m:{usable_as(chosen)}"
    options = "".join(f" --task-option {key}={value}" for key, value in chosen.task_options.items())
    again = f"lcfbench run --mode receiver,sharer,t2t --pair {shlex.quote(pair)} --task "
    again += f"{','.join(chosen.task)}{options}"
    echo(f"saved {folder}; use it with: {again}")
