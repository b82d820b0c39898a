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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.tasks.document import View

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DELIMITER = " "  # lm-eval's target_delimiter; no task of ours changes it
_SENTINEL = "7f3a9cturn{}c9a3f7"  # stands for a turn's content while the template's own text is found


@dataclass(frozen=True)
class Prompt:
    """The text and tokens that one model reads.

    text: the rendered prompt; when choices are scored its trailing whitespace is in `tail` instead.
    ids, offsets: N token ids and the characters [a, b) of `text` that each stands for; (0, 0) for
        special tokens that are not in it.
    spans: characters [a, b) of each turn's content, without whitespace at its ends and without empty
        turns, for token alignment. Equal views give equal contents on any two models. () if the
        template rewrites a content.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]
    tail: str = ""


def render(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    choices: bool,
    history: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """A view as this model's prompt.

    chat: use the tokenizer's chat template, if it has one. choices: continuations will be scored, else
    the model writes. history: further turns as (role, text), oldest first, between the view's own
    history and its question. Raises UserError for a tokenizer that gives no offsets.
    """
    turns = _turns(view, history)
    contents = [content for _, content in turns]
    text = _text(turns, view, tokenizer, chat)
    if _has_template(tokenizer, chat):
        marked = [(role, _SENTINEL.format(i)) for i, (role, _) in enumerate(turns)]
        frames = _frames(_templated(marked, tokenizer, begun=bool(view.prefix)), len(turns))
    else:
        frames = ["", *_joints(turns, view), ""]
    return _encode(text, _locate(text, frames, contents), tokenizer, choices=choices)


def rendered(view: View, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """The text of a view's prompt, without any token: `render(…).text` with its `tail`."""
    return _text(_turns(view), view, tokenizer, chat)


def extend(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase, *, choices: bool = True) -> Prompt:
    """The prompt with more of the answer behind it, for the lead of a later step. Spans stay."""
    return _encode(prompt.text + prompt.tail + text, prompt.spans, tokenizer, choices=choices)


def continuation(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of `text` after `prompt`: the whole is tokenised, then split at the prompt's length.

    With some tokenizers the whole does not begin with the prompt's ids; lm-eval scores the same split.
    """
    return continuations(prompt, [text], tokenizer)[0]


def continuations(
    prompt: Prompt, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """`continuation` of each of several texts, in one call of the tokenizer."""
    if not prompt.text:  # lm-eval gives an empty context the BOS (or EOS) id: it is prompt.ids
        coded = [tokenizer.encode(prompt.tail + text, add_special_tokens=False) for text in texts]
        return [ids[1:] if tuple(ids[:1]) == prompt.ids else ids for ids in coded]
    wholes = [prompt.text + prompt.tail + text for text in texts]
    added = not _has_bos(wholes[0], tokenizer, True)  # decided by how the text begins
    return [list(ids[len(prompt.ids) :]) for ids in tokenizer(wholes, add_special_tokens=added)["input_ids"]]


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
    says, such as an empty block of thoughts.
    """
    turns = [*view.history, ("user", view.user)]
    return _templated(turns, tokenizer, begun=False) + view.prefix


def _has_template(tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    return chat and bool(getattr(tokenizer, "chat_template", None))


def _text(
    turns: Sequence[tuple[str, str]], view: View, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> str:
    if _has_template(tokenizer, chat):
        return _templated(turns, tokenizer, begun=bool(view.prefix))
    return "".join(text + joint for (_, text), joint in zip(turns, [*_joints(turns, view), ""], strict=True))


def _joints(turns: Sequence[tuple[str, str]], view: View) -> list[str]:
    """The text between one turn and the next where no chat template is used."""
    begun = [_DELIMITER if _needs_delimiter(view) else ""] if view.prefix else []
    return ["\n"] * (len(turns) - 1 - len(begun)) + begun


def _needs_delimiter(view: View) -> bool:
    return bool(view.user and view.prefix) and not (view.user[-1].isspace() or view.prefix[0].isspace())


def _templated(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, begun: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    more: Any = {
        "add_generation_prompt": not begun,
        "continue_final_message": begun,
        "enable_thinking": False,
    }
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    assert isinstance(text, str)
    return text


def _frames(marked: str, turns: int) -> list[str] | None:
    """The template's text before, between and after the turns; None if it dropped or doubled one."""
    frames = []
    for i in range(turns):
        before, found, marked = marked.partition(_SENTINEL.format(i))
        if not found or _SENTINEL.format(i) in marked:
            return None
        frames.append(before)
    return [*frames, marked]


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


def _has_bos(text: str, tokenizer: PreTrainedTokenizerBase, choices: bool) -> bool:
    """Whether `text` has its own BOS: lm-eval looks for BOS or EOS before choices, for BOS otherwise."""
    if not choices:
        return bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    ident = _first_id(tokenizer)
    return ident is not None and text.startswith(str(tokenizer.decode(ident)))


def _first_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _encode(
    text: str, spans: tuple[tuple[int, int], ...], tokenizer: PreTrainedTokenizerBase, *, choices: bool
) -> Prompt:
    kept = text.rstrip() if choices else text
    tail = text[len(kept) :]
    if choices and not kept:
        ident = _first_id(tokenizer)
        assert ident is not None, "an empty prompt needs a BOS or EOS token"
        return Prompt("", (ident,), ((0, 0),), (), tail)
    if not tokenizer.is_fast:
        what = f"the tokenizer of {tokenizer.name_or_path} has no character offsets."
        raise UserError(what, "Use its tokenizer.json form.")
    asked: Any = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
    coded = tokenizer(kept, add_special_tokens=not _has_bos(kept, tokenizer, choices), **asked)
    offsets = _mended(kept, [(a, b) for a, b in coded["offset_mapping"]], coded["special_tokens_mask"])
    return Prompt(kept, tuple(coded["input_ids"]), offsets, spans, tail)


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
