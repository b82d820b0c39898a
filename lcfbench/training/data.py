"""Training examples: a weighted mixture of tasks' train splits and chat data sets.

>>> from lcfbench.training.data import examples, parse_source
>>> parse_source("chat:teknium/OpenHermes-2.5*3")
Source(kind='chat', name='teknium/OpenHermes-2.5', config=None, weight=3.0)
>>> sources = [parse_source(text) for text in ("splitfacts*1", "coqa_split*2")]
>>> documents = examples(sources, count=300, seed=0, pair=pair)               # doctest: +SKIP
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import target
from lcfbench.methods.load_pair import Pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.document import Document, Scoring, View
from lcfbench.tasks.prompts import Prompt, render
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for
from lcfbench.training.chat import FIRST, Chat

MAX_TOKENS = 2048
_HOPELESS = 2_000  # documents of a source that are tried before it is taken that none fits
_TEMPLATE = 256  # tokens a chat template may add, its own system turn included
_FORM = "Write TASK or chat:DATASET[:CONFIG], with *WEIGHT behind it if the sources are not to count alike."


@dataclass(frozen=True)
class Source:
    """One source of a mixture. weight: its share of the examples, relative to the others'."""

    kind: Literal["task", "chat"]
    name: str
    config: str | None = None
    weight: float = 1.0

    @property
    def label(self) -> str:
        return ":".join(filter(None, ("chat" if self.kind == "chat" else None, self.name, self.config)))


def parse_source(text: str) -> Source:
    """Reads `TASK[*WEIGHT]` or `chat:DATASET[:CONFIG][*WEIGHT]`. Raises UserError else."""
    name, star, given = text.strip().partition("*")
    name = name.strip()
    weight = _number(given) if star else 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"source {text!r}: the weight {given.strip()!r} is no number above 0.", _FORM)
    if not name.startswith("chat:"):
        if not name or ":" in name:
            raise UserError(f"{text!r} is no source of examples.", _FORM)
        return Source("task", name, None, weight)
    dataset, colon, config = name.removeprefix("chat:").partition(":")
    if not dataset or (colon and not config) or ":" in config:
        raise UserError(f"{text!r} names no data set.", _FORM)
    return Source("chat", dataset, config or None, weight)


def examples(
    sources: Sequence[Source],
    *,
    count: int,
    seed: int,
    pair: Pair,
    scoring: Scoring | None = None,
    task_options: Mapping[str, str] | None = None,
    shots: int | None = None,
    prompt: str | None = None,
    offline: bool = False,
    max_tokens: int = MAX_TOKENS,
    split: Literal["train", "validation"] = "train",
    first: int = FIRST,
    say: Callable[[str], None] | None = None,
) -> list[Document]:
    """Returns `count` documents: those of the sources, each in the seed's order, in turn by their shares.

    A smaller count gives the first of them. A source is repeated only when it has no more.
    scoring: of the tasks that know it; the others keep their default. shots, prompt: as for `load_task`.
    first: rows used of each chat data set. max_tokens: of the receiver's prompt with its answer, and of
    the sharer's prompt; longer documents are dropped, like those beyond a model's own limit. say:
    receives the numbers of dropped and repeated documents.
    Raises UserError for unknown tasks and options, data that cannot be found, chats without
    assistant turns, and a source of which nothing fits.
    """
    if not sources or count < 1:
        raise UserError("nothing to train on.", _FORM)
    names = Counter(source.label for source in sources)
    if twice := [name for name, n in names.items() if n > 1]:
        raise UserError(f"source {twice[0]} is named twice.", "Give it a weight instead.")
    tasks = [source.name for source in sources if source.kind == "task"]
    options = options_for(tasks, task_options or {})
    fits, receiver = _Fits(pair.receiver, pair.sharer, max_tokens), pair.receiver
    ending = "" if receiver.has_chat else "\n"
    drawn: list[list[Document]] = []
    order = turns([s.weight for s in sources], count)
    for place, source in enumerate(sources):
        number = order.count(place)
        dropped = Counter[str]()
        if source.kind == "task":
            own = options[source.name]
            task = load_task(source.name, seed=seed, offline=offline, options=own, shots=shots, prompt=prompt)
            stream = _of_task(task, number, scoring, split, receiver.has_chat)
        else:
            chat = Chat(source.name, source.config or "default", split, first, offline, ending, dropped)
            stream = chat.documents(seed)
        shuffle = random.Random(f"repeated/{seed}/{source.label}")
        drawn.append(_take(source, stream, number, fits, dropped, shuffle, say))
    streams = [iter(documents) for documents in drawn]
    return [next(streams[place]) for place in order]


def turns(weights: Sequence[float], count: int) -> list[int]:
    """Returns whose turn it is, `count` times: each source once, then the one furthest behind its share.

    A smaller count gives the first turns of a larger one.
    """
    given, order, total = [0] * len(weights), list[int](), sum(weights)
    for turn in range(1, count + 1):
        behind = [weight / total * turn - n for weight, n in zip(weights, given, strict=True)]
        place = turn - 1 if turn <= len(weights) else behind.index(max(behind))
        given[place] += 1
        order.append(place)
    return order


def _of_task(
    task: Task, number: int, scoring: Scoring | None, split: str, receiver_chat: bool
) -> Iterator[Document]:
    """Yields the documents of a task; more of them when the first `number` are too few."""
    chosen = scoring if scoring in task.scorings else None
    given, limit = 0, number
    while True:
        documents = task.documents(scoring=chosen, split=split, limit=limit, receiver_chat=receiver_chat)
        yield from documents[given:]
        if len(documents) < limit:
            return
        given, limit = limit, 2 * limit


def _take(
    source: Source,
    stream: Iterator[Document],
    number: int,
    fits: _Fits,
    dropped: Counter[str],
    shuffle: random.Random,
    say: Callable[[str], None] | None,
) -> list[Document]:
    """Returns the first `number` documents that fit, repeated in other orders when there are fewer."""
    taken: list[Document] = []
    tried = 0
    while len(taken) < number and (document := next(stream, None)) is not None:
        tried += 1
        if not (why := fits(document)):
            taken.append(document)
        else:
            dropped[why] += 1
        if not taken and tried >= _HOPELESS:
            break
    if number and not taken:
        raise UserError(
            f"{source.label}: nothing to train on ({_counts(dropped) or 'no documents'}).",
            "Raise --max-tokens, or name another source.",
        )
    if say and dropped:
        say(f"{source.label}: dropped {_counts(dropped)}.")
    if say and len(taken) < number:
        say(f"{source.label}: {len(taken):,} documents, repeated to {number:,}.")
    several = list(taken)
    while len(several) < number:
        several += shuffle.sample(taken, len(taken))
    return several[:number]


@dataclass
class _Fits:
    """Tells why a document is too long for one of the models; empty where it fits."""

    receiver: CausalLM
    sharer: CausalLM
    max_tokens: int

    def __call__(self, document: Document) -> str:
        if self._surely(document):
            return ""
        mine, eos = (
            self._prompt(self.receiver, document.receiver, document),
            self.receiver.tokenizer.eos_token_id,
        )
        answer, _ = target(document, mine, self.receiver.tokenizer, eos)
        if len(mine.ids) + len(answer) > self._limit(self.receiver):
            return self._why(self.receiver)
        if self.sharer is not self.receiver or document.sharer != document.receiver:
            theirs = self._prompt(self.sharer, document.sharer, document)
            if len(theirs.ids) > self._limit(self.sharer):
                return self._why(self.sharer)
        return ""

    def _prompt(self, lm: CausalLM, view: View, document: Document) -> Prompt:
        chat = document.chat and lm.has_chat
        return render(view, lm.tokenizer, chat=chat, choices=bool(document.steps))

    def _surely(self, document: Document) -> bool:
        """Tells by bytes that a document fits (no token is shorter): most need no tokenizer."""
        answer = document.gold + "".join(s.lead + s.choices[s.gold[0]] for s in document.steps)
        views = (document.receiver, document.sharer)
        texts = ((v.user, v.prefix, answer, *(t for _, t in v.history)) for v in views)
        longest = max(sum(len(text.encode()) for text in each) for each in texts)
        turns = 16 * max(len(v.history) for v in views)
        return longest + turns + _TEMPLATE <= min(self._limit(self.receiver), self._limit(self.sharer))

    def _limit(self, lm: CausalLM) -> int:
        own = lm.max_positions or self.max_tokens
        return min(own, self.max_tokens)

    def _why(self, lm: CausalLM) -> str:
        return f"longer than {self._limit(lm):,} tokens"


def _counts(dropped: Counter[str]) -> str:
    return ", ".join(f"{n:,} ({why})" for why, n in sorted(dropped.items()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
