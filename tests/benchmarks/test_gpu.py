"""The script for a GPU: its steps on the CPU with tiny models, and how its ends are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _gpu_steps, gpu
from benchmarks._gpu_models import Place
from benchmarks._gpu_steps import STEPS
from lcfbench.models import beside
from tests.helpers import ROOT
from tests.pretend_gpus import pretend_gpus

PLACE = Place("cpu", tiny=True)


@pytest.fixture(autouse=True)
def _as_the_script_runs(monkeypatch):
    torch.set_num_threads(1)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")  # the script sets it for the rest of its process


# -- the steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("bench", "equal", "bfloat16")])
def test_a_step_runs_on_the_cpu(name) -> None:
    found = STEPS[name](PLACE)
    assert found and all({"case", "claim"} <= set(each) for each in found)
    assert json.loads(json.dumps(found))
    if not name.endswith("-graph"):  # there is no graph on a CPU
        assert all("ratio" in each for each in found)


def at_once(work):
    work()
    return SimpleNamespace(result=lambda: None)


@pytest.mark.parametrize("name", ["streams", "decode-graph", "fuse-graph", "prefill-graph", "memory"])
def test_a_step_runs_on_a_gpu(name, monkeypatch) -> None:
    # a pretended GPU is there for one thread
    monkeypatch.setattr(_gpu_steps, "ThreadPoolExecutor", lambda count: SimpleNamespace(submit=at_once))
    beside.stream_of.cache_clear()
    with pretend_gpus() as pretended:
        found = STEPS[name](Place("cuda", tiny=True))
    assert found and all("ratio" in each for each in found)
    assert [what for what in pretended.seen if what.startswith("a matmul on")]
    if name == "streams":
        assert any(what == "work on side cuda:0" for what in pretended.seen)
        assert [each["target"] for each in found if "first token" in each["case"]] == [1.15]
    beside.stream_of.cache_clear()


def test_every_step_has_a_bound_and_all_fit_into_the_whole() -> None:
    assert {step.name for step in gpu.STEPS} == set(STEPS)
    assert all(step.seconds > 0 for step in gpu.STEPS) and gpu.WHOLE <= 480


def only(monkeypatch, *labels: str) -> None:
    some = [each for each in _gpu_steps.cases() if each[0] in labels]
    assert len(some) == len(labels)
    monkeypatch.setattr(_gpu_steps, "cases", lambda: iter(some))


def test_every_method_that_there_is_is_compared() -> None:
    from lcfbench.registry import method_names

    assert {mode for _, mode, _, _ in _gpu_steps.cases()} == set(method_names())


def test_equal_answers_are_shown_and_different_ones_fail(monkeypatch, capsys) -> None:
    only(monkeypatch, "lcf lcf shared", "lcf lcfx different")
    found = _gpu_steps.equal(PLACE)
    assert [each["ratio"] for each in found] == [0.0, 0.0] and not any(each["differing"] for each in found)
    pairs = iter([_gpu_steps.tiny_pair("cpu"), _gpu_steps.tiny_pair("cpu")])

    def other(device):
        pair = next(pairs)
        with torch.no_grad():
            pair[1].model.get_input_embeddings().weight.mul_(1.2 if next(turn) else 1.0)
        return pair

    turn = iter([False, True])
    monkeypatch.setattr(_gpu_steps, "tiny_pair", other)
    with pytest.raises(_gpu_steps.WrongError, match="answers on cpu are not the CPU's: lcf lcf shared"):
        _gpu_steps.equal(PLACE)


def test_bfloat16_is_as_near_as_the_cpu_s(monkeypatch) -> None:
    only(monkeypatch, "receiver shared")
    [found] = _gpu_steps.bfloat16(PLACE)
    assert found["ratio"] == 1.0 and 0 < found["nats"] < 1


def test_a_method_that_serves_no_such_documents_is_left_out() -> None:
    assert _gpu_steps.answers("lcf", "lcf", False, _gpu_steps.tiny_pair("cpu")) is None


# -- the script -----------------------------------------------------------------------------------

ENDS = {
    "good": "import json; print(json.dumps({'gpu': None, 'results': [{'case': 'x', 'claim': 'c', "
    "'ratio': 2.0, 'target': 3.0}]}))",
    "raises": "from benchmarks._common import told\nwith told('gpu'): raise ValueError('no such thing')",
    "late": "import time; time.sleep(60)",
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def made_up(monkeypatch):
    """Steps that are lines of Python."""
    monkeypatch.setattr(gpu, "STEPS", tuple(gpu.Step(n, 1.5 if n == "late" else 60) for n in ENDS))
    real = gpu.run_one

    def run(command, limit):
        return real([sys.executable, "-c", ENDS[command[command.index("benchmarks._gpu_steps") + 1]]], limit)

    monkeypatch.setattr(gpu, "run_one", run)


def test_what_a_step_ends_with_is_told(made_up, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device", "cpu", "--results", str(tmp_path)])
    assert end.value.code == 1
    found = {name: json.loads((tmp_path / f"gpu-{name}.json").read_text()) for name in ENDS}
    assert found["good"]["results"][0]["ratio"] == 2.0 and "failed" not in found["good"]
    assert found["raises"]["failed"] == "ValueError: no such thing (exit code 1)"
    assert (
        found["late"]["failed"] == "took longer than 2 s"
        and found["dies"]["failed"] == "ended with exit code -9"
    )
    shown = capsys.readouterr().out
    assert "| good | x | c | ≥ 3× | 2× | **no** |" in shown and "failed: ValueError: no such thing" in shown
    line = json.loads(shown.splitlines()[-1])
    assert line["steps"]["good"]["missed"] == 1 and line["steps"]["dies"]["failed"]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_no_step_begins_when_the_whole_is_over(made_up, tmp_path) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--results", str(tmp_path), "--seconds", "0", "--only", "good"])
    assert "nothing is left of the 0 s" in json.loads((tmp_path / "gpu-good.json").read_text())["failed"]


def test_a_trial_leaves_the_results_of_a_gpu_alone(made_up, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "real")
    gpu.main(["--device", "cpu", "--only", "good"])
    assert not (tmp_path / "real").exists() and "Results are in " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_machine_without_a_gpu_is_told_in_a_line(capsys, tmp_path) -> None:
    for device in ("cuda", "cuda:3"):
        with pytest.raises(SystemExit) as end:
            gpu.main(["--device", device, "--results", str(tmp_path / "none")])
        said = capsys.readouterr()
        assert end.value.code == 2 and said.err.count("\n") == 1 and "finds no CUDA device" in said.err
    assert not (tmp_path / "none").exists()


def test_a_missing_module_is_told_in_a_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", {"torch": "torch", "none": "no_such_module"})
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device", "cpu"])
    assert (
        end.value.code == 2
        and "has no no_such_module. Nothing was run or installed" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "asked", [["--only", "none"], ["--device", "tpu"], ["--device", "cuda:x"], ["--seconds", "x"]]
)
def test_a_wrong_word_is_refused_before_anything_runs(asked, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(asked)
    assert end.value.code == 2 and capsys.readouterr().err


def test_a_killed_script_keeps_what_has_ended_and_says_what_has_not(tmp_path) -> None:
    code = (
        "import sys\nfrom benchmarks import gpu\nreal = gpu.run_one\n"
        "gpu.STEPS = (gpu.Step('first', 60), gpu.Step('second', 60))\n"
        "ends = {'first': 'print(\"{}\")', 'second': 'import time; time.sleep(60)'}\n"
        "gpu.run_one = lambda c, limit: real([sys.executable, '-c', ends[c[3]]], limit)\n"
        "gpu.main(['--device', 'cpu', '--results', sys.argv[1]])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    second, end = tmp_path / "gpu-second.json", time.monotonic() + 60
    while not second.exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "failed" not in json.loads((tmp_path / "gpu-first.json").read_text())
    assert json.loads(second.read_text())["failed"] == gpu.UNFINISHED
