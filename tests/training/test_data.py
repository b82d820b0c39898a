"""Mixtures of tasks and chat data sets: parsed, drawn, dropped and repeated documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import target
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.methods.load_pair import Pair
from lcfbench.models.answering import answer_loss
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, Step, View
from lcfbench.tasks.prompts import render
from lcfbench.training.chat import Chat
from lcfbench.training.data import Source, examples, parse_source, turns
from tests import helpers
from tests.helpers import random_adapter as fused

HUMAN = [
    ("human", "What is copper?"),
    ("gpt", "A metal."),
    ("human", "Does it conduct heat?"),
    ("gpt", "It does."),
]


def conversation(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def keep(root, name: str, rows: list[dict], config: str = "default") -> str:
    path = root / "datasets" / name / config / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(path)
    return name


@pytest.fixture
def made(tmp_path, monkeypatch):
    """An empty mirror, and no way out of it."""
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture(scope="module")
def ends() -> tuple[CausalLM, CausalLM]:
    """A receiver with a chat template and a sharer without, as in the embedded pair."""
    receiver = helpers.causal_lm("tiny-a", chat=True, layers=4)
    sharer = helpers.causal_lm(
        "tiny-b", bos=True, family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=1
    )
    return receiver, sharer


def draw(ends, *texts: str, count: int, **more) -> list[Document]:
    return examples(
        [parse_source(t) for t in texts],
        count=count,
        seed=more.pop("seed", 0),
        pair=Pair(*ends, ("a", "b")),
        offline=True,
        **more,
    )


# -- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("splitfacts", Source("task", "splitfacts")),
        (" splitfacts * 2.5 ", Source("task", "splitfacts", None, 2.5)),
        ("chat:a/b", Source("chat", "a/b")),
        ("chat:a/b:c_3k*4", Source("chat", "a/b", "c_3k", 4.0)),
    ],
)
def test_sources_are_read(text, source):
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*2",
        "a*",
        "a*two",
        "a*0",
        "a*-1",
        "a*nan",
        "a*inf",
        "a*1*2",
        "a:b",
        "chat:",
        "chat:a/b:",
        "chat:a:b:c",
    ],
)
def test_sources_that_are_none(text):
    with pytest.raises(UserError, match=r"weight|source|data set"):
        parse_source(text)


@pytest.mark.parametrize(
    ("weights", "count", "shares"),
    [
        ([1, 1], 7, [4, 3]),
        ([3, 1], 8, [6, 2]),
        ([1000, 1, 1], 10, [8, 1, 1]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([0.1, 0.2, 0.7], 1001, [100, 200, 701]),
        ([2, 1, 3], 120, [40, 20, 60]),
    ],
)
def test_turns_follow_the_weights_and_no_source_is_left_out(weights, count, shares):
    order = turns(weights, count)
    assert [order.count(place) for place in range(len(weights))] == shares
    for fewer in range(count):
        assert turns(weights, fewer) == order[:fewer]
        for place, weight in enumerate(weights):
            assert abs(order[:fewer].count(place) - weight / sum(weights) * fewer) <= 2


def test_fewer_examples_are_the_first_of_more(made, ends):
    keep(made, "made/small", numbered(10))
    sources = ("splitfacts*2", "chat:made/small")
    many = [d.hash for d in draw(ends, *sources, count=90)]
    for count in (1, 7, 30, 89):
        assert [d.hash for d in draw(ends, *sources, count=count)] == many[:count]
    small = [d.hash for d in draw(ends, "chat:made/small", count=30)]
    passes = [small[i : i + 10] for i in (0, 10, 20)]
    assert len({tuple(each) for each in passes}) == 3 and len({frozenset(each) for each in passes}) == 1


# -- chats ----------------------------------------------------------------------------------------


def one(root, row: dict, **more) -> Document | Counter:
    chat = Chat(keep(root, "made/one", [row]), offline=True, **more)
    return next(chat.documents(0), chat.dropped)


@pytest.mark.parametrize(
    "row",
    [
        conversation(("system", "Be brief."), *HUMAN),
        conversation(*HUMAN, ("human", "Thanks.")),  # what follows the last answer is left out
        {
            "messages": [
                {"role": {"human": "user", "gpt": "assistant"}[r], "content": f" {t}\n"} for r, t in HUMAN
            ]
        },
    ],
)
def test_the_last_assistant_turn_is_the_answer(made, row):
    d = one(made, row)
    assert d.gold == "It does." and d.receiver == d.sharer == d.full
    assert d.receiver == View(
        "Does it conduct heat?", "", (("user", "What is copper?"), ("assistant", "A metal."))
    )
    assert (
        d.shared
        and d.chat
        and d.scoring == "generate"
        and not d.steps
        and d.task == "chat:made/one"
        and d.doc_id == "0"
    )


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"prompt": "Who?", "response": "Me.", "id": 3}, "Who?"),
        ({"instruction": "Add.", "input": "1, 2", "output": "Me."}, "Add.\n\n1, 2"),
        ({"instruction": "Add.", "context": "", "response": "Me.", "category": "x"}, "Add."),
        ({"question": "Who?", "answer": "Me."}, "Who?"),
    ],
)
def test_pairs_of_columns(made, row, question):
    d = one(made, row, ending="\n")
    assert (d.receiver, d.gold) == (View(f"{question}\n"), "Me.")


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        (HUMAN[:1], "no assistant turn"),
        ([], "no assistant turn"),
        ([HUMAN[0], HUMAN[2], HUMAN[3]], "turns do not alternate"),
        (HUMAN[1:2], "turns do not alternate"),
        ([("human", " "), HUMAN[1]], "an empty turn"),
        ([HUMAN[0], ("gpt", "")], "an empty turn"),
        ([HUMAN[0], ("tool", "42"), HUMAN[1]], "turns do not alternate"),
    ],
)
def test_rows_that_make_no_document_are_counted(made, turns, why):
    chat = Chat(keep(made, "made/some", [conversation(*turns)] + [conversation(*HUMAN)] * 9), offline=True)
    assert len(list(chat.documents(0))) == 9 and chat.dropped == {why: 1}


def test_data_sets_without_assistant_turns(made, ends):
    keep(made, "made/books", [{"title": "Moby", "text": "Call me"}])
    with pytest.raises(UserError, match=r"made/books has no assistant turns: its columns are title, text\."):
        draw(ends, "chat:made/books", count=2)
    keep(made, "made/mute", [conversation(("human", "Hello?"))] * 50)
    with pytest.raises(
        UserError,
        match=r"made/mute has no assistant turns .*columns conversations; roles user; "
        ".*no assistant turn': 50",
    ):
        draw(ends, "chat:made/mute", count=2)
    with pytest.raises(UserError, match="cannot find split 'train' of config 'default' of 'made/nothing'"):
        draw(ends, "chat:made/nothing", count=2)


def numbered(n: int) -> list[dict]:
    return [conversation(("human", f"What is {i}?"), ("gpt", f"It is {i}.")) for i in range(n)]


@pytest.mark.parametrize(
    ("n", "first", "train", "held_out"),
    [(250, 500, 248, 2), (250, 199, 198, 1), (99, 500, 99, 0), (100, 500, 99, 1)],
)
def test_every_hundredth_row_is_held_out(made, n, first, train, held_out):
    name = keep(made, "made/many", numbered(n))
    ids = {
        s: [int(d.doc_id) for d in Chat(name, split=s, first=first, offline=True).documents(1)]
        for s in ("train", "validation")
    }
    assert (len(ids["train"]), len(ids["validation"])) == (train, held_out)
    assert sorted(ids["train"] + ids["validation"]) == list(range(min(n, first))) and all(
        i % 100 == 99 for i in ids["validation"]
    )
    assert ids["train"] != sorted(ids["train"])  # an order of the seed's


def test_only_what_is_drawn_becomes_documents(made, ends, monkeypatch):
    keep(made, "made/large", numbered(3000))
    count, plain = [], Chat._document
    monkeypatch.setattr(Chat, "_document", lambda *a: count.append(1) or plain(*a))
    assert len({d.doc_id for d in draw(ends, "chat:made/large", count=20)}) == 20 and len(count) == 20


# -- mixtures -------------------------------------------------------------------------------------


def test_a_mixture_has_its_shares_and_repeats_only_what_runs_out(made, ends):
    keep(made, "made/small", numbered(10))
    keep(made, "made/other", numbered(90), "part")
    said: list[str] = []
    drawn = draw(
        ends, "splitfacts*2", "chat:made/small", "chat:made/other:part*3", count=120, say=said.append
    )
    by_task = {
        t: Counter(d.doc_id for d in drawn if d.task == t)
        for t in ("splitfacts", "chat:made/small", "chat:made/other")
    }
    assert {t: n.total() for t, n in by_task.items()} == {
        "splitfacts": 40,
        "chat:made/small": 20,
        "chat:made/other": 60,
    }
    assert {t: (len(n), set(n.values())) for t, n in by_task.items()} == {
        "splitfacts": (40, {1}),
        "chat:made/small": (10, {2}),
        "chat:made/other": (60, {1}),
    }
    assert said == ["chat:made/small: 10 documents, repeated to 20."]
    assert [d.task for d in drawn[:40]] != ["splitfacts"] * 40  # shuffled
    again, other = (
        draw(ends, "splitfacts*2", "chat:made/small", "chat:made/other:part*3", count=120, seed=s)
        for s in (0, 1)
    )
    assert [d.hash for d in again] == [d.hash for d in drawn] != [d.hash for d in other]
    with pytest.raises(UserError, match="named twice"):
        draw(ends, "splitfacts", "splitfacts*2", count=4)
    with pytest.raises(UserError, match="Did you mean splitfacts"):
        draw(ends, "splitfact", count=4)
    with pytest.raises(UserError, match="no train split"):
        draw(ends, "splitfacts_heldout", count=4)


def test_scoring_goes_to_the_tasks_that_know_it(made, ends):
    keep(made, "made/small", numbered(10))
    drawn = draw(
        ends, "splitfacts", "chat:made/small", count=20, scoring="cloze", task_options={"boxes": "4"}
    )
    assert {(d.task, d.scoring) for d in drawn} == {("splitfacts", "cloze"), ("chat:made/small", "generate")}
    assert all(len(d.steps[0].choices) == 4 for d in drawn if d.steps)


def test_long_documents_are_dropped_and_counted(made, ends):
    rows = numbered(20)
    rows[3]["conversations"][0]["value"] = "What is heat? " * 200  # the receiver's prompt
    rows[4]["conversations"][1]["value"] = "It is copper. " * 200  # the answer
    keep(made, "made/long", rows)
    said: list[str] = []
    drawn = draw(ends, "chat:made/long", count=18, max_tokens=300, say=said.append)
    assert {d.doc_id for d in drawn} == {str(i) for i in range(20)} - {"3", "4"}
    assert said == ["chat:made/long: dropped 2 (longer than 300 tokens)."]
    assert (
        len({d.doc_id for d in draw(ends, "chat:made/long", count=18, max_tokens=9999)}) == 18
    )  # the models themselves read 512
    with pytest.raises(
        UserError, match=r"chat:made/long: nothing to train on \(20 \(longer than 5 tokens\)\)"
    ):
        draw(ends, "chat:made/long", count=18, max_tokens=5)


def test_prompt_and_answer_count_together(made, ends):
    keep(made, "made/talk", [conversation(*HUMAN)])
    (d,) = draw(ends, "chat:made/talk", count=1)
    prompt = render(d.receiver, ends[0].tokenizer, chat=True, choices=False)
    size = len(prompt.ids) + len(target(d, prompt, ends[0].tokenizer, 2)[0])
    assert draw(ends, "chat:made/talk", count=1, max_tokens=size) == [d]
    with pytest.raises(UserError, match=f"longer than {size - 1} tokens"):
        draw(ends, "chat:made/talk", count=1, max_tokens=size - 1)


def test_a_task_is_asked_for_more_when_documents_are_too_long(made, ends):
    def size(d):
        prompt = render(d.receiver, ends[0].tokenizer, chat=False, choices=True)
        return len(prompt.ids) + len(target(d, prompt, ends[0].tokenizer, 2)[0])

    middle = sorted(map(size, draw(ends, "splitfacts", count=16)))[8]
    said: list[str] = []
    drawn = draw(ends, "splitfacts", count=16, max_tokens=middle, say=said.append)
    assert len({d.hash for d in drawn}) == 16 and max(map(size, drawn)) <= middle
    assert len(said) == 1 and said[0].startswith("splitfacts: dropped ")


# -- views with a history -------------------------------------------------------------------------


def test_hashes_of_documents_without_history_are_what_they_were():
    v, w = View("Who?", "Answer:"), View("x")
    assert (
        Document("t", "1", v, w, v, w, v, "letters", "B", steps=(Step((" A", " B"), (1,)),)).hash
        == "0f18f9b026d8a88d"
    )
    written = Document("t", "2", v, v, v, v, v, "generate", "é")
    assert written.hash == "706c0748d5ad06e9"
    told = [
        replace(written, receiver=replace(v, history=h)).hash
        for h in ((("user", "Hi"),), (("assistant", "Hi"),))
    ]
    assert len({written.hash, *told}) == 3


def test_a_history_stands_before_the_question(ends):
    tokenizer = ends[0].tokenizer
    view = View("Does it conduct heat?", "", (("user", "What is copper?"), ("assistant", "A metal.")))
    shown = render(view, tokenizer, chat=True, choices=False)
    messages = [{"role": r, "content": t} for r, t in (*view.history, ("user", view.user))]
    assert shown.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert [shown.text[a:b] for a, b in shown.spans] == [
        "What is copper?",
        "A metal.",
        "Does it conduct heat?",
    ]
    plain = render(view, ends[1].tokenizer, chat=False, choices=False)
    assert plain.text == "What is copper?\nA metal.\nDoes it conduct heat?" and len(plain.spans) == 3
    noted = render(
        view,
        tokenizer,
        chat=False,
        choices=False,
        history=(("user", "Facts?"), ("assistant", "Copper is warm.")),
    )
    assert noted.text == "What is copper?\nA metal.\nFacts?\nCopper is warm.\nDoes it conduct heat?"


@pytest.mark.parametrize(("kind", "alignment"), [("lcf", "span"), ("c2c", "remap"), ("lcf", "remap")])
def test_chats_train_an_adapter_and_batches_agree_with_single_documents(made, ends, kind, alignment):
    keep(
        made,
        "made/talk",
        [
            conversation(*HUMAN),
            conversation(*HUMAN[:2]),
            conversation(HUMAN[0], ("gpt", "A longer answer. It conducts.")),
        ],
    )
    documents = draw(ends, "chat:made/talk", count=3)
    adapter = fused(kind, ends, token_alignment=alignment)
    method = create(kind, *ends, adapter)

    def loss(group):
        state = method.respond(Batch(group, group, Clock()))
        pairs = [target(d, p, ends[0].tokenizer, 2) for d, p in zip(group, state.prompts, strict=True)]
        assert all(
            ends[0].tokenizer.decode(ids[:-1]) == d.gold and ids[-1] == 2 and all(kept)
            for d, (ids, kept) in zip(group, pairs, strict=True)
        )
        return answer_loss(state, [ids for ids, _ in pairs], [kept for _, kept in pairs])[0]

    with torch.no_grad():
        together, alone = loss(documents), torch.stack([loss([d]) for d in documents]).mean()
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    adapter.requires_grad_(True)
    loss(documents).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters() if p.grad is not None
    )
    assert sum(float(p.grad.abs().sum()) for p in adapter.parameters() if p.grad is not None) > 0


def test_written_and_ranked_answers_go_through_one_batch(made, ends):
    keep(made, "made/talk", [conversation(*HUMAN), conversation(*HUMAN[:2])])
    ranked = [replace(d, shared=True, sharer=d.receiver) for d in draw(ends, "splitfacts", count=2)]
    documents = [*draw(ends, "chat:made/talk", count=2), *ranked]
    method = create("lcf", *ends, fused("lcf", ends))

    def loss(group):
        with torch.no_grad():
            state = method.respond(Batch(group, group, Clock()))
            pairs = [target(d, p, ends[0].tokenizer, 2) for d, p in zip(group, state.prompts, strict=True)]
            return answer_loss(state, [ids for ids, _ in pairs], [kept for _, kept in pairs])[0]

    torch.testing.assert_close(
        loss(documents), torch.stack([loss([d]) for d in documents]).mean(), atol=1e-4, rtol=1e-4
    )


def test_real_chats_and_train_splits(mirror, ends):
    """The tiny receiver can read all sources but hotpotqa_split, whose paragraphs are too long."""
    from lcfbench.tasks.task import load_task

    names = ("teknium1/GPTeacher", "databricks/databricks-dolly-15k:conversations_3k")
    if not all(
        (mirror / "datasets" / name.partition(":")[0]).is_dir()
        for name in (*names, "stanfordnlp/coqa", "hotpotqa/hotpot_qa")
    ):
        pytest.skip("not all data sets are in the mirror")
    drawn = draw(ends, *(f"chat:{name}" for name in names), "splitfacts", count=30, max_tokens=500)
    assert Counter(d.task for d in drawn) == {
        "chat:teknium1/GPTeacher": 10,
        "chat:databricks/databricks-dolly-15k": 10,
        "splitfacts": 10,
    }
    assert all(d.gold and d.receiver.user for d in drawn) and len({d.hash for d in drawn}) == 30
    parts = [len(load_task("hotpotqa_split").documents(split=part)) for part in ("train", "validation")]
    assert sum(parts) == 78 and parts[0] > 10 * parts[1] > 0
    assert len(load_task("coqa_split").documents(split="train")) == 3133
