"""SQuAD with each paragraph cut in two: the sharer reads the half with the answer, the receiver the other.

A paragraph is dropped (and counted) where a gold answer also stands in the receiver's half, or lies
across the cut. The Hub's validation split is the test split; of its train split, 5 % of the articles
(by hash of the title) are for validation.
"""

from lcfbench.tasks.process_docs import part_of, per_row
from lcfbench.tasks.qa_metrics import answer_scores
from lcfbench.tasks.split_text import find, halve, views

PARTS = {"train": 95, "validation": 5}


def articles(table, split):
    """All rows for the test, else the articles of one part of the train split."""
    return [row for row in table if split == "test" or part_of(row["title"], PARTS) == split]


@per_row(raw=articles)
def row(raw, index, *, seed=0, sharer_question="yes", receiver_context="half", max_words=0):
    """One question with both halves of its paragraph, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    golds = list(dict.fromkeys(text.strip() for text in raw["answers"]["text"] if text.strip()))
    if not golds:
        return "no answer"
    text, begin = raw["context"], raw["answers"]["answer_start"][0]
    span = (begin, begin + len(raw["answers"]["text"][0]))
    halves = halve(text, [span, *(place for gold in golds for place in find(text, gold))], max_words)
    if isinstance(halves, str):
        return halves
    return {
        "id": raw["id"],
        "answer": golds[0],
        "answers": golds,
        **views(halves, raw["question"], (), sharer_question, receiver_context),
    }


def score(doc, results):
    """SQuAD's exact match and F1, the best over the gold answers."""
    return answer_scores(results[0], doc["answers"])
