"""splitfacts_several for lm-eval: the generator of lcfbench.tasks.splitfacts_several."""

from lcfbench.tasks.splitfacts_several import Settings, rows


def generate(split, limit, /, *, seed=0, **options):
    """The first `limit` documents of a split: of train any number, else at most the option `n`."""
    settings = Settings(seed=seed, **options)
    most = settings.n if limit is None or split != "train" else limit
    return rows(split, most if limit is None else min(limit, most), settings)


def dataset(**_):
    """For lm-eval on its own: the test split with default options."""
    from datasets import Dataset

    return {"test": Dataset.from_list(generate("test", None))}
