"""Files as users have them: each is asked as it is meant, or refused in one line that says why."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench import registry
from lcfbench.errors import UserError
from lcfbench.tasks.task import load_task

CSV = "question,a,b,c,answer\nq1,x,y,z,B\nq2,x,y,z,A\n"


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(registry, "_given", {})


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows: dict, schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    return sink.getvalue().to_pybytes()


def question(**cells: object) -> dict:
    return {"question": "why?", **cells}


AB = [{"text": "red", "label": "A"}, {"text": "blue", "label": "B"}]
READ = {  # file → the right answers of its documents
    "utf16.csv": (CSV.encode("utf-16"), ["y", "x"]),
    "utf16-big.csv": (("\ufeff" + CSV).encode("utf-16-be"), ["y", "x"]),
    "bom.csv": (("\ufeff" + CSV).encode(), ["y", "x"]),
    "semicolons.csv": (CSV.replace(",", ";").encode(), ["y", "x"]),
    "tabs.csv": (CSV.replace(",", "\t").encode(), ["y", "x"]),
    "pipes.csv": (CSV.replace(",", "|").encode(), ["y", "x"]),
    "windows.csv": (CSV.replace("\n", "\r\n").encode(), ["y", "x"]),
    "old-mac.csv": (CSV.replace("\n", "\r").encode(), ["y", "x"]),
    "sep.csv": (("sep=;\r\n" + CSV.replace(",", ";")).encode(), ["y", "x"]),
    "capitals.csv": (b"QUESTION,OPTION A,OPTION B,ANSWER KEY\nx,y,z,A\n", ["y"]),
    "quotes.csv": (b'question,a,b,answer\n"say ""hi"", ok","x, y",z,A\n"two\nlines",b,c,B\n', ["x, y", "c"]),
    "long-cell.csv": (b"question,answer\n" + b"x" * 200_000 + b",y\n", ["y"]),
    "braces.csv": (b"question,answer\n{{7*7}} {% raw %},y\n", ["y"]),
    "list.json": (b'[{"question": "q", "answer": "x"}]', ["x"]),
    "wrapped.json": (b'{"version": 1, "data": [{"question": "q", "answer": "x"}]}', ["x"]),
    "lines.json": (b'{"question": "q", "answer": "x"}\n{"question": "r", "answer": "y"}\n', ["x", "y"]),
    "arc.jsonl": (
        lines(question(choices={"text": ["red", "blue"], "label": ["A", "B"]}, answerKey="B")),
        ["blue"],
    ),
    "objects.jsonl": (lines(question(choices=AB, answer="B")), ["blue"]),
    "lettered.jsonl": (lines(question(options={"A": "red", "B": "blue"}, answer="B")), ["blue"]),
    "squad.jsonl": (
        lines(question(context="c", answers={"text": ["x", "y"], "answer_start": [1, 2]})),
        ["x"],
    ),
    "numbers.jsonl": (
        lines(question(choices=[3, 4], answer=4), {"question": "w", "choices": [3, 4], "answer": 3}),
        ["4", "3"],
    ),
    "yes-no.jsonl": (lines(question(answer=True)), ["True"]),
    "objects.parquet": (parquet(question(choices=AB, answer="B")), ["blue"]),
    "lettered.parquet": (
        parquet(
            question(options={"A": "red", "B": "blue", "C": None}, answer="B"),
            {"question": "w", "options": {"A": "1", "B": "2", "C": "3"}, "answer": "C"},
        ),
        ["blue", "3"],
    ),
    "date.parquet": (parquet(question(answer=datetime.date(2020, 1, 2))), ["2020-01-02"]),
    "decimal.parquet": (parquet(question(answer=decimal.Decimal("1.50"))), ["1.50"]),
    "image.parquet": (parquet(question(answer="x", image={"bytes": b"\x89PNG", "path": None})), ["x"]),
    **{
        f"{n}-choices.jsonl": (
            lines(question(choices=[f"c{i}" for i in range(n)], answer=f"c{n - 1}")),
            [f"c{n - 1}"],
        )
        for n in range(2, 11)
    },
}


@pytest.mark.parametrize("name", READ)
def test_it_is_asked_as_it_is_meant(tmp_path: Path, name: str) -> None:
    data, golds = READ[name]
    (tmp_path / name).write_bytes(data)
    task = load_task(str(tmp_path / name))
    cloze = task.documents(scoring="cloze" if "cloze" in task.scorings else None)
    assert sorted(d.gold for d in cloze) == sorted(golds) and not task.dropped
    assert all("{'" not in d.receiver.user and "b'" not in d.receiver.user for d in cloze)


HALF = b'{"question": "\\ud800", "answer": "b"}\n'
REFUSED = {
    "half-pair.jsonl": (HALF, "half a surrogate pair"),
    "bytes.parquet": (parquet(question(answer=b"x")), "row 1, answer: holds bytes"),
    "bytes-question.parquet": (parquet({"question": b"\xff", "answer": "x"}), "row 1, question: holds bytes"),
    "nested-question.jsonl": (
        lines({"question": {"stem": "q"}, "answer": "x"}),
        "question: holds a nested value",
    ),
    "nested-answer.jsonl": (lines(question(answer={"a": 1})), "answer: holds a nested value"),
    "nested-choice.jsonl": (
        lines(question(choices=[["a"], ["b"]], answer="A")),
        "a choice is empty or no text",
    ),
    "odd-letters.jsonl": (lines(question(choices={"A": "x", "D": "y"}, answer="A")), "choices are no list"),
    "twice.jsonl": (b'{"question": "a", "answer": "b", "answer": "c"}\n', "'answer' stands twice"),
    "twice.json": (b'[{"question": "a", "answer": "b", "answer": "c"}]', "'answer' stands twice"),
    "pretty.jsonl": (b'[\n{"question": "a", "answer": "b"}\n]', "Call the file .json"),
    "spreadsheet.csv": (b"PK\x03\x04\x14\x00", "spreadsheet's own file"),
    "utf16-without-mark.csv": (CSV.encode("utf-16-le"), "Save it as UTF-8"),
    "latin.csv": (CSV.replace("q1", "é").encode("latin-1"), "line 2: not UTF-8"),
    "short.csv": ((CSV + "q3,x,y\n").encode(), "line 4: 3 cells under 5 columns"),
    "long.csv": ((CSV + "q3,x,y,z,A,more\n").encode(), "line 4: 6 cells under 5 columns"),
    "open-quote.csv": ((CSV + 'q3,"x,y,z,A\n').encode(), "line 4"),
    "empty.csv": (b"", "has no rows"),
    "heads.csv": (b"question,answer\n", "has no rows"),
    "empty.jsonl": (b"", "has no rows"),
    "empty.json": (b"[]", "has no rows"),
    "columns.json": (b'{"question": ["a"], "answer": ["x"]}', "is no list of rows"),
    "deep.jsonl": (b'{"question": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "does not parse"),
    "digits.jsonl": (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n", "does not parse"),
    "zero.parquet": (b"", "cannot be read as parquet"),
    "ambiguous.jsonl": (
        lines(question(choices=["a", "b", "c"], label=1)),
        "number from 0 or a number from 1",
    ),
    "one-choice.jsonl": (lines(question(choices=["a"], answer="a")), "1 choices"),
    "eleven.jsonl": (lines(question(choices=[f"c{i}" for i in range(11)], answer="c1")), "11 choices"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, says = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_task(str(tmp_path / name)).documents()
    assert says in str(caught.value) and "\n" not in str(caught.value)


MISTAKES = {
    "dataset_pth: rows.csv\n": "Did you mean dataset_path for dataset_pth?",
    "dataset_path: 3\n": "names no data. Add",
    "dataset_path: rows.csv\nmetadata: {chat: maybe}\n": "no yes or no",
    "dataset_path: rows.csv\nmetadata: {options: [a]}\n": "metadata.options is not a mapping",
    "dataset_path: rows.csv\nmetadata: {views: {sharer: '{{nope}}'}}\n": "views: 'nope' is undefined",
    "dataset_path: rows.csv\ndataset_kwargs: {delimiter: ;}\n": "dataset_kwargs: delimiter",
    "dataset_path: rows.csv\ngeneration_kwargs: {until: 3}\n": "until: 3 is no list of texts",
    "dataset_path: rows.csv\ngeneration_kwargs: [a]\n": "generation_kwargs is no mapping",
    "dataset_path: rows.csv\ngeneration_kwargs: {do_sample: true}\n": "answers are greedy",
    "dataset_path: rows.csv\ndoc_to_text: 3\ndoc_to_target: answer\n": "row 1, doc_to_text: gives int",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_task(str(tmp_path / "mine.yaml")).documents()
    assert MISTAKES[text] in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_to_stop_at_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "mine.yaml").write_text(
        "dataset_path: rows.csv\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "generation_kwargs: {until: 'Question:'}\n"
    )
    assert load_task(str(tmp_path / "mine.yaml")).documents()[0].until == ("Question:",)
