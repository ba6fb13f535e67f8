"""The demo's report: what its stages left behind, as one page."""

import pathlib

import numpy as np

import must_jax
from must_jax.lab import figures, report_page, world
from must_jax.lab.graph import Graph
from must_jax.lab.recipes import TEACHERS, Spec

_INTRO = """\
Four teachers are trained, each on a dataset with one kind of label. Each then \
labels a pile of images that has no labels, and the images of the \
classification dataset for the tasks it has no labels of. One student learns \
all four tasks at once from these images (multi-task self-training, MuST; \
Ghiasi et al., ICCV 2021). What it has learned is judged by fine-tuning: on \
six small datasets with other objects, patterns and cameras, against a network \
that was not pre-trained and one that was pre-trained by supervised \
classification.

All images are rendered scenes, so that every label is exact and the pseudo \
labels can be measured. Surface normals are never taught before fine-tuning."""


def write(
  path: pathlib.Path,
  graph: Graph,
  spec: Spec,
  facts: dict[str, str],
  quality: tuple[report_page.LabelQuality, ...],
) -> None:
  """Writes the page.

  Args:
    path: of the HTML file.
    graph: of the demo, with all stages finished.
    spec: of its table, whose highlight is the student.
    facts: about the run, by name.
    quality: of the teachers and their labels.
  """
  student = must_jax.load(graph.network(spec.highlight, graph.seeds[0]).path)
  report_page.write(
    path,
    report_page.Report(
      title="MuST on the embedded world",
      intro=_INTRO,
      facts={**facts, "Machine": report_page.machine()},
      results={"Results": graph.table(spec)},
      label_quality=quality,
      galleries=(
        figures.pseudo_labels(graph, spec.highlight, "pile", student),
        figures.predictions(student, _unseen(student.image_size[0])),
      ),
      charts=_charts(graph, spec),
      stages=report_page.longest(graph.pipeline.stages.values()),
    ),
  )


def _unseen(size: int) -> np.ndarray:
  """Scenes uint8 [N, S, S, 3] of a split of the pile that was never written."""
  return np.stack(
    [
      world.render_example("pile", "unseen", i, size)["image"]
      for i in range(figures.ROWS)
    ]
  )


def _charts(graph: Graph, spec: Spec) -> tuple[report_page.Chart, ...]:
  """Training curves of teachers and student, and of the transfers."""
  seed = graph.seeds[0]
  (student,) = graph.network(spec.highlight, seed).after
  teachers = {kind: graph.own_stages(t)[0] for kind, t in TEACHERS.items()}
  curves: dict[str, dict[str, report_page.Curve]] = {
    title: {
      kind: report_page.read_curve(directory / "metrics.jsonl", f"{kind}/loss")
      for kind, directory in directories.items()
    }
    for title, directories in (
      ("Teachers", teachers),
      ("Student", dict.fromkeys(teachers, student)),
    )
  }
  for column in graph.scale.columns:
    curves[f"Fine-tuning: {column.name}"] = {
      row.recipe.name: report_page.read_curve(
        graph.transfer(row.recipe, column, column.sweep[0], seed)
        / "metrics.jsonl",
        f"{column.name}/loss",
      )
      for row in spec.rows
    }
  return tuple(
    report_page.Chart(
      title=title,
      x_label="step",
      y_label="loss of the task",
      series=series,
      log_y=True,
    )
    for title, series in curves.items()
  )
