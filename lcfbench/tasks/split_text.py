"""A text is cut in two at a sentence boundary: the sharer reads the half with the answer.

Nothing is drawn: text and answer decide. Texts in which the answer stands in both halves, or across
the cut, do not test communication; for them `halve` returns the reason instead.

>>> from lcfbench.tasks.split_text import find, halve
>>> text = "Cotton is white. She lives in a barn. It is warm."
>>> halve(text, find(text, "a barn")).sharer
'She lives in a barn. It is warm.'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lcfbench.tasks.document import NOTE

Span = tuple[int, int]  # characters [a, b) of a text
_END = re.compile(r"""(?P<word>[\w.]*)[.!?]["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])|\s*\n\s*\n\s*""")
_SHORT = re.compile(
    "mr|mrs|ms|dr|st|sr|jr|vs|prof|gen|sen|rep|gov|lt|col|capt|sgt|rev|hon"
    "|inc|corp|ltd|jan|feb|aug|sept|oct|nov",
    re.I,
)
# a worked example: without it small models answer in sentences; it has nothing to do with any text
SHOT = (
    "Notes: Mia has a red bike. She rides it to the lake on Sundays.\n"
    "Question: When does she ride it?\nAnswer: on Sundays\n\n"
)
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Halves:
    """The half of a text that each model reads, with single spaces. full: both in the text's order."""

    sharer: str
    receiver: str
    full: str


def sentences(text: str) -> list[Span]:
    """The sentences of `text`: cut at a full stop before a capital or digit, and at blank lines.

    There is no cut after `Mr.` or `J.`.
    """
    found, start = [], len(text) - len(text.lstrip())
    for end in _END.finditer(text):
        word = end["word"]
        if word is not None and text[end.end("word")] == "." and (_initial(word) or _SHORT.fullmatch(word)):
            continue
        stop = end.start() + len(end[0].rstrip())
        if stop > start:
            found.append((start, stop))
        start = end.end()
    if text[start:].strip():
        found.append((start, len(text.rstrip())))
    return found


def _initial(word: str) -> bool:
    """`J`, `U.S`, `e.g`: letters that a full stop shortens."""
    return bool(re.fullmatch(r"([A-Za-z]\.)*[A-Za-z]", word)) and word != "I"


def find(text: str, phrase: str) -> list[Span]:
    """The places of `phrase` in `text` as whole words, whatever the case, punctuation and first article."""
    words = re.findall(r"\w+", phrase)
    while words and words[0].lower() in _ARTICLES:
        words = words[1:]
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\W+".join(map(re.escape, words)) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def halve(text: str, answer: Sequence[Span], max_words: int = 0) -> Halves | str:
    """Both halves, or the reason why there are none.

    answer: all places of the answer in `text`; the first one counts when halves are shortened.
    max_words: longest half in words (0: any). The sharer keeps the answer's sentence and its
        neighbours, the receiver the beginning of its half.
    """
    if not answer:
        return "the answer is not in the text"
    parts = sentences(text)
    if len(parts) < 2:
        return "one sentence"
    middle = (parts[0][0] + parts[-1][1]) / 2
    at = min(range(1, len(parts)), key=lambda i: abs((parts[i - 1][1] + parts[i][0]) / 2 - middle))
    border = parts[at][0]
    if any(a < border < b for a, b in answer):
        return "the answer lies across the cut"
    first = {a < border for a, _ in answer}
    if len(first) > 1:
        return "the answer is in both halves"
    theirs, mine = (parts[:at], parts[at:]) if first.pop() else (parts[at:], parts[:at])
    home = max(i for i, (a, _) in enumerate(theirs) if i == 0 or a <= answer[0][0])
    kept, own = _near(text, theirs, home, max_words), _near(text, mine, 0, max_words)
    if not (kept and own):
        return f"a sentence of more than {max_words} words"
    if answer[0][1] > kept[-1][1]:
        return f"an answer that ends beyond {max_words} words"
    sharer, receiver = _joined(text, kept), _joined(text, own)
    return Halves(sharer, receiver, " ".join([sharer, receiver] if kept < own else [receiver, sharer]))


def _near(text: str, parts: Sequence[Span], home: int, max_words: int) -> list[Span]:
    """As many sentences round number `home` as fit, later ones first; none if it alone is too long."""
    sizes = [len(text[a:b].split()) for a, b in parts]
    if not max_words:
        return list(parts)
    low, high, total = home, home + 1, sizes[home]
    if total > max_words:
        return []
    while True:
        if high < len(parts) and total + sizes[high] <= max_words:
            total, high = total + sizes[high], high + 1
        elif low > 0 and total + sizes[low - 1] <= max_words:
            total, low = total + sizes[low - 1], low - 1
        else:
            return list(parts[low:high])


def _joined(text: str, parts: Sequence[Span]) -> str:
    return " ".join(text[parts[0][0] : parts[-1][1]].split())


def views(
    halves: Halves,
    question: str,
    before: Sequence[Sequence[str]],
    sharer_question: str,
    receiver_context: str,
) -> dict[str, str]:
    """The prompts of a task on halves, and the beginnings of the sharer's answer and note.

    before: earlier (question, answer) pairs of the conversation, for each model that sees the question.
    sharer_question: yes or no. receiver_context: none, half or full.
    """
    sees = sharer_question == "yes"
    turns = "".join(f"Question: {q.strip()}\nAnswer: {a.strip()}\n" for q, a in before)
    asked = f"{turns}Question: {question.strip()}\n"
    mine = {"none": "", "half": halves.receiver, "full": halves.full}[receiver_context]
    own = SHOT + (f"Notes: {mine}\n" if mine else "")
    theirs = f"Notes: {halves.sharer}\n"
    sharer = SHOT + theirs + asked if sees else theirs
    return {
        "question": question,
        "receiver": own + asked,
        "sharer": sharer,
        "sharer_prefix": "Answer:" if sees else "",
        "full": f"{SHOT}Notes: {halves.full}\n{asked}",
        "request": sharer,
        "request_prefix": "Answer:" if sees else "In short:",
        "noted": f"{own}{NOTE}\n{asked}",
    }
