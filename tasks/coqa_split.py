"""CoQA with each story cut in two: the sharer reads the half with the answer, the receiver the other.

Only the data set's validation split is used (500 stories): 70 % of the stories are the task's train
split, 10 % its validation, 20 % its test, by hash of the story. Both layouts are read, one row a story
(the Hub's) and one row a turn. Story and first gold answer decide the halves, so both give the same
documents; the layout by turns has more gold answers to score against. Questions answered by yes or no,
and answers that are not words of the story, are dropped.
"""

import hashlib

from lcfbench.tasks.process_docs import part_of, per_row
from lcfbench.tasks.qa_metrics import answer_scores, normalised
from lcfbench.tasks.split_text import find, halve, views

PARTS = {"train": 70, "validation": 10, "test": 20}
TURNS = 2  # earlier questions and answers that both models read


def turns(table, split):
    """One row a turn of the stories of a part: id, story, question, answers, and earlier pairs of both."""
    found = []
    for row in table:
        if part_of(row["story"].strip(), PARTS) != split:
            continue
        if "questions" in row:  # one row a story
            said = list(zip(row["questions"], row["answers"]["input_text"], strict=True))
            found += [_turn(row["story"], said, i, [answer]) for i, (_, answer) in enumerate(said)]
        else:
            # the whole conversation, in spite of its name
            said = [(pair["question"], pair["answer"]) for pair in row["previous_qa"]]
            found.append(_turn(row["story"], said, int(row["id"].rpartition("_turn")[2]), row["answers"]))
    return found


def _turn(story, said, at, answers):
    ident = hashlib.sha256(f"{story.strip()}\n{said[0][0]}".encode()).hexdigest()[:12]
    before = [list(pair) for pair in said[max(at - TURNS, 0) : at]]
    return {
        "id": f"{ident}-{at}",
        "story": story,
        "question": said[at][0],
        "answers": list(answers),
        "before": before,
    }


@per_row(raw=turns)
def row(raw, index, *, seed=0, sharer_question="yes", receiver_context="half", max_words=0):
    """One question with both halves of its story, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    golds = list(dict.fromkeys(text.strip() for text in raw["answers"] if text.strip()))
    if not golds or normalised(golds[0]) in ("", "unknown"):
        return "no answer"
    if normalised(golds[0]).split()[0] in ("yes", "no"):
        return "yes or no"
    if any(find(answer, golds[0]) for _, answer in raw["before"]):
        return "the answer was given before"
    halves = halve(raw["story"], find(raw["story"], golds[0]), max_words)
    if isinstance(halves, str):
        return halves
    return {
        "id": raw["id"],
        "answer": golds[0],
        "answers": golds,
        **views(halves, raw["question"], raw["before"], sharer_question, receiver_context),
    }


def score(doc, results):
    """CoQA's exact match and F1 (SQuAD's normalisation), the best over the gold answers."""
    return answer_scores(results[0], doc["answers"])
