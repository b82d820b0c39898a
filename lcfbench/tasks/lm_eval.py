"""lm-eval's own task class on rows that are already loaded: prompts, choices and gold of one row.

>>> from lcfbench.tasks.task import load_task
>>> type(load_task("splitfacts").lm_eval_task()).__mro__[2].__name__
'ConfigurableTask'
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from lcfbench.tasks.document import Step, View
from lcfbench.tasks.process_docs import Row, Rows

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def shown(task: ConfigurableTask, row: Row) -> View:
    """The receiver's view: the messages that lm-eval would give to a chat template."""
    prefix = task.doc_to_prefix(row)
    messages: Any = task.fewshot_context(
        row, 0, apply_chat_template=True, chat_template=lambda turns, **_: turns, gen_prefix=prefix
    )
    roles = [m["role"] for m in messages]
    assert roles in (["user"], ["user", "assistant"]), "our tasks have no system turn and no shots"
    return View(*(m["content"] for m in messages))


def choices_step(task: ConfigurableTask, row: Row, receiver_chat: bool) -> Step:
    """lm-eval's continuations, with their delimiter, and its gold."""
    requests: Any = task.construct_requests(row, "", metadata=("", 0, 1), apply_chat_template=receiver_chat)
    gold: Any = task.doc_to_target(row)
    return Step(tuple(r.args[1] for r in requests), tuple(gold) if isinstance(gold, list) else (int(gold),))


def own_steps(row: Row) -> tuple[Step, ...]:
    """The steps of a row that has some: choices ranked one after another."""
    return tuple(Step(tuple(s["choices"]), (s["gold"],), s["lead"]) for s in row.get("steps", ()))


def filled(form: str, row: Row) -> str:
    """A column's text, else the template filled in with the row (lm-eval's rule, compiled once)."""
    return str(row[form]) if form in row else _template(form).render(**row)


@cache
def _template(form: str) -> Any:
    from lm_eval.utils import env

    return env.from_string(form)


@cache
def task_class(shared: bool) -> Callable[..., ConfigurableTask]:
    """The lm-eval class of a task whose models read the same (`shared`) or not.

    It is made on demand: importing lm-eval is slow.
    """
    from lm_eval.api.task import ConfigurableTask

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
