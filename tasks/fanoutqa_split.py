"""FanOutQA's facts dealt to a receiver and several sharers, and its loose and strict accuracy.

The data have no passages but a decomposition: sub-questions with answers and the article that each
comes from. Each leaf is one note, `Article: sub-question answer`. The receiver reads the notes that
depend on no other (mostly the list of things that the question fans out over) and its share of the
rest; the rest is dealt in turn, in the order of sha256(split_seed/row id/note/position), the first to a
party drawn by sha256(split_seed/row id). `sharer_parts` has the notes of each sharer; the sharer's view
holds them one after another. `fanoutqa_split.manifest.json.gz` freezes split_seed 0 for two sharers.

Loose accuracy is the published one: the share of the answer's strings (keys and values of a mapping,
items of a list) that stand in the text as whole words; strict: all of them do. Both are lower-cased and
freed of `,.?!:;` and of commas in numbers. Unlike the reference, words are not reduced to their lemma,
which needs a spaCy model, and a string that begins with a sign such as $ is found too.
"""

import json
import re
import unicodedata
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.split_evidence import MOST, Frozen, Parts, Wording, draws, places, prompts

FROZEN = Frozen(Path(__file__).with_name("fanoutqa_split.manifest.json.gz"))
FROZEN_SHARERS, MOST_SHARERS = 2, 8
WORDING = Wording(
    "Answer the question from the notes, on one line and with every value that it asks for.\n\n",
    "Write down, in a few sentences, the facts from the notes that help to answer the question.\n\n",
    "Write down, in a few sentences, the most important facts from the notes.\n\n",
)


@per_row
def row(
    raw,
    index,
    *,
    seed=0,
    sharers=FROZEN_SHARERS,
    split_seed=0,
    sharer_question="yes",
    receiver_context="half",
):
    """One question with the notes of every party, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    if not 1 <= sharers <= MOST_SHARERS:
        raise UserError(f"sharers={sharers}.", f"Give 1 to {MOST_SHARERS}.")
    try:
        answer, leaves = json.loads(raw["answer"]), list(leaves_of(json.loads(raw["decomposition"])))
        notes = [note(leaf) for leaf in leaves]
        free = [i for i, leaf in enumerate(leaves) if not leaf.get("depends_on")]
    except (AttributeError, KeyError, TypeError, ValueError):
        return "an answer or a decomposition that cannot be read"
    if not (raw.get("id") and raw.get("question")):
        return "no id or no question"
    if not strings(answer):
        return "no answer"
    dealt = [i for i in range(len(notes)) if i not in free] or free
    if len(dealt) <= sharers:
        return "fewer notes to deal than models"
    if len(notes) > MOST:
        return f"{len(notes)} notes"
    found = FROZEN.find(raw["id"], split_seed, len(notes)) if sharers == FROZEN_SHARERS else None
    order, sides = found or rule(raw["id"], notes, dealt, sharers, split_seed)
    held = [[notes[i] for i, s in zip(order, sides, strict=True) if s == side] for side in owners(sharers)]
    if isinstance(answer, dict | list) and accuracy(strings(answer), block("", held[0]))[1]:
        return "the receiver's notes hold the whole answer"
    mine = {"none": [], "half": held[0], "full": [notes[i] for i in order]}[receiver_context]
    theirs = [block(f"Notes of worker {n}:", part) for n, part in enumerate(held[1:], 1)]
    whole = [block("Notes:", [notes[i] for i in order])]
    first, sees = [block("Notes:", mine)] if mine else [], sharer_question == "yes"
    each = [prompts(raw["question"], Parts(first, [part], whole), sees, WORDING) for part in theirs]
    return {
        "id": raw["id"],
        "question": raw["question"],
        "answer": text_of(answer),
        "strings": strings(answer),
        "order": places(order),
        "sides": sides,
        "sharer_parts": theirs,
        "sharers": [views["sharer"] for views in each],
        "requests": [views["request"] for views in each],
        "subject": (raw.get("categories") or [""])[0],
        **prompts(raw["question"], Parts(first, theirs, whole), sees, WORDING),
    }


def leaves_of(nodes):
    """The sub-questions that are not decomposed further, in order."""
    for node in nodes:
        yield from leaves_of(node["decomposition"]) if node.get("decomposition") else [node]


def note(leaf):
    """A sub-question as one note. Raises ValueError where it has no answer."""
    if leaf["answer"] in (None, "", [], {}):
        raise ValueError("no answer")
    title = (leaf.get("evidence") or {}).get("title")
    return " ".join(f"{f'{title}: ' if title else ''}{leaf['question']} {text_of(leaf['answer'])}".split())


def block(head, notes):
    """A list of notes under its head."""
    return "\n".join([head, *(f"- {text}" for text in notes)])


def owners(sharers):
    """One character a party: the receiver, then the sharers."""
    return "R" + "".join(map(str, range(1, sharers + 1)))


def rule(ident, notes, dealt, sharers, split_seed):
    """The notes' order and, in that order, their owners. dealt: positions of those that are dealt."""
    draw, parties = draws(ident, split_seed), owners(sharers)
    order = sorted(range(len(notes)), key=lambda i: draw(notes[i], i))
    first = draw()[0]
    turn = {i: parties[(first + n) % len(parties)] for n, i in enumerate(i for i in order if i in dealt)}
    return order, "".join(turn.get(i, "R") for i in order)


# -- scores --------------------------------------------------------------------------------------


def text_of(answer):
    """An answer in words: `Apple: 164000; Meta: 71469`."""
    if isinstance(answer, dict):
        return "; ".join(f"{key}: {text_of(value)}" for key, value in answer.items())
    if isinstance(answer, list):
        return ", ".join(map(text_of, answer))
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


def strings(answer):
    """The strings that an answer must hold: keys and values of a mapping, items of a list, or itself."""
    if isinstance(answer, dict):
        return [text for pair in answer.items() for part in pair for text in strings(part)]
    if isinstance(answer, list):
        return [text for part in answer for text in strings(part)]
    return [text_of(answer)] if answer is not None and normalised(text_of(answer)) else []


def normalised(text):
    """Lower case, no `,.?!:;`, no commas in numbers, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(re.sub("[,.?!:;]", "", text).split())


def accuracy(wanted, text):
    """The share of the strings that stand in a text as whole words, and whether all do."""
    written = normalised(text)
    found = [bool(re.search(rf"(?<!\w){re.escape(normalised(each))}(?!\w)", written)) for each in wanted]
    return sum(found) / len(found), float(all(found))


def score(doc, results):
    """FanOutQA's loose and strict accuracy."""
    loose, strict = accuracy(doc["strings"], results[0])
    return {"loose": loose, "strict": strict}
