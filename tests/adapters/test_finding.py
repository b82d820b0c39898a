"""Which adapter a method gets where none is named: places, fit, order, what is fetched, and its failures."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from lcfbench.adapters import finding
from lcfbench.adapters.base import build
from lcfbench.adapters.card import card
from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS, pair_config, read_config
from lcfbench.adapters.files import save
from lcfbench.adapters.finding import Wanted, find_for
from lcfbench.adapters.select import AdapterMissing, cached, shipped
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.sources.c2c_fusers import RELEASED, released
from lcfbench.sources.models import ALIASES
from tests import helpers

PAIR = ("qwen3-0.6b", "qwen2.5-0.5b")
SMALL = Geometry(layers=4, kv_heads=2, head_dim=8), Geometry(layers=3, kv_heads=1, head_dim=16)
FUSER = "nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty folder to run in, an empty cache, no mirror, no Hub."""
    torch.set_num_threads(1)
    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def wanted(task: str = "planted", mode: str = "lcf", shared: bool = True, pair=PAIR, **more) -> Wanted:
    kinds = {"lcf": ("lcf", "lcfx"), "c2c": ("c2c",)}[mode]
    return Wanted(mode, kinds, pair, task, shared, **{"offline": True, **more})


def made(folder: Path, *tasks: str, kind: str = "lcf", pair=PAIR, when: int = 0, **training) -> Path:
    """An untrained adapter that says it was trained on these tasks."""
    facts = {"tasks": list(tasks), **training}
    options = {"width": 2} if kind != "c2c" else {"hidden": 2, "intermediate": 2}
    config = pair_config(kind, *zip(pair, SMALL, strict=True), options=options)
    adapter = build(config.model_copy(update={"training": facts}))
    save(adapter, folder, card(adapter))
    os.utime(folder / WEIGHTS, (when or 1_700_000_000,) * 2)
    return folder


def missing(asked: Wanted) -> str:
    with pytest.raises(AdapterMissing) as error:
        find_for(asked)
    text = str(error.value)
    assert "\n" not in text
    return text


# -- places and order -------------------------------------------------------------------------------


def test_places_are_looked_through_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "shipped", lambda: [tmp_path / "ships"])
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    places = [
        made(tmp_path / "ships", "planted"),
        made(Path("adapters") / "mine", "planted"),
        made(cached() / "kept", "planted"),
        made(tmp_path / "mirror" / "adapters" / "org" / "name", "planted"),
    ]
    for place in places:
        assert find_for(wanted()).folder == place
        shutil.rmtree(place)
    text = missing(wanted())
    order = [text.index(name) for name in ("shipped:", "./adapters:", "cache (", "mirror:", "Hub:")]
    assert order == sorted(order) and str(cached()) in text and "offline" in text


def test_the_nearest_then_the_newest_is_taken_and_that_is_said():
    made(Path("adapters/old"), "planted", when=1_600_000_000)
    made(Path("adapters/both"), "planted", "openbookqa", when=1_800_000_000)
    made(Path("adapters/chat"), "chat:teknium/OpenHermes-2.5", when=1_900_000_000)
    points = [
        {"step": 1, "loss": 1.0, "planted/matched": s, "planted/deranged": 0.3} for s in (0.5, 0.945, 0.9)
    ]
    made(Path("adapters/new"), "planted", when=1_700_000_000, dev=points)
    found = find_for(wanted())
    assert found.folder == Path("adapters/new")
    assert found.why == "adapters/new (trained on planted, dev 94.5), the newest of 4 that fit there"
    shutil.rmtree("adapters/new")
    assert find_for(wanted()).folder == Path("adapters/old")
    shutil.rmtree("adapters/old")
    both = find_for(wanted())
    assert both.folder == Path("adapters/both") and "the nearest to the task of 2" in both.why
    assert find_for(wanted("mmlu_redux")).folder == Path("adapters/chat"), "chat data serve every shared task"
    assert "trained on chat:teknium/OpenHermes-2.5" in find_for(wanted("mmlu_redux")).why


@pytest.mark.parametrize(
    ("facts", "asked", "says"),
    [
        ({"tasks": ["openbookqa"]}, {}, "x is trained on openbookqa"),
        ({"tasks": ["planted_heldout"]}, {}, "x is trained on planted_heldout"),
        ({"contexts": ["different"]}, {}, "x is made for different contexts"),
        ({"kind": "lcfx"}, {}, "x is made for different contexts"),
        ({}, {"shared": False}, "x is made for shared contexts"),
        ({"senders": "deranged"}, {}, "none for this pair and method"),
        ({"method": "single"}, {}, "none for this pair and method"),
        ({"kind": "c2c"}, {}, "none for this pair and method"),
        ({"pair": ("qwen3-0.6b", "llama3.2-1b")}, {}, "none for this pair and method"),
        ({"pair": PAIR[::-1]}, {}, "none for this pair and method"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_adapter_for_something_else_is_never_taken(facts, asked, says):
    facts = dict(facts)
    made(Path("adapters/x"), *facts.pop("tasks", ["planted"]), **facts)
    assert f"./adapters: {says}" in missing(wanted(**asked))


@pytest.mark.parametrize(
    ("trained", "pair"),
    [(PAIR, ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-0.5B-Instruct")), (("qwen/qwen3-0.6b", "QWEN2.5-0.5B"), PAIR)],
)
def test_a_model_has_one_name(trained, pair):
    made(Path("adapters/x"), "planted", pair=trained)
    assert find_for(wanted("planted_heldout", pair=pair)).folder == Path("adapters/x")


def test_other_weights_of_a_model_are_another_model(tmp_path):
    pair = helpers.save_pair(tmp_path / "models")
    names = tuple(pair.split(":"))
    asked = wanted(pair=names)
    here = asked.revisions
    assert set(here) == {"receiver", "sharer"}
    recorded = {role: here[role] for role in here}
    made(Path("adapters/x"), "planted", pair=("receiver", "sharer"), revisions=recorded)
    assert find_for(asked).folder == Path("adapters/x")
    helpers.save(tmp_path / "models" / "sharer", bos=True, family="gemma3", layers=3, heads=1, dim=16, seed=7)
    text = missing(wanted(pair=names))
    assert f"x is trained on another sharer ({recorded['sharer']}, here it is " in text
    hub = {role: "a" * 40 for role in here}  # a commit of the Hub says nothing about files
    made(Path("adapters/y"), "planted", pair=("receiver", "sharer"), revisions=hub)
    assert find_for(wanted(pair=names)).folder == Path("adapters/y")


@pytest.mark.parametrize("damage", ["truncated", "no weights", "config", "later", "unfinished", "above"])
def test_a_damaged_or_unfinished_adapter_is_not_taken_and_named(damage):
    folder = made(Path("adapters/out/x"), "planted")
    weights, config = folder / WEIGHTS, folder / CONFIG
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-3])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config":
        config.write_text("{")
    elif damage == "later":
        config.write_text(config.read_text().replace('"format": 1', '"format": 99'))
    else:
        (folder if damage == "unfinished" else folder.parent).joinpath("checkpoint.pt").touch()
    says = {"truncated": "x is damaged", "no weights": "nothing there", "config": "x is unreadable"}
    says |= {"later": "format 99", "unfinished": "not finished", "above": "not finished"}
    assert says[damage] in missing(wanted())
    good = made(cached() / "good", "planted")
    assert find_for(wanted()).folder == good


def test_the_shipped_ones_are_found_as_before():
    pair = ("smollm2-135m", "gemma3-270m")
    found = find_for(wanted("splitfacts_heldout", shared=False, pair=pair))
    assert found.folder in shipped() and found.why == f"the shipped adapter {found.folder.name}"
    assert "trained on openbookqa, arc_challenge" in missing(wanted("mmlu_redux", pair=pair))


# -- released fusers ---------------------------------------------------------------------------------


@pytest.fixture
def mirrored(tmp_path, monkeypatch) -> Path:
    """A mirror that has one released fuser of the tiny shape, and a card with a licence."""
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    base = tmp_path / "mirror" / "models" / "nics-efc" / "C2C_Fuser"
    names = [ALIASES[name] for name in PAIR]
    helpers.released_fuser(base / FUSER.rpartition("/")[2], *names)
    (base / CARD).write_text("---\nlicense: apache-2.0\n---\nC2C fusers\n")
    return base


def test_each_released_folder_has_its_pair():
    assert len(set(RELEASED.values())) == len(RELEASED) == 8
    for pair, folder in RELEASED.items():
        assert released(pair) == f"nics-efc/C2C_Fuser/{folder}"
        ids = tuple(ALIASES.get(name, name) for name in pair)
        assert released(ids) == released(pair) and released(pair[::-1]) == ""
        assert all(name in ALIASES for name in pair) or folder == "qwen3_0.6b+qwen3_4b_gsm8k_Fuser"
    assert released(("qwen3-0.6b", "qwen3_4b_gsm8k")).endswith("gsm8k_Fuser")
    assert released(("a", "b")) == ""


def test_a_released_fuser_is_imported_once_and_found_next_time(mirrored, capsys):
    asked = wanted("openbookqa", mode="c2c")
    found = find_for(asked)
    assert found.folder.is_relative_to(cached()) and FUSER in found.why
    said = capsys.readouterr().err
    assert said.count("imported") == 1 and "apache-2.0" in said and str(found.folder) in said
    facts = read_config(found.folder).training
    assert facts["imported_from"] == FUSER and facts["license"] == "apache-2.0" and facts["format"] == "C2C"
    text = (found.folder / CARD).read_text()
    assert "license: apache-2.0" in text and FUSER in text
    before = (found.folder / WEIGHTS).stat()
    shutil.rmtree(mirrored)
    again = find_for(wanted("arc_challenge", mode="c2c", pair=tuple(ALIASES[n] for n in PAIR)))
    assert again.folder == found.folder and (again.folder / WEIGHTS).stat() == before
    assert "imported" not in capsys.readouterr().err and FUSER in again.why


def test_a_released_fuser_is_for_its_pair_method_and_contexts(mirrored):
    assert f"{FUSER}: made for shared contexts" in missing(wanted("splitfacts", mode="c2c", shared=False))
    assert "released fuser" not in missing(wanted("openbookqa"))
    text = missing(wanted("openbookqa", mode="c2c", pair=("qwen3-0.6b", "qwen3-4b")))
    assert (
        "qwen3_0.6b+qwen3_4b_Fuser" in text and "no such folder" in text and "offline was asked for" in text
    )
    assert not cached().exists() or not list(cached().rglob("*"))


def test_ones_own_adapter_comes_before_a_released_fuser(mirrored):
    made(Path("adapters/other"), "planted", kind="c2c")
    assert FUSER in find_for(wanted("openbookqa", mode="c2c")).why
    mine = made(Path("adapters/mine"), "openbookqa", kind="c2c")
    assert find_for(wanted("openbookqa", mode="c2c")).folder == mine


@pytest.mark.parametrize("file", ["final/projector_2.pt", "final/projector_config.json", "config.json"])
def test_a_damaged_fuser_is_one_line_and_nothing_of_it_stays(mirrored, file):
    path = mirrored / FUSER.rpartition("/")[2] / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=Path(file).name):
        find_for(wanted("openbookqa", mode="c2c"))
    assert not list(cached().rglob(WEIGHTS)) and not list(cached().rglob(CONFIG))


def test_a_disk_without_room_is_said_before_anything_is_written(mirrored, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(UserError, match=r"GB free\. Free some space, or set LCFBENCH_CACHE"):
        find_for(wanted("openbookqa", mode="c2c"))
    assert not list(cached().rglob(WEIGHTS))


def _import(results, die: bool) -> None:
    if die:
        from lcfbench.adapters import files

        files.save_file = lambda *a, **kw: os._exit(9)  # as a kill while the weights are written
    results.put(str(find_for(wanted("openbookqa", mode="c2c")).folder))


def test_a_killed_import_leaves_nothing_and_two_at_once_import_once(mirrored):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    killed = context.Process(target=_import, args=(results, True))
    killed.start()
    killed.join(60)
    assert killed.exitcode == 9 and not list(cached().rglob(CONFIG))
    both = [context.Process(target=_import, args=(results, False)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0] and results.get() == results.get()
    assert len(list(cached().rglob(WEIGHTS))) == 1
