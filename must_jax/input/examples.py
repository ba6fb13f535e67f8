"""The graph that makes examples of records: parse, decode, place, colour."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from must_jax.fields.placement import Placement
from must_jax.input import geometry
from must_jax.input.geometry import AugmentOptions
from must_jax.input.union import TaskLabels
from must_jax.quiet_tensorflow import tf
from must_jax.storage import records

Example = dict[str, Any]
Plan = dict[str, Any]


class ExampleGraph(NamedTuple):
  """How records become examples, in two steps.

  Attributes:
    plan: from positions (int64 [n]), image records (string [n]), sidecars and
      origins ([n, tasks], string and int64; see `union.Record`) to all that is
      known of the examples before decoding, [n, ...]; what the examples have of
      it is its "example". Many small operations, which take little time for
      many records at once. An image record may have no more than a key.
    make: from one row of a plan to the example.
  """

  plan: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], Plan]
  make: Callable[[Plan], Example]


@functools.lru_cache(16)  # a labelling job makes a loader for each shard
def example_graph(
  labels: tuple[TaskLabels, ...],
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
  views: int = 1,
) -> ExampleGraph:
  """The graph that makes examples.

  Args:
    labels: that are read, see `Union.labels`.
    image_size: (H, W) of the network input; None leaves images as they are.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    seed: of the augmentation.
    views: of each image; with more than one "image" has a dimension of them.
  """

  @tf.function(
    input_signature=[
      tf.TensorSpec([None], tf.int64),
      tf.TensorSpec([None], tf.string),
      tf.TensorSpec([None, len(labels)], tf.string),
      tf.TensorSpec([None, len(labels)], tf.int64),
    ],
    autograph=False,
  )
  def plan(
    positions: tf.Tensor,
    images: tf.Tensor,
    sidecars: tf.Tensor,
    origins: tf.Tensor,
  ) -> Plan:
    head = records.parse_image(images)
    randoms = [
      geometry.random_numbers(seed, positions, view) for view in range(views)
    ]
    placements = [
      geometry.whole_image(head["size"])
      if image_size is None
      else geometry.choose_placement(head["size"], image_size, augment, random)
      for random in randoms
    ]
    placement = placements[0]
    return {
      "example": {
        "valid": tf.strings.length(head["image"]) > 0,
        "content_size": tf.cast(placement.content, tf.float32),
        "original_size": tf.cast(placement.window[:, 2:], tf.float32),
        "placement": {
          "size": placement.size,
          "window": tf.cast(placement.window, tf.float32),
          "canvas": placement.canvas,
        },
        "position": tf.cast(positions, tf.int32),
        "key": head["key"],
      },
      "image": head["image"],
      "image_record": images,
      "sidecars": sidecars,
      # TensorFlow crashes where it unbatches numbers of no width.
      "origins": tf.pad(origins, [[0, 0], [0, 1]]),
      "views": tuple(zip(placements, randoms, strict=True)),
    }

  def make_view(
    plan: Plan, placement: Placement, random: tf.Tensor
  ) -> tf.Tensor:
    if image_size is None:
      return records.decode_image(
        plan["image"], placement.size, placement.window
      )
    return geometry.decode_image(
      plan["image"], placement, image_size, augment, random
    )

  @tf.function(autograph=False)
  def make(plan: Plan) -> Example:
    pixels = [make_view(plan, *view) for view in plan["views"]]
    placement, _ = plan["views"][0]
    if image_size is None or augment.varies_size:
      canvas: Any = tf.unstack(placement.canvas)
    else:
      canvas = image_size
    sidecars = tf.unstack(plan["sidecars"], len(labels))
    origins = tf.unstack(plan["origins"], len(labels) + 1)[:-1]
    placed = {}
    for sidecar, origin, read in zip(sidecars, origins, labels, strict=True):
      fields = dict(read.fields)
      parsed = records.parse_labels(
        _label_record(read, plan["image_record"], sidecar, origin),
        fields,
        plan["example"]["key"],
        {name: tf.gather(t, origin) for name, t in read.class_tables},
      )
      found = geometry.place_labels(
        parsed,
        fields,
        placement,
        canvas,
        label_stride,
      )
      for name, known in read.known:
        found[name]["known"] = tf.gather(known, origin)
      placed[read.task] = found
    return plan["example"] | {
      "image": pixels[0] if views == 1 else tf.stack(pixels),
      "labels": placed,
    }

  return ExampleGraph(plan, make)


@functools.lru_cache(16)
def batch_graph(
  graph: ExampleGraph, num_threads: int
) -> Callable[..., Example] | None:
  """What `ExampleGraph.plan` takes -> the examples of all rows, stacked.

  The program stays, where each `tf.data` pipeline instantiates its own.

  Args:
    graph: that makes the examples.
    num_threads: examples that are made at the same time.

  Returns:
    None where examples differ in their shapes.
  """
  make_plan: Any = graph.plan  # a tf.function, as the other is
  make: Any = graph.make
  plan = make_plan.get_concrete_function()
  row = tf.nest.map_structure(
    lambda x: tf.TensorSpec(x.shape[1:], x.dtype), plan.structured_outputs
  )
  example = make.get_concrete_function(row).structured_outputs
  if not example["image"].shape.is_fully_defined():
    return None
  known = plan.structured_outputs["example"]
  rest_spec = tf.nest.map_structure(
    lambda x: tf.TensorSpec(x.shape, x.dtype),
    {name: made for name, made in example.items() if name not in known},
  )

  def make_rest(row: Plan) -> Example:
    made = graph.make(row)
    return {name: made[name] for name in rest_spec}

  @tf.function(input_signature=make_plan.input_signature, autograph=False)
  def batch(*read: tf.Tensor) -> Example:
    plan = graph.plan(*read)
    rest = tf.map_fn(
      make_rest,
      plan,
      fn_output_signature=rest_spec,
      parallel_iterations=num_threads,
    )
    return plan["example"] | rest

  return batch


def _label_record(
  read: TaskLabels, image: tf.Tensor, sidecar: tf.Tensor, origin: tf.Tensor
) -> tf.Tensor:
  """The record that has a task's labels."""
  if not any(read.is_own):
    return sidecar
  if all(read.is_own):
    return image
  own = tf.gather(read.is_own, origin)
  return tf.cond(own, lambda: image, lambda: sidecar)
