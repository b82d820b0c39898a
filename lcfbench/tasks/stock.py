"""A task of lm-eval's own library as a shared-context task: its prompts, examples, filters and metrics.

It is asked as `lm_eval --model hf` asks it: the first documents in the order of the data, the examples
that the file says, no chat template unless the option `chat` says so. The data come through
`sources.datasets`: from a mirror, the cache or the Hub.

>>> from lcfbench.tasks.task import load_task
>>> load_task("lm-eval/hellaswag").documents(limit=1)[0].steps[0].choices       # doctest: +SKIP
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError, unknown
from lcfbench.tasks.document import NOTE, Document, Scoring, Step, View, background_request
from lcfbench.tasks.lm_eval import ChatText, view_of_prompt
from lcfbench.tasks.stock_files import LIMITS, class_of, config_of, digest_of, guarded, shots_of
from lcfbench.tasks.stock_index import LISTING, leaf
from lcfbench.tasks.task import Outcome, Task, gold_text

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

MOST_TOKENS = 256  # lm-eval's `hf` writes so many where a task says nothing
PERCENT = ("bleu", "chrf", "ter")  # 0 to 100 for a set of documents


class StockTask(Task):
    """One of lm-eval's tasks. Raises UserError for one that cannot be asked as lm-eval asks it."""

    def __init__(
        self, name: str, seed: int, offline: bool, options: dict[str, Any], shots: int | None = None
    ) -> None:
        one = leaf(name)
        self.name, self.seed, self.offline, self.options = name, seed, offline, options
        self.shared, self.foreign = True, False
        self.chat = options["chat"] != "no"
        self.dropped, self.problems = {}, {}
        self.yaml_sha256 = digest_of(one)
        config = config_of(one)
        self.shots = shots_of(name, config, shots)
        with guarded(f"{name}: lm-eval cannot prepare it"):
            self._task = class_of(config, offline)(config=config)
        self._worded_once: dict[tuple[str, bool], list[Document]] = {}
        self._docs: dict[str, list[dict[str, Any]]] = {}
        self._extra = {}
        self.default_scoring = self._scoring_of()
        self.scorings = [self.default_scoring]
        self._metric = self._primary()

    # -- documents --------------------------------------------------------------------------------

    def documents(
        self,
        *,
        scoring: Scoring | None = None,
        limit: int | None = None,
        split: str = "test",
        receiver_chat: bool = True,
    ) -> list[Document]:
        """The first `limit` documents in lm-eval's order; of other splits, in an order of the seed."""
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit}.", "Give 1 or more, or leave it out for all documents.")
        self._scoring(scoring)
        rows = self._rows_of(split, limit)
        chat = receiver_chat and self.chat
        key = split, chat
        if len(self._worded_once.get(key, ())) < len(rows):
            self._task.set_fewshot_seed(seed=self.options["fewshot_seed"])  # examples are drawn in order
            with guarded(f"{self.name}: lm-eval cannot word a document"):
                self._worded_once[key] = [self._asked(split, i, row, chat) for i, row in enumerate(rows)]
        return self._worded_once[key][: len(rows)]

    def _rows_of(self, split: str, limit: int | None) -> list[dict[str, Any]]:
        self._check(split)
        if split not in self._docs:
            with guarded(f"{self.name}: lm-eval cannot read the {split} split"):
                self._docs[split] = [dict(row) for row in self._split(split)]
            if not self._docs[split]:
                raise UserError(f"{self.name}: the {split} split is empty.", "Check its data set.")
            if split != "test":
                random.Random(f"{self.name}/{self.seed}/{split}").shuffle(self._docs[split])
        return self._docs[split][:limit]

    def _split(self, split: str) -> Any:
        if split == "test":
            return self._task.eval_docs
        return self._task.training_docs() if split == "train" else self._task.validation_docs()

    @property
    def splits(self) -> list[str]:
        """The splits it has; the one that is asked is called test."""
        task = self._task
        other = ["train"] if task.has_training_docs() else []
        if task.has_validation_docs() and task.has_test_docs():
            other.append("validation")
        return [*other, "test"]

    def drawn(self, limit: int | None) -> bool:
        """No seed decides which documents are asked."""
        return False

    def reseeded(self, seed: int) -> Task:
        """The same task under another seed; only the order of its other splits depends on it."""
        again = copy.copy(self)
        again.seed = seed
        again._docs = {k: v for k, v in self._docs.items() if k == "test"}
        again._worded_once = {k: v for k, v in self._worded_once.items() if k[0] == "test"}
        return again

    def _asked(self, split: str, number: int, row: dict[str, Any], chat: bool) -> Document:
        requests = self._requests(row, number, chat)
        views = [view_of_prompt(r.args[0]) for r in requests]
        written = requests[0].request_type == "generate_until"
        golds = () if written else self._golds(row, requests)
        choices = tuple(str(r.args[1]) for r in requests)
        parts: tuple[Document, ...] = ()
        if len(set(views)) > 1:  # each choice has a prompt of its own, as in Winogrande
            parts = tuple(
                self._worded(f"{number}/{i}", view, row, (Step((text,), (0,)),), text.strip())
                for i, (view, text) in enumerate(zip(views, choices, strict=True))
            )
        steps = () if written else (Step(choices, golds),)
        shown = choices[golds[0]].strip() if golds else gold_text(self._task, row)
        ident = str(number) if split == "test" else f"{split}-{number}"
        made = self._worded(ident, views[golds[0] if parts and golds else 0], row, steps, shown, parts)
        return _writing(made, requests[0].args[1]) if written else made

    def _requests(self, row: dict[str, Any], number: int, chat: bool) -> list[Any]:
        """lm-eval's own requests of a document; the prompt of each is text, or a list of turns."""
        task, multiturn = self._task, self.options["chat"] == "multiturn"
        context: Any = task.fewshot_context(
            row,
            self.shots,
            system_instruction=self.options["system"] or None,
            apply_chat_template=chat,
            fewshot_as_multiturn=multiturn,
            chat_template=_as_turns if chat else None,
            gen_prefix=task.doc_to_prefix(row),
        )
        found: Any = task.construct_requests(
            row,
            context,
            metadata=(self.name, number, task.config.repeats),
            apply_chat_template=chat,
            chat_template=None,
        )
        return found if isinstance(found, list) else [found]

    def _golds(self, row: dict[str, Any], requests: Sequence[Any]) -> tuple[int, ...]:
        """Places of the right choices by lm-eval's rules; () where a task's own code alone knows them."""
        if self._task.OUTPUT_TYPE == "loglikelihood":
            return (0,)
        gold: Any = (self._task.doc_to_text if self._task.multiple_input else self._task.doc_to_target)(row)
        choices = self._task.doc_to_choice(row)
        found = []
        for one in gold if isinstance(gold, list) else [gold]:
            place = choices.index(one) if isinstance(one, str) and one in choices else one
            if isinstance(place, int) and 0 <= place < len(choices):
                found.append(int(place))
        return tuple(found)

    def _worded(
        self,
        ident: str,
        view: View,
        row: dict[str, Any],
        steps: tuple[Step, ...],
        gold: str,
        parts: tuple[Document, ...] = (),
    ) -> Document:
        noted = View(f"{NOTE}\n\n{view.user}", view.prefix, view.history)
        asked = self._task.doc_to_text(row)
        asked = asked if isinstance(asked, str) else view.user
        request = background_request(asked.strip())
        return Document(
            task=self.name,
            doc_id=ident,
            receiver=view,
            sharer=view,
            full=view,
            request=request,
            noted=noted,
            scoring=self.default_scoring,
            gold=gold,
            steps=steps,
            chat=self.chat,
            request_until=("\n",),
            native=row,
            parts=parts,
        )

    # -- scores -----------------------------------------------------------------------------------

    def _scoring_of(self) -> Scoring:
        if self._task.OUTPUT_TYPE == "generate_until":
            return "generate"
        choices = self._task.config.doc_to_choice
        letters = [chr(65 + i) for i in range(len(choices))] if isinstance(choices, list) else None
        return "letters" if letters and choices == letters else "cloze"

    def metric(self, scoring: Scoring | None = None) -> str:
        """The name of the metric that is a document's score."""
        self._scoring(scoring)
        return self._metric

    @property
    def metrics(self) -> list[str]:
        """All metrics as lm-eval lists them; of several filters, as METRIC,FILTER."""
        names = list(self._task._metric_fn_list)
        filters = [f.name for f in self._task._filters]
        return names if len(filters) == 1 else [f"{name},{f}" for name in names for f in filters]

    def _primary(self) -> str:
        """The asked metric, else the first that can be a score. Raises UserError where there is none."""
        known, asked = self.metrics, self.options["metric"]
        if asked and asked not in known:
            raise unknown(f"metric of {self.name}", asked, known, "lcfbench task check")
        chosen = [asked] if asked else [m for m in known if self._is_score(m.partition(",")[0])]
        if not chosen:
            what = f"{self.name} scores {', '.join(known)}: no document has such a score between 0 and 1"
            what += ", of which more is better."
            raise UserError(what, f"Choose a task with acc or exact_match: {LISTING}.")
        return chosen[0]

    def _is_score(self, metric: str) -> bool:
        """Whether a metric can be a document's score: from 0 to 1, and more of it is better."""
        wide = metric in NOT_OF_DOCUMENTS or metric.endswith(("_max", "_diff"))
        return not wide and self._task.higher_is_better().get(metric) is not False

    def score(self, document: Document, outcome: Outcome) -> dict[str, Any]:
        """All metrics of an answer, by lm-eval's filters and `process_results`.

        A metric of the whole set, such as bleu, is what lm-eval collects of a document; where it is the
        task's metric, "score" is that of the document alone. Raises UserError for a score outside 0 to 1.
        """
        if not outcome.parsed:
            return {"score": 0.0, self._metric: 0.0, "unparsed": 1.0}
        found = self.collected(document, outcome)
        if self._metric not in found:
            have = ", ".join(found) or "none"
            raise UserError(f"{self.name} gives no {self._metric} of a document.", f"It gives {have}.")
        value = self._single(self._metric, found[self._metric])
        if not 0 <= value <= 1:  # NaN too
            what = f"{self._metric} of document {document.doc_id} is {value:g}, not between 0 and 1"
            raise UserError(f"{self.name}: {what}.", "Choose another: --task-option metric=NAME.")
        scores = {"score": value, **{k: _plain(v) for k, v in found.items()}}
        if not isinstance(collected := scores[self._metric], float):
            scores |= {self._metric: value, f"{self._metric}/collected": collected}
        return scores

    def collected(self, document: Document, outcome: Outcome) -> dict[str, Any]:
        """What lm-eval collects of a document before it aggregates, by metric (METRIC,FILTER of several)."""
        from lm_eval.api.instance import Instance

        row = copy.deepcopy(dict(document.native))
        written = document.scoring == "generate"
        answers = [outcome.text] if written else list(outcome.loglikelihoods[-1])
        kind: Any = "generate_until" if written else "loglikelihood"
        about = self.name, 0, 1
        requests = [Instance(kind, row, (), i, about, resps=[a]) for i, a in enumerate(answers)]
        found: dict[str, Any] = {}
        with guarded(f"{self.name}: lm-eval cannot score document {document.doc_id}"):
            for ensemble in self._task._filters:
                ensemble.apply(requests)
            for ensemble in self._task._filters:
                results = [r.filtered_resps[ensemble.name] for r in requests]
                several = len(self._task._filters) > 1
                for name, value in self._task.process_results(row, results).items():
                    found[f"{name},{ensemble.name}" if several else name] = value
        return found

    def _single(self, metric: str, value: Any) -> float:
        """A document's own score: the number itself, else the aggregate over this document alone."""
        plain = _plain(value)
        if isinstance(plain, float):
            return plain
        name = metric.partition(",")[0]
        if name in ("f1", "mcc") and isinstance(plain, list) and len(plain) == 2:
            return float(plain[0] == plain[1])  # of one document both are undefined: right or wrong
        made = float(self._aggregate(name)([value]))
        return made / 100 if name in PERCENT else made

    def _aggregate(self, name: str) -> Any:
        from lm_eval.api.metrics import mean

        return self._task.aggregation().get(name, mean)

    def summary(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """lm-eval's own results over documents' metrics, as `acc,none`: equal to those of `lm_eval`."""
        filters = [f.name for f in self._task._filters]
        found: dict[str, Any] = {}
        for key in dict.fromkeys(k for row in metrics for k in row):
            name, _, suffix = key.partition(",")
            if key in ("score", "unparsed") or key.endswith("/collected") or name in ("parsed", "parsed_by"):
                continue
            rows = [row.get(f"{key}/collected", row[key]) for row in metrics if key in row]
            with guarded(f"{self.name}: lm-eval cannot sum up {key}"):
                value = self._aggregate(name)([tuple(r) if isinstance(r, list) else r for r in rows])
            found[f"{name},{suffix or filters[0]}"] = float(value) if _is_number(value) else value
        return found

    def lm_eval_task(self, scoring: Scoring | None = None) -> ConfigurableTask:
        """lm-eval's task object, with its data."""
        self._scoring(scoring)
        return self._task

    # -- identity ---------------------------------------------------------------------------------

    @property
    def data_sha256(self) -> str:
        """Digest of the documents that are asked, as lm-eval prepares them."""
        from lcfbench.sources.datasets import data_digest

        return data_digest(self._rows_of("test", None))


NOT_OF_DOCUMENTS = (
    "perplexity word_perplexity byte_perplexity bits_per_byte likelihood brier_score ter bypass eqbench"
    " percent_parseable"
).split()  # and BLEU and ROUGE over several references, from 0 to 100, called `_max` and `_diff`


def _writing(document: Document, settings: Mapping[str, Any]) -> Document:
    """The document with the stop strings and the limit of lm-eval's generation settings."""
    until = settings.get("until") or []
    most = next((settings[k] for k in LIMITS if settings.get(k) is not None), MOST_TOKENS)
    texts = [until] if isinstance(until, str) else [u for u in until if u]
    return replace(document, until=tuple(map(str, texts)), max_new_tokens=int(most))


def _as_turns(turns: Sequence[Mapping[str, str]], **_: Any) -> ChatText:
    """A chat as lm-eval makes it, told apart from others by all of its turns."""
    made = tuple((t["role"], t["content"]) for t in turns)
    return ChatText(repr(made), made)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (
        hasattr(value, "item") and getattr(value, "ndim", 1) == 0
    )


def _plain(value: Any) -> Any:
    """A metric's value as JSON holds it: a number as float, arrays and tuples as lists."""
    if _is_number(value):
        return float(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
