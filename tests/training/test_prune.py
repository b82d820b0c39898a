"""Layer pruning on tiny models: dropped layers, shared prefills, nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcfbench.adapters.base import build
from lcfbench.adapters.config import WEIGHTS, pair_config, read_config, weights_sha256
from lcfbench.adapters.files import PICTURE, REPORT, load, save
from lcfbench.cli import tables
from lcfbench.cli.adapter import before_after, layers_table
from lcfbench.cli.terminal import out
from lcfbench.errors import UserError
from lcfbench.evaluation.batching import batches
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.sources.models import find_model
from lcfbench.tasks.task import Task
from lcfbench.training import prune as pruning
from lcfbench.training.ablation import Bench, Tally, method_for
from lcfbench.training.prune import audit, judge, prune
from lcfbench.training.recipe import PruneRecipe
from tests import helpers


class Quiet:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[tuple[int, int]] = []

    def say(self, text):
        self.said.append(text)

    warn = say

    def update(self, done, total):
        self.done.append((done, total))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def make(pair: str, folder: Path, kind: str = "lcfx", gates: list | None = None, **options) -> Path:
    torch.manual_seed(0)
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    adapter = build(pair_config(kind, *((e.name, e.geometry) for e in ends), options=options))
    with torch.no_grad():
        if gates is not None:
            adapter.gate_logit.copy_(torch.tensor(gates))
    adapter.config = adapter.config.model_copy(
        update={"training": {"revisions": {"receiver": ends[0].revision, "sharer": ends[1].revision}}}
    )
    save(adapter, folder, "# old card")
    return folder


GATES = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]  # the first layer is shut


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> Path:
    return make(pair, tmp_path_factory.mktemp("adapter") / "whole", gates=GATES, width=8)


def recipe(whole: Path, out: Path, **more) -> PruneRecipe:
    given = {
        "adapter": whole,
        "dev": "splitfacts",
        "limit": 6,
        "batch_size": 3,
        "dtype": "float32",
        "out": out,
    }
    return PruneRecipe.merge(None, given | more, "adapter prune")


# -- the procedure on numbers ---------------------------------------------------------------------


def test_fates_and_ranks(pair, whole):
    adapter = load(whole)
    assert audit(adapter) == [1, 2, 3] == adapter.open_layers()
    base = {"score": 0.5, "loglik": -1.0}
    without = [
        {"score": 0.25, "loglik": -0.9},
        {"score": 0.5, "loglik": -1.2},
        {"score": 0.75, "loglik": -2.0},
    ]
    rows = judge(adapter, [1, 2, 3], base, without, None)
    assert [r["fate"] for r in rows] == ["shut", "kept", "kept", "hurts"]
    assert [r["rank"] for r in rows] == [None, 1, 2, None], (
        "the score decides; likelihood only where it stays"
    )
    assert (
        rows[1]["importance"] == 0.25
        and rows[2]["loglik_importance"] == pytest.approx(0.2)
        and rows[0]["importance"] is None
    )
    assert [r["fate"] for r in judge(adapter, [1, 2, 3], base, without, 1)] == [
        "shut",
        "kept",
        "outranked",
        "hurts",
    ]
    tied = [{"score": 0.5, "loglik": v} for v in (-1.1, -0.9, -1.0)]
    assert [r["fate"] for r in judge(adapter, [1, 2, 3], base, tied, 1)] == [
        "shut",
        "kept",
        "hurts",
        "outranked",
    ], "no effect is no harm"


def test_soft_gates_are_shut_only_where_nothing_passes(pair, tmp_path):
    folder = make(
        pair,
        tmp_path / "soft",
        gates=[[-1.0, -1.0], [-9.0, -9.0], [-9.0, 0.0], [1.0, 1.0]],
        width=8,
        gate="soft",
    )
    assert audit(load(folder)) == [0, 2, 3]


# -- on models ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(pair, whole, tmp_path_factory):
    """One pruning to two layers, with the calls of the models counted and the splits recorded."""
    calls, splits, read = {"sharer": 0, "receiver": 0}, [], Task.documents

    patch = pytest.MonkeyPatch()
    patch.setattr(Task, "documents", lambda self, **k: splits.append(k.get("split")) or read(self, **k))

    def loaded(found, **k):
        end = load_model(found, **k)
        assert end.can_join  # is found out by reading, once
        name = Path(end.name).name
        end.model.get_decoder().register_forward_pre_hook(lambda *a: calls.__setitem__(name, calls[name] + 1))
        return end

    load_model = CausalLM.load
    patch.setattr(CausalLM, "load", staticmethod(loaded))
    out = tmp_path_factory.mktemp("pruned") / "small"
    progress = Quiet()
    [report] = prune(recipe(whole, out, keep=2), progress)
    patch.undo()
    return report, out, calls, splits, progress


def test_both_models_read_each_batch_once_for_all_ablations(pruned):
    _, _, calls, splits, progress = pruned
    # 2 batches, own and deranged messages, in two passes: ablations, then the pruned adapter
    assert calls["sharer"] == 2 * 2 * 2
    assert set(splits) == {"validation"}, "the test split is never read"
    assert progress.done[-1][0] == progress.done[-1][1] and not [
        t for t in progress.said if "other weights" in t
    ]


def test_ablations_equal_runs_of_their_own(pair, whole, pruned):
    report = pruned[0]
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    adapter = load(whole)
    task = pruning.load_task("splitfacts")
    documents = task.documents(split="validation", limit=6, receiver_chat=ends[0].has_chat)
    bench = Bench(*ends, "lcf", {}, task, documents, 3, 0, Quiet())
    for left_out in (1, 2, 3):
        tally = Tally()
        method = create("lcf", *ends, adapter.select([i for i in range(4) if i not in (0, left_out)]))
        with torch.inference_mode():
            for group in batches(documents, 3):
                bench.add(method, Batch(group, group, Clock()), tally)
        row = report["layers"][left_out]
        assert (row["score_without"], row["loglik_without"]) == (
            tally.means()["score"],
            pytest.approx(tally.means()["loglik"], abs=1e-6),
        )
        assert abs(row["loglik_importance"]) > 1e-6, "a layer that does nothing would prove nothing"


def test_the_smaller_adapter_is_the_kept_layers_bit_for_bit(pair, whole, pruned):
    report, out, *_ = pruned
    kept = [i for i, row in enumerate(report["layers"]) if row["fate"] == "kept"]
    assert (
        report["kept"] == [report["layers"][i]["layer"] for i in kept]
        and 0 < len(kept) <= 2
        and report["layers"][0]["fate"] == "shut"
    )
    big, small = load_file(whole / WEIGHTS), load_file(out / WEIGHTS)
    assert all(torch.equal(small[n], t[kept]) and small[n].dtype == t.dtype for n, t in big.items())
    config = read_config(out)
    assert list(config.layers) == report["kept"] and len(config.layer_map) == len(kept)
    told = config.training["pruned"]
    assert (
        told["sha256"] == weights_sha256(whole)
        and told["kept"] == report["kept"]
        and told["dropped"]["shut"] == [0]
    )
    assert told["pruned"]["matched"] == report["pruned"]["matched"] and set(report["whole"]["deranged"]) == {
        "score",
        "loglik",
    }
    card = (out / "README.md").read_text()
    assert (
        "## Pruned from whole" in card
        and f"{load(out).params:,} parameters in {len(kept)} of 4" in card
        and "old card" not in card
    )
    assert json.loads((out / REPORT).read_text())["kept"] == report["kept"]
    assert (out / PICTURE).read_bytes()[:4] == b"\x89PNG" and report["pruned"]["bytes"] == (
        out / WEIGHTS
    ).stat().st_size
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ("README.md", WEIGHTS, "config.json", REPORT, PICTURE)
    )


@pytest.mark.parametrize("kind", ["lcfx", "c2c", "lcf"])
def test_several_sizes_share_one_ablation_and_are_what_each_is_alone(pair, tmp_path, monkeypatch, kind):
    options = {"hidden": 8, "intermediate": 8} if kind == "c2c" else {"width": 8}
    whole = make(pair, tmp_path / "whole", kind, gates=[[1.0, 1.0]] * 4, **options)
    if kind != "lcfx":  # tasks of which both models read the same
        monkeypatch.setattr(Task, "documents", _shared(Task.documents))
    reports = prune(recipe(whole, tmp_path / "some", keep="3,1"), progress := Quiet())
    assert [Path(report["folder"]).name for report in reports] == ["whole-3L", "whole-1L"]
    assert {total for _, total in progress.done[-1:]} == {2 * 2 * 2}, "both sizes in one pass"
    for keep, report in zip((3, 1), reports, strict=True):
        [alone] = prune(recipe(whole, tmp_path / f"alone-{keep}", keep=keep), Quiet())
        timed = {"seconds", "folder"}
        assert {k: v for k, v in report.items() if k not in timed} == {
            k: v for k, v in alone.items() if k not in timed
        }
        folder, other = Path(report["folder"]), Path(alone["folder"])
        assert (folder / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
        told = read_config(folder).training["pruned"]
        assert told["seconds"] > 0 and set(told["pruned"]["deranged"]) == {"score", "loglik"}
        card = (folder / "README.md").read_text()
        assert "It took " in card and "| whole |" in card and "| pruned |" in card


def _shared(plain):
    def documents(self, **settings):
        return [replace(d, shared=True, sharer=d.receiver) for d in plain(self, **settings)]

    return documents


@pytest.mark.parametrize("taken", ["whole-3L", "whole-1L"])
def test_several_sizes_are_written_all_or_none(whole, tmp_path, taken):
    (tmp_path / taken).mkdir()
    (tmp_path / taken / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{taken} already holds an adapter"):
        prune(recipe(whole, tmp_path, keep=[3, 1]), Quiet())
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["config.json"]


def test_where_smaller_adapters_go(whole):
    def names(**more):
        asked = PruneRecipe.merge(None, {"adapter": whole, "dev": "splitfacts"} | more, "adapter prune")
        return [str(place) for place in asked.folders().values()]

    assert names() == ["adapters/whole-pruned"] and names(keep=9) == ["adapters/whole-9L"]
    assert names(keep="9,6,9") == ["adapters/whole-9L", "adapters/whole-6L"]
    assert names(keep="9,6", out="x") == ["x/whole-9L", "x/whole-6L"]
    assert names(keep="9", out="x") == names(out="x") == ["x"]


def test_the_tables_fit_80_columns(pruned, capsys, monkeypatch):
    report = pruned[0]
    monkeypatch.setattr(out, "width", 80)
    tables.show(layers_table(report), before_after(report))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "gates shut" in text and "…" not in text
    assert "left out" not in text and "flatters" in text
    remarks = before_after(replace_asked(report, 9, [1, 2])).remarks
    assert ("", "Only 2 layers help, so 2 stay, not 9.") in remarks


def replace_asked(report: dict, asked: int, kept: list[int]) -> dict:
    return report | {"asked": asked, "kept": kept}


def test_an_interruption_leaves_nothing(pair, whole, tmp_path, monkeypatch, capsys):
    calls = []
    plain = Bench.add

    def add(self, *rest):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        plain(self, *rest)

    monkeypatch.setattr(Bench, "add", add)
    line = (
        "adapter",
        "prune",
        whole,
        "--dev",
        "splitfacts",
        "--limit",
        "6",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "out" / "x",
    )
    code, out, err = helpers.invoke(capsys, monkeypatch, *line)
    assert code == 130 and "nothing was written" in err and out == "" and list(tmp_path.rglob("*")) == []
    monkeypatch.setattr(Bench, "add", plain)
    monkeypatch.setattr(
        "lcfbench.analysis.plots.layers.draw_layers", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert helpers.invoke(capsys, monkeypatch, *line)[0] == 130  # in the middle of writing
    assert [p for p in tmp_path.rglob("*") if p.is_file() or p.name != "out"] == []


def test_the_verb(pair, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    line = (
        "adapter",
        "prune",
        whole,
        "--dev",
        "splitfacts",
        "--limit",
        "6",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "x",
        "--keep",
        "1",
    )
    code, out, err = helpers.invoke(capsys, monkeypatch, *line)
    assert code == 0 and "saved " in out and "kept" in out and "1 of 4" in err, err
    before = weights_sha256(tmp_path / "x")
    code, _, err = helpers.invoke(capsys, monkeypatch, *line)
    assert code == 2 and "--force" in err and weights_sha256(tmp_path / "x") == before
    code, out, err = helpers.invoke(capsys, monkeypatch, *line, "--force", "--json")
    assert (
        code == 0
        and json.loads(out)["folder"] == str(tmp_path / "x")
        and weights_sha256(tmp_path / "x") == before
    ), "the same every time"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": 5}, "--keep is 5; this adapter has 4 layers"),
        ({"keep": 0}, "setting keep: input should be greater than or equal to 1"),
        ({"keep": "3,5"}, "--keep is 5; this adapter has 4 layers"),
        ({"keep": "3,x"}, "setting keep: input should be a valid integer"),
        ({"keep": "3,2.5"}, "setting keep: input should be a valid integer"),
        ({"keep": [3, True]}, "setting keep: yes or no is no number"),
        ({"limit": 1}, "setting limit: input should be greater than or equal to 2"),
        ({"dev": "splitfact"}, "Did you mean splitfacts"),
        ({"scoring": "letters"}, "unknown scoring"),
        ({"options": {"windos": "3"}}, "unknown option of lcf"),
        ({"adapter": Path("nowhere")}, "holds no adapter"),
    ],
)
def test_bad_input(whole, tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        prune(recipe(whole, tmp_path / "x", **settings), Quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lcf", {"width": 8}),
        ("prefix", {"slots": 2, "width": 8}),
        ("dense", {"form": "linear", "reconstruction": "none"}),
    ],
)
def test_kinds_that_cannot_be_pruned_here_say_so_in_one_line(pair, tmp_path, kind, options):
    folder = make(pair, tmp_path / kind, kind, **options)
    with pytest.raises(UserError) as error:
        prune(recipe(folder, tmp_path / "x"), Quiet())
    assert "\n" not in str(error.value) and (
        "cannot be pruned" in error.value.what or "token by token" in error.value.what
    )
    assert error.value.next_step and not (tmp_path / "x").exists()


def test_an_adapter_that_is_shut_or_useless_is_not_saved(pair, tmp_path, monkeypatch):
    shut = make(pair, tmp_path / "shut", gates=[[-1.0, -1.0]] * 4, width=8)
    with pytest.raises(UserError, match=r"every gate of .* is shut"):
        prune(recipe(shut, tmp_path / "x"), Quiet())
    bad = make(pair, tmp_path / "bad", gates=[[1.0, 1.0]] * 4, width=8)
    means = iter(range(1000))
    monkeypatch.setattr(
        Tally, "means", lambda self: {"score": next(means) / 1000, "loglik": 0.0}
    )  # every ablation scores better
    with pytest.raises(UserError, match="better without any one of its layers"):
        prune(recipe(bad, tmp_path / "x"), Quiet())
    assert not (tmp_path / "x").exists()


def test_methods_are_found_by_kind():
    assert (
        method_for("lcfx") == "lcf" and method_for("c2c") == "c2c" and method_for("lcf", "single") == "single"
    )
    assert method_for("lcf", "gone") == "lcf"
