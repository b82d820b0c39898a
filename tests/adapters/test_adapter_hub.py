"""Adapters to and from a Hub: a small HTTP server speaks the part of its API that is needed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from lcfbench.adapters.base import build
from lcfbench.adapters.card import card, refreshed
from lcfbench.adapters.config import CARD, CONFIG, SOURCE, WEIGHTS, pair_config, weights_sha256
from lcfbench.adapters.files import save
from lcfbench.adapters.hub import pull
from lcfbench.errors import UserError
from lcfbench.publishing.adapter import push
from lcfbench.sources.models import GEOMETRIES
from tests import helpers

PAIR = ("smollm2-135m", "gemma3-270m")


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A small adapter folder with something in it that nobody else should get."""
    torch.manual_seed(0)
    config = pair_config("lcfx", *((name, GEOMETRIES[name]) for name in PAIR), options={"width": 2}, layers=2)
    made = build(
        config.model_copy(update={"training": {"tasks": ["splitfacts*2", "openbookqa"], "steps": 1}})
    )
    save(made, tmp_path / "mine", card(made))
    (tmp_path / "mine" / "notes.txt").write_text("private")
    return tmp_path / "mine"


def test_what_is_pushed_is_pulled_and_nothing_else_is_sent(server, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    url = push(adapter, "me/small", private=True, message="first").url
    sha = server.repos["me/small"]["branches"]["main"]
    assert url == f"{server.url}/me/small/commit/{sha}" and server.repos["me/small"]["private"]
    assert set(server.files("me/small")) == {WEIGHTS, CONFIG, CARD}
    for name in (WEIGHTS, CONFIG):
        assert server.files("me/small")[name] == (adapter / name).read_bytes()
    text = server.files("me/small")[CARD].decode()
    assert "lcfbench adapter pull me/small" in text and "ORG/NAME" not in text
    got = pull("me/small")
    assert got == Path("adapters/small") and sorted(p.name for p in got.iterdir()) == sorted(
        (WEIGHTS, CONFIG, CARD, SOURCE)
    )
    assert (
        weights_sha256(got) == weights_sha256(adapter)
        and not got.is_symlink()
        and not (got / WEIGHTS).is_symlink()
    )
    assert list(Path("adapters").iterdir()) == [got], "nothing temporary stays"
    push(adapter, "me/small", private=True)  # once more, with nothing changed: no error
    assert push(adapter, "me/small").url.count("/commit/") == 1


def test_the_card_is_metadata_the_hub_can_read(adapter):
    text = (adapter / CARD).read_text()
    data = ModelCard(text).data
    assert data.library_name == "lcfbench" and "lcfx" in data.tags
    assert data.base_model == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "google/gemma-3-270m",
    ] and data.datasets == ["allenai/openbookqa"]
    assert "license" not in data.to_dict(), "a licence is said only where one is known"
    from lcfbench.adapters.config import read_config

    config = read_config(adapter)
    written = "---\nlicense: mit\ntags:\n- mine\n---\nMy own words.\n---\nAnd a rule."
    merged = ModelCard(refreshed(written, config))
    assert (
        merged.data.license == "mit"
        and merged.data.tags == ["mine", *data.tags]
        and merged.data.base_model == data.base_model
    )
    assert merged.text.strip() == "My own words.\n---\nAnd a rule."
    assert ModelCard(refreshed("# No metadata", config)).text.strip() == "# No metadata"
    assert refreshed(refreshed(text, config), config) == refreshed(text, config)


PLAIN = {
    "method": "lcf",
    "tasks": ["splitfacts"],
    "steps": 1,
    "batch_size": 2,
    "seed": 0,
    "data_seed": 0,
    "senders": "matched",
    "supervise": "all",
    "targets": "gold",
    "loss_mean": "document",
    "task_options": {},
    "method_options": {},
    "contexts": ["different"],
    "beside": [],
    "device": "cpu",
    "minutes": 1.0,
}


def card_of(kind: str = "lcfx", **training) -> str:
    config = pair_config("lcfx", *((name, GEOMETRIES[name]) for name in PAIR), options={"width": 2}, layers=1)
    made = build(config.model_copy(update={"training": PLAIN | training}))
    made.config = made.config.model_copy(update={"kind": kind})
    return card(made)


def test_a_plain_trainings_card_says_nothing_of_deviations():
    text = card_of()
    assert (
        "- method `lcf`\n" in text
        and "- contexts of the two models in its examples: different\n" in text
        and "seed 0\n" in text
    )
    for word in (
        "adaptation",
        "supervised",
        "gold",
        "task options",
        "of the examples",
        "side by side",
        "CoQA",
        "Test results",
        "Notes",
        "mean over",
    ):
        assert word not in text


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (
            {"senders": "deranged"},
            "- trained on the messages of other documents: what it gains is adaptation",
        ),
        ({"supervise": "first"}, "- only the first step of each answer was supervised"),
        ({"targets": "receiver"}, "what the receiver writes when it reads both contexts"),
        ({"loss_mean": "token"}, "mean over tokens"),
        ({"failed": "loss"}, "- the training stopped early: its loss was not finite"),
        ({"task_options": {"max_words": "120"}}, "- task options {'max_words': '120'}"),
        ({"method_options": {"lead": 3}}, "- method `lcf`, options {'lead': 3}"),
        ({"seed": 2}, "seed 2 (of the examples: 0)"),
        ({"machine": "two cores"}, "on cpu (two cores), 1.0 minutes\n"),
        (
            {"beside": ["lcf", "prefix"]},
            "1.0 minutes (its own time and an equal share of the reading that they have in common; 2 "
            "adapters were trained side by side: lcf, prefix)",
        ),
        ({"tasks": ["coqa_split*2"]}, "cut from CoQA's validation stories"),
        ({"method": "single"}, "# LCF-X adapter, smollm2-135m (`single` baseline: no sharer)\n"),
        ({"method": "identical"}, "(`identical` baseline: the receiver's model on both sides)\n"),
        ({"kind": "dense", "method": "dense"}, "# dense-alignment adapter, smollm2-135m ← gemma3-270m\n"),
        ({"kind": "prefix", "method": "prefix"}, "# latent-prefix adapter, "),
        ({"notes": "Only one seed."}, "\n## Notes\n\nOnly one seed.\n"),
    ],
)
def test_the_card_tells_how_a_training_differed(training, says):
    assert says in card_of(**training)


def test_the_card_shows_test_results():
    row = {
        "task": "splitfacts",
        "mode": "lcf",
        "control": "matched",
        "documents": 500,
        "score": 0.9124,
        "low": 0.88,
        "high": 0.935,
        "message_bytes": 15360.0,
    }
    text = card_of(
        results=[row, {"task": "splitfacts", "mode": "receiver", "score": 0.25}], notes="One seed."
    )
    _, _, section = text.partition("## Test results\n\n")
    lines = section.splitlines()
    assert (
        lines[0] == "| task | mode | control | documents | score | 95 % interval | message bytes |"
        and lines[1].count("|") == 8
    )
    assert lines[2] == "| splitfacts | lcf | matched | 500 | 0.912 | 0.880 to 0.935 | 15,360 |"
    assert lines[3] == "| splitfacts | receiver |  |  | 0.250 |  |  |"
    assert lines[4:6] == ["", "One seed."] and "## Notes" not in text


def test_a_private_repository_needs_a_token(server, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    push(adapter, "me/small", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no such repository, or a private one") as error:
        pull("me/small")
    assert "hf auth login" in error.value.next_step and not Path("adapters/small").exists()
    monkeypatch.setenv("HF_TOKEN", "reader")
    assert (pull("me/small") / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("token", "says", "step"),
    [
        (None, "no token", "hf auth login"),
        ("wrong", "does not accept the token|no such repository", "hf auth login"),
        ("reader", "403", "hf auth login"),
    ],
)
def test_who_may_not_push_is_told_so_in_one_line(server, adapter, monkeypatch, token, says, step):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=says) as error:
        push(adapter, "me/small")
    assert step in error.value.next_step and "\n" not in str(error.value) and server.repos == {}
    assert token or server.asked == [], "nothing is sent without a token"


def test_nothing_is_pushed_that_is_not_whole_or_not_wanted(server, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    push(adapter, "me/open")
    with pytest.raises(UserError, match="exists and is public"):
        push(adapter, "me/open", private=True)
    with pytest.raises(UserError, match="offline was asked for"):
        push(adapter, "me/small", offline=True)
    for name in ("small", "a/b/c", "../x", "me/..", "me/na me"):
        with pytest.raises(UserError, match="not a Hub repository"):
            push(adapter, name)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated"):
        push(adapter, "me/torn")
    assert set(server.repos) == {"me/open"}


def test_revisions_and_the_cache(server, adapter, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "token")
    push(adapter, "me/small")
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"training": {"tasks": ["second"]}}))
    push(adapter, "me/small", revision="v2")
    assert set(server.repos["me/small"]["branches"]) == {"main", "v2"}
    with pytest.raises(UserError, match="no such revision"):
        pull("me/small", revision="v3")
    tasks = lambda folder: json.loads((folder / CONFIG).read_text())["training"].get("tasks")  # noqa: E731
    assert tasks(pull("me/small", Path("one"))) == ["splitfacts*2", "openbookqa"]
    assert tasks(pull("me/small", Path("two"), revision="v2")) == ["second"]
    asked = len(server.asked)
    assert tasks(pull("me/small", Path("three"), offline=True)) == ["splitfacts*2", "openbookqa"]
    assert tasks(pull("me/small", Path("four"), revision="v2", offline=True)) == ["second"]
    assert tasks(
        pull("me/small", Path("five"), revision=server.repos["me/small"]["branches"]["v2"], offline=True)
    ) == ["second"]
    assert len(server.asked) == asked and "taken from its cache, commit " in capsys.readouterr().err
    del server.repos["me/small"]
    with pytest.raises(
        UserError, match="no such repository"
    ):  # what the Hub refuses is not taken from the cache either
        pull("me/small", Path("six"))


def test_without_the_hub_the_error_lists_what_was_tried(server, monkeypatch, tmp_path):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(UserError) as error:
        pull("me/small", offline=True)
    what = error.value.what
    places = [
        what.index(word)
        for word in ("mirror/adapters/me/small", "mirror/models/me/small", "Hub: offline", "Hub cache: ")
    ]
    assert (
        places == sorted(places)
        and "LCFBENCH_MIRROR" in error.value.next_step
        and "\n" not in str(error.value)
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "token")
    with pytest.raises(UserError, match="Hub: no connection"):
        pull("me/small")


@pytest.mark.parametrize("kind", ["adapters", "models"])
def test_a_mirror_serves_too(server, adapter, monkeypatch, tmp_path, kind):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    shutil.copytree(adapter, tmp_path / "mirror" / kind / "me" / "small" / "nine")
    with pytest.raises(UserError, match=r"no config.json"):
        pull("me/small", offline=True)
    got = pull("me/small", subfolder="nine")
    assert (
        got == Path("adapters/nine")
        and weights_sha256(got) == weights_sha256(adapter)
        and server.asked[-1:] == []
    )
    assert not (got / "notes.txt").exists()


def test_a_bad_download_never_replaces_a_good_adapter(server, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    good = (adapter / WEIGHTS).read_bytes()
    push(adapter, "me/small")
    here = pull("me/small")
    (here / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds an adapter"):
        pull("me/small")

    def stays(says: str) -> None:
        shutil.rmtree(constants.HF_HUB_CACHE)
        with pytest.raises(UserError, match=says) as error:
            pull("me/small", force=True)
        assert "\n" not in str(error.value)
        assert (here / WEIGHTS).read_bytes() == good and sorted(
            p.name for p in Path("adapters").iterdir()
        ) == ["small"]

    server.damage = lambda path, data: data[:-1] + bytes([data[-1] ^ 1]) if path == WEIGHTS else data
    stays("damaged: its sha256 is not the one the Hub names")
    server.damage = lambda path, data: data[:-7] if path == WEIGHTS else data
    stays("cannot find|truncated|damaged")
    server.damage = lambda path, data: data
    config = json.loads(server.files("me/small")[CONFIG])
    for change, says in (
        ({"format": 99}, "format 99"),
        ({"layers": [0]}, "layer_map"),
        ({"options": {"width": 4}}, "does not match"),
    ):
        server.change("me/small", config=json.dumps(config | change).encode())
        stays(says)
    server.change("me/small", weights=None)
    stays(f"no {WEIGHTS}, so it holds no adapter")
    server.change(
        "me/small", weights=good, config=json.dumps(config | {"training": {"tasks": ["new"]}}).encode()
    )
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert json.loads((pull("me/small", force=True) / CONFIG).read_text())["training"] == {"tasks": ["new"]}
    assert (here / "diary.txt").read_text() == "mine", "what is not the adapter's stays"


def test_the_verbs(server, adapter, monkeypatch, capsys):
    code, _, err = helpers.invoke(capsys, monkeypatch, "adapter", "push", adapter, "me/small")
    assert code == 2 and "hf auth login" in err and err.count("\n") == 1
    monkeypatch.setenv("HF_TOKEN", "token")
    code, out, err = helpers.invoke(
        capsys, monkeypatch, "adapter", "push", adapter, "me/small", "--revision", "v2", "--message", "hello"
    )
    assert code == 0 and f"{server.url}/me/small/commit/" in out, err
    code, out, err = helpers.invoke(capsys, monkeypatch, "adapter", "pull", "me/small@v2", "--out", "got")
    assert code == 0 and "saved got" in out and "--task splitfacts --adapter got" in out, err
    code, _, err = helpers.invoke(capsys, monkeypatch, "adapter", "pull", "me/small@v2", "--out", "got")
    assert code == 2 and "--force" in err
    code, _, err = helpers.invoke(capsys, monkeypatch, "adapter", "pull", "me/small@v2", "--out", ".")
    assert code == 2 and "the folder this runs in" in err
    code, _, err = helpers.invoke(capsys, monkeypatch, "run", "--mode", "lcf", "--adapter", "me/small")
    assert code == 2 and "lcfbench adapter pull me/small" in err


SECRET = "a secret of this machine"


def linked(name: str, target: str):
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.format(out=outside))

    return change


def replaced(name: str, make) -> object:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: copied whole it fills the disk


HOSTILE = {
    **{f"{n} linked out": linked(n, "{out}/secret") for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} linked out by ..": linked(n, "../../../../outside/secret") for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} linked to itself": linked(n, n) for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} linked to nothing": linked(n, "nothing") for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} linked to a folder": linked(n, "{out}") for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} linked to a device": linked(n, "/dev/zero") for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} a folder": replaced(n, Path.mkdir) for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} a pipe": replaced(n, os.mkfifo) for n in (CONFIG, WEIGHTS, CARD)},
    **{f"{n} huge": replaced(n, huge) for n in (CONFIG, WEIGHTS, CARD)},
}


def state(top: Path) -> dict[str, object]:
    return {
        str(p.relative_to(top)): (p.lstat().st_mode, p.lstat().st_mtime_ns, p.lstat().st_size)
        for p in sorted(top.rglob("*"))
        if not p.is_relative_to(top / "cache")
    }


@pytest.mark.parametrize("kind", ["mirror", "snapshot", "linked subfolder"])
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_file_of_the_fetched_folder_is_refused(tmp_path, adapter, monkeypatch, change, kind):
    """A mirror may hold folders that others made, and links to snapshots of the Hub's cache."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(SECRET)
    place = tmp_path / "mirror/adapters/me/small"
    home = place if kind == "mirror" else tmp_path / "outside/models--me--small/snapshots/1f0c"
    shutil.copytree(adapter, home)
    if kind == "snapshot":
        place.parent.mkdir(parents=True)
        place.symlink_to(home)
    elif kind == "linked subfolder":
        place.mkdir(parents=True)
        (place / "nine").symlink_to(home)
    change(home, tmp_path / "outside")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.chdir(tmp_path)
    before = state(tmp_path)
    with pytest.raises(UserError) as error:
        pull("me/small", Path("out"), subfolder="nine" * (kind == "linked subfolder"), offline=True)
    assert "\n" not in str(error.value) and error.value.next_step and len(str(error.value)) < 600
    after = state(tmp_path)
    assert {name: s for name, s in after.items() if name not in before} == {}
    assert all(after[name] == before[name] for name in before if not (tmp_path / name).is_dir())


@pytest.mark.parametrize("files", ["blobs", "beside"])
def test_links_inside_a_snapshot_are_followed(tmp_path, adapter, monkeypatch, files):
    home = tmp_path / "mirror/adapters/me/small"
    cache = tmp_path / "hub/models--me--small"
    (cache / "snapshots").mkdir(parents=True)
    home.parent.mkdir(parents=True)
    home.symlink_to(cache / "snapshots/1f0c")
    shutil.copytree(adapter, cache / "snapshots/1f0c")
    for name in (CONFIG, WEIGHTS, CARD):
        there = cache / "blobs" if files == "blobs" else cache / "snapshots/1f0c/real"
        there.mkdir(exist_ok=True)
        (cache / "snapshots/1f0c" / name).rename(there / name)
        (cache / "snapshots/1f0c" / name).symlink_to(there / name)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    got = pull("me/small", tmp_path / "out", offline=True)
    assert weights_sha256(got) == weights_sha256(adapter) and not (got / WEIGHTS).is_symlink()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        *(
            ("subfolder", text)
            for text in ("..", "a/../..", "*", "a?", "[ab]", "a\\..\\b", "\x1b[31m", "a\0b")
        ),
        *(("revision", text) for text in ("", "..", "../../../x", "/tmp/x", "-x", "*", "a\nb", "x/..", "\0")),
        *(("repo_id", text) for text in ("a/..", "/a", "../b", "a/b/c", "a\\b", "-a/b", "a/b\0", "é/b", "a")),
    ],
)
def test_names_that_lead_out_of_a_repository_are_refused(tmp_path, monkeypatch, server, setting, text):
    names = {"repo_id": "me/small", setting: text}
    with pytest.raises(UserError) as error:
        pull(names.pop("repo_id"), tmp_path / "out", **names)
    assert str(error.value).isprintable() and not server.asked and not (tmp_path / "out").exists()
