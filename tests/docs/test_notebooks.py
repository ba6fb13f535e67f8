"""The tutorials run, and their pages show what they give."""

import importlib.util
import pathlib
import re

import nbformat
import pytest

TUTORIALS = pathlib.Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = ("whole-method", "labels", "finetune-and-export")
MAX_BYTES = 1_500_000  # of all pages


@pytest.fixture(scope="module")
def tutorials():
  """The program that makes the pages."""
  spec = importlib.util.spec_from_file_location(
    "execute", TUTORIALS / "execute.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _page(name):
  return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def _kinds(cell):
  """What a cell shows, such as text or a JPEG."""
  kinds = set()
  for output in cell.get("outputs", ()):
    kinds |= {*output.get("data", {"stream": None})}
  return kinds


def test_all_tutorials_are_here():
  for suffix in (".md", ".ipynb"):
    assert {p.stem for p in TUTORIALS.glob(f"*{suffix}")} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_page_has_the_cells_of_its_source(tutorials, name):
  source, page = tutorials.read(TUTORIALS / f"{name}.md"), _page(name)
  nbformat.validate(page)
  for ours, made in zip(source.cells, page.cells, strict=True):
    assert (ours.cell_type, ours.source) == (made.cell_type, made.source), (
      "make notebooks"
    )


@pytest.mark.parametrize("name", NAMES)
def test_page_has_outputs_that_anybody_may_see(name):
  cells = [cell for cell in _page(name).cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in cells)
  assert any("image/jpeg" in _kinds(cell) for cell in cells)
  for cell in cells:
    for output in cell.outputs:
      assert output.output_type in ("stream", "display_data"), cell.source
      assert output.get("name", "stdout") == "stdout", cell.source
      text = output.get("text", "")
      bad = r"(?i)traceback|warning|error|pid \d|/(tmp|home|root|work|users)/"
      assert not re.search(bad, text), cell.source


def test_pages_are_small():
  sizes = [(TUTORIALS / f"{name}.ipynb").stat().st_size for name in NAMES]
  assert sum(sizes) < MAX_BYTES


@pytest.mark.parametrize(
  "name",
  [
    "whole-method",
    "labels",
    "finetune-and-export",
  ],
)
def test_tutorial_runs(tutorials, name, tmp_path, monkeypatch):
  if name == "finetune-and-export":
    pytest.importorskip("jax2onnx", reason="its page shows an export to ONNX")
  monkeypatch.setenv("MUST_JAX_SMOKE", "1")
  notebook = tutorials.read(TUTORIALS / f"{name}.md")
  tutorials.execute(notebook, str(tmp_path))
  for ran, shown in zip(notebook.cells, _page(name).cells, strict=True):
    assert _kinds(ran) == _kinds(shown), ran.source
