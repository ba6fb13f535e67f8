"""A checkpoint as a thing that predicts."""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from must_jax.models.must import MustModel
from must_jax.storage.path import Path, PathLike
from must_jax.tasks import Task
from must_jax.train import checkpoint
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_model, build_tasks
from must_jax.train.step import make_predict_step
from must_jax.types import PyTree


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
    """(H, W) of the network input."""
    height, width = self.config.data.image_size
    return height, width

  def predictor(
    self,
    tasks: tuple[str, ...] = (),
    map_stride: int = 0,
  ):
    """`predict(images, content_size=None)` on this process's devices.

    Args:
      tasks: names of the tasks to predict; all by default.
      map_stride: pixels of the image for each of a per-pixel prediction; by
        default 4, or what the head of a published network gives.

    Returns:
      A function of uint8 images [B, H, W, 3], at `image_size` unless the
      model was trained to take any; B must be a multiple of the number of
      local devices. Boxes are kept to `content_size` [B, 2], or else to the
      whole image. It returns {task: numpy arrays with leading dimension B}.
    """
    chosen = {name: self.tasks[name] for name in tasks or self.tasks}
    mesh = mesh_lib.local_mesh()
    step = make_predict_step(self.model, chosen, mesh, map_stride)
    variables = jax.device_put(self.variables, mesh_lib.replicated(mesh))
    sharding = mesh_lib.batch_sharding(mesh)

    def predict(
      images: np.ndarray, content_size: np.ndarray | None = None
    ) -> dict[str, dict[str, Any]]:
      mesh_lib.check_batch_size("The batch", len(images), mesh)
      batch = jax.device_put((images, content_size), sharding)
      return jax.device_get(step(variables, *batch))

    return predict


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
