"""Executes tutorials and keeps what they show: make notebooks.

  python docs/tutorials/execute.py NAME.md ...

NAME.md is what people edit. NAME.ipynb is made of it, with the outputs that
the site shows. The logs of commands are not kept: stderr has times, and the
name of the machine.
"""

import os
import pathlib
import sys
import tempfile

import jupytext
import nbclient
import nbformat


def read(source: pathlib.Path) -> nbformat.NotebookNode:
  """The notebook of a Markdown file, without outputs."""
  notebook = jupytext.read(source)
  for number, cell in enumerate(notebook.cells):
    cell.id = f"cell-{number}"  # else it has another one each time
  return notebook


def execute(notebook: nbformat.NotebookNode, directory: str) -> None:
  """Runs all cells; what they show becomes the notebook's.

  Args:
    notebook: of `read`.
    directory: where the notebook finds and leaves its files.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell has failed.
  """
  nbclient.NotebookClient(
    notebook,
    timeout=None,
    # Else what a busy machine shows late is left out.
    iopub_timeout=600,
    raise_on_iopub_timeout=True,
    kernel_name="python3",
    record_timing=False,
    resources={"metadata": {"path": directory}},
  ).execute()
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = _without_logs(cell.outputs)


def _without_logs(
  outputs: list[nbformat.NotebookNode],
) -> list[nbformat.NotebookNode]:
  """Outputs but those of stderr; text that these cut into pieces is one."""
  kept: list[nbformat.NotebookNode] = []
  for output in outputs:
    if output.output_type != "stream":
      kept.append(output)
    elif output.name == "stdout":
      if kept and kept[-1].output_type == "stream":
        kept[-1].text += output.text
      else:
        kept.append(output)
  return kept


def main() -> None:
  """See the head of the file."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  for name in sys.argv[1:]:
    source = pathlib.Path(name)
    notebook = read(source)
    with tempfile.TemporaryDirectory() as directory:
      execute(notebook, directory)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(f"{source} -> {source.with_suffix('.ipynb')}", flush=True)


if __name__ == "__main__":
  main()
