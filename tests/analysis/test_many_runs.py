"""Thousands of runs: the numbers are those of the rows, and little of them stays in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.million_rows import REAL, TASKS, write_runs
from lcfbench.analysis import matching
from lcfbench.analysis.gate.check import _alike, pair_up
from lcfbench.analysis.recorded import Documents, Packed, shared
from lcfbench.analysis.run_groups import RunGroup, RunGroups, grouped, joined, read_run_groups
from lcfbench.analysis.summary import _by, _twin_key, hashable, twins_of
from lcfbench.analysis.verdict import Evidence, judge
from lcfbench.results.reader import load_samples
from lcfbench.results.schema import SAMPLES
from lcfbench.results.validation import altered_rows

RUNS, DOCUMENTS = 6 * TASKS, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("many")
    write_runs(place, RUNS, DOCUMENTS)
    return place


@pytest.fixture(scope="module")
def read(folder: Path) -> RunGroups:
    return read_run_groups([folder], prompts=True)


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    return load_samples(folder)


def from_rows(rows: pd.DataFrame, group: RunGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, means over the runs and codes of failed documents, worked out without the package."""
    mine = pd.concat([rows[rows["run_id"] == run_id] for run_id in group.run_ids])
    codes = pd.util.hash_array(mine["doc_hash"].to_numpy(dtype=object))
    failed = mine["error"].notna().to_numpy()
    scores = np.where(failed, 0.0, mine["score"].fillna(0.0).to_numpy(dtype=float))
    found, places = np.unique(codes, return_inverse=True)
    means = np.bincount(places, scores) / np.bincount(places) if len(found) < len(codes) else None
    return found, scores[np.argsort(codes)] if means is None else means, np.unique(codes[failed])


def test_the_runs_are_sealed_as_a_writer_seals_them(folder: Path, read: RunGroups) -> None:
    assert read.warnings == [] and len(read.groups) == RUNS
    assert sum(not altered_rows(path) for path in folder.glob(f"*/{SAMPLES}")) == REAL
    assert 0 < sum(group.errors for group in read.groups) < RUNS


def test_every_score_is_that_of_the_rows_bit_for_bit(read: RunGroups, rows: pd.DataFrame) -> None:
    for group in read.groups:
        codes, scores, failed = from_rows(rows, group)
        assert np.array_equal(group.codes, codes) and np.array_equal(group.failed, failed)
        assert group.scores.tobytes() == scores.tobytes()
        own = rows[rows["run_id"] == group.run_ids[0]]
        assert group.seed_scores == [float(np.where(own["error"].notna(), 0.0, own["score"]).mean())]
        by_hash = own.set_index("doc_hash")["score"]
        assert np.array_equal(by_hash[group.hashes].to_numpy(), scores)


def test_seeds_and_repeated_documents_are_means_bit_for_bit(read: RunGroups, rows: pd.DataFrame) -> None:
    """Several runs in one group: equal documents, and documents that only some of them have."""
    mine = [g.runs[0] for g in read.groups if g.task == "task1"][:3]
    other = next(g.runs[0] for g in read.groups if g.task == "task2")
    for runs in (mine, [*mine, other], [mine[0], mine[0]]):
        group = RunGroup(runs, {})
        codes, scores, failed = from_rows(rows, group)
        assert np.array_equal(group.codes, codes) and np.array_equal(group.failed, failed)
        assert group.scores.tobytes() == scores.tobytes()


def test_joining_equal_documents_is_joining_any(read: RunGroups) -> None:
    one, two = read.groups[0], read.groups[1]
    assert one.codes is two.codes
    quick, slow = joined(one, two), np.intersect1d(one.codes, two.codes)
    assert np.array_equal(quick[2], slow)
    two = RunGroup(two.runs, two.identity)
    two.codes = two.codes.copy()
    assert all(np.array_equal(x, y) for x, y in zip(joined(one, two), quick, strict=True))


def test_a_row_is_a_byte_or_two(read: RunGroups) -> None:
    """Documents and prompts are held once a task, the same score of many documents once."""
    runs = [run for group in read.groups for run in group.runs]
    assert len({id(run.documents) for run in runs}) == TASKS
    assert len({id(array) for run in runs for _, array in run.prompts.values()}) == TASKS
    assert all(group.packed is None for group in read.groups)
    held = sum(run.packed.places.nbytes for run in runs if run.packed.places is not None)
    assert held == RUNS * DOCUMENTS and all(run.packed.places is not None for run in runs)


@pytest.mark.parametrize(
    ("values", "width"),
    [
        (np.array([0.0, 1.0, 1.0, -0.0]), 1),
        (np.linspace(0, 1, 256), 1),
        (np.linspace(0, 1, 257), 2),
        (np.linspace(0, 1, 65_537), None),
        (np.zeros(0), 1),
    ],
)
def test_packed_numbers_come_back_bit_for_bit(values: np.ndarray, width: int | None) -> None:
    packed = Packed(values)
    assert packed.values.tobytes() == values.tobytes() and packed.values.dtype == values.dtype
    assert width == (None if packed.places is None else packed.places.itemsize)


def test_what_is_shared_goes_with_its_last_user() -> None:
    one, two = shared(np.arange(9.0)), shared(np.arange(9.0))
    assert one is two and shared(np.arange(9)) is not one  # of another type
    gone = weakref.ref(one)
    del one, two
    gc.collect()
    assert gone() is None


def test_documents_are_told_apart_by_every_hash() -> None:
    import pyarrow as pa

    def of(*names: str) -> Documents:
        return Documents.of(pa.chunked_array([list(names)], pa.string()))

    assert of("ab", "c") is of("ab", "c") is Documents.of(pa.chunked_array([["ab"], ["c"]], pa.string()))
    assert len({id(x) for x in (of("ab", "c"), of("a", "bc"), of("c", "ab"), of("abc"), of())}) == 5


def test_evidence_is_not_kept() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def family() -> Iterator[Evidence]:
        for seed in range(12):
            own = np.random.default_rng(seed).random(400)
            alive.append(weakref.ref(own))
            yield Evidence(own, own[::-1].copy())
            del own
            assert sum(ref() is not None for ref in alive) <= 2

    found = judge(family())
    assert len(found) == 12 and found == judge(
        [Evidence(x := np.random.default_rng(s).random(400), x[::-1].copy()) for s in range(12)]
    )


def test_groups_are_looked_up_as_they_are_compared(read: RunGroups) -> None:
    deranged = _by(_twin_key, (g for g in read.groups if g.control == "deranged"))
    for group in read.groups:
        assert deranged.get(hashable(_twin_key(group)), []) == twins_of(group, read.groups, "deranged")
    again = grouped([run for group in read.groups for run in group.runs])
    pairs, missing, more = pair_up(read.groups, again)
    assert not missing and not more and all(a.run_ids == b.run_ids for a, b in pairs)
    for group in read.groups[:5]:
        assert sum(_alike(group, other, []) for other in again) == sum(
            _alike(group, other, []) for other in again if other.task == group.task
        )
    matched, left_a, left_b = matching.match(read.groups, again)
    assert len(matched) == RUNS and not left_a and not left_b


@pytest.mark.parametrize("value", [{"a": [1, {"b": None}]}, [1, 2], {}, [], None, 1.5, "x"])
def test_a_hashable_value_is_equal_where_the_value_is(value: object) -> None:
    others = [{"a": [1, {"b": 0}]}, [2, 1], {"a": {}}, [[]], 0, 1, "y"]
    assert hashable(value) == hashable(value) and hash(hashable(value)) is not None
    assert all(hashable(value) != hashable(other) for other in others)
