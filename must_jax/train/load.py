"""A checkpoint as a thing that predicts.

TensorFlow is imported where photos are read; arrays in the network's own size
need none.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from must_jax.fields.maps import encode_png
from must_jax.input.preprocess import varies_size
from must_jax.models.must import MustModel
from must_jax.storage import image_files
from must_jax.storage.path import Path, PathLike
from must_jax.tasks import Task
from must_jax.train import checkpoint
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_model, build_tasks
from must_jax.train.inference import (
  Batch,
  Outputs,
  Predictor,
  labels_of,
  take,
)
from must_jax.train.predictions import (
  ClassTable,
  PhotoPrediction,
  TaskPrediction,
)
from must_jax.types import MAX_PIXELS, Labels, PyTree

if TYPE_CHECKING:
  from must_jax.storage.image_files import Picture


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A trained model with all it needs.

  Attributes:
    path: directory of the checkpoint's step.
    config: of the run that made it.
    tasks: its tasks with their class names.
    model: the flax module.
    variables: parameters and norm statistics, on the host.
  """

  path: Path
  config: ConfigDict
  tasks: dict[str, Task]
  model: MustModel
  variables: dict[str, PyTree]

  @property
  def image_size(self) -> tuple[int, int]:
    """(H, W) of the network input, or what its published rule refers to."""
    height, width = self.config.data.image_size
    return height, width

  def predict(
    self,
    images: "Sequence[np.ndarray | PathLike | Picture]",
    tasks: Sequence[str] = (),
    batch_size: int = 8,
  ) -> list[PhotoPrediction]:
    """What the model sees in photos of any size, in their own pixels.

    Photos reach the network as they do in evaluation and labelling. Files are
    read as an import reads them: upright, on white where they are transparent.

    Args:
      images: each a uint8 array [h, w, 3] (RGB) or [h, w] (grey), the path of
        a file that could be imported, local or in a bucket, or one that was
        read by `storage.image_files.read_image`.
      tasks: names of the tasks to predict; all by default.
      batch_size: photos that the network gets at a time.

    Returns:
      For each photo a mapping from tasks to mappings from names to arrays:
      "probs" [K]; "boxes" [n, 4] (yxyx) with "classes" and "scores" [n]; maps
      [h, w] of "classes" with "confidence"; maps of "values" or "vectors" with
      "valid". Both have `to_coco()`, `to_json()` and `draw()`.

    Raises:
      ValueError: one is no such image, or a task is unknown.
    """
    if isinstance(images, str | os.PathLike) or getattr(images, "ndim", 4) < 4:
      raise ValueError(
        "predict got one image; expected a list of images: predict([image])."
      )
    if batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
    self.check_tasks(tasks)
    found: dict[int, PhotoPrediction] = {}
    for start in range(0, len(images), batch_size):
      encoded = [
        _encode(images[i], f"images[{i}]")
        for i in range(start, min(start + batch_size, len(images)))
      ]
      for row, prediction in self.predict_batch(encoded, tasks):
        found[start + row] = prediction
    return [found[i] for i in range(len(images))]

  def predict_batch(
    self,
    photos: Sequence[tuple[bytes, tuple[int, int]]],
    tasks: Sequence[str] = (),
  ) -> Iterator[tuple[int, PhotoPrediction]]:
    """Predicts photos together; one at a time is brought to its own pixels.

    Args:
      photos: encoded as in a record, each with its height and width.
      tasks: names of the tasks to predict; all by default.

    Yields:
      The place of a photo, and what is seen in it; those of one network input
      size after each other.

    Raises:
      ValueError: a photo cannot be decoded, or a task is unknown.
    """
    from must_jax.input.batches import photo_batch
    from must_jax.input.sources import eval_geometry

    batch = photo_batch(photos, self.image_size, eval_geometry(self.config))
    for rows, outputs in self.batch_predictor(tasks, map_stride=1)(batch):
      for i, row in enumerate(rows.tolist()):
        example = take(batch, row)
        data, size = photos[row]
        found = {
          name: TaskPrediction(
            self.tasks[name],
            self._in_photo(name, take(arrays, i), example),
            size,
            self.class_table,
            data,
          )
          for name, arrays in outputs.items()
        }
        yield row, PhotoPrediction(found, size, data)

  @functools.cached_property
  def class_table(self) -> ClassTable:
    """Colours and COCO's ids of the classes of all tasks."""
    return ClassTable(self.tasks)

  def _in_photo(
    self, name: str, prediction: dict[str, Any], example: dict[str, Any]
  ) -> Labels:
    fields = self.tasks[name].fields
    size = tuple(example["placement"]["size"].tolist())
    labels = labels_of(self.tasks[name], prediction, example)
    return {
      field: fields[field].at_size(label, size)
      for field, label in labels.items()
    }

  def predictor(
    self,
    tasks: Sequence[str] = (),
    map_stride: int = 0,
  ):
    """`predict(images, content_size=None)` of what the network itself takes.

    For images that are its size already, and for arrays in its own pixels;
    `predict` takes photos.

    Args:
      tasks: names of the tasks to predict; all by default.
      map_stride: pixels of the image for each of a per-pixel prediction; by
        default 4, or what the head of a published network gives.

    Returns:
      A function of uint8 images [B, H, W, 3], any number of them, at
      `image_size` unless the model takes any. Boxes are kept to `content_size`
      [B, 2], or else to the whole image. It returns {task: numpy arrays with
      leading dimension B} and raises `ValueError` for other images.
    """
    predictor = self.batch_predictor(tasks, map_stride)
    any_size = varies_size(self.config.data.eval_resize)
    expected = None if any_size else self.image_size

    def predict(
      images: np.ndarray, content_size: np.ndarray | None = None
    ) -> dict[str, dict[str, Any]]:
      images = _check_batch(images, expected)
      canvas = np.tile(images.shape[1:3], (len(images), 1))
      if content_size is None:
        content_size = canvas
      content_size = np.asarray(content_size, np.float32)
      if content_size.shape != canvas.shape:
        raise ValueError(
          f"content_size has shape {list(content_size.shape)}; expected height"
          f" and width for each of {len(images)} images,"
          f" {list(canvas.shape)}."
        )
      batch = {
        "image": images,
        "content_size": content_size,
        "placement": {"canvas": canvas},
      }
      ((_, outputs),) = predictor(batch)
      return outputs

    return predict

  def batch_predictor(
    self, tasks: Sequence[str] = (), map_stride: int = 0
  ) -> Callable[[Batch], Iterator[tuple[np.ndarray, Outputs]]]:
    """`Predictor` on this process's devices, for batches of the input pipeline.

    Args:
      tasks: names of the tasks to predict; all by default.
      map_stride: see `predictor`.

    Raises:
      ValueError: a task is unknown.
    """
    self.check_tasks(tasks)
    key = tuple(tasks or self.tasks), map_stride
    if key not in self._predictors:
      chosen = {name: self.tasks[name] for name in key[0]}
      self._predictors[key] = Predictor(
        self.model, chosen, mesh_lib.local_mesh(), map_stride
      )
    return functools.partial(self._predictors[key], self._on_devices)

  def check_tasks(self, tasks: Sequence[str]) -> None:
    """Checks names of tasks.

    Raises:
      ValueError: one is unknown.
    """
    if unknown := sorted(set(tasks) - set(self.tasks)):
      raise ValueError(
        f"tasks has {unknown}; {self.path} has the tasks {sorted(self.tasks)}."
      )

  @functools.cached_property
  def _predictors(self) -> dict[tuple[tuple[str, ...], int], Predictor]:
    """Those that were asked for: each compiles."""
    return {}

  @functools.cached_property
  def _on_devices(self) -> PyTree:
    return jax.device_put(
      self.variables, mesh_lib.replicated(mesh_lib.local_mesh())
    )


def _check_batch(images: Any, image_size: tuple[int, int] | None) -> np.ndarray:
  """The images, if a network of this input size can take them.

  Raises:
    ValueError: what is given, and what is expected.
  """
  wanted = "uint8 [B, {}, {}, 3] (RGB, 0 to 255)".format(
    *(image_size or ("H", "W"))
  )
  images = np.asarray(images)
  given = f"images are {images.dtype} {list(images.shape)}; expected {wanted}"
  if images.dtype != np.uint8:
    hint = (
      " Convert 0..1 by (255 * images).round().astype(numpy.uint8)."
      if images.dtype.kind == "f"
      else ""
    )
    raise ValueError(f"{given}.{hint}")
  if images.ndim == 3:
    raise ValueError(f"{given}: a batch of one is images[None].")
  if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
    raise ValueError(f"{given}, at least one image.")
  if image_size is not None and images.shape[1:3] != image_size:
    raise ValueError(
      f"{given}. `predict` takes images of any size and resizes them as the"
      " model needs it."
    )
  return images


def _encode(
  image: "np.ndarray | PathLike | Picture", name: str
) -> tuple[bytes, tuple[int, int]]:
  """An image as it would be imported, and its height and width.

  Raises:
    ValueError: it could not be.
  """
  if isinstance(image, str | os.PathLike):
    try:
      image = image_files.read_image(Path(image))
    except image_files.Rejected as error:
      reason = str(error).rstrip(".")
      raise ValueError(f"{name}, {image}: {reason}.") from None
    for text in image_files.warn(image.counts):
      logging.warning(
        "%s: %s In Python, give predict what image_files.read_image(path,"
        " ImageOptions(code_range=...)) reads.",
        name,
        text,
      )
  if isinstance(image, image_files.Picture):
    return image.data, image.size
  array = np.asarray(image)
  if (
    array.dtype != np.uint8
    or array.ndim not in (2, 3)
    or array.shape[2:] not in ((), (3,))
    or 0 in array.shape
  ):
    raise ValueError(
      f"{name} is {array.dtype} {list(array.shape)}; expected a path, or uint8"
      " [h, w, 3] (RGB, 0 to 255) or [h, w]."
    )
  if array.shape[0] * array.shape[1] > MAX_PIXELS:
    raise ValueError(
      f"{name} has {array.shape[0]} x {array.shape[1]} pixels; expected at most"
      f" {MAX_PIXELS} together."
    )
  return encode_png(array), array.shape[:2]


def load(path: PathLike) -> LoadedModel:
  """See `must_jax.load`."""
  step_dir = checkpoint.find(path)
  config = checkpoint.read_config(step_dir)
  tasks = build_tasks(config)
  return LoadedModel(
    path=step_dir,
    config=config,
    tasks=tasks,
    model=build_model(config, tasks),
    variables=checkpoint.load_variables(step_dir),
  )
