"""Multiple choice: rows of several data sets in one shape, and the score of a written answer.

A document has id, question, options (texts), letters ("A", "B", … by position), gold (index), letter
(of the gold option) and subject.
"""

from lcfbench.tasks.letters import read_letter
from lcfbench.tasks.process_docs import per_row

ALPHABET = "ABCDEFGHIJ"


def document(ident, question, options, gold, subject=""):
    """One document, or the reason why there is none. gold: an index."""
    if not 2 <= len(options) <= len(ALPHABET):
        return f"{len(options)} options"
    if gold is None or not 0 <= gold < len(options):
        return "the key names no option"
    letters = list(ALPHABET[: len(options)])
    key = {"letters": letters, "gold": gold, "letter": letters[gold]}
    return {"id": ident, "question": question, "options": list(options), **key, "subject": subject}


def position(labels, key):
    """Index of the option that `key` names.

    Some ARC rows label options 1 to 4, and some keys are numbers while the labels are letters.
    """
    labels, key = [str(label).strip() for label in labels], str(key).strip()
    if key in labels:
        return labels.index(key)
    if len(key) == 1 and key.upper() in ALPHABET:
        return ALPHABET.index(key.upper())
    return int(key) - 1 if key.isdecimal() else None


@per_row
def openbookqa(row, index):
    choices = row["choices"]
    return document(
        row["id"], row["question_stem"], choices["text"], position(choices["label"], row["answerKey"])
    )


@per_row
def arc(row, index):
    choices = row["choices"]
    return document(row["id"], row["question"], choices["text"], position(choices["label"], row["answerKey"]))


@per_row
def mmlu_redux(row, index):
    """Drops rows without a right option or left to an expert; replaces a wrong key by the corrected one.

    `correct_answer` of a `wrong_groundtruth` row is an index ("0" to "3"), a letter, or (five rows) empty.
    """
    kind, options, gold = row["error_type"], row["choices"], row["answer"]
    if kind in ("no_correct_answer", "expert"):
        return kind
    if kind == "wrong_groundtruth":
        named = str(row["correct_answer"] or "").strip()
        if named.isdecimal():
            gold = int(named)
        elif len(named) == 1 and named.upper() in ALPHABET:
            gold = ALPHABET.index(named.upper())
        else:
            gold = options.index(named) if options.count(named) == 1 else None
        if gold is None or gold >= len(options):
            return "wrong_groundtruth without a corrected key"
    return document(f"{row['subject']}-{index}", row["question"], options, gold, row["subject"])


@per_row
def mmlu_pro(row, index):
    """The letter `answer` is the key, as in the authors' own scoring; `answer_index` is not read.

    The two agree but for question 3983, whose letter names the right option. Options are asked as the
    data have them, 3 to 10 a question.
    """
    return document(
        str(row["question_id"]),
        row["question"],
        row["options"],
        position(ALPHABET, row["answer"]),
        row["category"],
    )


@per_row
def medqa(row, index):
    """Drops a row whose key names another option than the text of its answer."""
    options, key = row["options"], row["answer_idx"]
    if options.get(key) != row["answer"]:
        return "the key is not the answer"
    letters = [letter for letter in ALPHABET if options.get(letter) is not None]
    texts = [options[letter] for letter in letters]
    return document(
        f"{row['meta_info']}-{index}", row["question"], texts, letters.index(key), row["meta_info"]
    )


def score_written(doc, results):
    """lm-eval's `process_results` of a written answer: exact_match, and whether and how it was read."""
    letter, rule = read_letter(results[0], doc["options"])
    return {
        "exact_match": float(letter == doc["letter"]),
        "parsed": float(letter is not None),
        "parsed_by": rule,
    }
