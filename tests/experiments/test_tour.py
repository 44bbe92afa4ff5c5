import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "experiments" / "tour.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_tour_runs_and_circuits_show_themselves(tmp_path):
    """The committed notebook, executed afresh."""
    notebook = nbformat.read(TOUR, as_version=4)
    assert "site-packages" not in TOUR.read_text()  # no path of the machine that made it
    committed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.source.startswith("import") for cell in committed)
    for cell in committed:
        cell.outputs = []
    # More threads than cores wait for one another, and the model is small.
    threads = min(int(os.environ["OMP_NUM_THREADS"]), len(os.sched_getaffinity(0)))
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": tmp_path}})
    client.execute(env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    outputs = [out for cell in committed for out in cell.outputs]
    assert not any(out.output_type == "error" for out in outputs)
    shown = [out.data for out in outputs if "data" in out and "text/html" in out.data]
    assert any("svg" in data["text/html"] for data in shown)
    assert any("<table>" in data["text/html"] for data in shown)
