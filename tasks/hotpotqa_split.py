"""HotpotQA split in two: the five paragraphs of each model, the prompts, and the official scores.

`lcfbench.tasks.split_evidence` has the rule: one of the two supporting paragraphs and four others for
each model. `hotpotqa_split.manifest.json.gz` freezes split_seed 0 for the rows it lists.
"""

from pathlib import Path

from lcfbench.tasks.process_docs import per_row
from lcfbench.tasks.qa_metrics import answer_scores
from lcfbench.tasks.split_evidence import Asked, Evidence, Frozen, halves, hub_splits, manifest

__all__ = ["manifest", "row", "score"]

FROZEN = Frozen(Path(__file__).with_name("hotpotqa_split.manifest.json.gz"))


@per_row(raw=hub_splits())
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
    places = [i for i, title in enumerate(titles) if title in supporting]
    found = Evidence(raw["id"], raw["question"], titles, ["".join(s) for s in sentences], places)
    fields = halves(found, Asked(split_seed, sharer_question, receiver_context), FROZEN)
    return {**fields, "answer": raw["answer"]}


def score(doc, results):
    """HotpotQA's official exact match and F1; yes, no and noanswer match only themselves."""
    return answer_scores(results[0], [doc["answer"]])
