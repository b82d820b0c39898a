"""One description of a run: YAML < `LCFBENCH_*` < flags.

>>> recipe = Recipe.merge(Path("recipe.yaml"), {"limit": 100})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from lcfbench.config import Settings, several, texts
from lcfbench.errors import UserError, unknown
from lcfbench.tasks.document import Scoring


def check_known(pair: str, modes: list[str], tasks: list[str]) -> None:
    """A pair, methods and tasks by name, before anything heavy is imported. Raises UserError with the nearest names."""
    from lcfbench.registry import method_names
    from lcfbench.sources.models import split_pair
    from lcfbench.tasks.yaml_files import task_names

    split_pair(pair)
    for kind, names, known in (("method", modes, method_names()), ("task", tasks, task_names())):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known, f"lcfbench ls {kind}s")


class Recipe(Settings):
    """What to run. Defaults are those of the command line.

    seed: what is drawn: documents, senders, noise. seeds: several of them in its place; what draws nothing is run with the first one only.
    """

    pair: str = "smollm2-135m:gemma3-270m"
    mode: list[str] = ["receiver", "lcf"]
    task: list[str] = ["splitfacts"]
    control: list[str] = ["matched"]
    scoring: Scoring | None = None
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
    seeds: list[int] = []
    adapter: list[Path] = []
    options: dict[str, str] = {}
    task_options: dict[str, str] = {}
    batch_size: int = Field(default=16, ge=1)
    latency_documents: int = Field(default=5, ge=0)
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "sdpa"
    out: Path = Path("results")
    offline: bool = False
    fresh: bool = False

    _lists = field_validator("mode", "task", "control", "adapter", mode="before")(several)
    _seeds = field_validator("seeds", mode="before")(
        lambda value: several([value] if isinstance(value, int) else value)
    )
    _options = field_validator("options", "task_options", mode="before")(texts)

    @field_validator("attention")
    @classmethod
    def _attention(cls, value: str) -> str:
        if value not in {"sdpa", "eager", "flash_attention_2"}:
            raise ValueError("use sdpa, eager or flash_attention_2")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("seeds") and "seed" in given:
            raise UserError(
                f"seed {given['seed']} and seeds {given['seeds']} are both given.", "Leave one of them out."
            )
        return given

    @property
    def every_seed(self) -> list[int]:
        """One or more, the first one first."""
        return list(dict.fromkeys(self.seeds)) or [self.seed]

    def check_names(self) -> None:
        """Every name is checked before anything heavy is imported or loaded. Raises UserError."""
        from lcfbench.controls.names import check_control
        from lcfbench.registry import method_names

        check_known(self.pair, self.mode, self.task)
        for control in self.control:
            check_control(control)
        if not (self.mode and self.task and self.control):
            raise UserError(
                "nothing to run.", f"Give --mode ({', '.join(method_names())}), --task and --control."
            )
