"""All cells of the example notebook run in a new kernel."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs/results.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, str]:
    """Output of each cell as text, by its source. The notebook runs with fewer images."""
    from nbclient import NotebookClient  # slow to import, and each xdist worker imports this file

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "dataset.limit=2000" in first.source
    first.source = first.source.replace("dataset.limit=2000", "dataset.limit=400")
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return {
        cell.source: "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def output_of(outputs: dict[str, str], source: str) -> str:
    (output,) = [text for cell, text in outputs.items() if cell.startswith(source)]
    return output


@pytest.mark.soak
def test_the_notebook_shows_its_own_runs(outputs):
    assert "4 runs, 12 rows of epochs, 0 skipped" in output_of(outputs, "results = laptime.load")
    assert "example/batch32-seed1" in output_of(outputs, 'results.runs[["run"')
    assert "128" in output_of(outputs, "by_batch")
    assert "Figure" in output_of(outputs, "%matplotlib")


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
