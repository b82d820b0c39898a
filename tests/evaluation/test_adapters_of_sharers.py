"""Runs with several different sharers, each with an adapter of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import lcfbench
from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config, recorded_names, weights_sha256
from lcfbench.adapters.files import save as save_adapter
from lcfbench.adapters.select import FOLDER, find_adapters
from lcfbench.errors import UserError
from lcfbench.evaluation.replay import recipe_of
from lcfbench.models.causal_lm import CausalLM
from lcfbench.results.manifest import Manifest
from lcfbench.sources.models import find_model
from tests.helpers import Watcher, invoke, manifest_of, rows, run_recipe, save, save_pair

ASKED = {"task": ["splitfacts_several"], "task_options": {"sharers": "2"}, "limit": 6, "mode": ["lcf"]}
ASKED |= {"control": ["matched"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """A receiver and three sharers; the second and the third have one shape."""
    folder = tmp_path_factory.mktemp("models")
    names = save_pair(folder).split(":")
    more = [save(folder / name, layers=2, seed=seed) for name, seed in (("other", 2), ("third", 3))]
    return [*names, *map(str, more)]


def made(folder: Path, receiver: str, sharer: str, kind: str, gate: float = 1.0, **options) -> Path:
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in (receiver, sharer)]
    torch.manual_seed(5)
    names = zip(recorded_names((receiver, sharer)), (e.geometry for e in ends), strict=True)
    adapter = build(pair_config(kind, *names, options={"width": 8, **options}))
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn_like(p))
        adapter.gate_logit.fill_(gate)
    told = {"revisions": {"receiver": ends[0].revision, "sharer": ends[1].revision}}
    adapter.config = adapter.config.model_copy(update={"training": told})
    save_adapter(adapter, folder, "")
    return folder


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory) -> list[Path]:
    """An LCF-X adapter for each sharer."""
    folder, (receiver, *sharers) = tmp_path_factory.mktemp("adapters"), models
    return [made(folder / f"x{k}", receiver, sharer, "lcfx") for k, sharer in enumerate(sharers)]


def pair_of(models: list[str], *sharers: int) -> str:
    return f"{models[0]}:{','.join(models[1 + k] for k in sharers)}"


def lls(folder: Path) -> list[str]:
    return [row["choices_loglikelihood"] for row in rows(folder)]


def test_each_sharer_has_its_adapter(models, adapters, tmp_path):
    """The run names both and their digests; the order of sharers counts where edits follow one another."""
    first, second = adapters[:2]
    asked = ASKED | {"join": ["parallel", "sequential"]}
    runs = run_recipe(pair_of(models, 0, 1), tmp_path, adapter=[f"{first}+{second}"], **asked)
    for run in runs:
        manifest = manifest_of(run)
        digests = [weights_sha256(folder) for folder in (first, second)]
        assert manifest["identity"]["adapter_sha256"] == "+".join(digests)
        assert manifest["adapter"] == "x0+x1" and "adapter_facts" not in manifest
        told = [(each["name"], each["sha256"], each["facts"]["kind"]) for each in manifest["adapters"]]
        assert told == [("x0", digests[0], "lcfx"), ("x1", digests[1], "lcfx")]
        size = sum((folder / "adapter.safetensors").stat().st_size for folder in (first, second))
        for row in rows(run):
            assert row["adapter_bytes"] == size and row["error"] is None
            assert len(json.loads(row["each_message_bytes"])) == 2
    turned = run_recipe(pair_of(models, 1, 0), tmp_path, adapter=[f"{second}+{first}"], **asked)
    assert len({run.name for run in [*runs, *turned]}) == 4
    assert lls(runs[1]) != lls(runs[0]) and lls(runs[1]) != lls(turned[1])


@pytest.mark.parametrize("open_one", [0, 1])
@pytest.mark.parametrize("join", ["parallel", "sequential"])
def test_beside_a_shut_adapter_the_run_is_that_of_one_pair(models, adapters, tmp_path, open_one, join):
    """On shared text, which all sharers read: bit for bit."""
    places = []
    for k in (0, 1):
        gate = 1.0 if k == open_one else -1.0
        places.append(made(tmp_path / f"a{k}", models[0], models[1 + k], "lcf", gate))
    asked = {"task": ["openbookqa"], "limit": 4, "mode": ["lcf"], "control": ["matched"]}
    [both] = run_recipe(
        pair_of(models, 0, 1), tmp_path / "both", adapter=["+".join(map(str, places))], join=[join], **asked
    )
    [alone] = run_recipe(pair_of(models, open_one), tmp_path / "one", adapter=[places[open_one]], **asked)
    assert lls(both) == lls(alone)
    for row, single in zip(rows(both), rows(alone), strict=True):
        sizes = json.loads(row["each_message_bytes"])
        assert sizes[open_one] == single["message_bytes"] > 0 == sizes[1 - open_one]


def test_messages_of_such_a_run_are_replayed(models, adapters, tmp_path):
    place = "+".join(map(str, adapters[:2]))
    asked = ASKED | {"adapter": [place], "control": ["matched", "deranged-one"], "keep_messages": True}
    for run in run_recipe(pair_of(models, 0, 1), tmp_path, **asked):
        found = lcfbench.replay(run)
        assert list(found["equal"]) == [True] * 6 and found["difference"].max() == 0
        assert recipe_of(Manifest.model_validate(manifest_of(run)), run).adapter == [Path(place)]
    moved = [tmp_path / "moved" / folder.name for folder in adapters[:2]]
    for folder, to in zip(adapters, moved, strict=False):
        shutil.copytree(folder, to)
    assert all(lcfbench.replay(run, adapter="+".join(map(str, moved)))["equal"])
    with pytest.raises(UserError, match="other weights are"):
        lcfbench.replay(run, adapter="+".join(map(str, moved[::-1])))


def test_adapters_are_found_for_each_sharer(models, adapters, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair = pair_of(models, 0, 1)
    (tmp_path / "adapters").mkdir()
    shutil.copytree(adapters[0], tmp_path / "adapters" / "x0")
    words = ["--pair", pair, "--offline"]
    words += [
        word for key, values in ASKED.items() if key in ("task", "mode") for word in (f"--{key}", *values)
    ]
    words += ["--task-option", "sharers=2", "--limit", "2", "--out", tmp_path / "out"]
    code, _, err = invoke(capsys, monkeypatch, "run", *words)
    assert code == 2 and f"with {models[0]}:{models[2]}" in err and err.count("\n") == 1, err
    shutil.copytree(adapters[1], tmp_path / "adapters" / "x1")
    watcher = Watcher()
    [run] = run_recipe(pair, tmp_path / "found", watcher, **ASKED)
    assert manifest_of(run)["adapter"] == "x0+x1"
    [said] = [text for text in watcher.said if "uses" in text]
    assert "adapters/x0" in said and " and adapters/x1" in said


@pytest.mark.parametrize(
    ("sharers", "order", "said"),
    [
        ((0, 1), (1, 0), r"--adapter .*x1 was made for .*:.*other, and sharer 1 is .*/sharer\."),
        ((1, 2), (2, 1), r"--adapter .*x2 was made for .*third, and sharer 1 is .*other\."),
        ((1, 0), (2, 0), None),  # of the same shape: said as in a run of one pair
        ((0, 1), (0, 0), r"x0 was made for .*, and sharer 2 is .*other\."),
        ((0, 1), (0, 2), None),
        ((1, 0), (1, 1), r"x1 was made for .*, and sharer 2 is .*/sharer\."),
        ((0, 1), (0,), r"x0 is the adapter of one sharer, and --pair names .*sharer, .*other\..*A\+B"),
        ((0, 1), (0, 1, 2), r"names 3 adapters, and --pair names 2 sharers"),
        ((0,), (0, 1), r"names 2 adapters, and --pair names one sharer"),
    ],
)
def test_an_adapter_in_the_wrong_place(models, adapters, tmp_path, sharers, order, said):
    place = "+".join(str(adapters[k]) for k in order)
    asked = ASKED | {"task_options": {"sharers": str(len(sharers))}, "adapter": [place]}
    watcher = Watcher()
    if said is None:
        [_] = run_recipe(pair_of(models, *sharers), tmp_path, watcher, **asked)
        assert any("was trained on other weights: sharer" in text for text in watcher.warned)
    else:
        with pytest.raises(UserError, match=said):
            run_recipe(pair_of(models, *sharers), tmp_path, watcher, **asked)


def test_one_sharer_thrice_and_another_between(models, adapters, tmp_path):
    """The same folder may stand in several places, and one folder is enough where all sharers are one."""
    place = "+".join(str(adapters[k]) for k in (0, 1, 0))
    asked = ASKED | {"task_options": {"sharers": "3"}}
    [run] = run_recipe(pair_of(models, 0, 1, 0), tmp_path, adapter=[place], **asked)
    assert [each["name"] for each in manifest_of(run)["adapters"]] == ["x0", "x1", "x0"]
    [one] = run_recipe(pair_of(models, 0, 0, 0), tmp_path, adapter=[adapters[0]], **asked)
    assert manifest_of(one)["adapter"] == "x0" and "adapters" not in manifest_of(one)
    thrice = "+".join([str(adapters[0])] * 3)
    [same] = run_recipe(pair_of(models, 0, 0, 0), tmp_path, adapter=[thrice], **asked)
    assert lls(same) == lls(one)


def test_alternatives_and_entries(models, adapters, tmp_path, capsys, monkeypatch):
    """A comma separates alternatives, and an entry may name its own."""
    first, second, third = map(str, adapters)
    pair = pair_of(models, 0, 1)
    found = run_recipe(pair, tmp_path, adapter=[f"{first}+{second}", f"{first}+{third}"], **ASKED)
    assert [manifest_of(run)["adapter"] for run in found] == ["x0+x1", "x0+x2"]
    entry = {**ASKED, "mode": f"receiver,lcf:adapter={first}+{second}"}
    assert run_recipe(pair, tmp_path / "entry", **entry)[1].name == found[0].name
    words = ("--pair", pair, "--task", "splitfacts_several", "--task-option", "sharers=2", "--mode", "t2t")
    code, _, err = invoke(capsys, monkeypatch, "run", *words, "--adapter", f"{first}+{second}")
    assert code == 2 and "x1 would have no effect: t2t does not use it" in err


def test_a_plus_in_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a+b", "c"):
        (tmp_path / name).mkdir()
    [ships] = [folder.name for folder in FOLDER.iterdir() if folder.name.endswith("planted.lcf16-planted")]
    assert find_adapters(Path("a+b"), 2) == (Path("a+b"),)
    assert find_adapters(Path("./b+c"), 2) == (Path("b"), Path("c"))
    assert find_adapters(Path(f"c+{ships}"), 2) == (Path("c"), FOLDER / ships)
    assert find_adapters(Path(f"{ships}+{ships}+c"), 3) == (FOLDER / ships, FOLDER / ships, Path("c"))
    assert find_adapters(Path("c+a+b"), 3) == (Path("c"), Path("a"), Path("b"))
    assert find_adapters(Path("c+a+b"), 2) == (Path("c"), Path("a+b"))
    (tmp_path / "c+a").mkdir()
    with pytest.raises(UserError, match=r"may be c and a\+b or c\+a and b"):
        find_adapters(Path("c+a+b"), 2)
    with pytest.raises(UserError, match="names 3 adapters, and --pair names 4 sharers"):
        find_adapters(Path("c+b+c"), 4)
    with pytest.raises(UserError, match="holds no adapter, and none of that name ships"):
        find_adapters(Path("nowhere+c"), 2)


def test_a_dry_run_and_a_plan(models, adapters, tmp_path, capsys, monkeypatch):
    place = "+".join(map(str, adapters[:2]))
    words = ["--pair", pair_of(models, 0, 1), "--mode", "lcf", "--task", "splitfacts_several", "--limit", "2"]
    words += ["--task-option", "sharers=2", "--out", tmp_path / "out"]
    code, out, err = invoke(capsys, monkeypatch, "run", "--dry-run", *words, "--adapter", place)
    assert code == 0 and "sharer" in json.loads(out.split("\n{")[0] if out.count("\n{") else out), err
    code, out, err = invoke(capsys, monkeypatch, "plan", *words, "--adapter", place)
    assert code == 0 and "lcf" in out, err
    swapped = "+".join(map(str, adapters[1::-1]))
    for verb in (["run", "--dry-run"], ["run"], ["plan"]):
        code, _, err = invoke(capsys, monkeypatch, *verb, *words, "--adapter", swapped)
        assert code == 2 and "was made for" in err and err.count("\n") == 1
