"""Labels through the libraries of other tools, and back: what has changed?

  python -m benchmarks.round_trip LABELS --images IMAGES --workdir DIR

Exports a label set in each format, has the format's own libraries read and
write it, imports what they wrote, and compares that with the label set: in the
file as it came back, and in the correction set. Labels in which no score lies
below the threshold of reading come back whole. Needs the extra `dev`.
"""

import argparse
import contextlib
import io
import json
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from must_jax.annotations import FORMATS, exchange
from must_jax.cli import main as must_jax
from must_jax.curation import corrections
from must_jax.fields import make_field
from must_jax.storage import records
from must_jax.storage.image_files import Picture
from must_jax.storage.path import Path
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.types import IGNORE_LABEL

Folder = pathlib.Path
MIN_SCORE = 0.5


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without what libraries say of themselves."""
  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
      yield
    finally:
      logging.disable(logging.NOTSET)


def by_pycocotools(folder: Folder, out: Folder) -> Folder:
  """Annotations loaded as results, and masks decoded and encoded."""
  from pycocotools import mask as rle
  from pycocotools.coco import COCO

  path = folder / "annotations" / "instances_default.json"
  coco = COCO(str(path))
  results = coco.loadRes(
    [{"score": 1.0, **annotation} for annotation in coco.dataset["annotations"]]
  )
  for annotation in coco.anns.values():
    given = results.anns[annotation["id"]]
    assert given["bbox"] == annotation["bbox"]
    if annotation["segmentation"]:
      mask = coco.annToMask(annotation)
      assert annotation["area"] == mask.sum()
      encoded = rle.encode(np.asfortranarray(mask))
      counts = encoded["counts"].decode()
      annotation["segmentation"] = {"size": [*mask.shape], "counts": counts}
  out.mkdir(parents=True)
  (out / "results.json").write_text(json.dumps(coco.dataset))
  return out / "results.json"


def by_datumaro(
  read: str, write: str, file: str, **options: Any
) -> Callable[[Folder, Folder], Folder]:
  """A dataset imported in a format, and exported.

  Args:
    read: format of what is exported here.
    write: that of what is imported here.
    file: of it.
    **options: of Datumaro's exporter.
  """

  def through(folder: Folder, out: Folder) -> Folder:
    import datumaro

    dataset = datumaro.Dataset.import_from(str(folder), read)
    dataset.export(str(out), write, save_media=True, **options)
    return out / file

  return through


def by_cvat_sdk(folder: Folder, out: Folder) -> Folder:
  """Shapes as CVAT's server takes and gives them."""
  from cvat_sdk import masks, models

  for label in json.loads((folder / "labels.json").read_text()):
    attributes = [models.AttributeRequest(**a) for a in label.pop("attributes")]
    models.PatchedLabelRequest(**label, attributes=attributes)
  tree = ElementTree.parse(folder / "annotations.xml")
  for image in tree.getroot().iter("image"):
    size = {f"image_{n}": int(image.get(n, 0)) for n in ("width", "height")}
    for element in image:
      if element.tag == "box":
        names = ("xtl", "ytl", "xbr", "ybr")
        points = [float(element.get(name, "")) for name in names]
      elif element.tag == "mask":
        place = [int(element.get(n, 0)) for n in ("left", "top")]
        extent = [int(element.get(n, 0)) for n in ("width", "height")]
        points = [int(n) for n in element.get("rle", "").split(",")]
        points += [
          *place,
          *(p + e - 1 for p, e in zip(place, extent, strict=True)),
        ]
      else:
        continue
      kind = models.ShapeType("rectangle" if element.tag == "box" else "mask")
      shape = models.LabeledShapeRequest(
        type=kind, frame=0, label_id=1, points=[float(p) for p in points]
      )
      if element.tag == "box":
        for name, point in zip(names, shape.points, strict=True):
          element.set(name, f"{point:.2f}")  # as CVAT's exporter writes it
      else:
        mask = masks.decode_mask(shape.points, **size)
        *runs, left, top, right, bottom = map(int, masks.encode_mask(mask))
        element.set("rle", ", ".join(map(str, runs)))
        values = (left, top, right - left + 1, bottom - top + 1)
        for name, value in zip(
          ("left", "top", "width", "height"), values, strict=True
        ):
          element.set(name, str(value))
  out.mkdir(parents=True)
  tree.write(out / "annotations.xml")
  return out / "annotations.xml"


def by_label_studio_sdk(folder: Folder, out: Folder) -> Folder:
  """Predictions checked against the labelling interface, and submitted."""
  from label_studio_sdk.converter import brush
  from label_studio_sdk.label_interface import LabelInterface

  interface = LabelInterface((folder / "label_config.xml").read_text())
  interface.validate()
  tasks = json.loads((folder / "tasks.json").read_text())
  for task in tasks:
    (prediction,) = task.pop("predictions")
    errors = interface.validate_prediction(prediction, return_errors=True)
    assert not errors, errors
    for region in prediction["result"]:
      if "rle" in region["value"]:
        size = region["original_height"], region["original_width"]
        pixels = brush.decode_rle(region["value"]["rle"]).reshape(*size, 4)
        region["value"]["rle"] = brush.mask2rle(pixels[..., 3])
    annotation = {"result": prediction["result"], "was_cancelled": False}
    assert interface.validate_annotation(annotation)
    task["annotations"] = [annotation]
  out.mkdir(parents=True)
  (out / "export.json").write_text(json.dumps(tasks))
  return out / "export.json"


def by_pillow(folder: Folder, out: Folder) -> Folder:
  """PNGs opened and saved."""
  from PIL import Image

  for path in (folder / "masks").rglob("*.png"):
    target = out / path.relative_to(folder / "masks")
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
      image.save(target)
  return out


# What reads and writes each format: (format, library, function).
TRIPS: tuple[tuple[str, str, Callable[[Folder, Folder], Folder]], ...] = (
  ("coco", "pycocotools", by_pycocotools),
  (
    "coco",
    "datumaro",
    by_datumaro(
      "coco_instances",
      "coco_instances",
      "annotations/instances_default.json",
      segmentation_mode="mask",
    ),
  ),
  ("masks", "PIL", by_pillow),
  ("yolo", "datumaro", by_datumaro("yolo", "yolo", "")),  # reads no polygons
  ("label-studio", "label_studio_sdk", by_label_studio_sdk),
  ("cvat", "cvat_sdk", by_cvat_sdk),
  ("cvat", "datumaro", by_datumaro("cvat", "cvat", "annotations.xml")),
)


def travel(
  labels: Folder,
  images: Folder,
  workdir: Folder,
  form: str,
  through: Callable[[Folder, Folder], Folder],
) -> dict[str, float]:
  """Sends a label set out and back; returns what `compare` finds."""
  sets = ["--images", str(images)]
  words = ["labels", "export", str(labels), *sets, "--format", form]
  words += ["--min-score", str(MIN_SCORE), "--out", str(workdir / "out")]
  with _quiet():
    assert must_jax(words) == 0
    back = through(workdir / "out", workdir / "back")
    words = ["labels", "import", str(back), *sets, "--format", form]
    words += ["--labels", str(labels), "--out", str(workdir / "corrections")]
    assert must_jax(words) == 0
  return compare(labels, images, workdir / "corrections", back, form)


def compare(
  labels: Folder, images: Folder, corrected: Folder, back: Folder, form: str
) -> dict[str, float]:
  """Compares what came back with what was exported.

  Returns:
    Numbers of `images` and of those that are `lost`, of `boxes` and `masks`;
    the largest difference of an edge in the file and in the corrections, in
    pixels (`in_file`, `in_set`); how many classes, pixels and scores are not
    the same (`changed`).
  """
  exported, made = LabelSet.open(labels), LabelSet.open(corrected)
  sizes = _sizes(images, exported)
  target = exchange.choose_target(
    "", "", exported.fields, sizes, FORMATS[form].FIELDS, None
  )
  returned = FORMATS[form].read(Path(back), target)
  lost = len(sizes.keys() - returned.elements.keys())
  found = {"images": len(sizes), "lost": lost, "boxes": 0, "masks": 0}
  changed, far = 0, {"in_file": 0.0, "in_set": 0.0}
  fields = {n: make_field(exported.fields[n]) for n in target.fields.values()}
  for before, after in zip(_records(exported), _records(made), strict=True):
    key = records.key_of(before).decode()
    raw = returned.read(returned.elements[key], Picture(b"", sizes[key]))
    assert not raw.rejected and records.status_of(after) == "corrected"
    stored = records.stored_labels(before, fields)
    now = records.stored_labels(after, fields)
    for role, name in target.fields.items():
      wanted = corrections.at_least(
        exported.fields[name], stored[name], MIN_SCORE
      )
      if role == "objects":
        found["boxes"] += len(wanted["classes"])
        wanted, given, kept = map(
          _in_order, (wanted, raw.arrays[role], now[name])
        )
        for where, arrays in (("in_file", given), ("in_set", kept)):
          apart = np.abs(wanted["boxes"].astype(float) - arrays["boxes"])
          apart *= np.tile(sizes[key], 2)
          far[where] = max(far[where], apart.max(initial=0))
          changed += (wanted["classes"] != arrays["classes"]).sum()
        changed += (wanted["scores"] != kept["scores"]).sum()
      elif role == "mask":
        known = wanted["classes"] != IGNORE_LABEL
        found["masks"] += len(np.unique(wanted["classes"][known]))
        for arrays in (raw.arrays[role], now[name]):
          changed += (wanted["classes"] != arrays["classes"]).sum()
        scores = wanted["confidence"] != now[name]["confidence"]
        changed += scores[known].sum()
  return {**found, **far, "changed": int(changed)}


def _records(labels: LabelSet) -> Iterator[bytes]:
  for i in range(len(labels.shards)):
    yield from labels.reader(i)


def _sizes(images: Folder, labels: LabelSet) -> dict[str, tuple[int, int]]:
  """Height and width by key."""
  opened = ImageSet.open(images, labels.manifest["image_set"]["split"])
  sizes = {}
  for i in range(opened.num_records):
    parsed = records.parse_image(opened.read(i))
    height, width = parsed["size"].numpy().tolist()
    sizes[parsed["key"].numpy().decode()] = height, width
  return sizes


def _in_order(arrays: Any) -> dict[str, np.ndarray]:
  """Boxes in an order that does not depend on their last digits."""
  order = np.lexsort((*arrays["boxes"].round(4).T, arrays["classes"]))
  return {name: array[order] for name, array in arrays.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("labels", type=Folder)
  parser.add_argument("--images", type=Folder, required=True)
  parser.add_argument("--workdir", type=Folder, required=True)
  args = parser.parse_args()
  roles = {
    exchange.ROLES.get(d["kind"])
    for d in LabelSet.open(args.labels).fields.values()
  }
  for form, library, through in TRIPS:
    if roles.isdisjoint(FORMATS[form].FIELDS) or (
      form == "yolo" and "objects" not in roles
    ):
      continue
    workdir = args.workdir / f"{form}-{library}"
    workdir.mkdir(parents=True)
    found = travel(args.labels, args.images, workdir, form, through)
    told = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    print(f"{form:<12} {library:<16} {told}", flush=True)


if __name__ == "__main__":
  main()
