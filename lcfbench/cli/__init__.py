"""The command line. `main` is the entry point of the `lcfbench` script."""


def main() -> None:
    """Runs the command that `sys.argv` names."""
    from lcfbench.cli.__main__ import main as run  # typer is imported only when a command runs

    run()
