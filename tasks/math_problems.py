"""Word problems whose answer is worked out in writing: GSM8K and MATH-500."""

from lcfbench.tasks.math_answers import answer_scores
from lcfbench.tasks.process_docs import per_row


@per_row
def gsm8k(row, index):
    """`answer` is the worked solution; the gold stands behind its `####`, as it is written there."""
    solution, marked, gold = row["answer"].rpartition("####")
    if not marked or not gold.strip():
        return "no answer behind ####"
    texts = {"problem": row["question"], "solution": solution.strip(), "answer": gold.strip()}
    return {"id": str(index), **texts, "subject": ""}


@per_row
def math500(row, index):
    if not row["answer"].strip():
        return "no answer"
    texts = {key: row[key] for key in ("problem", "solution", "answer", "subject")}
    return {"id": row["unique_id"], **texts, "level": row["level"]}


def score_number(doc, results):
    """GSM8K: the marked answer, else the last number of the text."""
    return answer_scores(results[0], doc["answer"], last_number=True)


def score(doc, results):
    return answer_scores(results[0], doc["answer"])
