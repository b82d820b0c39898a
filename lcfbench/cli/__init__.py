"""The command line. `main` is the entry point of the `lcfbench` script."""

import os


def main() -> None:
    """Runs the command that `sys.argv` names, and ends the process."""
    try:
        from lcfbench.cli.signals import guarded

        guarded(_run)
    except KeyboardInterrupt:  # Python's own, before the handlers stand
        os.write(2, b"interrupted.\n")
        os._exit(130)


def _run() -> None:
    from lcfbench.cli.app import main as run  # typer is imported only when a command runs

    run()
