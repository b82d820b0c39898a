"""HotpotQA split in two, with more paragraphs beside the sharer's, so that its context grows.

Without further paragraphs the texts are those of `hotpotqa_split`, and its frozen split holds. Further
ones come, in this order, from the receiver's half (never the one that is needed) and then from other
questions of the same split: one paragraph each, from a question that sha256(split_seed/row id/beside)
chooses on. No further paragraph holds the answer's words, and none has a title that is there already. The
sharer reads all of them in the order of sha256(split_seed/row id/beside/title).
"""

import hashlib
import string
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.tasks import split_evidence
from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.qa_metrics import answer_scores, normalised
from lcfbench.tasks.split_evidence import Asked, Evidence, Frozen, Parts, draws, halves, hub_splits, prompts

__all__ = ["manifest", "row", "score"]

FROZEN = Frozen(Path(__file__).with_name("hotpotqa_split.manifest.json.gz"))
MOST = 400  # further paragraphs
BARE = str.maketrans("", "", string.punctuation)


_tables = {}  # digest of a split's rows → their paragraphs, for a row is handed over without the others


def questions(table, split):
    """The raw rows of a split, each with the digest of all of them as `rows`."""
    found = hub_splits()(table, split)
    paragraphs = [(each["id"], _paragraphs(each)) for each in found]
    digest = hashlib.sha256()
    for each in paragraphs:
        digest.update(repr(each).encode())
    _tables[digest.hexdigest()] = paragraphs
    return [{**each, "rows": digest.hexdigest()} for each in found]


@per_row(raw=questions)
def row(raw, index, *, seed=0, split_seed=0, sharer_question="yes", receiver_context="half", distractors=0):
    """One bridge question with both parts, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them. distractors: further paragraphs that the sharer
    reads. Raises UserError for a number outside 0 to `MOST`.
    """
    if not 0 <= distractors <= MOST:
        raise UserError(f"hotpotqa_long: distractors={distractors}.", f"Give 0 to {MOST}.")
    if raw["type"] != "bridge":
        return f"{raw['type']} question"
    titles, texts = _paragraphs(raw)
    supporting = set(raw["supporting_facts"]["title"])
    if len(titles) != 10 or len(set(titles)) != 10:
        return "not ten paragraphs"
    if len(supporting) != 2 or not supporting <= set(titles):
        return "not two supporting paragraphs"
    places = [i for i, title in enumerate(titles) if title in supporting]
    found = Evidence(raw["id"], raw["question"], titles, texts, places)
    fields = halves(found, Asked(split_seed, sharer_question, receiver_context), FROZEN)
    if not distractors:
        return {**fields, "answer": raw["answer"]}

    order = [split_evidence.PLACES.index(place) for place in fields["order"]]
    of = {side: [i for i, s in zip(order, fields["sides"], strict=True) if s == side] for side in "RS"}
    draw = draws(raw["id"], split_seed)
    near = [(titles[i], texts[i]) for i in of["R"] if i not in places]
    added = beside(raw, near, draw, distractors)
    if len(added) < distractors:
        return f"fewer than {distractors} paragraphs without its answer"
    theirs = sorted([(titles[i], texts[i]) for i in of["S"]] + added, key=lambda p: draw("beside", p[0]))
    mine = [(titles[i], texts[i]) for i in of["R"]]
    whole = theirs + [p for p in mine if p not in theirs]
    kept = {"none": [], "half": mine, "full": whole}[receiver_context]
    parts = Parts(*([f"{title}: {text.strip()}" for title, text in each] for each in (kept, theirs, whole)))
    return {
        **fields,
        "answer": raw["answer"],
        "added": [title for title, _ in added],
        **prompts(raw["question"], parts, sharer_question == "yes"),
    }


def beside(raw, near, draw, count):
    """`count` further paragraphs as (title, text), or as many as there are; `near` come first."""
    answer, seen = normalised(raw["answer"]), set(raw["context"]["title"])
    words = answer.split()

    def fits(title, text):
        plain = f"{title}: {text}".lower().translate(BARE)
        if not text.strip():
            return False
        if not all(word in plain for word in words):  # so it is not in the text by SQuAD's rule either
            return True
        return f" {answer} " not in f" {normalised(f'{title}: {text}')} "

    found = [each for each in near if fits(*each)][:count]
    rows = _tables[raw["rows"]]
    start = int.from_bytes(draw("beside")[:8]) % len(rows)
    turned = [*rows[start:], *rows[:start]]
    for turn in range(10):  # one paragraph of each question, then a second one, and so on
        for ident, (titles, texts) in turned:
            if len(found) == count:
                return found
            if turn >= len(titles):
                continue
            place = (draw("beside", ident)[0] + turn) % len(titles)
            title, text = titles[place], texts[place]
            if title not in seen and fits(title, text):
                seen.add(title)
                found.append((title, text))
    return found


def _paragraphs(raw):
    return raw["context"]["title"], ["".join(s) for s in raw["context"]["sentences"]]


def manifest(documents):
    """The split of these documents as one canonical text, with the titles of the further paragraphs."""
    documents = list(documents)
    named = "".join(f"{d['id']} {d['added']}\n" for d in documents if "added" in d)
    return split_evidence.manifest(documents) + named


def score(doc, results):
    """HotpotQA's official exact match and F1; yes, no and noanswer match only themselves."""
    return answer_scores(results[0], [doc["answer"]])
