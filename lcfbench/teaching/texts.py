"""What is taught: prompts and answers as token ids, from a task's facts or from its train split.

>>> lessons = lessons_of(recipe, tokenizer, has_chat=False)
>>> lessons[0].name, lessons[0].weight, len(lessons[0].texts)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.answer import target
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import continuation, render
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for
from lcfbench.teaching.recipe import TeachRecipe

CHECKED = 256  # documents of a validation split that are measured at the end


@dataclass(frozen=True)
class Text:
    """A prompt with its answer. answer: at which tokens the loss counts, the last ones."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]


@dataclass(frozen=True)
class Lesson:
    """Texts of one wording. weight: how often a batch is in it; 0 is never taught, only measured.

    group: lessons of one group hold the same facts in the same order.
    """

    name: str
    group: str
    weight: float
    texts: Sequence[Text]


def lessons_of(recipe: TeachRecipe, tokenizer: Any, has_chat: bool, longest: int | None) -> list[Lesson]:
    """Returns all lessons. Raises UserError for a task that has nothing to teach or texts too long."""
    options = options_for(recipe.task, recipe.task_options)
    tasks = [
        load_task(name, seed=recipe.seed, offline=recipe.offline, options=options[name])
        for name in recipe.task
    ]
    if recipe.scoring is not None and not any(recipe.scoring in t.scorings for t in tasks):
        known = sorted({s for t in tasks for s in t.scorings})
        raise unknown(f"scoring of {', '.join(recipe.task)}", recipe.scoring, known, "lcfbench ls tasks")
    lessons = [lesson for task in tasks for lesson in _of(task, recipe, tokenizer, has_chat)]
    most = max(len(t.ids) for lesson in lessons for t in lesson.texts)
    if longest is not None and most > longest:
        what = f"a text of {', '.join(recipe.task)} has {most:,} tokens, and the model reads {longest:,}."
        raise UserError(what, "Name another model or task.")
    return lessons


def _of(task: Task, recipe: TeachRecipe, tokenizer: Any, has_chat: bool) -> list[Lesson]:
    if phrasings := task.teaching():
        total = sum(p.weight for p in phrasings)
        return [
            Lesson(p.name, task.name, p.weight * len(p.facts) / total, [_fact(f, tokenizer) for f in p.facts])
            for p in phrasings
        ]
    scoring = recipe.scoring if recipe.scoring in task.scorings else None
    made = []
    for split, limit in (("train", None), ("validation", CHECKED)):
        if split == "train" or split in task.splits:
            documents = task.documents(scoring=scoring, split=split, limit=limit, receiver_chat=has_chat)
            found = [_document(d, tokenizer, has_chat) for d in documents]
            made.append(Lesson(f"{task.name}/{split}", task.name, len(found) * (split == "train"), found))
    return made


def _fact(fact: tuple[View, str], tokenizer: Any) -> Text:
    view, answer = fact
    prompt = render(view, tokenizer, chat=False, choices=True)
    ids = continuation(prompt, answer, tokenizer)
    return Text((*prompt.ids, *ids), (True,) * len(ids))


def _document(document: Document, tokenizer: Any, has_chat: bool) -> Text:
    chat = document.chat and has_chat
    prompt = render(document.receiver, tokenizer, chat=chat, choices=bool(document.steps))
    ids, flags = target(document, prompt, tokenizer, tokenizer.eos_token_id)
    return Text((*prompt.ids, *ids), tuple(flags))


def batches(lessons: Sequence[Lesson], recipe: TeachRecipe) -> list[tuple[str, list[Text]]]:
    """Returns wording and texts of each step; every pass over a group has each of its facts once."""
    rng = random.Random(f"teaching/{recipe.seed}")
    taught = [lesson for lesson in lessons if lesson.weight]
    decks: dict[str, list[int]] = {lesson.group: [] for lesson in taught}
    out = []
    for _ in range(recipe.steps):
        lesson = rng.choices(taught, [one.weight for one in taught])[0]
        deck, every = decks[lesson.group], len(lesson.texts)
        while len(deck) < min(recipe.batch_size, every):
            deck += rng.sample(range(every), every)
        out.append((lesson.name, [lesson.texts[i] for i in deck[: recipe.batch_size]]))
        del deck[: recipe.batch_size]
    return out
