"""Options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair",
        envvar="LCFBENCH_PAIR",
        help="RECEIVER:SHARER: aliases, Hub ids or local folders. [default: smollm2-135m:gemma3-270m]",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", envvar="LCFBENCH_OUT", help="Folder of runs. [default: results]")
]
OfflineOption = Annotated[
    bool | None,
    typer.Option("--offline/--online", envvar="LCFBENCH_OFFLINE", help="Use only what is on this machine."),
]
DtypeOption = Annotated[
    str | None, typer.Option(envvar="LCFBENCH_DTYPE", help="auto, float32 or bfloat16. [default: auto]")
]
DeviceOption = Annotated[
    str | None, typer.Option(envvar="LCFBENCH_DEVICE", help="auto, cpu or cuda[:n]. [default: auto]")
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE", help="A setting of the method or adapter; repeatable."
    ),
]
TaskOptionsOption = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="KEY=VALUE", help="A setting of the task; repeatable."),
]
RunsArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Results folders, run folders or parquet files. [default: results]"),
]
