"""Prompts: the ids lm-eval's HFLM gives, and spans and offsets that are where they say."""

import pytest
from transformers import AutoTokenizer

from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import continuation, extend, render, rendered
from lcfbench.tasks.special_text import special_text
from tests.helpers import BESIDE, lm_eval_around
from tests.helpers import own_tokenizer as own

FIXTURES = BESIDE / "fixtures" / "c2c_reference"
SHARED = ["models/r1-qwen3", "models/s1-qwen2", "aligner/tokenizer-receiver", "aligner/tokenizer-sharer"]
OWN = ["keeps", "strips", "bos", "trims", "plain", "doubles"]
VIEWS = [
    View("Question: What is it?\nA. one\nB. two\n", "Answer:"),
    View("Question: What is it?", "Answer:"),
    View("Question: What is it?"),
    View("  spaces \t around \n\n", " Answer: "),
    View("assistant", "user"),  # words of the template itself
    View("system\nuser\nsystem", "assistant"),
    View("Zoë’s naïve café: 東京 😀👩‍👩‍👧 — ½ e\u0301", "Ответ:"),
    View("<|im_start|>user\nnot a turn<|im_end|>", "x"),
    View("the same the same", "the same"),
    View("", "Answer:"),
]


@pytest.fixture(scope="module", params=[*OWN, *SHARED])
def tokenizer(request):
    if request.param in OWN:
        return own(request.param)
    if not (FIXTURES / request.param).is_dir():
        pytest.skip("../shared/fixtures/c2c_reference is not here")
    return AutoTokenizer.from_pretrained(FIXTURES / request.param)


@pytest.fixture(scope="module")
def hflm(tokenizer):
    """lm-eval's model around a tiny one: only its tokenization and chat rules are used."""
    return lm_eval_around(tokenizer, enable_thinking=False)


def lm_eval_text(hflm, view, chat):
    """What lm-eval would build for this view (ConfigurableTask.fewshot_context, with its own classes)."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.api.utils import multiturn_to_singleturn

    turns = ConfigurableTask.build_qa_turn(
        None, q=view.user, gen_prefix=view.prefix or None, tgt_delim=" ", few_delim=""
    )
    if not chat:
        return "".join(turn.to_text() for turn in turns)
    return hflm.apply_chat_template(multiturn_to_singleturn(turns), add_generation_prompt=not view.prefix)


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
@pytest.mark.parametrize("chat", [False, True])
def test_text_and_ids_are_lm_evals(tokenizer, hflm, view, chat):
    chat = chat and bool(tokenizer.chat_template)
    if special_text([view.user, view.prefix], tokenizer):
        pytest.skip("special tokens in a document are text here: see test_special_text")
    text = lm_eval_text(hflm, view, chat)
    written = render(view, tokenizer, chat=chat, choices=False)
    assert (written.text, written.tail) == (text, "") and rendered(view, tokenizer, chat) == text
    assert list(written.ids) == hflm.tok_batch_encode([text])[0][0].tolist()
    scored = render(view, tokenizer, chat=chat, choices=True)
    assert scored.text + scored.tail == text and scored.text == text.rstrip()
    for choice in (" A", "B", " 東京 tower", "…", "\n"):
        before, after = hflm._encode_pair(text, choice)
        assert list(scored.ids) == before
        assert continuation(scored, choice, tokenizer) == after


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
@pytest.mark.parametrize("chat", [False, True])
def test_spans_are_the_turns_and_offsets_cover_the_text(tokenizer, view, chat):
    for choices in (True, False):
        prompt = render(view, tokenizer, chat=chat, choices=choices)
        contents = [c.strip() for c in (view.user, view.prefix) if c.strip()]
        assert [prompt.text[a:b] for a, b in prompt.spans] == contents
        assert all(b <= c for (_, b), (c, _) in zip(prompt.spans, prompt.spans[1:], strict=False))
        if view.prefix.strip():
            assert prompt.spans[-1][1] == len(
                prompt.text.rstrip()
            )  # the prefix is the end, wherever else its words stand
        assert len(prompt.offsets) == len(prompt.ids)
        covered = {i for a, b in prompt.offsets for i in range(a, b)}
        assert not "".join(
            c for i, c in enumerate(prompt.text) if i not in covered
        ).strip()  # some tokenizers trim spaces
        starts = [a for a, b in prompt.offsets if b]
        assert starts == sorted(starts)
        assert all(
            b > a for (a, b), i in zip(prompt.offsets, prompt.ids, strict=True) if i != tokenizer.bos_token_id
        )


def test_a_template_that_repeats_the_question_is_searched_from_the_right():
    tokenizer = own("doubles")
    prompt = render(View("the same the same", "the same"), tokenizer, chat=True, choices=True)
    first, second = prompt.spans
    assert first[0] == prompt.text.index("user\n") + len("user\n") and prompt.text[: first[0]].startswith(
        "Topic: the same"
    )
    assert second[1] == len(prompt.text)


def test_equal_views_have_equal_spans_on_two_models():
    one, two = own("strips"), own("bos")
    for view in VIEWS:
        a, b = (render(view, t, chat=True, choices=True) for t in (one, two))
        assert [a.text[x:y] for x, y in a.spans] == [b.text[x:y] for x, y in b.spans]


def test_earlier_turns():
    history = [("user", "What helps? "), ("assistant", "Background: it helps.")]
    view = View("Question: which?\n", "Answer:")
    plain = render(view, own("plain"), chat=True, choices=True, history=history)
    assert plain.text == "What helps? \nBackground: it helps.\nQuestion: which?\nAnswer:"
    chat = render(view, own("keeps"), chat=True, choices=True, history=history)
    assert chat.text.count("<|im_start|>") == 4 and chat.text.endswith("<|im_start|>assistant\nAnswer:")
    for prompt in (plain, chat):
        assert [prompt.text[a:b] for a, b in prompt.spans] == [
            "What helps?",
            "Background: it helps.",
            "Question: which?",
            "Answer:",
        ]


def test_a_lead_extends_the_prompt_like_one_text():
    tokenizer = own("bos")
    prompt = render(View("Notes: x.", "The key is in the"), tokenizer, chat=False, choices=True)
    longer = extend(prompt, " red box. The red box is in ", tokenizer)
    assert longer.text == "Notes: x. The key is in the red box. The red box is in" and longer.tail == " "
    assert longer.ids == render(View(longer.text), tokenizer, chat=False, choices=True).ids
    assert (
        continuation(longer, "Rome", tokenizer) == tokenizer.encode(longer.text + " Rome")[len(longer.ids) :]
    )


def test_an_empty_prompt_is_lm_evals_prefix_token():
    tokenizer = own("plain")
    prompt = render(View(""), tokenizer, chat=False, choices=True)
    assert prompt.ids == (tokenizer.bos_token_id,) and prompt.spans == ()
    assert continuation(prompt, "one", tokenizer) == tokenizer.encode("one", add_special_tokens=False)


def test_thinking_is_off():
    if not (FIXTURES / "models/r1-qwen3").is_dir():
        pytest.skip("../shared/fixtures/c2c_reference is not here")
    prompt = render(
        View("Hi"), AutoTokenizer.from_pretrained(FIXTURES / "models/r1-qwen3"), chat=True, choices=False
    )
    assert prompt.text.endswith("<think>\n\n</think>\n\n")  # the template's empty think block
