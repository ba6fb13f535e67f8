"""Maps that are stored coarser than their images: `--map-stride`.

A student reads one value for `data.label_stride` pixels a side, but a PNG is
decoded whole. Where maps are stored at that stride, less is stored and decoded,
and an image that is not scaled gets the same labels: both sample at the centres
of the cells, `maps.Grid` here and `placement.Cells` there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from must_jax.fields import Description, make_field
from must_jax.importers.items import Imported, Plan


@dataclasses.dataclass(frozen=True)
class ReadCoarseMaps:
  """Reads images, and takes of their maps one value for each cell.

  Attributes:
    read: see `Plan`.
    fields: see `Plan`.
    stride: pixels of the image a side of a cell.
  """

  read: Callable[[Any], Iterator[Imported]]
  fields: Mapping[str, Description]
  stride: int

  def __call__(self, item: Any) -> Iterator[Imported]:
    """The images of an item; a map that cannot be stored is not hidden."""
    for image in self.read(item):
      try:
        yield self._coarse(image)
      except ValueError as error:
        yield image.left_out(str(error))

  def _coarse(self, image: Imported) -> Imported:
    from must_jax.storage import records

    if image.picture is None:
      return image
    labels = image.labels
    # What is wrong may lie between the samples.
    records.encode_labels(image.key, "ok", labels.arrays, fields=self.fields)
    height, width = image.picture.size
    size = -(-height // self.stride), -(-width // self.stride)
    coarse = {}
    for name, given in labels.arrays.items():
      field = make_field(self.fields[name])
      arrays = {key: np.asarray(array) for key, array in given.items()}
      field.check_extent(arrays, (height, width))
      coarse[name] = field.reduced(arrays, size)
    return dataclasses.replace(
      image, labels=dataclasses.replace(labels, arrays=coarse)
    )


def with_coarse_maps(plan: Plan, stride: int) -> Plan:
  """The plan whose maps have one value for `stride` pixels a side.

  Raises:
    ValueError: none of its fields is a map.
  """
  if stride == 1:
    return plan
  if not any(make_field(entry).is_map for entry in plan.fields.values()):
    names = ", ".join(sorted(plan.fields)) or "none"
    raise ValueError(
      f"--map-stride is {stride}; the labels that are imported ({names}) are no"
      " maps. Leave it out."
    )
  note = f"maps have one value for {stride} x {stride} pixels of their image"
  return dataclasses.replace(
    plan,
    read=ReadCoarseMaps(plan.read, plan.fields, stride),
    notes=[*plan.notes, note],
  )
