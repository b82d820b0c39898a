"""Numbers that other people published, drawn hollow beside measured ones.

    from lcfbench.analysis.plots.published import published
    published("qwen3-0.6b:qwen2.5-0.5b", "openbookqa")

Their hardware, prompts and scoring are not ours: C2C's accuracies, for one, come from generated
answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lcfbench.tasks.groups import find_group, packaged_names

C2C = "arXiv 2510.03215v2"
LCF = "arXiv 2605.22863v2"
TOGETHER = " + "  # between the tasks of an average


@dataclass(frozen=True)
class Published:
    """One published number.

    task: one, or several joined by " + " for their average weighted by documents. score: a fraction.
    adapter_mb (10⁶ bytes) and ttft_ms are None where the source gives none. whole: label of the adapter
    that this one was pruned from.
    """

    pair: str
    task: str
    mode: str
    label: str
    score: float
    source: str
    metric: str = "accuracy"
    adapter_mb: float | None = None
    ttft_ms: float | None = None
    whole: str = ""

    @property
    def without_adapter(self) -> bool:
        """Whether the method has no adapter, unlike one whose size the source does not give."""
        return self.mode not in ("c2c", "lcf", "dense")


def _c2c(sharer: str, c2c_mb: float | None, **tasks: tuple[float, ...]) -> list[Published]:
    """Rows of C2C's table: (T2T, C2C), or (receiver, T2T, C2C), in percent."""
    pair, found = f"qwen3-0.6b:{sharer}", []
    for task, values in tasks.items():
        modes = ("receiver", "t2t", "c2c")[-len(values) :]
        for mode, value in zip(modes, values, strict=True):
            found.append(
                Published(
                    pair, task, mode, mode, value / 100, C2C, adapter_mb=c2c_mb if mode == "c2c" else None
                )
            )
    return found


def _hotpot(
    mode: str, label: str, f1: float, mb: float | None = None, ttft_ms: float | None = None
) -> Published:
    return Published("qwen3-0.6b:qwen3-0.6b", "hotpotqa_split", mode, label, f1 / 100, LCF, "f1", mb, ttft_ms)


def _averages() -> Iterator[Published]:
    """The published averages of the packaged groups that weight by documents, as figures do."""
    for group in map(find_group, packaged_names()):
        if group is not None and group.weighting == "documents":
            for row in group.published:
                task, label = TOGETHER.join(group.members), row.label or row.method
                facts: dict[str, Any] = {"adapter_mb": row.adapter_mb, "whole": row.whole}
                yield Published(row.pair, task, row.method, label, row.score, row.source, **facts)


NUMBERS: tuple[Published, ...] = (
    *_c2c(
        "qwen2.5-0.5b",
        955.7,
        openbookqa=(39.20, 44.00, 52.60),
        arc_challenge=(41.04, 49.48, 54.52),
        mmlu_redux=(35.53, 41.03, 42.92),
        ceval=(32.04, 35.88, 41.77),
    ),
    *_c2c(
        "llama3.2-1b",
        999.7,
        openbookqa=(41.20, 47.80),
        arc_challenge=(50.00, 53.39),
        mmlu_redux=(43.32, 44.42),
    ),
    *_c2c(
        "qwen3-4b-base",
        None,
        openbookqa=(46.40, 53.20),
        arc_challenge=(53.91, 55.39),
        mmlu_redux=(43.87, 43.95),
    ),
    *_averages(),
    _hotpot("question_only", "question only", 7.48),
    _hotpot("receiver", "receiver", 24.62),
    _hotpot("full_context", "full_context", 29.98),
    _hotpot("t2t", "t2t 50 tokens", 30.81, ttft_ms=250),
    _hotpot("t2t", "t2t 200 tokens", 32.66, ttft_ms=410),
    _hotpot("lcf", "lcf", 35.13, mb=51.7, ttft_ms=48),
)


def published(pair: str, task: str) -> list[Published]:
    """What was published for exactly this pair and task, or average; an empty list where nothing was."""
    asked = pair.lower(), set(task.split(TOGETHER))
    return [number for number in NUMBERS if (number.pair, set(number.task.split(TOGETHER))) == asked]
