"""splitfacts: deterministic, disjoint, and at chance for the receiver alone by construction."""

import collections
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.splitfacts import CITIES, Settings, rows, vocabulary

ROOT = Path(__file__).parents[2]


def boxes(row):
    """(word, city) of each box in the receiver's notes, in the notes' order."""
    return re.findall(r"The (\w+) box is in (\w+)\.", row["receiver"])


def test_a_document_reads_as_the_protocol_says():
    for row in rows("test", 50, Settings()):
        name = re.fullmatch(r"The key of (\w+) is in the", row["stem"])[1]
        word = re.search(rf"The key of {name} is in the (\w+) box\.", row["sharer"])[1]
        assert dict(boxes(row))[word] == row["answer"]
        assert row["sharer"].endswith(f"\nQuestion: In which city is the key of {name}?\nAnswer:")
        assert word not in row["receiver"].partition("\nQuestion")[2] and row["answer"] not in row["sharer"]
        first, second = row["steps"]
        assert first["choices"][first["gold"]] == f" {word}" and sorted(
            c.strip() for c in first["choices"]
        ) == sorted(dict(boxes(row)))
        assert second["choices"][second["gold"]] == f" {row['answer']}"
        assert second["lead"].format(word) == f" {word} box. The {word} box is in"
        assert row["answers"][row["gold"]] == f"{word} box. The {word} box is in {row['answer']}."
        assert (
            row["noted"].startswith("Notes: <<note>> The ")
            and row["noted"].replace("<<note>> ", "") == row["receiver"]
        )


def test_the_same_in_another_process_with_another_hash_seed():
    code = "import json; from lcfbench.tasks.splitfacts import *;"
    code += "print(json.dumps(rows('test', 40, Settings(seed=3, keys=2))))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1 and json.loads(seen.pop()) == rows("test", 40, Settings(seed=3, keys=2))


def test_splits_and_seeds_do_not_overlap_and_a_longer_run_contains_a_shorter():
    test, train, other = (
        rows("test", 300, Settings()),
        rows("train", 3000, Settings()),
        rows("test", 300, Settings(seed=1)),
    )
    assert rows("test", 20, Settings()) == test[:20]
    for more in (train, other, rows("validation", 300, Settings())):
        assert not {r["receiver"] for r in test} & {r["receiver"] for r in more}
        assert not {r["id"] for r in test} & {r["id"] for r in more}


def test_half_of_the_evidence_is_worth_nothing():
    """Positions in notes and choices, the word and the city tell nothing about the gold box (chance 1/3)."""
    made = rows("test", 6000, Settings(words="30"))
    half = len(made) // 2
    rules = {
        **{f"note {i}": lambda r, i=i: boxes(r)[i][1] for i in range(3)},
        **{f"choice {i}": lambda r, i=i: r["steps"][1]["choices"][i].strip() for i in range(3)},
        **{
            f"word choice {i}": lambda r, i=i: dict(boxes(r))[r["steps"][0]["choices"][i].strip()]
            for i in range(3)
        },
    }
    for name, rule in rules.items():
        hit = sum(rule(r) == r["answer"] for r in made) / len(made)
        assert abs(hit - 1 / 3) < 4 * (2 / 9 / len(made)) ** 0.5, (name, hit)
    for column in (0, 1):  # the best prior over words, or cities, learnt on one half and used on the other
        right, seen = collections.Counter(), collections.Counter()
        for r in made[:half]:
            for pair in boxes(r):
                seen[pair[column]] += 1
                right[pair[column]] += pair[1] == r["answer"]
        hit = (
            sum(
                max(boxes(r), key=lambda p: right[p[column]] / (seen[p[column]] or 1))[1] == r["answer"]
                for r in made[half:]
            )
            / half
        )
        assert abs(hit - 1 / 3) < 4 * (2 / 9 / half) ** 0.5, (column, hit)


def test_the_sharer_alone_does_not_know_the_city():
    assert all(not set(CITIES) & set(re.findall(r"\w+", r["sharer"])) for r in rows("test", 500, Settings()))


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("phrasing", ["template", "paraphrase"])
@pytest.mark.parametrize("answer_set", ["notes", "all"])
def test_every_parameter_changes_what_it_says(hops, phrasing, answer_set):
    settings = Settings(
        hops=hops,
        phrasing=phrasing,
        answer_set=answer_set,
        keys=2,
        boxes=4,
        distractors=2,
        receiver_distractors=1,
        distance=3,
    )
    for row in rows("test", 30, settings):
        assert len(row["steps"]) == hops
        assert all(
            len(s["choices"]) == len(set(s["choices"])) == (4 if answer_set == "notes" else 24)
            for s in row["steps"]
        )
        notes = row["sharer"].partition("\nQuestion")[0]
        assert notes.count("key") == 2 and notes.count(".") == 2 + 2 + 3
        assert row["receiver"].partition("\nQuestion")[0].count(".") == 4 + (4 if hops == 3 else 0) + 1 + 3
        assert (
            ("The key of" in notes) == (phrasing == "template")
            or "lies the key of" in notes
            or "find the key" in notes
        )
        assert len(row["answers"]) == len(row["steps"][-1]["choices"]) and row["answers"][row["gold"]].rstrip(
            "."
        ).split()[-1] in (row["answer"], "box")
        picked: list[str] = []
        for step in row["steps"]:
            step["lead"].format(*picked)  # names only earlier picks
            picked.append(step["choices"][step["gold"]].strip())


def test_with_two_keys_the_name_decides():
    for row in rows("test", 50, Settings(keys=2, boxes=2)):
        found = re.findall(r"The key of (\w+) is in the (\w+) box", row["sharer"].partition("\n")[0])
        assert len(dict(found)) == len({w for _, w in found}) == 2


def test_vocabularies_are_disjoint_and_of_the_promised_size():
    trained, held = vocabulary("trained"), vocabulary("held-out")
    assert (len(trained), len(set(trained)), len(held), len(set(held))) == (4000, 4000, 200, 200)
    assert not set(trained) & set(held) and vocabulary("25") == trained[:25]
    assert all(re.fullmatch(r"[a-z]{3,}", w) for w in (*trained, *held))
    made = rows("test", 300, Settings(distance=5, phrasing="paraphrase", hops=3))
    text = " ".join(re.sub(r"\b\w+ box\b", "", r["sharer"] + r["receiver"]) for r in made)
    used = set(re.findall(r"(?<!\w)[a-z]{3,}", text))  # invented names are capitalised
    assert used & {*trained, *held} == set()  # no box is called like anything else in the notes


def test_held_out_words_appear_only_in_the_held_out_task():
    used = {w for r in rows("test", 300, Settings(words="held-out")) for w, _ in boxes(r)}
    assert used <= set(vocabulary("held-out")) and len(used) > 150


BAD = "n=0 hops=4 boxes=1 boxes=25 keys=4 distractors=-1 distance=99 phrasing=x answer_set=x"
BAD += " words=x words=0 words=5000 words=2"


@pytest.mark.parametrize("bad", BAD.split())
def test_settings_that_make_no_sense_are_user_errors(bad):
    with pytest.raises(UserError) as caught:
        name, _, value = bad.partition("=")
        Settings(**{name: value if name in ("phrasing", "answer_set", "words") else int(value)})
    assert caught.value.next_step


def test_generating_is_fast():
    start = time.perf_counter()
    rows("train", 2000, Settings(seed=random.randrange(10**6)))
    assert time.perf_counter() - start < 1.5  # 2,000 take 0.1 s on an idle core


def test_words_are_single_tokens_of_the_embedded_pair():
    folder = os.environ.get(
        "LCFBENCH_TEST_TOKENIZERS", ""
    )  # folders of the two models' tokenizers, separated by ":"
    if not folder:
        pytest.skip("LCFBENCH_TEST_TOKENIZERS names no tokenizers of the embedded pair")
    from transformers import AutoTokenizer

    for path in folder.split(":"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        words = [*vocabulary("trained"), *vocabulary("held-out"), *CITIES]
        assert [w for w in words if len(tokenizer.encode(" " + w, add_special_tokens=False)) != 1] == []


def test_the_test_split_is_generated_once_a_seed(monkeypatch):
    """Its digest, lm-eval's task and the documents take the same rows; another seed has its own."""
    from lcfbench.tasks.task import load_task

    task = load_task("splitfacts", options={"n": "40"})
    made = []
    generator = task._extra["generator"]
    monkeypatch.setitem(
        task._extra, "generator", lambda *a, **k: (made.append(k["seed"]), generator(*a, **k))[1]
    )
    digest, documents = task.data_sha256, task.documents(limit=10)
    assert made == [0] and len(documents) == 10 and len(task.documents()) == 40
    assert [d.hash for d in documents] == [
        d.hash for d in load_task("splitfacts", options={"n": "40"}).documents(limit=10)
    ]
    other = task.reseeded(1)
    assert other.data_sha256 != digest and made == [0, 1] and task.data_sha256 == digest
    assert other.documents(limit=1)[0].hash != documents[0].hash and made == [0, 1]
