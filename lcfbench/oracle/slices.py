"""Slices of caches: a question's entries of a cache that has seen more, in its own cache.

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

SINK = 2  # first tokens of a prompt, which stay direct: much attention goes to the beginning of any text


def answered(document: Document) -> str:
    """Returns the right answer in full: beginning, every step's right choice, leads between."""
    text, golds = document.receiver.prefix, list[str]()
    for number, step in enumerate(document.steps):
        text += step.led(golds).removeprefix(golds[-1]) if number else ""
        golds.append(step.choices[step.gold[0]])
        text = joined(text, golds[-1])
    return text if document.steps else joined(text, document.gold)


def joined(text: str, more: str) -> str:
    return text + ("" if not text or text[-1].isspace() or more[:1].isspace() else " ") + more


def enriched_prompt(lm: LanguageModel, document: Document, before: str, shown: Sequence[Document]) -> Prompt:
    """Returns the document's prompt with examples or the other side's context in front of it.

    Examples are earlier turns where the model has a chat template and the task uses it, else text
    with blank lines between. The context is the task's own `full` view where that ends with the
    receiver's text (splitfacts; `kept` is then the method `full_context`); elsewhere the lines that
    only the sharer sees are put in front.
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


def sliced(direct: Prompt, kept: Prompt) -> int:
    """Returns the number of tokens in the question's slice, with the last, which has no entry.

    The slice is the common ending of both prompts, from the first token of the question's own text
    on; the template's tokens in front of it and the first `SINK` tokens are not part of it.
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
    """Returns the direct state with the question's slice from the kept cache. Its length stays."""
    mine, theirs = direct.kv, kept.kv
    width = mine.length
    counts = [sliced(a, b) - 1 for a, b in zip(direct.prompts, kept.prompts, strict=True)]
    lengths = torch.tensor(counts, device=mine.mask.device)
    taken = torch.arange(width, device=lengths.device) >= width - lengths[:, None]  # (B, N)
    last = replace(
        theirs,
        keys=theirs.keys[..., -width:, :],
        values=theirs.values[..., -width:, :],
        mask=theirs.mask[:, -width:],
        positions=theirs.positions[:, -width:],
    )
    if positions == "kept":
        keys, places, ids_at = last.keys, torch.where(taken, last.positions, mine.positions), kept.positions
    else:
        keys, places, ids_at = moved(direct.lm, last, mine.positions), mine.positions, direct.positions
    pick = taken[None, :, None, :, None]
    keys, values = torch.where(pick, keys, mine.keys), torch.where(pick, last.values, mine.values)
    return replace(direct, kv=replace(mine, keys=keys, values=values, positions=places), positions=ids_at)


def moved(lm: LanguageModel, kv: KV, positions: Tensor) -> Tensor:
    """Returns the cache's keys at other rotary positions (B, N); unmoved keys keep their bits."""
    content = lm.rotate(kv.keys.float(), kv.positions, inverse=True)
    keys = lm.rotate(content, positions).to(kv.keys.dtype)
    return torch.where((positions == kv.positions)[None, :, None, :, None], kv.keys, keys)


def one_layer(direct: State, enriched: State, layer: int) -> State:
    """Returns the direct state with one layer of the enriched one, which has equal positions."""
    at = torch.tensor([layer], device=direct.kv.keys.device)
    return replace(direct, kv=direct.kv.with_layers(at, enriched.kv.keys[at], enriched.kv.values[at]))
