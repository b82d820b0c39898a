"""A training that is killed, cut off or damaged at random moments ends as an undisturbed one, byte for byte.

`LCFBENCH_FUZZ_SEED=3` tries other moments, `LCFBENCH_FUZZ=10` ten times as many.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests import helpers

MORE = float(os.environ.get("LCFBENCH_FUZZ", "1"))
SEED = os.environ.get("LCFBENCH_FUZZ_SEED", "0")
TRAINING = (
    "train --pair receiver:sharer --task splitfacts --steps 10 --batch-size 2 --dev-documents 2 "
    "--eval-every 3 --train-documents 16 --save-every 1 --lr 3e-3 --dtype float32 --offline "
    "-o width=8 -o gate=gumbel --out out"
)
HOW = ["KILL", "disk", "TERM", "torn", "INT", "clock", "KILL", "flipped"]


def content(out: Path) -> dict[str, object]:
    """All files, without times and rates."""
    log = pd.read_parquet(out / "training.parquet")
    config = json.loads((out / "config.json").read_text())
    config["training"].pop("minutes")
    return {
        "names": sorted(path.name for path in out.iterdir()),
        "weights": (out / "adapter.safetensors").read_bytes(),
        "config": config,
        "log": log[log["metric"] != "examples_per_s"].to_csv(),
    }


def damage(path: Path, how: str, drawn: random.Random) -> None:
    """Cuts a file, or flips a bit of it."""
    data = bytearray(path.read_bytes())
    if how == "torn":
        del data[drawn.randrange(len(data)) :]
    else:
        data[drawn.randrange(64, len(data) - 4000)] ^= 16
    path.write_bytes(data)


def wait(running: helpers.Processes, out: Path, step: int) -> None:
    """Waits until so many steps are in the log, or a process has ended; not at all where they are."""
    while all(each.exitcode is None for each in running.all):
        journal = out / "training.jsonl"
        if not step or (journal.exists() and journal.read_text().count('"loss"') >= step):
            return
        time.sleep(0.005)


@pytest.mark.parametrize(("count", "kills"), [(1, 25), (2, 5)])
def test_whatever_ends_it_and_however_often_it_ends_as_undisturbed(tmp_path, count, kills):
    helpers.save(tmp_path / "receiver", layers=2)
    helpers.save(tmp_path / "sharer", bos=True, layers=2, heads=1, vocabulary=330, seed=1)
    out, drawn = tmp_path / "out", random.Random(f"{count}{SEED}")

    def begin() -> helpers.Processes:
        return helpers.Processes(TRAINING.split(), [tmp_path] * count)

    codes, said = begin().end()
    assert codes == [0] * count, said
    want = content(out)
    shutil.rmtree(out)
    left, hows = round(kills * MORE), itertools.cycle(HOW)
    while left > 0:
        how, running = next(hows), begin()
        if how == "disk":  # files cannot grow beyond
            most = drawn.choice([1_000, 4_000, 20_000, 60_000])
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(running.pids[0], resource.RLIMIT_FSIZE, (most, most))
        else:
            wait(running, out, drawn.randint(0, 10))
            time.sleep(drawn.expovariate(20))
            number = getattr(signal, f"SIG{how}", signal.SIGKILL)
            for pid in drawn.sample(running.pids, drawn.randint(1, count)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        codes, said = running.end(60, launcher=True)
        assert "Traceback" not in said and None not in codes, said
        assert said.count("lcfbench: ") <= 1, said
        if codes == [0] * count or "already holds" in said:
            assert content(out) == want
            shutil.rmtree(out)
            continue
        left -= 1
        checkpoint = out / "checkpoint.pt"
        if how in ("torn", "flipped") and checkpoint.exists():
            damage(checkpoint, how, drawn)
            codes, said = begin().end()
            if codes == [0] * count:  # a bit of the file's padding
                assert how == "flipped" and content(out) == want
                shutil.rmtree(out)
                continue
            assert codes == [2] * count and said.count("lcfbench: out/checkpoint.pt cannot be read") == 1, (
                said
            )
            checkpoint.unlink()
            (out / "adapter.safetensors").unlink(missing_ok=True)  # the best state of an interrupted one
        if how == "clock" and out.exists():
            for path in out.iterdir():  # written in the future
                os.utime(path, (time.time() + 9e5, time.time() + 9e5))
    codes, said = begin().end()
    assert codes == [0] * count or "already holds" in said, said
    assert content(out) == want
