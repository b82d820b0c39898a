"""Cache enrichment: how much better would a model answer if its cache of the question had seen more? Nothing is trained.

The model reads something in front of the question (examples, or the text that the other side of a pair holds), and the cache of that something is thrown
away: what is left is as long as the question's own cache, but has seen more (C2C's feasibility experiment, arXiv 2510.03215, section 3).
Three conditions answer the same documents:

- direct: the question alone. Equal, bit for bit, to the method `receiver`.
- kept: everything stays in the cache (few-shot; or both texts).
- oracle: only the question's slice of that cache. What it gains over direct, an editor of the cache could gain at most.

Per layer, the enriched slice stands in one layer and all others are direct. The two prefills are shared by all of them.

>>> run_enrich(Enrich(model="smollm2-135m", task="openbookqa", scoring="cloze", limit=64), say=print)                 # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.rows import predicted
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.oracle.recipe import Enrich
from lcfbench.oracle.record import OracleRun, circumstances, conditions
from lcfbench.oracle.slices import enriched_prompt, one_layer, oracle, sliced
from lcfbench.provenance import digest
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.task import Task, load_task

if TYPE_CHECKING:
    import pandas as pd

SPARE = 64  # further train documents looked at, so that an example is never a document that is asked


def run_enrich(chosen: Enrich, say: Callable[[str], None]) -> OracleRun:
    """Measures and records, or finds what was recorded. Columns of `rows.parquet`: see `measure`.

    Raises UserError: unknown names, a task without train split, examples for no question, a limit too small to say anything.
    """
    from transformers import AutoTokenizer

    from lcfbench.sources.models import find_model, label

    task = load_task(chosen.task, seed=chosen.seed, offline=chosen.offline, options=chosen.task_options)
    before = chosen.before or ("examples" if task.shared else "context")
    if before == "context" and task.shared:
        raise UserError(
            f"{task.name} gives both models the same text: there is no other side's context.",
            "Use --with examples.",
        )
    scoring = chosen.scoring or task.default_scoring
    task.metric(scoring)  # a scoring the task does not have is an error now
    found = find_model(chosen.model, offline=chosen.offline)
    under = conditions(chosen)
    chat = bool(getattr(AutoTokenizer.from_pretrained(found.path), "chat_template", None))
    documents = task.documents(scoring=scoring, limit=chosen.limit, receiver_chat=chat)
    shown = examples(task, documents, chosen.shots, scoring, chat) if before == "examples" else []
    identity = {
        "oracle": "enrich", "model": label(chosen.model), "revision": found.revision, "task": task.name, "task_options": task.options,
        "task_sha256": task.yaml_sha256, "documents_sha256": digest([d.hash for d in documents]), "examples": [d.hash for d in shown],
        "before": before, "positions": chosen.positions, "per_layer": chosen.per_layer, "scoring": scoring, **under,
    }  # fmt: skip
    run = OracleRun.of(chosen.out, "enrich", identity)
    if not chosen.fresh and run.finished():
        return run
    began = time.perf_counter()
    lm = CausalLM.load(found, dtype=chosen.dtype, device=chosen.device, attention=chosen.attention)
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
    """`shots` documents of the train split, in the task's seeded order; none that is asked too. Raises UserError where there are too few."""
    same = {d.receiver for d in asked}
    train = task.documents(scoring=scoring, split="train", limit=shots + SPARE, receiver_chat=chat)
    found = [d for d in train if d.receiver not in same][:shots]
    if len(found) < shots:
        raise UserError(
            f"the train split of {task.name} has only {len(found)} documents for {shots} examples.",
            "Lower --shots.",
        )
    return found


# -- measuring --------------------------------------------------------------------------------------------------------------------------


def measure(
    lm: CausalLM,
    task: Task,
    documents: Sequence[Document],
    shown: Sequence[Document],
    before: str,
    chosen: Enrich,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """One row a document and condition: doc_id, doc_hash, doc_index, condition (direct, kept, oracle, layer), layer (of `layer`, else null),
    score (the task's metric), gold_ll (log-likelihood of the right choices, summed over the steps; null where the answer is written), prediction,
    question_tokens and kept_tokens (of the two prompts), slice_tokens (cache entries that were exchanged).
    """
    import pandas as pd

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
                f"document {short[0]}: the prompt's last tokens differ once something stands in front, so it has no slice to keep.",
                "Use another task, or --with examples.",
            )
        enriched = oracle(direct, kept, chosen.positions)
        layers = range(lm.geometry.layers) if chosen.per_layer else ()
        states = [("direct", None, direct), ("kept", None, kept), ("oracle", None, enriched)]
        for condition, layer, state in [*states, *(("layer", n, None) for n in layers)]:
            batch = Batch(group, group, Clock(lm.device))
            outcomes, _ = answer(state if layer is None else one_layer(direct, enriched, layer), batch)  # type: ignore[arg-type]
            for i, (d, outcome) in enumerate(zip(group, outcomes, strict=True)):
                golds = [
                    ranked[step.gold[0]][0]
                    for step, ranked in zip(d.steps, outcome.loglikelihoods, strict=False)
                ]
                rows.append({
                    "doc_id": d.doc_id, "doc_hash": d.hash, "doc_index": index[d.hash], "condition": condition, "layer": layer,
                    "score": task.score(d, outcome)["score"], "gold_ll": sum(golds) if golds else None,
                    "prediction": predicted(d, outcome, task.metric(d.scoring)), "question_tokens": len(direct.prompts[i].ids),
                    "kept_tokens": len(kept.prompts[i].ids), "slice_tokens": tokens[i],
                })  # fmt: skip
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{len({r['doc_hash'] for r in rows})} of {len(documents)} documents")
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "gold_ll": "float64"})
    return frame.sort_values(
        ["condition", "layer", "doc_index"], na_position="first", kind="stable"
    ).reset_index(drop=True)
