"""How a chat template is used: its date, its thoughts, and the chats that it refuses.

Facts about a template are found by rendering it, not from its model's name. A thinking model writes a
thought before its answer; `Thinking` says whether it may. Every template that prints the date prints
`DATE`, so that a prompt is the same on every day.

>>> chat_of(tokenizer).thought.closes                                             # doctest: +SKIP
'</think>'
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.tasks.thought_text import MARKERS, TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = datetime.date(2024, 7, 26)  # the one that Llama 3's template prints where there is no clock
STEP = "Put a chat template there that transformers can apply, or choose another model."
LONGEST_BUDGET = 100_000
Thinking = str  # off, on, or the number of tokens after which a thought is closed
Turns = Sequence[tuple[str, str]]  # role and content

_SENTINEL = "7f3a9cturn{}c9a3f7"  # stands for a turn's content while the template's own text is found
# Variables by which templates switch thoughts off and on; None: not given.
_SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "reasoning": (False, True),
    "thinking_mode": ("disabled", "enabled"),
    "thinking_budget": (0, None),
    "reasoning_effort": ("low", None),
}
_NO_EFFORT = ("none", "no_think")  # values of reasoning_effort that mean no thought at all
_TAG = re.compile(rf"<({TAGS})>")


@dataclass(frozen=True)
class Thought:
    """How a template writes a thought.

    opens: text that begins one behind a generation prompt. closes: marker that ends one. lead: text
    before the marker where a thought is cut. after: text between the marker and the answer. direct:
    text that begins an answer without a thought, where answers have a channel of their own. ends:
    markers behind an answer, beside EOS.
    """

    opens: str
    closes: str
    lead: str = ""
    after: str = ""
    direct: str = ""
    ends: tuple[str, ...] = ()

    @property
    def marker(self) -> str:
        """The opening marker without the white space around it."""
        return self.opens.strip()

    @property
    def empty(self) -> str:
        """A thought without content, or the text that begins an answer without one."""
        return self.direct or f"{self.opens}{self.lead}{self.closes}{self.after}"

    def is_open(self, text: str) -> bool:
        """Says whether a text ends inside a thought."""
        return text.rfind(self.marker) > text.rfind(self.closes)


# Formats with channels, by the markers that a template must hold.
_CHANNELS = {
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"): Thought(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        after="<|start|>assistant<|channel|>final<|message|>",
        direct="<|channel|>final<|message|>",
        ends=("<|end|>", "<|call|>", "<|channel|>"),
    ),
    ("assistant<|think|>", "assistant<|content|>"): Thought(
        "<|think|>",
        "<|end|>",
        after="<|begin|>assistant<|content|>",
        direct="<|content|>",
        ends=("<|end|>", "<|calls|>"),
    ),
}


@dataclass(frozen=True)
class Rendered:
    """A chat as text.

    frames: the template's text before, between and after the contents; None where it drops or doubles
    one. closing: text between the thought that the model writes first and its answer; None where it
    writes none.
    adapted: how the turns were changed for the template, or "".
    """

    text: str
    frames: list[str] | None
    closing: str | None = None
    adapted: str = ""


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, and the facts that rendering it tells.

    switches: the variables by which it turns thoughts off. dated: whether it prints the date. thought:
    how it writes thoughts; None where it knows none.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    switches: frozenset[str] = frozenset()
    dated: bool = False
    thought: Thought | None = None

    def render(self, turns: Turns, thinking: Thinking = "off") -> Rendered:
        """Renders a chat; where its last turn is the assistant's, that is the beginning of the answer.

        off: by the template's own switch, or with an empty closed thought; an answer never begins
        inside a thought. Otherwise the text ends in an open thought, before the answer's beginning.
        Raises UserError for a chat that the template refuses in every form.
        """
        thought, begun = self.thought, turns[-1][0] == "assistant"
        asked = turns[:-1] if begun and len(turns) > 1 else turns
        begin = turns[-1][1] if begun else ""
        if thought is not None and thinking != "off":
            found = _Applied.of(self, asked, False, self._given(thinking))
            opens = "" if thought.is_open(found.end) else thought.opens
            return found.rendered(opens, closing=thought.closes + thought.after)
        given = self._given("off")
        try:
            found = _Applied.of(self, turns, begun, given)
            if not begun or self._may_answer(found.beginning):
                return found.rendered("" if begun else self._without_thought(found.end))
        except UserError:
            if not begun:
                raise
        found = _Applied.of(self, asked, False, given)  # no answer can be begun in the template's own form
        return found.rendered(self._without_thought(found.end), begin)

    def _may_answer(self, beginning: str) -> bool:
        thought = self.thought
        return thought is None or (not thought.is_open(beginning) and thought.direct in beginning)

    def _without_thought(self, end: str) -> str:
        """Returns the text by which a generation prompt goes on without a thought."""
        thought = self.thought
        if thought is None or (thought.direct and end.endswith(thought.direct)):
            return ""
        if thought.direct:
            return thought.direct
        if thought.is_open(end):
            return thought.lead + thought.closes + thought.after
        little = self.switches == {"reasoning_effort"} and "low" in _values(self.template, "reasoning_effort")
        return "" if (self.switches and not little) or thought.closes in end else thought.empty

    def _given(self, thinking: Thinking) -> dict[str, Any]:
        """Returns the template's variables; `enable_thinking` always, as lm-eval gives it."""
        off = thinking == "off" or self.thought is None
        given = {name: _values(self.template, name)[not off] for name in _SWITCHES if name in self.switches}
        if "thinking_budget" in given and (budget := budget_of(thinking)) is not None:
            given["thinking_budget"] = budget
        return {"enable_thinking": not off} | {k: v for k, v in given.items() if v is not None}

    def text(self, turns: Turns, begun: bool, given: Mapping[str, Any]) -> str:
        """Applies the template. Raises UserError for a chat that it refuses."""
        messages = [{"role": role, "content": content} for role, content in turns]
        more: Any = {"add_generation_prompt": not begun, "continue_final_message": begun, **given}
        try:
            _compiled(self.template).globals["strftime_now"] = DATE.strftime
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=self.template, **more
            )
        except Exception as error:  # a template can raise anything
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
            roles = ", ".join(role for role, _ in turns)
            what = f"the chat template of {_name(self.tokenizer)} refuses a chat of {roles} ({line})."
            raise UserError(what, STEP) from error
        assert isinstance(text, str)
        return text


@dataclass(frozen=True)
class _Applied:
    """A rendered chat. marked: the same with sentinels for its `count` contents. how: see `_grouped`."""

    text: str
    marked: str
    count: int
    how: str

    @classmethod
    def of(cls, chat: Chat, turns: Turns, begun: bool, given: Mapping[str, Any]) -> _Applied:
        groups, marked, how = _grouped(chat, tuple(role for role, _ in turns), begun, tuple(given.items()))
        return cls(chat.text(_joined(turns, groups), begun, given), marked, len(turns), how)

    @property
    def end(self) -> str:
        """The template's text behind the last content."""
        return self.marked.rpartition(_SENTINEL.format(self.count - 1))[2]

    @property
    def beginning(self) -> str:
        """The template's text between the last two contents: the header of an answer that is begun."""
        before = self.marked.rpartition(_SENTINEL.format(self.count - 1))[0]
        return before.rpartition(_SENTINEL.format(self.count - 2))[2]

    def rendered(self, more: str, begin: str = "", closing: str | None = None) -> Rendered:
        """Returns the chat with more of the template's text, and a content that begins the answer."""
        frames = _frames(self.marked, self.count)
        if frames is not None:
            frames[-1] += more
            frames += [""] if begin else []
        return Rendered(self.text + more + begin, frames, closing, self.how)


def _frames(marked: str, turns: int) -> list[str] | None:
    """Returns the text before, between and after the sentinels; None if one is missing or doubled."""
    frames = []
    for i in range(turns):
        before, found, marked = marked.partition(_SENTINEL.format(i))
        if not found or _SENTINEL.format(i) in marked:
            return None
        frames.append(before)
    return [*frames, marked]


# -- chats that a template refuses -----------------------------------------------------------------


@lru_cache(maxsize=4096)
def _grouped(
    chat: Chat, roles: tuple[str, ...], begun: bool, given: tuple[tuple[str, Any], ...]
) -> tuple[list[list[int]], str, str]:
    """Returns the turns that become one, the chat with sentinels, and how it was changed in words.

    A template may refuse or drop a system turn, or demand that roles alternate: the system's text then
    begins the first question, and neighbours of one role become one turn. Raises UserError.
    """
    alone = [[i] for i in range(len(roles))]
    merged = _without_system(roles)
    tries = [
        (alone, ""),
        (merged, "the system turn begins the first question"),
        (_alternating(roles, alone), "neighbouring turns of one role are one"),
        (_alternating(roles, merged), "the system turn begins the first question, turns alternate"),
    ]
    turns = [(role, _SENTINEL.format(i)) for i, role in enumerate(roles)]
    system = [text for role, text in turns if role == "system"]
    refused: UserError | None = None
    for number, (groups, how) in enumerate(tries):
        if number and groups in [before for before, _ in tries[:number]]:
            continue
        try:
            marked = chat.text(_joined(turns, groups), begun, dict(given))
        except UserError as error:
            refused = refused or error
            continue
        if all(text in marked for text in system):
            return groups, marked, how
    raise refused or UserError(f"the chat template of {_name(chat.tokenizer)} drops the system turn.", STEP)


def _without_system(roles: Sequence[str]) -> list[list[int]]:
    """Returns the turns with all system turns put in front of the first question's text."""
    system = [i for i, role in enumerate(roles) if role == "system"]
    rest = [[i] for i, role in enumerate(roles) if role != "system"]
    first = next((at for at, group in enumerate(rest) if roles[group[0]] == "user"), None)
    if not system or first is None:
        return [[i] for i in range(len(roles))]
    rest[first] = [*system, *rest[first]]
    return rest


def _alternating(roles: Sequence[str], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    out: list[list[int]] = []
    for group in groups:
        if out and roles[out[-1][-1]] == roles[group[-1]]:
            out[-1] = [*out[-1], *group]
        else:
            out.append([*group])
    return out


def _joined(turns: Turns, groups: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    return [(turns[group[-1]][0], "\n\n".join(turns[i][1] for i in group)) for group in groups]


# -- facts -----------------------------------------------------------------------------------------


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the template that is applied: of several named ones `default`, or the only one.

    Raises UserError where none of several is the default.
    """
    found: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(found, list):
        found = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
    if isinstance(found, dict) and found:
        only = next(iter(found.values())) if len(found) == 1 else None
        if (chosen := found.get("default", only)) is None:
            what = f"{_name(tokenizer)} has the chat templates {', '.join(sorted(found))}, none is `default`."
            raise UserError(what, "Name one of them `default` in its tokenizer_config.json.")
        found = chosen
    return str(found) if found else None


def chat_of(tokenizer: PreTrainedTokenizerBase) -> Chat | None:
    """Returns a tokenizer's chat template with its facts; None where it has none.

    Raises UserError for a template that cannot be compiled, or that refuses a plain question.
    """
    template = template_of(tokenizer)
    return None if template is None else _chat_of(tokenizer, template)


@lru_cache(maxsize=32)
def _chat_of(tokenizer: PreTrainedTokenizerBase, template: str) -> Chat:
    question, plain = [("user", "x")], Chat(tokenizer, template)
    default = plain.text(question, False, {})
    names = [name for name in _SWITCHES if name in _variables(template)]
    texts = {name: _switched(plain, name) for name in names}
    working = {name: both for name, both in texts.items() if len(set(both)) > 1}
    ends = [text.rpartition("x")[2] for text in [default, *(t for both in working.values() for t in both)]]
    try:
        begun = plain.text([*question, ("assistant", _SENTINEL)], True, {"enable_thinking": False})
        ends.append(begun.rpartition(_SENTINEL)[0].rpartition("x")[2])
    except UserError:
        pass  # such an answer is begun behind the generation prompt
    thought = _thought(template, ends)
    switches = frozenset(working) if thought is not None else frozenset[str]()
    return Chat(tokenizer, template, switches, _dated(plain), thought)


def _switched(chat: Chat, name: str) -> list[str]:
    """Returns a question under both values of a switch; of one that a template refuses nothing."""
    given = [{} if value is None else {name: value} for value in _values(chat.template, name)]
    try:
        return [chat.text([("user", "x")], False, each) for each in given]
    except UserError:
        return []


def _values(template: str, name: str) -> tuple[Any, Any]:
    """Returns the values of a switch for thoughts off and on; None: not given."""
    if name == "reasoning_effort":
        none = next((v for v in _NO_EFFORT if re.search(f"['\"]{v}['\"]", template)), None)
        return (none, "high") if none else ("low", None)
    return _SWITCHES[name]


def _thought(template: str, ends: Sequence[str]) -> Thought | None:
    """Returns how a template writes thoughts. ends: its generation prompts, thoughts off and on."""
    for needles, thought in _CHANNELS.items():
        if all(needle in template for needle in needles):
            return thought
    texts = [*ends, template]
    tags = dict.fromkeys(name for text in texts for name in _TAG.findall(text))
    pairs = [(f"<{name}>", f"</{name}>") for name in tags] + list(MARKERS)
    known = [(opens, closes) for opens, closes in pairs if any(opens in text for text in texts)]
    for text in texts:
        for opens, closes in known:
            if closes in text or (text in ends and opens in text):
                return _worded(opens, closes, ends)
    return None


def _worded(opens: str, closes: str, ends: Sequence[str]) -> Thought:
    """Returns a thought with the template's own line breaks, as its generation prompts show them."""
    tag = opens.startswith("<") and closes.startswith("</")
    begun = next((end for end in ends if end.rfind(opens) > end.rfind(closes)), None)
    closed = next((end for end in ends if closes in end), None)
    before, lead = "", "\n" if tag else ""
    gap = "\n" if tag or opens.endswith("thought") else ""
    after = "\n\n" if tag else ""
    if closed is not None:
        header, _, after = closed.rpartition(closes)
        header, found, between = header.rpartition(opens)
        if found and not between.strip():
            half = len(between) // 2
            gap, lead = between[: len(between) - half], between[len(between) - half :]
            shorter = [e for e in ends if opens not in e and header.rstrip().endswith(e.rstrip())]
            kept = min((len(e) - len(e.rstrip()) for e in shorter), default=len(header))
            before = header[len(header.rstrip()) + kept :]
    if begun is not None:
        gap, before = begun.rpartition(opens)[2], ""
        if closed is None:
            lead, after = gap, 2 * gap
        elif opens not in closed:
            lead = gap
    return Thought(before + opens + gap, closes, lead, after)


def _variables(template: str) -> set[str]:
    """Returns the names that a template takes from outside."""
    import jinja2.meta

    return jinja2.meta.find_undeclared_variables(_compiled(template).environment.parse(template))


def _compiled(template: str) -> Any:
    """Returns the template as transformers compiles it: the one object that it renders."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template)


def _dated(chat: Chat) -> bool:
    """Says whether the template prints a date in front of a question."""
    asked: list[str] = []
    compiled = _compiled(chat.template)

    def clock(format: str) -> str:
        asked.append(format)
        return DATE.strftime(format)

    compiled.globals["strftime_now"] = clock
    # as transformers renders: a template may ask whether these are none
    given = {"tools": None, "documents": None, "add_generation_prompt": True}
    compiled.render(messages=[{"role": "user", "content": "x"}], **given, **chat.tokenizer.special_tokens_map)
    compiled.globals["strftime_now"] = DATE.strftime
    return bool(asked)


def parse_thinking(value: Any) -> Thinking:
    """Returns a setting as text; YAML reads on and off as booleans. Raises ValueError for any other."""
    text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value).strip()
    whole = text.isascii() and text.isdigit() and 1 <= int(text) <= LONGEST_BUDGET
    if text not in ("off", "on") and not whole:
        raise ValueError(f"give off, on, or the tokens of a thought, 1 to {LONGEST_BUDGET:,}")
    return str(int(text)) if whole else text


def budget_of(thinking: Thinking) -> int | None:
    """Returns the tokens after which a thought is closed; None for off and on."""
    return int(thinking) if thinking.isdigit() else None


def check_thinking(tokenizers: Sequence[PreTrainedTokenizerBase], chats: Mapping[str, bool]) -> None:
    """Raises UserError where thoughts are on and none can be written.

    No chat template of these tokenizers knows any, or no task uses one. chats: whether each task does.
    """
    if all(thinking_of(t) == "off" for t in tokenizers):
        return
    if not any(chat and chat.thought for chat in map(chat_of, tokenizers)):
        names = " and ".join(dict.fromkeys(_name(t) for t in tokenizers))
        what = f"thoughts are on, but no chat template of {names} knows any."
        raise UserError(what, "Use --thinking off, or a model that thinks.")
    if chats and not any(chats.values()):
        what = f"thoughts are on, but no chat template is used for {', '.join(chats)}."
        raise UserError(what, "Use --thinking off, or a task of chats.")


def thinking_of(tokenizer: PreTrainedTokenizerBase) -> Thinking:
    """Returns whether thoughts are on, as `load_tokenizer` was told; off where it was not."""
    return str(getattr(tokenizer, "thinking", "off"))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or "this tokenizer")
