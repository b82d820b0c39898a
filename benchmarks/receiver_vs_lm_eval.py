"""Receiver-only throughput beside lm-eval's `hf`: same model object, same documents, same batch size, same process, taken in turn.

The scores must agree before a time counts. Ends with one JSON line.

    python benchmarks/receiver_vs_lm_eval.py --documents 96 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from lcfbench.assets import find_model
from lcfbench.endpoint import Endpoint
from lcfbench.harness import Task, load_task
from lcfbench.loop import batches
from lcfbench.methods.base import Batch, create
from lcfbench.scoring import answer
from lcfbench.timing import Clock
from lcfbench.ui import quiet_libraries

Scores = dict[str, float]


def ours(task: Task, end: Endpoint, scoring: str, limit: int, size: int) -> tuple[float, Scores]:
    """Seconds for tokenising, scoring and metrics of `limit` documents, and each one's score."""
    documents = task.documents(scoring=scoring, limit=limit, receiver_chat=end.has_chat)
    method, scores = create("receiver", end, end), {}
    began = time.perf_counter()
    with torch.inference_mode():
        for group in batches(documents, size):
            batch = Batch(group, group, Clock(end.device))
            outcomes, _ = answer(method.respond(batch), batch)
            for d, o in zip(group, outcomes, strict=True):
                scores[d.doc_id] = task.score(d, o)["score"]
    return time.perf_counter() - began, scores


def theirs(task: Task, end: Endpoint, scoring: str, wanted: Scores, size: int) -> tuple[float, Scores]:
    """The same through lm-eval: `HFLM`'s own batching over the same requests, and lm-eval's metrics."""
    from lm_eval.models.huggingface import HFLM

    inner = task.lm_eval_task(scoring)
    lm = HFLM(pretrained=end.model, tokenizer=end.tokenizer, batch_size=size, device=str(end.device))
    rows = [row for row in inner.test_docs() if str(row["id"]) in wanted]
    requests = []
    for i, row in enumerate(rows):
        prefix = inner.doc_to_prefix(row)
        context = inner.fewshot_context(row, 0, apply_chat_template=end.has_chat, chat_template=lm.apply_chat_template, gen_prefix=prefix)
        made = inner.construct_requests(row, context, metadata=(task.name, i, 1), apply_chat_template=end.has_chat)
        requests.append(made if isinstance(made, list) else [made])
    flat = [r for row in requests for r in row]
    began = time.perf_counter()
    answers = (lm.generate_until if scoring == "generate" else lm.loglikelihood)(flat, disable_tqdm=True)
    for request, got in zip(flat, answers, strict=True):
        request.resps = [got]
    for ensemble in inner._filters:
        ensemble.apply(flat)
    name, primary = inner._filters[0].name, task.metric(scoring)
    scores = {
        str(row["id"]): float(inner.process_results(row, [r.filtered_resps[name] for r in made])[primary])
        for row, made in zip(rows, requests, strict=True)
    }
    return time.perf_counter() - began, scores


def main() -> None:
    """Prints a line a scoring, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="openbookqa")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--scorings", default="letters,cloze,generate")
    given = parser.parse_args()
    quiet_libraries()
    end, task = Endpoint.load(find_model(given.model), dtype=given.dtype), load_task(given.task)
    out = []
    for scoring in given.scorings.split(","):
        ours(task, end, scoring, given.batch_size, given.batch_size)  # warm-up of both: kernels, templates
        pairs, differing = [], 0
        for _ in range(given.repeats):
            mine, scores = ours(task, end, scoring, given.documents, given.batch_size)
            other, reference = theirs(task, end, scoring, scores, given.batch_size)
            differing = sum(scores[k] != reference[k] for k in scores)
            pairs.append((mine, other))
        ratio = statistics.median(other / mine for mine, other in pairs)
        speeds = [given.documents / statistics.median(column) for column in zip(*pairs, strict=True)]
        line = {
            "scoring": scoring,
            "ours_docs_per_s": speeds[0],
            "lm_eval_docs_per_s": speeds[1],
            "ratio": ratio,
            "scores_differing": differing,
        }
        out.append({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()})
        print(f"{scoring}: ours {speeds[0]:.1f} documents/s, lm-eval hf {speeds[1]:.1f}, ratio {ratio:.2f}, scores differing {differing}")
    facts = {"model": end.name, "dtype": str(end.dtype), "threads": torch.get_num_threads(), "documents": given.documents}
    print(json.dumps({"benchmark": "receiver_vs_lm_eval", **facts, "results": out}))


if __name__ == "__main__":
    main()
