"""How repeats are timed, which are thrown away, and how two tables are compared."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.variants import Variant
from lcfbench.latency import grid
from lcfbench.latency.compare import compared, read_table
from lcfbench.latency.plan import Bench, Block, Cell, Took
from lcfbench.latency.probe import Probe
from lcfbench.latency.recipe import BenchRecipe
from lcfbench.methods.create import create
from tests import helpers


@dataclass
class Machine:
    """Stands in for the clock, the matmul and the models: `slow` says in which pass it is how slow."""

    slow: dict[int, float]
    passes: int = 0

    def probe(self) -> float:
        return 20.0 * self.slow.get(self.passes, 1.0)

    def once(self, cell) -> Took:
        took = Took({"ttft": 100.0 * self.slow.get(self.passes, 1.0), "ttea": 200.0})
        self.passes += 1
        return took


@pytest.fixture
def bench(monkeypatch):
    """Measures cells a, b and c in one block or several on a made-up machine."""

    def measured(slow=None, blocks=1, **settings) -> tuple[Bench, Machine, list[str]]:
        machine, order = Machine(slow or {}), []
        monkeypatch.setattr(grid, "Probe", lambda device, dtype: machine.probe)

        def once(cell):
            order.append(cell.variant.label)
            return machine.once(cell)

        monkeypatch.setattr(grid, "once", once)
        monkeypatch.setattr(grid.time, "monotonic", lambda: float(machine.passes))
        lm = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
        recipe = BenchRecipe.model_validate({"repeats": 5, "warm_up": 1, "precision": 0} | settings)
        made = Bench(recipe, SimpleNamespace(receiver=lm, sharer=lm))
        task = SimpleNamespace(name="words", shared=True)
        for _ in range(blocks):
            cells = [Cell(SimpleNamespace(label=name), None, None, None) for name in "abc"]
            made.blocks.append(Block(task, 64, 1, cells))
        *_, (done, total) = grid.measure(made)
        assert done <= total
        return made, machine, order

    return measured


def test_every_round_has_each_cell_once_in_an_order_of_its_own(bench):
    _, machine, order = bench()
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert machine.passes == 18 and {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) > 2 and bench()[2] == order, "random, and the same for every call"


def test_repeats_beside_which_the_machine_was_slow_are_thrown_away_and_made_again(bench):
    made, machine, _ = bench({4: 1.2, 5: 1.2, 11: 0.9})
    [block] = made.blocks
    for cell in block.cells:
        assert [t.ms["ttft"] for t in grid.kept(made, cell)] == [100.0] * len(grid.kept(made, cell))
        assert len(grid.kept(made, cell)) >= 5
    assert machine.passes > 18 and sum(len(c.times) for c in block.cells) > sum(
        len(grid.kept(made, c)) for c in block.cells
    )


def test_a_repeat_that_shared_the_processor_is_thrown_away():
    recipe = BenchRecipe.model_validate({})
    lm = SimpleNamespace(device=torch.device("cpu"))
    made = Bench(recipe, SimpleNamespace(receiver=lm, sharer=lm), probes=[20.0])
    times = [Took({}, beside=[20.0], busy=busy) for busy in (1.0, 0.98, 0.9, 0.4)]
    assert [t.busy for t in grid.kept(made, Cell(None, None, None, None, times))] == [1.0, 0.98]
    lm.device = torch.device("cuda")
    assert len(grid.kept(made, Cell(None, None, None, None, times))) == 4


def test_a_machine_that_never_rests_is_left_at_twice_the_repeats(bench):
    made, machine, _ = bench({n: 1 + (n % 5) / 5 for n in range(100)})
    assert machine.passes == 3 + 3 * 10 and any(len(grid.kept(made, c)) < 5 for c in made.blocks[0].cells)


@pytest.mark.parametrize("drift", [0, 30])
def test_the_drift_allowed_is_a_setting(bench, drift):
    made, machine, _ = bench({4: 1.2, 5: 1.2}, drift=drift)
    assert machine.passes == 18 and bool(made.probes) == bool(drift)
    assert all(len(grid.kept(made, c)) == 5 for c in made.blocks[0].cells)


def test_cells_whose_times_vary_get_more_repeats_until_their_medians_are_known(bench):
    steady, machine, _ = bench(precision=1.5)
    assert machine.passes == 18 and not any(grid.unsure(c.times, 1.5) for c in steady.blocks[0].cells)
    every = {n: 1 + (n % 2) / 20 for n in range(200)}  # 5 %, which 25 repeats narrow to 1.6 %
    for precision, most in ((10, 5), (3, 24), (0.5, 25)):
        made, machine, _ = bench(every, precision=precision, drift=0)
        cells = made.blocks[0].cells
        assert max(len(c.times) for c in cells) <= most and machine.passes == 3 + sum(
            len(c.times) for c in cells
        )
        assert any(grid.unsure(c.times, precision) for c in cells) == (precision == 0.5)
        assert (max(len(c.times) for c in cells) > 5) == (precision < 10)
    assert bench(every, precision=0.5, drift=0, repeats=4)[1].passes == 15, "quartiles of four say nothing"


def test_what_a_median_may_be_off_by_narrows_with_the_root_of_the_repeats():
    times = [Took({"ttft": ms, "ttea": 100.0}) for ms in (98.0, 99.0, 100.0, 101.0, 102.0)]
    assert grid.unsure(times, 1.4) and not grid.unsure(times, 1.41)  # 1.57 · 2 / √5 = 1.404
    assert not grid.unsure(times * 4, 0.71) and grid.unsure(times * 4, 0.69)
    assert not grid.unsure(times, 0) and not grid.unsure(times[:4], 0.1)


def test_minutes_are_shared_among_the_lengths(bench):
    made, machine, _ = bench(blocks=3, minutes=0.5)  # a pass takes a second, 54 are asked for
    timed = [sum(len(c.times) for c in block.cells) for block in made.blocks]
    assert all(5 <= n < 15 for n in timed), timed
    assert 30 <= machine.passes < 36
    made, machine, _ = bench(blocks=3, minutes=0.1)
    assert machine.passes < 10 and not any(c.times for c in made.blocks[2].cells)


def test_tails_are_given_where_there_are_repeats_enough():
    values = list(range(1, 101))
    assert set(grid.spread(values[:19])) == {"median", "q1", "q3", "min", "max"}
    assert grid.spread(values[:20])["p95"] == pytest.approx(19.05)
    assert grid.spread(values)["p99"] == pytest.approx(99.01)


def test_times_between_tokens_add_up_to_what_follows_the_first():
    lm = helpers.causal_lm()
    document = helpers.SHARED[0]
    cell = Cell(
        Variant("receiver"), None, create("receiver", lm, lm), replace(document, max_new_tokens=6, **OPEN)
    )
    took = grid.once(cell)
    assert cell.tokens["answer"] == 6 and len(took.gaps) == 5 and all(gap > 0 for gap in took.gaps)
    rest = took.ms["ttea"] - took.ms["ttft"]
    assert took.ms["tpot"] == pytest.approx(rest / 5)
    assert sum(took.gaps) <= rest * 1.001 and "step" not in vars(lm)


OPEN = {"scoring": "generate", "steps": (), "gold": "", "until": ()}


def test_the_matmul_is_the_same_each_time():
    probe = Probe(torch.device("cpu"), torch.float32)
    assert probe.weight.shape == (4096, 4096) and probe() > 0


# -- two tables -----------------------------------------------------------------------------------


def table(path, scale=1.0, **more):
    """A made-up table of two methods, all times `scale` times as long."""
    noise = [1.0, 1.01, 0.99, 1.005, 0.995]

    def row(label, ms, **other):
        times = {name: [round(ms * scale * n, 3) for n in noise] for name in ("ttft", "ttea")}
        base = {"label": label, "task": "words", "prompt_tokens": 64, "answer_tokens": 1, "budget": None}
        return base | {"times": times} | other

    made = {
        "benchmark": "lcfbench bench",
        "pair": "a:b",
        "dtype": "float32",
        "attention": "auto",
        "random_weights": False,
        "machine": {"cpu": "X", "threads": 1, "device": "cpu"},
        "models": {},
        "matmul_ms": {"median": 20.0 * scale},
        "rows": [row("receiver", 100.0), row("lcf", 150.0)],
    }
    path.write_text(json.dumps(made | more))
    return path


@pytest.fixture
def compare(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: helpers.invoke(capsys, monkeypatch, "bench", "--compare", *args)


def test_ratios_have_intervals_and_stand_beside_the_receivers(compare, tmp_path):
    a, b = table(tmp_path / "a.json"), table(tmp_path / "b.json", 1.1)
    code, out, err = compare(a, b)
    assert code == 0, err
    *shown, last = out.splitlines()
    found = json.loads(last)
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(1.1, rel=1e-3) and row["low"] <= row["ratio"] <= row["high"]
        assert row["low"] > 1.07 and row["high"] < 1.13
        if row["label"] == "lcf":
            assert row["beside_receiver"]["ratio"] == pytest.approx(1.0, rel=1e-3)
        else:
            assert row["beside_receiver"] is None
    assert found["furthest_percent"] == {
        "times": pytest.approx(10, abs=0.1),
        "beside_receiver": 0,
        "matmul": 10,
    }
    assert max(map(len, shown)) <= 80 and any("1.100 (1.08–1.12)" in line for line in shown)
    assert "furthest apart: ttft and ttea +10.0 %" in err


def test_equal_tables_are_equal(tmp_path):
    read = read_table(table(tmp_path / "a.json"))
    assert {(row["ratio"]) for row in compared(read, read)} == {1.0}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"random_weights": True}, "weights real against random"),
        ({"dtype": "bfloat16"}, "dtype float32 against bfloat16"),
        ({"machine": {"cpu": "X", "threads": 2, "device": "cpu"}}, "threads 1 against 2"),
        ({"machine": {"cpu": "Y", "threads": 1, "device": "cpu"}}, "cpu X against Y"),
        ({"machine": {"cpu": "X", "threads": 1, "device": "cuda", "gpu": "H"}}, "gpu none against H"),
        ({"pair": "a:c"}, "pair a:b against a:c"),
    ],
)
def test_what_is_not_comparable_is_refused_unless_told(compare, tmp_path, other, says):
    a, b = table(tmp_path / "a.json"), table(tmp_path / "b.json", **other)
    code, out, err = compare(a, b)
    assert code == 2 and out == "" and says in err and "--anyway" in err and len(err.splitlines()) == 1
    code, out, err = compare(a, b, "--anyway")
    assert code == 0 and json.loads(out.splitlines()[-1])["anyway"] is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "is not a JSON object"),
        ("{}", "is no table of `lcfbench bench`"),
        ('{"benchmark": "lcfbench bench", "rows": []}', "cannot be compared: pair"),
        ("not json", ""),
        (None, ""),
    ],
)
def test_a_file_that_is_no_table_is_one_line(compare, tmp_path, text, says):
    bad = tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    code, out, err = compare(table(tmp_path / "a.json"), bad)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and "bad.json" in err and says in err, err


@pytest.mark.parametrize("value", [-1.0, math.inf, "x", None])
def test_a_time_that_is_none_is_refused(tmp_path, value):
    path = table(tmp_path / "a.json")
    text = json.loads(path.read_text())
    text["rows"][0]["times"]["ttft"][0] = value
    path.write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"a\.json"):
        read_table(path)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--mode", "receiver"), "--compare measures nothing: --mode would have no effect"),
        (("--out", "x.json"), "--compare measures nothing: --out would have no effect"),
        (("-o", "budget=3"), "--compare measures nothing: -o would have no effect"),
    ],
)
def test_flags_that_measure_do_not_go_with_compare(compare, tmp_path, args, says):
    a = table(tmp_path / "a.json")
    code, out, err = compare(a, a, *args)
    assert code == 2 and out == "" and says in err


def test_tables_without_a_common_row_and_anyway_alone(compare, capsys, monkeypatch, tmp_path):
    a, b = table(tmp_path / "a.json"), table(tmp_path / "b.json", rows=[])
    code, _, err = compare(a, b)
    assert code == 2 and "no row in common" in err
    rows = json.loads(a.read_text())["rows"]
    code, _, err = compare(a, table(tmp_path / "c.json", rows=rows[:1]))
    assert code == 0 and f"1 row in {a} alone" in err
    code, _, err = helpers.invoke(capsys, monkeypatch, "bench", "--anyway")
    assert code == 2 and "--anyway goes with --compare" in err
