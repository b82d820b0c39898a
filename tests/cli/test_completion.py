"""`--install-completion` and `--show-completion` for bash, zsh and fish, and the completion itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import helpers

SHELLS = {
    "bash": ".bash_completions/lcfbench.sh",
    "zsh": ".zfunc/_lcfbench",
    "fish": ".config/fish/completions/lcfbench.fish",
}


def lcfbench(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own.

    The name of the shell is given, as none runs around the tests.
    """
    environment = helpers.environment() | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"} | variables
    command = [sys.executable, "-m", "lcfbench.cli", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_shown(shell):
    done = lcfbench("--show-completion", shell)
    assert done.returncode == 0 and f"_LCFBENCH_COMPLETE=complete_{shell}" in done.stdout.replace('"', "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_installed_in_the_home_folder(shell, tmp_path):
    done = lcfbench("--install-completion", shell, HOME=str(tmp_path))
    script = tmp_path / SHELLS[shell]
    assert done.returncode == 0 and "lcfbench" in script.read_text(), done.stderr
    if shell != "fish":
        assert any(
            "lcfbench" in p.read_text() or "zfunc" in p.read_text() for p in (tmp_path / f".{shell}rc",)
        )


def completed(shell: str, line: str) -> str:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))} if shell == "bash" else {}
    words |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return lcfbench(_LCFBENCH_COMPLETE=f"complete_{shell}", **words).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_verb_is_completed(shell):
    assert "run" in completed(shell, "lcfbench ru") and "train" not in completed(shell, "lcfbench ru")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_flag_of_the_settings_is_completed(shell):
    assert "--latency-documents" in completed(shell, "lcfbench run --late")
    assert "--weight-decay" in completed(shell, "lcfbench train --weight")


def test_a_completion_imports_no_torch():
    look = "import sys\nfrom lcfbench.cli import main\ntry: main()\n"
    look += "finally: print('torch' in sys.modules, file=sys.stderr)"
    variables = {"_LCFBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "lcfbench run --mo", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", look]
    done = subprocess.run(
        command, env=helpers.environment() | variables, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.split()[-1:] == ["False"] and "--mode" in done.stdout
