"""2WikiMultihopQA split in two: five of the ten paragraphs each, the supporting ones dealt in turn.

Both layouts are read: context and supporting facts as JSON in a string (`_id`), and as HotpotQA has
them (`id`). A document's subject is the question's type. `twowiki_split.manifest.json.gz` freezes
split_seed 0 for the rows it lists.
"""

import json
from pathlib import Path

from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.split_evidence import Asked, Evidence, Frozen, golds, halves, hub_splits

FROZEN = Frozen(Path(__file__).with_name("twowiki_split.manifest.json.gz"))


def ident(raw):
    """The id of a row in either layout."""
    return raw.get("_id") or raw.get("id")


def pairs(value, second):
    """[title, other] of a context or of supporting facts, in either layout. Raises ValueError."""
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, dict):
        return list(zip(value["title"], value[second], strict=True))
    return [(title, other) for title, other in value]


@per_row(raw=hub_splits(ident))
def row(raw, index, *, seed=0, split_seed=0, sharer_question="yes", receiver_context="half"):
    """One question with both halves, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    try:
        context = pairs(raw.get("context"), "sentences")
        facts = pairs(raw.get("supporting_facts"), "sent_id")
        texts = [sentences and " ".join(s.strip() for s in sentences) for _, sentences in context]
    except (AttributeError, KeyError, TypeError, ValueError):
        return "a context or supporting facts that cannot be read"
    titles, needed = [title for title, _ in context], {title for title, _ in facts}
    if any(titles.count(title) != 1 for title in needed):
        return "a supporting paragraph that is not there once"
    places = [i for i, title in enumerate(titles) if title in needed]
    answers = golds([raw.get("answer")])
    found = Evidence(ident(raw), raw.get("question"), titles, texts, places)
    if problem := found.problem(answers):
        return problem
    fields = halves(found, Asked(split_seed, sharer_question, receiver_context), FROZEN)
    subject = str(raw.get("type") or "").replace("_", " ")
    return {**fields, "answer": answers[0], "answers": answers, "subject": subject}
