"""planted: fixed people and towns, parts that share nobody, and prompts that tell nothing."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.document import NOTE
from lcfbench.tasks.planted import Settings, cities, rows, world
from lcfbench.tasks.task import Outcome, load_task

ROOT = Path(__file__).parents[2]


def people(n=1024):
    return {name: town for part in world(n).values() for name, town in part}


def test_the_world_never_changes():
    """A model has been taught these very facts: another world would make it worthless, silently."""
    digest = hashlib.sha256(json.dumps(world(1024)).encode()).hexdigest()
    assert digest == "f8b525cc45372da007fd6f568b15d0731c13226123bb4b654eb1e598d07b5528"
    sizes = {part: len(found) for part, found in world(1024).items()}
    assert sizes == {"train": 640, "validation": 64, "test": 192, "heldout": 96, "heldout-validation": 32}


@pytest.mark.parametrize("fewer", [1, 31, 32, 480, 1000])
def test_a_smaller_world_is_the_first_people_of_a_larger_one(fewer):
    small, large = world(fewer), world(1024)
    assert sum(map(len, small.values())) == fewer
    assert all(large[part][: len(found)] == found for part, found in small.items())


def test_no_part_shares_a_person_and_no_adapter_sees_a_held_out_town():
    assert len(people()) == 1024
    parts = ("train", "heldout", "heldout-validation")
    pools = [set(cities(part)) for part in parts]
    assert [len(pool) for pool in pools] == [111, 30, 10] and len(set.union(*pools)) == 151
    assert cities("train") == cities("validation") == cities("test")
    lived = {town for _, town in world(4096)["train"]}
    assert lived == pools[0]


@pytest.mark.parametrize("phrasing", ["live", "town", "city", "mixed"])
@pytest.mark.parametrize("choices", [2, 4, 10, 30])
@pytest.mark.parametrize(
    "values,split",
    [("trained", "train"), ("trained", "validation"), ("trained", "test"), ("held-out", "test")],
)
def test_documents_hold_the_towns_they_should(values, split, choices, phrasing):
    s = Settings(values=values, choices=choices, phrasing=phrasing)
    known, made = people(), rows(split, None, s)
    pool = set(cities(split if values == "trained" else "heldout"))
    for row in made:
        name = row["id"].rpartition("-")[2]
        assert known[name] == row["answer"] == row["answers"][row["gold"]]
        assert len(set(row["answers"])) == choices and set(row["answers"]) <= pool
        assert [f" {a}" for a in row["answers"]] == row["steps"][0]["choices"]
        assert name in row["receiver"] and name in row["stem"]
        assert not any(town in row["receiver"] + row["stem"] for town in row["answers"])
        assert row["noted"] == f"Notes: <<note>>\n{row['receiver']}"
    forms = Counter(row["receiver"].partition(row["id"].rpartition("-")[2])[0] for row in made)
    assert len(forms) == (3 if phrasing == "mixed" else 1)
    first = Counter(row["gold"] for row in made)
    assert max(first.values()) < len(made) / choices + 6 * (len(made) / choices) ** 0.5


def test_the_seed_draws_wrong_towns_and_order_alone_and_a_limit_takes_the_first():
    one, other = rows("test", None, Settings()), rows("test", None, Settings(seed=1))
    answers = [{row["id"]: row["answer"] for row in made} for made in (one, other)]
    assert answers[0] == answers[1] and list(answers[0]) != list(answers[1])
    changed = {r["id"]: r["answers"] for r in one} != {r["id"]: r["answers"] for r in other}
    assert changed and rows("test", 7, Settings()) == one[:7] == rows("test", None, Settings(n=7))


def test_the_same_in_another_process_with_another_hash_seed():
    code = (
        "import json; from lcfbench.tasks.planted import *; print(json.dumps(rows('test', 40, Settings())))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1 and json.loads(seen.pop()) == rows("test", 40, Settings())


def test_both_models_read_the_same_and_no_chat_template():
    for name in ("planted", "planted_heldout"):
        for d in load_task(name).documents(limit=5):
            assert d.shared and not d.chat and d.sharer == d.receiver == d.request == d.full
            who = d.doc_id.rpartition("-")[2]
            assert d.receiver.user == f"Question: Where does {who} live?\nAnswer:"
            assert d.receiver.prefix == d.noted.prefix == f"{who} lives in"
            assert d.noted.user == f"Notes: {NOTE}\n{d.receiver.user}" and d.steps[0].lead == ""


@pytest.mark.parametrize(
    "written,score",
    [
        (" {}.", 1),
        ("{}", 1),
        (" {} or Nowhere", 1),
        (' "{}"', 1),
        (" {stem} {}.", 1),
        (" Nowhere, not {}", 0),
        ("", 0),
        (" {}shire", 0),
        (" the", 0),
    ],
)
def test_a_written_answer_counts_by_its_first_word(written, score):
    task = load_task("planted")
    document = task.documents(limit=1, scoring="generate")[0]
    text = written.format(document.gold, stem=document.receiver.prefix)
    assert task.score(document, Outcome(text=text))["score"] == score


@pytest.mark.parametrize(
    "task,options,split,line",
    [
        ("planted", {"choices": "1"}, "test", "choices=1, and there are 111 trained towns"),
        ("planted", {"choices": "112"}, "test", "choices=112, and there are 111"),
        ("planted_heldout", {"choices": "31"}, "test", "choices=31, and there are 30 held-out towns"),
        ("planted_heldout", {"choices": "11"}, "validation", "the validation split has 10 towns"),
        ("planted", {"people": "0"}, "test", "people=0"),
        ("planted", {"people": "99999999"}, "test", "people=99999999"),
        ("planted", {"people": "20"}, "test", "none of people=20 are in the test split"),
        ("planted", {"n": "193"}, "test", "n=193, and 192 of people=1024 are in the test split"),
        ("planted", {"n": "-1"}, "test", "n=-1"),
        ("planted", {"people": "many"}, "test", "people"),
        ("planted", {"phrasing": "loud"}, "test", "phrasing"),
        ("planted_heldout", {"values": "trained"}, "test", "values"),
        ("planted_heldout", {}, "train", "has no train split"),
        ("planted", {"values": "held-out"}, "train", "values=held-out has no train split"),
    ],
)
def test_options_that_cannot_be_are_one_line(task, options, split, line):
    with pytest.raises(UserError) as error:
        load_task(task, options=options).documents(split=split)
    assert line in error.value.what and error.value.next_step


def test_all_towns_of_the_split_can_be_ranked():
    assert len(load_task("planted", options={"choices": "111"}).documents(limit=1)[0].steps[0].choices) == 111
    heldout = load_task("planted_heldout", options={"choices": "30"}).documents()
    assert len(heldout) == 96 and len(heldout[0].steps[0].choices) == 30


@pytest.mark.real
def test_every_town_is_one_token_to_both_models_of_the_embedded_pair():
    from lcfbench.models.tokenizers import load_tokenizers
    from lcfbench.sources.cache import EMBEDDED_PAIR

    for tokenizer in load_tokenizers(EMBEDDED_PAIR, offline=False):
        for part in ("train", "heldout", "heldout-validation"):
            for town in cities(part):
                assert len(tokenizer.encode(f" {town}", add_special_tokens=False)) == 1, town


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(people=5), "planted: none of people=5 are in the test split."),
        (Settings(people=64, n=99), "planted: n=99, and 12 of people=64 are in the test split."),
    ],
)
def test_too_few_people_are_said_in_a_whole_sentence(settings, said):
    with pytest.raises(UserError) as error:
        rows("test", None, settings)
    assert error.value.what == said
