"""Long texts: time and memory of every method from 1,000 to 32,000 tokens a side.

python benchmarks/length.py --out benchmarks/results/length.json --figures benchmarks/results
python benchmarks/length.py --lengths 1024,2048 --methods receiver,lcf      # some of it

The embedded pair answers with its real weights, up to the receiver's own limit; longer texts are
read by models of a small shape with random weights, one of full attention and one of windows. Every
method runs in a process of its own, from the prompt to the eighth token that the receiver writes.
Memory is what a length takes beyond the loaded models; `at once` reads the same texts as one
stretch, as short ones are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import CLOCKS, ROOT, parser, report

REAL, SMALL = "smollm2-135m:gemma3-270m", "small"
LENGTHS = {REAL: (1024, 2048, 4096, 7936), SMALL: (4096, 8192, 16_384, 32_768)}
# method → its mode, kind of adapter with options, whether each model has a text of its own, and whether
# the two texts stand in a row in the receiver: then each is half as long
METHODS: dict[str, tuple[str, str, bool, bool]] = {
    "receiver": ("receiver", "", False, False),
    "full_context": ("full_context", "", True, True),
    "t2t": ("t2t", "", False, False),
    "c2c": ("c2c", "c2c:hidden=128,intermediate=128", False, False),
    "lcf": ("lcf", "lcf:width=128", False, False),
    "lcfx": ("lcf", "lcfx:width=128", True, False),
    "dense": ("dense", "dense:", True, True),
    "kvcomm": ("kvcomm", "", True, True),
    "prefix": ("prefix", "prefix:", True, False),
}
LEAST = 64e6  # bytes; of less the allocator's reserve is too large a part
AT_ONCE = ("receiver", "lcf", "kvcomm")
WRITTEN = 8  # tokens
TIME, MEMORY = 1.15, 1.25  # by which the longest may take more than its operations, and than twice the half


def saved(folder: Path) -> str:
    """A pair of small random models: full attention, and windows of 512 in three of four layers."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    from benchmarks._tiny_model import VOCABULARY, save_tiny

    tokenizer = save_tiny(folder / "tokenizer")
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1 << 17,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    windowed = Gemma3TextConfig(**shape, sliding_window=512, layer_types=kinds)
    for name, model in (("full", LlamaForCausalLM(LlamaConfig(**shape))), ("w", Gemma3ForCausalLM(windowed))):
        model.save_pretrained(folder / name)
        for file in tokenizer.glob("token*"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    return f"{folder / 'full'}:{folder / 'w'}"


def text_of(tokens: int, tokenizer: Any, seed: int) -> str:
    """Sentences of so many tokens, near enough."""
    import random

    from benchmarks.fusion import WORDS

    drawn = random.Random(seed)
    words = [drawn.choice(WORDS) + "." * (i % 12 == 11) for i in range(tokens)]
    ids = tokenizer(" ".join(words)).input_ids
    return str(tokenizer.decode(ids[:tokens], skip_special_tokens=True))


def operations(lm: Any, tokens: int) -> float:
    """Operations that a text forces: the weights' at each token, and attention's within each window."""
    config = lm.model.config.get_text_config()
    seen = sum(tokens * min((tokens + 1) / 2, window or tokens) for window in lm.windows)
    attention = 4.0 * config.num_attention_heads * lm.geometry.head_dim * seen
    return 2.0 * lm.matmul_params * tokens + attention


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One method in this process: seconds, bytes and operations of each length."""
    import torch

    from benchmarks.fusion import adapter_of
    from lcfbench.methods.ask import document_of
    from lcfbench.methods.base import Batch
    from lcfbench.methods.create import create
    from lcfbench.models import causal_lm
    from lcfbench.models.answering import decode
    from lcfbench.models.causal_lm import CausalLM
    from lcfbench.models.memory import peak_memory_bytes, reset_peak_memory
    from lcfbench.models.timing import Clock
    from lcfbench.progress import quiet_libraries
    from lcfbench.sources.models import find_model, split_pair

    quiet_libraries()
    mode, kind, own, in_a_row = METHODS[given.one]
    names = split_pair(given.pair)
    receiver, sharer = (CausalLM.load(find_model(name), dtype=given.dtype, check=False) for name in names)
    sharer = receiver if mode == "kvcomm" else sharer
    method = create(mode, receiver, sharer, adapter_of(kind, receiver, sharer) if kind else None)
    if given.at_once:
        causal_lm.LONG = 1 << 40
    clock, cpu = CLOCKS[given.clock], torch.device("cpu")

    def answered(tokens: int) -> dict[str, Any]:
        side = (tokens - 96) // (2 if in_a_row else 1)  # questions and templates have the rest
        mine, theirs = (text_of(side, receiver.tokenizer, seed) for seed in (0, 1))
        asked = "Where is the green box?"
        notes = (asked, mine, theirs) if own else (f"{mine} {asked}", "", "")
        document = document_of(*notes, begin="", max_new_tokens=WRITTEN)
        batch = Batch([document], [document], Clock())
        reset_peak_memory(cpu)
        before, began = peak_memory_bytes(cpu), clock()
        state = method.respond(batch)
        opened = receiver.open(state)
        first = clock() - began
        decode(opened, WRITTEN)
        read = sum(len(p.ids) for p in state.message.read or [])
        ran = (receiver, int(state.positions[0, -1]) + 1 - (read if mode == "kvcomm" else 0)), (sharer, read)
        return {
            "tokens": tokens,
            "seconds": clock() - began,
            "first_token_seconds": first,
            "phases_ms": batch.clock.ms,
            "bytes": peak_memory_bytes(cpu) - before,
            "operations": sum(operations(lm, n) for lm, n in ran),
        }

    with torch.inference_mode(), receiver.shared.apart(), sharer.shared.apart():
        answered(512)
        return [answered(int(n)) for n in given.lengths.split(",")]


def apart(name: str, pair: str, lengths: tuple[int, ...], given: argparse.Namespace, at_once: bool) -> Any:
    """`measured` in a fresh process, in which freed memory goes back to the system."""
    line = [sys.executable, __file__, "--one", name, "--pair", pair, "--lengths", ",".join(map(str, lengths))]
    line += ["--dtype", given.dtype, "--clock", given.clock, *(["--at-once"] if at_once else [])]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    mapped = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
    environment = {**os.environ, "PYTHONPATH": path, **mapped}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def curves(pair: str, shown: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One result a method: its rows, and how time and memory grow over the last doubling."""
    chosen = [n for n in LENGTHS[pair if pair == REAL else SMALL] if n <= given.most]
    out = []
    for name in given.methods.split(","):
        rows = apart(name, pair, tuple(chosen), given, at_once=False)
        whole = apart(name, pair, tuple(chosen[:-1]), given, at_once=True) if name in AT_ONCE else []
        half, last = rows[-2:]
        time, forced, memory = (last[key] / max(half[key], 1) for key in ("seconds", "operations", "bytes"))
        doublings = math.log2(last["tokens"] / half["tokens"])
        found = {
            "case": f"{shown}: {name}",
            "claim": f"{name}, {shown}, from {half['tokens']} to {last['tokens']} tokens: "
            "growth of time ÷ growth of operations",
            "ratio": time / forced,
            "target": TIME,
            "better": "lower",
            "rows": rows,
            "at_once": whole,
            "time_exponent": math.log2(time) / doublings,
            "operations_exponent": math.log2(forced) / doublings,
            "memory_exponent": math.log2(memory) / doublings,
        }
        out.append(found)
        if half["bytes"] >= LEAST:
            out.append(
                {
                    "case": f"{shown}: {name}, memory",
                    "claim": f"{name}, {shown}: growth of memory ÷ growth of the text",
                    "ratio": memory / 2**doublings,
                    "target": MEMORY,
                    "better": "lower",
                }
            )
        tokens, seconds, megabytes = ([row[key] for row in rows] for key in ("tokens", "seconds", "bytes"))
        print(
            f"{found['case']}: {tokens} tokens, {[round(s, 2) for s in seconds]} s, "
            f"{[round(b / 1e6) for b in megabytes]} MB (at once {[round(r['bytes'] / 1e6) for r in whole]}); "
            f"exponents: time {found['time_exponent']:.2f}, operations "
            f"{found['operations_exponent']:.2f}, memory {found['memory_exponent']:.2f}",
            flush=True,
        )
    return out


def draw(results: list[dict[str, Any]], folder: Path) -> None:
    """Seconds and memory by tokens, a row of pictures a pair; dashed where the text is read at once."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    pairs = list(dict.fromkeys(r["case"].partition(":")[0] for r in results))
    figure, axes = plt.subplots(
        len(pairs), 2, figsize=(10, 3.6 * len(pairs)), squeeze=False, layout="constrained"
    )
    for (time, memory), pair in zip(axes, pairs, strict=True):
        curves = [r for r in results if "rows" in r and r["case"].startswith(f"{pair}:")]
        for number, result in enumerate(curves):
            colour, label = f"C{number}", result["case"].partition(": ")[2]
            for rows, style in ((result["rows"], "o-"), (result["at_once"], "x--")):
                x = [row["tokens"] for row in rows]
                for place, key, unit in ((time, "seconds", 1), (memory, "bytes", 1e6)):
                    place.plot(
                        x,
                        [row[key] / unit if key == "seconds" or row[key] > 1e7 else math.nan for row in rows],
                        style,
                        color=colour,
                        ms=4,
                        lw=1,
                        label=label if style == "o-" else f"{label}, read at once" if number == 0 else None,
                    )
        for place, what in (
            (time, "seconds to the eighth token"),
            (memory, "peak memory beyond the models, MB"),
        ):
            place.set(xscale="log", yscale="log", xlabel="tokens in the receiver", ylabel=what, title=pair)
            place.set_xticks(
                x := [row["tokens"] for row in curves[0]["rows"]], [f"{n:,}" for n in x], minor=False
            )
            low, high = place.get_ylim()
            steps = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
            place.set_yticks(steps, [f"{y:,.10g}" for y in steps])
            place.minorticks_off()
        time.legend(frameon=False, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "length.png", dpi=90)


def main() -> None:
    """Prints a line a method, then JSON."""
    made = parser(__doc__, dtype="auto", most=1 << 30, methods=",".join(METHODS))
    made.add_argument("--figures", type=Path, help="folder for length.png")
    made.add_argument("--pairs", default="real,small", help="real, small or both")
    for hidden in ("--one", "--pair", "--lengths"):
        made.add_argument(hidden, help=argparse.SUPPRESS)
    made.add_argument("--at-once", action="store_true", help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.one:
        print(json.dumps(measured(given)))
        return
    results: list[dict[str, Any]] = []
    if "real" in given.pairs:
        results += curves(REAL, "real weights", given)
    if "small" in given.pairs:
        with tempfile.TemporaryDirectory() as folder:
            results += curves(saved(Path(folder)), "small shapes", given)
    if given.figures:
        draw(results, given.figures)
    report("length", results, given.out)


if __name__ == "__main__":
    main()
