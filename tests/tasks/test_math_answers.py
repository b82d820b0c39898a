"""Answers of mathematics: which text counts, what equals a gold, and that nothing hostile ends us."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from lcfbench.errors import UserError
from lcfbench.evaluation.identity import versions
from lcfbench.tasks import math_worker
from lcfbench.tasks.math_answers import answer_scores, marked, number, tidy
from lcfbench.tasks.task import Outcome, load_task

RIGHT, WRONG, NONE = (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)

# text, gold, (exact_match, parsed)
NUMBERS = [
    ("18", "18", RIGHT),
    (" 18.", "18", RIGHT),
    ("#### 18", "18", RIGHT),
    ("9 * 2 = 18\n#### 18", "18", RIGHT),
    ("####18", "18", RIGHT),
    ("####\n18", "18", RIGHT),
    ("#### $18", "18", RIGHT),
    ("#### 18 dollars", "18", RIGHT),
    ("#### 18 dollars per day", "18", RIGHT),
    ("#### 5 km/h", "5", RIGHT),
    ("#### 9 * 2 = 18", "18", RIGHT),
    ("#### 2125", "2,125", RIGHT),
    ("#### 2,125", "2,125", RIGHT),
    ("#### 2,125", "2125", RIGHT),
    ("#### 2 125", "2125", RIGHT),
    ("#### 2\u202f125", "2,125", RIGHT),
    ("#### $1,450,000.00", "1,450,000", RIGHT),
    ("#### -10", "-10", RIGHT),
    ("#### −10", "-10", RIGHT),
    ("#### -$10", "-10", RIGHT),
    ("#### $-10", "-10", RIGHT),
    ("#### 10", "-10", WRONG),
    ("#### 18.0", "18", RIGHT),
    ("#### 018", "18", RIGHT),
    ("#### 36/2", "18", RIGHT),
    ("#### 1.8e1", "18", RIGHT),
    ("#### 1.8 × 10^1", "18", RIGHT),
    ("#### 17 1/2", "17.5", RIGHT),
    ("#### 20%", "20", RIGHT),
    ("#### 20 percent", "20", RIGHT),
    ("#### 20\n\nQuestion: next?\n#### 30", "20", RIGHT),
    ("#### 5\n#### 18", "18", RIGHT),
    ("\\boxed{18}", "18", RIGHT),
    ("$\\boxed{18}$ dollars", "18", RIGHT),
    ("\\[\\boxed{\\$18}\\]", "18", RIGHT),
    ("\\boxed{18\\text{ eggs}}", "18", RIGHT),
    ("\\boxed{18 \\, \\text{km/h}}", "18", RIGHT),
    ("\\boxed{\\frac{36}{2}}", "18", RIGHT),
    ("\\boxed{\\dfrac{36}{2}}", "18", RIGHT),
    ("\\boxed{2\\times 9}", "18", RIGHT),
    ("\\boxed{2{,}125}", "2,125", RIGHT),
    ("\\boxed{2,\\!125}", "2,125", RIGHT),
    ("\\boxed{9 \\times 2 = 18}", "18", RIGHT),
    ("\\boxed{x = 18}", "18", RIGHT),
    ("\\fbox{18}", "18", RIGHT),
    ("\\boxed 7", "7", RIGHT),
    ("First \\boxed{3}. Then \\boxed{18}", "18", RIGHT),
    ("#### 3 so \\boxed{18}", "18", RIGHT),
    ("The answer is 18.", "18", RIGHT),
    ("The answer is $18.", "18", RIGHT),
    ("The answer is $18.50.", "18.50", RIGHT),
    ("The answer is 18 dollars.", "18", RIGHT),
    ("The answer is **18**.", "18", RIGHT),
    ("**Answer:** 18", "18", RIGHT),
    ("**Final Answer**: 18 eggs", "18", RIGHT),
    ("Final answer: $18$", "18", RIGHT),
    ("The final answer is $\\boxed{18}$. I hope it is correct.", "18", RIGHT),
    ("The final answer is 18. I hope it is correct.", "18", RIGHT),
    ("The answer is:\n\n18", "18", RIGHT),
    ("The answer is:\n\\[\n18\n\\]", "18", RIGHT),
    ("The answer is 18 because 16 - 3 - 4 = 9 and 9 * 2 is it for 2 days", "18", RIGHT),
    ("The answer is 18, as 9 eggs cost 2 each", "18", RIGHT),
    ("The answer is 5 times 3 = 15", "15", RIGHT),
    ("The answer is that she has 18 eggs left.", "18", RIGHT),
    ("The answer is not 5. The answer is 18.", "18", RIGHT),
    ("The answer is 5. Wait, the answer is 18.", "18", RIGHT),
    ("So the answer to the question is 18", "18", RIGHT),
    ("答案：18", "18", RIGHT),
    ("She sells 9 eggs for $2 each, so she makes $18 every day.", "18", RIGHT),
    ("16 - 3 - 4 = 9, and 9 * 2 = 18", "18", RIGHT),
    ("She makes $18.", "18", RIGHT),
    ("In all 2,125 people came", "2,125", RIGHT),
    ("<think>Perhaps 5. The answer is 5.</think>\nIt is 18.", "18", RIGHT),
    ("#### 180", "18", WRONG),
    ("#### 1.8", "18", WRONG),
    ("#### 18.5", "18", WRONG),
    ("#### 17.999999", "18", WRONG),
    ("#### 81", "18", WRONG),
    ("#### 1.000", "1,000", WRONG),
    ("#### 1,000", "1", WRONG),
    ("\\boxed{18x}", "18", WRONG),
    ("\\boxed{x}", "18", WRONG),
    ("\\boxed{18, 19}", "18", WRONG),
    ("\\boxed{18^{2}}", "18", WRONG),
    ("The answer is 18. #### 20", "18", WRONG),
    ("She sells 18 eggs in 2 days", "18", WRONG),
    ("I do not know.", "18", NONE),
    ("The answer is eighteen.", "18", NONE),
    ("\\boxed{", "18", NONE),
    ("\\boxed{}", "18", NONE),
    ("####", "18", NONE),
    ("", "18", NONE),
    ("The answer is 3 sqrt 2.", "3", WRONG),
    ("The answer is 2:1", "2", WRONG),
    ("She has 1.5 million dollars.", "1,500,000", RIGHT),
    ("The answer is 2 thousand", "2,000", RIGHT),
    ("A: 42\n\nQ: How many trees are left?\nA: 6", "42", RIGHT),
]
FORMS = [
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", RIGHT),
    ("\\boxed{\\frac12}", "\\frac{1}{2}", RIGHT),
    ("\\boxed{\\tfrac{1}{2}}", "\\dfrac{1}{2}", RIGHT),
    ("\\boxed{1/2}", "\\frac{1}{2}", RIGHT),
    ("\\boxed{0.5}", "\\frac{1}{2}", RIGHT),
    ("\\boxed{.5}", "\\frac12", RIGHT),
    ("\\boxed{\\frac{2}{4}}", "\\frac12", RIGHT),
    ("\\boxed{-\\frac{24}{25}}", "-\\frac{24}{25}", RIGHT),
    ("\\boxed{\\frac{-24}{25}}", "-\\frac{24}{25}", RIGHT),
    ("\\boxed{-0.96}", "-\\frac{24}{25}", RIGHT),
    ("\\boxed{0.333333}", "\\frac{1}{3}", RIGHT),
    ("\\boxed{137.5}", "137 \\frac{1}{2}", RIGHT),
    ("\\boxed{137\\frac12}", "137 \\frac{1}{2}", RIGHT),
    ("The answer is 137 1/2.", "137 \\frac{1}{2}", RIGHT),
    ("\\boxed{9/5}", "1\\frac{4}{5}", RIGHT),
    ("\\boxed{6.72 \\times 10^{-5}}", ".0000672", RIGHT),
    ("\\boxed{58500}", "58,500", RIGHT),
    ("\\boxed{11111111100}", "11,\\! 111,\\! 111,\\! 100", RIGHT),
    ("\\boxed{\\$32,348}", "\\$32,\\!348", RIGHT),
    ("\\boxed{18.90}", "\\$18.90", RIGHT),
    ("\\boxed{36 \\text{ dollars}}", "\\$36", RIGHT),
    ("\\boxed{5.4}", "5.4 \\text{ cents}", RIGHT),
    ("\\boxed{15\\text{ cm}^2}", "15\\mbox{ cm}^2", RIGHT),
    ("\\boxed{15}", "15\\mbox{ cm}^2", RIGHT),
    ("\\boxed{106}", "106^\\circ", RIGHT),
    ("\\boxed{106^{\\circ}}", "106^\\circ", RIGHT),
    ("The angle is 106°. The answer is 106°.", "106^\\circ", RIGHT),
    ("\\boxed{10}", "10\\%", RIGHT),
    ("\\boxed{10\\%}", "10", RIGHT),
    ("\\boxed{0.1}", "10\\%", RIGHT),
    ("\\boxed{5\\sqrt{2}}", "\\sqrt{50}", RIGHT),
    ("\\boxed{2\\sqrt5}", "2 \\sqrt{5}", RIGHT),
    ("\\boxed{\\frac{\\sqrt{3}}{3}}", "\\frac{1}{\\sqrt{3}}", RIGHT),
    ("\\boxed{2\\pi + 18}", "18+2\\pi", RIGHT),
    ("\\boxed{7π}", "7\\pi", RIGHT),
    ("\\boxed{(b+2)(a+5)}", "(a+5)(b+2)", RIGHT),
    ("\\boxed{3-13x}", "-13x+3", RIGHT),
    ("\\boxed{3R^{2}}", "3R^2", RIGHT),
    ("\\boxed{7i-2}", "-2 + 7i", RIGHT),
    ("\\boxed{\\frac{\\cos x}{\\sin x}}", "\\cot x", RIGHT),
    ("\\boxed{5}", "x=5", RIGHT),
    ("\\boxed{x=5}", "x=5", RIGHT),
    ("\\boxed{x = 5}", "5", RIGHT),
    ("\\boxed{2x+3}", "y = 2x + 3", RIGHT),
    ("\\boxed{y=3+2x}", "y = 2x + 3", RIGHT),
    ("\\boxed{5x-7y+11z=-4}", "5x - 7y + 11z + 4 = 0", RIGHT),
    ("\\boxed{[-2,7]}", "x \\in [-2,7]", RIGHT),
    ("\\boxed{x\\in[-2,7]}", "x \\in [-2,7]", RIGHT),
    ("\\boxed{(2,4)}", "(2,4)", RIGHT),
    ("\\boxed{\\left(3,\\frac{\\pi}{2}\\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)", RIGHT),
    ("\\boxed{(3, \\pi/2)}", "\\left( 3, \\frac{\\pi}{2} \\right)", RIGHT),
    ("\\boxed{(-\\infty,0]}", "(-\\infty, 0]", RIGHT),
    ("\\boxed{(-\\infty,2)\\cup(3,\\infty)}", "(-\\infty, 2) \\cup (3, \\infty)", RIGHT),
    ("\\boxed{7,5,3}", "3, 5, 7", RIGHT),
    ("\\boxed{3}, \\boxed{5} and \\boxed{7}", "3, 5, 7", RIGHT),
    ("\\boxed{\\{3,5,7\\}}", "3, 5, 7", RIGHT),
    ("\\boxed{3 \\text{ and } 5}", "3, 5", RIGHT),
    ("\\boxed{1-\\sqrt{19}, 1+\\sqrt{19}}", "1 \\pm \\sqrt{19}", RIGHT),
    ("\\boxed{1\\pm\\sqrt{19}}", "1 \\pm \\sqrt{19}", RIGHT),
    ("\\boxed{-2, 1+\\sqrt5, 1-\\sqrt5}", "\\{1\\pm\\sqrt{5},-2\\}", RIGHT),
    (
        "\\boxed{\\begin{pmatrix}-1&0\\\\0&-1\\end{pmatrix}}",
        "\\begin{pmatrix} -1 & 0 \\\\ 0 & -1 \\end{pmatrix}",
        RIGHT,
    ),
    (
        "\\boxed{\\begin{bmatrix} 0.2 \\\\ -3.6 \\end{bmatrix}}",
        "\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}",
        RIGHT,
    ),
    ("\\boxed{2516_8}", "2516_8", RIGHT),
    ("\\boxed{2516_{8}}", "2516_8", RIGHT),
    ("\\boxed{2516}", "2516_8", RIGHT),
    ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", RIGHT),
    ("\\boxed{Evelyn}", "\\text{Evelyn}", RIGHT),
    ("The answer is **Evelyn**.", "\\text{Evelyn}", RIGHT),
    ("The answer is \\text{Even}.", "\\text{even}", RIGHT),
    ("\\boxed{C}", "\\text{(C)}", RIGHT),
    ("\\boxed{\\textbf{(C)}}", "\\text{(C)}", RIGHT),
    ("The answer is (C) 12.", "\\text{(C)}", RIGHT),
    ("The answer is therefore $x = 5$ units", "5", RIGHT),
    ("We get $$x = \\boxed{\\frac{9}{2}}$$ as wanted.", "4.5", RIGHT),
    (
        "15\\frac{39}{40}, so $\\boxed{15\\frac{39}{40}}$ or $\\boxed{\\frac{639}{40}}$",
        "\\frac{639}{40}",
        RIGHT,
    ),
    ("So $x + 1 = 4$. Hence $x = 3$.", "3", RIGHT),
    ("Hence the value is $\\frac{9}{100}$", "\\frac{9}{100}", RIGHT),
    ("\\boxed{\\frac{2}{1}}", "\\frac{1}{2}", WRONG),
    ("\\boxed{0.7500001}", "\\frac{3}{4}", WRONG),
    ("\\boxed{0.33}", "\\frac{1}{3}", WRONG),
    ("\\boxed{0.333334}", "\\frac{1}{3}", WRONG),
    ("\\boxed{-5}", "5", WRONG),
    ("\\boxed{5x}", "5", WRONG),
    ("\\boxed{y=5}", "x=5", WRONG),
    ("\\boxed{y = 3x+2}", "y = 2x + 3", WRONG),
    ("\\boxed{q-p}", "p - q", WRONG),
    ("\\boxed{(4,2)}", "(2,4)", WRONG),
    ("\\boxed{[2,4]}", "(2,4)", WRONG),
    ("\\boxed{2,4}", "(2,4)", WRONG),
    ("\\boxed{(2,4,6)}", "(2,4)", WRONG),
    ("\\boxed{3,5}", "3, 5, 7", WRONG),
    ("\\boxed{3,5,7,9}", "3, 5, 7", WRONG),
    ("\\boxed{3,3,5}", "3, 5, 5", WRONG),
    ("\\boxed{1+\\sqrt{19}}", "1 \\pm \\sqrt{19}", WRONG),
    ("\\boxed{(-\\infty,2]\\cup[3,\\infty)}", "(-\\infty, 2) \\cup (3, \\infty)", WRONG),
    ("\\boxed{2516_9}", "2516_8", WRONG),
    ("\\boxed{1358}", "2516_8", WRONG),
    ("\\boxed{\\text{neve}}", "\\text{even}", WRONG),
    ("\\boxed{\\text{seat}}", "\\text{east}", WRONG),
    ("\\boxed{(B)}", "\\text{(C)}", WRONG),
    (
        "\\boxed{\\begin{pmatrix}-1&0\\\\0&1\\end{pmatrix}}",
        "\\begin{pmatrix} -1 & 0 \\\\ 0 & -1 \\end{pmatrix}",
        WRONG,
    ),
    ("\\boxed{1 4/5}", "1", WRONG),
    ("\\boxed{3.14}", "\\pi", WRONG),
    ("\\boxed{100}", "1{,}000", WRONG),
    ("No idea.", "\\frac12", NONE),
    ("", "\\frac12", NONE),
    ("\\boxed{\\frac{1}{}}", "\\frac12", NONE),
    (r"\boxed{x=3, y=5}", "5", WRONG),
    (r"\boxed{x=3, y=5}", "(3,5)", RIGHT),
    (r"\boxed{x=3\text{ and }y=5}", "(3,5)", RIGHT),
    (r"\boxed{x=5, y=3}", "(3,5)", WRONG),
    (r"\boxed{x=1 \text{ or } x=-2}", "-2", WRONG),
    (r"\boxed{x=1\text{ or }x=-2}", "1,-2", RIGHT),
    (r"\boxed{x_1=1, x_2=-2}", "-2,1", RIGHT),
    (r"\boxed{5\text{ or }-5}", "5", WRONG),
    (r"\boxed{5\text{ or }-5}", "-5,5", RIGHT),
    (r"\boxed{5xy}", "5", WRONG),
    (r"\boxed{5 pi}", "5", WRONG),
    (r"\boxed{3 sqrt(2)}", "3", NONE),
    (r"\boxed{2:1}", "2", WRONG),
    (r"\boxed{3 \text{ million}}", "3,000,000", RIGHT),
    (r"\fbox{5}", "5", RIGHT),
]


def scored(text, gold, **kwargs):
    found = answer_scores(text, gold, **kwargs)
    return found["exact_match"], found["parsed"]


@pytest.mark.parametrize(("text", "gold", "expected"), NUMBERS)
def test_the_number_of_a_worked_answer(text, gold, expected):
    assert scored(text, gold, last_number=True) == expected


@pytest.mark.parametrize(("text", "gold", "expected"), FORMS)
def test_the_form_of_a_worked_answer(text, gold, expected):
    assert scored(text, gold) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{\\frac{1}{2}} and more", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{1}", "1"),
        ("\\boxed{1\nProblem: 2\n\\boxed{3}", None),
        ("a\nProblem: b\n\\boxed{3}", None),
        ("Answer: 3 = 3", "3 = 3"),
        ("nothing", None),
    ],
)
def test_which_text_counts(text, found):
    assert marked(text) == found


def test_numbers_are_exact():
    assert number(tidy("0.1"))[0] * 10 == 1 and number("1" * 500) is None and number("1/0") is None


HOSTILE = [
    "\\boxed{9^{9^{9^{9}}}}",
    "9^9^9^9",
    "\\boxed{1000000000!}",
    "\\boxed{" + "{" * 1500 + "1" + "}" * 1500 + "}",
    "\\boxed{" * 3000,
    "#### " * 3000,
    "The answer is " * 2000,
    "\\frac{" * 1000,
    "\\boxed{" + "9" * 3990 + "}",
    "1" * 50_000,
    "$" * 5000,
    "\\boxed{\\int_0^\\infty e^{-x^{x^x}} dx}",
    "\\boxed{\\sum_{n=1}^{10^{12}} \\sin(n^n)}",
    "\\boxed{__import__('os').system('touch hacked')}",
    "__import__('os').system('touch hacked') = 1+1",
    "\\boxed{\\input{/etc/passwd}}",
    "\0\ud800",
    "\\boxed{\ud800}",
    "\\boxed{\u202e18}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("last_number", [False, True])
def test_hostile_answers_are_wrong_in_time(text, last_number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert answer_scores(text, "\\frac{7}{3}", last_number=last_number)["exact_match"] == 0
    assert time.monotonic() - began < 60 and not list(tmp_path.iterdir())
    assert scored("\\boxed{\\sqrt{49}}", "7") == RIGHT  # and the next answer is read


def test_answers_are_scored_in_threads():
    found = {}

    def work(i):
        found[i] = scored(f"\\boxed{{\\sqrt{{{i * i}}}}}", str(i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(1, 9), RIGHT)


def test_a_worker_that_was_killed_is_started_again():
    assert math_worker.ask("7", "\\sqrt{49}") is True
    (worker,) = math_worker._running.values()
    worker.kill()
    worker.wait()
    assert math_worker.ask("8", "\\sqrt{64}") is True


def test_the_worker_ends_with_its_process():
    code = (
        "from lcfbench.tasks import math_worker as m; assert m.ask('7', '\\\\sqrt{49}');"
        "print(*(w.pid for w in m._running.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().isdigit() and not done.stderr
    deadline = time.monotonic() + 10
    while subprocess.run(["kill", "-0", done.stdout.strip()], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# -- the tasks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("gsm8k", 1319), ("math500", 500)])
def test_every_gold_is_accepted_and_the_next_one_is_not(mirror, name, count):
    task = load_task(name, offline=True)
    documents = task.documents()
    assert len(documents) == count and not task.dropped
    golds = [d.native["answer"] for d in documents]
    for d, other in zip(documents, golds[1:] + golds[:1], strict=True):
        gold, solution = d.native["answer"], d.native["solution"]
        whole = f"{solution}\n#### {gold}" if name == "gsm8k" else solution
        for text in (whole, f"\\boxed{{{gold}}}"):
            assert task.score(d, Outcome(text=text))["score"] == 1, (gold, text)
        if other.replace(",", "") != gold.replace(",", ""):
            assert task.score(d, Outcome(text=f"\\boxed{{{other}}}"))["score"] == 0, (gold, other)


@pytest.mark.parametrize("tokens", ["-1", "many", "1.5"])
def test_a_longest_answer_that_is_none_is_refused(tokens):
    with pytest.raises(UserError, match="answer_tokens"):
        load_task("gsm8k", options={"answer_tokens": tokens})


def test_the_versions_of_the_libraries_that_compare_are_part_of_the_identity():
    assert {"math-verify", "sympy"} <= set(versions(load_task("math500").libraries))
    assert versions(load_task("openbookqa").libraries) == versions()


def test_the_longest_answer_is_an_option(mirror):
    first = load_task("gsm8k", offline=True).documents(limit=1)[0]
    short = load_task("gsm8k", offline=True, options={"answer_tokens": "32"})
    assert (first.max_new_tokens, short.documents(limit=1)[0].max_new_tokens) == (512, 32)
    assert short.lm_eval_task().config.generation_kwargs["max_gen_toks"] == 32
    assert load_task("math500", offline=True).documents(limit=1)[0].max_new_tokens == 1024
