"""The parser of written letters: a table of answers, hostile texts in bounded time, thinking formats."""

import copy
import random
import time

import pytest

from lcfbench.models.thinking import spoken
from lcfbench.tasks.chat_template import chat_of
from lcfbench.tasks.letters import read_letter
from lcfbench.tasks.thought_text import behind_thoughts
from tests.chat_templates import THINKING
from tests.helpers import own_tokenizer
from tests.tasks.letters_table import CASES, CITIES


@pytest.mark.parametrize(("text", "options", "letter", "rule"), CASES, ids=range(len(CASES)))
def test_the_table_of_answers(text, options, letter, rule):
    assert read_letter(text, options) == (letter, rule)


def test_the_table_is_large_and_names_a_case_once():
    assert len(CASES) > 250
    assert len({(text, *options) for text, options, *_ in CASES}) == len(CASES)


HOSTILE = (
    "A", "A ", "a ", "A. ", "(A) ", "A\n", "\n", " ", "\t", "answer ", "answer: ", "answer is ", "so A ",
    "not A ", "not ", "A, ", "A and ", "A or ", "A/", "A. Paris ", "Paris ", "Paris (B) ",
    "A. Paris B. London ", "\nQuestion: ", "<", "<a", "<answer>", "</", "<think>", "</think>", "\\",
    "\\boxed{", "{", "**", "_", "`", "#", "\n#", "\"answer\":", "\"", "[[", "wait, ", "- ", "…", ".", ",",
    "?", "答案", "选", "是", "\u200f", "B is ", "B is correct ", "option ", "the ", "if ", "A-", "A.B.",
    "analysis", "assistantfinal", "<|end|>", "(", "\n \n",
)  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_long_texts_take_little_time(unit):
    """Ten times the text may take ten times as long, not a hundred times."""

    def seconds(characters):
        text = (unit * characters)[:characters] + "!B"
        start = time.process_time()
        read_letter(text, CITIES)
        return time.process_time() - start

    assert seconds(30_000) < 3 and min(seconds(30_000) for _ in range(2)) < 40 * max(seconds(3_000), 0.002)


def test_any_text_is_read_without_a_failure():
    drawn = random.Random(0)
    units = [*HOSTILE, *(text for text, *_ in CASES if len(text) < 100)]
    for _ in range(300):
        text = " ".join(drawn.choice(units) for _ in range(drawn.randrange(12)))
        options = [drawn.choice(units).strip() for _ in range(drawn.randrange(2, 11))]
        letter, rule = read_letter(text, options)
        assert rule and (letter is None or letter in "ABCDEFGHIJ"[: len(options)])


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("special", [False, True])
def test_thoughts_are_cut_alike_with_and_without_a_template(name, special):
    """The tokens that `spoken` cuts by the template, and the text alone, give one answer."""
    tokenizer = copy.deepcopy(own_tokenizer("keeps"))
    tokenizer.chat_template, tokenizer.thinking = THINKING[name][0], "on"
    chat = chat_of(tokenizer)
    assert chat is not None and chat.thought is not None
    thought, closing = chat.thought, THINKING[name][3]
    if special:
        marks = ["<think>", "</think>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>"]
        tokenizer.add_tokens(marks, special_tokens=True)
    whole = f"{thought.opens}Is it A? The answer is A.{thought.lead}{closing}The answer is B."
    for text, letter in ((whole, "B"), (f"{thought.opens}The answer is A", None)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = spoken(tokenizer, ids, ())
        assert (answer is None) == (letter is None)
        assert answer is None or read_letter(answer, CITIES) == (letter, "stated")
        assert read_letter(text, CITIES)[0] == letter
        assert (behind_thoughts(text) is None) == (letter is None)
