"""What `must-jax tables` writes: Markdown, one page, and all numbers."""

import json
from collections.abc import Sequence
from typing import Any

import must_jax
from must_jax.lab import galleries, report_page
from must_jax.lab.experiment import Experiment
from must_jax.lab.paper_tables import Table
from must_jax.lab.result_table import ResultTable
from must_jax.storage.path import Path, publish

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
  workdir: Path,
  experiment: Experiment,
  tables: Sequence[Table],
  command: str,
) -> None:
  """Writes the files of finished tables into the workdir.

  Args:
    workdir: of the run.
    experiment: with the stages of the tables, not all of which need be
      finished.
    tables: the tables.
    command: that makes them.
  """
  results = {table.title: experiment.results(table) for table in tables}
  stages = experiment.stages.values()
  (workdir / MARKDOWN).write_text(
    f"`{command}`, must_jax {must_jax.__version__}\n\n"
    + "\n".join(f"## {t}\n\n{r.to_markdown()}" for t, r in results.items())
  )
  numbers = {
    "command": command,
    "version": must_jax.__version__,
    "scale": experiment.scale.name,
    "machine": report_page.machine(),
    "tables": [_numbers(experiment, t, results[t.title]) for t in tables],
    "seconds": {s.name: s.seconds for s in stages if s.is_done},
  }
  with publish(workdir / NUMBERS) as file:
    file.write(f"{json.dumps(numbers, indent=2)}\n".encode())
  # Pictures come last: they read images and a network.
  report_page.write(
    workdir / PAGE,
    report_page.Page(
      title=f"Tables at the scale {experiment.scale.name}",
      intro=_INTRO[experiment.scale.name],
      facts={
        "Command": command,
        "Seeds": ", ".join(map(str, experiment.seeds)),
        "Machine": report_page.machine(),
      },
      results=results,
      galleries=galleries.of_tables(experiment, tables),
      stages=report_page.longest(stages),
    ),
  )


def _numbers(
  experiment: Experiment, table: Table, results: ResultTable
) -> dict[str, Any]:
  """A table for other programs; numbers in percent but for `value`."""
  rows = []
  table_rows = table.at(experiment.scale.name)
  for row, result_row in zip(table_rows, results.rows, strict=True):
    cells: list[dict[str, Any]] = []
    if metric := table.before_transfer:
      stages = experiment.pretraining_stages(row.pretraining)
      cells.append({"runs": _runs(experiment, stages, metric.key)})
    for transfer in experiment.scale.transfers:
      runs = experiment.runs(row.pretraining, transfer)
      key = f"validation/{transfer.key}"
      cells.append(
        {
          "lr": runs.setting.lr,
          "steps": runs.setting.steps,
          "runs": _runs(experiment, runs.stages, key),
        }
      )
    for index, (cell, head) in enumerate(
      zip(cells, results.columns, strict=True)
    ):
      found = results.cell(result_row, index)
      cell |= {
        "column": head.name,
        "metric": head.metric,
        "mean": found.mean,
        "deviation": found.deviation,
        "delta": found.delta,
        "paper": found.paper,
        "paper_delta": found.paper_delta,
        "agrees": found.agrees,
      }
    # "recipe" is what readers of older files know a pre-training as.
    rows.append(
      {"row": row.title, "recipe": row.pretraining.name, "cells": cells}
    )
  floors = [
    {
      "column": transfer.title,
      "metric": transfer.metric,
      "stage": experiment.floor(transfer).name,
      "value": experiment.floor_value(transfer),
    }
    for transfer in experiment.scale.transfers
  ]
  return {
    "table": table.title,
    "baseline": results.baseline,
    "notes": results.notes(),
    "rows": rows,
    "floors": floors,
  }


def _runs(
  experiment: Experiment, directories: Sequence[Path], key: str
) -> list[dict[str, Any]]:
  """One entry for each seed; its value is None if it was not run."""
  runs = []
  for seed, directory in zip(experiment.seeds, directories, strict=False):
    stage = experiment.stages[directory]
    value = stage.result[key] if stage.is_done else None
    runs.append({"seed": seed, "stage": directory.name, "value": value})
  return runs
