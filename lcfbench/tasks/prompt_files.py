"""The wording of a paper: a Jinja file, or a name of a task's `prompts:`, in place of a task's own prompt.

A file without blocks is the prompt. With `{% block NAME %}…{% endblock %}` it can say more: the text of
`BLOCKS`. One line break behind the first tag of a block and one before its last are not part of it.

>>> read_prompt("{% block prompt %}{{question}}{% endblock %}{% block prefix %}A:{% endblock %}", "p").parts
{'prompt': '{{question}}', 'prefix': 'A:'}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError, unknown
from lcfbench.parsing import read_text
from lcfbench.tasks.document import NOTE
from lcfbench.tasks.lm_eval import RefusedError, sandbox, seconds

BLOCKS = {
    "prompt": "what the receiver reads, and the sharer where both read the same",
    "prefix": "the beginning of the answer",
    "sharer": "what the sharer reads, of tasks with different contexts",
    "request": "what a sharer that writes its message is asked",
    "request_prefix": "the beginning of its message",
    "noted": "what the receiver reads with such a message; {{note}} stands where it goes",
    "parse": "a regular expression; its first group is the answer, in the first place that it fits",
    "until": "texts that end a written answer, one a line",
    "max_new_tokens": "the most tokens of a written answer",
}
TEMPLATES = ("prompt", "prefix", "sharer", "request", "request_prefix", "noted")
LARGEST = 100_000  # characters of a file
PATIENCE = 1.0  # seconds for one search of the `parse` expression
MEND = "docs/tasks.md shows the form."
_BLOCK = re.compile(r"\{%-?\s*block\s+(\w+)\s*-?%\}\n?(.*?)\n?\{%-?\s*endblock(?:\s+\w+)?\s*-?%\}", re.S)
_NOTED = re.compile(r"\{\{-?\s*note\s*-?\}\}")
_TRIED = ("a", "1", " ", "A ", "\n", "ab", "answer ", "B. ", "(", "aA1 ")  # texts on which `parse` is timed


@dataclass(frozen=True)
class PromptFile:
    """A wording. name: as it was asked for. text: the whole file. parts: the text of each block."""

    name: str
    text: str
    parts: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Digest of the wording, wherever its file lies."""
        return hashlib.sha256(repr(sorted(self.parts.items())).encode()).hexdigest()

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """The `parse` expression."""
        return re.compile(self.parts["parse"]) if "parse" in self.parts else None

    def answer(self, text: str) -> str | None:
        """Returns the first group of the `parse` expression in a written answer; None where none fits.

        Raises UserError for a search that takes too long.
        """
        assert self.pattern is not None
        try:
            with seconds(PATIENCE):
                found = self.pattern.search(text)
        except RefusedError as error:
            raise UserError(f"prompt {self.name}: parse {error} on an answer.", "Simplify it.") from error
        return None if found is None else found[1]

    def over(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a task's configuration with this wording in place of its own, for every scoring.

        Raises UserError for a part that the task cannot use.
        """
        parts, extra = self.parts, dict(config["metadata"])
        if "sharer" in parts and extra["context"] == "shared":
            raise self._error(
                "has a block sharer, but both models of this task read the same", "Leave it out."
            )
        if "parse" in parts:
            if "generate" not in extra["scorings"]:
                raise self._error(f"has a parse rule, but {config['task']} is never answered in writing")
            extra["default_scoring"] = "generate"
        scorings = {name: dict(over) for name, over in extra["scorings"].items()}
        views = dict(extra.get("views") or {})
        for over in scorings.values():
            if "prompt" in parts:
                over |= {"doc_to_text": parts["prompt"], "gen_prefix": None}
            if "prefix" in parts:
                over["gen_prefix"] = parts["prefix"]
            writes = over.get("output_type", config.get("output_type")) == "generate_until"
            if writes and {"until", "max_new_tokens"} & set(parts):
                written = dict(over.get("generation_kwargs") or config.get("generation_kwargs") or {})
                if "until" in parts:
                    written["until"] = [line for line in parts["until"].split("\n") if line]
                if "max_new_tokens" in parts:
                    written["max_gen_toks"] = int(parts["max_new_tokens"])
                over["generation_kwargs"] = written
        for part in ("sharer", "noted"):
            if part in parts:
                views[part] = {"user": _NOTED.sub(NOTE, parts[part]), "prefix": parts.get("prefix", "")}
        if "request" in parts or "request_prefix" in parts:
            form = views.get("request", extra.get("request"))
            own = form if isinstance(form, dict) else {"user": form or "{{seen}}"}
            views["request"] = {
                "user": parts.get("request", own["user"]),
                "prefix": parts.get("request_prefix", own.get("prefix", "")),
            }
        return {**config, "metadata": {**extra, "scorings": scorings, "views": views}}

    def check(self, row: Mapping[str, Any], task: str) -> None:
        """Raises UserError where the wording names a field that a document lacks, or is empty."""
        from jinja2 import meta

        known = {*row, "seen", "note"}
        for part in (p for p in TEMPLATES if p in self.parts):
            names = meta.find_undeclared_variables(sandbox().parse(self.parts[part]))
            if lacking := sorted(names - known - set(sandbox().globals)):
                have = ", ".join(sorted(known - {"note"}))
                raise self._error(f"names {lacking[0]}, which documents of {task} lack", f"They have {have}.")

    def _error(self, what: str, step: str = MEND) -> UserError:
        return UserError(f"prompt {self.name} {what}.", step)


def find_prompt(asked: str, task: str, named: Mapping[str, Any]) -> PromptFile:
    """Returns the wording that a user asks for: one of the task's `prompts:`, else a file.

    Raises UserError where there is neither, and for a wording that cannot be used.
    """
    if (form := named.get(asked)) is not None:
        parts = {"prompt": form} if isinstance(form, str) else form
        blocks = "\n".join(f"{{% block {k} %}}\n{v}\n{{% endblock %}}" for k, v in parts.items())
        return read_prompt(blocks, asked)
    path = Path(asked).expanduser()
    looks = path.suffix or "/" in asked or path.exists()
    if not looks:
        if not named:
            raise UserError(f"{task} has no prompts by name: {asked}.", "Name a file: --prompt FILE.jinja.")
        raise unknown(f"prompt of {task}", asked, named, "metadata.prompts of its file, or a FILE.jinja")
    text = read_text(path, "prompt file")
    if "\x00" in text:
        raise UserError(f"prompt file {path} is not text.", MEND)
    return read_prompt(text, path.name)


def read_prompt(text: str, name: str) -> PromptFile:
    """Returns a wording from a file's text. Raises UserError, with the line of a mistake."""
    from jinja2 import TemplateError, TemplateSyntaxError, meta

    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    if len(text) > LARGEST:
        raise UserError(f"prompt {name} has more than {LARGEST:,} characters.", MEND)
    try:
        others = list(meta.find_referenced_templates(sandbox().parse(text)))
    except TemplateSyntaxError as error:
        why = " ".join(str(error.message or "it cannot be read").split()).rstrip(".")
        raise UserError(f"prompt {name}, line {error.lineno}: {why}.", MEND) from error
    except (TemplateError, RecursionError) as error:
        raise UserError(f"prompt {name} cannot be read: {error}.", MEND) from error
    if others:
        named = f"takes text from another file, {others[0]!r:.60}"
        raise UserError(f"prompt {name} {named}, which would be in no digest.", "Write the text itself.")
    parts: dict[str, str] = {}
    for block in _BLOCK.finditer(text):
        if block[1] not in BLOCKS:
            raise unknown(f"block of prompt {name}", block[1], BLOCKS, "docs/tasks.md")
        if block[1] in parts or "{% block" in block[2] or "{%- block" in block[2]:
            raise UserError(f"prompt {name}: the block {block[1]} stands twice or holds another.", MEND)
        parts[block[1]] = block[2]
    outside = re.sub(r"\{#.*?#\}", "", _BLOCK.sub("", text), flags=re.S)
    if parts and outside.strip():
        what = " ".join(outside.split())[:60]
        raise UserError(f"prompt {name}: text outside of its blocks: {what}.", MEND)
    parts = parts or {"prompt": text.removesuffix("\n")}
    found = PromptFile(name, text, parts)
    _check(found)
    return found


def _check(found: PromptFile) -> None:
    """Raises UserError for an empty prompt, and for parts that cannot be used."""
    name, parts = found.name, found.parts
    if not re.sub(r"\{#.*?#\}", "", parts.get("prompt", "x"), flags=re.S).strip():
        raise UserError(f"prompt {name} is empty.", "Write what the models are to read.")
    if "noted" in parts and len(_NOTED.findall(parts["noted"])) != 1:
        raise UserError(f"prompt {name}: its block noted must hold {{{{note}}}} once.", MEND)
    if "max_new_tokens" in parts:
        number = parts["max_new_tokens"].strip()
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 100_000):
            raise UserError(f"prompt {name}: max_new_tokens is {number[:40]!r}.", "Give 1 to 100,000.")
    if "parse" in parts:
        try:
            groups = re.compile(parts["parse"]).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"prompt {name}: parse is no regular expression ({error}).", MEND) from error
        if not groups:
            raise UserError(f"prompt {name}: parse has no group.", "Put the answer into (…).")
        pattern = re.compile(parts["parse"])
        tries = {*_TRIED, *(c for c in parts["parse"] if c.isprintable())}
        try:
            with seconds(PATIENCE):
                for unit in sorted(tries):
                    pattern.search(unit * (2_000 // len(unit)) + "\x00")
        except RefusedError as error:
            what = f"prompt {name}: parse {error} on a text of 2,000 characters"
            raise UserError(f"{what}.", "Avoid repeats inside repeats, as (a+)+.") from error
