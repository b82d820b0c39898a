"""HotpotQA with its two supporting paragraphs on two sharers: neither of them can answer alone.

Of the other eight paragraphs the receiver gets four and each sharer two, in the order of
sha256(split_seed/row id/title/position); the parity of sha256(split_seed/row id) says which sharer gets the
first supporting paragraph. The one sharer of a pair reads the paragraphs of both.
"""

from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.qa_metrics import answer_scores
from lcfbench.tasks.split_evidence import Parts, draws, hub_splits, manifest, places, prompts

__all__ = ["manifest", "row", "score"]


@per_row(raw=hub_splits())
def row(raw, index, *, seed=0, split_seed=0, sharer_question="yes", receiver_context="half"):
    """One bridge question with the paragraphs of all three, or the reason why it is dropped.

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
    order, sides = rule(raw["id"], titles, [i for i, t in enumerate(titles) if t in supporting], split_seed)
    passages = [f"{titles[i]}: {''.join(sentences[i]).strip()}" for i in order]
    held = {side: [p for p, s in zip(passages, sides, strict=True) if s == side] for side in "R12"}
    mine = {"none": [], "half": held["R"], "full": passages}[receiver_context]
    sees, question = sharer_question == "yes", raw["question"]
    each = [prompts(question, Parts(mine, held[side], passages), sees) for side in "12"]
    return {
        "id": raw["id"],
        "question": question,
        "answer": raw["answer"],
        "order": places(order),
        "sides": sides,
        "sharers": [views["sharer"] for views in each],
        "requests": [views["request"] for views in each],
        **prompts(question, Parts(mine, held["1"] + held["2"], passages), sees),
    }


def rule(ident, titles, supporting, split_seed):
    """The paragraphs' order and, in that order, their owners: R, 1 or 2."""
    draw = draws(ident, split_seed)
    order = sorted(range(len(titles)), key=lambda i: draw(titles[i], i))
    turns = "12" if draw()[0] % 2 == 0 else "21"
    side = dict(zip(sorted(supporting), turns, strict=True))
    others = [i for i in order if i not in side]
    side |= {i: "RRRR1122"[n] for n, i in enumerate(others)}
    return order, "".join(side[i] for i in order)


def score(doc, results):
    """HotpotQA's official exact match and F1; yes, no and noanswer match only themselves."""
    return answer_scores(results[0], [doc["answer"]])
