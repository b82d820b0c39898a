"""planted: invented people whose home town a taught sharer knows; both models read the same question.

Nothing in a prompt tells the town, so a receiver and an untaught sharer are at chance by construction.
People and towns never change: a model is taught them once. The seed draws the wrong towns and the order.

>>> from lcfbench.tasks.planted import Settings, rows
>>> row = rows("test", 1, Settings())[0]
>>> row["receiver"].endswith("\\nAnswer:"), len(row["answers"])
(True, 4)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lcfbench.errors import UserError
from lcfbench.tasks.document import NOTE, Phrasing, View

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeio"]
# each is one token, with its space, in the vocabularies of both models of the embedded pair
_CITIES = (
    "Amsterdam Athens Baghdad Barcelona Berlin Boston Brussels Budapest Cairo Chicago Dallas Delhi Denver "
    "Dublin Florence Geneva Glasgow Hamburg Havana Houston Lima Lisbon London Madrid Manchester Manila "
    "Melbourne Milan Montreal Moscow Mumbai Munich Naples Oslo Paris Philadelphia Prague Rome Seattle Seoul "
    "Shanghai Singapore Stockholm Sydney Tokyo Toronto Vancouver Venice Vienna Warsaw Adelaide Albany "
    "Alexandria Atlanta Auckland Austin Baltimore Beijing Belfast Bern Birmingham Bonn Boulder Brisbane "
    "Bristol Buffalo Calgary Cambridge Canberra Charleston Charlotte Cincinnati Cleveland Cologne Columbus "
    "Copenhagen Damascus Darwin Detroit Dresden Dubai Durham Edinburgh Frankfurt Hartford Helsinki Hiroshima "
    "Honolulu Hyderabad Indianapolis Istanbul Jerusalem Kabul Kiev Kingston Kyoto Lancaster Leeds Leipzig "
    "Lexington Lincoln Liverpool Louisville Lyon Madison Memphis Miami Milwaukee Minneapolis Nagasaki "
    "Nairobi Nashville Newcastle Nottingham Nuremberg Oakland Omaha Orlando Ottawa Oxford Panama Perth "
    "Phoenix Pittsburgh Plymouth Portland Princeton Providence Quebec Raleigh Richmond Rochester Sacramento "
    "Salem Savannah Sheffield Sofia Southampton Springfield Syracuse Tampa Tehran Toledo Tucson Tunis "
    "Wellington Winnipeg Worcester Wuhan York Zurich"
)
_HELD, _HELD_VALIDATION = 40, 10  # cities kept from adapters, and those of them for validation
# the parts of every 32 people, in their order
_SLOTS = [*(["train"] * 20 + ["validation"] * 2 + ["test"] * 6), *(["heldout"] * 3 + ["heldout-validation"])]
_MOST = 32_768  # people; there are 175,616 names
# question and beginning of the answer
_FORMS = {
    "live": ("Where does {} live?", "{} lives in"),
    "town": ("What is the home town of {}?", "The home town of {} is"),
    "city": ("In which city is the home of {}?", "The home of {} is in"),
}
PHRASINGS = (*_FORMS, "mixed")
_PARTS = {
    "trained": {"train": "train", "validation": "validation", "test": "test"},
    "held-out": {"validation": "heldout-validation", "test": "heldout"},
}


@dataclass(frozen=True)
class Settings:
    """The settings of a document; every field is a task option.

    seed: draws the wrong towns and the order. people: the world is its first `people` people, so that a
        model that was taught a larger world knows a smaller one.
    choices: towns that are ranked. phrasing: `live` and `town` are taught, `city` is not; `mixed` takes
        them in turn.
    n: documents in the test and validation splits; 0 takes all people of the split.
    values: `trained`, towns that adapters see as answers, or `held-out`, which they do not.
    """

    seed: int = 0
    people: int = 1024
    choices: int = 4
    phrasing: str = "live"
    n: int = 0
    values: str = "trained"

    def __post_init__(self) -> None:
        for name, least, most in (("people", 1, _MOST), ("n", 0, _MOST)):
            if not least <= (value := getattr(self, name)) <= most:
                raise UserError(f"planted: {name}={value}.", f"Give {least} to {most:,}.")
        for name, known in (("phrasing", PHRASINGS), ("values", tuple(_PARTS))):
            if (text := getattr(self, name)) not in known:
                raise UserError(f"planted: {name}={text}.", f"Give {' or '.join(known)}.")
        most = len(cities(_PARTS[self.values]["test"]))
        if not 2 <= self.choices <= most:
            what = f"planted: choices={self.choices}, and there are {most} {self.values} towns."
            raise UserError(what, f"Give 2 to {most}.")


@cache
def cities(part: str) -> tuple[str, ...]:
    """The towns that people of a part may live in."""
    drawn = _CITIES.split()
    random.Random("planted-values").shuffle(drawn)
    if part == "heldout":
        return tuple(drawn[-_HELD:-_HELD_VALIDATION])
    return tuple(drawn[-_HELD_VALIDATION:] if part == "heldout-validation" else drawn[:-_HELD])


@cache
def world(people: int) -> dict[str, tuple[tuple[str, str], ...]]:
    """The first `people` people of each part, as (name, town); always the same."""
    rng, names = random.Random("planted-people"), dict[str, str]()  # name → part
    while len(names) < people:
        name = "".join(rng.choice(_SYLLABLES) for _ in range(3)).capitalize()
        names.setdefault(name, _SLOTS[len(names) % len(_SLOTS)])
    return {
        part: tuple((name, _town(name, part)) for name, its in names.items() if its == part)
        for part in dict.fromkeys(_SLOTS)
    }


def _town(name: str, part: str) -> str:
    # a str seed does not depend on the process's hash seed
    return random.Random(f"planted-{name}").choice(cities(part))


def rows(split: str, limit: int | None, settings: Settings) -> list[dict[str, Any]]:
    """The first `limit` documents of a split: each person once. Raises UserError where there are none."""
    part = _PARTS[settings.values].get(split)
    if part is None:
        what = f"planted: values={settings.values} has no {split} split."
        raise UserError(what, "Adapters train on values=trained, the task planted.")
    people = list(world(settings.people)[part])
    most = settings.n if split != "train" and settings.n else len(people)
    if not people or most > len(people):
        asked = f"n={most}, and {len(people)}" if people else "none"
        what = f"planted: {asked} of people={settings.people} are in the {split} split."
        raise UserError(what, "Raise people, or lower n." if people else "Raise people.")
    pool = cities(part)
    if settings.choices > len(pool):
        what = f"planted: choices={settings.choices}, and the {split} split has {len(pool)} towns."
        raise UserError(what, f"Give 2 to {len(pool)}.")
    random.Random(f"planted-order-{settings.seed}-{part}").shuffle(people)
    wanted = people[: most if limit is None else min(limit, most)]
    return [_row(part, i, name, town, settings) for i, (name, town) in enumerate(wanted)]


def teaching(settings: Settings) -> list[Phrasing]:
    """All people in every wording: those of the test too, for the sharer has to know them.

    Fusing stops before the last token of a prompt, so the town has to be known at several of its tokens:
    the question alone and the bare stem are taught beside the whole.
    """
    people = [(name, f" {town}") for part in world(settings.people).values() for name, town in part]
    wordings: dict[str, tuple[int, Callable[[str], View]]] = {
        "live": (4, lambda name: _view("live", name)),
        "stem": (4, lambda name: View(_FORMS["live"][1].format(name))),
        "town": (1, lambda name: _view("town", name)),
        "answer": (1, lambda name: View(_view("live", name).user)),
        "city": (0, lambda name: _view("city", name)),
    }
    return [
        Phrasing(wording, weight, tuple((view(name), town) for name, town in people))
        for wording, (weight, view) in wordings.items()
    ]


def _view(phrasing: str, name: str) -> View:
    question, stem = _FORMS[phrasing]
    return View(f"Question: {question.format(name)}\nAnswer:", stem.format(name))


def _row(part: str, number: int, name: str, town: str, s: Settings) -> dict[str, Any]:
    rng = random.Random(f"planted-{s.seed}-{name}")
    ranked = [city for city in cities(part) if city != town]
    rng.shuffle(ranked)
    ranked = [town, *ranked[: s.choices - 1]]
    rng.shuffle(ranked)
    view = _view(s.phrasing if s.phrasing in _FORMS else list(_FORMS)[number % len(_FORMS)], name)
    gold = ranked.index(town)
    return {
        "id": f"{part}-{name}",
        "receiver": view.user,
        "noted": f"Notes: {NOTE}\n{view.user}",
        "stem": view.prefix,
        "steps": [{"choices": [f" {city}" for city in ranked], "gold": gold, "lead": ""}],
        "answers": ranked,
        "gold": gold,
        "answer": town,
    }
