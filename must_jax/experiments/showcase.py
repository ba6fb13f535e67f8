"""The demo's report: what its stages left behind, as one page."""

import os
import pathlib
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

import must_jax
from must_jax.data import synthetic
from must_jax.experiments import report
from must_jax.experiments.pipeline import Pipeline
from must_jax.experiments.tables import Table
from must_jax.pseudo_label import inspect
from must_jax.tasks.base import palette
from must_jax.train.load import LoadedModel

if TYPE_CHECKING:
  from must_jax.experiments.demo import Chain

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
  pipeline: Pipeline,
  chain: "Chain",
  table: Table,
  facts: dict[str, str],
  quality: tuple[report.LabelQuality, ...],
) -> None:
  """Writes the page.

  Args:
    path: of the HTML file.
    pipeline: with all stages finished.
    chain: directories of the demo's stages.
    table: results.
    facts: about the run, by name.
    quality: of the teachers and their labels.
  """
  seed = min(seed for _, seed in chain.pretrained)
  student = must_jax.load(str(chain.pretrained["must", seed]))
  stages = sorted(
    ((stage.name, stage.seconds) for stage in pipeline.stages.values()),
    key=lambda item: -item[1],
  )
  report.write(
    path,
    report.Report(
      title="MuST on the embedded world",
      intro=_INTRO,
      facts={**facts, "Machine": _machine()},
      results=table,
      label_quality=quality,
      galleries=(
        _pseudo_labels(chain, student),
        _predictions(student),
      ),
      charts=_charts(chain, seed),
      stages=_longest(stages),
    ),
  )


def _longest(
  stages: list[tuple[str, float]], count: int = 15
) -> tuple[tuple[str, float], ...]:
  """The longest stages, and the others as one."""
  rest = stages[count:]
  if not rest:
    return tuple(stages)
  total = sum(seconds for _, seconds in rest)
  return (*stages[:count], (f"{len(rest)} more stages", total))


def _pseudo_labels(chain: "Chain", student: LoadedModel) -> report.Gallery:
  """The paper's Figure 2."""
  pile = chain.world / "pile"
  columns: dict[str, list[np.ndarray]] = {}
  for kind, directory in chain.labels.items():
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
  predictions = student.predictor(map_size=size)(images)
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


def _charts(chain: "Chain", seed: int) -> tuple[report.Chart, ...]:
  """Training curves of teachers and student, and of the transfers."""
  student = chain.pretrained["must", seed]
  charts = [
    report.Chart(
      title=title,
      x_label="step",
      y_label="loss of the task",
      series={
        kind: report.read_curve(directory / "metrics.jsonl", f"{kind}/loss")
        for kind, directory in directories.items()
      },
      log_y=True,
    )
    for title, directories in (
      ("Teachers", chain.teachers),
      ("Student", dict.fromkeys(chain.teachers, student)),
    )
  ]
  columns: dict[str, dict[str, Any]] = {}
  for (row, column, at), directory in chain.transfers.items():
    if at == seed:
      columns.setdefault(column, {})[row] = report.read_curve(
        directory / "metrics.jsonl", f"{column}/loss"
      )
  charts += [
    report.Chart(
      title=f"Fine-tuning: {column}",
      x_label="step",
      y_label="loss",
      series=series,
      log_y=True,
    )
    for column, series in columns.items()
  ]
  return tuple(charts)


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


def _machine() -> str:
  import jax

  device = jax.devices()[0]
  return (
    f"{os.cpu_count()} cores {platform.machine()}, {jax.device_count()} x"
    f" {device.device_kind}, Python {platform.python_version()}, jax"
    f" {jax.__version__}"
  )
