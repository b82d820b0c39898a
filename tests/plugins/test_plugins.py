"""Methods, adapter kinds, tasks and controls from outside: installed, in a folder, by path."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lcfbench import registry
from lcfbench.errors import UserError
from tests import helpers

PLUGIN = helpers.ROOT / "examples" / "plugin"
PACKAGE = PLUGIN / "lcfbench_example"
SHOUT = (PACKAGE / "shout.py").read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the example package as pip leaves it, its entry points in a `.dist-info`."""
    target = tmp_path_factory.mktemp("site")
    if importlib.util.find_spec("hatchling"):
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(PLUGIN)], check=True)
        return target
    shutil.copytree(PACKAGE, target / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(target, tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"])
    return target


def write_metadata(target: Path, project: dict) -> None:
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"].items()
    sections = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()) for group, lines in points)
    (info / "entry_points.txt").write_text("\n".join(sections))


@pytest.fixture
def beside(installed, monkeypatch):
    """The example package importable in this process, which forgets it afterwards."""
    monkeypatch.syspath_prepend(str(installed))
    yield installed
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE.name]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """No path given earlier is known, and no variable is set."""
    monkeypatch.setattr(registry, "_given", {})
    for name in ("LCFBENCH_PLUGINS", "LCFBENCH_TASKS"):
        monkeypatch.delenv(name, raising=False)


# -- in processes of their own -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("ground")
    helpers.save_pair(here)
    return here


@pytest.fixture
def lcf(ground, installed):
    """`lcfbench …` in that folder, with the example package installed."""

    def run(line: str, **variables: str) -> tuple[int, str, str]:
        places = os.pathsep.join([str(installed), str(helpers.ROOT)])
        quiet = {"PYTHONPATH": places, "LCFBENCH_OFFLINE": "1", "LCFBENCH_CACHE": str(ground / "cache")}
        return helpers.forked(*line.split(), cwd=ground, **quiet | variables)

    return run


PAIR = "--pair ./receiver:./sharer --dtype float32 "
RUN = f"run {PAIR} --limit 8 --latency-documents 0 "


def manifests(folder: Path) -> dict[tuple[str, str, str], dict]:
    found = [json.loads(p.read_text())["identity"] for p in folder.glob("*/manifest.json")]
    return {(m["mode"], m["task"], m["control"]): m for m in found}


def test_all_four_run_train_show_and_judge(lcf, ground):
    code, _, err = lcf(
        RUN + "--mode receiver,shout --task colours --control matched,deranged,previous --out r"
    )
    assert code == 0, err
    code, _, err = lcf(f"train {PAIR} --mode postcard --task colours --steps 2 --dev-documents 4 --out a")
    assert code == 0, err
    line = "--mode postcard --adapter a --task colours --task-option people=2 --control matched,previous,zero"
    code, _, err = lcf(RUN + line + " --out r")
    assert code == 0, err
    runs = manifests(ground / "r")
    assert {(mode, control) for mode, _, control in runs} == {
        ("receiver", "matched"),
        *(("shout", control) for control in ("matched", "deranged", "previous")),
        *(("postcard", control) for control in ("matched", "previous", "zero")),
    }
    recorded = json.dumps(runs["shout", "colours", "matched"])
    assert registry.files_digest(registry.source_files(PACKAGE / "shout.py")) in recorded
    code, out, err = lcf("show r --json")
    shown = {(row["mode"], row["control"]): row for row in json.loads(out)}
    assert code == 0 and ("shout", "previous") in shown and ("postcard", "zero") in shown
    assert shown["shout", "matched"]["message_bytes"] > 20 and shown["postcard", "matched"]["adapter_params"]
    code, out, err = lcf("verdict r --json")
    assert code == 0 and "shout" in out, err


def test_listing_shows_plugins_and_imports_none(lcf, installed):
    code, out, err = lcf("ls methods --json")
    listed = {row["method"]: row["description"] for row in json.loads(out)}
    assert code == 0 and listed["shout"].startswith("the first words") and "lcf" in listed, err
    tasks = {row["name"]: row for row in json.loads(lcf("ls tasks --json")[1])}
    assert tasks["colours"]["options"]["people"]["default"] == 3 and "splitfacts" in tasks
    code, out, err = lcf("--help")
    assert code == 0
    probe = "import sys; from lcfbench import registry;"
    probe += "[registry.summaries(g) for g in ('methods', 'adapters', 'controls')];"
    probe += "assert 'shout' in registry.names('methods') and 'colours' in registry.names('tasks');"
    probe += "assert not {'torch', 'lcfbench_example', 'lcfbench.methods.base'} & set(sys.modules)"
    places = os.pathsep.join([str(installed), str(helpers.ROOT)])
    subprocess.run([sys.executable, "-c", probe], env=helpers.environment(PYTHONPATH=places), check=True)


def test_a_method_a_task_and_a_control_by_path(lcf, ground):
    for name in ("shout", "previous"):
        text = (PACKAGE / f"{name}.py").read_text()
        (ground / f"my_{name}.py").write_text(text.replace(f'"""{name}', f'"""my_{name}'))
    yaml = (PACKAGE / "tasks" / "colours.yaml").read_text()
    (ground / "mytask.yaml").write_text(yaml.replace("colours", "mytask"))
    shutil.copy(PACKAGE / "tasks" / "colours.py", ground / "mytask.py")
    line = "--mode ./my_shout.py --task ./mytask.yaml --control matched,./my_previous.py -o words=3 --out p"
    code, _, err = lcf(RUN + line)
    assert code == 0, err
    assert set(manifests(ground / "p")) == {
        ("my_shout", "mytask", "matched"),
        ("my_shout", "mytask", "my_previous"),
    }
    code, out, err = lcf(f"run {PAIR} --mode ./my_shout.py --task ./mytask.yaml --dry-run")
    assert code == 0 and json.loads(out)["task"] == "mytask", err
    first = {p.name for p in (ground / "p").iterdir()}
    (ground / "my_shout.py").write_text((ground / "my_shout.py").read_text() + "\n# changed\n")
    assert lcf(RUN + line)[0] == 0
    fresh = {p.name for p in (ground / "p").iterdir()} - first
    assert len([name for name in fresh if name.startswith("my_shout")]) == 2  # other code is another run
    shutil.copy(PACKAGE / "postcard.py", ground / "card.py")
    line = f"train {PAIR} --mode ./card.py --task ./mytask.yaml*2 --steps 1 --dev-documents 2 --out t"
    (ground / "card.py").write_text((ground / "card.py").read_text().replace('("postcard",)', '("card",)'))
    code, out, err = lcf(line)
    assert code == 0 and json.loads((ground / "t" / "config.json").read_text())["kind"] == "card", err
    code, _, err = lcf(f"train {PAIR} --mode ./mine.py --task ./mytask.yaml --steps 1 --out u")
    assert code == 2 and "there is no file ./mine.py" in err and err.count("\n") == 1
    code, _, err = lcf(RUN + "--mode ./mine.py --out p")
    assert code == 2 and "there is no file ./mine.py" in err and err.count("\n") == 1


# -- one line for everything that is wrong -------------------------------------------------------------


def one_line(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and caught.value.next_step, text
    return text


BARE = """from lcfbench.methods.base import Method

class Mine(Method):
    def respond(self, batch): ...
"""
BROKEN = {
    "def f(:": "cannot be read as Python",
    SHOUT.replace(
        "from dataclasses", "import nowhere_at_all\nfrom dataclasses"
    ): "cannot be imported: ModuleNotFoundError",
    '"""mine: nothing."""\nclass Mine: pass\n': "defines no method",
    SHOUT + "\n\nclass Other(Method):\n    def respond(self, batch): ...\n": "several classes: Shout, Other",
    SHOUT.replace("def respond", "def answer"): "class Shout defines no respond",
    SHOUT.replace("@dataclass\nclass", "class"): "has an option words but is no dataclass",
    BARE: "no docstring",
}


@pytest.mark.parametrize("text", BROKEN, ids=BROKEN.values())
def test_a_broken_method_is_one_line(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    name = registry.add_path("methods", str(tmp_path / "mine.py"))
    assert name == "mine" and BROKEN[text] in one_line(lambda: registry.load("methods", "mine"))
    assert "mine" in registry.summaries("methods") and "lcf" in registry.summaries("methods")


def test_a_control_that_changes_nothing_and_a_class_of_another_group(tmp_path):
    (tmp_path / "idle.py").write_text(
        '"""idle: nothing."""\nfrom lcfbench.controls.base import Control\n\nclass Idle(Control):\n    pass\n'
    )
    registry.add_path("controls", str(tmp_path / "idle.py"))
    assert "defines no message_from or wrap" in one_line(lambda: registry.load("controls", "idle"))
    registry.add_path("methods", str(tmp_path / "idle.py"))
    assert "defines no method" in one_line(lambda: registry.load("methods", "idle"))


def test_names_that_are_taken(tmp_path, monkeypatch, beside):
    (tmp_path / "lcf.py").write_text(SHOUT)
    text = one_line(lambda: registry.add_path("methods", str(tmp_path / "lcf.py")))
    assert "method 'lcf' is offered by lcfbench and by" in text and "Rename" in text
    assert registry.load("methods", "lcf").__name__ == "LCF"  # a refused path takes no name away
    (tmp_path / "shout.py").write_text(SHOUT)
    monkeypatch.setenv("LCFBENCH_PLUGINS", str(tmp_path / "shout.py"))
    text = one_line(lambda: registry.load("methods", "shout"))
    assert "lcfbench-example 0.1.0" in text and "LCFBENCH_PLUGINS" in text
    listed = registry.summaries("methods")
    assert listed["shout"].startswith("cannot be used: method 'shout' is offered") and "lcf" in listed
    assert registry.load("methods", "lcf").__name__ == "LCF"
    (tmp_path / "colours.yaml").write_text("task: colours\n")
    assert "task 'colours'" in one_line(lambda: registry.add_path("tasks", str(tmp_path / "colours.yaml")))


def test_the_same_file_twice_is_no_collision(beside, monkeypatch):
    monkeypatch.setenv("LCFBENCH_PLUGINS", str(beside / PACKAGE.name))
    assert registry.add_path("methods", str(beside / PACKAGE.name / "shout.py")) == "shout"
    assert registry.load("methods", "shout").__module__ == "lcfbench_example.shout"


def test_paths_and_names():
    assert registry.add_path("methods", "lcf") == "lcf" and registry.add_path("tasks", "lfc") == "lfc"
    assert "there is no file ./no.py" in one_line(lambda: registry.add_path("methods", "./no.py"))
    assert "there is no file no.yaml" in one_line(lambda: registry.add_path("tasks", "no.yaml"))
    here = str(PACKAGE / "tasks" / "colours.yaml")
    assert "is not a Python file" in one_line(lambda: registry.add_path("methods", here))
    assert "Did you mean lcf" in one_line(lambda: registry.load("methods", "lcff"))


def test_folders_of_plugins_and_of_tasks(tmp_path, monkeypatch):
    for name in ("postcard.py", "previous.py"):
        shutil.copy(PACKAGE / name, tmp_path)
    (tmp_path / "_helper.py").write_text("x = 1\n")
    (tmp_path / "words.py").write_text("x = 1\n")  # no class of ours: a helper of some task
    missing = tmp_path / "gone.py"
    monkeypatch.setenv("LCFBENCH_PLUGINS", os.pathsep.join([str(tmp_path), str(missing)]))
    monkeypatch.setenv("LCFBENCH_TASKS", str(PACKAGE / "tasks"))
    assert {"postcard", "gone"} == set(registry.names("methods")) - set(shipped("methods"))
    assert {"postcard", "gone"} == set(registry.names("adapters")) - set(shipped("adapters"))
    assert "previous" in registry.names("controls") and "colours" in registry.names("tasks")
    assert registry.load("adapters", "postcard").__name__ == "PostcardAdapter"
    assert registry.load("methods", "postcard").adapter_kinds == ("postcard",)
    assert "gone.py, which is not there" in registry.summaries("methods")["gone"]


def shipped(group: str) -> list[str]:
    return [
        name for name in registry.names(group) if registry._entries(group)[name][0].source == registry.OURS
    ]


def test_an_entry_point_that_names_nothing_and_one_that_names_a_class(tmp_path, monkeypatch, beside):
    points = {"away": "no_such_package.away", "loud": "lcfbench_example.shout:Shout", "odd": "json:dumps"}
    other = tmp_path / "other"
    write_metadata(other, {"name": "other", "version": "1", "entry-points": {"lcfbench.methods": points}})
    monkeypatch.syspath_prepend(str(other))
    assert "other 1 names the module no_such_package.away" in one_line(
        lambda: registry.load("methods", "away")
    )
    assert registry.load("methods", "loud").__name__ == "Shout"
    assert "dumps does not extend Method" in one_line(lambda: registry.load("methods", "odd"))
    assert "cannot be used" in registry.summaries("methods")["away"]


# -- identity ------------------------------------------------------------------------------------------


def test_the_digest_covers_the_modules_beside_it_and_a_changed_file_is_read_again(tmp_path):
    (tmp_path / "words_of_mine.py").write_text("WORDS = 5\n")
    text = SHOUT.replace("@dataclass\nclass", "import words_of_mine\n\n\n@dataclass\nclass")
    (tmp_path / "mine.py").write_text(text.replace("words: int = 12", "words: int = words_of_mine.WORDS"))
    registry.add_path("methods", str(tmp_path / "mine.py"))
    before, kind = registry.source_digest("methods", "mine"), registry.load("methods", "mine")
    assert len(before) == 64 and kind.words == 5 and registry.load("methods", "mine") is kind
    (tmp_path / "words_of_mine.py").write_text("WORDS = 7  # longer\n")
    assert registry.source_digest("methods", "mine") != before
    assert registry.load("methods", "mine").words == 7


def test_digests_of_installed_modules_and_of_ours(beside):
    found = {name: registry.source_digest("methods", name) for name in ("shout", "postcard", "lcf")}
    assert found["lcf"] is None and found["shout"] != found["postcard"]
    assert registry.source_digest("adapters", "postcard") == found["postcard"]
    files = {f.name for f in registry.source_files(beside / PACKAGE.name / "shout.py")}
    assert files == {"shout.py", "__init__.py"}
    assert registry.source_digest("tasks", "colours") is None  # `file_digest` is the digest of a task
