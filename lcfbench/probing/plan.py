"""How the minutes are spent: from measured speeds to documents, steps and the width of the answer.

>>> plan(Speeds(0.1, 0.1, 2.0, 0.1, 5.0), seconds=1800, available=500, examples=5000).steps
400
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lcfbench.controls.assignment import NEIGHBOURHOOD

MOST_DOCUMENTS = 200  # show effects of about 10 points
FEWEST_DOCUMENTS = 32  # show effects of about 30 points: fewer are asked only where the time is out
MOST_STEPS = 400  # the shipped adapters had as many, or fewer
FEWEST_STEPS = 60  # of 8 examples: fewer have taught no adapter here anything
ENOUGH_STEPS = 160  # of 8 examples taught LCF-X a word (ablation of the training settings)
EXAMPLES = 8  # a step
EVALUATIONS = 4  # on dev documents, in a training
DEV_DOCUMENTS = 32
SHARES = (0.45, 0.3, 0.15)  # of the time for asking; the first that leaves enough steps
SPARE = 0.15  # of the time: a busy machine, what was not measured
ALONE = 10  # documents in whose time the warm-up and the latency of a run are measured
UNTRAINED = 0.7  # of the time for asking where nothing is trained


@dataclass(frozen=True)
class Speeds:
    """Seconds, measured on this machine.

    baseline: a document under receiver, sharer, full context and text with both controls. final: a
    document under the trained method with both controls. step: one training step. dev: a document
    of a dev evaluation. fixed: loading models and starting a training.
    """

    baseline: float
    final: float
    step: float
    dev: float
    fixed: float


@dataclass(frozen=True)
class Plan:
    """Documents that are asked, training steps (0: none), and the seconds that each is expected to take."""

    documents: int
    steps: int
    dev_documents: int
    baseline_seconds: float
    training_seconds: float
    final_seconds: float

    def record(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def plan(speeds: Speeds, *, seconds: float, available: int, examples: int, limit: int | None = None) -> Plan:
    """Divides the time that is left. available: documents that may be asked. examples: to learn from.

    Where fewer than `FEWEST_STEPS` would fit, nothing is trained and the time goes into asking.
    """
    usable = max(seconds * (1 - SPARE), 0.0)
    most = min(available, limit or MOST_DOCUMENTS)
    best: Plan | None = None
    if examples:
        for share in SHARES:
            n = _documents(share * usable / (speeds.baseline + speeds.final) - ALONE, most, limit)
            found = _with_training(speeds, usable, n)
            if found.steps >= FEWEST_STEPS and (best is None or found.steps > best.steps):
                best = found
            if found.steps >= ENOUGH_STEPS:
                break
    if best is not None:
        return best
    n = _documents((UNTRAINED * usable - speeds.fixed) / speeds.baseline - ALONE, most, limit)
    return Plan(n, 0, 0, (n + ALONE) * speeds.baseline, 0.0, 0.0)


def _documents(fit: float, most: int, limit: int | None) -> int:
    """Documents in whole neighbourhoods of a derangement; at least one of them."""
    if limit is not None:
        return most
    n = int(min(max(fit, 0), most))
    least = min(most, NEIGHBOURHOOD)
    return most if n == most else max(n - n % NEIGHBOURHOOD, least)


def _with_training(speeds: Speeds, usable: float, n: int) -> Plan:
    dev = max(min(DEV_DOCUMENTS, n), 2)
    judging = EVALUATIONS * dev * speeds.dev
    asked = n + ALONE
    left = usable - asked * (speeds.baseline + speeds.final) - speeds.fixed - judging
    steps = max(min(MOST_STEPS, int(left / speeds.step)), 0)
    return Plan(n, steps, dev, asked * speeds.baseline, steps * speeds.step + judging, asked * speeds.final)


def replan(planned: Plan, speeds: Speeds, *, took: float, seconds: float) -> tuple[Plan, float]:
    """Returns the plan with the steps that still fit, and how many times slower the machine has been.

    took: seconds that the documents without training took. seconds: that are left.
    """
    slower = max(took / planned.baseline_seconds, 1.0)
    usable = seconds * (1 - SPARE) - slower * (planned.final_seconds + speeds.fixed)
    judging = EVALUATIONS * planned.dev_documents * speeds.dev
    steps = min(planned.steps, int((usable / slower - judging) / speeds.step))
    steps = steps if steps >= FEWEST_STEPS else 0
    return replace(planned, steps=steps, training_seconds=steps * speeds.step + judging), slower
