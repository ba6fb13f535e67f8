"""What `must-jax tables` writes: Markdown, one page, and all numbers."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import must_jax
from must_jax.lab import figures, report_page
from must_jax.lab.graph import Graph
from must_jax.lab.recipes import Spec
from must_jax.lab.tables import Table
from must_jax.storage.tfrecord import atomic_write

MARKDOWN, PAGE, NUMBERS = "tables.md", "tables.html", "results.json"
_INTRO = {
  "mini": """\
The tables of the paper (Ghiasi et al., ICCV 2021) on an embedded world of \
rendered scenes. Its image sets stand for the paper's; networks are small and \
train for minutes. Directions may be compared with the paper's, figures not.""",
  "photos": """\
Small public sets of photographs stand for the paper's; networks are small and \
train for minutes.""",
  "paper": "The tables of the paper (Ghiasi et al., ICCV 2021).",
}


def write(
  workdir: pathlib.Path, graph: Graph, specs: Sequence[Spec], command: str
) -> None:
  """Writes the files of finished tables into the workdir.

  Args:
    workdir: of the run.
    graph: with the stages of the tables, not all of which need be finished.
    specs: the tables.
    command: that makes them.
  """
  results = {spec.title: graph.table(spec) for spec in specs}
  stages = graph.pipeline.stages.values()
  (workdir / MARKDOWN).write_text(
    f"`{command}`, must_jax {must_jax.__version__}\n\n"
    + "\n".join(f"## {t}\n\n{r.to_markdown()}" for t, r in results.items())
  )
  numbers = {
    "command": command,
    "version": must_jax.__version__,
    "scale": graph.scale.name,
    "machine": report_page.machine(),
    "tables": [_numbers(graph, s, results[s.title]) for s in specs],
    "seconds": {s.name: s.seconds for s in stages if s.is_done},
  }
  with atomic_write(workdir / NUMBERS) as file:
    file.write(f"{json.dumps(numbers, indent=2)}\n".encode())
  # Pictures come last: they read images and a network.
  report_page.write(
    workdir / PAGE,
    report_page.Report(
      title=f"Tables at the scale {graph.scale.name}",
      intro=_INTRO[graph.scale.name],
      facts={
        "Command": command,
        "Seeds": ", ".join(map(str, graph.seeds)),
        "Machine": report_page.machine(),
      },
      results=results,
      galleries=figures.of_tables(graph, specs),
      stages=report_page.longest(stages),
    ),
  )


def _numbers(graph: Graph, spec: Spec, table: Table) -> dict[str, Any]:
  """A table for other programs; numbers in percent but for `value`."""
  rows = []
  for row, shown in zip(spec.at(graph.scale.name), table.rows, strict=True):
    cells: list[dict[str, Any]] = []
    if spec.own:
      runs = graph.own_stages(row.recipe)
      cells.append({"runs": _runs(graph, runs, spec.own.key)})
    for column in graph.scale.columns:
      cell = graph.cell(row.recipe, column)
      key = f"validation/{column.key}"
      cells.append(
        {
          "lr": cell.setting.lr,
          "steps": cell.setting.steps,
          "runs": _runs(graph, cell.stages, key),
        }
      )
    for index, cell_numbers in enumerate(cells):
      head, found = table.columns[index], table.cell(shown, index)
      cell_numbers.update(
        {
          "column": head.name,
          "metric": head.metric,
          "mean": found.mean,
          "deviation": found.deviation,
          "delta": found.delta,
          "paper": found.paper,
          "paper_delta": found.paper_delta,
          "agrees": found.agrees,
        }
      )
    rows.append({"row": row.title, "recipe": row.recipe.name, "cells": cells})
  return {
    "table": spec.title,
    "baseline": table.baseline,
    "notes": table.notes(),
    "rows": rows,
  }


def _runs(
  graph: Graph, directories: Sequence[pathlib.Path], key: str
) -> list[dict[str, Any]]:
  """One entry for each seed; its value is None if it was not run."""
  runs = []
  for seed, directory in zip(graph.seeds, directories, strict=False):
    stage = graph.pipeline.stages[directory]
    value = stage.result[key] if stage.is_done else None
    runs.append({"seed": seed, "stage": directory.name, "value": value})
  return runs
