"""MuSiQue split in two: ten of the twenty paragraphs each, the supporting ones dealt in turn.

A question of two hops needs one paragraph of each model, one of four hops two. A document's subject is
its number of hops. `musique_split.manifest.json.gz` freezes split_seed 0 for the rows it lists.
"""

from pathlib import Path

from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.split_evidence import Asked, Evidence, Frozen, golds, halves, hub_splits

FROZEN = Frozen(Path(__file__).with_name("musique_split.manifest.json.gz"))


@per_row(raw=hub_splits())
def row(raw, index, *, seed=0, split_seed=0, sharer_question="yes", receiver_context="half"):
    """One answerable question with both halves, or the reason why it is dropped.

    seed: of the documents' order; it changes none of them.
    """
    if not raw.get("answerable", True):
        return "not answerable from its paragraphs"
    answers = golds([raw.get("answer"), *(raw.get("answer_aliases") or ())])
    paragraphs = raw.get("paragraphs") or []
    titles = [paragraph.get("title") for paragraph in paragraphs]
    texts = [paragraph.get("paragraph_text") for paragraph in paragraphs]
    places = [i for i, paragraph in enumerate(paragraphs) if paragraph.get("is_supporting")]
    found = Evidence(raw.get("id"), raw.get("question"), titles, texts, places)
    if problem := found.problem(answers):
        return problem
    fields = halves(found, Asked(split_seed, sharer_question, receiver_context), FROZEN)
    return {**fields, "answer": answers[0], "answers": answers, "subject": f"{len(places)} hops"}
