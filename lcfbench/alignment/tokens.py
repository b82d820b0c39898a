"""The sharer token that each receiver token reads.

`span`: the sharer reads its natural tokens, and characters decide. `remap` (C2C with alignment):
the sharer reads the receiver's tokens translated one by one inside its own chat template (`remap`).
`same` (C2C without alignment): the sharer reads the receiver's very ids.
"""

from __future__ import annotations

from lcfbench.errors import UserError, unknown
from lcfbench.tasks.prompts import Prompt
from lcfbench.tasks.special_text import Span


def aligned_positions(receiver: Prompt, sharer: Prompt, scheme: str) -> list[int]:
    """Returns for every receiver token the sharer token that it reads; −1 where it is not edited.

    span: the sharer token that covers the receiver token's last character (of several that share a
    character the last: it has read all of it); tokens that end outside the turns' contents are not
    edited. remap: the k-th token of the contents reads the k-th, template tokens are not edited.
    same: every token reads its own index. Raises UserError where the prompts differ in contents.
    """
    if scheme == "same":
        if len(receiver.ids) != len(sharer.ids):
            raise UserError(
                f"token alignment 'same' needs equal ids, not {len(receiver.ids)} and {len(sharer.ids)}.",
                "Use span or remap.",
            )
        return list(range(len(receiver.ids)))
    if scheme == "remap":
        mine, theirs = content_tokens(receiver), content_tokens(sharer)
        if len(mine) != len(theirs):
            raise UserError(
                f"remapped contents have {len(theirs)} tokens, not {len(mine)}.",
                "Use remap_prompt for the sharer.",
            )
        source = dict(zip(mine, theirs, strict=True))
        return [source.get(t, -1) for t in range(len(receiver.ids))]
    if scheme != "span":
        raise unknown("token alignment", scheme, ("span", "remap", "same"), "lcfbench train --help")
    check_contents(receiver, sharer)
    last = [-1] * len(sharer.text)  # the last token that covers each character
    for token, (a, b) in enumerate(sharer.offsets):
        last[a:b] = [token] * (b - a)
    reads = [-1] * len(receiver.text)  # the sharer token for each character of the receiver's text
    for (r, end), (s, _) in zip(*common_spans(receiver, sharer), strict=True):
        seen = -1
        for i in range(end - r):
            # a character that no token covers (some tokenizers drop spaces) is served by the token
            # before it
            seen = last[s + i] if last[s + i] >= 0 else seen
            reads[r + i] = seen
    return [reads[b - 1] if b > a else -1 for a, b in receiver.offsets]


def content_tokens(prompt: Prompt) -> list[int]:
    """Returns the indices of the tokens that touch a turn's content, in order."""
    spans = prompt.spans
    return [
        t for t, (a, b) in enumerate(prompt.offsets) if any(a < end and start < b for start, end in spans)
    ]


def turn_ends(prompt: Prompt) -> list[int]:
    """Returns for each turn the index after the last token that touches its content.

    Turns that are cut off the prompt are left out.
    """
    tokens = list(enumerate(prompt.offsets, 1))
    ends = [
        max((t for t, (a, b) in tokens if a < end and start < b), default=0) for start, end in prompt.spans
    ]
    return [e for e in ends if e]


def common_spans(receiver: Prompt, sharer: Prompt) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Returns the spans of both prompts; where one leaves the answer's beginning for later, without it."""
    mine, theirs = receiver.spans, sharer.spans
    if receiver.begin != sharer.begin:
        fewest = min(len(mine), len(theirs))
        return mine[:fewest], theirs[:fewest]
    return mine, theirs


def check_contents(receiver: Prompt, sharer: Prompt) -> None:
    """Raises UserError unless both prompts know where their contents stand, and these are equal."""
    both = zip((receiver, sharer), common_spans(receiver, sharer), strict=True)
    mine, theirs = ([p.text[a:b] for a, b in spans] for p, spans in both)
    if mine != theirs or (receiver.text and not mine):
        raise UserError(
            "the two models are not shown the same contents, so their tokens cannot be aligned by text.",
            "A chat template rewrites them, or the task gives different contexts: use --mode t2t, or an "
            "LCF-X adapter.",
        )
