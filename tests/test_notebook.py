"""The notebook runs, and shows the front as a table with a picture."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "front.ipynb"


def test_the_notebook_runs_and_shows_the_front(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = notebook.cells[1].outputs[-1]["data"]["text/html"]
    assert "<svg" in shown
    assert "<table" in shown
    assert "autopeft.json" in notebook.cells[-1].outputs[-1]["data"]["text/plain"]
