"""bfloat16 beside float32 on this machine: prefill and decoding of the frozen models, in turn, as ratios. Ends with one JSON line.

python benchmarks/dtype.py --models smollm2-135m,gemma3-270m --tokens 128 --batch-size 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from lcfbench.assets import find_model
from lcfbench.endpoint import Endpoint
from lcfbench.kv import positions_of
from lcfbench.state import State
from lcfbench.ui import quiet_libraries

DTYPES = ("float32", "bfloat16")


def once(end: Endpoint, ids: torch.Tensor, steps: int) -> tuple[float, float]:
    """Seconds to prefill ids (B, N), and to decode `steps` tokens after it."""
    mask = torch.ones_like(ids)
    began = time.perf_counter()
    kv = end.prefill(ids[:, :-1], mask[:, :-1])
    read = time.perf_counter()
    end.decode(end.open(State(end, kv, ids[:, -1:], mask[:, -1:], positions_of(mask)[:, -1:], [])), steps)
    return read - began, time.perf_counter() - read


def main() -> None:
    """Prints a line a model and phase, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2-135m,gemma3-270m")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    quiet_libraries()
    out = []
    for name in given.models.split(","):
        ends = {dtype: Endpoint.load(find_model(name), dtype=dtype) for dtype in DTYPES}
        vocabulary = len(next(iter(ends.values())).tokenizer)
        ids = torch.randint(10, vocabulary, (given.batch_size, given.tokens), generator=torch.Generator().manual_seed(0))
        times: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in DTYPES}
        with torch.inference_mode():
            for repeat in range(given.repeats + 1):
                for dtype, end in ends.items():
                    taken = once(end, ids, given.new_tokens)
                    if repeat:  # the first is the warm-up
                        times[dtype].append(taken)
        for phase, index, tokens in (("prefill", 0, given.tokens), ("decode", 1, given.new_tokens)):
            ratio = statistics.median(a[index] / b[index] for a, b in zip(*times.values(), strict=True))
            speed = {d: round(given.batch_size * tokens / statistics.median(t[index] for t in times[d]), 1) for d in DTYPES}
            out.append({"model": name, "phase": phase, "tokens_per_s": speed, "bfloat16_speedup": round(ratio, 3)})
            print(f"{name} {phase}: bfloat16 {ratio:.2f}× float32  ({speed})")
    print(json.dumps({"benchmark": "dtype", "threads": torch.get_num_threads(), "batch_size": given.batch_size, "results": out}))


if __name__ == "__main__":
    main()
