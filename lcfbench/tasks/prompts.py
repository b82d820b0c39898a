"""Views as token ids, exactly as lm-eval's `HFLM` makes them, and the place of the views' words in them.

A score is comparable with lm-eval's only if the ids are the same, so its rules are followed to the
letter: delimiter, chat-template call (thinking off), BOS, trailing whitespace, and the way a
continuation is split off the whole (lm_eval/api/utils.py, api/model.py `_encode_pair`,
models/huggingface.py `tok_encode`).

>>> prompt = render(document.receiver, tokenizer, chat=document.chat, choices=True)     # doctest: +SKIP
>>> [continuation(prompt, choice, tokenizer) for choice in document.steps[0].choices]   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.tasks.chat_template import Rendered, Turns, chat_of, thinking_of
from lcfbench.tasks.document import View
from lcfbench.tasks.special_text import Coded, Span, special_text, spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DELIMITER = " "  # lm-eval's target_delimiter; no task of ours changes it


@dataclass(frozen=True)
class Prompt:
    """The text and tokens that one model reads.

    text: the rendered prompt; when choices are scored its trailing whitespace is in `tail` instead.
    ids, offsets: N token ids and the characters [a, b) of `text` that each stands for; (0, 0) for
        special tokens that are not in it.
    spans: characters [a, b) of each turn's content, without whitespace at its ends and without empty
        turns, for token alignment. Equal views give equal contents on any two models. () if the
        template rewrites a content.
    end: where the rendered chat ends; text behind it was appended and is a document's own.
    closing: where the model first writes a thought, the text behind it, then `begin`, the beginning of
        the answer; else None.
    goes_on: whether the text stands behind other text, so that no BOS belongs in front of it.
    adapted: how the turns were changed for the chat template, or "".
    special: special tokens that stand in the contents as text. spelled: whether they are read as their
        characters; else as the tokens.
    """

    text: str
    ids: tuple[int, ...] = ()
    offsets: tuple[Span, ...] = ()
    spans: tuple[Span, ...] = ()
    tail: str = ""
    end: int = 0
    closing: str | None = None
    begin: str = ""
    goes_on: bool = False
    adapted: str = ""
    special: int = 0
    spelled: bool = True


def render(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    choices: bool,
    history: Sequence[tuple[str, str]] = (),
    spelled: bool = True,
) -> Prompt:
    """A view as this model's prompt.

    chat: use the tokenizer's chat template, if it has one. choices: continuations will be scored, else
    the model writes. history: further turns as (role, text), oldest first, between the view's own
    history and its question. spelled: see `Prompt`. Raises UserError for a tokenizer that gives no
    offsets.
    """
    turns = _turns(view, history)
    contents = [content for _, content in turns]
    found = _rendered(turns, view, tokenizer, chat)
    if found.closing is not None and view.prefix:
        contents = contents[:-1]
    spans = _locate(found.text, found.frames, contents)
    special = special_text(contents, tokenizer)
    if special and spelled and not spans:
        what = f"the chat template of {tokenizer.name_or_path} rewrites a text that holds special tokens."
        raise UserError(what, "They cannot be told from the template's own: leave them out of the text.")
    prompt = Prompt(
        found.text, spans=spans, end=len(found.text), adapted=found.adapted, special=special, spelled=spelled
    )
    if found.closing is not None:
        return replace(_encoded(prompt, tokenizer, choices=False), closing=found.closing, begin=view.prefix)
    return _encoded(prompt, tokenizer, choices=choices)


def rendered(view: View, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """The text of a view's prompt, without any token: `render(…).text` with its `tail`.

    Where the model writes a thought first, the text behind it is added.
    """
    found = _rendered(_turns(view), view, tokenizer, chat)
    return found.text if found.closing is None else found.text + found.closing + view.prefix


def adapted_for(view: View, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """How a view's turns are changed for the chat template, or ""."""
    applied = chat_of(tokenizer) if chat and view.history else None  # one question needs no change
    return "" if applied is None else applied.render(_turns(view), thinking_of(tokenizer)).adapted


def extend(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase, *, choices: bool = True) -> Prompt:
    """The prompt with more of the answer behind it, for the lead of a later step. Spans stay."""
    special = prompt.special + special_text([text], tokenizer)
    longer = replace(prompt, text=prompt.text + prompt.tail + text, special=special)
    return _encoded(longer, tokenizer, choices=choices)


def behind_thought(prompt: Prompt, rest: str, tokenizer: PreTrainedTokenizerBase, *, choices: bool) -> Prompt:
    """The text that follows a thought: its end `rest`, the closing, and the beginning of the answer."""
    assert prompt.closing is not None
    closed = rest + prompt.closing
    more = Prompt(closed + prompt.begin, end=len(closed), goes_on=True)
    return _encoded(more, tokenizer, choices=choices)


def continuation(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of `text` after `prompt`: the whole is tokenised, then split at the prompt's length.

    With some tokenizers the whole does not begin with the prompt's ids; lm-eval scores the same split.
    """
    return continuations(prompt, [text], tokenizer)[0]


def continuations(
    prompt: Prompt, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """`continuation` of each of several texts, in one call of the tokenizer where that is possible."""
    if not prompt.text:  # lm-eval gives an empty context the BOS (or EOS) id: it is prompt.ids
        wholes = [prompt.tail + text for text in texts]
        coded = [coded_text(whole, [(0, len(whole))], tokenizer, False)[0] for whole in wholes]
        return [ids[1:] if tuple(ids[:1]) == prompt.ids else ids for ids in coded]
    wholes = [prompt.text + prompt.tail + text for text in texts]
    if prompt.special or special_text(texts, tokenizer):
        found = [coded_text(w, _contents(prompt, w), tokenizer, _adds(prompt, w, tokenizer)) for w in wholes]
        return [ids[len(prompt.ids) :] for ids, _, _ in found]
    added = _adds(prompt, wholes[0], tokenizer)
    every = tokenizer(wholes, add_special_tokens=added)["input_ids"]
    return [(_one_bos(ids, tokenizer) if added else ids)[len(prompt.ids) :] for ids in every]


# -- text ------------------------------------------------------------------------------------------


def _turns(view: View, history: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    begun = [("assistant", view.prefix)] if view.prefix else []
    return [*view.history, *history, ("user", view.user), *begun]


def contents_of(view: View) -> list[str]:
    """Returns the contents of a view's turns, as they are given to the chat template."""
    return [content for _, content in _turns(view)]


def opened_answer(view: View, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a chat up to the header of an answer, and the answer's beginning behind it.

    As C2C writes it. Where the last turn is rendered as a turn, a template may leave out what its header
    says, such as an empty block of thoughts. Where the model writes a thought first, the chat ends there.
    """
    asked = _rendered([*view.history, ("user", view.user)], View(view.user), tokenizer, True)
    return asked.text if asked.closing is not None else asked.text + view.prefix


def _rendered(turns: Turns, view: View, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Rendered:
    applied = chat_of(tokenizer) if chat else None
    if applied is not None:
        return applied.render(turns, thinking_of(tokenizer))
    joints = [*_joints(turns, view), ""]
    text = "".join(content + joint for (_, content), joint in zip(turns, joints, strict=True))
    return Rendered(text, ["", *joints])


def _joints(turns: Sequence[tuple[str, str]], view: View) -> list[str]:
    """The text between one turn and the next where no chat template is used."""
    begun = [_DELIMITER if _needs_delimiter(view) else ""] if view.prefix else []
    return ["\n"] * (len(turns) - 1 - len(begun)) + begun


def _needs_delimiter(view: View) -> bool:
    return bool(view.user and view.prefix) and not (view.user[-1].isspace() or view.prefix[0].isspace())


def _locate(text: str, frames: list[str] | None, contents: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Each content's place: by the template's frames; where they differ here, by a search from the right."""
    walked = _walk(text, frames, contents) if frames is not None else None
    if walked is not None:
        return walked
    spans: list[tuple[int, int]] = []
    limit = len(text)
    for content in reversed([c.strip() for c in contents if c.strip()]):
        limit = text.rfind(content, 0, limit)
        if limit < 0:
            return ()
        spans.insert(0, (limit, limit + len(content)))
    return tuple(spans)


def _walk(text: str, frames: list[str], contents: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    spans: list[tuple[int, int]] = []
    if not text.startswith(frames[0]):
        return None
    at = len(frames[0])
    for content, frame in zip(contents, frames[1:], strict=True):
        core = content.strip()
        lead, trail = len(content) - len(content.lstrip()), len(content) - len(content.rstrip())
        # templates may strip contents
        start = next((at + k for k in (lead, 0) if text.startswith(core, at + k)), -1)
        end = start + len(core)
        after = next((end + k for k in (trail, 0) if text.startswith(frame, end + k)), -1)
        if start < 0 or after < 0:
            return None
        if core:
            spans.append((start, end))
        at = after + len(frame)
    return tuple(spans) if at == len(text) else None


# -- tokens ----------------------------------------------------------------------------------------


def coded_text(text: str, contents: Sequence[Span], tokenizer: PreTrainedTokenizerBase, added: bool) -> Coded:
    """Returns ids, offsets and special tokens mask of a text whose `contents` are a document's.

    Special tokens within them are text. added: put the tokens there that the tokenizer adds by itself.
    """
    if (coded := spelled(text, contents, tokenizer, added)) is None:
        more: Any = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
        found = tokenizer(text, add_special_tokens=added, **more)
        coded = (found["input_ids"], found["offset_mapping"], found["special_tokens_mask"])
    surplus = len(coded[0]) - len(_one_bos(coded[0], tokenizer)) if added else 0
    ids, offsets, mask = ([*part[surplus:]] for part in coded)
    return ids, offsets, mask


def _one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns ids without the first of two BOS: that of the tokenizer before that of the template."""
    twice = len(ids) > 1 and ids[0] == ids[1] and ids[0] == _added_in_front(tokenizer)
    return ids[1:] if twice else ids


@lru_cache(maxsize=64)
def _added_in_front(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token that a tokenizer puts in front of every text."""
    coded = tokenizer("x", return_special_tokens_mask=True)
    return int(coded["input_ids"][0]) if coded["special_tokens_mask"][0] else None


def appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer puts a token of its own behind every text."""
    coded = tokenizer("x", return_special_tokens_mask=True)
    return bool(coded["special_tokens_mask"][-1])


def check_ranked(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError for a tokenizer behind whose prompts no choice can be ranked."""
    if appends_eos(tokenizer):
        what = f"the tokenizer of {tokenizer.name_or_path} puts an end-of-text token behind every prompt"
        step = "Set add_eos_token to false in its tokenizer_config.json, or use --scoring generate."
        raise UserError(f"{what}: choices would be ranked after the end.", step)


def _adds(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase, choices: bool = True) -> bool:
    """Whether the tokenizer's own tokens are to be added to a prompt's text.

    lm-eval's rule: not where it has its own BOS or EOS before choices, its own BOS otherwise; here also
    behind white space. One that stands there as a document's text is none.
    """
    if prompt.goes_on:
        return False
    if not choices:
        begin = str(tokenizer.bos_token) if tokenizer.bos_token else None
    else:
        ident = _first_id(tokenizer)
        begin = None if ident is None else str(tokenizer.decode(ident))
    if begin is None or not text.lstrip().startswith(begin):
        return True
    end = len(text) - len(text.lstrip()) + len(begin)
    return any(start < end for start, _ in _contents(prompt, text))


def _contents(prompt: Prompt, text: str) -> list[Span]:
    """The characters of a longer text that are a document's: the turns, and all behind the chat.

    None where special tokens within them are the tokens.
    """
    if not prompt.spelled:
        return []
    return [*prompt.spans, (prompt.end, len(text))] if len(text) > prompt.end else [*prompt.spans]


def _first_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _encoded(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, choices: bool) -> Prompt:
    """The prompt with its tokens, its `text` being whole."""
    kept = prompt.text.rstrip() if choices else prompt.text
    tail = prompt.text[len(kept) :]
    if choices and not kept:
        ident = _first_id(tokenizer)
        if ident is None:
            what = f"an empty prompt needs a BOS or EOS token; {tokenizer.name_or_path} has neither."
            raise UserError(what, "Use a task whose prompts hold text.")
        return Prompt("", (ident,), ((0, 0),), (), tail)
    if not tokenizer.is_fast:
        what = f"the tokenizer of {tokenizer.name_or_path} has no character offsets."
        raise UserError(what, "Use its tokenizer.json form.")
    added = _adds(prompt, kept, tokenizer, choices)
    ids, spots, mask = coded_text(kept, _contents(prompt, kept), tokenizer, added)
    if choices and added and mask[-1] and len(ids) > 1 and spots[-1] == (0, 0):
        check_ranked(tokenizer)
    offsets = _mended(kept, [(a, b) for a, b in spots], mask)
    return replace(prompt, text=kept, ids=tuple(ids), offsets=offsets, tail=tail)


def _mended(text: str, offsets: list[tuple[int, int]], added: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Offsets under which each token of the text covers something, and only whitespace is left over.

    Byte-level tokenizers that trim whitespace give a lone space (b, b), some give every token (a, a):
    such a token gets the characters between its neighbours. NFC folds a combining mark into the letter
    before it and drops its offset: the letter's token gets it back. Tokens that share the bytes of one
    character all cover it.
    """
    own = [i for i, (start, end) in enumerate(offsets) if not (added[i] and start == end)]
    mended = [(0, 0)] * len(offsets)
    reached = 0
    for i, following in zip(own, [*own[1:], None], strict=True):
        start, end = offsets[i]
        nearest = len(text) if following is None else offsets[following][0]
        if start == end:
            start, end = (reached, end) if reached < start else (start, max(end, nearest))
        if forgotten := text[end:nearest].rstrip():
            end += len(forgotten)
        mended[i] = (start, end)
        reached = max(reached, end)
    return tuple(mended)
