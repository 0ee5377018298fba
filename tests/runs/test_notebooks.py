"""Every cell of the notebooks runs, in a kernel of its own, as `make notebook` would run it."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[2] / "experiments").glob("*.ipynb"))

SHORTER = {
    "train_step": {"UPDATES = 500": "UPDATES = 20"},
    "custom_env": {"steps=1000": "steps=240"},
}
"""What the test makes shorter; every cell still runs."""


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells with `folder` as the working directory; CellExecutionError where one raises."""
    options = dict(kernel_name="python3", timeout=300, startup_timeout=120)
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
@pytest.mark.slow
def test_every_cell_runs(file, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # envpool, imported by another test, sets it for every child
    text = file.read_text()
    for long, short in SHORTER[file.stem].items():
        assert long in text
        text = text.replace(long, short)
    notebook = nbformat.reads(text, 4)
    run(notebook, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_raises_fails(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook, tmp_path)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_kept_clean(file):
    """No outputs, no counts, nothing of the machine that wrote them."""
    notebook = json.loads(file.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not [place for place in (Path.home(), Path.cwd(), Path("/home")) if f"{place}/" in file.read_text()]
