"""Compares two tables of `lcfbench bench`, row by row, with intervals. Imports no torch.

>>> a, b = read_table(Path("a.json")), read_table(Path("b.json"))
>>> check_comparable(a, b)
>>> [(row["label"], row["ratio"], row["low"], row["high"]) for row in compared(a, b) if row["time"] == "ttft"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcfbench.errors import UserError
from lcfbench.parsing import load_json

TIMES = ("ttft", "tpot", "ttea", "sharer", "message", "fuse", "prefill", "decode")
DRAWS, SEED = 4000, 0
Ms = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Key = tuple[str, str, int, int, int | None]


class Row(BaseModel):
    """A row of a table, with the times of its repeats in milliseconds."""

    model_config = ConfigDict(extra="ignore")

    label: str
    task: str
    prompt_tokens: int
    answer_tokens: int
    budget: int | None = None
    times: dict[str, list[Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]]]

    @property
    def key(self) -> Key:
        return self.task, self.label, self.prompt_tokens, self.answer_tokens, self.budget


class Measured(BaseModel):
    """A table that `lcfbench bench` wrote."""

    model_config = ConfigDict(extra="ignore")

    pair: str
    dtype: str
    attention: str
    random_weights: bool
    wire: str | None = None
    machine: dict[str, Any]
    models: dict[str, dict[str, str]]
    matmul_ms: dict[str, Ms] | None = None
    rows: list[Row]

    @property
    def conditions(self) -> dict[str, str]:
        """All that must be equal for two tables to be comparable."""
        return {
            "weights": "random" if self.random_weights else "real",
            "pair": self.pair,
            "dtype": self.dtype,
            "attention": self.attention,
            "wire": self.wire or "none",
            **{name: str(self.machine.get(name, "none")) for name in ("cpu", "gpu", "device", "threads")},
        }


def read_table(path: Path) -> Measured:
    """Reads a file of `lcfbench bench --out`. Raises UserError for any other."""
    step = "Name a file that `lcfbench bench --out FILE` wrote."
    raw = load_json(path, "table")
    if raw.get("benchmark") != "lcfbench bench":
        raise UserError(f"{path} is no table of `lcfbench bench`.", step)
    try:
        table = Measured.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} cannot be compared: {place}: {first['msg'].lower()}.", step) from error
    if len({row.key for row in table.rows}) < len(table.rows):
        raise UserError(f"{path} has two rows of one name.", step)
    return table


def check_comparable(a: Measured, b: Measured) -> None:
    """Raises UserError where two tables were measured under different conditions."""
    pairs = zip(a.conditions.items(), b.conditions.values(), strict=True)
    if other := [f"{name} {mine} against {theirs}" for (name, mine), theirs in pairs if mine != theirs]:
        what = f"these tables are not comparable: {'; '.join(other)}"
        raise UserError(f"{what}.", "Measure both alike, or give --anyway.")


def compared(a: Measured, b: Measured) -> list[dict[str, Any]]:
    """B's median ÷ A's for each row and time that both have, with the bootstrap's 95 % interval.

    beside_receiver: the same of the ratio to the receiver alone, at equal lengths; None without one.
    Raises UserError where no row is in both.
    """
    ours, theirs = {row.key: row for row in a.rows}, {row.key: row for row in b.rows}
    both = [key for key in ours if key in theirs]
    if not both:
        raise UserError("these tables have no row in common.", "Measure the same methods and lengths.")
    random, found = np.random.default_rng(SEED), []
    for key in both:
        task, label, prompt, answer, budget = key
        alone = (task, "receiver", prompt, answer, None)
        for name in TIMES:
            pair = [rows[key].times.get(name, []) for rows in (ours, theirs)]
            if not all(map(any, pair)):
                continue
            drawn = [_medians(values, random) for values in pair]
            medians = [float(np.median(values)) for values in pair]
            row = {"task": task, "label": label, "prompt_tokens": prompt, "answer_tokens": answer}
            row |= {"budget": budget, "time": name, "a_ms": medians[0], "b_ms": medians[1]}
            row |= _ratio(medians, drawn) | {"beside_receiver": None}
            if alone in both and alone != key:
                base = [rows[alone].times.get(name, []) for rows in (ours, theirs)]
                if all(map(any, base)):
                    shares = [m / float(np.median(v)) for m, v in zip(medians, base, strict=True)]
                    drawn = [d / _medians(v, random) for d, v in zip(drawn, base, strict=True)]
                    row["beside_receiver"] = _ratio(shares, drawn)
            found.append(row)
    return found


def only_in_one(a: Measured, b: Measured) -> tuple[int, int]:
    """The numbers of rows that only A and only B have."""
    ours, theirs = {row.key for row in a.rows}, {row.key for row in b.rows}
    return len(ours - theirs), len(theirs - ours)


def _medians(values: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """The medians of resampled repeats."""
    kept = np.asarray(values)
    return np.median(kept[random.integers(0, len(kept), (DRAWS, len(kept)))], axis=1)


def _ratio(medians: Sequence[float], drawn: Sequence[np.ndarray]) -> dict[str, float]:
    low, high = np.quantile(drawn[1] / drawn[0], (0.025, 0.975))
    named = {"ratio": medians[1] / medians[0], "low": float(low), "high": float(high)}
    return {name: round(value, 4) for name, value in named.items()}
