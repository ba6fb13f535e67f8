"""What is exported of a checkpoint: one function of images to named arrays."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from ml_collections import ConfigDict

from must_jax.input.preprocess import RULES
from must_jax.models.must import MustModel
from must_jax.ops import topk
from must_jax.tasks import Task
from must_jax.train.build import build_model
from must_jax.train.load import LoadedModel
from must_jax.types import Array, PyTree

ANY = "any"  # number of images
_STRIDE = 32  # of the backbones


@dataclasses.dataclass(frozen=True, eq=False)
class ExportProgram:
  """A function `(images, content_size) -> {"TASK/ARRAY": array}`.

  All that comes after resizing is inside: normalisation, the network, NMS, and
  maps at the size of the images. It computes in float32, whatever the
  checkpoint was trained in, with operations that other runtimes know.

  Attributes:
    loaded: the checkpoint.
    tasks: names of those that are predicted.
    image_size: (H, W) of the images.
    batch: number of images, or `ANY`.
  """

  loaded: LoadedModel
  tasks: tuple[str, ...]
  image_size: tuple[int, int]
  batch: int | str = 1

  def __call__(self, images: Array, content_size: Array) -> dict[str, Array]:
    """Predictions, all of a fixed shape, their first dimension the images.

    Args:
      images: uint8 [B, H, W, 3].
      content_size: float32 [B, 2], height and width of what is not padding.
    """
    return self.apply(self.variables, images, content_size)

  def apply(
    self, variables: PyTree, images: Array, content_size: Array
  ) -> dict[str, Array]:
    """The same as a function of the variables, too.

    Args:
      variables: of the model.
      images: [B, H, W, 3] of `image_size`, as the signature says.
      content_size: float32 [B, 2], height and width that are not padding.

    Returns:
      {"task/array": [B, ...]}.
    """
    with topk.portable():
      outputs: Any = self.model.apply(
        variables, images, train=False, content_size=content_size
      )
      return {
        f"{name}/{key}": array
        for name in self.tasks
        for key, array in self.chosen[name]
        .predict(outputs[name], self.image_size)
        .items()
      }

  @property
  def chosen(self) -> dict[str, Task]:
    """The tasks that are predicted, by name."""
    return {name: self.loaded.tasks[name] for name in self.tasks}

  @functools.cached_property
  def config(self) -> ConfigDict:
    """The checkpoint's, as it is for images of one size and in float32."""
    config = self.loaded.config.copy_and_resolve_references()
    resize = config.data.eval_resize
    if resize in RULES and RULES[resize].fixed:
      config.data.eval_resize = RULES[resize].fixed
    config.data.image_size = self.image_size
    config.model.dtype = "float32"
    return config

  @functools.cached_property
  def model(self) -> MustModel:
    """The network with the heads of these tasks alone, in float32."""
    return build_model(self.config, self.chosen)

  @functools.cached_property
  def variables(self) -> PyTree:
    """Those of the backbone, the pyramid and the heads that are needed."""
    image = jax.ShapeDtypeStruct((1, *self.image_size, 3), jnp.uint8)
    wanted = jax.eval_shape(
      lambda x: self.model.init(jax.random.key(0), x), image
    )
    return _part(self.loaded.variables, wanted)

  def inputs(
    self, batch: int | None = None
  ) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the images and of `content_size`.

    Args:
      batch: number of images, where the program takes any.
    """
    count: Any = self.batch if batch is None else batch
    if count == ANY:
      (count,) = export.symbolic_shape("batch")
    return (
      jax.ShapeDtypeStruct((count, *self.image_size, 3), jnp.uint8),
      jax.ShapeDtypeStruct((count, 2), jnp.float32),
    )

  @functools.cached_property
  def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what is predicted; of one image where it takes any number."""
    return jax.eval_shape(self, *self.inputs(1 if self.batch == ANY else None))


def make_program(
  loaded: LoadedModel,
  tasks: Sequence[str] = (),
  image_size: Sequence[int] | None = None,
  batch: int | str = 1,
) -> ExportProgram:
  """Checks what is to be exported.

  Args:
    loaded: a checkpoint.
    tasks: names; all by default.
    image_size: (H, W); by default that of the checkpoint.
    batch: number of images, or `ANY`.

  Raises:
    ValueError: the checkpoint has no such task, or its network takes no such
      images, or so many.
  """
  if unknown := sorted(set(tasks) - set(loaded.tasks)):
    raise ValueError(
      f"--tasks has {', '.join(unknown)}; {loaded.path} has the tasks"
      f" {', '.join(sorted(loaded.tasks))}."
    )
  size = _check_size(loaded, image_size)
  return ExportProgram(
    loaded, tuple(tasks or sorted(loaded.tasks)), size, batch
  )


def check_batch(batch: int | str) -> int | str:
  """The number of images, as a number or as it was written, or `ANY`.

  Raises:
    ValueError: it is neither.
  """
  if batch == ANY:
    return ANY
  if not str(batch).isdigit() or not int(batch):
    raise ValueError(f"--batch is {batch!r}; expected 1 or more, or {ANY!r}.")
  return int(batch)


def _check_size(
  loaded: LoadedModel, image_size: Sequence[int] | None
) -> tuple[int, int]:
  """The size of the images, if the network takes it.

  Published networks that take many sizes know them as multiples of a stride.
  """
  resize = loaded.config.data.eval_resize
  multiple = RULES[resize].multiple if resize in RULES else 1
  if image_size is None:
    height, width = (
      -(-side // multiple) * multiple for side in loaded.image_size
    )
    return height, width
  height, width = image_size
  stride = max(multiple, _STRIDE)
  if (height, width) != loaded.image_size and any(
    side < stride or side % stride for side in (height, width)
  ):
    near = [max(stride, round(side / stride) * stride) for side in image_size]
    raise ValueError(
      f"--image-size is {height} {width}; expected multiples of {stride}, the"
      f" stride of the network, such as {near[0]} {near[1]}."
    )
  return height, width


def _part(tree: Mapping, wanted: Mapping) -> PyTree:
  """As much of a tree as another has."""
  return {
    key: _part(tree[key], value)
    if isinstance(value, Mapping)
    else np.asarray(tree[key])
    for key, value in wanted.items()
  }
