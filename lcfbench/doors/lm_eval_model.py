"""A pair as a model of lm-eval: `--model lcfbench --model_args pair=A:B,mode=t2t,control=deranged`.

lm-eval builds the prompts, scores the answers and writes the results. One sharer pass serves all
choices of a document; the receiver reads the tokens that lm-eval's own `hf` would read.

>>> lm = PairLM(pair="smollm2-135m:gemma3-270m", mode="receiver", batch_size=16)
>>> lm_eval.simple_evaluate(model=lm, tasks=["hellaswag"])                          # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import lm_eval.models  # noqa: F401  (names the models that lm-eval brings; else ours would be the only one)
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs

from lcfbench.doors.answering_pair import Answered, AnsweringPair
from lcfbench.doors.documents import document_of
from lcfbench.errors import UserError
from lcfbench.tasks.document import Document, Step, View, view_of
from lcfbench.tasks.lm_eval import ChatText, view_of_prompt
from lcfbench.tasks.prompts import render, rendered

GREEDY = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks"}  # no other setting is known
CACHES = "lm-eval's caches know neither the pair, its method nor its sharer's text"


@dataclass
class Question:
    """What lm-eval asks about one of its documents.

    documents: one for each text that is read, mostly one. asked: of each request the document, and
    which of its choices it is. validation: see `AnsweringPair.answers`.
    """

    documents: list[Document]
    asked: list[tuple[Instance, int, int]]
    validation: Callable[[int], Sequence[Document]] | None = None


class PairLM(TemplateLM):
    """lm-eval's interface to an `AnsweringPair`; the models are loaded when the first request comes.

    given: see `AnsweringPair`. model: the same as `pair`; lm-eval names folders of results after it.
    Raises UserError.
    """

    def __init__(self, model: str | None = None, max_batch_size: Any = None, **given: Any) -> None:
        super().__init__()
        if model is not None and given.setdefault("pair", model) != model:
            raise UserError(f"pair={given['pair']} and model={model} differ.", "Leave model= out.")
        if not str(given.get("batch_size") or 1).isdecimal():
            what = f"batch_size={given['batch_size']} is no number."
            raise UserError(what, "Give the documents of a batch, such as --batch_size 16.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            what = "the model lcfbench runs in one process, not under torchrun or accelerate."
            raise UserError(what, "Use receiver_device=, sharer_device= or device_map= for several devices.")
        self.pair = AnsweringPair({k: v for k, v in given.items() if v is not None})

    # -- what lm-eval asks about a model ------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The tokenizer of the model that answers."""
        return self.pair.tokenizers[0]

    @property
    def tokenizer_name(self) -> str:
        return str(self.pair.label.replace("/", "__"))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def max_length(self) -> int | None:
        """Tokens that the answering model reads at most."""
        return self.pair.method.receiver.max_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a prompt before a choice, as they are read."""
        return list(
            render(
                view_of_prompt(string), self.tokenizer, chat=isinstance(string, ChatText), choices=True
            ).ids
        )

    def get_model_info(self) -> dict[str, Any]:
        """What decided the answers; lm-eval writes it into the config of its results."""
        return self.pair.facts()

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Raises UserError for `use_cache`: it would hand out another pair's answers."""
        if cache_hook.dbdict is not None:
            raise UserError(f"{CACHES}: with use_cache answers could be another's.", "Leave it out.")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> ChatText:
        """The chat in the receiver's template. As `hf` does, a system turn that it refuses is left out.

        Raises UserError for a receiver without template.
        """
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            what = f"{self.pair.names[0]} has no chat template."
            raise UserError(what, "Leave --apply_chat_template out.")
        turns = [(m["role"], m["content"]) for m in chat_history]
        if turns[0][0] == "system":
            try:
                tokenizer.apply_chat_template(chat_history, tokenize=False)
            except jinja2.exceptions.TemplateError:
                turns = turns[1:]
        prompt = render(view_of(turns), tokenizer, chat=True, choices=False)
        return ChatText(prompt.text + (prompt.closing or "") + prompt.begin, turns)

    # -- requests ---------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of choices, those of one document with one message.

        Raises UserError, also for a thought without end: of choices that are all as unlikely lm-eval takes
        the first.
        """
        found: dict[int, tuple[float, bool]] = {}
        for instance, answered, place in self._answered(requests):
            if not answered.outcome.loglikelihoods:
                what = f"{instance.task_name}, document {instance.doc_id}: the thought before it has no end."
                raise UserError(what, "Give thinking=512, say: the tokens after which a thought is closed.")
            found[id(instance)] = answered.outcome.loglikelihoods[-1][place]
        return [found[id(request)] for request in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers. Raises UserError for requests that sample."""
        for request in requests:
            check_greedy(request.args[1], str(request.task_name))
        found = {id(instance): a.outcome.text or "" for instance, a, _ in self._answered(requests)}
        return [found[id(request)] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Raises UserError: a text without a question has no place for a message."""
        raise refused_rolling([str(request.task_name) for request in requests[:1]])

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("requests are texts: the sharer's tokens are others")

    def _answered(self, requests: Sequence[Instance]) -> list[tuple[Instance, Answered, int]]:
        """Answers requests task by task; puts the message behind the arguments of a document's first."""
        tasks: dict[Any, dict[Any, list[Instance]]] = {}
        for request in {id(r): r for r in requests}.values():  # repeats of a request are the same
            key = request.doc_id if request.doc_id is not None else request.args[0]
            tasks.setdefault(request.task_name, {}).setdefault(key, []).append(request)
        asked = {name: [question(each) for each in group.values()] for name, group in tasks.items()}
        found: list[tuple[Instance, Answered, int]] = []
        for questions in asked.values():
            answers = self.pair.answers(
                [d for q in questions for d in q.documents],
                message_from=self._senders(questions),
                validation=questions[0].validation,
            )
            for each in questions:
                for n, document in enumerate(each.documents):
                    first = next(instance for instance, m, _ in each.asked if m == n)
                    first.arguments = (*first.args, {"lcfbench": answers[document.hash].message})
                found += [(i, answers[each.documents[n].hash], place) for i, n, place in each.asked]
        return found

    def _senders(self, questions: Sequence[Question]) -> dict[str, Document]:
        """The document whose message each gets, by hash: never another text of the same question."""
        given = self.pair.senders([q.documents[0] for q in questions])
        by_first = {q.documents[0].hash: q.documents for q in questions}
        found: dict[str, Document] = {}
        for q in questions:
            theirs = by_first[given[q.documents[0].hash].hash]
            found |= {d.hash: theirs[min(n, len(theirs) - 1)] for n, d in enumerate(q.documents)}
        return found


def question(requests: Sequence[Instance]) -> Question:
    """The documents behind lm-eval's requests about one of its own. Raises UserError."""
    first = requests[0]
    if (task := getattr(first, "task", None)) is not None:
        return _own_question(task, requests)
    texts: dict[str, list[Instance]] = {}
    for request in requests:
        texts.setdefault(repr((*request.args[:1], *request.args[2:])), []).append(request)
    documents, asked = [], []
    for n, same in enumerate(texts.values()):
        name = f"{first.doc_id}.{n}" if len(texts) > 1 else str(first.doc_id)
        documents.append(_document(name, same))
        asked += [(request, n, place) for place, request in enumerate(same)]
    return Question(documents, asked)


def _own_question(task: Any, requests: Sequence[Instance]) -> Question:
    """The document of a task of ours, the very same that `lcfbench run` asks.

    Of choices that are ranked in several steps the last step answers lm-eval's requests: they stand in the
    same order.
    """
    text = requests[0].args[0]
    chat = isinstance(text, ChatText)
    document = replace(task.document(requests[0].doc, chat), chat=chat)
    if document.steps:
        wanted = tuple(str(request.args[1]) for request in requests)
        assert document.steps[-1].choices == wanted or len(document.steps) > 1, "lm-eval's choices are asked"
        assert len(document.steps[-1].choices) == len(wanted), "each request has its choice"
    shown = view_of(text.turns) if chat else None
    own = document.receiver
    plain = rendered(own, None, False)  # type: ignore[arg-type]
    if (shown != own) if chat else (text != plain):
        what = f"{document.task}: lm-eval made another prompt than `lcfbench run`."
        raise UserError(what, "Leave --system_instruction and --num_fewshot out.")
    asked = [(request, 0, place) for place, request in enumerate(requests)]
    return Question([document], asked, lambda limit: task.validation(limit, chat))


def _document(name: str, requests: Sequence[Instance]) -> Document:
    """A document of requests that begin with one text: its choices, or what is written."""
    text, second, *more = requests[0].args
    written = normalize_gen_kwargs(second) if isinstance(second, Mapping) else None
    steps = () if written is not None else (Step(tuple(str(r.args[1]) for r in requests), (0,)),)
    extra = more[0] if more else {}
    sharer = View(str(extra["sharer"]), str(extra.get("sharer_prefix", ""))) if "sharer" in extra else None
    made = document_of(str(requests[0].task_name), name, view_of_prompt(text), sharer)
    made = replace(made, steps=steps, chat=isinstance(text, ChatText))
    if written is None:
        return replace(made, scoring="cloze")
    return replace(made, until=tuple(_stops(written)), max_new_tokens=int(written["max_gen_toks"]))


def _stops(written: Mapping[str, Any]) -> list[str]:
    stops = written.get("until") or []
    return [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]


def check_greedy(settings: Mapping[str, Any], task: str) -> None:
    """Raises UserError for settings of a generation that is not greedy."""
    written = normalize_gen_kwargs(dict(settings))
    if written.get("do_sample") or float(written.get("temperature") or 0) > 0:
        what = f"{task} draws its answers at random; a pair answers greedily."
        raise UserError(what, "Give --gen_kwargs do_sample=false temperature=0.")
    if strange := sorted(k for k in set(written) - GREEDY if written[k] not in (None, False, 1)):
        raise UserError(f"{task} sets {strange[0]}={written[strange[0]]}, which a pair does not follow.", "")


def refused_rolling(tasks: Sequence[str]) -> UserError:
    """The error for tasks that score whole texts."""
    what = f"{', '.join(tasks)} scores whole texts (loglikelihood_rolling): nothing is asked and answered."
    return UserError(what, "Take it out of --tasks.")


if "lcfbench" not in model_registry:  # later versions of lm-eval read the entry point
    model_registry.register("lcfbench", target=PairLM)
