"""The notebook runs from its first cell to its last."""

from pathlib import Path

import pytest

from conftest import REPOSITORY, TINY, Train


@pytest.mark.slow
def test_the_notebook_runs(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    train(*TINY, "head=danet")
    monkeypatch.setenv("DANET_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    book = nbformat.read(REPOSITORY / "notebooks" / "attention.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "commit it without outputs"
    client(book, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "x uniform" in "".join(output.get("text", "") for output in outputs)
