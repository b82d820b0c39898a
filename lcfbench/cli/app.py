"""The command line: thin verbs, heavy imports inside them, so that `--help` answers at once.

Exit codes: 0 done; 1 too many documents of a run failed, or the device; 2 a mistake in the command or
in what it reads (one line and the next step); 130 interrupted (what is recorded stays). `check` also ends
with 1 (surely worse), 3 (inconclusive) and 4 (incomplete).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from lcfbench.cli import adapter_hub as adapter_hub  # adds its verbs to `adapter`
from lcfbench.cli.adapter import adapter_app
from lcfbench.cli.analysis import register as register_analysis
from lcfbench.cli.clean import prepare_streams
from lcfbench.cli.console import echo
from lcfbench.cli.latency import bench
from lcfbench.cli.lists import doctor, ls
from lcfbench.cli.lm_eval import PASSED_ON, lm_eval
from lcfbench.cli.message import message_app
from lcfbench.cli.options import group
from lcfbench.cli.oracle import oracle_app
from lcfbench.cli.plan import gather, plan
from lcfbench.cli.probe import probe
from lcfbench.cli.publish import register as register_publishing
from lcfbench.cli.run import demo, run
from lcfbench.cli.signals import interrupted
from lcfbench.cli.task import task_app
from lcfbench.cli.teach import teach
from lcfbench.cli.train import train
from lcfbench.cli.watch import watch
from lcfbench.errors import Exit, UserError
from lcfbench.training import processes

LONGEST, TAIL = 1_200, 400  # characters of an error, and those that stay at its end
ClickException: Any = typer.BadParameter.__mro__[2]  # typer brings its own copy of click in some versions
TOGETHER = (
    "train",
    "lm-eval",
)  # verbs that several processes of a launcher may run; lm-eval says more itself
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

app = group(
    "When one language model passes what it knows to another: how much gets across, how fast, and how "
    "do we know?",
    completion=True,
)
app.add_typer(adapter_app, name="adapter")
app.add_typer(message_app, name="message")
app.add_typer(oracle_app, name="oracle")
app.add_typer(task_app, name="task")
app.command()(run)
app.command()(plan)
app.command()(gather)
app.command()(train)
app.command()(teach)
app.command()(probe)
register_analysis(app)
register_publishing(app)
for verb in (bench, ls, watch, doctor, demo):
    app.command()(verb)
app.command(
    "lm-eval", context_settings=PASSED_ON, no_args_is_help=True, options_metavar="[run|ls|validate] …"
)(lm_eval)


def print_version(asked: bool) -> None:
    """Prints the version and ends."""
    if asked:
        from lcfbench import __version__

        echo(f"lcfbench {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command of `sys.argv`.

    A mistake is one line and exit code 2; Ctrl-C is 130; a reader that leaves (`| head`) is no error.
    """
    prepare_streams()
    try:
        name_shell(sys.argv[1:])
        check_launcher(sys.argv[1:])
        code = app(prog_name="lcfbench", standalone_mode=False)
        if code == Exit.INTERRUPTED:  # typer turns Ctrl-C into this code without a word
            interrupted()
        sys.exit(code)
    except UserError as error:
        complain(f"{error.what} {error.next_step}", error.code)
    except ClickException as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            echo(error.format_message(), stderr=True)
            sys.exit(Exit.USER)
        command = context.command_path if context else "lcfbench"
        complain(f"{error.format_message().rstrip('.')}. See `{command} --help`.")
    except (KeyboardInterrupt, typer.Abort):
        interrupted()
    except RuntimeError as error:
        if "torch" not in sys.modules:
            raise
        from lcfbench.models.memory import DeviceError, device_failed

        if not device_failed(error):
            raise
        complain(str(DeviceError(error)), DeviceError.code)
    except OSError as error:
        where, why = error.filename or "input or output", error.strerror or error
        complain(f"{where}: {why}. Check the path, its permissions and the disk.")


def check_launcher(arguments: list[str]) -> None:
    """Raises UserError where a launcher runs a verb several times, each of which would do the same."""
    if processes.count() == 1:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch warns of each connection that ends
    if arguments and arguments[0] not in TOGETHER:
        raise UserError(
            f"{processes.count()} processes of a launcher would each do the same `lcfbench {arguments[0]}`.",
            "Start it without `accelerate launch` or torchrun; only `train` divides its work that way.",
        )


def name_shell(arguments: list[str]) -> None:
    """Lets `--install-completion` and `--show-completion` take a shell's name; without one it is detected."""
    flag, _, shell = arguments[0].partition("=") if arguments else ("", "", "")
    if flag not in ("--install-completion", "--show-completion") or arguments[1:] == ["--help"]:
        return
    if named := [shell] if "=" in arguments[0] else arguments[1:]:
        if named[0] not in SHELLS or len(named) > 1:
            raise UserError(f"{flag} {' '.join(named)}: no such shell.", f"Known: {', '.join(SHELLS)}.")
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # typer's only way to a named shell


def complain(text: str, code: Exit = Exit.USER) -> None:
    """Prints one line and ends with an exit code; the middle of a very long one is left out."""
    if processes.local():  # the machine's first process says the same
        sys.exit(code)
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST - TAIL]} … {line[-TAIL:]}"
    echo(f"lcfbench: {line}", stderr=True)
    sys.exit(code)
