"""The notebooks of docs/ run, and their pages on the site are what they hold."""

import importlib.util
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: notebooks are not run")
pytest.importorskip("nbclient", reason="nbclient is not installed: notebooks are not run")

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_its_page_says(path, notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook, kept = read(path), read(path)
    notebooks.execute(notebook, tmp_path)
    notebooks.without_large_outputs(notebook)
    told = [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]
    assert told == [[output.output_type for output in cell.get("outputs", [])] for cell in kept.cells]


def test_what_a_cell_prints_is_one_piece_and_what_it_warns_of_is_not_kept(notebooks):
    outputs = [nbformat.v4.new_output("stream", name=name, text=name) for name in ("stdout", "stderr", "stdout")]
    page = nbformat.v4.new_output("display_data", {"text/html": "<p>", "image/png": ""})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[*outputs, page])])
    notebooks.without_large_outputs(notebook)
    assert [output.text for output in notebook.cells[0].outputs] == ["stdoutstdout"]


def test_a_notebook_with_a_fault_fails(notebooks, tmp_path):
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%%bash\ntdsm train --preset nonsense")])
    with pytest.raises(CellExecutionError):
        notebooks.execute(notebook, tmp_path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_page_of_a_notebook_is_what_it_holds(path, notebooks):
    text, pictures = notebooks.page(read(path), path.stem)
    assert path.with_suffix(".md").read_text() == text
    kept = {file.name: file.read_bytes() for file in path.parent.glob(f"{path.stem}-*.png")}
    assert kept == pictures
    assert pictures
    assert path.stat().st_size < LARGEST
