"""The proof that an adapter carries: made of recorded rows, shown, and found where it was changed."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from lcfbench.adapters.config import CONFIG, PROOF, WEIGHTS
from lcfbench.adapters.proof import lacking, read_proofs
from lcfbench.adapters.select import shipped
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.files import locked
from lcfbench.provenance import digest
from lcfbench.publishing.adapter import sound_proofs
from lcfbench.publishing.proof import held_against, prove
from lcfbench.results.reader import load_samples
from tests.helpers import Watcher, invoke, run_recipe
from tests.publishing.conftest import random_weights


@pytest.fixture(scope="module")
def proven(world, tmp_path_factory):
    """The adapter with its proof."""
    folder = world.copy(tmp_path_factory.mktemp("proven") / "mine")
    prove(folder, [world.runs])
    return folder


@pytest.fixture
def copied(proven, tmp_path):
    return shutil.copytree(proven, tmp_path / "mine")


def change(folder, forge=False, **values):
    """Edits the first proof; with `forge` its digest is computed anew, as a person who knows how would."""
    raw = json.loads((folder / PROOF).read_text())
    raw["proofs"][0] |= values
    if forge:
        fields = {k: v for k, v in raw["proofs"][0].items() if k != "sha256"}
        raw["proofs"][0]["sha256"] = digest(fields)
    (folder / PROOF).write_text(json.dumps(raw))


def test_a_proof_says_what_the_rows_say(world, proven):
    (proof,) = read_proofs(proven)
    rows = load_samples(world.runs)
    mine = rows[rows["mode"] == "lcf"].pivot(index="doc_hash", columns="control", values="score")
    assert (proof.matched, proof.deranged) == (mine["matched"].mean(), mine["deranged"].mean())
    assert proof.content == pytest.approx((mine["matched"] - mine["deranged"]).mean())
    assert proof.low <= proof.content <= proof.high and proof.n == len(mine) == 12
    assert {name: (a, b) for name, a, b in proof.documents} == {
        name: (row["matched"], row["deranged"]) for name, row in mine.iterrows()
    }
    assert held_against(proven, [world.runs]) == [proof] == sound_proofs(proven)
    assert {p.parent.name for p in world.runs.glob("lcf-*/manifest.json")} == {
        each.run_id for some in proof.runs.values() for each in some
    }


def test_two_at_once_lose_no_proof(world, copied):
    with locked(copied):
        prove(copied, [world.runs], write=False)
        with pytest.raises(UserError, match="another process"):
            prove(copied, [world.runs])


def test_a_proof_changes_no_run(world, proven, tmp_path):
    again = run_recipe(
        world.pair, tmp_path, mode=["lcf"], adapter=[proven], task=["splitfacts"], control=["matched"]
    )
    assert [folder.name for folder in again] == [p.name for p in world.runs.glob("lcf-*-matched-*")]


@pytest.mark.parametrize(
    "values",
    [
        {"matched": 1.0},
        {"deranged": 0.0},
        {"content": 0.9},
        {"low": 0.5},
        {"p": 0.0},
        {"n": 500},
        {"task": "openbookqa"},
        {"pair": "a:b"},
        {"revisions": ["other", "models"]},
        {"documents": []},
        {"sha256": "0" * 64},
        {"sha256": ""},
        {"made_at": "2020-01-01"},
        {"new": 1},
        {"options": None},
        {"matched": float("1e400")},
        {"runs": {}},
    ],
)
def test_an_edited_proof_is_found(copied, values):
    change(copied, **values)
    with pytest.raises(UserError, match=r"proof\.json") as error:
        read_proofs(copied)
    assert "\n" not in str(error.value) and error.value.next_step


@pytest.mark.parametrize(
    "values", [{"matched": 1.0}, {"content": 0.9, "high": 1.0}, {"n": 500}, {"low": 1.0, "high": 1.0}]
)
def test_numbers_that_do_not_follow_are_found_even_under_a_new_digest(copied, values):
    change(copied, forge=True, **values)
    with pytest.raises(UserError, match="does not hold"):
        sound_proofs(copied)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_proof_of_another_number_of_models_is_none(copied, count):
    (proof,) = read_proofs(copied)
    change(copied, forge=True, revisions=(proof.revisions * 2)[:count])
    with pytest.raises(UserError, match=r"proof\.json does not hold"):
        read_proofs(copied)


def test_one_run_under_both_controls_proves_nothing(copied):
    (proof,) = read_proofs(copied)
    matched = [each.model_dump() for each in proof.runs["matched"]]
    change(copied, forge=True, runs={"matched": matched, "deranged": matched})
    with pytest.raises(UserError, match="names one run under both controls"):
        read_proofs(copied)


def test_an_interval_of_other_documents_is_found_under_a_new_digest(copied):
    change(copied, forge=True, low=-0.0001 + read_proofs(copied)[0].content, high=1.0)
    assert read_proofs(copied), "the reader without statistics sees no contradiction"
    with pytest.raises(UserError, match="is not that of its documents"):
        sound_proofs(copied)


def test_scores_forged_throughout_are_found_with_the_rows_only(world, copied):
    (proof,) = read_proofs(copied)
    flat = [[name, other, other] for name, _, other in proof.documents]
    change(
        copied,
        forge=True,
        documents=flat,
        matched=proof.deranged,
        content=0.0,
        low=-0.2535,
        high=0.2535,
        p=1.0,
    )
    assert read_proofs(copied)
    with pytest.raises(UserError, match="is not what its runs say"):
        held_against(copied, [world.runs])


def test_other_weights_and_another_config_are_found(world, copied, tmp_path):
    other = random_weights(tmp_path / "other", world.pair, 6)
    shutil.copyfile(copied / PROOF, other / PROOF)
    with pytest.raises(UserError, match="of other weights"):
        read_proofs(other)
    config = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(config | {"layer_map": config["layer_map"][::-1]}))
    with pytest.raises(UserError, match="another config"):
        read_proofs(copied)


def test_a_proof_of_other_models_is_found(copied):
    config = json.loads((copied / CONFIG).read_text())
    config["training"]["revisions"]["sharer"] = "0" * len(config["training"]["revisions"]["sharer"])
    (copied / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="it is of sharer"):
        read_proofs(copied)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"format": 1}', '{"format": 1, "proofs": []}', "\x00"]
)
@pytest.mark.parametrize("later", [False, True])
def test_a_broken_file_is_one_line(copied, text, later):
    (copied / PROOF).write_text('{"format": 9, "proofs": [1]}' if later else text)
    with pytest.raises(UserError, match="Upgrade" if later else r"proof\.json") as error:
        read_proofs(copied)
    assert "\n" not in str(error.value)


def only(world, place, *patterns):
    for pattern in patterns:
        for run in world.runs.glob(pattern):
            shutil.copytree(run, place / run.name)
    return place


def test_without_a_deranged_run_nothing_is_proven(world, tmp_path):
    folder, runs = world.copy(tmp_path / "mine"), only(world, tmp_path / "runs", "lcf-*-matched-*")
    with pytest.raises(UserError, match="matched only") as error:
        prove(folder, [runs])
    assert "--control matched,deranged" in error.value.next_step and not (folder / PROOF).exists()


def test_rows_of_other_weights_prove_nothing(world, tmp_path):
    other = random_weights(tmp_path / "other", world.pair, 6)
    with pytest.raises(UserError, match="no run here is of the weights") as error:
        prove(other, [world.runs])
    assert "no adapter" in error.value.what


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: {**m, "state": "interrupted"}, "is not finished"),
        (lambda m: {**m, "columns_sha256": None}, "is not finished"),
        (lambda m: {**m, "identity": {**m["identity"], "control": "deranged"}}, "left out"),
    ],
)
def test_a_run_that_was_not_finished_or_was_renamed_proves_nothing(world, tmp_path, edit, says):
    folder, runs = world.copy(tmp_path / "mine"), only(world, tmp_path / "runs", "lcf-*")
    place = next(runs.glob("lcf-*-matched-*")) / "manifest.json"
    place.write_text(json.dumps(edit(json.loads(place.read_text()))))
    with pytest.raises(UserError, match=says):
        prove(folder, [runs])


def test_edited_rows_prove_nothing(world, tmp_path):
    folder, runs = world.copy(tmp_path / "mine"), only(world, tmp_path / "runs", "lcf-*")
    place = next(runs.glob("lcf-*-matched-*")) / "samples.parquet"
    table = pq.read_table(place)
    rows = [row | {"score": 1.0} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, table.schema), place)
    with pytest.raises(UserError, match=r"left out: .*other values than recorded in score"):
        prove(folder, [runs])


def test_failed_documents_prove_nothing(world, tmp_path, monkeypatch):
    folder, first = world.copy(tmp_path / "mine"), []

    def failing(state, batch):
        first.append(batch.documents[0].hash)
        if first[0] in [d.hash for d in batch.documents]:
            raise ValueError("it does not answer this one")
        return answer(state, batch)

    monkeypatch.setattr("lcfbench.evaluation.run.answer", failing)
    both = {"mode": ["lcf"], "control": ["matched", "deranged"], "adapter": [folder]}
    run_recipe(world.pair, tmp_path / "runs", **both, task=["splitfacts"])
    with pytest.raises(UserError, match=r"1 of 12 documents of lcf-.* failed"):
        prove(folder, [tmp_path / "runs"])


def test_several_tasks_stand_side_by_side_and_one_is_replaced(world, tmp_path):
    folder = world.copy(tmp_path / "mine")
    prove(folder, [world.runs])
    both = {"mode": ["lcf"], "control": ["matched", "deranged"], "adapter": [folder]}
    run_recipe(world.pair, tmp_path / "more", **both, task=["splitfacts_heldout"])
    run_recipe(world.pair, tmp_path / "more", **both, task=["splitfacts"], limit=16)
    first = read_proofs(folder)
    prove(folder, [tmp_path / "more"])
    found = {proof.task: proof.n for proof in read_proofs(folder)}
    assert len(first) == 1 and found == {"splitfacts_heldout": 12, "splitfacts": 16}
    prove(folder, [world.runs, tmp_path / "more"])
    assert {proof.task: proof.n for proof in read_proofs(folder)} == found, "the one of more documents"


def test_a_run_says_once_that_there_is_no_proof(world, proven, tmp_path):
    asked = {"mode": ["receiver", "lcf"], "control": ["matched", "deranged"], "task": ["splitfacts"]}
    bare, watcher = world.copy(tmp_path / "bare"), Watcher()
    run_recipe(world.pair, tmp_path / "a", watcher, **asked, adapter=[bare])
    said = [text for text in watcher.warned if "proof" in text]
    assert len(said) == 1 and "adapter bare has no proof" in said[0] and "adapter prove" in said[0]
    watcher = Watcher()
    run_recipe(world.pair, tmp_path / "b", watcher, **asked, adapter=[proven], require_proof=True)
    assert not [text for text in watcher.warned + watcher.said if "pro" in text]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"task": ["splitfacts_heldout"]}, "task splitfacts, here splitfacts_heldout"),
        ({"task_options": {"boxes": "4"}}, "task_options"),
        ({"scoring": "generate"}, "scoring cloze, here generate"),
        ({"options": {"spans": "one"}}, "options"),
        ({"options": {"spans": "windows", "windows": "2"}}, "options"),
    ],
)
def test_a_proof_of_another_setting_is_none(world, proven, tmp_path, asked, says):
    asked = {"mode": ["lcf"], "task": ["splitfacts"], "adapter": [proven], **asked}
    try:
        run_recipe(world.pair, tmp_path, **asked, require_proof=True)
    except UserError as error:
        assert str(error).startswith("--require-proof: adapter mine is proven for other settings")
        assert says in str(error) or "unknown" in str(error)
    else:
        raise AssertionError("it ran")
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_proof_speaks_of_one_form_of_messages(world, proven, tmp_path):
    """Exact bytes are messages that are handed over; a form that rounds is another setting, with its own."""
    asked = {"mode": ["lcf"], "task": ["splitfacts"], "adapter": [proven]}
    assert run_recipe(world.pair, tmp_path / "exact", **asked, wire=["native"], require_proof=True)
    with pytest.raises(UserError, match=r"proven for other settings \(wire None, here int8\)"):
        run_recipe(world.pair, tmp_path / "out", **asked, wire=["int8"], require_proof=True)
    both = {**asked, "control": ["matched", "deranged"]}
    run_recipe(world.pair, tmp_path / "runs", **both, wire=["int8"])
    copy = shutil.copytree(proven, tmp_path / "mine")
    [made] = prove(copy, [tmp_path / "runs"]).proofs
    assert made.wire == "int8" and len(read_proofs(copy)) == 2
    asked["adapter"] = [copy]
    assert run_recipe(world.pair, tmp_path / "out", **asked, wire=["int8"], require_proof=True)
    [exact] = prove(world.copy(tmp_path / "exactly"), [exact_runs(world, tmp_path)]).proofs
    assert exact.wire is None


def exact_runs(world, tmp_path):
    both = {"mode": ["lcf"], "task": ["splitfacts"], "control": ["matched", "deranged"]}
    run_recipe(world.pair, tmp_path / "native", **both, adapter=[world.adapter], wire=["native"])
    return tmp_path / "native"


def test_a_proof_of_another_wording_is_none(world, proven, tmp_path):
    wording = tmp_path / "mine.jinja"
    wording.write_text("{{receiver}} Say it.")
    asked = {"mode": ["lcf"], "task": ["splitfacts"], "adapter": [proven], "prompt": str(wording)}
    with pytest.raises(
        UserError, match=r"proven for other settings \(prompt_sha256 None, here [0-9a-f]{12}\)"
    ):
        run_recipe(world.pair, tmp_path / "out", **asked, require_proof=True)


def test_without_a_proof_require_proof_refuses_before_a_model_is_loaded(world, tmp_path, monkeypatch, capsys):
    bare = world.copy(tmp_path / "bare")
    monkeypatch.setattr("lcfbench.evaluation.session.load_pair", lambda *a, **k: pytest.fail("loaded"))
    args = ["run", "--pair", world.pair, "--mode", "lcf", "--task", "splitfacts", "--adapter", bare]
    code, _, err = invoke(capsys, monkeypatch, *args, "--require-proof", "--out", tmp_path / "r")
    assert code == 2 and "--require-proof: adapter bare has no proof" in err and err.count("\n") == 1
    shutil.copyfile(world.adapter / CONFIG, bare / PROOF)
    code, _, err = invoke(capsys, monkeypatch, *args, "--out", tmp_path / "r")
    assert code == 2 and "is no proof" in err, "what does not hold stops a run that requires none too"


def test_a_method_that_sends_nothing_needs_no_proof(world, proven, tmp_path):
    watcher = Watcher()
    run_recipe(world.pair, tmp_path, watcher, mode=["receiver"], task=["splitfacts"], require_proof=True)
    assert not watcher.warned


def test_the_shell_makes_shows_and_checks_it(world, tmp_path, monkeypatch, capsys):
    folder = world.copy(tmp_path / "mine")
    code, out, _ = invoke(capsys, monkeypatch, "adapter", "prove", folder, "--runs", world.runs)
    (proof,) = read_proofs(folder)
    assert code == 0 and out == f"proven: {proof.sentence}\n"
    assert proof.shown or "no communication is shown" in out
    code, out, _ = invoke(capsys, monkeypatch, "adapter", "prove", folder, "--runs", world.runs, "--check")
    assert code == 0 and out == f"holds: {proof.sentence}\n"
    code, out, _ = invoke(capsys, monkeypatch, "adapter", "info", folder)
    assert code == 0 and f"proof {proof.sentence}\n" in out
    code, out, _ = invoke(capsys, monkeypatch, "adapter", "info", folder, "--json")
    assert json.loads(out)["proof"][0]["matched"] == proof.matched
    code, out, _ = invoke(capsys, monkeypatch, "adapter", "info", world.adapter)
    assert "proof: none\n" in out
    code, _, err = invoke(capsys, monkeypatch, "adapter", "prove", folder, "--runs", tmp_path / "nothing")
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize("folder", shipped(), ids=lambda folder: folder.name)
def test_what_ships_has_a_proof_that_holds_and_says_so_where_nothing_is_shown(folder):
    for proof in sound_proofs(folder):
        assert proof.n >= 64 and ("no communication is shown" in proof.sentence) is (proof.low <= 0)
        assert not lacking(folder.name, [proof], {"task": proof.task})
    assert sound_proofs(folder), folder.name
    assert (folder / WEIGHTS).is_file()
