"""splitfacts: generated two-hop questions whose evidence is split between two models.

The sharer knows in which box a key is, the receiver knows in which city each box is; the question asks
for the city. Names are invented, so nothing can be memorised. The key's box is drawn evenly among the
receiver's boxes, so the receiver's half alone is at chance. One word out of thousands must cross (the
box's), and there is a vocabulary that adapters train on and one that they never see.

>>> from lcfbench.tasks.splitfacts import Settings, rows
>>> print(rows("test", 1, Settings())[0]["sharer"].partition("\\n")[0])
Notes: The key of Boma is in the variant box. Zalepi likes bread.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError

WORDS = Path(__file__).with_name("words.txt")
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeio"]
# each is one token, with its space, in the vocabularies of both models of the embedded pair
_CITIES = (
    "Amsterdam Athens Baghdad Barcelona Berlin Boston Brussels Budapest Cairo Chicago Dallas Delhi Denver "
    "Dublin Florence Geneva Glasgow Hamburg Havana Houston Lima Lisbon London Madrid Manchester Manila "
    "Melbourne Milan Montreal Moscow Mumbai Munich Naples Oslo Paris Philadelphia Prague Rome Seattle "
    "Seoul Shanghai Singapore Stockholm Sydney Tokyo Toronto Vancouver Venice Vienna Warsaw"
)
CITIES = tuple(_CITIES.split())
_SAID = {
    "{} works as a {}.": "baker carpenter dentist doctor driver farmer lawyer nurse painter pilot sailor "
    "teacher",
    "{} likes {}.": "bread cheese chocolate coffee honey milk pasta rice soup tea",
    "{} has a {}.": "bird cat cow dog goat horse parrot rabbit sheep turtle",
    "{} plays the {}.": "cello drums flute guitar harp organ piano trumpet violin",
}
_TRAITS = {form: words.split() for form, words in _SAID.items()}
_FILLERS = [
    f"The {noun} was {state}."
    for noun in ("morning", "evening", "street", "door")
    for state in ("cold", "quiet", "wet")
]
_KEY = ("The key of {name} is in the {word} box.",)
_BOX = ("The {word} box is in {city}.",)
_KEY_OTHERWISE = (
    "{name} keeps the key in the {word} box.",
    "You will find the key of {name} in the {word} box.",
    "Inside the {word} box lies the key of {name}.",
)
_BOX_OTHERWISE = (
    "You will find the {word} box in {city}.",
    "In {city} stands the {word} box.",
    "{city} is where the {word} box stands.",
)
_QUESTION = {
    1: "In which box is the key of {}?",
    2: "In which city is the key of {}?",
    3: "Where does the train from the city with the key of {} go?",
}
_CANDIDATES = 24  # answer_set=all


@dataclass(frozen=True)
class Settings:
    """The settings of a document; every field is a task option.

    seed: another seed gives other documents. n: documents in the test and validation splits.
    hops: 1 asks for the box (the sharer alone knows it), 2 for its city, 3 for the end of the train from
        that city.
    boxes, keys: named in the receiver's and in the sharer's notes; the question asks for one key.
    distractors, receiver_distractors: sentences beside the point in either notes.
    distance: sentences between notes and question.
    words: box words, `trained` (4,000), `held-out` (200), or a number N (the first N of `trained`).
    phrasing: `template`, or `paraphrase` (the notes in other words; question and answer stay).
    answer_set: `notes` ranks the words and cities of the receiver's notes, `all` ranks 24 of each.
    """

    seed: int = 0
    n: int = 500
    hops: int = 2
    boxes: int = 3
    keys: int = 1
    distractors: int = 1
    receiver_distractors: int = 0
    distance: int = 0
    words: str = "trained"
    phrasing: str = "template"
    answer_set: str = "notes"

    def __post_init__(self) -> None:
        low = {"n": 1, "hops": 1, "boxes": 2, "keys": 1}
        high = {"hops": 3, "boxes": _CANDIDATES, "keys": self.boxes, "distance": len(_FILLERS)}
        for name in ("n", "hops", "boxes", "keys", "distractors", "receiver_distractors", "distance"):
            value, least, most = getattr(self, name), low.get(name, 0), high.get(name)
            if value < least or (most is not None and value > most):
                step = f"Give {least} or more{f', at most {most}' if most else ''}."
                raise UserError(f"splitfacts: {name}={value}.", step)
        for name, known in (("phrasing", ("template", "paraphrase")), ("answer_set", ("notes", "all"))):
            if getattr(self, name) not in known:
                raise UserError(f"splitfacts: {name}={getattr(self, name)}.", f"Give {' or '.join(known)}.")
        if len(vocabulary(self.words)) < self.boxes:
            what = f"splitfacts: {self.boxes} boxes need as many words, words={self.words}."
            raise UserError(what, "Give a larger number.")


@cache
def vocabulary(words: str) -> tuple[str, ...]:
    """The box words of `trained`, `held-out`, or the first N trained ones. Raises UserError."""
    sections: dict[str, list[str]] = {}
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sections[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            sections[list(sections)[-1]].append(line)
    if words in sections:
        return tuple(sections[words])
    if words.isdigit() and 0 < int(words) <= len(sections["trained"]):
        return tuple(sections["trained"][: int(words)])
    step = f"Give trained, held-out or a number up to {len(sections['trained'])}."
    raise UserError(f"splitfacts: words={words}.", step)


def rows(split: str, n: int, settings: Settings) -> list[dict[str, Any]]:
    """The first `n` documents of a split; each depends on seed, split and its number alone."""
    return [_row(f"{settings.seed}-{split}-{i}", settings) for i in range(n)]


def _row(ident: str, s: Settings) -> dict[str, Any]:
    rng = random.Random(f"splitfacts-{ident}")  # a str seed does not depend on the process's hash seed
    names = _invent(rng, s.keys + s.distractors + s.receiver_distractors)
    words = rng.sample(vocabulary(s.words), s.boxes)
    cities = rng.sample(CITIES, s.boxes * (2 if s.hops == 3 else 1))
    cities, ends = cities[: s.boxes], cities[s.boxes :]
    asked = rng.randrange(s.keys)
    held = rng.sample(range(s.boxes), s.keys)  # the box of each key; drawn after words and cities, evenly
    gold = held[asked]

    plain = s.phrasing == "template"
    key, box = (_KEY, _BOX) if plain else (_KEY_OTHERWISE, _BOX_OTHERWISE)
    theirs = [rng.choice(key).format(name=name, word=words[b]) for name, b in zip(names, held, strict=False)]
    theirs += [_trait(rng, name) for name in names[s.keys : s.keys + s.distractors]]
    mine = [rng.choice(box).format(word=w, city=c) for w, c in zip(words, cities, strict=True)]
    mine += [f"The train from {c} goes to {e}." for c, e in zip(cities, ends, strict=False)]
    mine += [_trait(rng, name) for name in names[s.keys + s.distractors :]]
    rng.shuffle(theirs)
    rng.shuffle(mine)
    fillers = rng.sample(_FILLERS, s.distance)

    name = names[asked]
    question, stem = _QUESTION[s.hops].format(name), f"The key of {name} is in the"
    steps = [_step(rng, words, gold, vocabulary(s.words), s.answer_set, "")]
    if s.hops > 1:
        steps.append(_step(rng, cities, gold, CITIES, s.answer_set, " {0} box. The {0} box is in"))
    if s.hops > 2:
        steps.append(_step(rng, ends, gold, CITIES, s.answer_set, " {1}. The train from {1} goes to"))

    def shown(notes: list[str]) -> str:
        return f"Notes: {' '.join(notes + fillers)}\nQuestion: {question}\nAnswer:"

    chains = list(zip(words, *([cities] if s.hops > 1 else []), *([ends] if s.hops > 2 else []), strict=True))
    last = steps[-1]["choices"]
    reached = {chain[-1]: chain for chain in chains}
    texts = [c.strip() for c in last]
    chosen = [reached.get(text, (*chains[i % s.boxes][:-1], text)) for i, text in enumerate(texts)]
    return {
        "id": ident,
        "receiver": shown(mine),
        "sharer": shown(theirs),
        "full": shown(theirs + mine),
        "noted": shown(["<<note>>", *mine]),
        "stem": stem,
        "steps": steps,
        # complete answers, one a choice of the last step: lm-eval ranks them when it runs the task alone
        "answers": [_sentence(chain) for chain in chosen],
        "gold": steps[-1]["gold"],
        "answer": last[steps[-1]["gold"]].strip(),
    }


def _step(
    rng: random.Random, named: list[str], gold: int, pool: Any, answer_set: str, lead: str
) -> dict[str, Any]:
    right = named[gold]
    ranked = list(named)
    if answer_set == "all":
        others = [x for x in rng.sample(pool, min(len(pool), 2 * _CANDIDATES)) if x not in named]
        ranked += others[: _CANDIDATES - len(named)]
    rng.shuffle(ranked)
    return {"choices": [f" {x}" for x in ranked], "gold": ranked.index(right), "lead": lead}


def _sentence(chain: tuple[str, ...]) -> str:
    text = f"{chain[0]} box."
    if len(chain) > 1:
        text += f" The {chain[0]} box is in {chain[1]}."
    if len(chain) > 2:
        text += f" The train from {chain[1]} goes to {chain[2]}."
    return text


def _trait(rng: random.Random, name: str) -> str:
    form = rng.choice(list(_TRAITS))
    return form.format(name, rng.choice(_TRAITS[form]))


def _invent(rng: random.Random, n: int) -> list[str]:
    names: dict[str, None] = {}  # a set that keeps its order
    while len(names) < n:
        names["".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3)))).capitalize()] = None
    return list(names)
