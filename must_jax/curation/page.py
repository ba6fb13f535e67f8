"""`must-jax inspect --out`: a page on which people look at labels.

  OUT/index.html                       the page; opens from a disk, needs no
                                       server, and works where it is uploaded
  OUT/index_files/README.txt           whose files these are
  OUT/index_files/index.js             what is known of all images
  OUT/index_files/000123.jpg           the image of record 123, reduced
  OUT/index_files/000123.js            its labels, read when it is shown

The page itself is page.html, page.css and page.js beside this module. A browser
reads no files beside a page but scripts and pictures, and gives no pixels of
pictures from a disk to a script, so labels are scripts, with their maps as PNGs
in them.
"""

import base64
import collections
import dataclasses
import importlib.resources
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import must_jax
from must_jax import pictures
from must_jax.curation import agreement, ranking
from must_jax.curation.read_sets import (
  LabelledImage,
  open_sets,
  read_sets,
)
from must_jax.fields import Field
from must_jax.fields.field import PageLabel
from must_jax.ranges import AT_LEAST_1, check
from must_jax.storage import path as path_lib
from must_jax.storage.label_sets import (
  is_corrections,
  json_digest,
  summary,
)
from must_jax.storage.path import Path, PathLike
from must_jax.storage.sets import ImageSet, LabelSet, content_digest

_PAGE, _FILES = "index.html", "index_files"
_MARK = '<meta name="generator" content="must-jax inspect">'
_README = (
  "Made by `must-jax inspect --out`, read by ../index.html. What else is put"
  " here goes when the page is made anew.\n"
)
_MAX_SINGLE = 500  # images in one file
_THREADS = 8  # that reduce images and write files
_QUALITY = 88  # of JPEGs
_GREY = (224, 224, 224)  # of an image that cannot be shown


@dataclasses.dataclass(frozen=True)
class PageOptions:
  """How the page is made.

  Attributes:
    max_side: longer side of the pictures on it, pixels.
    count: images on it; of more, so many are chosen at random.
    seed: of the choice.
    single_file: everything in index.html.
    min_score: the thresholds that it begins with, see `Field.as_read`; by
      default those of the label sets.
  """

  max_side: int = 512
  count: int = 10_000
  seed: int = 0
  single_file: bool = False
  min_score: Any = None

  def __post_init__(self) -> None:
    """Checks the options.

    Raises:
      ValueError: one is wrong.
    """
    check({"--max-side": self.max_side, "--count": self.count}, _RANGES)


_RANGES = {"--max-side": AT_LEAST_1, "--count": AT_LEAST_1}


class PageSummary(NamedTuple):
  """What is on a page.

  Attributes:
    num_images: that are shown.
    num_records: in the image set.
    problems: images or labels that cannot be read, by key.
  """

  num_images: int
  num_records: int
  problems: Sequence[str]


def write(
  labels: Sequence[PathLike],
  images: PathLike,
  out: PathLike,
  truth: PathLike | None = None,
  options: PageOptions = PageOptions(),
) -> PageSummary:
  """Writes the page.

  Args:
    labels: finished label sets of the same images.
    images: the image set.
    out: directory to make, or of an earlier page, which is replaced.
    truth: an image set with the same records and their true labels.
    options: how.

  Raises:
    ValueError: sets are not finished or not of these images, no image has a
      label, or `out` has other things in it.
  """
  image_set, sets = open_sets(labels, images, truth)
  indices = _choose(image_set.num_records, options)
  if options.single_file and len(indices) > _MAX_SINGLE:
    raise ValueError(
      f"--single-file with {len(indices):,} images; expected at most"
      f" {_MAX_SINGLE}. Leave it out, or give --count={_MAX_SINGLE}."
    )
  out = Path(out)
  _check_room(out)
  _check_labels(sets)
  _clear(out)
  files = _Inline() if options.single_file else _Folder(out / _FILES)
  maker = _Maker(image_set, sets, options)
  compared = ranking.compare_sets(sets, indices, options.min_score)
  pictured: list[_Pictured] = []
  apart = []
  with (
    futures.ThreadPoolExecutor(_THREADS) as pool,
    tqdm(
      total=len(indices),
      unit="image",
      disable=not sys.stderr.isatty(),
      leave=False,
    ) as bar,
  ):
    made = _in_order(
      pool,
      lambda image: maker(image, files),
      read_sets(image_set, sets, indices),
    )
    for one, found in zip(made, compared, strict=True):
      pictured.append(one)
      apart.append(found)
      bar.update(1)
  index = maker.index(pictured, apart, options)
  _publish_page(out, index, files)
  return PageSummary(
    len(pictured),
    image_set.num_records,
    [p for i in pictured for p in i.problems],
  )


def _choose(num_records: int, options: PageOptions) -> list[int]:
  """The records that are shown, rising."""
  if num_records <= options.count:
    return [*range(num_records)]
  chosen = np.random.default_rng(options.seed).choice(
    num_records, options.count, replace=False
  )
  return np.sort(chosen).tolist()


def _check_labels(sets: Sequence[LabelSet | ImageSet]) -> None:
  """Raises `ValueError` where a set has nothing to look at."""
  for found in sets:
    if not found.fields:
      raise ValueError(f"{found.directory} has no label fields to look at.")
    if isinstance(found, LabelSet):
      sums = found.manifest.get("statistics", {}).values()
      if not any(of_field["examples"] for of_field in sums):
        raise ValueError(
          f"Label set {found.directory} has no label of any of its"
          f" {found.num_records:,} images; there is nothing to look at."
        )


def _check_room(out: Path) -> None:
  """Raises `ValueError` where something else would be replaced."""
  if path_lib.is_file(out):
    raise ValueError(f"{out} is a file; expected a directory as --out.")
  names = path_lib.list_names(out) if out.is_dir() else set()
  is_ours = (
    _FILES not in names or path_lib.is_file(out / _FILES / "README.txt")
  ) and (
    _PAGE not in names
    or _MARK in path_lib.read_file(out / _PAGE)[:2000].decode(errors="replace")
  )
  if names - {_PAGE, _FILES} or not is_ours:
    other = min(names - {_PAGE, _FILES}, default=_PAGE)
    raise ValueError(
      f"{out} holds {other} and is no page of this command; expected a new"
      " directory as --out, or one of an earlier page, which is replaced."
    )


def _clear(out: Path) -> None:
  """Removes an earlier page."""
  path_lib.make_directory(out)
  names = path_lib.list_names(out)
  if _PAGE in names:
    path_lib.remove(out / _PAGE)
  if _FILES in names:
    path_lib.remove_tree(out / _FILES)


class _Pictured(NamedTuple):
  """An image that is on the page.

  Attributes:
    row: what the index says of it.
    uncertainty: see `ranking.Signals`.
    histograms: of its maps, by layer.
    problems: what could not be read.
  """

  row: dict[str, Any]
  uncertainty: dict[tuple[int, str], float]
  histograms: dict[int, Mapping[int, Mapping[float, int]]]
  problems: list[str]


def _in_order(
  pool: futures.Executor,
  make: Callable[[LabelledImage], _Pictured],
  images: Iterator[LabelledImage],
) -> Iterator[_Pictured]:
  """Makes several at a time; few images wait in memory."""
  pending: collections.deque[futures.Future[_Pictured]] = collections.deque()
  for image in images:
    pending.append(pool.submit(make, image))
    if len(pending) >= 4 * _THREADS:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


class _Folder:
  """Files of images beside the page."""

  def __init__(self, folder: Path):
    self._folder = folder
    path_lib.make_directory(folder)
    self.write("README.txt", _README.encode())

  def write(self, name: str, data: bytes) -> None:
    with path_lib.publish(self._folder / name) as file:
      file.write(data)

  def add(self, index: int, drawings: list[Any], picture: bytes) -> None:
    """Takes in an image."""
    self.write(f"{index:06}.jpg", picture)
    self.write(f"{index:06}.js", _call(index, drawings).encode())

  def finish(self, page: str, data: str) -> str:
    """The page, which reads what is known of all images."""
    self.write("index.js", data.encode())
    return page


class _Inline:
  """The same in the page itself."""

  def __init__(self) -> None:
    self._scripts: dict[int, str] = {}

  def add(self, index: int, drawings: list[Any], picture: bytes) -> None:
    """Takes in an image."""
    self._scripts[index] = _call(index, drawings, _data_url("jpeg", picture))

  def finish(self, page: str, data: str) -> str:
    """The page with all in it."""
    scripts = [self._scripts[i] for i in sorted(self._scripts)]
    found = f"<script>{data}</script>\n"
    tag = f'<script src="{_FILES}/index.js"></script>\n'
    assert tag in page
    before, after = page.split(tag)
    end = "</html>"
    calls = "<script>" + "".join(scripts) + "</script>\n"
    assert end in after
    return before + found + after.replace(end, calls + end)


def _call(index: int, drawings: list[Any], picture: str = "") -> str:
  """The script that brings an image's labels to the page."""
  more = [picture] if picture else []
  return f"addDrawings({_json([index, drawings, *more])[1:-1]});\n"


def _json(value: Any) -> str:
  """JSON that may stand in a script of a page, whatever names say."""
  text = json.dumps(value, separators=(",", ":"), allow_nan=False)
  return text.replace("<", "\\u003c")


def _data_url(kind: str, data: bytes) -> str:
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class _Layer(NamedTuple):
  """A field of a label set, which the page shows and hides."""

  number_of_set: int
  name: str
  field: Field
  classes: Sequence[str]


class _Maker:
  """Makes what the page reads.

  Args:
    images: the image set.
    sets: of labels, and of the truth.
    options: of the page.
  """

  def __init__(
    self,
    images: ImageSet,
    sets: Sequence[LabelSet | ImageSet],
    options: PageOptions,
  ):
    self._images, self._sets = images, sets
    self._max_side = options.max_side
    self._fields = [
      agreement.fields_as_read(s, options.min_score) for s in sets
    ]
    self._layers = [
      _Layer(i, name, field, found.fields[name].get("classes", ()))
      for i, (found, fields) in enumerate(zip(sets, self._fields, strict=True))
      for name, field in fields.items()
    ]

  def __call__(
    self, image: LabelledImage, files: _Folder | _Inline
  ) -> _Pictured:
    """Writes the files of an image."""
    problems = list(image.problems)
    picture = None
    if image.record:
      try:
        picture = _reduce(image.record, self._max_side)
      except ValueError as error:
        problems.append(f"image: {error}")
    data, size, original = picture or _blank()
    drawings: list[Any] = []
    elements: list[Any] = []
    histograms = {}
    for number, layer in enumerate(self._layers):
      arrays = image.labels[layer.number_of_set].get(layer.name)
      if arrays is None:
        drawings.append(None)
        elements.append(None)
        continue
      label = layer.field.to_page(arrays, size)
      drawings.append(_drawing(label))
      elements.append(label.elements)
      if label.histogram:
        is_checked = image.statuses[layer.number_of_set] == "corrected"
        histograms[number] = (
          {k: {1.0: sum(h.values())} for k, h in label.histogram.items()}
          if is_checked
          else label.histogram
        )
    files.add(image.number, drawings, data)
    row: dict[str, Any] = {
      "id": image.number,
      "key": image.key,
      "size": list(original),
      "elements": elements,
    }
    if odd := {
      str(i): status
      for i, status in enumerate(image.statuses)
      if status not in ("", "ok")
    }:
      row["statuses"] = odd
    if problems:
      row["problems"] = problems
    return _Pictured(
      row,
      ranking.uncertainties(image, self._fields),
      histograms,
      [f"{image.key}: {text}" for text in problems],
    )

  def index(
    self,
    pictured: Sequence[_Pictured],
    compared: Sequence[ranking.Comparisons],
    options: PageOptions,
  ) -> dict[str, Any]:
    """What is known of all images.

    Args:
      pictured: the images, in order.
      compared: of each image the agreement of what can be compared.
      options: of the page.
    """
    signals = [
      ranking.Signals(one.uncertainty, ranking.disagreements(found))
      for one, found in zip(pictured, compared, strict=True)
    ]
    totals: dict[ranking.Pair, agreement.Counts] = {}
    for found in compared:
      agreement.add_counts(totals, found)
    pairs = sorted(totals)
    numbers = {
      (layer.number_of_set, layer.name): i
      for i, layer in enumerate(self._layers)
    }
    suspicion = ranking.suspicion(signals).tolist()
    rows = []
    for one, known, suspect in zip(pictured, signals, suspicion, strict=True):
      rows.append(
        one.row
        | {
          "suspicion": round(suspect, 6),
          "uncertainty": {
            numbers[k]: round(v, 6) for k, v in known.uncertainty.items()
          },
          "agreement": [
            round(1 - known.disagreement[p], 6)
            if p in known.disagreement
            else None
            for p in pairs
          ],
        }
      )
    names = _short_names([found.directory for found in self._sets])
    return {
      "version": must_jax.__version__,
      "image_set": {
        "name": self._images.name,
        "split": self._images.split,
        "num_records": self._images.num_records,
        "licence": self._images.licence,
      },
      # Whose decisions a browser remembers.
      "digest": json_digest(
        [
          content_digest(found.index["splits"][found.split]["shards"])
          if isinstance(found, ImageSet)
          else content_digest(found.manifest["shards"])
          for found in (self._images, *self._sets)
        ]
      ),
      "files": _FILES,
      "max_side": options.max_side,
      "sets": [
        _describe_set(found, name)
        for found, name in zip(self._sets, names, strict=True)
      ],
      "layers": self._describe_layers(pictured),
      "pairs": [
        {
          "sets": [i, j],
          "layers": [numbers[i, a], numbers[j, b]],
          "classes": totals[i, j, a, b],
        }
        for i, j, a, b in pairs
      ],
      "images": rows,
    }

  def _describe_layers(
    self, pictured: Sequence[_Pictured]
  ) -> list[dict[str, Any]]:
    """What the page says of each field."""
    names = dict.fromkeys(k for layer in self._layers for k in layer.classes)
    colors = dict(
      zip(names, pictures.palette(len(names)).tolist(), strict=True)
    )
    described = []
    for number, layer in enumerate(self._layers):
      totals: dict[int, collections.Counter[float]] = {}
      for one in pictured:
        for k, histogram in one.histograms.get(number, {}).items():
          totals.setdefault(k, collections.Counter()).update(histogram)
      found = self._sets[layer.number_of_set]
      # What people have said is shown as it is.
      has_threshold = isinstance(found, LabelSet) and not is_corrections(
        found.manifest
      )
      threshold = getattr(layer.field, "min_score", None)
      described.append(
        {
          "set": layer.number_of_set,
          "field": layer.name,
          "form": layer.field.page_form,
          "element": layer.field.element,
          "classes": list(layer.classes),
          "colors": [colors[name] for name in layer.classes],
          "min_score": threshold if has_threshold else None,
          "histograms": {
            k: sorted(counts.items()) for k, counts in sorted(totals.items())
          },
        }
      )
    return described


def _drawing(label: PageLabel) -> dict[str, Any]:
  """What is drawn of a label, with its map in it."""
  if label.png is None:
    return label.drawing
  return label.drawing | {"png": _data_url("png", label.png)}


def _describe_set(found: LabelSet | ImageSet, name: str) -> dict[str, Any]:
  """What the page says of a set."""
  if isinstance(found, ImageSet):
    return {"name": name, "is_truth": True, "lines": [], "alarms": []}
  manifest = found.manifest
  teacher = manifest["teacher"]
  lines = [
    f"{manifest['num_records']:,} records,"
    f" {manifest['num_undecodable']:,} undecodable",
  ]
  lines += [f"{field}: {left}" for field, left in summary(manifest).items()]
  return {
    "name": name,
    "folder": found.directory.name,
    "is_truth": False,
    "teacher": teacher["digest"],
    "task": teacher.get("task", ""),
    "lines": lines,
    "alarms": list(manifest["alarms"]),
    "quality": manifest.get("quality", {}).get("metrics", {}),
  }


def _short_names(places: Sequence[Path]) -> list[str]:
  """Names of directories, with as much of the path as tells them apart."""
  parts = [str(place).rstrip("/").split("/") for place in places]
  for length in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-length:]) for part in parts]
    if len({*names}) == len(names):
      break
  return names


def _reduce(
  record: bytes, max_side: int
) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
  """An image as JPEG, its height and width, and those of the original.

  Raises:
    ValueError: it cannot be decoded.
  """
  from must_jax.quiet_tensorflow import tf
  from must_jax.storage import records

  try:
    found = records.parse_image(tf.constant(record))
    data, size = found["image"].numpy(), found["size"].numpy()
    original = int(size[0]), int(size[1])
    if data[:2] == b"\xff\xd8":
      opened = Image.open(io.BytesIO(data))
      if max(original) <= max_side and opened.mode == "RGB":
        return data, original, original
      opened.draft("RGB", (max_side, max_side))
      picture = opened.convert("RGB")
    else:
      window = tf.concat([[0, 0], size], 0)
      picture = Image.fromarray(
        records.decode_image(found["image"], found["size"], window).numpy()
      )
  except (OSError, *records.BROKEN) as error:
    raise ValueError(str(error).splitlines()[0]) from None
  picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
  return file.getvalue(), (picture.height, picture.width), original


def _blank() -> tuple[bytes, tuple[int, int], tuple[int, int]]:
  """What stands for an image that cannot be shown."""
  file = io.BytesIO()
  Image.new("RGB", (64, 64), _GREY).save(file, "JPEG")
  return file.getvalue(), (64, 64), (64, 64)


def _publish_page(
  out: Path, index: Mapping[str, Any], files: _Folder | _Inline
) -> None:
  """Writes index.html, last of all."""
  folder = importlib.resources.files("must_jax.curation")
  page = (folder / "page.html").read_text()
  for name, tag, form in (
    ("page.css", '<link rel="stylesheet" href="page.css">', "style"),
    ("page.js", '<script src="page.js"></script>', "script"),
  ):
    assert tag in page, tag
    text = (folder / name).read_text()
    page = page.replace(tag, f"<{form}>\n{text}</{form}>")
  assert _MARK in page
  page = files.finish(page, f"const PAGE = {_json(index)};\n")
  with path_lib.publish(out / _PAGE) as file:
    file.write(page.encode())
