"""Chat templates: one date, thoughts closed before an answer, refused chats in another form."""

import copy

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.chat_template import DATE, chat_of, check_thinking, parse_thinking, template_of
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import behind_thought, continuation, render, rendered
from tests.chat_templates import HARMONY, PLAIN, REFUSING, THINKING
from tests.helpers import own_tokenizer

VIEWS = [
    View("Which?"),
    View("Which?", "Answer:"),
    View("Which?", "Answer: ", (("user", "A"), ("assistant", "B"))),
]


def with_template(template, thinking="off", kind="keeps"):
    made = copy.deepcopy(own_tokenizer(kind))
    made.chat_template, made.thinking = template, thinking
    return made


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("view", VIEWS, ids=["question", "begun", "history"])
def test_no_answer_begins_inside_a_thought(name, view):
    template, off, *_ = THINKING[name]
    tokenizer = with_template(template)
    thought = chat_of(tokenizer).thought
    for choices in (True, False):
        prompt = render(view, tokenizer, chat=True, choices=choices)
        text = prompt.text + prompt.tail
        assert prompt.closing is None and not thought.is_open(text)
        assert text.endswith(view.prefix) and [prompt.text[a:b] for a, b in prompt.spans][-1] == (
            view.prefix.strip() or view.user
        )
        if not view.prefix:
            assert text.endswith(off)


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("thinking", ["on", "12"])
@pytest.mark.parametrize("view", VIEWS, ids=["question", "begun", "history"])
def test_a_thinking_prompt_ends_in_an_open_thought(name, thinking, view):
    template, _, on, closing = THINKING[name]
    tokenizer = with_template(template, thinking)
    prompt = render(view, tokenizer, chat=True, choices=True)
    assert prompt.text.endswith(on) and chat_of(tokenizer).thought.is_open(prompt.text) and not prompt.tail
    assert (prompt.closing, prompt.begin) == (closing, view.prefix)
    assert [prompt.text[a:b] for a, b in prompt.spans][-1] == view.user  # the answer is not begun yet
    assert rendered(view, tokenizer, True) == prompt.text + closing + view.prefix
    after = behind_thought(prompt, "", tokenizer, choices=True)
    assert after.text + after.tail == closing + view.prefix
    whole = tokenizer(closing + view.prefix + " A", add_special_tokens=False)["input_ids"]
    assert [*after.ids, *continuation(after, " A", tokenizer)] == whole


@pytest.mark.parametrize("name", PLAIN)
def test_templates_without_thoughts_know_none(name):
    tokenizer = with_template(PLAIN[name], "on")
    assert chat_of(tokenizer).thought is None and not chat_of(tokenizer).switches
    with pytest.raises(UserError, match="knows any"):
        check_thinking([tokenizer], {"t": True})
    off = render(VIEWS[1], with_template(PLAIN[name]), chat=True, choices=True)
    assert render(VIEWS[1], tokenizer, chat=True, choices=True) == off and off.closing is None


def test_thoughts_need_a_task_that_uses_chats():
    tokenizer = with_template(THINKING["switch"][0], "on")
    check_thinking([tokenizer], {"a": False, "b": True})
    with pytest.raises(UserError, match="no chat template is used for a, b"):
        check_thinking([tokenizer], {"a": False, "b": False})
    tokenizer.thinking = "off"
    check_thinking([tokenizer], {"a": False})


@pytest.mark.parametrize("given", ["tools", "documents"])
def test_a_template_may_ask_whether_there_are_tools_and_documents(given):
    asks = (
        f"{{% if {given} is not none %}}{{{{ {given} | tojson }}}}{{{{ {given}[0]['name'] }}}}{{% endif %}}"
    )
    plain = with_template(PLAIN["chatml"])
    tokenizer = with_template(asks + PLAIN["chatml"])
    assert not chat_of(tokenizer).dated
    assert render(VIEWS[1], tokenizer, chat=True, choices=True) == render(
        VIEWS[1], plain, chat=True, choices=True
    )


@pytest.mark.parametrize("name", PLAIN)
def test_the_date_is_the_same_on_every_day(name, monkeypatch):
    import datetime

    from transformers.utils import chat_template_utils

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    tokenizer = with_template(PLAIN[name])
    text = render(VIEWS[0], tokenizer, chat=True, choices=False).text
    assert chat_of(tokenizer).dated == ("dated" in name) == ("Today" in text)
    assert "2031" not in text and (("2024" in text) == ("dated" in name)) and DATE.year == 2024
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False)
    assert "2031" not in asked  # lm-eval's models in this process too


SYSTEM = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")]


@pytest.mark.parametrize("name", REFUSING)
def test_a_refused_system_turn_begins_the_first_question(name):
    tokenizer = with_template(REFUSING[name])
    prompt = render(View("Which?", "Answer:"), tokenizer, chat=True, choices=True, history=SYSTEM)
    assert "Be brief.\n\nHello" in prompt.text and "system turn" in prompt.adapted
    contents = ["Be brief.", "Hello", "Hi", "Which?", "Answer:"]
    assert [prompt.text[a:b] for a, b in prompt.spans] == contents
    fits = render(View("Which?", "Answer:"), tokenizer, chat=True, choices=True, history=SYSTEM[1:])
    assert fits.adapted == ""


def test_turns_of_one_role_are_joined_only_where_roles_must_alternate():
    history = [("user", "One"), ("user", "Two"), ("assistant", "Hi")]
    view = View("Which?")
    strict = render(view, with_template(REFUSING["alternating"]), chat=True, choices=True, history=history)
    assert "[INST]One\n\nTwo[/INST]" in strict.text and "one role" in strict.adapted
    assert [strict.text[a:b] for a, b in strict.spans] == ["One", "Two", "Hi", "Which?"]
    free = render(view, with_template(PLAIN["chatml"]), chat=True, choices=True, history=history)
    assert free.adapted == "" and [free.text[a:b] for a, b in free.spans] == ["One", "Two", "Hi", "Which?"]
    both = [("system", "S"), *history]
    merged = render(view, with_template(REFUSING["alternating"]), chat=True, choices=True, history=both)
    assert "[INST]S\n\nOne\n\nTwo[/INST]" in merged.text and "alternate" in merged.adapted


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no chats here') }}",
        "{% for m in messages %}{{ m.content }",
        "{{ tools | length }}{% for t in nothing %}{% endfor %}{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages[5].content }}{{ messages[5].content.strip() }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_that_fails_is_one_line(template):
    with pytest.raises(UserError, match="refuses a chat of user") as caught:
        render(VIEWS[0], with_template(template), chat=True, choices=True)
    assert "\n" not in str(caught.value)
    assert render(VIEWS[0], with_template(template), chat=False, choices=True).text == "Which?"


def test_named_templates():
    one = PLAIN["chatml"]
    for several in (
        {"default": one, "tool_use": "x"},
        {"chat": one},
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": one}],
    ):
        assert template_of(with_template(several)) == one
        assert render(VIEWS[0], with_template(several), chat=True, choices=True).text.startswith(
            "<|im_start|>"
        )
    with pytest.raises(UserError, match="chat templates rag, tool_use, none is `default`"):
        render(VIEWS[0], with_template({"tool_use": one, "rag": one}), chat=True, choices=True)
    assert template_of(with_template({})) is None and template_of(with_template(None)) is None


def test_the_template_is_read_where_it_is_changed():
    tokenizer = with_template(PLAIN["chatml"])
    assert chat_of(tokenizer).thought is None
    tokenizer.chat_template = HARMONY
    assert chat_of(tokenizer).thought.closes == "<|end|>"


@pytest.mark.parametrize(
    ("value", "text"), [("off", "off"), ("on", "on"), (True, "on"), (False, "off"), (7, "7"), ("007", "7")]
)
def test_a_setting_for_thoughts(value, text):
    assert parse_thinking(value) == text


@pytest.mark.parametrize("value", ["", "yes", "0", 0, -1, 1.5, "1e3", None, [], 10**9, "٣"])
def test_no_setting_for_thoughts(value):
    with pytest.raises(ValueError, match="give off, on"):
        parse_thinking(value)


@pytest.mark.parametrize("thinking", ["off", "9"])
def test_the_tokens_shown_are_the_tokens_run(thinking, monkeypatch):
    import torch

    from lcfbench.evaluation.answer import answer
    from lcfbench.methods.base import Batch
    from lcfbench.methods.create import create
    from lcfbench.models.timing import Clock
    from lcfbench.tasks import preview
    from tests.helpers import causal_lm, shared_document

    seen = []
    monkeypatch.setattr(preview, "render", lambda *a, **b: seen.append(render(*a, **b)) or seen[-1])
    lm = causal_lm("tiny", vocabulary=440)
    lm.tokenizer = with_template(THINKING["switch"][0], thinking)
    prefill = lm.prefill
    lm.prefill = lambda ids, *a, **b: read.extend(ids[0]) or prefill(ids, *a, **b)
    for text in ("Which?", "Say <|im_end|> 日本 😀", "  two  spaces \n"):
        document = shared_document(0, text)
        seen.clear()
        read = []
        [entry] = preview.preview([document], lm.tokenizer, lm.tokenizer)
        with torch.inference_mode():
            state = create("receiver", lm, lm).respond(Batch([document], [document], Clock(lm.device)))
            read.extend(state.ids[0].tolist())
            answer(state, Batch([document], [document], Clock(lm.device)))
        assert read == [*state.prompts[0].ids] and state.prompts[0] in seen
        assert entry["receiver"]["tokens"] == len(state.prompts[0].ids) == int(state.positions[0, -1]) + 1
        assert entry["receiver"]["prompt"] == state.prompts[0].text
        assert ("special_text" in entry["receiver"]) == ("<|" in text)
        assert ("behind_thought" in entry["receiver"]) == (thinking != "off")
