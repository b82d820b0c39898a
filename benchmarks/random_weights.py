"""Random weights beside real ones: the same pair, shapes, documents and operations, in turn.

python -m benchmarks.random_weights --prompt-tokens 64 --repeats 9
python -m benchmarks.random_weights --clock cpu    # with OMP_NUM_THREADS=1, where others use the machine

`lcfbench bench --random-weights` stands on this: a ratio of 1 says that times do not depend on what the
weights hold. Tokens that are read and written must be equal before a time counts (a note of t2t has
another text, which may be a few tokens shorter or longer to its reader; it is shown without a target).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from lcfbench.latency.grid import once
from lcfbench.latency.plan import Cell, plan
from lcfbench.latency.recipe import BenchRecipe
from lcfbench.progress import quiet_libraries
from lcfbench.sources.cache import EMBEDDED_PAIR

TARGET = 1.03
SHAPES = ["lcf:width=128", "lcf:width=128,layers=9", "c2c:hidden=512,intermediate=512"]


def cells(random_weights: bool, **asked: Any) -> dict[str, Cell]:
    """The cells of one side, by label."""
    bench = plan(BenchRecipe.model_validate(asked | {"random_weights": random_weights, "adapter": SHAPES}))
    return {cell.variant.label: cell for block in bench.blocks for cell in block.cells}


def main() -> None:
    """Times both sides in turn, method by method, and prints a line each and the JSON line."""
    given = parser(
        __doc__, prompt_tokens=64, answer_tokens=8, repeats=9, dtype="bfloat16", pair=EMBEDDED_PAIR
    ).parse_args()
    quiet_libraries()
    asked = {"pair": given.pair, "dtype": given.dtype, "mode": ["receiver", "t2t", "lcf", "c2c"]}
    asked |= {"prompt_tokens": [given.prompt_tokens], "answer_tokens": [given.answer_tokens], "budget": [16]}
    sides = {"real": cells(False, **asked), "random": cells(True, **asked)}
    results: list[dict[str, Any]] = []
    for name in sides["real"]:
        pair = {side: partial(once, made[name]) for side, made in sides.items()}
        times = turns(pair, given.repeats, warm_up=2, clock=CLOCKS[given.clock])
        real, made = (side[name].tokens for side in sides.values())
        equal = real == made
        assert equal or name == "t2t", f"{name}: {real} tokens, and {made} with random weights"
        found = ratio(times, of="random", to="real")
        claim = f"{name}: a whole answer with random weights ÷ with real ones"
        entry = {"case": name, "claim": claim, "ratio": found, "better": "lower", "seconds": seconds(times)}
        results.append(entry | ({"target": TARGET} if equal else {}))
        print(f"{name:32} {shown(found)}", flush=True)
    more = {"pair": given.pair, "prompt_tokens": given.prompt_tokens, "answer_tokens": given.answer_tokens}
    report("random_weights", results, given.out, dtype=given.dtype, clock=given.clock, **more)


if __name__ == "__main__":
    main()
