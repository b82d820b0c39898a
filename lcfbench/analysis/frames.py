"""Recorded runs as data frames: one row for each run group, one for each claim.

>>> load_summary("results/")[["task", "label", "control", "score"]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats import DELTA
from lcfbench.analysis.summary import summarise
from lcfbench.analysis.verdict_table import judged
from lcfbench.results.reader import Paths, as_paths, warn_all

if TYPE_CHECKING:
    import pandas as pd


def load_summary(paths: Paths, delta: float = DELTA) -> pd.DataFrame:
    """One row for each method, task and control of the recorded runs; see `summarise` for the columns.

    paths: results folders, run folders or parquet files. Raises UserError where nothing can be read.
    """
    found = read_run_groups(as_paths(paths))
    warn_all(found.warnings)
    return summarise(found.cells, delta)


def verdicts(paths: Paths, delta: float = DELTA) -> pd.DataFrame:
    """One row for each method and task that sends a message: gain, content and the verdict.

    delta: contents smaller than this share count as none. Raises UserError where nothing sends.
    """
    return judged(load_summary(paths, delta))
