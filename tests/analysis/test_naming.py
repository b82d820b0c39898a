"""Labels of runs that settings do not tell apart."""

from __future__ import annotations

from types import SimpleNamespace

from lcfbench.analysis.naming import labels


def group(run_id: str, **identity: object) -> SimpleNamespace:
    same = {"pair": "a:b", "task": "t", "scoring": "letters", "mode": "x", "control": "matched"}
    return SimpleNamespace(**same, identity=identity, run_ids=[run_id])


def test_runs_that_only_a_plugin_tells_apart_carry_their_ids():
    one = group("x-aaaaaa", options={}, plugins={"x": "1" * 64})
    two = group("x-bbbbbb", options={"upper": True}, plugins={"x": "1" * 64})
    three = group("x-cccccc", options={"upper": True}, plugins={"x": "2" * 64})
    assert labels([one, two, three]) == ["x", "x upper=True run=bbbbbb", "x upper=True run=cccccc"]
    assert labels([two, three]) == ["x run=bbbbbb", "x run=cccccc"]
    assert labels([one, two]) == ["x", "x upper=True"]
