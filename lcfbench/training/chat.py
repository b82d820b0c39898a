"""Chat data sets as training documents: rows of conversations, messages or prompt/response pairs, read one at a time.

>>> from lcfbench.training.chat import Chat
>>> chat = Chat("teknium/OpenHermes-2.5", split="train")                      # doctest: +SKIP
>>> next(chat.documents(seed=0)).gold                                         # doctest: +SKIP

Both models read the same conversation; the last assistant turn is the answer, system turns are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lcfbench.errors import UserError
from lcfbench.tasks.document import NOTE, Document, View

if TYPE_CHECKING:
    from datasets import Dataset

FIRST = 500_000  # rows, as the papers' own training used of OpenHermes-2.5
_HOLD_OUT = 100  # every so manieth row is for validation
_TRIED = 2_000  # rows without an assistant turn after which a data set is taken to have none
_CHUNK = 256  # rows read at a time
_TURNS = ("conversations", "messages", "conversation")
_PAIRS = tuple(
    (asked, answered)
    for answered in ("response", "completion", "output", "answer")
    for asked in ("prompt", "instruction", "question", "query")
)
_MORE = ("input", "context")  # what an instruction may come with
_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
          "model": "assistant", "bot": "assistant", "system": "system"}  # fmt: skip

Turn = tuple[str, str]  # role, text


@dataclass
class Chat:
    """One chat data set (its Hub split `train`).

    split: 99 of 100 rows are for training, every hundredth for validation. first: only so many rows are used.
    ending: what stands at the end of a question; a line break for receivers without a chat template.
    dropped: rows that make no document, by reason, of those looked at so far.
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
        """The rows. Raises UserError for a data set that cannot be found, and one without columns that could hold a chat."""
        from lcfbench.sources.datasets import load_table

        table = load_table(self.name, self.config, "train", offline=self.offline)
        self._columns(table.column_names)
        return table.select(range(min(len(table), self.first)))

    def __len__(self) -> int:
        held_out = len(self.table) // _HOLD_OUT
        return held_out if self.split == "validation" else len(self.table) - held_out

    def documents(self, seed: int) -> Iterator[Document]:
        """All rows that make a document, each once, in an order drawn from the seed; made one by one.

        Raises UserError when none of the first rows has an assistant turn.
        """
        import numpy as np

        order = np.random.default_rng(seed).permutation(len(self))
        # the last row of each hundred is held out: row k of the training part has k // 99 of those before it
        rows = (
            order * _HOLD_OUT + _HOLD_OUT - 1
            if self.split == "validation"
            else order + order // (_HOLD_OUT - 1)
        )
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
        """The column of turns, or the two of question and answer."""
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
            role, text = (
                turn.get("from") or turn.get("role") or "",
                turn.get("value") or turn.get("content") or "",
            )
            turns.append((_ROLES.get(role, role), text.strip() if isinstance(text, str) else ""))
        return [(role, text) for role, text in turns if role != "system"]

    def _document(self, index: int, turns: list[Turn]) -> Document | str:
        """The document of a row, or why it makes none."""
        last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
        if last is None:
            return "no assistant turn"
        *earlier, (_, gold) = turns[: last + 1]
        begin = next((i for i, (role, _) in enumerate(earlier) if role == "user"), len(earlier))
        earlier = earlier[begin:]
        if (
            any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(earlier))
            or len(earlier) % 2 == 0
        ):
            return "turns do not alternate"
        if not gold or not all(text for _, text in earlier):
            return "an empty turn"
        *history, (_, question) = earlier
        view = View(question + self.ending, "", tuple(history))
        noted = View(f"{NOTE}\n\n{view.user}", "", view.history)
        return Document(
            task=f"chat:{self.name}", doc_id=str(index), receiver=view, sharer=view, full=view, request=view, noted=noted,
            scoring="generate", gold=gold, max_new_tokens=512, native={"id": str(index)},
        )  # fmt: skip

    def _none(self, roles: str) -> UserError:
        names = ", ".join(self.table.column_names)
        return UserError(
            f"{self.name} has no assistant turns that could be learned (columns {names}; roles {roles or 'none'}; {dict(self.dropped)}).",
            "Name another chat data set.",
        )
