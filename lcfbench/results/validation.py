"""What a recorded run must look like before anything is concluded from it, so that one broken file spoils nothing for the rest.

    from lcfbench.results.validation import sound_manifest, sound_columns
    manifest, warnings = sound_manifest(read_manifest(folder), folder)

A field of a manifest that has another shape is left out and named; rows whose scores cannot be scores make their file unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from lcfbench.provenance import digest

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = list[FiniteFloat]


def _named(value: dict[str, Any]) -> dict[str, Any]:
    digest(value)  # ValueError for what cannot be told from others: NaN
    return value


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Environment(_Open):
    libraries: dict[str, str] | None = None
    git: dict[str, Any] | None = None


class _Sitting(_Open):
    environment: _Environment | None = None


class _Gates(_Open):
    layers: list[int]
    key: Numbers
    value: Numbers

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if not len(self.layers) == len(self.key) == len(self.value):
            raise ValueError("lists of different lengths")
        return self


class _Calibration(_Open):
    layers: list[int] | None = None
    importance: Numbers | None = None
    scores: Numbers | None = None


class _Manifest(_Open):
    identity: Annotated[dict[str, Any], AfterValidator(_named)] | None = None
    state: str | None = None
    chance: FiniteFloat | None = None
    environment: _Environment | None = None
    sittings: list[_Sitting] | None = None
    recipe: dict[str, Any] | None = None
    sources: dict[str, str | None] | None = None
    dropped: dict[str, int] | None = None
    gates: _Gates | None = None
    calibration: _Calibration | None = None
    adapter: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    sends: bool | None = None


def sound_manifest(manifest: Mapping[str, Any], place: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest without fields of a shape that no version writes, and a sentence for each of them."""
    kept = dict(manifest)
    try:
        _Manifest.model_validate(kept)
    except ValidationError as error:
        bad = {
            str(e["loc"][0]): f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ').lower()}" for e in error.errors()
        }
        for name in bad:
            kept.pop(name, None)
        return kept, [f"{place}: manifest field {told} (left out)" for told in bad.values()]
    return kept, []


def sound_columns(table: pa.Table, place: Path) -> tuple[pa.Table, list[str]]:
    """The table with times that are none (negative, infinite) taken out, and a sentence if there were any.

    Raises ValueError for scores outside 0 to 1: nothing can be concluded from such a file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if "score" in table.column_names:
        known = pc.drop_null(table["score"])
        strange = pc.invert(pc.and_(pc.is_finite(known), pc.and_(pc.greater_equal(known, 0.0), pc.less_equal(known, 1.0))))
        if count := pc.sum(strange).as_py():
            raise ValueError(f"{count} scores are not between 0 and 1")
    warnings = []
    for name in [n for n in table.column_names if n.endswith("_ms")]:
        good = pc.and_(pc.is_finite(table[name]), pc.greater_equal(table[name], 0.0))
        if count := pc.sum(pc.invert(good)).as_py():
            mended = pc.if_else(good, table[name], pa.scalar(None, pa.float64()))
            table = table.set_column(table.column_names.index(name), name, mended)
            warnings.append(f"{place}: {count} values of {name} are no times (left out)")
    return table, warnings
