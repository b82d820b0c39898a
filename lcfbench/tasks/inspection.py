"""What a task holds, on one page: documents, balance, lengths, doubles, what cannot be asked, and why.

>>> inspect("splitfacts", limit=50)["documents"]        # doctest: +SKIP
50
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.tasks.document import Document
from lcfbench.tasks.examples import KEY, place_of
from lcfbench.tasks.preview import preview
from lcfbench.tasks.prompts import render
from lcfbench.tasks.stock_index import EXAMPLES, is_stock
from lcfbench.tasks.task import SPLITS, Task, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3  # documents that are shown whole
Tokenizers = Mapping[str, "PreTrainedTokenizerBase"]  # by role: receiver, sharer


def inspect(
    name: str,
    tokenizers: Tokenizers,
    *,
    limit: int | None = None,
    options: Mapping[str, str] | None = None,
    offline: bool = False,
    prompt: str | None = None,
) -> dict[str, Any]:
    """The facts of a task's test split, ready for JSON. Raises UserError for a task that cannot be read.

    limit: documents whose prompts are looked at; rows that cannot be asked are those of the whole split.
    """
    task = load_task(name, offline=offline, options=options, prompt=prompt)
    chat = bool(tokenizers["receiver"].chat_template) if "receiver" in tokenizers else False
    documents = task.documents(limit=limit, receiver_chat=chat)
    return {
        "task": task.name,
        "context": "shared" if task.shared else "different",
        "documents": len(task._rows_of("test", None)),
        "looked_at": len(documents),
        "splits": _splits(task),
        "examples": _examples(task, documents),
        "dropped": task.dropped,
        "problems": [
            {"row": row, "field": field, "what": what} for row, field, what in task.problems.get("test", [])
        ],
        "scorings": {
            s: task.metric(s) + (" (default)" if s == task.default_scoring else "") for s in task.scorings
        },
        **_choices(documents),
        "prompts": _lengths(documents, tokenizers),
        **_doubles(task, documents, whole=limit is None),
        **_message(task, documents),
        "shown": _shown(documents[:SHOWN], tokenizers),
    }


def _splits(task: Task) -> list[str]:
    have = []
    for split in SPLITS:
        try:
            task._check(split)
        except UserError:
            continue
        have.append(split)
    return have


def _examples(task: Task, documents: Sequence[Document]) -> str:
    """Where --shots takes worked examples from; "" where it does not."""
    if is_stock(task.name):
        return EXAMPLES
    if any(len(d.steps) > 1 for d in documents):
        return ""
    return place_of(task._extra.get(KEY), task.splits)


def _choices(documents: Sequence[Document]) -> dict[str, Any]:
    """Choices a document, chance, and what the commonest answer and the commonest place would score."""
    ranked = [d.steps[-1] for d in documents if d.steps]
    answers = Counter(d.gold for d in documents)
    found: dict[str, Any] = {"majority_answer": _commonest(answers, len(documents))}
    if not ranked:
        return {"choices": None, "chance": None, "answer_places": None, **found}
    places = Counter(step.gold[0] for step in ranked)
    return {
        "choices": dict(sorted(Counter(len(step.choices) for step in ranked).items())),
        "chance": sum(len(step.gold) / len(step.choices) for step in ranked) / len(ranked),
        "answer_places": dict(sorted(places.items())),
        **found,
    }


def _commonest(counts: Counter[str], total: int) -> dict[str, Any]:
    answer, count = counts.most_common(1)[0]
    return {"answer": answer, "share": count / total}


def _lengths(documents: Sequence[Document], tokenizers: Tokenizers) -> dict[str, dict[str, Any]]:
    """Shortest, median and longest prompt of each model, in characters and tokens."""
    found: dict[str, dict[str, Any]] = {}
    for role in ("receiver", "sharer"):
        views = [(getattr(d, role), d) for d in documents]
        lengths = {"characters": [len(view.user) + len(view.prefix) for view, _ in views]}
        if role in tokenizers:
            lengths["tokens"] = [
                len(render(view, tokenizers[role], chat=d.chat, choices=bool(d.steps)).ids)
                for view, d in views
            ]
        found[role] = {unit: _spread(sizes) for unit, sizes in lengths.items()}
    return found


def _spread(sizes: list[int]) -> list[int]:
    ordered = sorted(sizes)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def _doubles(task: Task, documents: Sequence[Document], whole: bool) -> dict[str, Any]:
    """Documents that read the same as another, and those that stand in the train split too.

    The train split is read only where the whole of the task is looked at; prompts of lm-eval's tasks hold
    examples, which make them differ.
    """
    seen = Counter(d.content for d in documents)
    found: dict[str, Any] = {"doubles": sum(n - 1 for n in seen.values()), "also_in_train": None}
    if whole and "train" in _splits(task) and not task.generated and not is_stock(task.name):
        try:
            trained = {d.content for d in task.documents(split="train", receiver_chat=False)}
        except UserError:  # a task of ours whose train split is not on this disk
            if task.foreign:
                raise
            return found
        asked = task.documents(receiver_chat=False) if len(trained) else []
        found["also_in_train"] = sum(d.content in trained for d in asked)
    return found


def _message(task: Task, documents: Sequence[Document]) -> dict[str, Any]:
    """Whether a message can matter: how often each model's own text gives the answer away.

    receiver_alone, sharer_alone: the share of documents whose text holds the right choice and no other;
    without choices, the answer that the other's text does not hold. neither: no text holds it. Words
    are searched as text, case aside, in the view without a scored prefix. same_views: documents in
    which both read the same. Answers of fewer than three characters are left out.
    """
    asked = [d for d in documents if len(d.gold) > 2]
    if task.shared or not asked:
        return {"message": None}

    def holds(text: str, words: Sequence[str]) -> bool:
        return any(word.strip().casefold() in " ".join(text.casefold().split()) for word in words)

    counts = Counter[str]()
    for d in asked:
        golds = [d.gold] if d.steps else d.gold.split(" | ")
        others = [c for c in d.steps[-1].choices if c.strip() != d.gold] if d.steps else []
        mine, theirs = d.receiver.user, d.sharer.user
        has = holds(mine, golds), holds(theirs, golds)
        counts["receiver_alone"] += has[0] and (not holds(mine, others) if others else not has[1])
        counts["sharer_alone"] += has[1] and (not holds(theirs, others) if others else not has[0])
        counts["neither"] += not any(has)
        counts["same_views"] += d.receiver == d.sharer
    names = ("receiver_alone", "sharer_alone", "neither", "same_views")
    return {"message": {name: counts[name] / len(asked) for name in names}}


def _shown(documents: Sequence[Document], tokenizers: Tokenizers) -> list[dict[str, Any]]:
    """Some documents as both models read them, with their chat templates; see `preview`."""
    if len(tokenizers) == 2:
        return list(preview(documents, tokenizers["receiver"], tokenizers["sharer"]))
    views = ("receiver", "sharer", "request")
    return [
        {
            "doc_id": d.doc_id,
            "gold": d.gold,
            "steps": [],
            **{name: {"prompt": getattr(d, name).user + getattr(d, name).prefix} for name in views},
        }
        for d in documents
    ]


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a user should mend or know before a run, one sentence each; empty where all is well."""
    found = []
    if dropped := sum(facts["dropped"].values()):
        found.append(
            f"{dropped} rows are left out: {', '.join(f'{n} × {w}' for w, n in facts['dropped'].items())}."
        )
    common, chance = facts["majority_answer"], facts["chance"]
    if facts["looked_at"] >= 20 and common["share"] > max(0.5, 1.5 * (chance or 0)):
        found.append(f"Always answering {common['answer']!r} scores {common['share']:.0%}.")
    places = facts["answer_places"]
    if places and facts["looked_at"] >= 20 and max(places.values()) / facts["looked_at"] > 1.6 * chance:
        place, count = max(places.items(), key=lambda item: item[1])
        found.append(
            f"The answer is choice {place + 1} in {count / facts['looked_at']:.0%} of the documents."
        )
    if facts["doubles"]:
        found.append(f"{facts['doubles']} documents read the same as another.")
    if facts["also_in_train"]:
        found.append(f"{facts['also_in_train']} documents stand in the train split too.")
    if message := facts["message"]:
        if message["receiver_alone"] > 0.5:
            share = f"{message['receiver_alone']:.0%}"
            found.append(
                f"The receiver's own text gives the answer away in {share}: no message is needed there."
            )
        if message["neither"] > 0.9:
            share = f"{message['neither']:.0%}"
            found.append(f"In {share} of the documents no text holds the answer's words.")
        if message["same_views"]:
            found.append(f"Both models read the same in {message['same_views']:.0%} of the documents.")
    return found
