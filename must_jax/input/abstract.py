"""Shapes of a batch, without data."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from must_jax.fields import Field
from must_jax.types import PyTree


def abstract_batch(
  task_fields: Mapping[str, Mapping[str, Field]],
  batch_size: int,
  image_size: tuple[int, int],
  label_stride: int,
  sharding: Sharding | None = None,
  *,
  views: int = 1,
) -> PyTree:
  """What `batches.train_batches` makes (`must_jax.types`), without its keys.

  Args:
    task_fields: {task: {field: what to read}}.
    batch_size: B.
    image_size: (H, W) of the network input.
    label_stride: network pixels per cell of a map.
    sharding: of every array.
    views: V; more than one have a dimension of their own.

  Returns:
    A tree of `jax.ShapeDtypeStruct`.
  """
  height, width = image_size
  grid = height // label_stride, width // label_stride

  def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

  def labels(field: Field) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = {
      name: array(x.dtype, *x.shape)
      for name, x in field.batch_arrays(grid).items()
    }
    arrays["present"] = array(jnp.bool_)
    if field.has_background:
      arrays["known"] = array(jnp.bool_, getattr(field, "num_classes", 0))
    return arrays

  return {
    "image": array(jnp.uint8, *[views] * (views > 1), *image_size, 3),
    "valid": array(jnp.bool_),
    "content_size": array(jnp.float32, 2),
    "original_size": array(jnp.float32, 2),
    "position": array(jnp.int32),
    "labels": {
      task: {name: labels(field) for name, field in fields.items()}
      for task, fields in task_fields.items()
      if fields
    },
  }
