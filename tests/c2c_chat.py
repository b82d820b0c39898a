"""C2C's padded form of a chat, as its reference code lays it out: the recorded chats are compared with it.

Runs go through `remap_prompt`, which needs no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcfbench.alignment.remap import remap_ids


@dataclass(frozen=True)
class PaddedChat:
    """A chat as C2C lays it out: both sequences equally long, segments padded on their right.

    message: whether each position is content. receiver_padding, sharer_padding: whether it is padding.
    sections: (is content, start, end).
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
    """Returns C2C's aligned form of a chat, padding included."""
    kwargs = {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking}
    mine, contents = _segments(messages, receiver_tokenizer, continue_final_message, kwargs)
    theirs, _ = _segments(messages, sharer_tokenizer, continue_final_message, kwargs)
    out = PaddedChat([], [], [], [], [], [], _joined(mine, contents), _joined(theirs, contents))
    pads = [
        (t.eos_token_id if t.pad_token_id is None else t.pad_token_id) or 0
        for t in (receiver_tokenizer, sharer_tokenizer)
    ]
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
    """Returns the template's text round the contents, and the contents.

    begun: the last message is the beginning of an answer.
    """
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
