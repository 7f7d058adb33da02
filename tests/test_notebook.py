"""The notebook, run by a kernel as Jupyter runs it; its demo here is the tiny model."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY, alpaca_rows, write_rows
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "first_run.ipynb"


def test_the_notebook_holds_no_output() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_the_notebook_trains_and_shows_what_came_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = "task: classification\ntest_file: data/validation.jsonl\nload_in_4bit: false\n"
    (project / "recipes" / "demo.yaml").write_text(TINY + task)
    write_rows(project / "data" / "validation.jsonl", alpaca_rows(40, seed=2))
    kernels = project / "kernels"
    (kernels / "python3").mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernels / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(project))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Jupyter's own choice of how figures are drawn, which no process that has no kernel can follow.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in shown)
    pages = "".join(output.get("data", {}).get("text/html", "") for output in shown)
    assert "finished   8 steps" in said and "of 40 are wrong" in said
    assert "nothing stops it" in pages and "verdict" in pages
    assert [output for output in shown if "image/png" in output.get("data", {})]
    assert not [output for output in shown if output["output_type"] == "error"]
