"""The folders of oracle runs. Imports no torch.

An oracle measures before any training how much could be gained: `enrich` puts into a model's cache
the entries that it writes when it has read more; `transform` fits a linear map between the caches
of two models. Each leaves a folder `results/oracle/<name>-<digest>/` with manifest.json,
rows.parquet and plots.

>>> run = OracleRun.of(Path("results"), "enrich", identity)
>>> if not run.finished(): run.keep({"rows": rows}, identity, {"documents": 64})
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.evaluation.identity import BEHAVIOUR, versions
from lcfbench.files import locked, now, write, write_json, writing
from lcfbench.provenance import digest, environment
from lcfbench.results.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.models.causal_lm import CausalLM
    from lcfbench.oracle.recipe import OracleSettings

FORMAT = 1


def conditions(settings: OracleSettings) -> dict[str, Any]:
    """Returns the settings that every oracle run has in its identity.

    Raises UserError for a device or dtype that is not there.
    """
    from lcfbench.models.dtypes import pick_device, pick_dtype

    device = pick_device(settings.device)
    dtype = str(pick_dtype(settings.dtype, device)).removeprefix("torch.")
    trusted = {"trust_remote_code": True} if settings.trust_remote_code else {}
    return (
        trusted
        | {"dtype": dtype, "device": device.type, "versions": versions(), "behaviour": BEHAVIOUR}
        | settings.model_dump(include={"seed", "attention", "batch_size"})
        | ({"attention": "sdpa"} if settings.attention == "auto" else {})  # which says what ran, is recorded
    )


def circumstances(settings: OracleSettings, began: float, lm: CausalLM) -> dict[str, Any]:
    """Returns facts for the manifest: seconds since `began` (perf_counter), settings, machine."""
    from torch import get_num_threads

    return {
        "seconds": round(time.perf_counter() - began, 1),
        "settings": settings.model_dump(mode="json"),
        "environment": environment(str(lm.device), get_num_threads()),
        "attention": lm.attention,
    }


@dataclass(frozen=True)
class OracleRun:
    """The folder of one oracle run. Equal identities have equal folders."""

    folder: Path

    @classmethod
    def of(cls, out: Path, name: str, identity: Mapping[str, Any]) -> OracleRun:
        """Returns the run of an oracle. identity: all that changes the numbers, as JSON values."""
        return cls(Path(out) / "oracle" / f"{name}-{digest(dict(identity))[:10]}")

    def finished(self) -> bool:
        """Tells whether the run is complete. Raises UserError where its manifest cannot be read."""
        return read_manifest(self.folder).get("state") == "complete"

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    def table(self, name: str) -> pd.DataFrame:
        """Returns a table of a finished run. Raises UserError where the file cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        try:
            return pq.ParquetFile(path).read().to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read ({str(error).splitlines()[0]}).", "Compute it again with --fresh."
            ) from error

    def keep(
        self, tables: Mapping[str, pd.DataFrame], identity: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Writes the tables, then the manifest, which marks the run as finished.

        Raises UserError for a folder that cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with locked(self.folder, wait=True), writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for plot in [*self.folder.glob("*.png"), *self.folder.glob("*.svg")]:
                plot.unlink()  # of an earlier run: drawn anew
            for name, frame in tables.items():
                sink = pa.BufferOutputStream()
                pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
                write(self.folder / f"{name}.parquet", sink.getvalue().to_pybytes())
            state = {"format": FORMAT, "state": "complete", "finished_at": now()}
            write_json(self.folder / MANIFEST, state | {"identity": dict(identity)} | dict(facts))
