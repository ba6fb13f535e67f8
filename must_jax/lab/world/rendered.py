"""Examples of the image sets: a picture with all that is known about it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from must_jax.lab.world.image_sets import SetSpec, get_spec
from must_jax.lab.world.object_kinds import Draw
from must_jax.lab.world.shade import Rendering, render, surfaces
from must_jax.lab.world.styles import Drawn, Style, draw_scene
from must_jax.types import IGNORE_LABEL

MIN_PIXELS = 12  # of a box in a picture of 64 pixels; smaller ones are ignored


def render_example(
  set_name: str, split: str, index: int, image_size: int, seed: int = 0
) -> dict[str, Any]:
  """One example with all that is known about it.

  Args:
    set_name: key of `SETS`.
    split: any word; splits have different scenes.
    index: of the example.
    image_size: pixels a side; the scene does not depend on it.
    seed: of the whole world.

  Returns:
    By name:

    - key: str.
    - image: uint8 [S, S, 3].
    - label: class of the image, or None if no object of a class is in sight.
    - objects: boxes float32 [G, 4] normalised yxyx, tight around what is in
      sight; classes int64 [G]; ignore bool [G], where few pixels are in sight
      or the kind has no class.
    - instances: int16 [S, S], the object each pixel shows, -1 for none.
    - box_instances: int64 [G], the objects that the boxes are of.
    - mask: uint8 [S, S], classes of pixels (all `IGNORE_LABEL` where the set
      has no such classes).
    - depth: float32 [S, S], metres along the camera's axis, inf in the sky.
    - inverse_depth: float32 [S, S], 0 in the sky.
    - normals: float32 [S, S, 3], camera frame, 0 in the sky.

  Raises:
    ValueError: no such set.
  """
  spec = get_spec(set_name)
  key = f"{spec.scenes_of or set_name}-{split}-{index:06d}"
  drawn, style = _draw(spec, f"{seed}/{key}")
  rendering = render(drawn.scene, image_size)
  instances = drawn.scene.owners[rendering.surface].astype(np.int16)
  areas = np.bincount(instances[instances >= 0], minlength=len(drawn.kinds))
  known = [kind in spec.kinds for kind in drawn.kinds]
  label = None
  if style.dominant:
    label = spec.kinds.index(drawn.kinds[0])
  elif (areas * known).any():
    label = spec.kinds.index(drawn.kinds[int(np.argmax(areas * known))])
  objects, box_instances = _boxes(spec, drawn, instances, areas)
  return {
    "key": key,
    "image": rendering.image,
    "label": label,
    "objects": objects,
    "instances": instances,
    "box_instances": box_instances,
    "mask": _mask(spec, drawn, rendering),
    "depth": rendering.depth.astype(np.float32),
    "inverse_depth": (1 / rendering.depth).astype(np.float32),
    "normals": rendering.normals,
  }


def stored_labels(
  set_name: str, example: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """The labels of `render_example` that the set keeps, as records take them."""
  spec = get_spec(set_name)
  solid = np.isfinite(example["depth"])
  depth = {"values": example["inverse_depth"], "valid": np.ones_like(solid)}
  if spec.depth_unit == "metres":
    values = np.where(solid, example["depth"], 0)
    depth = {"values": values, "valid": solid}
  labels = {
    "label": {"classes": [example["label"]]},
    "objects": example["objects"],
    "mask": {"classes": example["mask"]},
    "depth": depth,
    "normals": {"vectors": example["normals"], "valid": solid},
  }
  if example["label"] is None:
    del labels["label"]
  return {name: labels[name] for name in spec.fields if name in labels}


def _draw(spec: SetSpec, seed: str) -> tuple[Drawn, Style]:
  """A scene; drawn again where what should dominate it does not."""
  for attempt in range(20):
    draw = Draw(f"{seed}/{attempt}")
    style = draw.choice(spec.styles)
    drawn = draw_scene(draw, style)
    if not style.dominant or _dominated(drawn):
      break
  return drawn, style


def _dominated(drawn: Drawn) -> bool:
  """Whether the first object is in sight and larger than all others."""
  owners = drawn.scene.owners[surfaces(drawn.scene, 24)]
  areas = np.bincount(owners[owners >= 0], minlength=len(drawn.kinds))
  return areas[0] > 0.04 * owners.size and areas[0] > 1.5 * max(
    areas[1:], default=0
  )


def _boxes(
  spec: SetSpec, drawn: Drawn, instances: np.ndarray, areas: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  size = len(instances)
  boxes, classes, ignore = [], [], []
  shown = np.flatnonzero(areas)
  for number in shown:
    rows, columns = np.nonzero(instances == number)
    kind = drawn.kinds[number]
    boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    classes.append(spec.kinds.index(kind) if kind in spec.kinds else 0)
    few = areas[number] < MIN_PIXELS * (size / 64) * (size / 64)
    ignore.append(kind not in spec.kinds or few)
  return {
    "boxes": np.array(boxes, np.float32).reshape(-1, 4) / size,
    "classes": np.array(classes, np.int64),
    "ignore": np.array(ignore, bool),
  }, shown


def _mask(spec: SetSpec, drawn: Drawn, rendering: Rendering) -> np.ndarray:
  merge = dict(spec.merge)
  ids = {name: i for i, name in enumerate(spec.mask_classes)}
  table = [
    ids.get(merge.get(name, name), IGNORE_LABEL) for name in drawn.scene.names
  ]
  return np.array(table, np.uint8)[rendering.surface]
