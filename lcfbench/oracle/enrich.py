"""Cache enrichment: how much would a model gain if its cache of the question had seen more?

The model reads a text in front of the question (examples, or the context of the other side of a
pair), and the cache of that text is dropped: the rest is as long as the question's own cache, but
has seen more (C2C's feasibility experiment, arXiv 2510.03215, section 3). Nothing is trained. Three
conditions answer the same documents:

- direct: the question alone. Equal, bit for bit, to the method `receiver`.
- kept: everything stays in the cache (few-shot; or both texts).
- oracle: only the question's slice of that cache. Its gain bounds that of any cache editor.

Per layer, the enriched slice is in one layer and all others are direct. All share two prefills.

>>> run_enrich(Enrich(task="openbookqa", scoring="cloze", limit=64), say=print)   # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.rows import predicted
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.oracle.recipe import Enrich
from lcfbench.oracle.record import OracleRun, circumstances, conditions
from lcfbench.oracle.slices import enriched_prompt, one_layer, oracle, sliced
from lcfbench.provenance import digest
from lcfbench.sources.models import find_model, label
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.task import Task, load_task

SPARE = 64  # more train documents are drawn, so that no example is a document to answer


def run_enrich(chosen: Enrich, say: Callable[[str], None]) -> OracleRun:
    """Measures and records, or returns the recorded run. Columns of `rows.parquet`: see `measure`.

    Raises UserError for unknown names, a task without train split, or without a second context.
    """
    task = load_task(chosen.task, seed=chosen.seed, offline=chosen.offline, options=chosen.task_options)
    before = chosen.before or ("examples" if task.shared else "context")
    if before == "context" and task.shared:
        raise UserError(
            f"{task.name} gives both models the same text: there is no other side's context.",
            "Use --with examples.",
        )
    scoring = chosen.scoring or task.default_scoring
    task.metric(scoring)  # raises for a scoring that the task does not have
    found = find_model(chosen.model, offline=chosen.offline)
    under = conditions(chosen)
    chat = bool(getattr(load_tokenizer(found.path, chosen.trust_remote_code), "chat_template", None))
    documents = task.documents(scoring=scoring, limit=chosen.limit, receiver_chat=chat)
    shown = examples(task, documents, chosen.shots, scoring, chat) if before == "examples" else []
    identity = {
        "oracle": "enrich",
        "model": label(chosen.model),
        "revision": found.revision,
        "task": task.name,
        "task_options": task.options,
        "task_sha256": task.yaml_sha256,
        "documents_sha256": digest([d.hash for d in documents]),
        "examples": [d.hash for d in shown],
        "before": before,
        "scoring": scoring,
        **chosen.model_dump(include={"positions", "per_layer"}),
        **under,
    }
    run = OracleRun.of(chosen.out, "enrich", identity)
    if not chosen.fresh and run.finished():
        return run
    began = time.perf_counter()
    lm = CausalLM.load(
        found, **chosen.model_dump(include={"dtype", "device", "attention", "trust_remote_code"})
    )
    with torch.inference_mode():
        rows = measure(lm, task, documents, shown, before, chosen, say)
    facts = {
        "documents": len(documents),
        "metric": task.metric(scoring),
        "layers": lm.geometry.layers,
        **circumstances(chosen, began, lm),
    }
    run.keep({"rows": rows}, identity, facts)
    return run


def examples(
    task: Task, asked: Sequence[Document], shots: int, scoring: Scoring | None, chat: bool
) -> list[Document]:
    """Returns `shots` documents of the train split, in seeded order, none of those in `asked`.

    Raises UserError where there are too few.
    """
    same = {d.receiver for d in asked}
    train = task.documents(scoring=scoring, split="train", limit=shots + SPARE, receiver_chat=chat)
    found = [d for d in train if d.receiver not in same][:shots]
    if len(found) < shots:
        raise UserError(
            f"the train split of {task.name} has only {len(found)} documents for {shots} examples.",
            "Lower --shots.",
        )
    return found


def measure(
    lm: CausalLM,
    task: Task,
    documents: Sequence[Document],
    shown: Sequence[Document],
    before: str,
    chosen: Enrich,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """Returns a row for each document and condition.

    Columns: doc_id, doc_hash, doc_index, condition (direct, kept, oracle, layer), layer (of
    `layer`, else null), score (the task's metric), gold_ll (log-likelihood of the right choices,
    summed over the steps; null where the answer is written), prediction, question_tokens and
    kept_tokens (of the two prompts), slice_tokens (cache entries that were exchanged).
    """
    index = {d.hash: i for i, d in enumerate(documents)}
    rows: list[dict[str, Any]] = []
    last = time.monotonic()
    for group in batches(documents, chosen.batch_size):
        prompts = [prompt(lm, d.receiver, d) for d in group]
        direct = lm.read(prompts)
        kept = lm.read([enriched_prompt(lm, d, before, shown) for d in group])
        tokens = [sliced(a, b) - 1 for a, b in zip(direct.prompts, kept.prompts, strict=True)]
        if short := [d.doc_id for d, n in zip(group, tokens, strict=True) if n < 1]:
            raise UserError(
                f"document {short[0]}: the prompt's last tokens differ with a text in front, so it has no "
                "slice to keep.",
                "Use another task, or --with examples.",
            )
        enriched = oracle(direct, kept, chosen.positions)
        layers = range(lm.geometry.layers) if chosen.per_layer else ()
        whole = {"direct": direct, "kept": kept, "oracle": enriched}
        for condition, layer in [*((name, None) for name in whole), *(("layer", n) for n in layers)]:
            state = whole[condition] if layer is None else one_layer(direct, enriched, layer)
            outcomes, _ = answer(state, Batch(group, group, Clock(lm.device)))
            for i, (d, outcome) in enumerate(zip(group, outcomes, strict=True)):
                steps = zip(d.steps, outcome.loglikelihoods, strict=False)
                golds = [ranked[step.gold[0]][0] for step, ranked in steps]
                row = {"doc_id": d.doc_id, "doc_hash": d.hash, "doc_index": index[d.hash]}
                row |= {"condition": condition, "layer": layer, "score": task.score(d, outcome)["score"]}
                row |= {"gold_ll": sum(golds) if golds else None}
                row |= {"prediction": predicted(d, outcome, task.metric(d.scoring))}
                row |= {"question_tokens": len(direct.prompts[i].ids)}
                rows.append(row | {"kept_tokens": len(kept.prompts[i].ids), "slice_tokens": tokens[i]})
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{len({r['doc_hash'] for r in rows})} of {len(documents)} documents")
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "gold_ll": "float64"})
    order = ["condition", "layer", "doc_index"]
    return frame.sort_values(order, na_position="first", kind="stable", ignore_index=True)
