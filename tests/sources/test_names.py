"""Names of models: revisions, drives, colons; which snapshot each stands for, with a Hub and without one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

import lcfbench
from lcfbench.adapters.card import hub_id
from lcfbench.adapters.config import recorded_name, recorded_names
from lcfbench.errors import UserError
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.tokenizers import load_tokenizers
from lcfbench.sources.models import canonical, find_model, find_tokenizer, geometry, label, labels, split_pair
from lcfbench.sources.names import sides, split_revision
from tests import helpers
from tests.hub_server import served

OLD, NEW = (hashlib.sha1(name).hexdigest() for name in (b"old", b"new"))
RUN = dict(mode="receiver", task="splitfacts", limit=2, latency_documents=0, dtype="float32")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty working folder; the names of folders to make in it."""
    monkeypatch.chdir(tmp_path)
    return lambda *names: [Path(name).mkdir(parents=True) for name in names]


# -- pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        (r"C:\models\a:D:\b", (r"C:\models\a", r"D:\b")),
        ("C:/models/a:b", ("C:/models/a", "b")),
        (r"a:C:\b", ("a", r"C:\b")),
        ("a:d:/b", ("a", "d:/b")),
        (r"C:\a+planted:b", (r"C:\a+planted", "b")),
        (r"a+D:\lora:E:\b", (r"a+D:\lora", r"E:\b")),
        ("org/a+d:/lora:b", ("org/a+d:/lora", "b")),
        (r"C:\a@3f2a1b:b", (r"C:\a@3f2a1b", "b")),
        (r".\a:.\b", (r".\a", r".\b")),
        (r"C:\x : D:\y", (r"C:\x", r"D:\y")),
        ("org/a@refs/pr/1:b@v1.0", ("org/a@refs/pr/1", "b@v1.0")),
    ],
)
def test_a_drive_separates_nothing(text, pair):
    assert sides(text) == [pair]


@pytest.mark.parametrize(
    "text", ["C:/a", r"C:\a", "a", "a:", ":a", "::", "a:b:c", "https://x/a:b", "C:/a:b:c"]
)
def test_what_is_no_pair_is_one_line(text):
    assert sides(text) == []
    with pytest.raises(UserError, match=r"is not RECEIVER:SHARER"):
        split_pair(text)


@pytest.mark.parametrize("name", [r"C:\no\such", "C:/no/such", r".\no", r"\\host\share", "c:\\no+planted"])
def test_a_folder_of_windows_that_is_not_there(name):
    with pytest.raises(UserError, match="no model folder"):
        split_pair(f"{name}:smollm2-135m")


@pytest.mark.parametrize(
    ("there", "text", "pair"),
    [
        (["a:b"], "a:b:org/c", ("a:b", "org/c")),
        (["a:b"], "org/c:a:b", ("org/c", "a:b")),
        (["a:b", "c:d"], "a:b:c:d", ("a:b", "c:d")),
        (["b:c"], "org/a:./b:c", ("org/a", "./b:c")),
        (["C", "x/y"], "C:./x/y", ("C", "./x/y")),
        (["a@b"], "a@b:org/c", ("a@b", "org/c")),
        (["a:b@c"], "a:b@c:org/d", ("a:b@c", "org/d")),
        (["a:b"], "a:b+planted:org/d", ("a:b+planted", "org/d")),
        (["a+b:c"], "a+b:c:org/d", ("a+b:c", "org/d")),
    ],
)
def test_a_folder_that_is_there_wins(folders, there, text, pair):
    folders(*there)
    assert sides(text) == [pair]


def test_two_readings_are_refused(folders):
    folders("a", "a:b", "b:c", "c")
    with pytest.raises(UserError, match="may be a and b:c or a:b and c"):
        split_pair("a:b:c")


def test_folders_with_odd_names_run_and_are_recorded_by_their_last_part(folders, tmp_path):
    names = ["rev@main", "a:b", "a+b@c", "a b"]
    for name in names:
        helpers.save(tmp_path / name, layers=2)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        assert split_pair(f"{name}:{other}") == (name, other)
        found = find_model(name)
        assert found.path == (tmp_path / name).resolve() and "/" not in label(name)
        assert label(name).startswith(name.replace(":", "-") + "@")
        # the name by which a run recorded a folder, beside that folder
        if ":" not in name:
            assert find_model(label(name)).path == found.path
        assert recorded_name(name) == recorded_name(label(name)) or ":" in name
        with pytest.raises(UserError, match=r"is .*, not abcdef1"):
            find_model(f"{name}@abcdef1")
    results = lcfbench.run(pair="a:b:a+b@c", out=tmp_path / "out", **RUN)
    assert list(results.summary()["pair"]) == [":".join(labels(("a:b", "a+b@c")))]


# -- revisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("qwen3-0.6b@c1899de", ("qwen3-0.6b", "c1899de")),
        ("org/a@refs/pr/12", ("org/a", "refs/pr/12")),
        ("org/a@feature/x@y", ("org/a", "feature/x@y")),
        ("org/a", ("org/a", "")),
        ("./a@b", ("./a@b", "")),
    ],
)
def test_a_revision_follows_the_at(name, split):
    assert split_revision(name) == split


@pytest.mark.parametrize(
    "revision",
    ["", "..", "../..", "../../x", "/etc", "a b", "a..b", "a\nb", "-x", ".x", "x/", "x.lock", "a^", "~"],
)
def test_what_can_be_no_revision_is_one_line(revision):
    for name in ("smollm2-135m", "org/a"):
        with pytest.raises(UserError, match="revision") as caught:
            find_model(f"{name}@{revision}", offline=True)
        assert "\n" not in str(caught.value)


def test_an_alias_keeps_its_revision_and_the_records_do_not():
    assert canonical("QWEN3-0.6B@Main") == "qwen3-0.6b@Main"
    for name in ("qwen3-0.6b@c1899de", "Qwen/Qwen3-0.6B@c1899de"):
        assert recorded_name(name) in ("qwen3-0.6b", "Qwen/Qwen3-0.6B") and hub_id(name) == "Qwen/Qwen3-0.6B"
    assert label("qwen3-0.6b@c1899de") == "qwen3-0.6b"
    assert recorded_name("gemma3-270m@v1+planted") == "gemma3-270m+planted" == label("gemma3-270m@v1+planted")
    two = ("org/a@v1", "org/a@v2")
    assert recorded_names(two) == two == labels(two), "two revisions of one model are told apart"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub's cache as `snapshot_download` by commit leaves it: two snapshots and no refs."""
    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hf" / "models--org--a"
    for seed, sha in enumerate((OLD, NEW)):
        helpers.save(repo / "snapshots" / sha, layers=2, seed=seed)
    helpers.save(tmp_path / "sharer", layers=2, bos=True, family="gemma3", heads=1)
    return repo


@pytest.mark.parametrize("revision", [OLD, OLD[:7], OLD[:6].upper(), NEW, NEW[:12]])
def test_a_commit_is_found_without_refs_and_offline(cache, revision):
    found = find_model(f"org/a@{revision}", offline=True)
    assert found.path.name == found.revision in (OLD, NEW) and found.revision.startswith(revision.lower())
    assert (found.name, found.repo_id) == ("org/a", "org/a")
    assert find_tokenizer(f"org/a@{revision}", offline=True) == found.path
    assert geometry(f"org/a@{revision}", offline=True).layers == 2
    load_tokenizers(f"org/a@{revision}:org/a@{OLD}", offline=True)


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@abcdef0", "@" + OLD[:5]])
def test_without_it_one_line_says_which_commits_are_there(cache, revision):
    with pytest.raises(UserError) as caught:
        find_model(f"org/a{revision}", offline=True)
    assert OLD[:12] in str(caught.value) and NEW[:12] in str(caught.value) and "\n" not in str(caught.value)
    if revision:
        assert f"--revision {revision[1:]}" in str(caught.value)


def test_a_branch_or_tag_is_found_by_its_ref(cache):
    for name, sha in (("main", NEW), ("refs/pr/1", OLD), ("v1", OLD)):
        (cache / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / "refs" / name).write_text(sha)
        assert find_model(f"org/a@{name}", offline=True).revision == sha
    assert find_model("org/a", offline=True).revision == NEW


def test_a_beginning_of_two_commits_is_refused(cache):
    shutil.copytree(cache / "snapshots" / OLD, cache / "snapshots" / (OLD[:8] + "f" * 32))
    with pytest.raises(UserError, match=f"several {OLD[:7]} there"):
        find_model(f"org/a@{OLD[:7]}", offline=True)


def test_a_partial_snapshot_is_no_model(cache):
    (cache / "snapshots" / OLD / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Hub cache: no model\.safetensors"):
        find_model(f"org/a@{OLD}", offline=True)


def test_one_commit_is_one_run_however_it_is_named(cache, tmp_path):
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(NEW)
    found = []
    for name in ("org/a", f"org/a@{NEW}", f"org/a@{NEW[:8]}", "org/a@main", f"org/a@{OLD}"):
        results = lcfbench.run(
            pair=f"{name}:{tmp_path / 'sharer'}", out=tmp_path / "out", offline=True, **RUN
        )
        found += [folder.name for folder in results.folders]
    assert len(set(found[:4])) == 1 and found[4] != found[0]
    manifest = json.loads((tmp_path / "out" / found[4] / "manifest.json").read_text())
    revision, name = manifest["identity"]["revisions"][0], manifest["identity"]["receiver"]
    assert (name, revision) == ("org/a", OLD)
    again = lcfbench.run(
        pair=f"{name}@{revision}:{tmp_path / 'sharer'}", out=tmp_path / "b", offline=True, **RUN
    )
    assert [folder.name for folder in again.folders] == [found[4]], "a manifest's commit runs again"


def test_two_revisions_of_one_model_are_two_models(cache):
    pair = load_pair(f"org/a@{OLD}:org/a@{NEW}", offline=True, dtype="float32", device="cpu")
    assert pair.receiver is not pair.sharer and pair.receiver.revision != pair.sharer.revision
    same = load_pair(f"org/a@{OLD}:org/a@{OLD[:8]}", offline=True, dtype="float32", device="cpu")
    assert same.receiver is same.sharer


def test_what_a_mirror_holds_is_pinned_by_its_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    helpers.save(tmp_path / "models" / "org" / "a", layers=2)
    here = find_model("org/a", offline=True)
    assert find_model(f"org/a@{here.revision}", offline=True) == here
    with pytest.raises(UserError, match=f"is {here.revision}, not {OLD}"):
        find_model(f"org/a@{OLD}", offline=True)


# -- with a Hub -------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with a model of two commits: two branches and a tag."""
    commits = {}
    for seed, sha in enumerate((OLD, NEW)):
        folder = helpers.save(tmp_path / f"model{seed}", layers=2, seed=seed)
        commits[sha] = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    with served(monkeypatch, tmp_path) as made:
        branches = {"main": NEW, "dev/x": OLD}
        made.repos["org/a"] = {
            "private": False,
            "branches": branches,
            "tagged": {"v1": OLD},
            "commits": commits,
        }
        yield made


@pytest.mark.parametrize("revision", ["v1", "dev/x", OLD, OLD[:7]])
def test_a_revision_is_fetched_and_then_found_offline(server, tmp_path, revision):
    fetched = find_model(f"org/a@{revision}")
    assert fetched.revision == OLD
    weights = (fetched.path / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "model0" / "model.safetensors").read_bytes()
    asked = len(server.asked)
    assert find_model(f"org/a@{revision}") == fetched and len(server.asked) == asked, "the cache is enough"
    assert find_model(f"org/a@{OLD[:9]}", offline=True) == fetched
    with pytest.raises(UserError, match=r"no main there, but the commits .*name one as NAME@COMMIT"):
        find_model("org/a", offline=True)
    assert find_model("org/a").revision == NEW


@pytest.mark.parametrize("use", [find_tokenizer, geometry, find_model])
def test_parts_of_a_revision_are_fetched(server, use):
    use("org/a@v1")
    paths = {line.split("/resolve/")[1].split("/")[0] for line in server.asked if "/resolve/" in line}
    assert paths == {OLD}


@pytest.mark.parametrize("use", [find_tokenizer, geometry, find_model])
@pytest.mark.parametrize("revision", ["v2", "abcdef0", "a" * 40, "dev"])
def test_a_revision_that_is_not_there_is_one_line_with_those_that_are(server, revision, use):
    with pytest.raises(UserError) as caught:
        use(f"org/a@{revision}")
    line = str(caught.value)
    assert f"no such revision {revision}; it has the branches main, dev/x and the tags v1" in line
    assert "\n" not in line


def test_a_lora_of_the_hub_has_revisions_too(server, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model

    base = helpers.AutoModelForCausalLM.from_pretrained(tmp_path / "model0")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    files = {f.name: f.read_bytes() for f in (tmp_path / "lora").iterdir()}
    made = {"branches": {"main": NEW, "v1": OLD}, "commits": {OLD: files, NEW: {}}}
    server.repos["me/lora"] = made | {"private": False}
    found = find_model("org/a@v1+me/lora@v1")
    assert found.name == "org/a+me/lora" and found.revision.startswith(f"{OLD}+")
    with pytest.raises(UserError, match=r"no such revision v3; it has the branches main, v1"):
        find_model("org/a@v1+me/lora@v3")


def test_the_command_line_takes_a_revision(server, tmp_path, capsys, monkeypatch):
    sharer = helpers.save(tmp_path / "sharer", layers=2, seed=3)
    given = ["--mode", "receiver", "--task", "splitfacts", "--limit", "2", "--dtype", "float32"]
    pair = f"org/a@{OLD[:7]}:{sharer}"
    code, out, _ = helpers.invoke(capsys, monkeypatch, "run", "--dry-run", "--pair", pair, *given)
    assert code == 0 and "splitfacts" in out
    code, *_ = helpers.invoke(capsys, monkeypatch, "run", "--pair", pair, *given, "--out", tmp_path / "out")
    [manifest] = (tmp_path / "out").glob("*/manifest.json")
    assert code == 0 and json.loads(manifest.read_text())["identity"]["revisions"][0] == OLD
    for verb in (["run", *given], ["run", "--dry-run", *given], ["adapter", "size", "--mode", "lcf"]):
        code, _, err = helpers.invoke(capsys, monkeypatch, *verb, "--pair", f"org/a@v9:{sharer}")
        assert code == 2 and "no such revision v9; it has" in err and len(err.strip().splitlines()) <= 2
