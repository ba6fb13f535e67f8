"""Images in TFRecord files of `tf.train.Example`, with lists of classes.

The layout of very large classification sets, such as JFT: many files, each
with an encoded image and any number of classes per record. A file becomes a
shard. A record whose checksum does not match costs itself; a broken length
costs the rest of its file, because nothing tells where the next record begins.
"""

import argparse
import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from must_jax.importers import lists
from must_jax.importers.items import Imported, Labels, Plan
from must_jax.importers.names import nfc
from must_jax.storage import image_files, tfrecord
from must_jax.storage.image_files import ImageOptions, Rejected
from must_jax.storage.path import Path, PathLike

HELP = "TFRecord files with an image and a list of classes per record"

_SUFFIXES = (".tfrecord", ".tfrecords")
_TEXT = "image/class/text"  # where most writers put the name of the class
_GZIP = b"\x1f\x8b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--records",
    nargs="+",
    required=True,
    metavar="GLOB",
    help="the files, such as '/data/jft/train-*'; not compressed",
  )
  add(
    "--image-feature",
    default="image/encoded",
    metavar="NAME",
    help="feature of the JPEG or PNG; default %(default)s",
  )
  add(
    "--label-feature",
    default="image/class/label",
    metavar="NAME",
    help="feature of the classes, as ids or names; default %(default)s",
  )
  add(
    "--score-feature",
    metavar="NAME",
    help="feature of a probability from 0 to 1 for each class",
  )
  add(
    "--key-feature",
    metavar="NAME",
    help="feature that names the image; default: file and place in it",
  )
  add(
    "--first-id",
    type=int,
    default=0,
    metavar="N",
    help="id of the first class in the files; default %(default)s. Many begin"
    " with 1, where 0 is a background",
  )
  labels = parser.add_mutually_exclusive_group(required=True)
  labels.add_argument(
    "--classes",
    metavar="FILE[:KEY]",
    help="names in the order of their ids: text, JSON, YAML or CSV",
  )
  labels.add_argument(
    "--unlabelled", action="store_true", help="take the images alone"
  )


def plan(args: argparse.Namespace) -> Plan:
  """Finds the files and looks into the first.

  Classes outside of `--classes` are dropped with a reason; a record without
  any class is an image without a label.

  Raises:
    ValueError: no files, two of one name, the first is no TFRecord file or
      lacks a feature, or the classes cannot be read.
  """
  paths = _find(args.records)
  classes = [] if args.unlabelled else lists.load_classes(args.classes)
  read = RecordReader(
    args.image_feature,
    args.label_feature if classes else None,
    args.score_feature if classes else None,
    args.key_feature,
    {name: i for i, name in enumerate(classes)},
    args.first_id,
  )
  read.check(paths[0])
  return Plan(
    {"label": {"kind": "ClassVector", "classes": classes}} if classes else {},
    [File(_stem(path), Path(path)) for path in paths],
    read,
    shard_per_item=True,
    summarize=_summarize,
  )


@dataclasses.dataclass(frozen=True)
class File:
  """A TFRecord file.

  Attributes:
    key: its name without extension; keys of its images begin with it.
    path: of the file.
  """

  key: str
  path: Path

  @property
  def files(self) -> tuple[Path]:
    """The file."""
    return (self.path,)


@dataclasses.dataclass(frozen=True)
class RecordReader:
  """Reads the images of a `File`.

  Attributes:
    image: name of the feature with the encoded image.
    label: with class ids or names; None takes no labels.
    score: with a probability for each class; None means 1.
    key: with the image's key; None makes one of file and place.
    classes: {name: id}.
    first_id: what ids of the files begin with.
    images: what image files do not say of themselves.
  """

  image: str
  label: str | None
  score: str | None
  key: str | None
  classes: Mapping[str, int]
  first_id: int = 0
  images: ImageOptions = dataclasses.field(default_factory=ImageOptions)

  def __call__(self, file: File) -> Iterator[Imported]:
    """The images of a file, in its order."""
    for index, (record, reason) in enumerate(_scan(file.path)):
      key = f"{file.key}/{index:08d}"
      try:
        if record is None:
          raise Rejected(reason)
        values = _features(record)
        key = self._key(values) if self.key else key
        picture = image_files.picture_of(
          _one(values, self.image, bytes), self.images
        )
        yield Imported(key, picture, self._labels(values))
      except Rejected as error:
        yield Imported(key, None, Labels({}, [str(error)]))

  def check(self, path: str) -> None:
    """Looks for the features in the first record of a file.

    Raises:
      ValueError: it is no TFRecord file, or lacks a feature.
    """
    record, reason = next(_scan(path), (None, "it is empty"))
    if record is None:
      raise ValueError(
        f"{path} cannot be read as TFRecord file: {reason}. Choose the files"
        " with --records."
      )
    try:
      values = _features(record)
    except Rejected as error:
      raise ValueError(f"{path}, record 0: {error}.") from None
    # An image without classes may lack the features of its labels.
    for option, name in (("image", self.image), ("key", self.key)):
      if name and name not in values:
        raise ValueError(
          f"{path} has no feature {name!r}; its first record has"
          f" {sorted(values)}. Give --{option}-feature."
        )

  def _key(self, values: Mapping[str, list]) -> str:
    key = _one(values, self.key, bytes, int)
    try:
      return str(key) if isinstance(key, int) else nfc(key.decode())
    except UnicodeDecodeError:
      raise Rejected(f"{self.key!r} is {key!r}, no UTF-8 text") from None

  def _labels(self, values: Mapping[str, list]) -> Labels:
    if not self.label:
      return Labels({})
    labels = values.get(self.label, [])
    scores = values.get(self.score, []) if self.score else [1.0] * len(labels)
    if len(scores) != len(labels):
      raise Rejected(
        f"{self.score!r} has {len(scores)} values for {len(labels)} classes"
      )
    names = values.get(_TEXT, []) if self.label != _TEXT else []
    probs: dict[int, float] = {}
    rejected = []
    for i, (label, score) in enumerate(zip(labels, scores, strict=True)):
      try:
        class_id = self._class_id(label)
        if len(names) == len(labels):
          self._check_name(label, class_id, names[i])
        if not (isinstance(score, float) and 0 <= score <= 1):
          raise Rejected(
            f"{self.score!r} is {score!r}; expected a probability, 0 to 1"
          )
        probs[class_id] = max(score, probs.get(class_id, 0.0))
      except Rejected as error:
        rejected.append(str(error))
    arrays: dict[str, Any] = {"classes": list(probs)}
    if self.score:
      arrays["probs"] = list(probs.values())
    return Labels(
      {"label": arrays} if probs else {},
      rejected,
      {"labelled": bool(probs), "without": not probs, "classes": len(probs)},
    )

  def _class_id(self, label: bytes | int | float) -> int:
    if isinstance(label, bytes):
      class_id = self.classes.get(nfc(label.decode(errors="replace")))
      if class_id is not None:
        return class_id
    elif isinstance(label, int) and (
      0 <= label - self.first_id < len(self.classes)
    ):
      return label - self.first_id
    last = self.first_id + len(self.classes) - 1
    raise Rejected(
      f"class {label!r} is none of the {len(self.classes)} of --classes, ids"
      f" {self.first_id} to {last}"
      + "; do ids begin with 1? Then give --first-id 1"
      * (label == last + 1 == len(self.classes))
    )

  def _check_name(self, label: Any, class_id: int, text: Any) -> None:
    """Compares a class with the name that the record has for it, too."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else ""
    if self.classes.get(text, class_id) != class_id:
      raise Rejected(
        f"class {label!r} is {list(self.classes)[class_id]!r} by --classes,"
        f" {text!r} by {_TEXT}; give --first-id, or --label-feature {_TEXT}"
      )


def _find(globs: list[str]) -> list[str]:
  from must_jax.quiet_tensorflow import tf  # its globs reach object stores

  paths = set()
  for glob in globs:
    found = [path for path in tf.io.gfile.glob(glob) if not path.endswith("/")]
    if not found:
      raise ValueError(f"--records {glob!r} matches no file.")
    paths.update(found)
  stems: dict[str, str] = {}
  for path in sorted(paths):
    other = stems.setdefault(_stem(path), path)
    if other != path:
      raise ValueError(
        f"{other} and {path} have the same name, and keys of images begin with"
        " it; expected different ones. Rename one, or import them apart."
      )
  return sorted(paths)


def _stem(path: str) -> str:
  name = os.path.basename(path)
  for suffix in _SUFFIXES:
    name = name.removesuffix(suffix)
  return name


def _scan(path: PathLike) -> Iterator[tuple[bytes | None, str]]:
  """Records of a file in order; (None, reason) for one that cannot be read."""
  size = Path(path).stat().length
  with Path(path).open("rb") as file:
    place = 0
    while place < size:
      head = file.read(12)
      whole = len(head) == 12
      length, crc = struct.unpack("<QI", head) if whole else (0, 0)
      end = place + 16 + length
      if not whole or crc != tfrecord.masked_crc(head[:8]) or end > size:
        gzip = " (the file is compressed with GZIP: unpack it)"
        yield (
          None,
          f"the record at byte {place} has a broken length or no end"
          f"{gzip if place == 0 and head[:2] == _GZIP else ''}; the last"
          f" {size - place} of {size} bytes were not read",
        )
        return
      if length > tfrecord.MAX_RECORD_BYTES:
        file.seek(end)
        yield (
          None,
          f"has {length} bytes; at most {tfrecord.MAX_RECORD_BYTES} are"
          " allowed",
        )
      else:
        record, crc = file.read(length), file.read(4)
        if struct.pack("<I", tfrecord.masked_crc(record)) == crc:
          yield record, ""
        else:
          yield None, "its checksum does not match"
      place = end


def _features(record: bytes) -> dict[str, list]:
  """{feature: values} of a serialised `tf.train.Example`."""
  from google.protobuf import message

  from must_jax.quiet_tensorflow import tf

  try:
    example = tf.train.Example.FromString(record)
  except message.DecodeError:
    raise Rejected("is no tf.train.Example") from None
  return {
    name: list(getattr(feature, kind).value)
    for name, feature in example.features.feature.items()
    if (kind := feature.WhichOneof("kind"))
  }


def _one(values: Mapping[str, list], name: str | None, *types: type) -> Any:
  given = values.get(name or "", [])
  if len(given) != 1 or not isinstance(given[0], types):
    raise Rejected(
      f"feature {name!r} holds {len(given)} values"
      f" {type(given[0]).__name__ if given else ''}; expected one of"
      f" {' or '.join(t.__name__ for t in types)}"
    )
  return given[0]


def _summarize(counts: Mapping[str, float]) -> list[str]:
  if not counts:
    return []
  labelled = counts["labelled"]
  return [
    f"images with classes: {labelled:.0f}, with"
    f" {counts['classes'] / max(labelled, 1):.3g} each on average; without:"
    f" {counts['without']:.0f}"
  ]
