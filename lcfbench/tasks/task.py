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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from lcfbench.config import convert
from lcfbench.errors import UserError, unknown
from lcfbench.registry import add_path, is_ours
from lcfbench.sources.local_data import read_split
from lcfbench.tasks.columns import Problem
from lcfbench.tasks.columns import documents as documents_of
from lcfbench.tasks.document import NOTE, Document, Phrasing, Scoring, Step, View
from lcfbench.tasks.examples import KEY as EXAMPLES
from lcfbench.tasks.examples import Examples, sampler, source_of, usual_split, value_of
from lcfbench.tasks.folded import FoldedRows, Picked, Store, folded
from lcfbench.tasks.lm_eval import choices_step, filled, own_steps, seconds, shown, task_class
from lcfbench.tasks.own_files import SHARE
from lcfbench.tasks.process_docs import Row, Rows, keep, part_of
from lcfbench.tasks.prompt_files import PromptFile, find_prompt
from lcfbench.tasks.stock_index import is_stock
from lcfbench.tasks.usable import (
    AUTHORS,
    NO_TEXTS,
    PATIENCE,
    Fault,
    as_rows,
    dataset_of,
    fault_of,
    identified,
    no_texts,
    said,
)
from lcfbench.tasks.yaml_files import SPLIT_KEYS, describe, file_digest, laid_over, read_task

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

SPLITS = ("train", "validation", "test")
EXAMPLE = ("doc_to_target",)  # keys of lm-eval's fewshot_config: how an example is answered
ROLES = ("sharer", "full", "request", "noted")
ANSWER_TOKENS = "answer_tokens"  # an option of ours: the longest answer that is written
TRIES = 50  # rows that lm-eval may refuse before the task is at fault


@dataclass(frozen=True)
class Outcome:
    """The answer of a pair to one document.

    loglikelihoods: for each step and choice (log-likelihood, whether it is the greedy one). text: the
    written answer. picks: index of the choice picked in each step. parsed: False where there is no
    answer, as behind a thought that has no end. thought, thought_tokens: written before the answer.
    """

    loglikelihoods: tuple[tuple[tuple[float, bool], ...], ...] = ()
    text: str | None = None
    picks: tuple[int, ...] = ()
    parsed: bool = True
    thought: str | None = None
    thought_tokens: int | None = None


def load_task(
    name: str,
    *,
    seed: int = 0,
    offline: bool = False,
    options: Mapping[str, str] | None = None,
    shots: int | None = None,
    prompt: str | None = None,
) -> Task:
    """A task by name, or by the path of its file; its data is read when first needed.

    seed: decides which documents a limit takes, and what a generated task generates. shots: worked
    examples in front of every question; None: as many as the task's file says, mostly none. prompt: a
    Jinja file, or a name of the task's `prompts:`, in place of its own wording. Raises UserError for an
    unknown task or option, and for a value that an option does not take.
    """
    name = add_path("tasks", name)
    config = {} if is_stock(name) else read_task(name, functions=True, offline=offline)
    known: dict[str, dict[str, Any]]
    known = describe(name)["options"] if is_stock(name) else config["metadata"].get("options", {})
    values = {key: option["default"] for key, option in known.items()}
    for key, text in (options or {}).items():
        if key not in known:
            raise unknown(f"option of {name}", key, known, "lcfbench ls tasks --json")
        default, choices = known[key]["default"], known[key].get("choices")
        hint = Literal[tuple(choices)] if choices else type(default)
        values[key] = convert(key, str(text), hint, default, of=name)
    if is_stock(name):
        from lcfbench.tasks.stock import StockTask  # it extends Task

        if prompt is not None:
            raise UserError(f"--prompt: {name} is asked with lm-eval's own prompt.", "Leave --prompt out.")
        return StockTask(name, seed, offline, values, shots)
    if (tokens := values.get(ANSWER_TOKENS, 0)) < 0:
        raise UserError(f"{ANSWER_TOKENS}={tokens}.", "Give 1 or more; 0 is the task's own length.")
    for option, changes in config["metadata"].get("by_option", {}).items():
        config = laid_over(changes[values[option]], config)
    wording = None
    if prompt is not None:
        wording = find_prompt(prompt, name, config["metadata"].get("prompts") or {})
        config = wording.over(config)
    made = Task(name, config, seed, offline, values, shots or 0)
    made.prompt = wording
    return made


class Task:
    """One task: its documents and its scores.

    shared: whether both models read the same. options: every option's value. dropped: number of rows
    left out of the test split, by reason; problems: the same rows of each split as (row, field, what)
    (both filled when the data is read). foreign: whether its file is a user's own. shots: number of
    worked examples in front of every question. libraries: packages whose version may change a score.
    prompt: the wording in place of its own, if any.
    """

    libraries: Sequence[str] = ()
    prompt: PromptFile | None = None

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        seed: int,
        offline: bool,
        options: dict[str, Any],
        shots: int = 0,
    ) -> None:
        extra = config["metadata"]
        self.shots = shots
        self.name, self.seed, self.offline, self.options = name, seed, offline, options
        self.scorings: list[Scoring] = list(extra["scorings"])
        self.default_scoring: Scoring = extra["default_scoring"]
        self.shared: bool = extra["context"] == "shared"
        self.chat: bool = extra.get("chat", True)
        self.dropped: dict[str, int] = {}
        self.problems: dict[str, list[Problem]] = {}
        self.foreign = not is_ours("tasks", name)
        self.libraries = extra.get("libraries", ())
        self.yaml_sha256 = file_digest(name)
        self._config, self._extra = config, extra
        self._tables: dict[str, Dataset | list[Row]] = {}
        self._rows: dict[str, FoldedRows] = {}
        self._store = Store()
        self._lm_eval: dict[str, ConfigurableTask] = {}
        self._examples: Examples | None = None
        self._leads: dict[tuple[str, str], dict[str, str]] = {}

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
        if self.prompt and self.prompt.pattern and chosen != "generate":
            what = f"prompt {self.prompt.name} has a parse rule, but {self.name} is scored by {chosen}."
            raise UserError(what, "Use --scoring generate, or leave its block parse out.")
        task, rows = self._task_of(chosen), self._asked_rows(split, limit)
        make = self._document if self.prompt is None else self._in_wording
        made = (make(task, row, chosen, receiver_chat) for row in rows)
        return [folded(document, self._store) for document in made] if split == "test" else list(made)

    def _in_wording(self, task: ConfigurableTask, row: Row, chosen: Scoring, receiver_chat: bool) -> Document:
        """A document in the wording of `prompt`. Raises UserError where that gives no text."""
        assert self.prompt is not None
        with self._wording(row):
            made = self._document(task, row, chosen, receiver_chat)
        if empty := [role for role in ("receiver", "sharer") if not getattr(made, role).user.strip()]:
            what = f"prompt {self.prompt.name}, {self.name}, document {row['id']}: the {empty[0]}'s is empty."
            raise UserError(what, "Write what it is to read.")
        return made

    @contextmanager
    def _wording(self, row: Row) -> Iterator[None]:
        """Makes an error of the wording that a user gave one line that names the document."""
        if self.prompt is None:
            yield
            return
        try:
            with seconds(PATIENCE):
                yield
        except UserError:
            raise
        except AUTHORS as error:
            who = f"prompt {self.prompt.name}, {self.name}, document {row['id']}"
            have = ", ".join(map(str, row))
            raise UserError(f"{who}: {said(error).rstrip('.')}.", f"Its fields are {have}.") from error

    def reseeded(self, seed: int) -> Task:
        """The same task under another seed. Data that is read does not depend on it and is kept."""
        again = copy.copy(self)
        again.seed = seed
        if self._examples is None or self._examples.by is None:  # drawn by the seed
            again._examples, again._leads = None, {}
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

    def _asked_rows(self, split: str, limit: int | None) -> Sequence[Row]:
        """The rows that become documents: no worked example, which stands in front of them answered."""
        if not self.shots or split == "test":  # examples are no rows of the test split
            return self._rows_of(split, limit)
        examples = self._worked_examples().every
        rows = self._rows_of(split, None if limit is None else limit + len(examples))
        left = [row for row in rows if row not in examples][:limit]
        if not left:
            what = f"{self.name}: all {len(rows)} rows of the {split} split are worked examples."
            raise UserError(what, "Ask for fewer with --shots.")
        return left

    def _rows_of(self, split: str, limit: int | None) -> Sequence[Row]:
        """The rows in the order of the seed, each in memory when its turn comes."""
        self._check(split)
        if self.generated:
            rows = self._generated(split, limit)
            return Picked(rows, range(len(rows))[:limit])
        natural = self._natural(split)
        order = list(range(len(natural)))
        random.Random(f"{self.name}/{self.seed}/{split}").shuffle(order)
        return Picked(natural, order[:limit])

    def _generated(self, split: str, n: int | None) -> Sequence[Row]:
        """The first `n` rows. Those of the test split are made once: digest and documents need the same."""
        if split != "test":
            return self._made(split, n)
        if split not in self._rows:
            self._rows[split] = FoldedRows(self._made(split, None), self._store)
        return self._rows[split]

    def _made(self, split: str, n: int | None) -> Rows:
        generate = self._extra["generator"]
        if not self.foreign:
            return Rows(generate(split, n, seed=self.seed, **self.options))
        who = f"{self.name}: the generator"
        try:
            made = generate(split, n, seed=self.seed, **self.options)
        except AUTHORS as error:
            raise UserError(f"{who} failed: {said(error)}.", "Mend the function.") from error
        return self._kept(split, as_rows(made, who), Counter(), [])

    def _natural(self, split: str) -> FoldedRows:
        if split not in self._rows:
            rows, dropped = self._documented(split)
            if not rows:
                raise self._none_usable(split, dropped)
            self._rows[split] = FoldedRows(rows, self._store)
            if split == "test":
                self.dropped |= dict(sorted(dropped.items()))
        return self._rows[split]

    def _none_usable(self, split: str, dropped: Counter[str]) -> UserError:
        """An error with the rows that were read, the commonest reasons and the next step."""
        step = "See the data set and options in `lcfbench ls tasks`."
        if not dropped:
            return UserError(f"{self.name}: the {split} split is empty: 0 rows for it in the data set.", step)
        why = ", ".join(f"{reason}: {n:,}" for reason, n in dropped.most_common(3))
        return UserError(
            f"{self.name}: {dropped.total():,} rows of the {split} split, none usable ({why}).", step
        )

    def _documented(self, split: str) -> tuple[Rows, Counter[str]]:
        """The documents of a split, and the number of rows left out by reason."""
        table = self._table(split)
        process: Any = self._process(split)
        options = {k: v for k, v in self.options.items() if k not in (SHARE, ANSWER_TOKENS)}
        if not self.foreign:
            return keep(process.row, table, **options)
        problems: list[Problem] = []
        who = f"{self.name}: process_docs"
        dropped = Counter[str]()
        rows: Sequence[Row]
        raw = [dict(row) for row in table]
        columns = self._extra.get("columns")
        if columns is not None and process is self._config.get("process_docs"):
            rows, dropped, problems = documents_of(raw, columns)
        elif process is None:
            rows = raw
        else:
            try:
                if hasattr(process, "row"):
                    rows, dropped = keep(process.row, table, **options)
                else:
                    rows = as_rows(process(dataset_of(raw, self.name)), who)
                    if len(rows) < len(raw):
                        dropped["process_docs left it out"] = len(raw) - len(rows)
            except UserError:
                raise
            except AUTHORS as error:
                raise UserError(f"{who} failed: {said(error)}.", "Mend the function.") from error
        return self._kept(split, rows, dropped, problems), dropped

    def _kept(self, split: str, rows: Sequence[Row], dropped: Counter[str], problems: list[Problem]) -> Rows:
        """The rows that can be asked under every scoring; the others are counted and noted."""
        numbered, numbers, twice = identified(rows)
        if self.prompt is not None and numbered:
            self.prompt.check(numbered[0], self.name)
        problems = [*problems, *((n, "id", "the same row stands there twice") for n in twice)]
        found: dict[int, Fault] = {}
        left = list(range(len(numbered)))
        for scoring in self.scorings:
            task, faults = self._first_usable(scoring, numbered, left)
            found |= faults
            left = [i for i in left if i not in found]
            for i in left if task else ():
                if fault := fault_of(task, numbered[i], partial(self._views, task, numbered[i])):
                    found[i] = fault
            left = [i for i in left if i not in found]
        problems += [(numbers[i], *fault) for i, fault in sorted(found.items())]
        for _, field, what in problems[len(problems) - len(found) - len(twice) :]:
            dropped[what if field == "id" else f"{field}: {what}"] += 1
        self.problems[split] = sorted(problems)
        if not left and problems:
            number, field, what = sorted(problems)[0]
            have = ", ".join(map(str, numbered[0])) if numbered else ""
            raise UserError(
                f"{self.name}: no row of the {split} split can be asked; row {number}, {field}: {what}.",
                f"Its fields are {have}." if have else "Mend the data.",
            )
        return Rows(numbered[i] for i in left)

    def _first_usable(
        self, scoring: Scoring, rows: Rows, left: Sequence[int]
    ) -> tuple[ConfigurableTask | None, dict[int, Fault]]:
        """lm-eval's task on the rows from the first that it takes, and the faults of those before."""
        faults: dict[int, Fault] = {}
        make = task_class(self.shared)  # may import lm-eval, which takes longer than a template may
        config = self._merged(scoring)
        for i in left:
            try:
                with seconds(PATIENCE):
                    return make(config, Rows([rows[i]]), self._view), faults
            except UserError:
                raise
            except AUTHORS as error:
                form = config.get("doc_to_choice")
                choices = rows[i].get(form) if isinstance(form, str) else None
                numbers = isinstance(choices, list) and no_texts(choices)
                faults[i] = ("doc_to_choice", NO_TEXTS) if numbers else (f"scoring {scoring}", said(error))
                if len(faults) == TRIES:
                    break
        if faults:
            number, fault = next(iter(faults.items()))
            what = f"{self.name}, row {number + 1}, {fault[0]}: {fault[1]}."
            raise UserError(what, f"The fields are {', '.join(map(str, rows[number]))}.")
        return None, faults

    def _views(self, task: ConfigurableTask, row: Row) -> Iterator[tuple[str, View]]:
        receiver = shown(task, row)
        return ((role, self._view(role, row, receiver)) for role in ROLES)

    def _table(self, split: str) -> Dataset | list[Row]:
        if split not in self._tables:
            if split == EXAMPLES:
                self._tables[split] = self._table_of_examples()
            else:
                self._tables[split] = self._local(split) if "files" in self._extra else self._fetched(split)
        return self._tables[split]

    def _table_of_examples(self) -> Dataset | list[Row]:
        """The rows that `metadata.examples` names, where they are no split of the task."""
        from lcfbench.sources.datasets import load_table

        source = source_of(self._extra.get(EXAMPLES))
        assert source.split is not None, "a data set is named with its split"
        files = self._extra.get("files") if source.dataset_path is None else source.files
        try:
            if files is not None:
                return read_split(files, source.split)
            if source.dataset_path is None:
                return self._from_hub(source.split, EXAMPLES)
            config = source.dataset_name or "default"
            return load_table(source.dataset_path, config, source.split, offline=self.offline)
        except UserError as error:
            raise UserError(f"{self.name}, worked examples: {error.what}", error.next_step) from error

    def _process(self, split: str) -> Any:
        """`process_docs` of a split; examples may have one of their own."""
        own = source_of(self._extra.get(EXAMPLES)).process_docs if split == EXAMPLES else None
        return own or self._config.get("process_docs")

    def _local(self, split: str) -> list[Row]:
        """The rows of a user's own files; a share of them where one table serves all splits."""
        there = self._config["test_split" if self.options.get(SHARE) else SPLIT_KEYS[split]]
        try:
            rows = read_split(self._extra["files"], there)
        except UserError as error:
            raise UserError(f"{self.name}: {error.what}", error.next_step) from error
        if not (share := self.options.get(SHARE)):
            return rows
        if not 0 < share <= 85:
            raise UserError(f"{SHARE}={share}.", "Give 1 to 85: 10 more are for validation.")
        shares = {"train": share, "validation": 10, "test": 90 - share}
        texts = [json.dumps({k: v for k, v in row.items() if k != "id"}, default=str) for row in rows]
        return [row for row, text in zip(rows, texts, strict=True) if part_of(text, shares) == split]

    def _fetched(self, split: str) -> Dataset:
        return self._from_hub(self._config[SPLIT_KEYS[split]], split)

    def _from_hub(self, there: str, split: str) -> Dataset:
        """The rows that the data set calls `there` and the task `split`."""
        from datasets import Dataset

        from lcfbench.sources.datasets import config_here, load_configs, load_table

        path = self._config["dataset_path"]
        if subjects := self._extra.get("configs"):  # a data set with one config a subject
            return load_configs(path, subjects, there, offline=self.offline)
        configs = [self._config.get("dataset_name") or "default", *self._extra.get("dataset_names", ())]
        config = config_here(path, configs, there)
        table = load_table(path, config, there, offline=self.offline)
        raw = getattr(self._config.get("process_docs"), "raw", None)
        return Dataset.from_list(raw(table, split)) if raw else table

    @property
    def splits(self) -> list[str]:
        """The splits it has."""
        if self.options.get(SHARE):
            return list(SPLITS)
        return self._extra.get("splits") or [s for s in SPLITS if self._config.get(SPLIT_KEYS[s])]

    def _check(self, split: str) -> None:
        if split not in (have := self.splits):
            step = f" Or keep rows for it: --task-option {SHARE}=60." if SHARE in self.options else ""
            raise UserError(f"{self.name} has no {split} split.", f"It has {', '.join(have)}.{step}")

    def _document(self, task: ConfigurableTask, row: Row, scoring: Scoring, receiver_chat: bool) -> Document:
        receiver = shown(task, row)
        views: Any = {role: self._view(role, row, receiver) for role in ROLES}
        examples = ""
        if self.shots:
            examples = self._worked_examples().whose(row)
            receiver, views = self._with_examples(task, row, scoring, receiver, views)
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
            gold=steps[-1].choices[steps[-1].gold[0]].strip() if steps else gold_text(task, row),
            steps=steps,
            shared=self.shared,
            chat=self.chat,
            subject=str(row.get("subject") or ""),
            until=tuple(written.get("until", self._extra.get("until", ()))),
            request_until=tuple(self._extra.get("request_until", ())),
            max_new_tokens=written.get("max_gen_toks", self._extra.get("max_new_tokens", 64)),
            native=row,
            sharers=self._dealt("sharer", row, views),
            requests=self._dealt("request", row, views),
            examples=examples,
        )

    def _dealt(self, role: str, row: Row, views: Mapping[str, View]) -> tuple[View, ...]:
        """The views of several sharers: the texts of the column that `metadata.several.<role>` names.

        None in another wording than the task's own, which has one text for the sharer.
        """
        column = self._extra.get("several", {}).get(role) if self.prompt is None else None
        return tuple(replace(views[role], user=text) for text in row[column]) if column else ()

    def _with_examples(
        self, task: ConfigurableTask, row: Row, scoring: Scoring, receiver: View, views: dict[str, View]
    ) -> tuple[View, dict[str, View]]:
        """The views with worked examples in front of the question.

        The sharer reads them too where both read the same; of its request it gets none. Each role's
        examples are worded as its own question is.
        """
        examples = self._worked_examples()
        rows, key = examples.of(row), (scoring, examples.whose(row))
        if key not in self._leads:
            self._leads[key] = self._lead(task, rows)
        lead = self._leads[key]
        led = {role: replace(v, user=lead.get(role, "") + v.user) for role, v in views.items()}
        return replace(receiver, user=lead["receiver"] + receiver.user), led

    def _lead(self, task: ConfigurableTask, rows: Sequence[Row]) -> dict[str, str]:
        """The text of worked examples by role."""
        alone = [shown(task, row) for row in rows]
        worked = [_worked(view, task, row) for view, row in zip(alone, rows, strict=True)]
        lead = {"receiver": "".join(worked)}
        lead |= dict.fromkeys(("noted", *(["sharer", "full"] if self.shared else [])), lead["receiver"])
        if not self.shared:
            fuller = [self._view("full", row, view) for view, row in zip(alone, rows, strict=True)]
            lead["full"] = "".join(_worked(v, task, row) for v, row in zip(fuller, rows, strict=True))
        return lead

    def _worked_examples(self) -> Examples:
        """The worked examples, none of them a question of the test split that would get it.

        Without a field to pick by: the first of an order of the seed. With one: the first of each of its
        values, in the order of the data.
        """
        if self._examples is None:
            source = source_of(self._extra.get(EXAMPLES))
            split = self._split_of_examples(source.split)
            pool = self._generated(split, 8 * self.shots) if self.generated else self._natural(split)
            if any(row.get("steps") for row in pool):
                what = f"{self.name} asks in several steps, which examples cannot show."
                raise UserError(what, "Leave --shots out.")
            named = f"{source.dataset_path or 'the data'}: {source.split}" if split == EXAMPLES else ""
            who = f"{self.name}: {named or f'the {split} split'}"
            find = self._drawn_examples if source.by is None else self._picked_examples
            self._examples = Examples(find(pool, source.by or ""), self.shots, who, source.by)
        return self._examples

    def _split_of_examples(self, named: str | None) -> str:
        """The split whose rows are examples, as it is called here; EXAMPLES for one of another data set."""
        if source_of(self._extra.get(EXAMPLES)).dataset_path is not None:
            return EXAMPLES
        if named is not None:
            here = (s for s in ("train", "validation") if self._config.get(SPLIT_KEYS[s]) == named)
            return next((s for s in here if s in self.splits and not self.options.get(SHARE)), EXAMPLES)
        split = usual_split(self.splits)
        if split is None:
            what = f"{self.name} has no train or validation split to take examples from."
            raise UserError(what, "Leave --shots out.")
        return split

    def _drawn_examples(self, pool: Sequence[Row], _: str) -> dict[str, list[Row]]:
        """The same ones for all questions."""
        task = self._task_of(self.scorings[0])
        asked = {shown(task, row) for row in self._rows_of("test", None)}
        order = list(range(len(pool)))
        random.Random(f"{self.name}/{self.seed}/examples").shuffle(order)
        new = (pool[i] for i in order if shown(task, pool[i]) not in asked)
        return {"": list(islice(new, self.shots))}

    def _picked_examples(self, pool: Sequence[Row], by: str) -> dict[str, list[Row]]:
        """The first ones of each value of a field."""
        task, found = self._task_of(self.scorings[0]), dict[str, list[Row]]()
        asked = {(value_of(row, by, self.name), shown(task, row)) for row in self._natural("test")}
        for row in pool:
            of = found.setdefault(value := value_of(row, by, self.name), [])
            if len(of) < self.shots and (value, shown(task, row)) not in asked:
                of.append(row)
        return found

    def _view(self, role: str, row: Row, receiver: View) -> View:
        """The view that `metadata.views.<role>` words; by default the receiver's.

        It is a column, a template, or {user, prefix} of such.
        """
        form = self._extra.get("views", {}).get(role, self._extra.get(role))
        if form is None:
            return View(f"{NOTE}\n\n{receiver.user}", receiver.prefix) if role == "noted" else receiver
        row = {"seen": receiver.user, **row}
        if isinstance(form, str):
            return View(filled(form, row), receiver.prefix)
        return View(filled(form["user"], row), filled(form.get("prefix", ""), row))

    def teaching(self) -> list[Phrasing]:
        """The facts behind a task, for a model to be taught; empty where its file names no `teaching`."""
        facts = self._extra.get("teaching")
        if facts is None:
            return []
        try:
            return list(facts(seed=self.seed, **self.options))
        except AUTHORS as error:
            raise UserError(f"{self.name}: teaching failed: {said(error)}.", "Mend the function.") from error

    # -- scores -----------------------------------------------------------------------------------

    def metric(self, scoring: Scoring | None = None) -> str:
        """The primary metric's name; `score` gives it as "score" too."""
        return str(self._extra["scorings"][self._scoring(scoring)]["primary"])

    def score(self, document: Document, outcome: Outcome) -> dict[str, Any]:
        """All metrics of an answer, by lm-eval's filters and `process_results`.

        "score" is the primary metric; "step1_acc" and so on are those of the steps before the last;
        "parsed" (0 or 1) and the text "parsed_by" say whether and how an answer was read.
        """
        from lm_eval.api.instance import Instance

        if not outcome.parsed:
            return {"score": 0.0, self.metric(document.scoring): 0.0, "unparsed": 1.0}
        task: Any = self._task_of(document.scoring)
        written = document.scoring == "generate"
        answers: list[Any] = [outcome.text] if written else list(outcome.loglikelihoods[-1])
        fits = True
        if written and self.prompt and self.prompt.pattern:
            found = self.prompt.answer(outcome.text or "")
            answers, fits = [found or ""], found is not None
        row = dict(document.native)
        kind: Any = "generate_until" if written else "loglikelihood"
        about = self.name, 0, 1
        requests = [Instance(kind, row, (), i, about, resps=[a]) for i, a in enumerate(answers)]
        for ensemble in task._filters:
            ensemble.apply(requests)
        raw = task.scored(row, [r.filtered_resps[task._filters[0].name] for r in requests])
        if written and self.prompt and self.prompt.pattern:
            fits = fits and bool(raw.get("parsed", True))
            raw |= {"parsed": float(fits), "parsed_by": "pattern" if fits else "unread"}
        rule = {"parsed_by": str(raw.pop("parsed_by"))} if raw.get("parsed_by") is not None else {}
        scores = {k: float(v) for k, v in raw.items() if k != "parsed_by"}
        for i, (step, ranked) in enumerate(zip(document.steps[:-1], outcome.loglikelihoods, strict=False), 1):
            best = max(range(len(ranked)), key=lambda j: ranked[j][0])
            scores[f"step{i}_acc"] = float(best in step.gold)
        return {"score": scores[self.metric(document.scoring)], **scores, **rule}

    def lm_eval_task(self, scoring: Scoring | None = None) -> ConfigurableTask:
        """lm-eval's own task object on our rows in their order, for `simple_evaluate(tasks=[…])`."""
        inner: Any = self._task_of(self._scoring(scoring))
        if self.shots:
            examples = self._worked_examples()
            inner.set_config("num_fewshot", self.shots)
            inner.sampler = sampler(examples)
            if examples.by is not None:
                inner.fewshot_cfg.split = inner.config.test_split  # the sampler is then given each question
        return inner

    def _task_of(self, chosen: Scoring) -> ConfigurableTask:
        if chosen not in self._lm_eval:
            self._check("test")
            rows = self._generated("test", None) if self.generated else self._natural("test")
            if self.prompt is not None:
                self.prompt.check(rows[0], self.name)
            task_class(self.shared)  # importing lm-eval is slow, and the wording's time is limited
            with self._wording(rows[0]):  # lm-eval words the first document
                self._lm_eval[chosen] = self._for_lm_eval(chosen, rows)
        return self._lm_eval[chosen]

    def drawn_lm_eval_task(self, scoring: Scoring | None = None) -> ConfigurableTask:
        """As `lm_eval_task`, a new one, with the rows in the order in which a limit takes them."""
        return self._for_lm_eval(self._scoring(scoring), Rows(self._rows_of("test", None)))

    def _for_lm_eval(self, scoring: Scoring, rows: Sequence[Row]) -> ConfigurableTask:
        made: Any = task_class(self.shared)(self._merged(scoring), rows, self._view)
        made.document = lambda row, chat: self._document(made, row, scoring, chat)
        made.validation = lambda limit, chat: self.documents(
            scoring=scoring, limit=limit, split="validation", receiver_chat=chat
        )
        return made

    def _merged(self, scoring: Scoring) -> dict[str, Any]:
        from lm_eval.config.task import TaskConfig

        over = {k: v for k, v in self._extra["scorings"][scoring].items() if k != "primary"}
        config = {**self._config, **over, "metadata": {"version": self._extra.get("version", 1)}}
        # the rows are ready: there is nothing to load, to process or to sample shots from
        gone = ("process_docs", "custom_dataset", "training_split", "validation_split")
        config = {k: v for k, v in config.items() if k not in gone}
        if not self.foreign and (tokens := self.options.get(ANSWER_TOKENS)):
            config["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": tokens}
        worded = self._config.get("fewshot_config")
        kept = {k: v for k, v in worded.items() if k in EXAMPLE} if isinstance(worded, dict) else {}
        config |= {"test_split": "test", "num_fewshot": 0, "fewshot_config": {"samples": [], **kept}}
        if self.foreign:
            gone = ("group", "tag", "task_alias", "dataset_kwargs")
            config = copy.deepcopy({k: v for k, v in config.items() if k not in gone})
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
    def examples_sha256(self) -> str | None:
        """Digest of the worked examples where the task's file says where they come from; else None."""
        return self._worked_examples().sha256 if self.shots and self._extra.get(EXAMPLES) else None

    @property
    def data_sha256(self) -> str:
        """Digest of the test split's rows as generated, or as loaded (and cut into turns or parts)."""
        if self.generated:
            digest = hashlib.sha256(b"[")  # of a list as JSON, whose rows are in memory one by one
            for number, row in enumerate(self._generated("test", None)):
                text = json.dumps(row, sort_keys=True, ensure_ascii=False)
                digest.update((", " if number else "").encode() + text.encode())
            digest.update(b"]")
            return digest.hexdigest()
        from lcfbench.sources.datasets import data_digest

        return data_digest(self._natural("test") if self.foreign else self._table("test"))

    @property
    def split_manifest_sha256(self) -> str | None:
        """Digest of the evidence that each model gets, for tasks that split it; None for the others."""
        if "manifest" not in self._extra:
            return None
        return hashlib.sha256(self._extra["manifest"](self._natural("test")).encode()).hexdigest()


def _worked(view: View, task: ConfigurableTask, row: Row) -> str:
    """A question with its answer as lm-eval writes an example."""
    gold: Any = task.doc_to_target(row, task.fewshot_cfg.doc_to_target)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        gold = task.doc_to_choice(row)[gold]
    gold = str(gold[0]) if isinstance(gold, list) else str(gold)
    turns: Any = task.build_qa_turn(
        q=view.user,
        a=gold,
        gen_prefix=view.prefix or None,
        tgt_delim=task.config.target_delimiter,
        few_delim=task.config.fewshot_delimiter,
    )
    return "".join(turn.to_text() for turn in turns)


def gold_text(task: ConfigurableTask, row: Row) -> str:
    """The right answer to write; several are separated by |. A place that no choice has is told as it is."""
    gold: Any = task.doc_to_target(row)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        choices = task.doc_to_choice(row)
        gold = choices[gold] if 0 <= gold < len(choices) else gold
    return " | ".join(map(str, gold)) if isinstance(gold, list) else str(gold)
