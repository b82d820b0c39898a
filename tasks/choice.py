"""Multiple choice: rows of three data sets in one shape, and the option that a written answer names.

A document has id, question, options (texts), letters ("A", "B", … by position), gold (index), letter
(of the gold option) and subject.
"""

import re

from lcfbench.tasks.process_docs import per_row

ALPHABET = "ABCDEFGHIJ"
_SAYS = (
    r"\b(?:answer|correct (?:option|choice)|choice|option)\b[^\n.:]{0,20}?"
    r"(?:\bis\b|\bwould be\b|:|=)(?!\s*not\b)\s*(.*)"
)


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


def score_written(doc, results):
    """lm-eval's `process_results` of a written answer: exact_match, and whether it named an option."""
    letter = read_letter(results[0], doc["options"])
    return {"exact_match": float(letter == doc["letter"]), "parsed": float(letter is not None)}


def read_letter(text, options):
    """The letter of the option that a written answer names, or None.

    Tried in order: the whole answer (or its first line) is an option's text; it begins with a letter
    that stands for an option; it says "the answer is …"; it points at exactly one letter ("(C)",
    "option C"). The initial of a word and the words "A" and "I" are not letters.
    """
    text = text.rpartition("</think>")[2]
    text = re.sub(r"\n\s*(Question|Q)\s*\d*:.*", "", text, flags=re.S)  # a next question is not ours
    text = re.sub(r"\\(?:boxed|text|textbf|mathrm)\s*\{([^{}]*)\}", r"(\1)", text)
    emphasised = text
    text = re.sub(r"[*_`$#]+", "", text).strip()
    letters = ALPHABET[: len(options)]
    for piece in (text, text.partition("\n")[0]):
        if len(_plain(piece)) > 1 and (named := _option(piece, options)) is not None:
            return letters[named]
    if found := _leading(text, letters):
        return found
    said = re.search(_SAYS, text, re.I | re.S)
    if said:
        rest = re.sub(
            r"^(?:(?:the )?(?:option|choice|letter|answer)\b[\s:]*)+", "", said[1].strip(" \n:"), flags=re.I
        )
        if (named := _option(re.split(r"[.\n]", rest, maxsplit=1)[0], options)) is not None and len(
            _plain(rest)
        ) > 1:
            return letters[named]
        if found := _leading(rest, letters):
            return found
    pointed = set(
        re.findall(
            rf"\(([{letters}])\)|\b(?:[Oo]ption|[Cc]hoice) ([{letters}])\b|\*\*\(?([{letters}])[).:]?\*\*",
            emphasised,
        )
    )
    pointed = {letter for groups in pointed for letter in groups if letter}
    return pointed.pop() if len(pointed) == 1 else None


def _leading(text, letters):
    """A letter at the beginning: "B", "(c)", "b)", "B.", "B: foo"; not "Democracy", "a good idea", "e.g."."""
    small = letters.lower()
    if re.match(rf"\W*[{letters}]\W+(?:or|and)\W+[{letters}]\b", text):
        return None
    if found := re.match(rf"[\"'\[(]*\s*([{letters}{small}])\s*[\"'\])]*\s*$", text):
        return found[1].upper()
    if found := re.match(rf"[\"']?[(\[]\s*([{letters}{small}])\s*[)\]]", text):
        return found[1].upper()
    if found := re.match(rf"[\"']?([{letters}{small}])\s?[).:\]](?:\s|$|[A-Z])", text) or re.match(
        rf"[\"']?([{letters}])[,;\"'\n]", text
    ):
        return found[1].upper()
    if found := re.match(rf"([{letters}])\s*[\n–—-]", text):
        return found[1]
    if found := re.match(rf"([{letters}])\s+(\w+)", text):  # "A" and "I" also begin sentences
        return found[1] if found[1] not in "AI" or found[2] in ("is", "because", "since", "as") else None
    return None


def _plain(text):
    return " ".join(re.sub(r"^[\s\"'(\[]+|[\s\"').,;:!\]]+$", "", text).casefold().split())


def _option(text, options):
    """Index of the one option whose text this is."""
    same = [i for i, option in enumerate(options) if _plain(option) == _plain(text)]
    return same[0] if len(same) == 1 else None
