"""What to measure: the settings of `lcfbench bench`. Imports no torch.

>>> BenchRecipe.merge(None, {"mode": "receiver,t2t", "prompt_tokens": "64,256"}, "bench").prompt_tokens
[64, 256]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from lcfbench.config import Settings, several, texts
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import check_known

BUDGETS = [16, 64]  # where a method has a budget and none is asked for


class BenchRecipe(Settings):
    """A grid: every method × prompt tokens × answer tokens, and × budgets where the method has one.

    task: [] is for each method the task its adapter was made for; methods without one run on all of those.
    warm_up: passes that are not timed, the one in which the work is counted among them. budget: [] is BUDGETS.
    """

    pair: str = "smollm2-135m:gemma3-270m"
    mode: list[str] = ["receiver", "t2t", "lcf"]
    task: list[str] = []
    prompt_tokens: list[int] = [64, 256]
    answer_tokens: list[int] = [1, 32]
    budget: list[int] = []
    repeats: int = Field(default=7, ge=1)
    warm_up: int = Field(default=2, ge=1)
    adapter: list[Path] = []
    options: dict[str, str] = {}
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "sdpa"
    offline: bool = False

    _lists = field_validator("mode", "task", "adapter", mode="before")(several)
    _options = field_validator("options", mode="before")(texts)

    @field_validator("prompt_tokens", "answer_tokens", "budget", mode="before")
    @classmethod
    def _lengths(cls, value: Any) -> Any:
        out = []
        for part in several([value] if isinstance(value, int) else value):
            if not str(part).isdecimal() or int(part) < 1:
                raise ValueError(
                    f"{part!r} is no number of tokens; give whole numbers from 1, separated by commas"
                )
            out.append(int(part))
        return out

    def check_names(self) -> None:
        """Names and combinations, before anything heavy is imported. Raises UserError."""
        check_known(self.pair, self.mode, self.task)
        if not (self.mode and self.prompt_tokens and self.answer_tokens):
            raise UserError("nothing to measure.", "Give --mode, --prompt-tokens and --answer-tokens.")
        if "budget" in self.options:
            raise UserError("-o budget is one length of the grid.", "Use --budget, which takes several.")
