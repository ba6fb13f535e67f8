"""Stages: sets of the embedded world with other labels than it has."""

import functools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from must_jax.curation import agreement, corrections, ranking
from must_jax.curation.corrections import Correction
from must_jax.fields import make_field
from must_jax.importers.items import Labels
from must_jax.storage.path import Path
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import ImageSet, LabelSet

CORRECTIONS = "corrections"


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


def _say(labels: Labels, size: tuple[int, int]) -> Correction:
  del size  # labels of the world are parts of the image
  return Correction("corrected", labels)


def correct(
  directory: Path,
  images: str,
  truth: str,
  labels: str,
  others: Sequence[str],
  way: str,
  count: int,
  seed: int,
) -> dict[str, float]:
  """Corrects some images of a label set, as a person who knows the truth.

  Args:
    directory: gets the correction set, below `CORRECTIONS`.
    images: the image set.
    truth: the same with true labels.
    labels: the label set.
    others: label sets of the same images, by which those are found whose labels
      are likely wrong.
    way: "worst", those that the page shows first, or "random".
    count: images to correct.
    seed: of the random ones.

  Returns:
    How far the labels of the chosen images, and of all, agreed with the truth.
  """
  from must_jax.storage import records

  true = ImageSet.open(truth, "train")
  label_set = LabelSet.open(labels)
  described = label_set.fields
  fields = {name: make_field(true.fields[name]) for name in described}
  found = {}
  for number in range(true.num_records):
    record = true.read(number)
    key = records.parse_image(record)["key"].numpy().decode()
    found[key] = records.read_labels(record, fields)
  if way == "worst":
    chosen = ranking.rank([labels, *others], images)[:count]
  else:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(sorted(found), count, replace=False).tolist()
  corrections.write(
    directory / CORRECTIONS,
    ImageSet.open(images, "train"),
    label_set,
    {key: functools.partial(_say, Labels(found[key])) for key in chosen},
    {
      name: {**true.fields[name], **description}
      for name, description in described.items()
    },
    by="the truth",
    when="2000-01-01T00:00:00Z",  # a stage's bytes do not depend on the day
    form=way,
    overwrite=True,
  )
  agreeing = {}
  for key, pairs in agreement.compare(labels, truth):
    shares = [agreement.share(counts) for counts in pairs.values()]
    if known := [share for share in shares if share is not None]:
      agreeing[key] = statistics.mean(known)
  return {
    "agreed": statistics.mean(agreeing[k] for k in chosen if k in agreeing),
    "agreed_of_all": statistics.mean(agreeing.values()),
  }
