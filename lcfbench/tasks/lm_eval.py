"""lm-eval's own task class on rows that are already loaded: prompts, choices and gold of one row.

>>> from lcfbench.tasks.task import load_task
>>> type(load_task("splitfacts").lm_eval_task()).__mro__[2].__name__
'ConfigurableTask'
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from lcfbench.tasks.document import Document, Step, View, view_of
from lcfbench.tasks.process_docs import Row

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

LONGEST = 1_000_000  # characters of one prompt


class ChatText(str):
    """A prompt that lm-eval takes for text, and the turns it was made of as (role, text).

    The sharer reads the same turns in its own template.
    """

    turns: tuple[tuple[str, str], ...]

    def __new__(cls, text: str, turns: Sequence[tuple[str, str]] = ()) -> ChatText:
        made = super().__new__(cls, text)
        made.turns = tuple(turns)
        return made


def view_of_prompt(text: str) -> View:
    """A prompt of lm-eval's as a view: its text as it stands, or the turns of a chat."""
    return view_of(text.turns) if isinstance(text, ChatText) else View(text)


def shown(task: ConfigurableTask, row: Row, shots: int = 0) -> View:
    """The receiver's view: the messages that lm-eval would give to a chat template.

    shots: examples in front of the question, all in one turn.
    """
    prefix = task.doc_to_prefix(row)
    messages: Any = task.fewshot_context(
        row, shots, apply_chat_template=True, chat_template=lambda turns, **_: turns, gen_prefix=prefix
    )
    if messages[0]["role"] == "system":  # lm-eval's `description`; without a template it puts it in front
        description, asked, *begun = messages
        messages = [{**asked, "content": description["content"] + asked["content"]}, *begun]
    roles = [m["role"] for m in messages]
    assert roles in (["user"], ["user", "assistant"]), "examples stand in the question's turn"
    return View(*(m["content"] for m in messages))


def choices_step(task: ConfigurableTask, row: Row, receiver_chat: bool) -> Step:
    """lm-eval's continuations, with their delimiter, and its gold."""
    requests: Any = task.construct_requests(row, "", metadata=("", 0, 1), apply_chat_template=receiver_chat)
    gold: Any = task.doc_to_target(row)
    if isinstance(gold, str):  # lm-eval's rule: the text of a choice
        gold = task.doc_to_choice(row).index(gold)
    return Step(tuple(r.args[1] for r in requests), tuple(gold) if isinstance(gold, list) else (int(gold),))


def own_steps(row: Row) -> tuple[Step, ...]:
    """The steps of a row that has some: choices ranked one after another."""
    return tuple(Step(tuple(s["choices"]), (s["gold"],), s["lead"]) for s in row.get("steps", ()))


def filled(form: str, row: Row) -> str:
    """A column's text, else the template filled in with the row (lm-eval's rule, compiled once)."""
    return str(row[form]) if form in row else _template(form).render(**row)


@cache
def _template(form: str) -> Any:
    return sandbox().from_string(form)


class RefusedError(Exception):
    """A template that would print nothing sensible, or too much."""


_as_it_stands: ContextVar[bool] = ContextVar("as_it_stands", default=False)


@contextmanager
def as_they_stand() -> Iterator[None]:
    """Lets templates of lm-eval's own tasks print what lm-eval would print, `None` too."""
    before = _as_it_stands.set(True)
    try:
        yield
    finally:
        _as_it_stands.reset(before)


@cache
def sandbox() -> Any:
    """lm-eval's template environment, which also lm-eval uses from now on: no code, no endless output.

    A text is compiled once: lm-eval asks for it anew with every document.

    An expression that is null or NaN is an error: it would print `None`.
    """
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    class Environment(SandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(v) if isinstance(v, str | list | tuple) else 1 for v in (left, right)]
            counts = [abs(v) if isinstance(v, int) else 1 for v in (left, right)]
            huge = max(sizes) * max(counts) > LONGEST if max(sizes) > 1 else max(counts) > 1e6
            if huge:
                raise RefusedError(f"{operator} makes more than {LONGEST:,} characters")
            return super().call_binop(context, operator, left, right)

    def printed(value: Any) -> Any:
        if not _as_it_stands.get() and (value is None or (isinstance(value, float) and value != value)):
            raise RefusedError("a value is empty (null or NaN)")
        return value

    theirs = lm_eval.utils.env
    ours = Environment(
        loader=theirs.loader, undefined=theirs.undefined, keep_trailing_newline=True, finalize=printed
    )
    ours.filters.update(theirs.filters)
    plain = ours.from_string
    # a constant that is empty is refused while a text is compiled, or not
    once = lru_cache(maxsize=256)(lambda source, _: plain(source))
    ours.from_string = lambda source, *args, **given: (  # type: ignore[method-assign]
        plain(source, *args, **given) if args or given else once(source, _as_it_stands.get())
    )
    lm_eval.utils.env = ours
    return ours


@contextmanager
def seconds(limit: float) -> Iterator[None]:
    """Ends what computes longer, in the main thread: a template's loops have no other bound.

    Processor time is counted, so that a busy machine refuses nothing. It does nothing on a system without
    timers that signal, as Windows.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise RefusedError(f"takes more than {limit:g} seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@cache
def task_class(shared: bool) -> Callable[..., ConfigurableTask]:
    """The lm-eval class of a task whose models read the same (`shared`) or not.

    It is made on demand: importing lm-eval is slow.
    """
    from lm_eval.api.task import ConfigurableTask

    sandbox()

    class LocalTask(ConfigurableTask):
        """lm-eval's task on rows that are already loaded.

        document, validation: make documents of a row and of the validation split, given whether the
        receiver's chat template is applied. A model that is itself a pair asks for them: each request
        has its task.
        """

        document: Callable[[Row, bool], Document]
        validation: Callable[[int, bool], list[Document]]

        def __init__(
            self, config: dict[str, Any], rows: Sequence[Row], view: Callable[[str, Row, View], View]
        ) -> None:
            self._given, self._sees = rows, view
            super().__init__(config=config)

        def download(self, *_: Any, **__: Any) -> None:
            self.dataset = {"test": self._given}  # type: ignore[assignment]

        def scored(self, doc: Row, results: list[Any]) -> dict[str, Any]:
            """The task's own scores: numbers, and the text `parsed_by`."""
            return dict(super().process_results(doc, results))

        def process_results(self, doc: dict, results: Any) -> Any:
            """The scores that lm-eval can average."""
            return {k: v for k, v in self.scored(doc, results).items() if k != "parsed_by"}

        def construct_requests(self, doc: dict, ctx: str | list[str], **kwargs: Any) -> Any:
            made: Any = super().construct_requests(doc, ctx, **kwargs)
            for request in made if isinstance(made, list) else [made]:
                request.task = self
            return made

    class PairTask(LocalTask):
        """Different contexts: the last argument of each request is the sharer's view.

        It is an argument because lm-eval's caches hash arguments only.
        """

        split = True

        def construct_requests(self, doc: dict, ctx: str | list[str], **kwargs: Any) -> Any:
            made: Any = super().construct_requests(doc, ctx, **kwargs)
            theirs = self._sees("sharer", doc, shown(self, doc))
            for request in made if isinstance(made, list) else [made]:
                request.arguments += ({"sharer": theirs.user, "sharer_prefix": theirs.prefix},)
            return made

    return LocalTask if shared else PairTask
