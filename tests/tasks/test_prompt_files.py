"""Prompt files: what they replace, what is refused in one line, and that the wording is recorded."""

from __future__ import annotations

import json
import os

import pytest

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
from lcfbench.analysis.tables import summary_tables, verdict_tables
from lcfbench.errors import UserError
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.tasks.document import NOTE
from lcfbench.tasks.prompt_files import read_prompt
from lcfbench.tasks.task import Outcome, load_task
from tests.helpers import rows, run_recipe, save_pair

WHOLE = """{# a wording of our own #}
{% block prompt %}
One letter, please.
{{question}}
{% for option in options %}{{letters[loop.index0]}}) {{option}}
{% endfor %}{% endblock %}
{% block prefix %}The answer is{% endblock %}
{% block request %}What helps with: {{question}}{% endblock %}
{% block noted %}Know that {{ note }}.
{{seen}}{% endblock %}
{% block parse %}<([^<>]*)>{% endblock %}
{% block until %}
Question:
END
{% endblock %}
{% block max_new_tokens %}12{% endblock %}
"""


@pytest.fixture
def table(tmp_path):
    """A task of one's own with four options."""
    path = tmp_path / "cities.jsonl"
    choices = ["Paris", "London", "Rome", "Berlin"]
    lines = [
        {"question": f"Which city is number {i}?", "choices": choices, "answer": choices[i % 4]}
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def written(tmp_path, text, name="p.jinja"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def asked(table, prompt, **more):
    return load_task(table, prompt=prompt).documents(limit=1, **more)[0]


def test_a_file_without_blocks_is_the_prompt(tmp_path, table):
    made = asked(table, written(tmp_path, "Only {{question}}\n\n"), scoring="letters")
    assert made.receiver.user == f"Only {made.native['question']}\n" and made.receiver.prefix == ""
    assert made.sharer == made.receiver and made.hash != asked(table, None, scoring="letters").hash


def test_blocks_replace_prompt_request_and_parse_rule(tmp_path, table):
    task = load_task(table, prompt=written(tmp_path, WHOLE))
    made = task.documents(limit=1)[0]
    assert (made.scoring, made.until, made.max_new_tokens) == ("generate", ("Question:", "END"), 12)
    assert (
        made.receiver.user.startswith("One letter, please.\nWhich city") and "A) Paris" in made.receiver.user
    )
    assert made.receiver.prefix == "The answer is"
    assert made.request.user == f"What helps with: {made.native['question']}"
    assert made.noted.user.startswith(f"Know that {NOTE}.\nOne letter")
    gold, text = made.native["letter"], made.native["options"][made.native["gold"]]
    for answer, score, parsed in (
        (f"I say <{gold}>", 1.0, 1.0),
        (f"<{text}> it is", 1.0, 1.0),
        (f"The answer is {gold}.", 0.0, 0.0),
        ("<none>", 0.0, 0.0),
    ):
        found = task.score(made, Outcome(text=answer))
        assert (found["score"], found["parsed"]) == (score, parsed)
        assert found["parsed_by"] == ("pattern" if parsed else "unread")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{# nothing #}", "is empty"),
        ("{% block prompt %}{% endblock %}", "is empty"),
        ("one\n{{question", "line 2"),
        ("one\n\n{% for x in %}", "line 3"),
        ("{% block prompt %}x", "line 1"),
        ("{% block promt %}x{% endblock %}", "prompt"),
        ("{% block prompt %}x{% endblock %}{% block prompt %}y{% endblock %}", "stands twice"),
        ("{% block prompt %}x{% endblock %} more", "outside of its blocks"),
        ("{% block parse %}({% endblock %}", "no regular expression"),
        ("{% block parse %}abc{% endblock %}", "has no group"),
        ("{% block parse %}(a+)+$(b){% endblock %}", "seconds"),
        ("{% block max_new_tokens %}many{% endblock %}", "max_new_tokens"),
        ("{% block max_new_tokens %}0{% endblock %}", "max_new_tokens"),
        ("{% block noted %}no place{% endblock %}", "must hold"),
        ("{% block sharer %}x{% endblock %}", "read the same"),
        ("{{nosuch}}", "names nosuch"),
        ("{{question.nosuch.more}}", "nosuch"),
        ("{{ 'a' * 100000000 }}", "1,000,000 characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ('{{question}} {% include "more.jinja" %}', "another file, 'more.jinja'"),
        ("{% if question == '' %}x{% endif %}", "empty"),
        ("x" * 200_000, "100,000"),
    ],
)
def test_a_wording_that_cannot_be_used_is_one_line(tmp_path, table, text, said):
    with pytest.raises(UserError) as caught:
        asked(table, written(tmp_path, text))
    assert said in caught.value.what and "\n" not in str(caught.value)


def test_a_missing_field_lists_those_that_are_there(tmp_path, table):
    with pytest.raises(UserError) as caught:
        asked(table, written(tmp_path, "{{nosuch}}"))
    assert "question" in caught.value.next_step and "options" in caught.value.next_step


@pytest.mark.parametrize("text", ["{{question.nosuch.more}}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}"])
def test_a_packaged_task_names_the_document_that_fails(tmp_path, text):
    with pytest.raises(
        UserError, match=r"prompt p.jinja, splitfacts, document|prompt p.jinja names question"
    ):
        load_task("splitfacts", prompt=written(tmp_path, text)).documents(limit=1)


def test_files_that_are_none(tmp_path, table):
    (tmp_path / "binary.jinja").write_bytes(b"\x00\xff\xfe")
    os.symlink(tmp_path / "loop.jinja", tmp_path / "loop.jinja")
    for name in ("gone.jinja", "binary.jinja", "loop.jinja", "."):
        with pytest.raises(UserError):
            load_task(table, prompt=str(tmp_path / name))
    with pytest.raises(UserError, match="has no prompts by name"):
        load_task(table, prompt="c2c")
    with pytest.raises(UserError, match="lm-eval's own prompt"):
        load_task("lm-eval/hellaswag", prompt="c2c")


def test_a_task_names_prompts_of_its_own(tmp_path, table):
    task = tmp_path / "own.yaml"
    task.write_text(
        f"dataset_path: {table}\nmetadata:\n  prompts:\n    short: '{{{{question}}}}'\n"
        "    long: {prompt: 'Say: {{question}}', prefix: 'It is'}\n"
    )
    short, long = (asked(str(task), name, scoring="letters") for name in ("short", "long"))
    assert short.receiver.user == short.native["question"]
    assert (long.receiver.user, long.receiver.prefix) == (f"Say: {long.native['question']}", "It is")
    with pytest.raises(UserError, match="shrot") as caught:
        load_task(str(task), prompt="shrot")
    assert "short" in str(caught.value)


def test_the_digest_is_of_the_wording_not_of_the_file():
    same, other = read_prompt("{{question}}\n", "a"), read_prompt("{{question}}", "b")
    assert same.sha256 == other.sha256 != read_prompt("{{question}}!", "a").sha256


def test_runs_record_the_wording_and_what_was_read(tmp_path, table):
    pair = save_pair(tmp_path)
    folders = []
    for prompt in (None, written(tmp_path, WHOLE)):
        more = {"prompt": prompt} if prompt else {}
        folders += run_recipe(
            pair,
            tmp_path / "out",
            task=[table],
            mode=["receiver", "t2t"],
            control=["matched"],
            scoring="generate",
            limit=4,
            **more,
        )
    manifests = [Manifest.lenient(read_manifest(folder), folder)[0] for folder in folders]
    plain, worded = manifests[0], manifests[-1]
    assert "prompt_sha256" not in plain.identity and plain.prompt is None
    assert worded.prompt == WHOLE and worded.identity["prompt_sha256"] == read_prompt(WHOLE, "x").sha256
    for folder in folders:
        for row in rows(folder):
            assert row["parsed"] in (True, False) and row["parsed_by"]
    lines = summarise(read_run_groups([tmp_path / "out"]).groups)
    assert lines["unparsed"].between(0, 1).all() and (lines["unparsed"] > 0).any()
    for tables in (summary_tables(lines), verdict_tables(lines, 0.02)):
        assert any("could not be read" in text for found in tables for _, text in found.remarks)
        assert any("% unread)" in str(row) for found in tables for row in found.rows)
