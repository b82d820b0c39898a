"""The quickstart notebook runs on the real embedded pair, and its stored outputs are small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lcfbench.sources.cache import mirror
from tests.helpers import BESIDE

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SECONDS = 1200  # for one cell; a machine that is busy with other work is slow


def outputs(notebook: Any, kind: str) -> list[Any]:
    """The outputs of a MIME type, in order."""
    found = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return [o["data"][kind] for o in found if kind in o.get("data", {})]


def test_outputs_are_stored_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs and cell.execution_count for cell in cells)
    assert len(outputs(notebook, "image/png")) == 1
    assert NOTEBOOK.stat().st_size < 300_000
    assert str(ROOT) not in NOTEBOOK.read_text() and "/home/" not in NOTEBOOK.read_text()


@pytest.mark.real
def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if mirror() is None and (BESIDE / "hub" / "datasets").is_dir():
        monkeypatch.setenv("LCFBENCH_MIRROR", str(BESIDE / "hub"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    assert "receiver" in said and "lcf" in said and "1,920 bytes" in said
    assert any("communicates" in table for table in outputs(notebook, "text/html"))
    assert len(outputs(notebook, "image/png")) == 1
    assert len(list((tmp_path / "quickstart").glob("*/samples.parquet"))) == 5
    assert not any(
        o.output_type == "error" or o.get("name") == "stderr"
        for c in notebook.cells
        for o in c.get("outputs", ())
    )
