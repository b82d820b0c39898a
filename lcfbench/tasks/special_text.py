"""Special tokens that stand in a document as text, such as `<|im_end|>`: they stay text.

A tokenizer takes the text of a special token for the token itself, wherever it stands. In a document
it is ordinary text, and read as its characters; in the chat template it is the token.

>>> special_text(["An answer ends in <|im_end|>."], tokenizer)                    # doctest: +SKIP
1
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Coded = tuple[list[int], list[Span], list[int]]  # ids, offsets, special tokens mask


def special_text(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Counts the special tokens that stand in texts as text."""
    return sum(len(_spans(text, tokenizer)) for text in texts)


def spelled(
    text: str, contents: Sequence[Span], tokenizer: PreTrainedTokenizerBase, added: bool
) -> Coded | None:
    """Tokenises a text whose `contents` are a document's; None where they hold no special token.

    added: put the tokens there that the tokenizer adds by itself. A special token within a content is
    its characters; outside it is the token.
    """
    found = _spans(text, tokenizer)
    inside = [any(a < end and start < b for start, end in contents) for a, b in found]
    if not any(inside):
        return None
    twin, names = _twin(tokenizer)
    changed, origin, at = [], list[int](), 0  # origin: of each character the one in `text`
    for (a, b), ordinary in zip(found, inside, strict=True):
        if ordinary:
            continue
        name = names[text[a:b]]
        changed += [text[at:a], name]
        origin += [*range(at, a), *[a] * len(name)]
        at = b
    coded = twin.encode("".join([*changed, text[at:]]), add_special_tokens=added)
    origin += range(at, len(text) + 1)
    offsets = [(origin[a], origin[b] if b > a else origin[a]) for a, b in coded.offsets]
    return coded.ids, [(0, 0) if a == b == 0 else (a, b) for a, b in offsets], coded.special_tokens_mask


def _spans(text: str, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """Returns where control tokens stand in a text.

    The pattern of a vocabulary with thousands of them takes 0.1 s to compile (Gemma's), and most texts
    hold not even their first characters.
    """
    if not any(start in text for start in _starts(tokenizer)):
        return []
    return [match.span() for match in _pattern(tokenizer).finditer(text)]


@lru_cache(maxsize=16)
def _control(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Returns the control tokens, longest first: special ones, and those that the chat template writes."""
    template = getattr(tokenizer, "chat_template", None)
    written = template if isinstance(template, str) else json.dumps(template or "", ensure_ascii=False)
    control = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip() and (token.special or token.content in written)
    ]
    return tuple(sorted(control, key=len, reverse=True))


@lru_cache(maxsize=16)
def _starts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Returns the first two characters of each control token."""
    return frozenset(token[:2] for token in _control(tokenizer))


@lru_cache(maxsize=16)
def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Returns what matches a control token."""
    return re.compile("|".join(map(re.escape, _control(tokenizer))) or "(?!)")


@lru_cache(maxsize=4)
def _twin(tokenizer: Any) -> tuple[Any, dict[str, str]]:
    """Returns the tokenizer with all control tokens renamed, and the new names.

    Ids, merges and rules are the same; only the texts that stand for the tokens are others, which no
    document holds.
    """
    from tokenizers import Tokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pattern = _pattern(tokenizer)
    names: dict[str, str] = {}
    for token in described["added_tokens"]:
        if pattern.fullmatch(token["content"]):
            names[token["content"]] = f"\ue0f0{token['id']}\ue0f1"
            token["content"] = names[token["content"]]
    model = described["model"]
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): ident for text, ident in vocabulary.items()}
        model["unk_token"] = names.get(model.get("unk_token"), model.get("unk_token"))
    else:  # unigram: a list of pieces and scores
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    return Tokenizer.from_str(json.dumps(described)), names
