"""Scores and manifest of tasks whose paragraphs are dealt to two models."""

from lcfbench.tasks.qa_metrics import answer_scores
from lcfbench.tasks.split_evidence import manifest

__all__ = ["manifest", "score"]


def score(doc, results):
    """SQuAD's exact match and F1, the best over the gold answer and its aliases."""
    return answer_scores(results[0], doc["answers"])
