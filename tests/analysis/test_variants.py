"""Variants of one method: labels that tell them apart, and the verbs that find each by its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcfbench.analysis.compare import compare
from lcfbench.analysis.gate.check import pair_up
from lcfbench.analysis.matching import labelled
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import verdicts
from lcfbench.errors import UserError
from tests.analysis.gate_runs import answers, record
from tests.helpers import invoke

N = 40


def adapter(name: str, width: int = 64, layers: int = 30, weights: str = "") -> dict:
    """What a run with such an adapter records."""
    facts = {"kind": "lcf", "options": {"width": width, "zero_up": False}, "layers": layers}
    return {
        "adapter_sha256": (weights or name).encode().hex().ljust(64, "0"),
        "facts": {"adapter": name, "adapter_facts": {**facts, "receiver_layers": 30}},
    }


def labels(folder: Path, control: str = "matched") -> list[str]:
    groups = read_run_groups([folder]).groups
    return sorted(group.label for group in groups if group.control == control)


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        ([adapter("A", 64), adapter("B", 128)], ["lcf width=128", "lcf width=64"]),
        ([adapter("A"), adapter("B", layers=9)], ["lcf layers=30/30", "lcf layers=9/30"]),
        ([adapter("LCF-64"), adapter("LCF-64-lr")], ["lcf LCF-64", "lcf LCF-64-lr"]),
        (
            [adapter("A", 64), adapter("B", 64, 9), adapter("C", 128)],
            ["lcf width=128 layers=30/30", "lcf width=64 layers=30/30", "lcf width=64 layers=9/30"],
        ),
        ([adapter("my adapter"), adapter("other")], ["lcf my_adapter", "lcf other"]),
    ],
)
def test_adapters_are_told_apart_by_what_they_are(adapters, expected, tmp_path) -> None:
    for seed, each in enumerate(adapters):
        record(tmp_path, answers(N, seed=seed), **each)
    assert labels(tmp_path) == expected


def test_a_variant_has_one_label_on_all_tasks_and_controls(tmp_path) -> None:
    for width in (64, 128):
        record(tmp_path, answers(N), **adapter(f"LCF-{width}", width))
    record(tmp_path, answers(N), control="deranged", **adapter("LCF-64", 64))
    record(tmp_path, answers(N), task="other", **adapter("LCF-64", 64))
    record(tmp_path, answers(N), mode="t2t", options={"words": "a b"}, adapter_sha256=None)
    record(tmp_path, answers(N), mode="t2t", options={"words": "c"}, adapter_sha256=None)
    assert labels(tmp_path, "deranged") == ["lcf width=64"]
    assert labels(tmp_path) == [
        "lcf width=128",
        "lcf width=64",
        "lcf width=64",
        "t2t words=a_b",
        "t2t words=c",
    ]
    judged = verdicts(tmp_path).set_index(["task", "label"])["verdict"]
    assert judged["splitfacts", "lcf width=64"] != "untested" == judged["splitfacts", "lcf width=128"]


def test_compare_takes_labels(tmp_path, capsys, monkeypatch) -> None:
    for width, lost in ((64, 0), (128, 12)):
        for control in ("matched", "deranged"):
            scores = answers(N)
            scores[:lost] = 0
            record(tmp_path, scores, control=control, **adapter(f"LCF-{width}", width))
    code, out, _ = invoke(
        capsys, monkeypatch, "compare", tmp_path, "--a", "lcf width=64", "--b", "lcf width=128", "--json"
    )
    lines = json.loads(out)["lines"]
    assert code == 0 and [line["a"] for line in lines] == ["lcf width=64", "lcf width=64 (deranged)"]
    assert {line["b"] for line in lines} == {"lcf width=128", "lcf width=128 (deranged)"}
    assert all(line["n"] == N and line["difference"] < 0 for line in lines)
    code, _, err = invoke(
        capsys, monkeypatch, "compare", tmp_path, "--a", "lcf width=65", "--b", "lcf width=128"
    )
    assert code == 2 and "'lcf width=65'" in err and "lcf width=64" in err
    code, _, err = invoke(capsys, monkeypatch, "compare", tmp_path)
    assert code == 2 and "there is no B" in err


def test_retrained_adapters_are_compared_and_checked_by_name(tmp_path) -> None:
    """Each width against itself, though no weights are the same."""
    for side in ("old", "new"):
        for width in (64, 128):
            record(tmp_path / side, answers(N), **adapter(f"LCF-{width}", width, weights=f"{side}-{width}"))
    old, new = (read_run_groups([tmp_path / side]) for side in ("old", "new"))
    found = compare(old, new)
    assert [(line.a, line.b) for line in found.lines] == [
        (f"lcf width={w}", f"lcf width={w}") for w in (128, 64)
    ]
    assert not found.unmatched_a and not found.unmatched_b
    pairs, missing, more = pair_up(old.groups, new.groups)
    assert [(a.label, b.label) for a, b in pairs] == [(f"lcf width={w}", f"lcf width={w}") for w in (128, 64)]
    assert not missing and not more
    one = labelled(old, "lcf width=64", "A")
    pairs, missing, more = pair_up(one.groups, new.groups)  # a baseline of one, a sweep beside it
    assert [(a.label, b.label) for a, b in pairs] == [("lcf width=64", "lcf width=64")] and len(more) == 1
    record(tmp_path / "new", answers(N), **adapter("LCF-64", 64, weights="again"))
    with pytest.raises(UserError, match="2 new runs could be meant"):
        pair_up(one.groups, read_run_groups([tmp_path / "new"]).groups)
