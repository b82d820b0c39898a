"""bfloat16 beside float32 on this machine, by phase.

Prefill and decoding of both frozen models, and fusing under LCF adapters. In turn, as ratios.

python benchmarks/dtype.py --tokens 128 --batch-size 4 --new-tokens 8
python benchmarks/dtype.py --clock cpu    # with OMP_NUM_THREADS=1, where others use the machine

A ratio above 1 says how many times faster bfloat16 is. Beside the phases stands what `--dtype auto`
measured by itself, and chose. Answers differ by rounding and are not compared here; conformance is
tested in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks.fusion import Case, adapter_of, documents
from lcfbench.adapters.files import load
from lcfbench.adapters.select import FOLDER
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.answering import decode
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import ENOUGH, choose
from lcfbench.models.protocol import State
from lcfbench.models.timing import Clock
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model, split_pair

DTYPES = ("float32", "bfloat16")
SHIPPED = "smollm2-135m.gemma3-270m.lcf-openbookqa"


def prefill(end: CausalLM, ids: torch.Tensor) -> None:
    end.prefill(ids.tolist())


def decoder(end: CausalLM, ids: torch.Tensor, steps: int) -> Callable[[], object]:
    """Decoding `steps` tokens after prompts that are read once, now."""
    rows = ids.tolist()
    kv = end.prefill([row[:-1] for row in rows])
    state = State.before(end, kv, [row[-1:] for row in rows], kv.mask.sum(1), [])
    return lambda: decode(end.open(state), steps)


def fuser(name: str, ends: tuple[CausalLM, CausalLM], tokens: int, count: int) -> Callable[[], object]:
    """`Fusion.fuse` of one batch that both models have read.

    Of the shipped adapter, or of a random LCF of that width.
    """
    adapter = (
        load(FOLDER / SHIPPED, ends[0].device, ends[0].dtype)
        if name == "shipped"
        else adapter_of(f"lcf:width={name}", *ends)
    )
    asked = documents(tokens, count, ends[0])
    return Case(create("lcf", *ends, adapter), Batch(asked, asked, Clock(ends[0].device))).ours


def main() -> None:
    """Prints a line a model and phase, then JSON."""
    made = parser(__doc__, pair="smollm2-135m:gemma3-270m", tokens=128, batch_size=4, new_tokens=8, repeats=5)
    given = made.parse_args()
    quiet_libraries()
    names = split_pair(given.pair)
    ends = {dtype: tuple(CausalLM.load(find_model(name), dtype=dtype) for name in names) for dtype in DTYPES}
    cases: dict[str, dict[str, Callable[[], Any]]] = {}
    with torch.inference_mode():
        for i, name in enumerate(names):
            few = min(len(both[i].tokenizer) for both in ends.values()) - 10
            ids = torch.randint(
                10, few, (given.batch_size, given.tokens), generator=torch.Generator().manual_seed(0)
            )
            cases[f"prefill, {name}"] = {d: partial(prefill, ends[d][i], ids) for d in DTYPES}
            cases[f"decode, {name}"] = {d: decoder(ends[d][i], ids, given.new_tokens) for d in DTYPES}
            cases[f"decode alone, {name}"] = {
                d: decoder(ends[d][i], ids[:1], given.new_tokens) for d in DTYPES
            }
        for name in ("shipped", "128"):
            cases[f"fuse, {'the shipped LCF' if name == 'shipped' else 'LCF-128'}"] = {
                d: fuser(name, ends[d], given.tokens, given.batch_size) for d in DTYPES
            }
        results: list[dict[str, Any]] = []
        for case, sides in cases.items():
            times = turns(sides, given.repeats, clock=CLOCKS[given.clock])
            found = ratio(times, of="float32", to="bfloat16")
            results.append(
                {
                    "case": case,
                    "claim": f"bfloat16 beside float32: {case}",
                    "ratio": found,
                    "seconds": seconds(times),
                }
            )
            print(f"{case}: bfloat16 is {shown(found)}× float32")
    dtype, record = choose(ends["float32"][0].device)
    chosen = str(dtype).removeprefix("torch.")
    prefills = [r["ratio"]["median"] for r in results if r["case"].startswith("prefill")]
    agrees = all((faster >= ENOUGH) == (chosen == "bfloat16") for faster in prefills)
    claim = "--dtype auto chose what prefills these models faster"
    results.append(
        {
            "case": "auto",
            "claim": claim,
            "ratio": float(agrees),
            "target": 1.0,
            "chosen": chosen,
            "probe": record,
        }
    )
    print(f"auto: {chosen} ({record})")
    report(
        "dtype",
        results,
        given.out,
        tokens=given.tokens,
        batch_size=given.batch_size,
        new_tokens=given.new_tokens,
        clock=given.clock,
    )


if __name__ == "__main__":
    main()
