"""Thoughts: written, cut, closed, and kept apart from the answer."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models import thinking
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, Step, View
from tests.chat_templates import THINKING
from tests.helpers import causal_lm, manifest_of, model, own_tokenizer, rows, run_recipe, save_pair

MARKERS = ["<think>", "</think>", "<|end|>", "<|channel|>", "<|message|>"]
LETTERS = tuple(f" {c}" for c in "ABCD")


def thinker(setting: str, name: str = "switch", special: bool = False):
    """A tiny model whose template knows thoughts; special: its markers are single tokens."""
    lm = causal_lm("thinker", vocabulary=440)
    lm.tokenizer = copy.deepcopy(own_tokenizer("keeps"))
    lm.tokenizer.chat_template, lm.tokenizer.thinking = THINKING[name][0], setting
    if special:
        lm.tokenizer.add_tokens(
            ["<think>", "</think>", "<|end|>", "<|channel|>", "<|message|>"], special_tokens=True
        )
    lm.stop_ids = set  # its random weights would end a text anywhere
    return lm


def document(scoring="letters", prefix="Answer:", number=0, **more) -> Document:
    view = View(f"Question {number}: what is it?\nA. one\nB. two\n", prefix)
    steps = {
        "letters": (Step(LETTERS, (1,)),),
        "cloze": (Step((" one", " two of it"), (1,)),),
        "generate": (),
    }
    return Document(
        "t",
        str(number),
        view,
        view,
        view,
        view,
        view,
        scoring,
        "B",
        steps=steps[scoring],
        max_new_tokens=6,
        **more,
    )


def answered(lm, documents, mode="receiver"):
    batch = Batch(documents, documents, Clock(lm.device))
    with torch.inference_mode():
        return answer(create(mode, lm, lm).respond(batch), batch)


def writing(monkeypatch, lm, *texts):
    """Makes the model write these texts, one for each document, as its thoughts."""
    written = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    monkeypatch.setattr(thinking, "write", lambda opened, limit, until=(): [ids[:limit] for ids in written])


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("scoring", ["letters", "cloze"])
def test_choices_are_ranked_behind_the_closed_thought(name, special, scoring, monkeypatch):
    lm = thinker("on", name, special)
    closing, lead = THINKING[name][3], "\n" if THINKING[name][2].endswith("\n") else ""
    closes = thinking.chat_of(lm.tokenizer).thought.closes
    writing(monkeypatch, lm, f"It is two.{lead}{closes}\n\nA", f"Hm{closes}")
    documents = [document(scoring, number=n) for n in range(2)]
    outcomes, tokens = answered(lm, documents)
    for d, outcome, text in zip(documents, outcomes, (f"It is two.{lead}", "Hm"), strict=True):
        assert outcome.parsed and outcome.thought == text.strip()
        asked = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": d.receiver.user}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
            thinking=True,
        )
        opened = thinking.chat_of(lm.tokenizer).thought.is_open(asked)
        opens = "" if opened else THINKING[name][2].removeprefix("<|start|>").removeprefix("[/INST]")
        opens = opens.removeprefix("assistant").removeprefix("\n")
        before = lm.tokenizer(asked + opens, add_special_tokens=False)["input_ids"]
        before += lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for choice, (ll, _) in zip(d.steps[0].choices, outcome.loglikelihoods[0], strict=True):
            ids = lm.tokenizer(closing + "Answer:" + choice, add_special_tokens=False)["input_ids"]
            more = len(ids) - len(lm.tokenizer(closing + "Answer:", add_special_tokens=False)["input_ids"])
            with torch.inference_mode():
                logits = lm.model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
            whole = before + ids
            expected = sum(logits[i - 1, whole[i]].item() for i in range(len(whole) - more, len(whole)))
            assert ll == pytest.approx(expected, abs=1e-4)
    assert outcomes[0].thought_tokens == len(
        lm.tokenizer(f"It is two.{lead}{closes}\n\nA", add_special_tokens=False)["input_ids"]
    )
    assert all(n > o.thought_tokens for n, o in zip(tokens, outcomes, strict=True))


@pytest.mark.parametrize("scoring", ["letters", "cloze", "generate"])
@pytest.mark.parametrize("prefix", ["Answer:", ""])
def test_an_unfinished_thought_is_no_answer(scoring, prefix, monkeypatch):
    monkeypatch.setattr(thinking, "LONGEST", 5)
    lm = thinker("on")
    [outcome], [tokens] = answered(lm, [document(scoring, prefix)])
    assert (
        not outcome.parsed and outcome.loglikelihoods == () and outcome.picks == () and outcome.text is None
    )
    assert outcome.thought_tokens == 5 and tokens >= 5


@pytest.mark.parametrize("budget", [1, 3, 8])
@pytest.mark.parametrize("scoring", ["letters", "generate"])
def test_a_budget_cuts_the_thought_and_closes_it(budget, scoring):
    lm = thinker(str(budget))
    outcomes, _ = answered(lm, [document(scoring, number=n) for n in range(3)])
    alone = [answered(lm, [document(scoring, number=n)])[0][0] for n in range(3)]
    for one, other in zip(outcomes, alone, strict=True):
        assert one.parsed and one.thought_tokens == budget and one.thought == other.thought
        assert one.text == other.text and one.picks == other.picks
        assert (one.text is None) == (scoring == "letters")


def test_a_thought_without_budget_has_the_room_that_its_own_prompt_leaves():
    lm = thinker("on")
    lm.model.config.max_position_embeddings = 200
    short = document("generate")
    view = View(f"{short.receiver.user} More text.", "Answer:")
    long = replace(short, receiver=view, sharer=view, doc_id="1")
    together = answered(lm, [short, long])[0]
    alone = [answered(lm, [each])[0][0] for each in (short, long)]
    assert [o.thought_tokens for o in together] == [o.thought_tokens for o in alone]
    assert [o.thought for o in together] == [o.thought for o in alone]
    assert together[0].thought_tokens > together[1].thought_tokens > 0


def test_the_end_of_the_text_ends_a_thought_too(monkeypatch):
    lm = thinker("on")
    writing(monkeypatch, lm, "It is two.")  # EOS came before the marker
    assert not answered(lm, [document()])[0][0].parsed
    lm = thinker("50")
    writing(monkeypatch, lm, "It is two.")
    assert answered(lm, [document()])[0][0].parsed


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("B", "B"),
        ("<think>\nA or B\n</think>\n\nB", "B"),
        ("\n<think></think>B", "B"),
        ("<think>\nA, so the answer is A", None),
        ("<think>", None),
        ("The tag <think> opens a thought", "The tag <think> opens a thought"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_an_answer_is_read_behind_the_thought(written, said, special):
    lm = thinker("off", special=special)
    ids = lm.tokenizer(written, add_special_tokens=False)["input_ids"]
    found = thinking.spoken(lm.tokenizer, ids, ())
    assert found == (said.replace("<think> ", " ") if special and said and "<think>" in said else said)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("B", "B"),
        ("<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B", "B"),
        ("<|channel|>analysis<|message|>It is A", None),
        (
            "<|channel|>analysis<|message|>It is A<|end|><|start|>assistant<|channel|>commentary<|message|>A",
            None,
        ),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_an_answer_is_read_from_the_final_channel(written, said, special):
    lm = thinker("off", "channels", special)
    ids = lm.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert thinking.spoken(lm.tokenizer, ids, ()) == said


def test_an_answer_in_a_channel_ends_with_it(monkeypatch):
    lm = thinker("off", "channels")
    assert "<|end|>" in seen_until(monkeypatch, lm) and "\n" in seen_until(monkeypatch, lm)
    assert seen_until(monkeypatch, thinker("off")) == ("\n",)


def seen_until(monkeypatch, lm):
    seen = []
    monkeypatch.setattr(thinking, "write_together", lambda asked: seen.append(asked[0][2]) or [[[]]])
    answered(lm, [document("generate", until=("\n",))])
    return seen[0]


def test_a_note_is_what_stands_behind_the_thought(monkeypatch):
    lm = thinker("30")
    said = iter(["So.</think>", "the note"])

    def write(opened, limit, until=()):
        return [lm.tokenizer(next(said), add_special_tokens=False)["input_ids"]]

    monkeypatch.setattr(thinking, "write", write)
    monkeypatch.setattr(thinking, "write_together", lambda asked: [write(*each) for each in asked])
    batch = Batch([document("generate")], [document("generate")], Clock(lm.device))
    with torch.inference_mode():
        state = create("t2t", lm, lm).respond(batch)
    assert state.message.texts == ["the note"] and "the note" in state.prompts[0].text
    assert "So." not in state.prompts[0].text


def test_a_budget_that_does_not_fit_is_one_line():
    lm = thinker("500")  # 512 positions
    with pytest.raises(UserError, match="thinker has 512"):
        answered(lm, [document()])


def test_rows_and_manifest_say_what_was_thought(tmp_path, monkeypatch):
    folder = tmp_path / "thinker"
    made = model(vocabulary=440, layers=2)
    made.save_pretrained(folder)
    tokenizer = copy.deepcopy(own_tokenizer("keeps"))
    tokenizer.chat_template = THINKING["switch"][0]
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(thinking, "LONGEST", 4)

    def run(**more):
        return run_recipe(f"{folder}:{folder}", tmp_path / "out", task=["openbookqa"], limit=3, **more)

    names = {}
    for setting in ("off", "on", 6):
        [found] = run(mode=["receiver"], control=["matched"], thinking=setting)
        names[setting] = found.name
        assert manifest_of(found)["identity"]["thinking"] == str(setting)
        for row in rows(found):
            thought, unparsed = row["thought_tokens"], json.loads(row["metrics"]).get("unparsed")
            assert (thought, unparsed) == {"off": (None, None), "on": (4, 1.0), 6: (6, None)}[setting]
            assert (row["prediction"] is None) == (setting == "on") and row["error"] is None
            assert (row["thought"] is None) == (setting == "off")
            if setting == "on":
                assert row["score"] == 0 and row["choices_loglikelihood"] is None
    assert len(set(names.values())) == 3


def test_thoughts_where_no_model_knows_any_are_refused_before_loading(tmp_path, monkeypatch):
    monkeypatch.setattr("lcfbench.evaluation.session.load_pair", lambda *a, **b: pytest.fail("loaded"))
    with pytest.raises(UserError, match="thoughts are on, but no chat template"):
        run_recipe(save_pair(tmp_path), tmp_path / "out", thinking="on")


def test_thoughts_of_a_receiver_alone_need_no_sharer(tmp_path, monkeypatch):
    pair = save_pair(tmp_path)
    monkeypatch.setattr("lcfbench.evaluation.session.load_pair", lambda *a, **b: pytest.fail("loaded"))
    asked = {"mode": ["receiver"], "control": ["matched"], "thinking": "on", "offline": True}
    with pytest.raises(UserError, match="thoughts are on, but no chat template"):
        run_recipe(f"{pair.partition(':')[0]}:no/model", tmp_path / "out", **asked)


def test_padding_is_hidden_so_that_any_token_pads():
    lm = causal_lm("tiny", vocabulary=440)
    documents = [replace(document(number=n), chat=False) for n in (1, 22222, 333)]
    answers = []
    for pad in (0, 1, 3, 77, 439):
        lm.pad_id = lm.shared.pad_id = pad
        answers.append(answered(lm, documents)[0])
    assert all(each == answers[0] for each in answers)


def test_a_token_that_the_model_lacks_pads_nothing_and_is_refused():
    lm = causal_lm("tiny", vocabulary=440)
    made = copy.deepcopy(lm.tokenizer)
    made.add_special_tokens({"pad_token": "<more>", "additional_special_tokens": ["<turn>"]})
    made.add_tokens([f"<filler{n}>" for n in range(60)])
    made.chat_template = "{{ '<filler59>' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert len(made) > 440
    made.pad_token = "<filler58>"
    short = type(lm)("tiny", lm.model, made)
    assert short.pad_id < 440
    plain = [replace(document(number=n), chat=False) for n in (1, 22222)]
    assert answered(short, plain)[0] == answered(lm, plain)[0]
    with pytest.raises(UserError, match="writes '<filler59>' as token"):
        answered(short, [document()])
