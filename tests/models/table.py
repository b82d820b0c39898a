"""docs/models.md: which architecture allows which method, found by running every method on each.

    python -m tests.models.table            # writes docs/models.md, in minutes
    python -m tests.models.table --check    # says where it differs from docs/models.md

The models are those of `tests.models.zoo`.
"""

from __future__ import annotations

import argparse
import html
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from lcfbench.models.capabilities import CAPABILITIES, MEANING
from tests.models import cells, zoo

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# head of a column → its methods, which need the same of a model
COLUMNS: dict[str, tuple[str, ...]] = {
    "text": cells.TEXT,
    "c2c, lcf": ("c2c", "lcf", "lcfx"),
    "prefix": ("prefix",),
    "dense": ("dense",),
    "kvcomm": ("kvcomm",),
    "lora": ("lora",),
    "draft_kv": ("draft_kv",),
    "xkv": ("xkv",),
    "hub": ("hub",),
    "cacheback": ("cacheback",),
    "latentmas": ("latentmas",),
    "activation, sde": ("activation", "sde"),
}
CAPABLE = "\n".join(f"- **{name}**: {MEANING[name]}." for name in CAPABILITIES)
INTRO = f"""# Which models work

Any causal language model that transformers loads can be named in `--pair`. What can be done with it
depends on its layers: on what they keep of a text, and on how they know the order of the words.
`lcfbench` finds that out when a model is loaded for the first time, and refuses in one line, before
anything runs, what would give a wrong number.

Check your own model by its name or folder:

```
lcfbench doctor --model Qwen/Qwen3-0.6B
```

## How to read the table

Each row is one architecture. Its cells were found by running the methods with tiny random models of it,
in float32 on a CPU, with transformers {transformers.__version__}. The size of a model makes no difference
here. A checkpoint can differ from its family in its config: `doctor` reads the checkpoint itself. In
bfloat16 and float16 a fault smaller than rounding is not seen: nemotron-h and zamba2, whose cached path
differs by some ten-thousandths of the logits' spread, are then read on their cache.

The first columns are the **capabilities** that `doctor` reports; latentmas needs `latent` of its sharer,
activation and sde need `activations` of both models:

{CAPABLE}

The other columns are **methods**. A method works with a pair if the receiver and the sharer have the
capabilities that it needs; here both are of the row's architecture.

- *text*: receiver, sharer, full_context and t2t; excerpt and answer_letter need no more. **exact**: the
  log-likelihoods and the written text are those of lm-eval's `hf` model, in a batch and alone. For minimax,
  roberta, nemotron-h and zamba2 transformers itself writes another text with its cache than without:
  there the text is that of the model without a cache.
- *c2c, lcf* (lcfx, identical and single need the same), *dense*, *prefix*, *lora*, *draft_kv*, *xkv*, *hub*,
  *cacheback*, *latentmas*, *activation, sde*: **exact**: the scores are the same with eager attention and
  with sdpa, in a batch and alone, with a document's own message and with another document's. An adapter
  changes entries of attention layers alone; a recurrent state stays the receiver's own. (falcon-alibi: sdpa
  alone; transformers' eager attention adds its bias twice.) *draft_kv* also needs layers whose masks can
  differ. activation is run with an adapter between two models, sde, cacheback and latentmas on one.
- *kvcomm*: besides, the scores are those of the plain model that reads both texts in a row.
- **no**: the method is refused; the number is that of the reason below the table.

"""


@dataclass(frozen=True)
class Row:
    """One architecture. missing: reasons by capability. cells: by method, `EXACT` or the refusing line."""

    name: str
    missing: Mapping[str, str]
    cells: Mapping[str, str]


def row(name: str) -> Row:
    """Runs everything. Raises AssertionError for a number that is wrong."""
    lacking = cells.found(name).capabilities.missing
    return Row(name, lacking, {method: cells.cell(name, method) for method in cells.METHODS})


def reason_of(line: str) -> str:
    """The reason in a line that refuses a method, without the model's name and the next step."""
    line = re.sub(r"tiny-[\w.-]*\w", "the model", line)
    reason = re.split(r"\. (?=[A-Z])", line)[0].rstrip(".")
    return reason.partition(" lacks: ")[2] or reason


def kind_of(reason: str) -> str:
    """Equal for reasons that differ in numbers alone."""
    return re.sub(r"\d[\d.,–]*( [\d.,–]+)*", "N", reason)


def kinds_of(lines: Iterable[str]) -> set[str]:
    """The reasons among what `cells.cell` returned."""
    return {kind_of(reason_of(line)) for line in lines if line != cells.EXACT}


def page(rows: Sequence[Row]) -> str:
    reasons: dict[str, str] = {}  # by kind, in the order in which they come

    def entry(lines: Sequence[str]) -> str:
        for line in lines:
            if line != cells.EXACT:
                reasons.setdefault(kind_of(reason_of(line)), reason_of(line))
        numbers = sorted([*reasons].index(kind) + 1 for kind in kinds_of(lines))
        return f"no ({', '.join(map(str, numbers))})" if numbers else cells.EXACT

    heads = ["model", "model type", *CAPABILITIES, *(f"*{column}*" for column in COLUMNS)]
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for r in rows:
        able = ["–" if c in r.missing else "yes" for c in CAPABILITIES]
        methods = [entry([r.cells[m] for m in some]) for some in COLUMNS.values()]
        table.append("| " + " | ".join([r.name, f"`{zoo.ZOO[r.name][0]}`", *able, *methods]) + " |")
    why = [f"{n}. {html.escape(reason, False)}." for n, reason in enumerate(reasons.values(), 1)]
    return INTRO + "\n".join(table) + "\n\n## Why a method is refused\n\n" + "\n".join(why) + "\n"


def read_page() -> dict[str, tuple[set[str], dict[str, set[str]]]]:
    """Of each model in docs/models.md: its capabilities, and the kinds of reasons in each column."""
    text = PAGE.read_text(encoding="utf-8")
    noted = re.findall(r"^(\d+)\. (.*)\.$", text.partition("\n## Why ")[2], re.M)
    reasons = {n: kind_of(html.unescape(reason)) for n, reason in noted}
    found = {}
    for line in re.findall(r"^\| (.*`.*) \|$", text, re.M):
        name, _, *rest = line.split(" | ")
        able = {c for c, word in zip(CAPABILITIES, rest, strict=False) if word == "yes"}
        shown = zip(COLUMNS, rest[len(CAPABILITIES) :], strict=True)
        found[name] = able, {c: {reasons[n] for n in re.findall(r"\d+", cell)} for c, cell in shown}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    made = page([row(name) for name in zoo.ZOO])
    if not check:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    old = PAGE.read_text(encoding="utf-8").splitlines()
    new = made.splitlines()
    if old != new:
        print(*(line for line in new if line not in old), sep="\n")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
