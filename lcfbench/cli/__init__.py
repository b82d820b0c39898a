"""The command line. `main` is the entry point of the `lcfbench` script."""


def main() -> None:
    """Runs the command that `sys.argv` names, and ends the process."""
    from lcfbench.cli.signals import guarded

    guarded(_run)


def _run() -> None:
    from lcfbench.cli.app import main as run  # typer is imported only when a command runs

    run()
