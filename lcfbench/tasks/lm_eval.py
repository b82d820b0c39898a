"""lm-eval's own task class on rows that are already loaded: prompts, choices and gold of one row.

>>> from lcfbench.tasks.task import load_task
>>> type(load_task("splitfacts").lm_eval_task()).__mro__[2].__name__
'ConfigurableTask'
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from lcfbench.tasks.document import Step, View
from lcfbench.tasks.process_docs import Row, Rows

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

LONGEST = 1_000_000  # characters of one prompt


def shown(task: ConfigurableTask, row: Row) -> View:
    """The receiver's view: the messages that lm-eval would give to a chat template."""
    prefix = task.doc_to_prefix(row)
    messages: Any = task.fewshot_context(
        row, 0, apply_chat_template=True, chat_template=lambda turns, **_: turns, gen_prefix=prefix
    )
    if messages[0]["role"] == "system":  # lm-eval's `description`; without a template it puts it in front
        description, asked, *begun = messages
        messages = [{**asked, "content": description["content"] + asked["content"]}, *begun]
    roles = [m["role"] for m in messages]
    assert roles in (["user"], ["user", "assistant"]), "a task has no shots"
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


@cache
def sandbox() -> Any:
    """lm-eval's template environment, which also lm-eval uses from now on: no code, no endless output.

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
        if value is None or (isinstance(value, float) and value != value):
            raise RefusedError("a value is empty (null or NaN)")
        return value

    theirs = lm_eval.utils.env
    ours = Environment(
        loader=theirs.loader, undefined=theirs.undefined, keep_trailing_newline=True, finalize=printed
    )
    ours.filters.update(theirs.filters)
    lm_eval.utils.env = ours
    return ours


@contextmanager
def seconds(limit: float) -> Iterator[None]:
    """Ends what takes longer, in the main thread: a template's loops have no other bound."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise RefusedError(f"takes more than {limit:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def task_class(shared: bool) -> Callable[..., ConfigurableTask]:
    """The lm-eval class of a task whose models read the same (`shared`) or not.

    It is made on demand: importing lm-eval is slow.
    """
    from lm_eval.api.task import ConfigurableTask

    sandbox()

    class LocalTask(ConfigurableTask):
        """lm-eval's task on rows that are already loaded."""

        def __init__(
            self, config: dict[str, Any], rows: Rows, view: Callable[[str, Row, View], View]
        ) -> None:
            self._given, self._sees = rows, view
            super().__init__(config=config)

        def download(self, *_: Any, **__: Any) -> None:
            self.dataset = {"test": self._given}  # type: ignore[assignment]

    class PairTask(LocalTask):
        """Different contexts: the last argument of each request is the sharer's view.

        It is an argument because lm-eval's caches hash arguments only.
        """

        def construct_requests(self, doc: dict, ctx: str | list[str], **kwargs: Any) -> Any:
            made: Any = super().construct_requests(doc, ctx, **kwargs)
            theirs = self._sees("sharer", doc, shown(self, doc))
            for request in made if isinstance(made, list) else [made]:
                request.arguments += ({"sharer": theirs.user, "sharer_prefix": theirs.prefix},)
            return made

    return LocalTask if shared else PairTask
