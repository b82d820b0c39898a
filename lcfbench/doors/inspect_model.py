"""A pair as a model of Inspect: `inspect eval task.py --model lcfbench/RECEIVER:SHARER -M mode=t2t`.

Both models read the chat in their own templates. The sharer reads another text where a message, or the
sample, has one in its metadata as `sharer`. The message that crossed stands in the metadata of each
model output, as `lcfbench`.

>>> get_model("lcfbench/smollm2-135m:gemma3-270m", mode="t2t", budget=16)           # doctest: +SKIP
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import anyio.to_thread
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.solver._task_state import sample_state

from lcfbench.doors.answering_pair import Answered, AnsweringPair
from lcfbench.doors.documents import document_of
from lcfbench.errors import UserError
from lcfbench.tasks.document import Document, View, view_of

MOST_TOKENS = 256  # of an answer where nothing is said
# settings that change nothing in a greedy answer, are Inspect's own, or are followed
FOLLOWED = {
    *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections"),
    *("adaptive_connections", "system_message", "max_tokens", "stop_seqs", "seed", "top_p", "top_k"),
    *("parallel_tool_calls", "internal_tools", "max_tool_output", "cache_prompt", "fail_on_refusal"),
    *("extra_headers", "modalities", "reasoning_history"),
}
WITHOUT = {"temperature": 0, "num_choices": 1, "best_of": 1, "frequency_penalty": 0, "presence_penalty": 0}


@modelapi(name="lcfbench")
class PairAPI(ModelAPI):
    """Inspect's interface to an `AnsweringPair`, whose models are loaded at once.

    model_name: the pair. model_args: the other arguments of an `AnsweringPair`. Raises Inspect's
    PrerequisiteError, which it prints as one line.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            if "pair" in model_args:
                raise UserError("-M pair= is not needed.", "The model's name is the pair.")
            self.pair = AnsweringPair({"pair": model_name, "batch_size": 1, **model_args})
            if self.pair.control == "deranged":
                what = "Inspect hands over one sample at a time, so there is no other message to exchange"
                step = "Use lm-eval or `lcfbench run` for control=deranged."
                raise UserError(f"{what}.", step)
            self.facts = self.pair.facts()
        except UserError as error:
            raise refused(error) from error
        self.worker = _Worker(self.pair)

    def max_connections(self) -> int:
        """Samples that are answered together at most."""
        return self.pair.recipe.batch_size

    def max_tokens(self) -> int:
        return MOST_TOKENS

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answers a chat greedily. Raises PrerequisiteError for what a pair cannot do."""
        began = time.perf_counter()
        try:
            check_settings(tools, config)
            document = question(input, config)
            answered = await self.worker.answer(document)
        except UserError as error:
            raise refused(error) from error
        return self._output(document, answered, time.perf_counter() - began)

    def _output(self, document: Document, answered: Answered, seconds: float) -> ModelOutput:
        text, tokens = answered.outcome.text or "", answered.answer_tokens
        ended = tokens < document.max_new_tokens
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if ended else "max_tokens",
        )
        usage = ModelUsage(
            input_tokens=answered.prompt_tokens,
            output_tokens=tokens,
            total_tokens=answered.prompt_tokens + tokens,
        )
        names = ("pair", "adapter", "adapter_sha256", "revisions", "options", "seed", "behaviour")
        about = {name: self.facts[name] for name in names}
        message = {"lcfbench": {**answered.message, **about}}
        return ModelOutput(
            model=self.model_name, choices=[choice], usage=usage, time=seconds, metadata=message
        )


class _Worker:
    """Answers in one thread: models are not asked by two at once. What waits meanwhile goes together."""

    def __init__(self, pair: AnsweringPair) -> None:
        self.pair, self.waiting = pair, list[tuple[Document, Future[Answered]]]()
        self.lock, self.thread = threading.Lock(), ThreadPoolExecutor(1, "lcfbench")
        self.count = 0

    async def answer(self, document: Document) -> Answered:
        future: Future[Answered] = Future()
        with self.lock:
            self.count += 1
            document = replace(document, doc_id=str(self.count))
            self.waiting.append((document, future))
        self.thread.submit(self._drain)
        return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)

    def _drain(self) -> None:
        size = self.pair.recipe.batch_size
        with self.lock:
            taken, self.waiting = self.waiting[:size], self.waiting[size:]
        taken = [(d, f) for d, f in taken if f.set_running_or_notify_cancel()]
        for group in _alike(taken):
            try:
                found = self.pair.answers([d for d, _ in group])
            except BaseException as error:  # it belongs to who waits
                for _, future in group:
                    future.set_exception(error)
                continue
            for document, future in group:
                future.set_result(found[document.hash])


def _alike(
    taken: Sequence[tuple[Document, Future[Answered]]],
) -> list[list[tuple[Document, Future[Answered]]]]:
    """Questions that can be answered together: those with one context apart from those with two."""
    groups: dict[bool, list[tuple[Document, Future[Answered]]]] = {}
    for document, future in taken:
        groups.setdefault(document.shared, []).append((document, future))
    return list(groups.values())


def question(messages: Sequence[ChatMessage], config: GenerateConfig) -> Document:
    """A chat as a document. Raises UserError for images, sounds and calls of tools."""
    turns = [(m.role, _text(m)) for m in messages]
    given = [m.metadata["sharer"] for m in messages if m.metadata and "sharer" in m.metadata]
    state = sample_state()
    if not given and state is not None and "sharer" in (state.metadata or {}):
        given = [state.metadata["sharer"]]
    if given and not isinstance(given[-1], str):
        raise UserError(f"the sharer's text is {given[-1]!r}.", "Give text as metadata `sharer`.")
    made = document_of("inspect", "0", view_of(turns), View(given[-1]) if given else None)
    stops = tuple(stop for stop in config.stop_seqs or () if stop)
    return replace(made, until=stops, max_new_tokens=config.max_tokens or MOST_TOKENS)


def _text(message: ChatMessage) -> str:
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise UserError("a pair calls no tools.", "Use a task without tools.")
    if isinstance(message.content, str):
        return message.content
    if strange := [part.type for part in message.content if part.type not in ("text", "reasoning")]:
        raise UserError(f"a message holds {strange[0]}; a pair reads text.", "Use a task of text alone.")
    return message.text


def check_settings(tools: Sequence[Any], config: GenerateConfig) -> None:
    """Raises UserError for settings of a generation that a pair does not follow."""
    if tools:
        raise UserError("a pair calls no tools.", "Use a task without tools.")
    given = {k: v for k, v in config.model_dump().items() if v is not None and k not in FOLLOWED}
    if given.get("temperature"):
        what = f"temperature={given['temperature']:g} draws answers at random; a pair answers greedily."
        raise UserError(what, "Use --temperature 0, or leave it out.")
    if given.get("cache"):
        what = "Inspect's cache does not know the method, the control and the adapter."
        raise UserError(what, "Leave --cache out.")
    if strange := sorted(k for k, v in given.items() if v not in (False, WITHOUT.get(k))):
        what = f"{strange[0]}={given[strange[0]]} is nothing that a pair follows."
        raise UserError(what, f"Leave --{strange[0].replace('_', '-')} out.")


def refused(error: UserError) -> PrerequisiteError:
    """The error that Inspect prints as one line, in its own markup."""
    return PrerequisiteError(f"lcfbench: {error}".replace("[", "\\["))
