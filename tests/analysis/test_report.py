"""`lcfbench report`: every part of the page, what may never stand there, Markdown and CSV."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lcfbench.analysis.report import charts, examples, latency, layers, page, sections, text
from lcfbench.analysis.report.provenance import provenance
from lcfbench.analysis.report.source import Source, read
from lcfbench.analysis.run_groups import RunGroup
from lcfbench.cli.analysis import write_report
from lcfbench.errors import UserError
from lcfbench.results.writer import RunWriter
from tests.analysis import report_runs
from tests.analysis.report_runs import EVIL, RIGHT, N, record
from tests.helpers import ROOT, invoke


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return report_runs.write(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def source(runs) -> Source:
    return read([runs])


@pytest.fixture(scope="module")
def html(source) -> str:
    return page.html(source)


class Visible(HTMLParser):
    """The text between tags, how often each tag stands, and where links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", dict[str, int](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.links |= {value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")}

    def handle_data(self, data):
        self.text += data


def told(table) -> list[list[str]]:
    return [[entry.text for entry in row.entries] for row in table.rows]


def test_verdicts_best_first(source) -> None:
    table = sections.verdicts(source)
    rows = [dict(zip([head.text for head in table.heads], row.entries, strict=True)) for row in table.rows]
    assert [(row["method"].text, row["verdict"].text) for row in rows] == [
        ("lcf", "communicates"),
        ("kvcomm", "undecided"),
        ("t2t", "untested"),
    ]
    assert "pair" not in rows[0]
    best = rows[0]
    assert (best["matched %"].text, best["deranged %"].text, best["receiver %"].text) == (
        "91.7",
        "33.3",
        "33.3",
    )
    assert (
        best["gain G"].text == "+58.3"
        and best["content P"].text == "+58.3"
        and best["content P"].note.startswith("[+4")
    )
    assert best["p (Holm)"].text == "< 0.001" and (best["adapter MB"].text, best["message bytes"].text) == (
        "3.4",
        "1,920",
    )
    assert "visible effect" in rows[1]["verdict"].note and rows[2]["content P"].value is None
    assert [(s.label, s.more) for s in sections.headline(source)] == [
        ("communicates", 0),
        ("undecided", 0),
        ("untested", 0),
    ]
    assert (
        sections.headline(source)[0].items[0].startswith("lcf on splitfacts (content +58.3 points, 95 % +4")
    )


def test_a_headline_names_few_and_counts_the_rest(tmp_path) -> None:
    for width in range(sections.NAMED + 2):
        record(tmp_path, "lcf", "matched", range(30), options={"width": width})
    (said,) = sections.headline(read([tmp_path]))
    assert len(said.items) == sections.NAMED and said.more == 2


def test_tables_have_every_control_and_every_document(source) -> None:
    first, second = sections.tasks(source)
    assert [row[:3] for row in told(second)] == [
        ["receiver", "–", "33.3"],
        ["t2t", "matched", "33.3"],
        ["lcf", "matched", "91.7"],
        ["lcf", "deranged", "33.3"],
    ]
    assert "guessing gives 33.3 %" in second.caption and first.caption.startswith("mmlu_redux (cloze)")
    assert all(str(N) in row for row in told(first) + told(second))


def test_subjects_are_means_of_their_own_documents(source) -> None:
    (table,) = sections.subjects(source)
    assert [head.text for head in table.heads] == [
        "subject",
        "documents",
        "receiver",
        "kvcomm",
        "kvcomm, deranged",
    ]
    right = next(group for group in source.groups if group.task == "mmlu_redux" and group.mode == "receiver")
    rows = {row.entries[0].text: row.entries for row in table.rows}
    assert rows["astronomy"][1].text == "40" and rows["virology"][1].text == "20"
    total = 40 * rows["astronomy"][2].value + 20 * rows["virology"][2].value
    assert total == pytest.approx(right.scores.sum())


def test_failed_documents_count_as_wrong_and_are_said(tmp_path) -> None:
    record(tmp_path, "receiver", "matched", range(N), task="mmlu_redux", row={"error": "out of memory"})
    failed = read([tmp_path])
    (table,) = sections.subjects(failed)
    assert {row.entries[2].value for row in table.rows} == {0.0}
    assert "receiver (matched): 60 of 60 documents failed and count as wrong" in page.html(failed)


def test_seeds_beside_documents(tmp_path) -> None:
    for seed, right in enumerate((range(30), range(36))):
        record(tmp_path, "lcf", "matched", right, seed=seed)
    seeds = read([tmp_path])
    (table,) = sections.tasks(seeds)
    (row,) = [dict(zip([head.text for head in table.heads], texts, strict=True)) for texts in told(table)]
    assert (row["score %"], row["seeds"], row["± seeds"]) == ("55.0", "2", "7.1")
    assert [row[4] for row in told(provenance(seeds)[1])] == ["0", "1"]


def test_time_by_phase_and_who_was_not_timed(source, tmp_path) -> None:
    stack = next(stack for stack in latency.stacks(source) if stack.heading.startswith("splitfacts"))
    bar = stack.bars[0]
    assert (
        bar.parts == {"sharer": 50.0, "message": 0.0, "fuse": 10.0, "prefill": 80.0, "decode": 60.0}
        and bar.rest == 0
    )
    assert (bar.total, bar.n, bar.first_token, stack.longest) == (200.0, 5, 150.0, 200.0)
    assert bar.said == "sharer 50.0, fuse 10.0, prefill 80.0, decode 60.0" and stack.untimed == ["t2t"]
    record(tmp_path, "lcf", "matched", range(9), row={"ttea_ms": 300.0})
    (late,) = latency.stacks(read([tmp_path]))
    assert late.bars[0].rest == pytest.approx(100.0) and "unaccounted 100" in late.bars[0].said


def test_layers_once_an_adapter(source) -> None:
    gates = [heat for heat in layers.strips(source) if heat.title.startswith("mine.lcf")]
    (heat,) = gates  # matched and deranged ran on one adapter
    assert heat.used == "splitfacts, deranged; splitfacts" and [strip.name for strip in heat.strips] == [
        "gate, keys",
        "gate, values",
    ]
    assert heat.strips[0].values == [1.0, 0.5, 0.0, None, 0.25]
    assert "shut in layers 2" in heat.said and "no adapter in layers 3" in heat.said
    sent = next(heat for heat in layers.strips(source) if heat not in gates)
    assert sent.marked == [1, 3] and sent.strips[0].most == 0.8 and "8 validation documents" in sent.title
    drawn = charts.strip(heat)
    assert (
        drawn.count('class="heat"') == 8
        and drawn.count('class="none"') == 2
        and ">layer 4, gate, values 0.75<" in drawn
    )


def group(label: str, control: str, mode: str = "") -> RunGroup:
    made = object.__new__(RunGroup)
    made.label, made.runs = label, [type("Run", (), {"names": {"control": control, "mode": mode or label}})()]
    return made


def test_examples_cover_patterns() -> None:
    groups = [group("receiver", "matched"), group("lcf", "matched"), group("lcf", "deranged")]
    right = np.array(
        [[1, 1, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 2]],
        dtype=np.uint8,
    )
    chosen = examples.choose(right, groups, most=4)
    assert [(i, kind) for i, kind in chosen] == [(1, "crosses"), (3, "harms"), (4, "reversed"), (6, "mixed")]
    every = examples.choose(right, groups, most=12)
    assert sorted(i for i, _ in every) == [1, 2, 3, 4, 6, 7] and every == examples.choose(
        right, groups, most=12
    )
    assert examples.choose(right[[0, 5]], groups) == []


def test_examples_show_what_each_model_saw(source) -> None:
    task = next(found for found in examples.examples(source) if found.heading.startswith("splitfacts"))
    assert len(task.cases) == examples.MOST == 12 and task.n == N
    wanted = {i for i in range(N) if len({i in right for right in RIGHT.values()}) == 2}
    assert task.disagree == len(wanted)
    crossed = next(
        case
        for case in task.cases
        if "right with its own message, wrong with another document's: lcf" in case.kind
    )
    index = int(crossed.doc_id.split("-")[1])
    assert index in RIGHT["lcf", "matched"] and index not in RIGHT["lcf", "deranged"]
    assert [(a.method, a.control, a.score) for a in crossed.answers][2:] == [
        ("lcf", "matched", 1.0),
        ("lcf", "deranged", 0.0),
    ]
    (receiver,) = crossed.receiver_prompts  # the same text for all, said once
    assert (
        receiver.whose == "receiver; t2t, matched; lcf, matched; lcf, deranged"
        and receiver.text.startswith(f"Where is key {index}?")
    )
    assert [shown.whose for shown in crossed.sharer_prompts] == [
        "t2t, matched; lcf, matched",
        "lcf, deranged",
    ]
    said = {shown.whose: shown.text for shown in crossed.messages}
    assert said["t2t, matched"] == f"“orange box {EVIL}”, made for this document"
    assert (
        said["lcf, deranged"]
        == f"1,920 bytes in 4 layers of numbers, made for document splitfacts-{(index + 1) % N}"
    )


def test_files_without_prompts_say_so(tmp_path) -> None:
    for mode, right in (("receiver", range(9)), ("lcf", range(30))):
        file = tmp_path / record(tmp_path, mode, "matched", right) / "samples.parquet"
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["receiver_prompt", "sharer_prompt"]), file)
    old = read([tmp_path])
    assert {case.unrecorded for case in examples.examples(old)[0].cases} == {examples.UNRECORDED}
    assert f"The {examples.UNRECORDED}." in page.html(old)


def test_long_prompts_are_cut_and_unfinished_runs_read(tmp_path) -> None:
    record(tmp_path, "receiver", "matched", range(9), row={"receiver_prompt": "x" * 50_000})
    open_run = RunWriter.open(
        tmp_path,
        {"pair": "a:b", "mode": "lcf", "control": "matched", "task": "splitfacts", "scoring": "cloze"},
        {},
    )
    open_run.append(
        {
            "doc_hash": "splitfacts0",
            "doc_index": 0,
            "score": 0.0,
            "receiver_prompt": "half",
            "pair": report_runs.PAIR,
        }
    )
    open_run.close()
    found = read([tmp_path])
    (case,) = examples.examples(found)[0].cases
    assert (
        case.receiver_prompts[0].text.endswith("… (44,000 more characters)")
        and case.receiver_prompts[1].text == "half"
    )
    assert "not finished, 1 documents so far" in page.html(found)


def test_what_models_say_stays_text(html) -> None:
    """No prompt becomes markup, and only the page's own script may run."""
    seen = Visible(html)
    assert EVIL in seen.text and "49 |" not in seen.text
    assert seen.tags["script"] == 1 and "img" not in seen.tags and "onerror=alert(1)>{" not in html
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html


def test_hostile_names_stay_text(tmp_path) -> None:
    """Names of files, methods, tasks and adapters come from outside too."""
    evil = '"><svg onload=alert(1)>'
    manifest = {"gates": report_runs.GATES, "adapter": evil}
    for control in ("matched", "deranged"):
        record(tmp_path, evil, control, range(30), task="t" + evil.replace("/", ""), manifest=manifest)
    (tmp_path / "broken<b>.parquet").write_bytes(b"no parquet")
    made = page.html(read([tmp_path]))
    assert (
        "<svg onload" not in made
        and "broken<b>" not in made
        and made.count(">&lt;svg onload") + made.count("&gt;&lt;svg onload") > 10
    )


def test_nothing_is_fetched(html) -> None:
    links = Visible(html).links
    assert "#across" in links and all(link.startswith("#") and f'id="{link[1:]}"' in html for link in links)
    assert "@import" not in html and "url(" not in html


def test_provenance_says_once_what_is_shared(source) -> None:
    shared, table = provenance(source)
    common = dict(shared)
    assert (
        common["cpu"] == "AMD EPYC"
        and common["git commit"] == "c" * 40 + ", changed"
        and common["numpy"] == "2.4"
    )
    names = [head.text for head in table.heads]
    assert "cpu" not in names and "adapter" in names and "data sha256" in names and len(table.rows) == 7
    row = dict(zip(names, told(table)[0], strict=True))
    assert row["state"] == "complete" and row["documents"] == str(N) and len(row["data sha256"]) == 12


def test_unreadable_files_are_named_on_top(runs, tmp_path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    made = page.html(read([runs, tmp_path]))
    assert "torn.parquet: skipped" in made and made.index("torn.parquet") < made.index(
        "Does anything get across?"
    ) < made.index(">communicates<")


def test_markdown_is_whole_tables(source, tmp_path) -> None:
    made = text.markdown(source)
    for block in re.findall(r"(?:^\|.*\n)+", made, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block
    assert (
        made.count("\n| --- |") + made.count("\n| --- | --- |") >= 5
        and "| lcf | splitfacts cloze | communicates: matched 91.7" in made
    )
    assert (
        "- cpu: AMD EPYC" in made
        and "sharer 50" not in made
        and "| lcf | 50.0 | – | 10.0 | 80.0 | 60.0 | 200 | 5 |" in made
    )
    record(tmp_path, "a|b", "matched", range(3))
    assert "| a\\|b |" in text.markdown(read([tmp_path]))


def test_csv_is_the_summary(source) -> None:
    rows = list(csv.DictReader(io.StringIO(text.csv(source))))
    assert len(rows) == len(source.summary) == 7 and {row["task"] for row in rows} == {
        "splitfacts",
        "mmlu_redux",
    }
    assert float(
        next(row for row in rows if row["mode"] == "lcf" and row["control"] == "matched")["score"]
    ) == pytest.approx(55 / 60)


def test_the_command(runs, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, name in (([], "report.html"), (["--markdown"], "report.md"), (["--csv"], "report.csv")):
        code, out, _ = invoke(capsys, monkeypatch, "report", runs, *flags)
        assert (code, out.strip()) == (0, name) and (tmp_path / name).stat().st_size > 500
    first = (tmp_path / "report.html").read_bytes()
    assert (
        write_report([runs], tmp_path / "new" / "page.html", "html").read_bytes() == first
    )  # same runs, same bytes; folders are made
    assert write_report([runs], tmp_path / "new", "csv") == tmp_path / "new" / "report.csv"
    code, _, err = invoke(capsys, monkeypatch, "report", tmp_path / "nowhere")
    assert code == 2 and "no such file" in err and "Traceback" not in err


def test_a_folder_that_takes_no_files(runs, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report([runs], tmp_path / "file" / "report.html", "html")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_no_torch(runs, tmp_path) -> None:
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib'}"
    code = f"import sys; from pathlib import Path; from lcfbench.cli.analysis import write_report; \
write_report([Path({str(runs)!r})], Path({str(tmp_path / 'r.html')!r}), 'html'); \
found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
