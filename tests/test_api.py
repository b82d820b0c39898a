"""The Python API: what a notebook calls, on tiny random pairs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import lcfbench
from tests import helpers

DOCUMENTED = {"run", "train", "load_pair", "create", "load_samples", "load_summary", "verdicts", "probe"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def found(pair, tmp_path_factory) -> lcfbench.Results:
    out = tmp_path_factory.mktemp("results")
    return lcfbench.run(
        pair=pair,
        mode=["receiver", "t2t"],
        task="splitfacts",
        control=["matched", "deranged"],
        limit=6,
        dtype="float32",
        options={"budget": 4},
        out=out,
        latency_documents=1,
    )


def test_the_face_is_lazy_complete_and_typed():
    assert set(lcfbench.__all__) >= DOCUMENTED and set(dir(lcfbench)) >= set(lcfbench.__all__)
    for name in lcfbench.__all__:
        thing = getattr(lcfbench, name)
        assert inspect.getdoc(thing), name
        if name in DOCUMENTED:
            signature = inspect.signature(thing)
            annotations = [
                signature.return_annotation,
                *(p.annotation for p in signature.parameters.values()),
            ]
            assert inspect.Signature.empty not in annotations, name
    code = (
        "import lcfbench, sys; assert not {'torch', 'pandas', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=helpers.ROOT)
    assert (helpers.ROOT / "lcfbench" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="nothing_here"):
        lcfbench.nothing_here  # noqa: B018


def test_wire_is_a_form_for_each_run(pair, tmp_path):
    """`wire=` changes the bytes that crossed, and is a column."""
    same = f"{pair.split(':')[0]}:{pair.split(':')[0]}"
    given = {"pair": same, "mode": "kvcomm", "control": ["matched"], "limit": 3, "dtype": "float32"}
    found = lcfbench.run(**given, wire=["native", "int8"], latency_documents=0, out=tmp_path)
    sizes = found.samples.groupby("wire")["message_bytes"].mean()
    assert set(sizes.index) == {"native", "int8"} and len(found.folders) == 2
    assert 0 < sizes["int8"] < sizes["native"] / 2
    [counted] = lcfbench.run(**given, latency_documents=0, out=tmp_path).folders
    assert lcfbench.load_samples(counted)["wire"].isna().all()


def test_rows_runs_and_claims_are_data_frames(found):
    assert len(found.folders) == 3 and found.run_ids[0].startswith("receiver-splitfacts")
    assert len(found.samples) == 18 and set(found.samples["run_id"]) == set(found.run_ids)
    summary = found.summary()
    assert list(summary["label"]) == ["receiver", "t2t", "t2t"] and summary["n"].tolist() == [6, 6, 6]
    assert found.verdicts()["label"].tolist() == ["t2t"]
    folder = found.folders[0].parent
    assert len(lcfbench.load_samples(folder)) == 18
    assert lcfbench.load_summary(str(folder)).equals(summary)
    assert len(lcfbench.verdicts([folder], delta=0.1)) == 1


def test_nothing_is_printed_unless_asked_for(pair, tmp_path, capfd):
    settings = {"pair": pair, "mode": "receiver", "limit": 2, "out": tmp_path, "dtype": "float32"}
    lcfbench.run(**settings)
    assert capfd.readouterr() == ("", "")
    lcfbench.run(**settings, fresh=True, progress=True)
    assert "2/2" in capfd.readouterr().err


def test_a_recipe_object_or_file_is_overlaid(pair, tmp_path):
    recipe = lcfbench.Recipe(pair=pair, mode=["receiver"], limit=2, out=tmp_path, dtype="float32")
    assert [f.name for f in lcfbench.run(recipe).folders] == [
        f.name for f in lcfbench.run(recipe, batch_size=16).folders
    ]
    assert lcfbench.run(recipe, limit=3).folders != lcfbench.run(recipe).folders
    with pytest.raises(lcfbench.UserError, match="unknown setting 'limt'"):
        lcfbench.run(recipe, limt=3)
    with pytest.raises(lcfbench.UserError, match="unknown setting 'limt'"):
        lcfbench.run(limt=3)


def test_a_method_answers_a_question_and_shows_its_message(pair):
    models = lcfbench.load_pair(pair, dtype="float32")
    told = lcfbench.create("t2t", models, budget=5).ask("What is it?", max_new_tokens=4)
    assert (
        told.message is not None
        and told.message_bytes == len(told.message.encode())
        and str(told) == told.text
    )
    notes = {"receiver_notes": "The orange box is in Seoul.", "sharer_notes": "The key is in the orange box."}
    alone = lcfbench.create("receiver", models).ask("Where is the key?", **notes, max_new_tokens=4)
    assert alone.message is None and alone.message_bytes == 0 and alone.sharer_prompt is None
    assert "Seoul" in alone.receiver_prompt and "orange box is in Seoul" in alone.receiver_prompt
    split = lcfbench.create("t2t", models, budget=5).ask("Where is the key?", **notes, max_new_tokens=4)
    assert "The key is in" in (split.sharer_prompt or "") and "Seoul" not in (split.sharer_prompt or "")
    with pytest.raises(lcfbench.UserError, match="no adapter is at hand"):
        lcfbench.create("lcf", models)
    with pytest.raises(lcfbench.UserError, match="budget"):
        lcfbench.create("t2t", models, budget="many")


def test_training_returns_a_folder_that_create_takes(pair, tmp_path):
    [folder] = lcfbench.train(
        pair=pair,
        adapters=["lcf:width=8"],
        task=["splitfacts"],
        steps=2,
        batch_size=2,
        dev_documents=2,
        dtype="float32",
        out=tmp_path / "x",
    )
    models = lcfbench.load_pair(pair, dtype="float32")
    answer = lcfbench.create("lcf", models, folder).ask(
        "Where?", receiver_notes="Here.", sharer_notes="There.", max_new_tokens=2
    )
    assert answer.message is None and answer.message_bytes > 0


def test_a_frontier_takes_the_choices_of_the_command_line(tmp_path):
    from tests.analysis.frontier_runs import write_family

    write_family(tmp_path / "runs")
    found = lcfbench.Results(sorted(p for p in (tmp_path / "runs").iterdir() if p.is_dir()))
    made = found.plot_frontier(
        tmp_path,
        x="adapter,flops",
        task=["planted"],
        pool_seeds=True,
        published=True,
        data=tmp_path / "n.csv",
    )
    assert [path.name for path in made] == ["frontier.png", "frontier.svg", "n.csv"]
    assert all(path.stat().st_size for path in made)
    for wrong in ({"x": "size"}, {"task": "other"}, {"pair": "a:z"}, {"average": True}, {"seeds": True}):
        with pytest.raises(lcfbench.UserError):
            found.plot_frontier(tmp_path, **wrong)
