"""Chat data sets as training documents: conversations, messages or prompt/response pairs.

>>> from lcfbench.training.chat import Chat
>>> chat = Chat("teknium/OpenHermes-2.5", split="train")                      # doctest: +SKIP
>>> next(chat.documents(seed=0)).gold                                         # doctest: +SKIP

Rows are read one at a time. Both models read the same conversation; the last assistant turn is the
answer, system turns are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lcfbench.errors import UserError
from lcfbench.sources.datasets import load_table
from lcfbench.tasks.document import NOTE, Document, View

if TYPE_CHECKING:
    from datasets import Dataset

FIRST = 500_000  # rows, as the papers' own training used of OpenHermes-2.5
_HOLD_OUT = 100  # every hundredth row is for validation
_TRIED = 2_000  # rows without an assistant turn after which a data set is taken to have none
_CHUNK = 256  # rows read at a time
_TURNS = ("conversations", "messages", "conversation")
_PAIRS = tuple(
    (asked, answered)
    for answered in ("response", "completion", "output", "answer")
    for asked in ("prompt", "instruction", "question", "query")
)
_MORE = ("input", "context")  # columns that may belong to an instruction
_ROLES = dict.fromkeys(("human", "user", "prompter"), "user")
_ROLES |= dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant")

Turn = tuple[str, str]  # role, text


@dataclass
class Chat:
    """One chat data set (its Hub split `train`).

    split: 99 of 100 rows are for training, every hundredth for validation. first: only so many rows
    are used. ending: the end of a question; a line break for receivers without a chat template.
    dropped: numbers of rows so far that make no document, by reason.
    """

    name: str
    config: str = "default"
    split: Literal["train", "validation"] = "train"
    first: int = FIRST
    offline: bool = False
    ending: str = ""
    dropped: Counter[str] = field(default_factory=Counter)

    @cached_property
    def table(self) -> Dataset:
        """The rows. Raises UserError for an unknown data set, or one without chat columns."""
        table = load_table(self.name, self.config, "train", offline=self.offline)
        self._columns(table.column_names)
        return table.select(range(min(len(table), self.first)))

    def __len__(self) -> int:
        held_out = len(self.table) // _HOLD_OUT
        return held_out if self.split == "validation" else len(self.table) - held_out

    def documents(self, seed: int) -> Iterator[Document]:
        """Yields all rows that make a document, each once, in an order drawn from the seed.

        Raises UserError when none of the first rows has an assistant turn.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        # the last row of each hundred is held out: k // 99 of those precede training row k
        held_out = order * _HOLD_OUT + _HOLD_OUT - 1
        rows = held_out if self.split == "validation" else order + order // (_HOLD_OUT - 1)
        made, roles = 0, Counter[str]()
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK].tolist()
            for index, row in zip(chunk, self.table.select(chunk).to_list(), strict=True):
                turns = self._turns(row)
                roles.update(role for role, _ in turns)
                document = self._document(index, turns)
                if isinstance(document, str):
                    self.dropped[document] += 1
                else:
                    made += 1
                    yield document
            if not made and start + _CHUNK >= min(_TRIED, len(rows)):
                raise self._none(", ".join(sorted(roles)))

    def _columns(self, names: list[str]) -> tuple[str, ...]:
        """Returns the column of turns, or the two of question and answer."""
        if found := next((name for name in _TURNS if name in names), None):
            return (found,)
        if pair := next((pair for pair in _PAIRS if set(pair) <= set(names)), None):
            return pair
        raise UserError(
            f"{self.name} has no assistant turns: its columns are {', '.join(names)}.",
            f"A chat data set has {' or '.join(_TURNS[:2])}, or two columns like prompt and response.",
        )

    def _turns(self, row: Mapping[str, Any]) -> list[Turn]:
        columns = self._columns(list(row))
        if len(columns) == 2:
            asked = [row[columns[0]], *(row[name] for name in _MORE if name in row)]
            return [
                ("user", "\n\n".join(str(text).strip() for text in asked if text)),
                ("assistant", str(row[columns[1]] or "").strip()),
            ]
        turns = []
        for turn in row[columns[0]] or []:
            role = turn.get("from") or turn.get("role") or ""
            text = turn.get("value") or turn.get("content") or ""
            turns.append((_ROLES.get(role, role), text.strip() if isinstance(text, str) else ""))
        return [(role, text) for role, text in turns if role != "system"]

    def _document(self, index: int, turns: list[Turn]) -> Document | str:
        """Returns the document of a row, or the reason why it makes none."""
        last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
        if last is None:
            return "no assistant turn"
        *earlier, (_, gold) = turns[: last + 1]
        begin = next((i for i, (role, _) in enumerate(earlier) if role == "user"), len(earlier))
        earlier = earlier[begin:]
        alternate = all(role == ("user", "assistant")[i % 2] for i, (role, _) in enumerate(earlier))
        if not alternate or len(earlier) % 2 == 0:
            return "turns do not alternate"
        if not gold or not all(text for _, text in earlier):
            return "an empty turn"
        *history, (_, question) = earlier
        view = View(question + self.ending, "", tuple(history))
        noted = View(f"{NOTE}\n\n{view.user}", "", view.history)
        name, native = f"chat:{self.name}", {"id": str(index)}
        made = Document(name, str(index), view, view, view, view, noted, "generate", gold)
        return replace(made, max_new_tokens=512, native=native)

    def _none(self, roles: str) -> UserError:
        found = f"columns {', '.join(self.table.column_names)}; roles {roles or 'none'}; {dict(self.dropped)}"
        what = f"{self.name} has no assistant turns that could be learned ({found})."
        return UserError(what, "Name another chat data set.")
