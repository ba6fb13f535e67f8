"""The paper's Figures 2 and 4, from finished stages."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from must_jax import pictures
from must_jax.curation import inspect
from must_jax.input.batches import eval_batches
from must_jax.input.origins import Source
from must_jax.lab.experiment import Experiment
from must_jax.lab.paper_tables import Pretraining, Table
from must_jax.lab.report_page import Gallery
from must_jax.storage.path import Path
from must_jax.train.load import LoadedModel, load

ROWS = 8
_SIZE = (384, 384)


def of_tables(
  experiment: Experiment, tables: Iterable[Table]
) -> tuple[Gallery, ...]:
  """Both figures of the first student, of those the tables are about.

  Args:
    experiment: with the stages of the tables, not all of which need be
      finished.
    tables: the tables.

  Returns:
    None of them if no student of several tasks is finished.
  """
  stages = experiment.stages
  for pretraining in (table.highlight for table in tables):
    made = experiment.network(pretraining, experiment.seeds[0])
    done = all(stages[stage].is_done for stage in made.after)
    if not (
      done
      and made.after
      and pretraining.teachers
      and len(pretraining.tasks) > 1
    ):
      continue
    student = load(made.path)
    name = next(n for n in pretraining.labels if pretraining.teachers_on(n))
    found = [pseudo_labels(experiment, pretraining, name, student)]
    images = experiment.images(name)
    if images.validation:
      batch = _read_images(images.directory, images.validation, student)
      found.append(predictions(student, *batch))
    return tuple(found)
  return ()


def pseudo_labels(
  experiment: Experiment,
  pretraining: Pretraining,
  name: str,
  student: LoadedModel,
) -> Gallery:
  """The paper's Figure 2: what a student's teachers say.

  Args:
    experiment: in which the teachers' labels are finished.
    pretraining: of the student.
    name: of an image set that it learns from.
    student: says which colours the classes have.
  """
  images = Path(experiment.images(name).directory)
  columns: dict[str, list[np.ndarray]] = {}
  for task_name, teacher in pretraining.teachers_on(name).items():
    directory = experiment.labels(teacher, name, task_name)
    pairs = list(inspect.draw_labels(directory, images, ROWS, _SIZE))
    columns["image"] = [image for image, _ in pairs]
    columns[task_name] = [picture for _, picture in pairs]
  return Gallery(
    title="Pseudo labels",
    caption="What the teachers say about images that the student learns from,"
    " as it reads them: scores of at least 0.5, black where a pixel's class is"
    " uncertain, bars for the three most probable classes (paper, Figure 2).",
    columns=tuple(columns),
    rows=tuple(zip(*columns.values(), strict=True)),
    legends=_legends(student),
  )


def _read_images(
  directory: str, split: str, student: LoadedModel
) -> tuple[np.ndarray, np.ndarray]:
  """The first images of a split, as a student sees them.

  Returns:
    Images uint8 [N, H, W, 3] and their content's sizes int [N, 2].
  """
  batches = eval_batches(
    [Source(directory, split)],
    {},
    batch_size=ROWS,
    image_size=student.image_size,
  )
  batch = next(iter(batches))
  valid = batch["valid"]
  return batch["image"][valid], batch["content_size"][valid].astype(int)


def predictions(
  student: LoadedModel, images: np.ndarray, content: np.ndarray | None = None
) -> Gallery:
  """The paper's Figure 4: what one student sees.

  Args:
    student: of any tasks.
    images: uint8 [N, H, W, 3], as large as it sees them.
    content: sizes int [N, 2] of what is not padding; by default all of it.
  """
  size = student.image_size
  scale = np.divide(_SIZE, size)
  found = student.predictor(map_stride=1)(images)
  rows = []
  for i, image in enumerate(images):
    large = pictures.enlarge(image, _SIZE)
    row = [large]
    for name, task in student.tasks.items():
      arrays = {key: value[i] for key, value in found[name].items()}
      arrays = task.fields[task.measured].scaled(arrays, scale)
      row.append(task.draw(large, arrays))
    extent = size if content is None else content[i]
    height, width = np.round(extent * scale).astype(int)
    rows.append(tuple(picture[:height, :width] for picture in row))
  return Gallery(
    title="One model, all tasks",
    caption="Predictions of the student on images that it has not learned"
    " from, in a single pass of the network (paper, Figure 4).",
    columns=("image", *student.tasks),
    rows=tuple(rows),
    legends=_legends(student),
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
    colors = pictures.palette(task.num_classes)
    legends[name] = {
      label: tuple(int(c) for c in color)
      for label, color in zip(task.classes, colors, strict=True)
    }
    seen[task.classes] = name
  return legends
