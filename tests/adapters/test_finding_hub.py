"""Adapters found on the Hub: tags and configs, the newest first, listings that lie, and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from lcfbench.adapters.base import build
from lcfbench.adapters.card import card, refreshed
from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS, pair_config, read_config
from lcfbench.adapters.files import save
from lcfbench.adapters.finding import Wanted, find_for
from lcfbench.adapters.hub import pull
from lcfbench.adapters.select import AdapterMissing, cached
from lcfbench.geometry import Geometry
from lcfbench.publishing.adapter import push
from lcfbench.sources import hub

PAIR = ("smollm2-135m", "gemma3-270m")
SMALL = Geometry(layers=4, kv_heads=2, head_dim=8), Geometry(layers=3, kv_heads=1, head_dim=16)


@pytest.fixture
def pushed(server, tmp_path, monkeypatch):
    """Pushes an untrained adapter that says it was trained on these tasks."""
    monkeypatch.setenv("HF_TOKEN", "token")

    def push_one(repo_id: str, *tasks: str, day: int = 1, pair=PAIR, **training):
        config = pair_config("lcf", *zip(pair, SMALL, strict=True), options={"width": 2})
        torch.manual_seed(day)
        adapter = build(config.model_copy(update={"training": {"tasks": list(tasks), **training}}))
        folder = tmp_path / "made" / repo_id
        save(adapter, folder, card(adapter))
        push(folder, repo_id)
        server.repos[repo_id]["changed"] = f"2026-03-{day:02}T00:00:00.000Z"
        return folder

    return push_one


def wanted(task: str = "planted", offline: bool = False, pair=PAIR) -> Wanted:
    return Wanted("lcf", ("lcf", "lcfx"), pair, task, True, offline)


def missing(asked: Wanted) -> str:
    with pytest.raises(AdapterMissing) as error:
        find_for(asked)
    return str(error.value)


def test_the_newest_that_fits_is_shown_then_fetched_and_found_next_time(server, pushed, capsys):
    pushed("org/old", "planted", day=1)
    new = pushed("org/new", "planted", day=3)
    pushed("org/other-task", "openbookqa", day=5)
    pushed("org/other-pair", "planted", day=6, pair=(PAIR[0], "qwen2.5-0.5b"))
    server.asked.clear()
    found = find_for(wanted("planted_heldout"))
    assert (found.folder / WEIGHTS).read_bytes() == (new / WEIGHTS).read_bytes()
    assert found.folder.is_relative_to(cached()) and "org/new of the Hub" in found.why
    said = capsys.readouterr().err
    assert "org/new is the newest of 2 adapters that fit (lcf, trained on planted, of 2026-03-03)" in said
    weights = [line for line in server.asked if line.endswith(WEIGHTS)]
    assert all("org/new" in line for line in weights) and weights, "only one adapter's weights are fetched"
    server.asked.clear()
    assert find_for(wanted()).folder == found.folder and server.asked == []
    assert "Hub: 3 tagged for this pair, but none fits" in missing(wanted("mmlu_redux"))


def test_offline_and_down_the_hub_is_not_asked(server, pushed, monkeypatch):
    pushed("org/new", "planted")
    server.asked.clear()
    assert "Hub: offline was asked for" in missing(wanted(offline=True)) and server.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "Hub: HF_HUB_OFFLINE is set" in missing(wanted()) and server.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_down", {})
    text = missing(wanted())
    assert "Hub: no connection" in text and "\n" not in text
    assert "it knows no local folders" in missing(wanted(pair=("receiver", "./sharer")))


def test_a_private_repository_of_anothers_is_not_listed(server, pushed):
    pushed("org/mine", "planted")
    server.repos["org/mine"]["private"] = True
    assert "Hub: none for this pair" in missing(wanted())


def edited(files: dict[str, bytes], **changes) -> bytes:
    return json.dumps(json.loads(files[CONFIG]) | changes).encode()


LIES = {
    "pair": lambda s: s.change("org/bad", config=edited(s.files("org/bad"), sharer="qwen2.5-0.5b")),
    "task": lambda s: s.change(
        "org/bad", config=edited(s.files("org/bad"), training={"tasks": ["squad_split"]})
    ),
    "no config": lambda s: s.change("org/bad", config=None),
    "no json": lambda s: s.change("org/bad", config=b"\x00\x1b[31m{"),
    "huge config": lambda s: s.change("org/bad", config=b"{" + b" " * (17 << 20)),
    "later format": lambda s: s.change("org/bad", config=edited(s.files("org/bad"), format=99)),
    "huge sizes": lambda s: s.change(
        "org/bad", config=edited(s.files("org/bad"), options={"width": 1 << 19})
    ),
    "no weights": lambda s: s.change("org/bad", weights=None),
    "pickle": lambda s: s.change("org/bad", weights=b"\x80\x04cos\nsystem\n"),
    "truncated": lambda s: s.change("org/bad", weights=s.files("org/bad")[WEIGHTS][:-5]),
    "odd name": lambda s: s.repos["org/bad"].update(listed_as="org/../../bad"),
    "escape": lambda s: s.repos["org/bad"].update(listed_as="org/\x1b[31mbad"),
    "option": lambda s: s.repos["org/bad"].update(listed_as="--upload/x"),
    "space": lambda s: s.repos["org/bad"].update(listed_as="org/bad name\nlcf"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_listing_that_lies_costs_a_line_and_the_next_one_is_taken(server, pushed, capfd, lie):
    pushed("org/good", "planted", day=1)
    pushed("org/bad", "planted", day=9)
    LIES[lie](server)
    found = find_for(wanted())
    assert "org/good of the Hub" in found.why and read_config(found.folder).tasks == ["planted"]
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err and out == ""
    kept = [path for path in cached().rglob(CONFIG)]
    assert [path.parent for path in kept] == [found.folder], "nothing of the other one stays"


def test_tags_that_lie_are_not_believed(server, pushed):
    pushed("org/liar", "planted", pair=("qwen3-0.6b", "qwen2.5-0.5b"))
    ids = ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m")
    server.repos["org/liar"]["tags"] = ["lcfbench", *(f"base_model:{name}" for name in ids)]
    assert "Hub: 1 tagged for this pair, but none fits" in missing(wanted())


def test_what_is_pushed_has_the_tags_by_which_it_is_found(server, pushed, tmp_path):
    folder = pushed("org/first", "planted")
    text = "---\nlicense: mit\ntags:\n- mine\nbase_model: someone/else\n---\nMy own words.\n"
    (folder / CARD).write_text(text)
    push(folder, "org/own-card")
    data = ModelCard(server.files("org/own-card")[CARD].decode()).data
    assert {"mine", "lcfbench", "lcf"} <= set(data.tags) and data.license == "mit"
    ours = {"HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"}
    assert set(data.base_model) == {"someone/else", *ours}
    again = refreshed(server.files("org/own-card")[CARD].decode(), read_config(folder))
    assert again == server.files("org/own-card")[CARD].decode()
    del server.repos["org/first"]
    assert "org/own-card" in find_for(wanted()).why
    assert pull("org/own-card", Path("adapters/x")) == Path("adapters/x")
