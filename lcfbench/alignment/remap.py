"""A prompt in another model's tokens, one for one: C2C's token alignment (arXiv 2510.03215v2, section 3.3; methods.md, section 3).

>>> remap_prompt(receivers_prompt, sharers_prompt, receiver.tokenizer, sharer.tokenizer, "longest")        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lcfbench.alignment.tokens import check_contents
from lcfbench.errors import unknown

if TYPE_CHECKING:
    from lcfbench.tasks.prompts import Prompt

ROLES = ("bos", "eos", "pad", "unk")


def remap_prompt(
    receiver: Prompt, sharer: Prompt, receiver_tokenizer: Any, sharer_tokenizer: Any, strategy: str
) -> Prompt:
    """The sharer's prompt with its contents written in translated receiver tokens, one for one; its template stays its own.

    receiver, sharer: the same view as each model would read it. Template segments are tokenised apart, as C2C does. C2C also pads them
    to equal length; padding is masked and nothing is fused there, so here it is left out. Raises UserError for unequal contents.
    """
    check_contents(receiver, sharer)
    added = _leading_specials(sharer, sharer_tokenizer)
    ids, offsets = list(sharer.ids[:added]), list(sharer.offsets[:added])
    at, dropped = (
        0,
        0,
    )  # next character of the sharer's text; how many of them the last content token has already said
    for (r, end), (s, _) in zip(receiver.spans, sharer.spans, strict=True):
        inside = [t for t, (a, b) in enumerate(receiver.offsets) if a < end and r < b]
        if not inside:  # cut off the end of the prompt
            continue
        first, last = receiver.offsets[inside[0]][0], receiver.offsets[inside[-1]][1]
        # a token across the border ("␣The" after a template's space) is translated whole; the template does without those characters
        before, after = receiver.text[first:r], receiver.text[end:last]
        template = sharer.text[at + dropped : s].removesuffix(before)
        _template(template, at + dropped, sharer_tokenizer, ids, offsets)
        ids += remap_ids([receiver.ids[t] for t in inside], receiver_tokenizer, sharer_tokenizer, strategy)
        offsets += [
            (max(receiver.offsets[t][0], r) - r + s, min(receiver.offsets[t][1], end) - r + s) for t in inside
        ]
        at = s + end - r
        dropped = len(after) if sharer.text.startswith(after, at) else 0
    _template(sharer.text[at + dropped :], at + dropped, sharer_tokenizer, ids, offsets)
    return replace(sharer, ids=tuple(ids), offsets=tuple(offsets))


def _leading_specials(prompt: Prompt, tokenizer: Any) -> int:
    """How many tokens at the front are not in the text (a BOS that the tokenizer adds)."""
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


# -- token by token ----------------------------------------------------------------------------------------------------------


def remap_ids(ids: Sequence[int], receiver_tokenizer: Any, sharer_tokenizer: Any, strategy: str) -> list[int]:
    """One sharer token for each receiver token.

    A token is decoded alone and encoded with the sharer's tokenizer (a part of a UTF-8 character decodes to U+FFFD and is encoded as
    such). Of several tokens `longest` takes the one that shares the longest string with it (the first of equals), `first` the first;
    where there is none, unk, or id 0. Special tokens go by role (bos, eos, pad, unk), then by string. With equal vocabularies: the
    identity.
    """
    if strategy not in ("longest", "first"):
        raise unknown("remap strategy", strategy, ("longest", "first"), "lcfbench train --help")
    if same_vocabulary(receiver_tokenizer, sharer_tokenizer):
        return list(ids)
    return [_remap(i, receiver_tokenizer, sharer_tokenizer, strategy) for i in ids]


@lru_cache(maxsize=16)
def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two tokenizers give the same ids to the same tokens."""
    return one is other or one.get_vocab() == other.get_vocab()


@lru_cache(maxsize=1 << 18)
def _remap(token: int, receiver: Any, sharer: Any, strategy: str) -> int:
    found = candidates(token, receiver, sharer)
    if len(found) == 1 or strategy == "first":
        return found[0]
    text = receiver.decode([token])
    return max(found, key=lambda c: shared_length(text, sharer.decode([c])))  # max keeps the first of equals


def candidates(token: int, receiver: Any, sharer: Any) -> list[int]:
    """The sharer tokens that spell one receiver token; never empty."""
    nothing = [0 if sharer.unk_token_id is None else sharer.unk_token_id]
    if token in receiver.all_special_ids:
        for role in ROLES:
            if token == _role(receiver, role) and (counterpart := _role(sharer, role)) is not None:
                return [counterpart]
        known = sharer.get_vocab().get(receiver.convert_ids_to_tokens(token))
        return nothing if known is None else [known]
    return sharer.encode(receiver.decode([token]), add_special_tokens=False) or nothing


def _role(tokenizer: Any, role: str) -> int | None:
    """The id that plays a role; padding falls back on EOS."""
    ident = getattr(tokenizer, f"{role}_token_id")
    return tokenizer.eos_token_id if ident is None and role == "pad" else ident


def shared_length(one: str, other: str) -> int:
    """Length of the longest string that is part of both."""
    return SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size


# -- C2C's padded form of a chat --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddedChat:
    """A chat as C2C lays it out: both sequences equally long, template segments padded on their right.

    message: which positions are contents. receiver_padding, sharer_padding: which are padding. sections: (is content, start, end).
    """

    receiver_ids: list[int]
    sharer_ids: list[int]
    message: list[bool]
    receiver_padding: list[bool]
    sharer_padding: list[bool]
    sections: list[tuple[bool, int, int]]
    receiver_text: str
    sharer_text: str


def remap_chat(
    messages: Sequence[Mapping[str, str]],
    receiver_tokenizer: Any,
    sharer_tokenizer: Any,
    strategy: str,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    enable_thinking: bool = False,
) -> PaddedChat:
    """C2C's aligned form of a chat, padding and all (our own runs go through `remap_prompt`, which needs none)."""
    kwargs = {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking}
    mine, contents = _segments(messages, receiver_tokenizer, continue_final_message, kwargs)
    theirs, _ = _segments(messages, sharer_tokenizer, continue_final_message, kwargs)
    out = PaddedChat([], [], [], [], [], [], _joined(mine, contents), _joined(theirs, contents))
    pads = [_role(t, "pad") or 0 for t in (receiver_tokenizer, sharer_tokenizer)]
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        x, y = (
            t.encode(s, add_special_tokens=False) for t, s in ((receiver_tokenizer, a), (sharer_tokenizer, b))
        )
        _append(out, False, x, y, pads)
        if i < len(contents):
            x = receiver_tokenizer.encode(contents[i], add_special_tokens=False)
            _append(out, True, x, remap_ids(x, receiver_tokenizer, sharer_tokenizer, strategy), pads)
    return out


def _append(out: PaddedChat, content: bool, mine: list[int], theirs: list[int], pads: list[int]) -> None:
    start, width = len(out.message), max(len(mine), len(theirs))
    if not width:
        return
    out.sections.append((content, start, start + width))
    out.message.extend([content] * width)
    for ids, new, padding, pad in (
        (out.receiver_ids, mine, out.receiver_padding, pads[0]),
        (out.sharer_ids, theirs, out.sharer_padding, pads[1]),
    ):
        ids.extend(new + [pad] * (width - len(new)))
        padding.extend([False] * len(new) + [True] * (width - len(new)))


def _joined(template: list[str], contents: list[str]) -> str:
    return "".join(a + b for a, b in zip(template, [*contents, ""], strict=True))


def _segments(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, begun: bool, kwargs: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The template's text round the contents, and the contents. With `begun` the last message is an answer to go on from."""
    marks = [f"7f3a9cturn{i}c9a3f7" for i in range(len(messages))]
    marked = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
    if (
        begun
    ):  # the header of an answer, thinking block included, is what the template gives as generation prompt
        text = (
            tokenizer.apply_chat_template(
                marked[:-1], tokenize=False, **(kwargs | {"add_generation_prompt": True})
            )
            + marks[-1]
        )
    else:
        text = tokenizer.apply_chat_template(marked, tokenize=False, **kwargs)
    segments = []
    for mark in marks:
        before, _, text = text.partition(mark)
        segments.append(before)
    return [*segments, text], [m["content"] for m in messages]
