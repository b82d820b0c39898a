"""A data set of the Hub as a task: through the real client against a local server, and from a mirror."""

from __future__ import annotations

import io

import datasets
import pytest
from datasets import Dataset

from lcfbench import registry
from lcfbench.errors import UserError
from lcfbench.tasks.new import write_task
from lcfbench.tasks.task import load_task
from lcfbench.tasks.yaml_files import describe, task_table
from tests.helpers import invoke, save_pair
from tests.hub_server import served

ROWS = [
    {"query": f"Which is {word}?", "options": ["red", "blue", "green"], "label": i}
    for i, word in enumerate(["first", "second", "third"])
]
SPLIT = [
    {"question": "Where?", "answer": "Oslo", "sharer_context": "In Oslo.", "receiver_context": "Somewhere."},
    {"question": "Who?", "answer": "Ann", "sharer_context": "It was Ann.", "receiver_context": "Someone."},
]


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    Dataset.from_list(rows).to_parquet(file)
    return file.getvalue()


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(registry, "_given", {})


@pytest.fixture
def server(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path) as made:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", made.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        for name, files in {
            "me/quiz": {
                "data/train-00000-of-00001.parquet": parquet(ROWS[:1]),
                "data/test-00000-of-00001.parquet": parquet(ROWS),
            },
            "me/notes": {"data/validation-00000-of-00001.parquet": parquet(SPLIT)},
            "me/odd": {"data/test-00000-of-00001.parquet": parquet([{"foo": 1, "bar": "x"}])},
        }.items():
            made.repos[f"datasets/{name}"] = {
                "private": False,
                "branches": {"main": "a" * 40},
                "commits": {"a" * 40: files},
            }
        yield made


def own(folder, text: str):
    (folder / "mine.yaml").write_text(text)
    return load_task(str(folder / "mine.yaml"))


def test_one_line_is_a_task(server, tmp_path) -> None:
    task = own(tmp_path, "dataset_path: me/quiz\n")
    documents = task.documents(scoring="letters")
    assert len(documents) == 3 and sorted(d.gold for d in documents) == ["A", "B", "C"]
    assert task.splits == ["train", "test"] and task.shared
    assert "1 of 3" not in str(task.dropped)
    server.repos.clear()  # what was read is kept
    again = own(tmp_path, "dataset_path: me/quiz\n")
    assert [d.hash for d in again.documents()] == [d.hash for d in task.documents()]


def test_contexts_of_hub_data(server, tmp_path) -> None:
    with pytest.raises(UserError, match="context: different"):
        own(tmp_path, "dataset_path: me/notes\n")
    text = "dataset_path: me/notes\nmetadata: {context: different}\n"
    task = own(tmp_path, text)
    assert not task.shared and len(task.documents()) == 2
    assert "In Oslo." in next(d for d in task.documents() if d.gold == "Oslo").sharer.user
    assert describe("mine")["context"] == "different"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset_path: me/gone\n", "no such repository"),
        ("dataset_path: me/quiz\ndataset_name: other\n", "no config other; it has default"),
        ("dataset_path: me/quiz\ntest_split: dev\n", "'dev'"),
        ("dataset_path: me/odd\n", "no column is called question"),
        ("dataset_path: me/quiz@main\n", "revision cannot be named"),
        ("dataset_path: https://huggingface.co/datasets/me/quiz\n", "Write dataset_path: me/quiz"),
        ("dataset_path: me/quiz/data\n", "no Hub id"),
        ("dataset_path: me/quiz\nmetadata: {columns: {question: foo}}\n", "there is no column 'foo'"),
        ("dataset_path: me/quiz\ndataset_kwargs: {data_files: a.csv}\n", "no data file|data_files"),
    ],
)
def test_what_cannot_be_read_is_one_line(server, tmp_path, text, says) -> None:
    with pytest.raises(UserError, match=says) as caught:
        own(tmp_path, text)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_lists_ask_no_hub(server, tmp_path, monkeypatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "quiz.yaml").write_text("dataset_path: me/quiz\n")
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path / "tasks"))
    row = next(row for row in task_table() if row["name"] == "quiz")
    assert row["dataset"] == "me/quiz" and row["context"] == "shared" and not server.asked
    assert len(load_task("quiz").documents()) == 3


@pytest.mark.parametrize(("data", "documents"), [("me/quiz", 3), ("me/quiz:default", 3), ("me/notes", 2)])
def test_a_task_is_written_from_the_hub(server, tmp_path, data, documents) -> None:
    (path,) = write_task("quiz", data, tmp_path, None)
    text = path.read_text()
    assert f'dataset_path: "{data.partition(":")[0]}"' in text and "test_split:" in text
    assert len(load_task(str(path)).documents()) == documents


def test_offline_asks_nothing(server, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("dataset_path: me/quiz\n")
    with pytest.raises(UserError, match="offline"):
        load_task(str(tmp_path / "mine.yaml"), offline=True)
    assert not server.asked


def test_a_mirror_s_config_is_named(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "mirror" / "datasets" / "me" / "set" / "main"
    folder.mkdir(parents=True)
    Dataset.from_list(ROWS).to_parquet(folder / "validation-00000-of-00001.parquet")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "mine.yaml").write_text("dataset_path: me/set\n")
    with pytest.raises(UserError, match="Its configs here are main: say dataset_name"):
        load_task(str(tmp_path / "mine.yaml"), offline=True)
    assert len(own(tmp_path, "dataset_path: me/set\ndataset_name: main\n").documents()) == 3
    (path,) = write_task("set", "me/set", tmp_path, None, offline=True)
    assert 'dataset_name: "main"' in path.read_text()


def test_the_whole_way_of_a_user(server, tmp_path, capsys, monkeypatch) -> None:
    pair = ["--pair", save_pair(tmp_path / "models")]
    assert invoke(capsys, monkeypatch, "task", "new", "quiz", "--from", "me/quiz")[0] == 0
    code, out, _ = invoke(capsys, monkeypatch, "task", "check", "quiz.yaml", *pair)
    assert code in (0, 1) and "document 3 of 3" in out and "the receiver reads" in out
    args = ["run", *pair, "--task", "quiz.yaml", "--mode", "receiver", "--control", "matched", "--out", "r"]
    code, _, err = invoke(capsys, monkeypatch, *args)
    assert code == 0, err
