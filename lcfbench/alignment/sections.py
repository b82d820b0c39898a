"""A chat for two models in the sections of C2C's token alignment (arXiv 2510.03215v2, 3.3).

C2C cuts both rendered chats at the contents of their turns. Contents are read token by token, the
sharer's being the receiver's tokens translated one for one. Of the text between them each model
reads its own, the shorter one padded to the length of the longer. No token of the prompts attends
padding, but rotary positions and sliding windows count it, and the tokens that the receiver writes
attend it. The rules are those of C2C's published code.

>>> chat = in_sections(mine, theirs, ["What is 2+2?"], (receiver, sharer), "longest")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lcfbench.alignment.remap import remap_prompt
from lcfbench.alignment.tokens import aligned_positions, check_contents, common_spans, turn_ends
from lcfbench.tasks.prompts import Prompt, coded_text

Range = tuple[int, int]


@dataclass(frozen=True)
class Chat:
    """One prompt as both models read it, padding included.

    ids, real: the receiver's tokens; False where one is padding. sharer, sharer_real: the same of the
    sharer. prompt: the sharer's without padding. source: the sharer's token that each receiver token
    reads; −1 where it is not edited.
    stops: receiver tokens up to the end of each section that is edited. Where the receiver's prompt
    ends in padding, the answer is predicted at the last pad.
    """

    ids: tuple[int, ...]
    real: tuple[bool, ...]
    sharer: tuple[int, ...]
    sharer_real: tuple[bool, ...]
    prompt: Prompt
    source: tuple[int, ...]
    stops: tuple[int, ...]


def in_sections(
    receiver: Prompt, sharer: Prompt, contents: Sequence[str], tokenizers: tuple[Any, Any], strategy: str
) -> Chat:
    """Returns two rendered chats in C2C's sections.

    contents: of the turns, as given to the templates. Tokens that a tokenizer adds by itself (a BOS
    that the template lacks) are not read. The last section is never edited: it runs on the edited
    cache. Where C2C's search does not find the same contents in both texts, their places in the
    templates decide. Raises UserError where the contents differ.
    """
    prompts = (receiver, sharer)
    coded = [
        coded_text(p.text, p.spans if p.spelled else (), tokenizer, False)
        for p, tokenizer in zip(prompts, tokenizers, strict=True)
    ]
    found = [content_spans(p.text, contents) for p in prompts]
    if len(found[0]) != len(found[1]):
        check_contents(receiver, sharer)
        found = [list(spans) for spans in common_spans(receiver, sharer)]
    ids = [c[0] for c in coded]
    cuts = [_sections(len(c[0]), token_ranges(c[1], spans)) for c, spans in zip(coded, found, strict=True)]
    mine: list[int] = []
    theirs: list[int] = []
    real: tuple[list[bool], list[bool]] = [], []
    source: list[int] = []
    pads = [_role(tokenizer, "pad") or 0 for tokenizer in tokenizers]
    runs: list[tuple[bool, int]] = []  # whether it is content, and the receiver's tokens up to its end
    for number, ((a, b), (c, d)) in enumerate(zip(*cuts, strict=True)):
        own, content = ids[0][a:b], bool(number % 2)
        other = [translated(i, *tokenizers, strategy) for i in own] if content else ids[1][c:d]
        width = max(len(own), len(other))
        source += range(len(theirs), len(theirs) + width) if content else [-1] * width
        for new, pad, tokens, kept in ((own, pads[0], mine, real[0]), (other, pads[1], theirs, real[1])):
            more = width - len(new)
            tokens += [*new, *[pad] * more]
            kept += [True] * len(new) + [False] * more
        if width and runs and runs[-1][0] == content:
            runs.pop()
        if width:
            runs.append((content, len(mine)))
    if runs and runs[-1][0]:
        start = runs[-2][1] if len(runs) > 1 else 0
        source[start:] = [-1] * (len(source) - start)
    shown = tuple(token for token, kept in zip(theirs, real[1], strict=True) if kept)
    return Chat(
        tuple(mine),
        tuple(real[0]),
        tuple(theirs),
        tuple(real[1]),
        replace(sharer, ids=shown, offsets=((0, 0),) * len(shown)),
        tuple(source),
        tuple(stop for content, stop in runs[:-1] if content),
    )


def unpadded(receiver: Prompt, sharer: Prompt, tokenizers: tuple[Any, Any], strategy: str) -> Chat:
    """Returns a prompt without chat template, which has nothing to pad; its last token is not edited."""
    read = remap_prompt(receiver, sharer, *tokenizers, strategy)
    last = len(receiver.ids) - 1
    return Chat(
        receiver.ids,
        (True,) * len(receiver.ids),
        read.ids,
        (True,) * len(read.ids),
        read,
        tuple(aligned_positions(receiver, read, "remap")),
        tuple(sorted({min(end, last) for end in turn_ends(receiver)})),
    )


def content_spans(text: str, contents: Sequence[str]) -> list[Range]:
    """Returns the characters [a, b) of each content in a rendered chat, by C2C's search.

    The first place after the last content at which `<` or the text's end follows; without one the
    first place at all. A word of the template that reads like a content may be taken for it.
    """
    spans: list[Range] = []
    begin = 0
    for content in filter(None, contents):
        at = text.find(content, begin)
        while at >= 0 and text[at + len(content) : at + len(content) + 1] not in ("<", ""):
            at = text.find(content, at + 1)
        if at < 0:
            at = text.find(content, begin)
            at = text.find(content) if at < 0 else at
            lead = text[max(0, at - 10) : at]
            inside = "<" in lead and ">" not in lead
            if at < 0 or (inside and "begin_of_text" in text[max(0, at - 20) : at + 20]):
                continue
        begin = at + len(content)
        spans.append((at, begin))
    return spans


def token_ranges(offsets: Sequence[Range], spans: Sequence[Range]) -> list[Range]:
    """Returns the tokens [first, last) that touch each span; `offsets` are the tokenizer's own."""
    ranges = []
    for start, end in spans:
        first = next((i for i, (_, b) in enumerate(offsets) if b > start), len(offsets))
        last = next((i for i in range(first, len(offsets)) if offsets[i][0] >= end), len(offsets))
        ranges.append((first, last))
    return ranges


def _sections(count: int, contents: Sequence[Range]) -> list[Range]:
    """Returns template, content, template, … as token ranges; a template may be empty."""
    out, at = [], 0
    for first, last in contents:
        out += [(at, max(first, at)), (first, last)]
        at = last
    return [*out, (at, max(count, at))]


@lru_cache(maxsize=1 << 18)
def translated(token: int, receiver: Any, sharer: Any, strategy: str) -> int:
    """Returns the sharer token that C2C puts in the place of a receiver token.

    A token is decoded alone and encoded by the sharer. Of several tokens `longest` takes the one
    whose text is longest, `first` the first. A special token goes by role (the last of pad, EOS,
    BOS, unk that it plays), then by string, else to the sharer's unk, or to id 0.
    """
    text = receiver.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    unknown = sharer.unk_token_id or 0
    if token in receiver.all_special_ids:
        roles = {_role(receiver, r): _role(sharer, r) for r in ("pad", "eos", "bos", "unk")}
        if (counterpart := roles.get(token)) is not None:
            return int(counterpart)
        return int(sharer.get_vocab().get(text, unknown))
    found = sharer.encode(text, add_special_tokens=False) or [unknown]
    if len(found) == 1 or strategy == "first":
        return int(found[0])

    def length(other: int) -> int:
        return len(sharer.decode([other], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return int(max(found, key=length))  # the first of equals


def _role(tokenizer: Any, role: str) -> int | None:
    """Returns the id that plays a role; padding falls back on EOS."""
    ident = getattr(tokenizer, f"{role}_token_id")
    return tokenizer.eos_token_id if ident is None and role == "pad" else ident
