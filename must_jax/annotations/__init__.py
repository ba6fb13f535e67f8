"""Labels as files of the tools in which people mend them, and back.

A format is a module with `FIELDS`, the roles of labels that it can hold,
`IMAGES`, the folder of images in what it writes, with `write(folder, target,
images)`, with `recognizes(path, value)`, whether a folder or the JSON of a file
is its own, and with `read(path, target) -> Returned`. To add one, add its
module and its line here. What files mean is as for the importer of the format.
"""

from typing import Any

from must_jax.annotations import coco, cvat, label_studio, masks, yolo

FORMATS: dict[str, Any] = {
  "coco": coco,
  "masks": masks,
  "yolo": yolo,
  "label-studio": label_studio,
  "cvat": cvat,
}

__all__ = ["FORMATS"]
