"""Exact match and token F1 as SQuAD and HotpotQA compute them, over one gold answer or several.

>>> from lcfbench.tasks.qa_metrics import answer_scores
>>> answer_scores(" The Eiffel Tower.", ["Eiffel Tower", "tower"])
{'f1': 1.0, 'exact_match': 1.0}
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence


def answer_scores(text: str, golds: Sequence[str]) -> dict[str, float]:
    """`f1` and `exact_match` of a written answer, each the best over the golds (arXiv 1606.05250)."""
    predicted, known = normalised(text), [normalised(gold) for gold in golds]
    return {"f1": max(f1(predicted, gold) for gold in known), "exact_match": float(predicted in known)}


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's rule."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(predicted: str, gold: str) -> float:
    """Token F1 of two normalised answers; yes, no and noanswer match only themselves (arXiv 1809.09600)."""
    if predicted != gold and {predicted, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    ours, theirs = predicted.split(), gold.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
