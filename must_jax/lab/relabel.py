"""Stages: sets of the embedded world with other labels than it has."""

from collections.abc import Iterator, Sequence
from typing import Any

from must_jax.fields import make_field
from must_jax.storage.path import Path
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import ImageSet


def write_part(
  directory: Path,
  images: str,
  part: int,
  classes: Sequence[str],
  listed: Sequence[str],
) -> None:
  """Writes every second image of a set, with the boxes of some classes.

  Args:
    directory: gets the set.
    images: of the set that has all.
    part: 0 or 1, which images.
    classes: of which boxes are kept.
    listed: what the set says that it knows.
  """
  from must_jax.storage import records

  whole = ImageSet.open(images, "train")
  described = whole.fields["objects"]
  names, field = described["classes"], make_field(described)

  def examples() -> Iterator[dict[str, Any]]:
    for number in range(part, whole.num_records, 2):
      record = whole.read(number)
      (boxes,) = records.read_labels(record, {"objects": field}).values()
      keep = [i for i, k in enumerate(boxes["classes"]) if names[k] in classes]
      head = records.parse_image(record)
      yield {
        "key": head["key"].numpy(),
        "image": head["image"].numpy(),
        "height": int(head["size"][0]),
        "width": int(head["size"][1]),
        "labels": {
          "objects": {
            "boxes": boxes["boxes"][keep],
            "classes": [listed.index(names[boxes["classes"][i]]) for i in keep],
          }
        },
      }

  fields = {"objects": {**described, "classes": list(listed)}}
  write_image_set(
    directory, "part", "train", examples(), fields, overwrite=True
  )
