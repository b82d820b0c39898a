"""A real local Ray: two actors on the embedded pair, one of which is killed in the middle."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import pytest

from lcfbench.errors import UserError
from lcfbench.evaluation.ray_workers import RayWorkers
from tests.helpers import Watcher, manifest_of, rows
from tests.helpers import run_recipe as go

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
ASKED = {"mode": ["receiver", "lcf"], "task": ["splitfacts"], "control": ["matched", "deranged"]}
ASKED |= {"limit": 24, "batch_size": 4, "latency_documents": 2, "dtype": "auto", "adapter": []}


class Killer(Watcher):
    """Kills an actor's process as the first rows come back."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.pids, self.doing, wait = [], [], RayWorkers.wait

        def hear(workers):
            found = wait(workers)
            self.pids += [r.value[1]["pid"] for _, r in found if not isinstance(r, str) and is_place(r.value)]
            return found

        monkeypatch.setattr(RayWorkers, "wait", hear)

    def workers(self, doing):
        self.doing.append(list(doing))

    def update(self, title, right, done):
        super().update(title, right, done)
        if self.pids and self.pids[0]:
            os.kill(self.pids[0], signal.SIGKILL)
            self.pids[0] = 0


def is_place(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict) and "pid" in value[1]


@pytest.mark.real
def test_two_actors_leave_the_rows_of_one_process(tmp_path, monkeypatch):
    pair = "smollm2-135m:gemma3-270m"
    killer = Killer(monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    found = go(pair, tmp_path / "ray", killer, on="ray", processes=2, **ASKED)
    assert signal.getsignal(signal.SIGTERM) is before
    alone = go(pair, tmp_path / "alone", **ASKED)
    assert [f.name for f in found] == [f.name for f in alone] and len(found) == 3
    for one, two in zip(found, alone, strict=True):
        assert rows(one) == rows(two) and manifest_of(one)["state"] == "complete"
    assert any("died" in text and "another takes its place" in text for text in killer.warned)
    assert {len(doing) for doing in killer.doing} == {2}
    import ray

    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, pair):
    with pytest.raises(UserError, match="no Ray cluster at ray://auto"):
        go(pair, tmp_path, on="ray://auto")
