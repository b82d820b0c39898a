"""A task's rows become documents, and a document's outcome becomes lm-eval's metrics.

Prompts, continuations, filters and metrics all come out of lm-eval's own `ConfigurableTask`; the data
come through `sources.datasets`, never through lm-eval. One YAML holds every way to score a task: the
entry of `metadata.scorings` is laid over the file before lm-eval sees it.

>>> from lcfbench.tasks.task import load_task
>>> document = load_task("splitfacts").documents(limit=1)[0]
>>> document.receiver.prefix, len(document.steps), document.gold
('The key of Boma is in the', 2, 'Chicago')
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from lcfbench.config import convert
from lcfbench.errors import UserError, unknown
from lcfbench.tasks.document import NOTE, Document, Scoring, Step, View
from lcfbench.tasks.lm_eval import choices_step, filled, own_steps, shown, task_class
from lcfbench.tasks.process_docs import Row, Rows, keep
from lcfbench.tasks.yaml_files import file_digest, read_task

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

SPLITS = ("train", "validation", "test")
_CONFIG_SPLIT = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


@dataclass(frozen=True)
class Outcome:
    """The answer of a pair to one document.

    loglikelihoods: for each step and choice (log-likelihood, whether it is the greedy one). text: the
    written answer. picks: index of the choice picked in each step.
    """

    loglikelihoods: tuple[tuple[tuple[float, bool], ...], ...] = ()
    text: str | None = None
    picks: tuple[int, ...] = ()


def load_task(
    name: str, *, seed: int = 0, offline: bool = False, options: Mapping[str, str] | None = None
) -> Task:
    """A task by name; its data is read when first needed.

    seed: decides which documents a limit takes, and what a generated task generates. Raises UserError
    for an unknown task or option, and for a value that an option does not take.
    """
    config = read_task(name, functions=True)
    known: dict[str, dict[str, Any]] = config["metadata"].get("options", {})
    values = {key: option["default"] for key, option in known.items()}
    for key, text in (options or {}).items():
        if key not in known:
            raise unknown(f"option of {name}", key, known, "lcfbench ls tasks --json")
        default, choices = known[key]["default"], known[key].get("choices")
        hint = Literal[tuple(choices)] if choices else type(default)
        values[key] = convert(key, str(text), hint, default, of=name)
    return Task(name, config, seed, offline, values)


class Task:
    """One task: its documents and its scores.

    shared: whether both models read the same. options: every option's value. dropped: number of rows
    left out of the test split, by reason (filled when the data is read).
    """

    def __init__(
        self, name: str, config: dict[str, Any], seed: int, offline: bool, options: dict[str, Any]
    ) -> None:
        extra = config["metadata"]
        self.name, self.seed, self.offline, self.options = name, seed, offline, options
        self.scorings: list[Scoring] = list(extra["scorings"])
        self.default_scoring: Scoring = extra["default_scoring"]
        self.shared: bool = extra["context"] == "shared"
        self.dropped: dict[str, int] = {}
        self.yaml_sha256 = file_digest(name)
        self._config, self._extra = config, extra
        self._tables: dict[str, Dataset] = {}
        self._rows: dict[str, Rows] = {}
        self._lm_eval: dict[str, ConfigurableTask] = {}

    # -- documents --------------------------------------------------------------------------------

    def documents(
        self,
        *,
        scoring: Scoring | None = None,
        limit: int | None = None,
        split: str = "test",
        receiver_chat: bool = True,
    ) -> list[Document]:
        """A split's documents: the first `limit` of one order seeded by (task, seed, split).

        A larger limit contains a smaller one. receiver_chat: whether the receiver's chat template is
        applied (lm-eval's delimiter before a choice may depend on it). Generated tasks make any number
        of documents of the train split. Raises UserError for a missing split or scoring.
        """
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit}.", "Give 1 or more, or leave it out for all documents.")
        chosen = self._scoring(scoring)
        task = self.lm_eval_task(chosen)
        return [self._document(task, row, chosen, receiver_chat) for row in self._rows_of(split, limit)]

    def reseeded(self, seed: int) -> Task:
        """The same task under another seed. Data that is read does not depend on it and is kept."""
        again = copy.copy(self)
        again.seed = seed
        if self.generated:
            again._lm_eval, again._rows = {}, {}
        return again

    def drawn(self, limit: int | None) -> bool:
        """Whether the seed decides which documents of the test split are asked."""
        return self.generated or (limit is not None and limit < len(self._natural("test")))

    @property
    def generated(self) -> bool:
        """Whether the documents are generated, not read."""
        return "generator" in self._extra

    def _rows_of(self, split: str, limit: int | None) -> list[Row]:
        self._check(split)
        if self.generated:
            return self._generated(split, limit)
        rows = self._natural(split)
        order = list(range(len(rows)))
        random.Random(f"{self.name}/{self.seed}/{split}").shuffle(order)
        return [rows[i] for i in order[:limit]]

    def _generated(self, split: str, n: int | None) -> Rows:
        """The first `n` rows. Those of the test split are made once: digest and documents need the same."""
        generate = self._extra["generator"]
        if split != "test":
            return Rows(generate(split, n, seed=self.seed, **self.options))
        if split not in self._rows:
            self._rows[split] = Rows(generate(split, None, seed=self.seed, **self.options))
        return self._rows[split] if n is None else Rows(self._rows[split][:n])

    def _natural(self, split: str) -> Rows:
        if split not in self._rows:
            rows, dropped = keep(self._config["process_docs"].row, self._table(split), **self.options)
            if not rows:
                what = f"{self.name}: no row of the {split} split is usable ({dict(dropped)})."
                raise UserError(what, "Is this the right data set?")
            self._rows[split] = rows
            if split == "test":
                self.dropped |= dict(sorted(dropped.items()))
        return self._rows[split]

    def _table(self, split: str) -> Dataset:
        if split not in self._tables:
            from datasets import Dataset

            from lcfbench.sources.datasets import config_here, load_table

            path, there = self._config["dataset_path"], self._config[_CONFIG_SPLIT[split]]
            configs = [self._config["dataset_name"], *self._extra.get("dataset_names", ())]
            config = config_here(path, configs, there)
            table = load_table(path, config, there, offline=self.offline)
            raw = self._config["process_docs"].raw
            self._tables[split] = Dataset.from_list(raw(table, split)) if raw else table
        return self._tables[split]

    def _check(self, split: str) -> None:
        have = self._extra.get("splits") or [s for s in SPLITS if self._config.get(_CONFIG_SPLIT[s])]
        if split not in have:
            raise UserError(f"{self.name} has no {split} split.", f"It has {', '.join(have)}.")

    def _document(self, task: ConfigurableTask, row: Row, scoring: Scoring, receiver_chat: bool) -> Document:
        receiver = shown(task, row)
        roles = ("sharer", "full", "request", "noted")
        views: Any = {role: self._view(role, row, receiver) for role in roles}
        steps: tuple[Step, ...] = ()
        if scoring != "generate":
            steps = own_steps(row) or (choices_step(task, row, receiver_chat),)
        written = task.config.generation_kwargs or {}
        return Document(
            task=self.name,
            doc_id=str(row["id"]),
            receiver=receiver,
            **views,
            scoring=scoring,
            gold=steps[-1].choices[steps[-1].gold[0]].strip() if steps else str(task.doc_to_target(row)),
            steps=steps,
            shared=self.shared,
            chat=self._extra.get("chat", True),
            subject=row.get("subject", ""),
            until=tuple(written.get("until", self._extra.get("until", ()))),
            request_until=tuple(self._extra.get("request_until", ())),
            max_new_tokens=written.get("max_gen_toks", self._extra.get("max_new_tokens", 64)),
            native=row,
        )

    def _view(self, role: str, row: Row, receiver: View) -> View:
        """The view that `metadata.views.<role>` words; by default the receiver's.

        It is a column, a template, or {user, prefix} of such.
        """
        form = self._extra.get("views", {}).get(role, self._extra.get(role))
        if form is None:
            return View(f"{NOTE}\n\n{receiver.user}", receiver.prefix) if role == "noted" else receiver
        if isinstance(form, str):
            return View(filled(form, row), receiver.prefix)
        return View(filled(form["user"], row), filled(form.get("prefix", ""), row))

    # -- scores -----------------------------------------------------------------------------------

    def metric(self, scoring: Scoring | None = None) -> str:
        """The primary metric's name; `score` gives it as "score" too."""
        return str(self._extra["scorings"][self._scoring(scoring)]["primary"])

    def score(self, document: Document, outcome: Outcome) -> dict[str, float]:
        """All metrics of an answer, by lm-eval's filters and `process_results`.

        "score" is the primary metric; "step1_acc" and so on are those of the steps before the last.
        """
        from lm_eval.api.instance import Instance

        task = self.lm_eval_task(document.scoring)
        written = document.scoring == "generate"
        answers = [outcome.text] if written else list(outcome.loglikelihoods[-1])
        row = dict(document.native)
        kind: Any = "generate_until" if written else "loglikelihood"
        about = self.name, 0, 1
        requests = [Instance(kind, row, (), i, about, resps=[a]) for i, a in enumerate(answers)]
        for ensemble in task._filters:
            ensemble.apply(requests)
        found = [r.filtered_resps[task._filters[0].name] for r in requests]
        scores = {k: float(v) for k, v in task.process_results(row, found).items()}
        for i, (step, ranked) in enumerate(zip(document.steps[:-1], outcome.loglikelihoods, strict=False), 1):
            best = max(range(len(ranked)), key=lambda j: ranked[j][0])
            scores[f"step{i}_acc"] = float(best in step.gold)
        return {"score": scores[self.metric(document.scoring)], **scores}

    def lm_eval_task(self, scoring: Scoring | None = None) -> ConfigurableTask:
        """lm-eval's own task object on our rows in their order, for `simple_evaluate(tasks=[…])`."""
        chosen = self._scoring(scoring)
        if chosen not in self._lm_eval:
            self._check("test")
            rows = self._generated("test", None) if self.generated else self._natural("test")
            self._lm_eval[chosen] = task_class(self.shared)(self._merged(chosen), rows, self._view)
        return self._lm_eval[chosen]

    def _merged(self, scoring: Scoring) -> dict[str, Any]:
        from lm_eval.config.task import TaskConfig

        over = {k: v for k, v in self._extra["scorings"][scoring].items() if k != "primary"}
        config = {**self._config, **over, "metadata": {"version": self._extra.get("version", 1)}}
        # the rows are ready: there is nothing to load, to process or to sample shots from
        gone = ("process_docs", "custom_dataset", "training_split", "validation_split")
        config = {k: v for k, v in config.items() if k not in gone}
        config |= {"test_split": "test", "num_fewshot": 0, "fewshot_config": {"samples": []}}
        if strange := sorted(set(config) - {f.name for f in fields(TaskConfig)}):
            what = f"{self.name}.yaml: lm-eval knows no key {strange[0]!r}."
            raise UserError(what, "Keys of our own stand under metadata.")
        return config

    def _scoring(self, scoring: Scoring | None) -> Scoring:
        if scoring is not None and scoring not in self.scorings:
            raise unknown(f"scoring of {self.name}", scoring, self.scorings, "lcfbench ls tasks")
        return scoring or self.default_scoring

    # -- identity ---------------------------------------------------------------------------------

    @property
    def data_sha256(self) -> str:
        """Digest of the test split's rows as generated, or as loaded (and cut into turns or parts)."""
        if self.generated:
            rows = json.dumps(self._generated("test", None), sort_keys=True, ensure_ascii=False)
            return hashlib.sha256(rows.encode()).hexdigest()
        from lcfbench.sources.datasets import data_digest

        return data_digest(self._table("test"))

    @property
    def split_manifest_sha256(self) -> str | None:
        """Digest of the evidence that each model gets, for tasks that split it; None for the others."""
        if "manifest" not in self._extra:
            return None
        return hashlib.sha256(self._extra["manifest"](self._natural("test")).encode()).hexdigest()
