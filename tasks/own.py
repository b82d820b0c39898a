"""Scores of written answers to questions from a table."""

from lcfbench.tasks.qa_metrics import answer_scores


def score(doc, results):
    """lm-eval's `process_results`: F1 and exact match, the best over the row's answers."""
    return answer_scores(results[0], doc["answers"])
