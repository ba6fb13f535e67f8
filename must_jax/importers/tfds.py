"""Datasets of TensorFlow Datasets (TFDS).

Features are taken by what they are: `label` is a class, `objects` with `bbox`
and `label` are boxes, `depth` is in metres. Of an image the encoded bytes are
kept. Several datasets with the same labels become one split.
"""

import argparse
import dataclasses
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.importers import files
from must_jax.importers.items import Imported, Labels, Plan
from must_jax.importers.names import nfc
from must_jax.storage import image_files, orientation
from must_jax.storage.image_files import ImageOptions, Picture, Rejected
from must_jax.storage.path import Path

HELP = "datasets of TensorFlow Datasets, such as voc/2007"

_DATASET = re.compile(
  r"(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>[a-z].*))?"
)
_KEYS = ("file_name", "image/filename", "id", "image/id")
_IGNORE = ("is_crowd", "is_difficult")
# These splits hold images alone, with empty lists where others have objects.
_UNLABELLED = re.compile(r"coco/201[47]:test.*|voc/2012:test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--dataset",
    nargs="+",
    required=True,
    metavar="NAME[/CONFIG][:SPLIT]",
    help="such as cifar100, coco/2017:validation, voc/2007:train+validation or"
    " imagenet2012:train[:1000]; SPLIT is --split by default",
  )
  add(
    "--data-dir",
    metavar="DIR",
    help="of prepared datasets; default $TFDS_DATA_DIR or"
    " ~/tensorflow_datasets",
  )
  add(
    "--download",
    action="store_true",
    help="download and prepare what is not there",
  )
  add("--unlabelled", action="store_true", help="take the images alone")


def plan(args: argparse.Namespace) -> Plan:
  """Divides the datasets into ranges of about one shard each.

  Raises:
    ValueError: a dataset or split that is unknown or not prepared, or datasets
      with different labels.
  """
  parts: list[ExampleRange] = []
  fields: dict[str, Any] = {}
  unused: set[str] = set()
  for text in args.dataset:
    match = _DATASET.fullmatch(text)
    if not match:
      raise ValueError(
        f"--dataset is {text!r}; expected NAME, NAME/CONFIG or"
        " NAME/CONFIG:SPLIT."
      )
    builder = _builder(match["name"], args)
    features = dict(builder.info.features.items())
    if "image" not in features:
      raise ValueError(
        f"{text} has the features {sorted(features)}; expected an `image`."
      )
    given = {} if args.unlabelled else _fields(features)
    if not given and not args.unlabelled:
      raise ValueError(
        f"{text} has the features {sorted(features)}; expected `label`,"
        " `objects` with boxes, or `depth`. Give --unlabelled to take the"
        " images alone."
      )
    if parts and given != fields:
      raise ValueError(
        f"{text} has other labels than {args.dataset[0]}: {_short(given)} and"
        f" {_short(fields)}; expected the same. Import them apart."
      )
    fields = given
    unused |= set(features) - {"image", *given, *_KEYS}
    parts += _parts(builder, match["split"] or args.split)
  notes = [f"features left out: {', '.join(sorted(unused))}"] if unused else []
  notes += [
    f"{part.dataset}:{part.split} was published without labels"
    for part in parts
    if part.unlabelled
  ]
  total = sum(map(len, parts))
  if not total:
    raise ValueError(f"{args.dataset} hold no images.")
  shards = args.shards or -(-total // args.records_per_shard)
  return Plan(
    fields,
    [Range(f"{i:05d}", cut) for i, cut in enumerate(_cut(parts, shards))],
    ExampleReader(tuple(fields), prefixed=len(args.dataset) > 1),
    num_images=total,
    shard_per_item=True,
    summarize=_summarize,
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class ExampleRange:
  """Consecutive examples of a split.

  Attributes:
    dataset: its name, such as voc/2007.
    directory: where it is prepared.
    split: its name in TFDS.
    begin: the first example.
    end: after the last one.
  """

  dataset: str
  directory: str
  split: str
  begin: int
  end: int

  def __len__(self) -> int:
    return self.end - self.begin

  @property
  def unlabelled(self) -> bool:
    """Whether the split was published without its labels."""
    return bool(_UNLABELLED.fullmatch(f"{self.dataset}:{self.split}"))


@dataclasses.dataclass(frozen=True)
class Range:
  """Examples that become a shard.

  Attributes:
    key: its place among the others.
    parts: where they are.
  """

  key: str
  parts: Sequence[ExampleRange]

  @property
  def files(self) -> Iterator[Path]:
    """Those that are written anew when a dataset is prepared again."""
    for part in self.parts:
      yield Path(part.directory) / "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class ExampleReader:
  """Reads the examples of a `Range`.

  Attributes:
    fields: the labels to take.
    prefixed: keys begin with the name of the dataset.
    images: what image files do not say of themselves.
  """

  fields: Sequence[str]
  prefixed: bool
  images: ImageOptions = dataclasses.field(default_factory=ImageOptions)

  def __call__(self, item: Range) -> Iterator[Imported]:
    """The examples of a range, in their order in TFDS.

    Raises:
      ValueError: the files of the prepared dataset are damaged.
    """
    for part in item.parts:
      for index, example in enumerate(_examples(part), part.begin):
        key = _key(example, part.split, index)
        key = f"{part.dataset}/{key}" if self.prefixed else key
        try:
          picture = image_files.picture_of(example["image"], self.images)
          yield Imported(key, picture, self._labels(part, example, picture))
        except Rejected as error:
          yield Imported(key, None, Labels({}, [str(error)]))

  def _labels(
    self, part: ExampleRange, example: Mapping[str, Any], picture: Picture
  ) -> Labels:
    if part.unlabelled:
      return Labels({})
    arrays: dict[str, Any] = {}
    rejected: list[str] = []
    counts: dict[str, float] = {}
    turn = 1
    if {"objects", "depth"} & set(self.fields):
      # TFDS does not tell of which picture its boxes are.
      size = np.squeeze(example["depth"]).shape if "depth" in example else None
      turn = picture.turn_of_labels(size, "the depth map is")
    if "label" in self.fields and example["label"] >= 0:  # -1: has none
      arrays["label"] = {"classes": [int(example["label"])]}
    if "objects" in self.fields:
      # PASCAL counts pixels from 1, and TFDS keeps that.
      first = 1 if part.dataset.startswith("voc/") else 0
      arrays["objects"], rejected = _boxes(
        example["objects"], picture.size, first, turn
      )
      counts["objects"] = len(arrays["objects"]["classes"])
      counts["ignored"] = int(arrays["objects"]["ignore"].sum())
    if "depth" in self.fields:
      values = orientation.turn_map(np.squeeze(example["depth"]), turn)
      depth = arrays["depth"] = _depth(values, picture.size)
      counts["metres"] = float(depth["values"].sum())
      counts["valid"] = int(depth["valid"].sum())
      counts["pixels"] = depth["valid"].size
    return Labels(arrays, rejected, counts)


def _builder(name: str, args: argparse.Namespace) -> Any:
  """The builder of a prepared dataset."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=args.data_dir)
  except Exception as error:  # of many kinds
    raise ValueError(
      f"TFDS {tfds.__version__} cannot open {name!r}:"
      f" {textwrap.shorten(str(error), 200)} Names are listed on"
      " https://www.tensorflow.org/datasets/catalog."
    ) from None
  if builder.info.splits:
    return builder
  manual = builder.data_dir_root / "downloads" / "manual"
  if not args.download:
    how = (
      "Give --data-dir if it is elsewhere, or --download to download and"
      " prepare it once."
    )
    if needed := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      how = (
        f"It cannot be downloaded: put its files into {manual}.\n"
        f"{textwrap.dedent(needed).strip()}\nThen run the same command with"
        " --download, which prepares it once."
      )
    raise ValueError(
      f"{name} is not prepared in {builder.data_dir_root}. {how}"
    )
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual)
    )
  except Exception as error:  # network, disk, checksums, missing files
    raise ValueError(f"{name} cannot be prepared: {error}") from None
  return builder


@functools.cache
def _builder_in(directory: str) -> Any:
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory)


def _fields(features: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the features that are known."""
  import tensorflow_datasets as tfds

  fields: dict[str, Any] = {}
  label = features.get("label")
  if isinstance(label, tfds.features.ClassLabel):
    fields["label"] = {"kind": "ClassVector", "classes": label.names}
  objects = features.get("objects")
  if isinstance(objects, tfds.features.Sequence) and {"bbox", "label"} <= set(
    getattr(objects.feature, "keys", list)()
  ):
    fields["objects"] = {"kind": "Boxes", "classes": objects["label"].names}
  depth = features.get("depth")
  if (
    isinstance(depth, tfds.features.Tensor)
    and np.dtype(depth.np_dtype).kind == "f"
  ):
    fields["depth"] = {"kind": "ValueMap", "unit": "metres"}
  return fields


def _short(fields: Mapping[str, Any]) -> list[str]:
  return [
    f"{name} {spec.get('classes', [])[:3]}..." for name, spec in fields.items()
  ]


def _parts(builder: Any, split: str) -> list[ExampleRange]:
  import tensorflow_datasets as tfds

  info, splits = builder.info, builder.info.splits
  try:
    ranges = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  except Exception as error:  # of many kinds, some as assertions
    raise ValueError(
      f"{info.full_name} has no split {split!r}:"
      f" {textwrap.shorten(str(error), 200)} It has {sorted(splits)}."
    ) from None
  return [
    ExampleRange(
      f"{info.name}/{info.config_name}" if info.config_name else info.name,
      str(builder.data_path),
      r.splitname,
      r.from_ or 0,
      splits[r.splitname].num_examples if r.to is None else r.to,
    )
    for r in ranges
  ]


def _cut(parts: Sequence[ExampleRange], count: int) -> list[list[ExampleRange]]:
  """Cuts parts laid end to end into even pieces."""
  total = sum(map(len, parts))
  count = min(count, total)
  pieces: list[list[ExampleRange]] = []
  for i in range(count):
    low, high = total * i // count, total * (i + 1) // count
    piece = []
    for part in parts:
      begin = part.begin + max(low, 0)
      end = min(part.begin + high, part.end)
      if begin < end:
        piece.append(dataclasses.replace(part, begin=begin, end=end))
      low, high = low - len(part), high - len(part)
    pieces.append(piece)
  return pieces


def _examples(part: ExampleRange) -> Iterator[Mapping[str, Any]]:
  import tensorflow_datasets as tfds

  from must_jax.quiet_tensorflow import tf

  dataset = _builder_in(part.directory).as_dataset(
    split=tfds.core.ReadInstruction(
      part.split, from_=part.begin, to=part.end, unit="abs"
    ),
    shuffle_files=False,
    decoders={"image": tfds.decode.SkipDecoding()},
    # One file after the other, so that a place in the split is a place in it.
    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
  )
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:
    raise ValueError(
      f"{part.directory}: split {part.split!r} is damaged between examples"
      f" {part.begin} and {part.end} ({error.message}). Delete that directory"
      " and prepare it again with --download."
    ) from None


def _key(example: Mapping[str, Any], split: str, index: int) -> str:
  for name in _KEYS:
    value = example.get(name)
    if value is None:
      continue
    key = value.decode() if isinstance(value, bytes) else str(value)
    is_file = key.lower().endswith(image_files.IMAGE_SUFFIXES)
    return files.key_of(key) if is_file else nfc(key)
  return f"{split}/{index:08d}"


def _boxes(
  objects: Mapping[str, np.ndarray],
  size: tuple[int, int],
  first: int,
  turn: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Boxes with an area, and why the others are left out.

  Args:
    objects: as TFDS has them: bbox [G, 4] normalised yxyx, label [G], and
      perhaps flags [G].
    size: height and width of the image.
    first: number of an image's first pixel.
    turn: orientation that they are to be turned by.
  """
  boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
  boxes[:, :2] -= first / np.array(orientation.stored_size(size, turn))
  turned = [orientation.turn_box(box, turn, (1, 1)) for box in boxes]
  boxes = np.reshape(turned, (-1, 4))
  boxes = np.clip(boxes, 0, 1).astype(np.float32)
  fine = (boxes[:, 2:] > boxes[:, :2]).all(1)
  ignore = np.zeros(len(boxes), bool)
  for name in _IGNORE:
    if name in objects:
      ignore |= np.asarray(objects[name]) > 0
  arrays = {
    "boxes": boxes[fine],
    "classes": np.array(objects["label"], np.int64)[fine],
    "ignore": ignore[fine],
  }
  return arrays, [
    f"object {i}: bbox {np.asarray(objects['bbox'])[i].tolist()} has no area"
    for i in np.flatnonzero(~fine)
  ]


def _depth(values: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
  values = np.asarray(values, np.float64).squeeze()
  valid = np.isfinite(values) & (values > 0)
  if values.shape != size or not valid.any():
    raise Rejected(
      f"depth is {values.shape} with {valid.sum()} valid pixels; expected some,"
      f" and the size of the image, {size}"
    )
  return {"values": np.where(valid, values, 0), "valid": valid}


def _summarize(counts: Mapping[str, float]) -> list[str]:
  lines = []
  if "objects" in counts:
    lines.append(
      f"objects: {counts['objects']:.0f}, of these to be ignored:"
      f" {counts['ignored']:.0f}"
    )
  if counts.get("valid"):
    lines.append(
      f"depth (metres): mean {counts['metres'] / counts['valid']:.4g},"
      f" {counts['valid'] / counts['pixels']:.1%} of the pixels are valid"
    )
  return lines
