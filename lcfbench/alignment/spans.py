"""Spans of the sharer's prompt, which the pool of LCF-X reads one by one.

`windows` (P equal ones) and `one` count every token of the prompt, BOS and chat template too, as
the paper does. `paragraphs`, `sentences` and `overlap` cut the contents of the turns; tokens
outside belong to no span, and no span goes beyond its turn. No parameter of an adapter depends on
the scheme.

>>> [text for text in cut("Dr. Ada lives here. She works.", sentences)]
['Dr. Ada lives here. ', 'She works.']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lcfbench.alignment.tokens import content_tokens
from lcfbench.errors import UserError
from lcfbench.tasks.prompts import Prompt

SCHEMES = ("windows", "one", "paragraphs", "sentences", "overlap")

_BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_LINE = re.compile(r"\n\s*")
# "1. ", "[2] ", "(3) ", "Passage 4: ", "## Document 5" at the beginning of a line
_NUMBERED = re.compile(
    r"^[^\S\n]*(?:#+ *)?(?:\[\d{1,3}\]|\(\d{1,3}\)|\d{1,3}[.):](?=\s)"
    r"|(?:passage|paragraph|document|context|text) *\[?\d{1,3}\b)",
    re.I | re.M,
)
_STOP = re.compile(r"""[.!?…]+["'”’)\]]*\s+|[。！？]+[”’」』）]*\s*|\n\s*""")
_SHORT = (
    "mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt gov sen rep pres vs etc inc ltd co corp dept "
    "univ est approx ca cf al e.g i.e u.s u.k u.n d.c a.m p.m ph.d jan feb mar apr jun jul aug sep sept oct "
    "nov dec"
)
_COUNTED = "no nos vol vols p pp fig figs eq sec ch art"  # short before a number only


def check_spans(scheme: str, windows: int, window: int, stride: int) -> None:
    """Raises UserError for settings that are no span scheme, or would leave tokens out."""
    if scheme not in SCHEMES or windows < 1:
        raise UserError(
            f"spans={scheme}, windows={windows} is no span scheme.",
            f"Use spans={'|'.join(SCHEMES)} and windows of 1 or more.",
        )
    if not 1 <= stride <= window:
        raise UserError(
            f"window={window}, stride={stride} leaves tokens out.",
            "Use a stride from 1 to the window's length, in tokens.",
        )


def membership(
    scheme: str,
    prompts: Sequence[Prompt],
    mask: Tensor,
    *,
    windows: int = 5,
    window: int = 64,
    stride: int = 32,
) -> Tensor:
    """Returns (B, P, M) booleans: the spans that each token of the left-padded cache belongs to.

    mask: (B, M). P is the largest number of spans. A prompt in which a scheme finds none is one
    span.
    """
    if scheme in ("windows", "one"):
        count = 1 if scheme == "one" else windows
        order = (mask.cumsum(1) - 1) * count // mask.sum(1, keepdim=True)
        span = torch.where(mask.bool(), order, -1)
        return span[:, None] == torch.arange(int(span.max()) + 1, device=mask.device)[None, :, None]
    rows = [spans_of(scheme, p, window, stride) or [range(len(p.ids))] for p in prompts]
    member = torch.zeros(len(rows), max(map(len, rows)), mask.shape[1], dtype=torch.bool)
    for b, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        for s, tokens in enumerate(row):
            member[b, s, torch.tensor(tokens) + (mask.shape[1] - len(prompt.ids))] = True
    return member.to(mask.device)


def spans_of(scheme: str, prompt: Prompt, window: int, stride: int) -> list[Sequence[int]]:
    """Returns the tokens of each span, in order; spans without a token are left out."""
    if scheme == "overlap":
        tokens = content_tokens(prompt)
        starts = range(0, max(len(tokens) - window, 0) + stride, stride)  # the last window may be short
        return [tokens[s : s + window] for s in starts if s < len(tokens)]
    cuts = {"paragraphs": paragraphs, "sentences": sentences}[scheme]
    owner = [-1] * len(prompt.text)  # the span of each character
    count = 0
    for start, end in prompt.spans:
        at = start
        for piece in cut(prompt.text[start:end], cuts):
            owner[at : at + len(piece)] = [count] * len(piece)
            at, count = at + len(piece), count + 1
    spans: list[list[int]] = [[] for _ in range(count)]
    for t in content_tokens(prompt):
        # a token goes where its last character inside a content does; whitespace belongs to the
        # span before it
        a, b = prompt.offsets[t]
        spans[next(s for s in reversed(owner[a:b]) if s >= 0)].append(t)
    return [s for s in spans if s]


def cut(text: str, where: Callable[[str], list[int]]) -> list[str]:
    """Cuts a text before each character at which `where` says that a piece begins."""
    edges = sorted({0, *where(text), len(text)})
    return [text[a:b] for a, b in pairwise(edges)]


def paragraphs(text: str) -> list[int]:
    """Returns where paragraphs begin: after blank lines, and at lines that are numbered (two or more).

    Without either, at every line.
    """
    numbered = [m.start() for m in _NUMBERED.finditer(text)]
    found = [m.end() for m in _BLANK.finditer(text)] + (numbered if len(numbered) > 1 else [])
    return found or [m.end() for m in _LINE.finditer(text)]


def sentences(text: str) -> list[int]:
    """Returns where sentences begin, by punctuation; a new line begins one too.

    Not after common abbreviations and initials, not before a small letter.
    """
    return [m.end() for m in _STOP.finditer(text) if _ends(text, m)]


def _ends(text: str, stop: re.Match[str]) -> bool:
    if not stop[0].startswith("."):
        return stop[0][0] in "\n。！？" or not text[stop.end() : stop.end() + 1].islower()
    if "\n" in stop[0]:
        return True
    word = re.split(r"[\s(\[\"'“‘]", text[max(0, stop.start() - 12) : stop.start()])[-1]
    after = text[stop.end() : stop.end() + 1]
    initial = len(word) == 1 and word.isupper() and word != "I"
    short = word.lower() in _SHORT.split() or (word.lower() in _COUNTED.split() and after.isdigit())
    return not (initial or short or after.islower())
