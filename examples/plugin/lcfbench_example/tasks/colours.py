"""Rows of the task `colours`: who has the ball of which colour. Nothing is downloaded."""

import random

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hans", "Ida", "Jon", "Kim", "Leo")
COLOURS = ("red", "blue", "green", "white", "black", "brown")
SPLIT_SIZE = 40


def rows(split, limit, /, *, seed=0, people=3):
    """The first `limit` documents of a split; each depends on seed, split and its number alone."""
    count = SPLIT_SIZE if limit is None else limit if split == "train" else min(limit, SPLIT_SIZE)
    return [row(f"{seed}-{split}-{i}", people) for i in range(count)]


def row(ident, people):
    rng = random.Random(f"colours-{ident}")
    names, colours = rng.sample(NAMES, people), rng.sample(COLOURS, people)
    notes = " ".join(f"{name} has a {colour} ball." for name, colour in zip(names, colours, strict=True))
    asked = rng.randrange(people)
    question = f"Question: Which colour is the ball of {names[asked]}?\n"
    return {
        "id": ident,
        "receiver": question,
        "sharer": f"Notes: {notes}\n{question}",
        "full": f"Notes: {notes}\n{question}",
        "noted": f"Notes: <<note>>\n{question}",
        "options": colours,
        "gold": asked,
    }
