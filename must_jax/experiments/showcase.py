"""The demo's report: what its stages left behind, as one page."""

import pathlib
from typing import Any

import numpy as np

import must_jax
from must_jax.data import synthetic
from must_jax.experiments import report
from must_jax.experiments.graph import Graph
from must_jax.experiments.recipes import TEACHERS, Spec
from must_jax.pseudo_label import inspect
from must_jax.tasks.base import palette
from must_jax.train.load import LoadedModel

_ROWS = 8
_SIZE = (384, 384)
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
  quality: tuple[report.LabelQuality, ...],
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
  report.write(
    path,
    report.Report(
      title="MuST on the embedded world",
      intro=_INTRO,
      facts={**facts, "Machine": report.machine()},
      results={"Results": graph.table(spec)},
      label_quality=quality,
      galleries=(
        _pseudo_labels(graph, student),
        _predictions(student),
      ),
      charts=_charts(graph, spec),
      stages=report.longest(graph.pipeline.stages.values()),
    ),
  )


def _pseudo_labels(graph: Graph, student: LoadedModel) -> report.Gallery:
  """The paper's Figure 2."""
  pile = graph.pipeline.workdir / "world" / "pile"
  columns: dict[str, list[np.ndarray]] = {}
  for kind, teacher in TEACHERS.items():
    directory = graph.labels(teacher, "pile")
    pairs = list(inspect.draw(directory, pile, _ROWS, _SIZE))
    columns["image"] = [image for image, _ in pairs]
    columns[kind] = [picture for _, picture in pairs]
  return report.Gallery(
    title="Pseudo labels",
    caption="What the four teachers say about images of the pile, as the"
    " student reads it: scores of at least 0.5, black where a pixel's class is"
    " uncertain, bars for the three most probable classes (paper, Figure 2).",
    columns=tuple(columns),
    rows=tuple(zip(*columns.values(), strict=True)),
    legends=_legends(student),
  )


def _predictions(student: LoadedModel) -> report.Gallery:
  """The paper's Figure 4."""
  size = student.image_size
  # Scenes that nobody has seen: a split of the pile that was never written.
  images = np.stack(
    [
      synthetic.render_example("pile", "unseen", i, size[0])["image"]
      for i in range(_ROWS)
    ]
  )
  predictions = student.predictor(map_stride=1)(images)
  rows = []
  for i, image in enumerate(images):
    row = [_enlarge(image)]
    for name, task in student.tasks.items():
      arrays = {key: value[i] for key, value in predictions[name].items()}
      if "boxes" in arrays:
        arrays["boxes"] = arrays["boxes"] * (_SIZE[0] / size[0])
      row.append(task.draw(_enlarge(image), arrays))
    rows.append(tuple(row))
  return report.Gallery(
    title="One model, all tasks",
    caption="Predictions of the student on scenes that neither it nor any"
    " teacher has seen, in a single pass of the network (paper, Figure 4).",
    columns=("image", *student.tasks),
    rows=tuple(rows),
    legends=_legends(student),
  )


def _charts(graph: Graph, spec: Spec) -> tuple[report.Chart, ...]:
  """Training curves of teachers and student, and of the transfers."""
  seed = graph.seeds[0]
  (student,) = graph.network(spec.highlight, seed).after
  teachers = {kind: graph.own_stages(t)[0] for kind, t in TEACHERS.items()}
  curves: dict[str, dict[str, report.Curve]] = {
    title: {
      kind: report.read_curve(directory / "metrics.jsonl", f"{kind}/loss")
      for kind, directory in directories.items()
    }
    for title, directories in (
      ("Teachers", teachers),
      ("Student", dict.fromkeys(teachers, student)),
    )
  }
  for column in graph.scale.columns:
    curves[f"Fine-tuning: {column.name}"] = {
      row.recipe.name: report.read_curve(
        graph.transfer(row.recipe, column, column.sweep[0], seed)
        / "metrics.jsonl",
        f"{column.name}/loss",
      )
      for row in spec.rows
    }
  return tuple(
    report.Chart(
      title=title,
      x_label="step",
      y_label="loss of the task",
      series=series,
      log_y=True,
    )
    for title, series in curves.items()
  )


def _legends(student: LoadedModel) -> dict[str, dict[str, Any]]:
  """Colours of the classes, for each distinct list of classes."""
  legends: dict[str, dict[str, Any]] = {}
  seen: dict[tuple[str, ...], str] = {}
  for name, task in student.tasks.items():
    if not task.classes:
      continue
    if task.classes in seen:
      other = seen[task.classes]
      legends[f"{other}, {name}"] = legends.pop(other)
      seen[task.classes] = f"{other}, {name}"
      continue
    colors = palette(task.num_classes)
    legends[name] = {
      label: tuple(int(c) for c in color)
      for label, color in zip(task.classes, colors, strict=True)
    }
    seen[task.classes] = name
  return legends


def _enlarge(image: np.ndarray) -> np.ndarray:
  from PIL import Image

  return np.asarray(
    Image.fromarray(image).resize(_SIZE[::-1], Image.Resampling.BICUBIC)
  )
