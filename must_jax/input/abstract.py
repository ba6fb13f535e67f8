"""Shapes of a batch, without data."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from must_jax.types import (
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  PyTree,
  ValueMap,
  VectorMap,
)


def abstract_batch(
  task_fields: Mapping[str, Mapping[str, Field]],
  batch_size: int,
  image_size: tuple[int, int],
  label_stride: int,
  sharding: Sharding | None = None,
  *,
  views: int = 1,
) -> PyTree:
  """What `pipeline.train_batches` makes (`must_jax.types`), without its keys.

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
  grid = tuple(side // label_stride for side in image_size)

  def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

  def labels(field: Field) -> dict[str, jax.ShapeDtypeStruct]:
    match field:
      case ClassVector():
        arrays = {"probs": array(jnp.float32, field.num_classes)}
      case Boxes():
        arrays = {
          "boxes": array(jnp.float32, field.max_boxes, 4),
          "classes": array(jnp.int32, field.max_boxes),
          "scores": array(jnp.float32, field.max_boxes),
          "ignore": array(jnp.bool_, field.max_boxes),
          "valid": array(jnp.bool_, field.max_boxes),
        }
      case ClassMap():
        arrays = {"classes": array(jnp.int32, *grid)}
      case ValueMap():
        arrays = {
          "values": array(jnp.float32, *grid),
          "valid": array(jnp.bool_, *grid),
        }
      case VectorMap():
        arrays = {
          "vectors": array(jnp.float32, *grid, 3),
          "valid": array(jnp.bool_, *grid),
        }
    return arrays | {"present": array(jnp.bool_)}

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
