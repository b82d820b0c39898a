"""A run's name covers everything that may change an answer, and a changed run says what changed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from lcfbench.evaluation import identity, run
from lcfbench.evaluation.recipe import Recipe
from lcfbench.results.schema import SAMPLES
from tests import helpers
from tests.helpers import Watcher, rows
from tests.helpers import manifest_of as manifest
from tests.helpers import run_recipe as go

FEW = 4


def test_every_setting_is_part_of_the_identity_or_not():
    fields = set(Recipe.model_fields)
    assert fields == identity.IDENTITY_FIELDS | identity.OTHER_FIELDS
    assert not identity.IDENTITY_FIELDS & identity.OTHER_FIELDS


def test_other_settings_leave_the_name_as_it_is(pair, tmp_path):
    [one] = go(pair, tmp_path / "a", limit=FEW)
    [two] = go(pair, tmp_path / "b", limit=FEW, latency_documents=1, offline=True, fresh=True)
    assert one.name == two.name


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("versions", lambda *_: {"transformers": "5.99.0", "torch": "2.13.0", "lm_eval": "0.4.13"}, "5.99.0"),
        ("BEHAVIOUR", identity.BEHAVIOUR + 1, "behaviour"),
    ],
)
def test_other_circumstances_are_another_run_and_say_so(pair, tmp_path, monkeypatch, name, value, said):
    [one] = go(pair, tmp_path, limit=FEW)
    before, watcher = (one / SAMPLES).read_bytes(), Watcher()
    monkeypatch.setattr(run, name, value)
    [two] = go(pair, tmp_path, watcher, limit=FEW)
    assert one.name != two.name and (one / SAMPLES).read_bytes() == before
    assert any(one.name in text and said in text for text in watcher.said)
    again = Watcher()
    go(pair, tmp_path, again, limit=FEW)
    assert any("complete already" in text for text in again.said)


def test_an_interrupted_run_never_goes_on_under_other_libraries(pair, tmp_path, monkeypatch):
    [one] = go(pair, tmp_path, limit=FEW)
    found = json.loads((one / "manifest.json").read_text())
    (one / "manifest.json").write_text(json.dumps(found | {"state": "interrupted"}))
    monkeypatch.setattr(run, "versions", lambda *_: {"transformers": "5.99.0"})
    [two] = go(pair, tmp_path, limit=FEW)
    assert two.name != one.name and len(rows(two)) == FEW and manifest(one)["state"] == "interrupted"


def test_a_template_that_prints_the_date_is_the_same_run_tomorrow(pair, tmp_path, mirror, monkeypatch):
    from transformers.utils import chat_template_utils

    folder = helpers.save(tmp_path / "dated", layers=2)
    dated = helpers.tokenizer(400)
    template = dated.chat_template
    dated.chat_template = "{{ strftime_now('%d %B %Y') }}\n" + helpers.CHAT
    dated.save_pretrained(folder)
    dated.chat_template = template  # the tokenizer is shared by other tests

    def on(day: int) -> list[Path]:
        class Day(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        return go(f"{folder}:{folder}", tmp_path / "out", task=["openbookqa"], limit=FEW)

    [one], [two] = on(1), on(2)
    assert one == two and manifest(one)["identity"]["date"] == "2024-07-26"
    assert all(row["receiver_prompt"].startswith("26 July 2024\n") for row in rows(one))
    [plain] = go(pair, tmp_path / "plain", limit=FEW)
    assert not {"date", "thinking"} & set(manifest(plain)["identity"])


def test_notes_on_training_do_not_name_an_adapter(pair, adapter, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "config.json").read_text())
    config["training"] |= {"minutes": 12.5, "seed": 3, "lr": 0.003}
    (copy / "config.json").write_text(json.dumps(config))
    [one] = go(pair, tmp_path / "a", mode=["lcf"], adapter=[adapter], limit=FEW)
    [two] = go(pair, tmp_path / "b", mode=["lcf"], adapter=[copy], limit=FEW)
    assert one.name == two.name
    facts = manifest(two)["adapter_facts"]  # beside the identity: figures tell families by it
    assert {"seed": 3, "lr": 0.003}.items() <= facts["training"].items() and facts["options"] == config[
        "options"
    ]
    assert (facts["kind"], facts["layers"]) == (config["kind"], len(config["layers"]))


@pytest.mark.real
def test_the_behaviour_number_is_right(tmp_path, monkeypatch):
    """Answers equal results/baseline, or BEHAVIOUR must be raised and the baseline made again."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recorded = {
        row["doc_hash"]: row
        for folder in (helpers.ROOT / "results" / "baseline").glob("*matched*")
        for row in rows(folder)
    }
    recipe = Recipe.merge(helpers.ROOT / "results" / "baseline" / "recipe.yaml", {"out": tmp_path})
    [folder] = go(
        recipe.pair,
        tmp_path,
        **{
            **recipe.model_dump(include={"mode", "task", "dtype", "latency_documents"}),
            "limit": 32,
            "batch_size": 16,
        },
    )
    found = rows(folder)
    assert len(found) == 32
    for row in found:
        same = recorded[row["doc_hash"]]
        assert (row["prediction"], row["score"]) == (same["prediction"], same["score"])
        ours, theirs = (json.loads(r["choices_loglikelihood"]) for r in (row, same))
        assert [x for step in ours for x in step] == pytest.approx(
            [x for step in theirs for x in step], abs=2e-3
        )


def test_numbers_that_are_not_finite_are_refused_before_anything_is_touched(tmp_path):
    from lcfbench.errors import UserError
    from lcfbench.results.writer import RunWriter

    asked = {"mode": "lcf", "task": "splitfacts", "control": "matched"}
    with pytest.raises(UserError, match="chance of this run cannot be recorded"):
        RunWriter.open(tmp_path / "out", asked, {"chance": float("nan")})
    assert not (tmp_path / "out").exists()
    writer = RunWriter.open(tmp_path / "out", asked, {})
    with pytest.raises(UserError, match=r"calibration.importance.* not finite|calibration.importance"):
        writer.record(calibration={"importance": [0.5, float("inf")]})


def test_each_method_names_its_adapter_and_other_weights(pair, adapter, tmp_path):
    receiver = pair.split(":")[0]
    watcher = Watcher()
    go(
        f"{receiver}:{receiver}",
        tmp_path,
        watcher,
        mode=["identical", "lcf"],
        limit=2,
        adapter=_own(adapter, tmp_path),
    )
    assert sum("was trained on other weights" in text for text in watcher.warned) == 2


def _own(adapter: Path, tmp_path: Path) -> list[Path]:
    """The adapter as one of a model with itself, so that both methods take it."""
    import shutil

    import torch

    from lcfbench.adapters.base import build
    from lcfbench.adapters.config import pair_config, read_config
    from lcfbench.adapters.files import save

    config = read_config(adapter)
    torch.manual_seed(0)
    names = (config.receiver, config.receiver_geometry), (config.receiver, config.receiver_geometry)
    made = build(pair_config("lcfx", *names, options={"width": 8}))
    training = {"revisions": {"receiver": "another", "sharer": "another"}, "method": "identical"}
    made.config = made.config.model_copy(update={"training": training})
    shutil.rmtree(tmp_path / "own", ignore_errors=True)
    save(made, tmp_path / "own", "")
    return [tmp_path / "own"]


def test_the_nearest_recorded_run_says_what_changed(pair, tmp_path, monkeypatch):
    for behaviour, versions in ((91, "5.1.0"), (92, "5.1.0"), (92, "5.2.0"), (93, "5.2.0")):
        monkeypatch.setattr(run, "BEHAVIOUR", behaviour)
        monkeypatch.setattr(run, "versions", lambda *_, v=versions: {"transformers": v})
        watcher = Watcher()
        *_, last = go(pair, tmp_path, watcher, limit=FEW)
        said = [text for text in watcher.said if "changed since" in text]
        assert all("behaviour" not in text or "5.1.0" not in text for text in said), said
    assert len(said) == 1 and "behaviour" in said[0] and "→" not in said[0]
