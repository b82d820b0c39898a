"""LongBench's scores, each by its published rule (arXiv 2308.14508 and its repository's `metrics.py`).

All are from 0 to 1 and compare one written answer with one gold. Two details differ: ROUGE-L has no
limit on the length of a sentence (the published code gives 0 where Python's recursion ends, above about
1,000 words), and `code_similarity` is that of Python's difflib, which the published code uses where
python-Levenshtein is not installed.

>>> from lcfbench.tasks.longbench_metrics import token_f1
>>> token_f1("the Eiffel tower", "Eiffel Tower, Paris")
0.8
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

from lcfbench.tasks.qa_metrics import normalised

_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_PUNCTUATION = set(string.punctuation + _CHINESE)
Score = Callable[[str, str, Sequence[str]], float]


def token_f1(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """F1 over normalised words."""
    return _f1(normalised(text).split(), normalised(gold).split())


def token_f1_zh(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """F1 over Chinese words without punctuation."""
    return _f1(_words_zh(text), _words_zh(gold))


def rouge_l(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of a summary as the package `rouge` has it.

    A sentence ends at each full stop. The distinct words of the longest common subsequences of all
    pairs of sentences are counted against the distinct words of both texts.
    """
    ours, theirs = ([" ".join(s.split()).split(" ") for s in t.split(".") if s] for t in (text, gold))
    if not (ours and theirs):
        return 0.0
    common = set[str]().union(*(_common(known, said) for known in theirs for said in ours))
    precision, recall = (len(common) / len({w for s in side for w in s}) for side in (ours, theirs))
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_zh(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L over Chinese words."""
    return rouge_l(" ".join(_cut(text)), " ".join(_cut(gold)))


def class_accuracy(text: str, gold: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the text names, where the gold is among them.

    A class that is a part of the gold's name does not count; but of two such that follow each other in
    the list of classes the second does, as in the published loop.
    """
    named = [name for name in classes if name in text]
    place = 0
    while place < len(named):
        if named[place] in gold and named[place] != gold:
            del named[place]
        place += 1
    return 1 / len(named) if gold in named else 0.0


def retrieval(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """The share of the right number among all numbers of the text; gold: `Paragraph 7` or `段落7`."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", gold)
    return count(text, found[1]) if found else 0.0


def count(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """The share of the gold among all numbers of the text."""
    numbers = re.findall(r"\d+", text)
    return numbers.count(str(gold)) / len(numbers) if numbers else 0.0


def code_similarity(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Similarity, in whole per cent, of the first line that has no comment and no backtick."""
    lines = text.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == gold:
        return 1.0
    if not (line and gold):
        return 0.0
    return round(100 * SequenceMatcher(None, line, gold).ratio()) / 100


def _f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _common(known: Sequence[str], said: Sequence[str]) -> set[str]:
    """The words of one longest common subsequence: of several, the one that `rouge` walks back along."""
    longest = [[0] * (len(said) + 1) for _ in range(len(known) + 1)]
    for i, word in enumerate(known, 1):
        for j, other in enumerate(said, 1):
            same = word == other
            longest[i][j] = longest[i - 1][j - 1] + 1 if same else max(longest[i - 1][j], longest[i][j - 1])
    found = set()
    i, j = len(known), len(said)
    while i and j:
        if known[i - 1] == said[j - 1]:
            found.add(known[i - 1])
            i, j = i - 1, j - 1
        elif longest[i - 1][j] > longest[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _words_zh(text: str) -> list[str]:
    words = ("".join(c for c in word.lower() if c not in _PUNCTUATION) for word in _cut(text))
    return [kept for word in words if (kept := "".join(word.split()))]


def _cut(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    words: Any = jieba.cut(text, cut_all=False)
    return list(words)
