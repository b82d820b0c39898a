"""LongBench: prompts, lengths and scores of each subset are the published ones."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from lcfbench.errors import UserError
from lcfbench.sources import hub
from lcfbench.tasks import longbench_metrics as metrics
from lcfbench.tasks.task import Outcome, load_task
from lcfbench.tasks.yaml_files import describe
from tests.hub_server import served
from tests.paper_rows import longbench, tables


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A mirror of invented rows."""
    for (repo, config, split), rows in tables().items():
        if repo == "THUDM/LongBench":
            path = tmp_path / "datasets" / repo / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows).to_parquet(path)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def asked(**options):
    task = load_task("longbench", offline=True, options={k: str(v) for k, v in options.items()})
    return task, {d.doc_id: d for d in task.documents()}


# -- documents -------------------------------------------------------------------------------------


def test_a_subset_has_its_prompt_length_and_chat(made):
    task, documents = asked()
    d = documents["id0"]
    assert d.receiver.user.startswith(
        "Answer the question based on the given passages. Only give me the answer"
    )
    assert "\nPassage 1:\nNumber 0 is Ann {input}.\n\n" in d.receiver.user  # braces of a text stay
    assert d.receiver.user.endswith("\n\nQuestion: Who is 0?\nAnswer:") and not d.receiver.prefix
    assert (d.max_new_tokens, d.until, d.chat, d.shared, d.gold) == (32, (), True, True, "Ann 0")
    assert d.sharer == d.full == d.receiver and d.receiver.user in d.request.user
    assert task.dropped == {"no answer": 1} and documents["id7"].gold == "Bo"
    assert [documents[f"id{i}"].subject for i in range(3)] == ["0-4k", "4-8k", "8k+"]
    _, dialogues = asked(subset="samsum")
    d = dialogues["id0"]
    assert (d.max_new_tokens, d.until, d.chat) == (128, ("\n",), False)
    task, extended = asked(subset="hotpotqa_e")
    assert set(extended) == {"id50", "id51", "id52"} and extended["id50"].max_new_tokens == 32
    assert task.lm_eval_task().config.dataset_name == "hotpotqa_e"


def test_an_answer_outside_of_the_classes_is_dropped(made):
    task, documents = asked(subset="trec")
    assert set(documents) == {"id0", "id2"} and task.dropped == {"an answer is none of the classes": 1}
    written = {"Food\nOther animal": 1, "\n\nFood": 1, "Drink\nFood": 0, "Food, animal": 0.5, "food": 0}
    for text, score in written.items():
        assert task.score(documents["id0"], Outcome(text=text))["score"] == score
    for text, score in {"Other animal": 1, "animal": 0, "Food or Other animal": 0.5}.items():
        assert task.score(documents["id2"], Outcome(text=text))["score"] == score


@pytest.mark.parametrize("words", [1, 2, 7, 20, 21])
def test_a_long_prompt_is_cut_in_its_middle(made, words):
    _, whole = asked()
    task, documents = asked(max_words=words)
    for key, d in documents.items():
        full, cut = whole[key].receiver.user.split(), d.receiver.user.split()
        assert len(cut) == words
        assert cut == full[: (words + 1) // 2] + full[len(full) - words // 2 :]
        assert d.hash != whole[key].hash and d.sharer == d.receiver
    assert asked(max_words=5000)[1]["id0"].receiver == whole["id0"].receiver
    assert task.options["max_words"] == words


def test_chinese_is_cut_by_characters(made):
    _, documents = asked(subset="multifieldqa_zh", max_words=30)
    text = documents["id0"].receiver.user
    assert (
        len("".join(text.split())) == 30
        and text.startswith("阅读以下文字并用中文简短回答：")
        and text.endswith("回答：")
    )


@pytest.mark.parametrize(
    "options", [{"subset": "hotpot"}, {"max_words": -1}, {"max_words": "all"}, {"answer_tokens": -2}]
)
def test_options_that_are_none_are_refused(made, options):
    with pytest.raises(UserError):
        asked(**options)


def test_the_options_of_the_file_are_the_subsets():
    choices = describe("longbench")["options"]["subset"]["choices"]
    load_task("longbench")
    module = sys.modules["lcfbench._tasks.longbench"]
    assert choices == module.NAMES and len(choices) == 21 + 13
    for subset in module.SUBSETS.values():
        assert subset.prompt.count("{context}") == 1 and subset.prompt.count("{input}") <= 1


def test_the_real_rows_are_asked_and_their_answers_score(mirror):
    counts = {
        "multifieldqa_zh": 120,
        "passage_retrieval_zh": 120,
        "qasper": 5,
        "2wikimqa": 8,
        "multi_news": 120,
    }
    for subset, count in counts.items():
        task, documents = asked(subset=subset)
        assert len(documents) == count and not task.dropped
        golds = [d.native["answers"][-1] for d in documents.values()]
        for d, gold, other in zip(documents.values(), golds, golds[1:], strict=False):
            assert task.score(d, Outcome(text=gold))["score"] == pytest.approx(1)
            if subset == "passage_retrieval_zh" and other != gold:
                assert task.score(d, Outcome(text=other))["score"] == 0
            if subset == "multi_news":
                break  # its ROUGE takes seconds a document


# -- scores, by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "text", "gold", "expected"),
    [
        (metrics.token_f1, "The Eiffel Tower.", "eiffel tower", 1),
        (metrics.token_f1, "yes", "yes", 1),
        (metrics.token_f1, "yes it is", "yes", 0.5),
        (metrics.token_f1, "Ann Ann", "Ann", 2 / 3),
        (metrics.token_f1, "", "Ann", 0),
        (metrics.token_f1, "the", "a", 0),
        (metrics.token_f1_zh, "厦门大学", "厦门大学。", 1),
        (metrics.token_f1_zh, "在厦门大学！", "厦门大学", 2 / 3),
        (metrics.token_f1_zh, "南京", "厦门", 0),
        (metrics.token_f1_zh, "。！", "厦门", 0),
        (metrics.rouge_l, "a b c", "a b c", 1),
        (metrics.rouge_l, "a c", "a b c", 0.8),
        (metrics.rouge_l, "c b a", "a b c", 1 / 3),
        (metrics.rouge_l, "a b. c d", "c d. a b", 1),
        (metrics.rouge_l, "a a a b", "a b", 1),  # distinct words
        (metrics.rouge_l, "x y", "a b", 0),
        (metrics.rouge_l, "", "a b", 0),
        (metrics.rouge_l, "...", "a b", 0),
        (metrics.rouge_l_zh, "会议总结", "会议总结", 1),
        (metrics.rouge_l_zh, "讨论了会议", "会议", 0.5),
        (metrics.retrieval, "Paragraph 7", "Paragraph 7", 1),
        (metrics.retrieval, "7", "Paragraph 7", 1),
        (metrics.retrieval, "Paragraph 7 or 8", "Paragraph 7", 0.5),
        (metrics.retrieval, "Paragraph 17", "Paragraph 7", 0),
        (metrics.retrieval, "none", "Paragraph 7", 0),
        (metrics.retrieval, "答案是段落27", "段落27", 1),
        (metrics.count, "There are 12.", "12", 1),
        (metrics.count, "12 of 30 are 12", "12", 2 / 3),
        (metrics.count, "twelve", "12", 0),
        (metrics.code_similarity, "x = 1", "x = 1", 1),
        (metrics.code_similarity, "\n# a comment\nx = 1\ny = 2", "x = 1", 1),
        (metrics.code_similarity, "```python\n// c\nx = 2", "x = 1", 0.8),
        (metrics.code_similarity, "", "x = 1", 0),
        (metrics.code_similarity, "```", "x = 1", 0),
        (metrics.code_similarity, "abcd", "bcde", 0.75),
    ],
)
def test_the_published_scores(score, text, gold, expected):
    assert score(text, gold, ()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "gold", "classes", "expected"),
    [
        ("Type: City", "City", ["City", "State"], 1),
        ("City or State", "City", ["City", "State"], 0.5),
        ("Other city", "Other city", ["city", "Other city"], 1),
        ("Other city", "city", ["city", "Other city"], 0.5),
        ("a big Other city", "Other city", ["city", "Other", "Other city"], 0.5),  # the loop skips "Other"
        ("nothing", "City", ["City"], 0),
    ],
)
def test_the_published_rule_of_classes(text, gold, classes, expected):
    assert metrics.class_accuracy(text, gold, classes) == expected


def test_long_texts_are_scored():
    words = " ".join(f"w{i}" for i in range(1500))
    assert metrics.rouge_l(words, words) == pytest.approx(1)


# -- from the Hub ----------------------------------------------------------------------------------


def test_the_hubs_archive_gives_the_rows(tmp_path, monkeypatch):
    rows = [longbench(i) | {"context": "a\u2028b"} for i in range(3)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("hotpotqa_e", "hotpotqa"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            archive.writestr(f"data/{name}.jsonl", text)
    with served(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        files = {
            "LongBench.py": b"import datasets\n",
            "data.zip": packed.getvalue(),
            "README.md": b"# LongBench\n",
        }
        about = {"branches": {"main": "1" * 40}, "commits": {"1" * 40: files}, "tags": {}, "private": False}
        server.repos["datasets/THUDM/LongBench"] = about
        task, documents = asked_online("hotpotqa_e")
        assert set(documents) == {"id0", "id1", "id2"} and "a\u2028b" in documents["id0"].receiver.user
        kept = tmp_path / "cache" / "datasets" / "THUDM" / "LongBench" / "hotpotqa_e"
        assert [path.name for path in kept.iterdir()] == ["test-00000-of-00001.parquet"]
        with pytest.raises(hub.HubError, match=r"no trec\.jsonl"):
            hub.fetch_dataset("THUDM/LongBench", "trec", "test", False)


def asked_online(subset):
    task = load_task("longbench", options={"subset": subset})
    return task, {d.doc_id: d for d in task.documents()}
