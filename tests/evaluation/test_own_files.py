"""Messages of methods, tasks and controls in files of one's own are answered from again, by those files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import lcfbench
from lcfbench import registry
from lcfbench.publishing import dataset
from tests.helpers import ROOT, invoke, manifest_of, run_recipe, save_pair

METHOD = '''"""whisper: the first words of the sharer's text cross as a note."""

from dataclasses import dataclass, replace

from lcfbench.methods._wire import texts_across
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.protocol import Message
from lcfbench.tasks.document import NOTE


@dataclass
class Whisper(Method):
    """Sends text."""

    words: int = 6
    sends_text = True
    uses_sharer_cache = False
    roles = ("receiver",)

    def respond(self, batch: Batch):
        made = [" ".join(s.sharer.user.split()[-self.words :]) for s in batch.message_from]
        texts = texts_across(batch, made)
        views = [replace(d.noted, user=d.noted.user.replace(NOTE, t)) for d, t in zip(batch.documents, texts)]
        state = self.receiver.read([prompt(self.receiver, v, d) for v, d in zip(views, batch.documents)])
        size = [len(t.encode()) for t in texts]
        return replace(state, message=batch.counted(Message(size, size, [0] * len(size), texts)))
'''
CONTROL = (ROOT / "examples" / "plugin" / "lcfbench_example" / "previous.py").read_text()
TASK = (ROOT / "examples" / "task" / "capitals.csv").read_text()


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """No path given earlier is known."""
    monkeypatch.setattr(registry, "_given", {})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> str:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def made(models, tmp_path, monkeypatch) -> Path:
    """The run, in a process that has forgotten its files."""
    own = tmp_path / "own"
    own.mkdir()
    for name, text in {"whisper.py": METHOD, "previous.py": CONTROL, "capitals.csv": TASK}.items():
        (own / name).write_text(text)
    given = {"mode": f"{own / 'whisper.py'}", "task": f"{own / 'capitals.csv'}"}
    [run] = run_recipe(
        models, tmp_path / "out", keep_messages=True, control=[f"{own / 'previous.py'}"], limit=4, **given
    )
    monkeypatch.setattr(registry, "_given", {})
    return run


def test_by_the_files_where_they_were(made):
    own = made.parents[1] / "own"
    files = {"methods/whisper": "whisper.py", "tasks/capitals": "capitals.csv"}
    files |= {"controls/previous": "previous.py"}
    assert manifest_of(made)["files"] == {key: str(own / name) for key, name in files.items()}
    assert list(lcfbench.replay(made)["equal"]) == [True] * 4


def test_by_the_files_where_they_are_now(made, capsys, monkeypatch):
    own = made.parents[1] / "own"
    own.rename(other := own.with_name("other"))
    code, out, err = invoke(capsys, monkeypatch, "message", "replay", made)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{own}/whisper.py" in err and "is not there any more" in err and "--file" in err
    words = [word for file in sorted(other.glob("*.*")) for word in ("--file", file)]
    code, out, err = invoke(capsys, monkeypatch, "message", "replay", made, *words)
    assert code == 0 and "4 of 4" in out, err
    monkeypatch.setattr(registry, "_given", {})
    assert all(lcfbench.replay(made, files=sorted(other.glob("*.*")))["equal"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("whisper.py", "of method whisper, or a module that it imports, has changed since this run"),
        ("previous.py", "of control previous, or a module that it imports, has changed since this run"),
        ("capitals.csv", "made with another data_sha256"),
    ],
)
def test_a_file_that_was_changed_is_refused(made, name, said, capsys, monkeypatch):
    """As it is, and as another that is given; the one of the run is taken."""
    file = made.parents[1] / "own" / name
    kept = shutil.copy(file, made.parents[1] / name)
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, rows[1] if name == "capitals.csv" else "# more"]))
    code, out, err = invoke(capsys, monkeypatch, "message", "replay", made)
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(said, err), err
    monkeypatch.setattr(registry, "_given", {})
    code, out, err = invoke(capsys, monkeypatch, "message", "replay", made, "--file", kept)
    assert code == 0 and "4 of 4" in out, err


def test_a_file_that_the_run_did_not_use(made, tmp_path, capsys, monkeypatch):
    for name, text in {"other.py": METHOD, "whisper.csv": TASK}.items():
        (tmp_path / name).write_text(text)
        code, out, err = invoke(capsys, monkeypatch, "message", "replay", made, "--file", tmp_path / name)
        assert (code, out) == (2, "") and "is nothing that this run used: whisper, " in err, err
    code, out, err = invoke(capsys, monkeypatch, "message", "replay", made, "--file", tmp_path / "whisper.py")
    assert (code, out) == (2, "") and "is not there" in err, err


def test_places_of_this_machine_are_not_published(made, tmp_path):
    dataset.build([made], tmp_path / "published")
    texts = [p.read_text() for p in (tmp_path / "published").rglob("*.json")]
    assert texts and not any(str(made.parents[1]) in text for text in texts)
