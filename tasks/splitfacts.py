"""splitfacts for lm-eval: the generator of lcfbench.tasks.splitfacts, and how a written answer is read."""

import re

from lcfbench.tasks.splitfacts import Settings, rows


def generate(split, limit, /, *, seed=0, **options):
    """The first `limit` documents of a split: of train any number, else at most the option `n`."""
    settings = Settings(seed=seed, **options)
    most = settings.n if limit is None or split != "train" else limit
    return rows(split, most if limit is None else min(limit, most), settings)


def dataset(**_):
    """For lm-eval on its own: the test split with default options."""
    from datasets import Dataset

    return {"test": Dataset.from_list(generate("test", None))}


def dataset_heldout(**_):
    from datasets import Dataset

    return {"test": Dataset.from_list(generate("test", None, words="held-out"))}


def score_written(doc, results):
    """lm-eval's `process_results`: the answer's last place (or box, for one hop) is the right one."""
    named = re.findall(r"\b(?:is in|goes to) (?:the )?([\w' -]+)", results[0]) or re.findall(
        r"([\w'-]+) box", results[0]
    )
    return {"exact_match": float(bool(named) and named[-1].strip().casefold() == doc["answer"].casefold())}
