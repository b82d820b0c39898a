"""HotpotQA split in two: the five paragraphs of each model, the prompts, and the official scores.

The rule: all ten paragraphs are put in the order of sha256(split_seed/row id/title/position). The
parity of sha256(split_seed/row id) says whether the first of the two supporting paragraphs goes to the
receiver (the other goes to the sharer). Of the eight distractors the first four in order go to the
receiver. Row id and titles decide, so a row gets the same split in any file.
`hotpotqa_split.manifest.json.gz` freezes split_seed 0 for the rows it lists.
"""

import functools
import gzip
import hashlib
import json
from pathlib import Path

from lcfbench.tasks.process_docs import part_of, per_row
from lcfbench.tasks.qa_metrics import answer_scores

MANIFEST = Path(__file__).with_name("hotpotqa_split.manifest.json.gz")
FORM = "Answer the question from the passages, in a few words and nothing else.\n\n"
ASK = "Write down, in a few sentences, the facts from the passages that help to answer the question.\n\n"
ASK_BLIND = "Write down, in a few sentences, the most important facts from the passages.\n\n"
PARTS = {"train": 97, "validation": 3}  # of the Hub's train split


def questions(table, split):
    """All rows for the test (the Hub's validation split), else one part of the train split."""
    return [row for row in table if split == "test" or part_of(row["id"], PARTS) == split]


@per_row(raw=questions)
def row(raw, index, *, seed=0, split_seed=0, sharer_question="yes", receiver_context="half"):
    """One bridge question with both halves, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    if raw["type"] != "bridge":
        return f"{raw['type']} question"
    titles, sentences = raw["context"]["title"], raw["context"]["sentences"]
    supporting = set(raw["supporting_facts"]["title"])
    if len(titles) != 10 or len(set(titles)) != 10:
        return "not ten paragraphs"
    if len(supporting) != 2 or not supporting <= set(titles):
        return "not two supporting paragraphs"
    order, sides = assignment(raw["id"], titles, supporting, split_seed)
    passages = [f"{titles[i]}: {''.join(sentences[i]).strip()}" for i in order]
    half = {side: [p for p, s in zip(passages, sides, strict=True) if s == side] for side in "RS"}
    mine = {"none": [], "half": half["R"], "full": passages}[receiver_context]
    question = f"Question: {raw['question'].strip()}\n"

    def shown(*parts):
        return "\n\n".join(p for part in parts for p in ([part] if isinstance(part, str) else part))

    sees = sharer_question == "yes"
    return {
        "id": raw["id"],
        "question": raw["question"],
        "answer": raw["answer"],
        "order": "".join(map(str, order)),
        "sides": sides,
        "receiver": FORM + shown(mine, question) if mine else question,
        "sharer": FORM + shown(half["S"], question) if sees else shown(half["S"]),
        "sharer_prefix": "Answer:" if sees else "",
        "full": FORM + shown(passages, question),
        "request": ASK + shown(half["S"], question) if sees else ASK_BLIND + shown(half["S"]) + "\n\n",
        "noted": FORM + shown(mine, "<<note>>", question),
    }


def assignment(ident, titles, supporting, split_seed):
    """The paragraphs' order (a permutation of positions) and, in that order, the owners: "R" or "S"."""
    if str(split_seed) == "0" and ident in _frozen():
        order, sides = _frozen()[ident]
        return [int(i) for i in order], sides
    return rule(ident, titles, supporting, split_seed)


def rule(ident, titles, supporting, split_seed):
    def draw(*parts):
        return hashlib.sha256("/".join(map(str, (split_seed, ident, *parts))).encode()).digest()

    order = sorted(range(len(titles)), key=lambda i: draw(titles[i], i))
    # the owner of the first supporting paragraph (in the data set's order), then of the second
    first = "RS" if draw()[0] % 2 == 0 else "SR"
    gold = [i for i, title in enumerate(titles) if title in supporting]
    side = dict(zip(gold, first, strict=True))
    others = [i for i in order if i not in side]
    side |= {i: "RS"[n >= len(others) // 2] for n, i in enumerate(others)}
    return order, "".join(side[i] for i in order)


@functools.cache
def _frozen():
    if not MANIFEST.is_file():
        return {}
    with gzip.open(MANIFEST, "rt", encoding="utf-8") as file:
        return json.load(file)["rows"]


def freeze(documents):
    """Writes the manifest file for these documents (of split_seed 0)."""
    text = '{"rule": "see hotpotqa_split.py", "split_seed": 0, "rows": ' + manifest(documents) + "}\n"
    MANIFEST.write_bytes(gzip.compress(text.encode(), mtime=0))


def manifest(documents):
    """The split of these documents as one canonical text; its sha256 goes into every result."""
    return json.dumps(
        {d["id"]: [d["order"], d["sides"]] for d in documents}, sort_keys=True, separators=(",", ":")
    )


def score(doc, results):
    """HotpotQA's official exact match and F1; yes, no and noanswer match only themselves."""
    return answer_scores(results[0], [doc["answer"]])
