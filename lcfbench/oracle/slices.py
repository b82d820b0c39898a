"""Slices of caches: the question's own entries out of a cache that has seen more, put where the question's cache would be.

>>> kept = lm.read([enriched_prompt(lm, d, "examples", shown) for d in documents])
>>> state = oracle(lm.read(prompts), kept)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lcfbench.methods.base import prompt
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

SINK = 2  # a prompt's first tokens take what attention pours on the beginning of any text: these stay direct

# -- what stands in front ---------------------------------------------------------------------------------------------------------------


def answered(document: Document) -> str:
    """The right answer as the document would have it written: its beginning, every step's right choice, the leads between them."""
    text, golds = document.receiver.prefix, list[str]()
    for number, step in enumerate(document.steps):
        text += step.led(golds).removeprefix(golds[-1]) if number else ""
        golds.append(step.choices[step.gold[0]])
        text = joined(text, golds[-1])
    return text if document.steps else joined(text, document.gold)


def joined(text: str, more: str) -> str:
    return text + ("" if not text or text[-1].isspace() or more[:1].isspace() else " ") + more


def enriched_prompt(lm: LanguageModel, document: Document, before: str, shown: Sequence[Document]) -> Prompt:
    """The document's prompt with the examples or the other side's text in front of it.

    Examples are earlier turns where the model has a chat template and the task wants it, else text with blank lines between. For the context, the task's
    own `full` view serves where that is the receiver's text behind the sharer's (splitfacts; `kept` is then the method `full_context`); elsewhere
    the lines that only the sharer sees are put in front.
    """
    view = document.receiver
    if before == "context":
        return prompt(lm, replace(view, user=_with_context(document)), document)
    if document.chat and lm.has_chat:
        turns = [turn for e in shown for turn in (("user", e.receiver.user), ("assistant", answered(e)))]
        return prompt(lm, view, document, history=turns)
    texts = [joined(e.receiver.user, answered(e)) for e in shown]
    return prompt(lm, replace(view, user="\n\n".join([*texts, view.user])), document)


def _with_context(document: Document) -> str:
    mine, whole = document.receiver.user, document.full.user
    if len(head := mine.split(maxsplit=1)) > 1 and whole != mine and whole.endswith(head[1]):
        return whole
    seen = set(mine.splitlines())
    theirs = [line for line in document.sharer.user.splitlines() if line.strip() and line not in seen]
    return "\n\n".join(["\n".join(theirs), mine]) if theirs else mine


# -- the slice --------------------------------------------------------------------------------------------------------------------------


def sliced(direct: Prompt, kept: Prompt) -> int:
    """How many of the tokens that end both prompts make the question's slice; the last token is counted, though it is in no cache.

    The tokens that both end with, from the first token of the question's own text on: the template's and the first `SINK` tokens in front of it stay direct.
    """
    same = 0
    for a, b in zip(reversed(direct.ids), reversed(kept.ids), strict=False):
        if a != b:
            break
        same += 1
    start = direct.spans[0][0] if direct.spans else 0
    first = next((t for t, (_, end) in enumerate(direct.offsets) if end > start), 0)
    return max(min(same, len(direct.ids) - max(first, SINK)), 0)


def oracle(direct: State, kept: State, positions: str = "direct") -> State:
    """The direct state with the question's slice taken from the kept cache: as long as direct, but it has seen more."""
    mine, theirs = direct.kv, kept.kv
    width = mine.length
    lengths = torch.tensor(
        [sliced(a, b) - 1 for a, b in zip(direct.prompts, kept.prompts, strict=True)], device=mine.mask.device
    )
    taken = torch.arange(width, device=lengths.device) >= width - lengths[:, None]  # (B, N)
    last = replace(theirs, **{n: getattr(theirs, n)[..., -width:, :] for n in ("keys", "values")}, mask=theirs.mask[:, -width:],
                   positions=theirs.positions[:, -width:])  # fmt: skip
    if positions == "kept":
        keys, places, ids_at = last.keys, torch.where(taken, last.positions, mine.positions), kept.positions
    else:
        keys, places, ids_at = moved(direct.lm, last, mine.positions), mine.positions, direct.positions
    pick = taken[None, :, None, :, None]
    kv = replace(
        mine,
        keys=torch.where(pick, keys, mine.keys),
        values=torch.where(pick, last.values, mine.values),
        positions=places,
    )
    return replace(direct, kv=kv, positions=ids_at)


def moved(lm: LanguageModel, kv: KV, positions: Tensor) -> Tensor:
    """The cache's keys turned to other rotary positions (B, N); keys that stay where they were keep their bits."""
    content = lm.rotate(kv.keys.float(), kv.positions, inverse=True)
    keys = lm.rotate(content, positions).to(kv.keys.dtype)
    return torch.where((positions == kv.positions)[None, :, None, :, None], kv.keys, keys)


def one_layer(direct: State, enriched: State, layer: int) -> State:
    """Direct everywhere but in one layer; both states stand at the same positions."""
    at = torch.tensor([layer], device=direct.kv.keys.device)
    return replace(direct, kv=direct.kv.with_layers(at, enriched.kv.keys[at], enriched.kv.values[at]))
