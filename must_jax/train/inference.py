"""From images to predictions, the same way for whoever asks.

Evaluation, labelling and `must_jax.load(...).predict` make their batches by
`input.batches` with the checkpoint's geometry, predict them here, and take
labels of a photo from `labels_of`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from must_jax.models.must import MustModel
from must_jax.tasks import Task
from must_jax.train import mesh as mesh_lib
from must_jax.train import runtime
from must_jax.train.step import make_predict_step
from must_jax.types import Labels, PyTree

Batch = Mapping[str, Any]
Outputs = dict[str, dict[str, np.ndarray]]  # task -> name -> [B, ...]


class Predictor:
  """Predicts batches of `input.batches.eval_batches`.

  Images that published rules bring to different sizes run together with those
  of their own size.
  """

  def __init__(
    self,
    model: MustModel,
    tasks: dict[str, Task],
    mesh: Mesh,
    map_stride: int = 0,
  ):
    """Makes the step; nothing is compiled yet.

    Args:
      model: with a head for each task.
      tasks: to predict.
      mesh: devices that share a batch. Those of several processes take images
        of one size only.
      map_stride: see `make_predict_step`.
    """
    self._mesh = mesh
    self._step = runtime.compiles_aloud(
      f"the prediction of {', '.join(tasks)}",
      make_predict_step(model, tasks, mesh, map_stride),
    )

  def __call__(
    self, variables: PyTree, batch: Batch
  ) -> Iterator[tuple[np.ndarray, Outputs]]:
    """Predicts this process's rows of a batch, in groups of one size.

    Args:
      variables: of the model, on the mesh.
      batch: with "image", "content_size" and "placement"; of examples that
        are not "valid" no size is predicted that others do not have.

    Yields:
      Rows of the batch int [n], and their predictions.
    """
    groups = list(_groups(batch["placement"]["canvas"]))
    if len(groups) > 1 and "valid" in batch:
      groups = [g for g in groups if batch["valid"][g[0]].any()]
    for rows, (height, width) in groups:
      inputs = batch["image"][:, :height, :width], batch["content_size"]
      padded = self._padded(rows, len(batch["image"]))
      if len(rows) < len(batch["image"]) or len(padded) > len(rows):
        inputs = take(inputs, padded)
      outputs = self._step(variables, *mesh_lib.to_device(inputs, self._mesh))
      yield (
        rows,
        jax.tree.map(lambda x: _local_examples(x)[: len(rows)], outputs),  # noqa: B023
      )

  def _padded(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """The rows, and some again, so that the devices can share them.

    Parts of a batch have few sizes only, since each is compiled.
    """
    count = len(rows)
    if count < batch_size:
      count = 1 << (count - 1).bit_length()
    devices = len(self._mesh.local_devices)
    count = -(-count // devices) * devices
    return np.concatenate([rows, np.full(count - len(rows), rows[0])])


def _groups(
  canvas: np.ndarray,
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
  """Rows int [n] whose network inputs have one size, and the size."""
  sizes, group = np.unique(canvas, axis=0, return_inverse=True)
  for i, (height, width) in enumerate(sizes.tolist()):
    yield np.flatnonzero(group.reshape(-1) == i), (height, width)


def _local_examples(x: jax.Array) -> np.ndarray:
  """This process's examples of a global array, in order."""
  shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])


def labels_of(
  task: Task, prediction: Mapping[str, np.ndarray], example: Batch
) -> Labels:
  """What a prediction says of the whole stored image.

  Args:
    task: that predicts.
    prediction: its arrays of one example.
    example: a row of the batch: "content_size" and "placement".

  Returns:
    {field: arrays in the form they are stored}. What the network did not see
    of the image is unknown there.
  """
  placement = example["placement"]
  height, width = placement["canvas"].tolist()
  labels = task.to_labels(
    dict(prediction), example["content_size"], (height, width)
  )
  window, size = placement["window"], tuple(placement["size"].tolist())
  if window.tolist() == [0, 0, *size]:
    return labels
  return {
    name: task.fields[name].of_window(arrays, window, size)
    for name, arrays in labels.items()
  }


def take(tree: PyTree, rows: int | np.ndarray) -> PyTree:
  """Some examples, or one, of a tree of arrays [B, ...].

  Args:
    tree: of arrays.
    rows: an index, or indices or a mask [n].
  """
  return jax.tree.map(lambda array: array[rows], tree)
