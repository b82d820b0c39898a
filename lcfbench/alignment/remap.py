"""A prompt in another model's tokens, one for one: C2C's token alignment (arXiv 2510.03215v2, 3.3).

>>> remap_prompt(mine, theirs, receiver.tokenizer, sharer.tokenizer, "longest")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from lcfbench.alignment.tokens import check_contents, common_spans
from lcfbench.errors import unknown
from lcfbench.tasks.prompts import Prompt

ROLES = ("bos", "eos", "pad", "unk")


def remap_prompt(
    receiver: Prompt, sharer: Prompt, receiver_tokenizer: Any, sharer_tokenizer: Any, strategy: str
) -> Prompt:
    """Returns the sharer's prompt with its contents in translated receiver tokens, one for one.

    receiver, sharer: the same view as each model would read it. The template stays the sharer's
    own, its segments tokenised apart, as C2C does. C2C also pads them to equal length; padding is
    masked and nothing is fused there, so it is left out. Raises UserError for unequal contents.
    """
    check_contents(receiver, sharer)
    added = _leading_specials(sharer, sharer_tokenizer)
    ids, offsets = list(sharer.ids[:added]), list(sharer.offsets[:added])
    at, dropped = 0, 0  # the sharer's next character; how many from there the last content token spells
    for (r, end), (s, _) in zip(*common_spans(receiver, sharer), strict=True):
        inside = [t for t, (a, b) in enumerate(receiver.offsets) if a < end and r < b]
        if not inside:  # cut off the end of the prompt
            continue
        first, last = receiver.offsets[inside[0]][0], receiver.offsets[inside[-1]][1]
        # a token across the border ("␣The" after a template's space) is translated whole; the
        # template does without those characters
        before, after = receiver.text[first:r], receiver.text[end:last]
        template = sharer.text[at + dropped : s].removesuffix(before)
        _template(template, at + dropped, sharer_tokenizer, ids, offsets)
        ids += remap_ids([receiver.ids[t] for t in inside], receiver_tokenizer, sharer_tokenizer, strategy)
        at_receiver = [receiver.offsets[t] for t in inside]
        offsets += [(max(a, r) - r + s, min(b, end) - r + s) for a, b in at_receiver]
        at = s + end - r
        dropped = len(after) if sharer.text.startswith(after, at) else 0
    _template(sharer.text[at + dropped :], at + dropped, sharer_tokenizer, ids, offsets)
    return replace(sharer, ids=tuple(ids), offsets=tuple(offsets))


def _leading_specials(prompt: Prompt, tokenizer: Any) -> int:
    """Counts the tokens at the front that are not in the text (a BOS that the tokenizer adds)."""
    special, count = set(tokenizer.all_special_ids), 0
    while count < len(prompt.ids) and prompt.offsets[count] == (0, 0) and prompt.ids[count] in special:
        count += 1
    return count


def _template(text: str, start: int, tokenizer: Any, ids: list[int], offsets: list[tuple[int, int]]) -> None:
    """Appends the tokens of a template segment that begins at character `start`."""
    if text:
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids += coded["input_ids"]
        offsets += [(start + a, start + b) for a, b in coded["offset_mapping"]]


def remap_ids(ids: Sequence[int], receiver_tokenizer: Any, sharer_tokenizer: Any, strategy: str) -> list[int]:
    """Returns one sharer token for each receiver token; the same ids for equal vocabularies.

    A token is decoded alone and encoded with the sharer's tokenizer (a part of a UTF-8 character
    decodes to U+FFFD and is encoded as such). Of several tokens `longest` takes the one that shares
    the longest string with it (the first of equals), `first` the first; where there is none, unk,
    or id 0. Special tokens go by role (bos, eos, pad, unk), then by string. Raises UserError for
    another strategy.
    """
    if strategy not in ("longest", "first"):
        raise unknown("remap strategy", strategy, ("longest", "first"), "lcfbench train --help")
    if same_vocabulary(receiver_tokenizer, sharer_tokenizer):
        return list(ids)
    return [_remap(i, receiver_tokenizer, sharer_tokenizer, strategy) for i in ids]


@lru_cache(maxsize=16)
def same_vocabulary(one: Any, other: Any) -> bool:
    """Says whether two tokenizers give the same ids to the same tokens."""
    return one is other or one.get_vocab() == other.get_vocab()


@lru_cache(maxsize=1 << 18)
def _remap(token: int, receiver: Any, sharer: Any, strategy: str) -> int:
    found = candidates(token, receiver, sharer)
    if len(found) == 1 or strategy == "first":
        return found[0]
    text = receiver.decode([token])
    return max(found, key=lambda c: shared_length(text, sharer.decode([c])))  # max keeps the first of equals


def candidates(token: int, receiver: Any, sharer: Any) -> list[int]:
    """Returns the sharer tokens that spell one receiver token; never empty."""
    nothing = [0 if sharer.unk_token_id is None else sharer.unk_token_id]
    if token in receiver.all_special_ids:
        for role in ROLES:
            if token == _role(receiver, role) and (counterpart := _role(sharer, role)) is not None:
                return [counterpart]
        known = sharer.get_vocab().get(receiver.convert_ids_to_tokens(token))
        return nothing if known is None else [known]
    return sharer.encode(receiver.decode([token]), add_special_tokens=False) or nothing


def _role(tokenizer: Any, role: str) -> int | None:
    """Returns the id that plays a role; padding falls back on EOS."""
    ident = getattr(tokenizer, f"{role}_token_id")
    return tokenizer.eos_token_id if ident is None and role == "pad" else ident


def shared_length(one: str, other: str) -> int:
    """Returns the length of the longest string that is part of both."""
    return SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size
