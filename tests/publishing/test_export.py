"""Rows as JSON Lines and CSV, and runs in Every Eval Ever's schema."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lcfbench.publishing.eee import portable, uuid4_of, write_records
from lcfbench.publishing.eee_check import validated
from lcfbench.publishing.export import write_rows, written
from lcfbench.results.reader import load_samples
from lcfbench.results.schema import COLUMNS
from tests.helpers import invoke

SCHEMAS = Path(__file__).parent / "eee_schema"


def test_json_lines_hold_every_column_with_its_type(world, tmp_path):
    assert write_rows([world.runs], "jsonl", tmp_path / "rows.jsonl") == []
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    recorded = [
        r for run in sorted(world.runs.glob("*/samples.parquet")) for r in pq.read_table(run).to_pylist()
    ]
    assert len(rows) == 36 and sorted(rows, key=str) == sorted(recorded, key=str)
    assert all(list(row) == list(COLUMNS) for row in rows)
    for name, kind in COLUMNS.items():
        assert all(type(row[name]) in (kind, type(None)) for row in rows), name


def test_csv_begins_no_formula_and_keeps_numbers(world, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(next(world.runs.glob("receiver-*")), runs / "one")
    place = runs / "one" / "samples.parquet"
    table = pq.read_table(place)
    hostile = ["=1+1", "+1", "-x", "@a", "\t=a", 'a,"b"\nc', "-1.5", "ü 鍵", "\x1b[31m", "＝1", "", None]
    rows = [row | {"prediction": text} for row, text in zip(table.to_pylist(), hostile, strict=True)]
    lone = tmp_path / "lone.parquet"
    pq.write_table(
        type(table).from_pylist([r | {"row_sha256": None, "schema_version": 1} for r in rows], table.schema),
        lone,
    )
    write_rows([lone], "csv", tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        found = list(csv.DictReader(file))
    safe = ["'=1+1", "+1", "'-x", "'@a", "'\t=a", 'a,"b"\nc', "-1.5", "ü 鍵", "\\u001b[31m", "'＝1", "", ""]
    assert [row["prediction"] for row in found] == safe
    assert [float(row["score"]) for row in found] == [row["score"] for row in rows]
    assert not any(v.startswith(("=", "@")) for row in found for v in row.values())


def test_what_cannot_be_read_is_named_and_leaves_no_file(world, tmp_path, monkeypatch, capsys):
    code, _, err = invoke(capsys, monkeypatch, "export", "csv", tmp_path / "no", "-o", tmp_path / "x.csv")
    assert code == 2 and "nothing to read" in err and not (tmp_path / "x.csv").exists()
    runs = shutil.copytree(world.runs, tmp_path / "runs")
    broken = sorted(runs.iterdir())[0]
    (broken / "samples.parquet").write_bytes(b"PAR1")
    code, out, err = invoke(capsys, monkeypatch, "export", "jsonl", runs, "-o", tmp_path / "x.jsonl")
    assert code == 0 and broken.name in err and len((tmp_path / "x.jsonl").read_text().splitlines()) == 24
    for out in (tmp_path, broken / "manifest.json", tmp_path / "a.parquet"):
        code, _, err = invoke(capsys, monkeypatch, "export", "csv", world.runs, "-o", out)
        assert code == 2 and err.count("\n") == 1, out


def test_stdout_is_a_stream(world, tmp_path):
    from tests.helpers import forked

    code, out, _ = forked("export", "jsonl", world.runs, "-o", "/dev/stdout", cwd=tmp_path)
    assert code == 0 and len([json.loads(line) for line in out.splitlines()]) == 36


def records_of(out):
    files = sorted(out.glob("data/*/*/*/*.json"))
    return [(path, json.loads(path.read_text())) for path in files]


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("eee")
    return out, write_records([world.runs], out)


def test_records_are_valid_by_the_published_schema(exported):
    jsonschema = pytest.importorskip("jsonschema")
    out, made = exported
    whole, line = (
        json.loads((SCHEMAS / f"{n}.schema.json").read_text()) for n in ("eval", "instance_level_eval")
    )
    assert len(made.files) == len(records_of(out)) == 3
    for path, record in records_of(out):
        jsonschema.Draft7Validator(whole).validate(record)
        assert not set(record) - set(whole["properties"])
        for text in path.with_name(f"{path.stem}_samples.jsonl").read_text().splitlines():
            jsonschema.Draft7Validator(line).validate(json.loads(text))


def test_records_are_valid_by_its_own_validator(exported):
    pytest.importorskip("every_eval_ever", reason="every-eval-ever is not here (it wants Python 3.12)")
    out, made = exported
    assert validated(out, made.files)


def test_a_record_and_its_samples_name_each_other(exported):
    out, _ = exported
    for path, record in records_of(out):
        detail = record["detailed_evaluation_results"]
        samples = out / detail["file_path"]
        assert samples == path.with_name(f"{path.stem}_samples.jsonl")
        data = samples.read_bytes()
        assert hashlib.sha256(data).hexdigest() == detail["checksum"]
        rows = [json.loads(text) for text in data.splitlines()]
        assert len(rows) == detail["total_rows"] == 12
        assert {r["evaluation_id"] for r in rows} == {record["evaluation_id"]}
        assert {r["model_id"] for r in rows} == {record["model_info"]["id"]}
        (result,) = record["evaluation_results"]
        assert {r["evaluation_result_id"] for r in rows} == {result["evaluation_result_id"]}
        mean = sum(r["evaluation"]["score"] for r in rows) / len(rows)
        assert result["score_details"]["score"] == pytest.approx(mean)
        for row in rows:
            form = {"raw": row["input"]["raw"], "reference": row["input"]["reference"]}
            text = json.dumps(form, sort_keys=True, separators=(",", ":"))
            assert row["sample_hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_pair_is_no_model_and_a_control_no_score(exported, world):
    out, _ = exported
    found = {r["model_info"]["additional_details"]["run_id"]: (p, r) for p, r in records_of(out)}
    rows = load_samples(world.runs)
    for run_id, (path, record) in found.items():
        mode, control = rows[rows["run_id"] == run_id][["mode", "control"]].iloc[0]
        details = record["model_info"]["additional_details"]
        (result,) = record["evaluation_results"]
        assert details["mode"] == mode and details["control"] == control
        if mode == "receiver":
            assert record["model_info"]["id"] == details["receiver"]
            continue
        assert record["model_info"]["id"].startswith("lcfbench/") and "+" in record["model_info"]["id"]
        assert details["adapter_sha256"] and "two models" in details["evaluated"]
        if control == "matched":
            mine = rows[rows["mode"] == "lcf"].groupby("control")["score"].mean()
            said = float(result["score_details"]["details"]["content"])
            assert said == pytest.approx(mine["matched"] - mine["deranged"])
        if control == "deranged":
            assert path.parts[-4] == "splitfacts-deranged" and result["evaluation_name"].endswith("-deranged")
            assert "no score of the model" in result["metric_config"]["evaluation_description"]


def test_the_same_runs_give_the_same_records(exported, world, tmp_path):
    out, _ = exported
    write_records([world.runs], tmp_path)
    assert [(p.relative_to(tmp_path), r) for p, r in records_of(tmp_path)] == [
        (p.relative_to(out), r) for p, r in records_of(out)
    ]


@pytest.mark.parametrize("name", ["a/b", "../x", "data", "a:b", "x.", "…", "", "lm-eval/mmlu"])
def test_names_of_folders_are_portable(name):
    made = portable(name)
    assert made not in ("", "data", ".", "..") and "/" not in made and not made.endswith((".", " "))
    assert uuid4_of(name) == uuid4_of(name) and uuid4_of(name)[14] == "4"


def test_an_unfinished_run_is_left_out_and_said(world, tmp_path, monkeypatch, capsys):
    runs = shutil.copytree(world.runs, tmp_path / "runs")
    for run in sorted(runs.iterdir())[1:]:
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"state": "interrupted"}))
    code, out, err = invoke(capsys, monkeypatch, "export", "eee", runs, "-o", tmp_path / "e")
    assert code == 0 and len(out.splitlines()) == 1 and err.count("is left out: it is not finished") == 2


def test_a_killed_export_leaves_no_part_for_ever(tmp_path):
    out = tmp_path / "rows.csv"
    out.write_text("old")
    out.chmod(0o640)
    child = os.fork()
    if not child:
        with written(out) as file:
            file.write("half")
            file.flush()
            os._exit(9)
    os.waitpid(child, 0)
    assert out.read_text() == "old"
    with written(out) as file:
        file.write("new")
    assert out.read_text() == "new" and out.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
