"""planted for lm-eval: the generator of lcfbench.tasks.planted, and how a written answer is read."""

import re

from lcfbench.tasks.planted import Settings, rows
from lcfbench.tasks.planted import teaching as teaching_of


def generate(split, limit, /, *, seed=0, **options):
    """The first `limit` documents of a split, a person each."""
    return rows(split, limit, Settings(seed=seed, **options))


def teaching(**options):
    """What `lcfbench teach` teaches: every person's town."""
    return teaching_of(Settings(**options))


def dataset(**_):
    """For lm-eval on its own: the test split with default options."""
    from datasets import Dataset

    return {"test": Dataset.from_list(generate("test", None))}


def dataset_heldout(**_):
    from datasets import Dataset

    return {"test": Dataset.from_list(generate("test", None, values="held-out"))}


def score_written(doc, results):
    """lm-eval's `process_results`: the first word, after the answer's beginning if repeated, is the town."""
    text = results[0].rpartition(doc["stem"])[2]
    first = re.match(r"\W*([^\W\d_]+)", text)
    return {"exact_match": float(bool(first) and first[1].casefold() == doc["answer"].casefold())}
