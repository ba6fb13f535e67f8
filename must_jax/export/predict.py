"""`must-jax predict`: what a checkpoint sees in photos, as files.

  OUT/predictions.json          COCO's "images", "categories", "annotations";
                                what each task says of an image, and where its
                                files lie; "passed_over"
  OUT/maps/TASK/IMAGE.png       codes of a map; the JSON says how to read them
  OUT/maps/TASK/IMAGE.npy       its values
  OUT/maps/TASK/classes.txt     names of the codes, in order from 0
  OUT/pictures/IMAGE-TASK.png   the photo with what was found, and a legend
  OUT/predictions.partial.jsonl a line for each batch that is done, until all
                                are

A batch counts once its line is there, which is after its files. What is in a
batch follows from the photos and options alone, so that a run that was broken
off ends with the same files.
"""

import collections
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import must_jax
from must_jax.importers import files
from must_jax.ranges import AT_LEAST_1, FRACTION, NOT_NEGATIVE, check
from must_jax.storage import image_files
from must_jax.storage.image_files import ImageOptions, Picture, Rejected
from must_jax.storage.path import (
  Appender,
  Path,
  absolute,
  fingerprints,
  is_file,
  is_local,
  list_names,
  list_tree,
  make_directory,
  publish,
  read_appended,
  read_file,
  remove,
)
from must_jax.train import checkpoint as checkpoint_lib
from must_jax.train.load import LoadedModel
from must_jax.train.predictions import PhotoPrediction

FORMATS = ("json", "png", "npy", "pictures")  # JSON is always written
_RESULT = "predictions.json"
_PARTIAL = "predictions.partial.jsonl"
_THREADS = 8  # that read photos and write files
_TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.tmp")  # as `publish` has them


@dataclasses.dataclass(frozen=True)
class PredictOptions:
  """What is predicted and written.

  Attributes:
    tasks: their names; all by default.
    formats: some of `FORMATS`.
    min_score: what has a lower score is left out, or unknown; by default JSON
      and maps have all, and pictures what reaches the task's own threshold.
    max_side: pictures are reduced to it; 0 for the photos' own size.
    code_range: codes of images of 16 bits that become black and white.
    batch_size: photos that the devices get at a time.
  """

  tasks: tuple[str, ...] = ()
  formats: tuple[str, ...] = FORMATS
  min_score: float | None = None
  max_side: int = 0
  code_range: tuple[int, int] | None = None
  batch_size: int = 16

  def __post_init__(self) -> None:
    """Checks the options.

    Raises:
      ValueError: one is wrong.
    """
    given = {
      "--" + option.name.replace("_", "-"): getattr(self, option.name)
      for option in dataclasses.fields(self)
    }
    ranges = {
      "--max-side": NOT_NEGATIVE,
      "--batch-size": AT_LEAST_1,
      "--min-score": FRACTION,
    }
    check({k: given[k] for k in ranges if given[k] is not None}, ranges)
    image_files.check_code_range(self.code_range)
    if unknown := sorted(set(self.formats) - set(FORMATS)):
      raise ValueError(
        f"--format has {unknown}; expected some of {list(FORMATS)}."
      )


@dataclasses.dataclass(frozen=True)
class _Photo:
  """A file to predict.

  Attributes:
    path: of the file.
    name: below the folder that was given, or the file's own.
    is_named: whether it was named itself, not its folder.
    stem: what its files are called.
  """

  path: Path
  name: str
  is_named: bool
  stem: str = ""


def run(
  checkpoint: Path,
  images: Sequence[Path],
  out: Path,
  options: PredictOptions = PredictOptions(),
) -> int:
  """Predicts image files and writes what is found.

  What cannot be read as an import would read it is named and passed over. The
  same call goes on where an earlier one was broken off.

  Args:
    checkpoint: a checkpoint or a run's workdir.
    images: files, directories of files, or lists (.txt) of files, a path a
      line, relative to the list.
    out: directory to make, see the top of this module.
    options: what to predict and write.

  Returns:
    0; 1 if a file that was named itself could not be read.

  Raises:
    ValueError: there is nothing that can be read, an option is wrong, or `out`
      has predictions of something else.
  """
  photos, others = _find(images, out)
  model = must_jax.load(str(checkpoint))
  model.check_tasks(options.tasks)
  tasks = options.tasks or tuple(model.tasks)
  photos = list(_with_stems(photos, tasks))
  job = _job(model, photos, options)
  if is_file(Path(out) / _RESULT):
    result = json.loads(read_file(Path(out) / _RESULT))
    _check_same(result.get("info", {}).get("job"), job, out)
    _remove_partial(out)
    print(f"{out} is complete: the same command has run before")
  else:
    result = _Run(model, photos, others, out, options, job)()
  return _report(result, images, out)


def _find(
  images: Sequence[Path], out: Path
) -> tuple[list[_Photo], list[dict[str, str]]]:
  """Finds images; names the other files of directories.

  Returns:
    The images, and the other files with the reasons; what this command writes
    is among neither.

  Raises:
    ValueError: a directory or a list has no images.
  """
  found: list[_Photo] = []
  others: list[dict[str, str]] = []
  suffixes = ", ".join(image_files.IMAGE_SUFFIXES)
  for place in map(Path, images):
    if _is_own(place / "photo", out):
      raise ValueError(
        f"{place} is where predictions are written; give another --out."
      )
    if not place.is_dir():
      if place.suffix.lower() == ".txt":
        found += _of_list(place)
      else:
        found.append(_Photo(place, place.name, True))
      continue
    wanted, rest = files.find_files(place, image_files.IMAGE_SUFFIXES)
    hidden = [
      name
      for name in sorted(list_tree(place, hidden=True))
      if Path(name).name.startswith(".")
    ]
    wanted, rest, hidden = (
      [name for name in names if not _is_own(place / name, out)]
      for names in (wanted, rest, hidden)
    )
    if not wanted:
      raise ValueError(
        f"{place} has no images ({len(rest)} other files); expected {suffixes}."
      )
    reason = f"no image that is read ({suffixes})"
    for name, why in [(n, reason) for n in rest] + [
      (n, "hidden") for n in hidden
    ]:
      others.append({"path": str(place / name), "reason": why})
      print(f"passed over: {place / name}: {why}", file=sys.stderr)
    found += [_Photo(place / name, name, False) for name in wanted]
  return found, others


def _is_own(path: Path, out: Path) -> bool:
  """Whether a file is one that is written."""
  root = str(absolute(out)).rstrip("/") + "/"
  # And what a kill leaves of the last one, which `publish` hides.
  own = ("maps/", "pictures/", _RESULT, Path(_PARTIAL).stem, f".{_RESULT}")
  return str(absolute(path)).startswith(tuple(root + name for name in own))


def _of_list(path: Path) -> list[_Photo]:
  """The photos of a text list.

  Raises:
    ValueError: it cannot be read, or is empty.
  """
  lines = [line.strip() for line in files.read_text(path).splitlines()]
  found = []
  for line in filter(None, lines):
    is_below = not Path(line).is_absolute() and "://" not in line
    is_below &= ".." not in Path(line).parts
    name = line.removeprefix("./") if is_below else Path(line).name
    place = Path(line) if "://" in line else path.parent / line
    found.append(_Photo(place, name, True))
  if not found:
    raise ValueError(f"{path} is empty; expected the path of a photo a line.")
  return found


def _with_stems(
  photos: Sequence[_Photo], tasks: Sequence[str]
) -> Iterator[_Photo]:
  """Names the files of each photo so that none replaces another's."""
  taken: set[str] = set()
  for photo in photos:
    candidates = itertools.chain(
      (files.key_of(photo.name), photo.name),
      (f"{photo.name}-{number}" for number in itertools.count(2)),
    )
    for candidate in candidates:
      # As where capitals are the same.
      stem = candidate.casefold()
      targets = {stem, *(f"{stem}-{task.casefold()}" for task in tasks)}
      if not targets & taken:
        break
    taken |= targets
    yield dataclasses.replace(photo, stem=candidate)


def _job(
  model: LoadedModel, photos: Sequence[_Photo], options: PredictOptions
) -> dict[str, Any]:
  """All that the files depend on, as values of JSON."""
  versions = fingerprints([photo.path for photo in photos])
  listed = [
    [str(photo.path), photo.name, version]
    for photo, version in zip(photos, versions, strict=True)
  ]
  digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
  asked = dataclasses.asdict(options)
  job = {"--" + k.replace("_", "-"): v for k, v in asked.items()}
  job["--format"] = sorted(job.pop("--formats"))
  job |= {
    "checkpoint": checkpoint_lib.fingerprint(model.path),
    "photos": f"{len(photos)} files, {digest}",
  }
  return json.loads(json.dumps(job))


def _check_same(
  before: Mapping[str, Any] | None, job: Mapping[str, Any], out: Path
) -> None:
  """Checks that what is there was made by the same command.

  Raises:
    ValueError: it was not; what differs.
  """
  if before == job:
    return
  differences = [
    f"{name} (was {before.get(name)}, is {value})"
    for name, value in job.items()
    if before is not None and before.get(name) != value
  ]
  what = ", ".join(differences) or "nobody knows what"
  raise ValueError(
    f"{out} has predictions of another command; they differ in {what}. Give"
    " another --out, or delete it."
  )


class _Run:
  """Predicts what is not done, and puts all together."""

  def __init__(
    self,
    model: LoadedModel,
    photos: Sequence[_Photo],
    others: Sequence[dict[str, str]],
    out: Path,
    options: PredictOptions,
    job: Mapping[str, Any],
  ):
    self._model, self._photos, self._others = model, photos, others
    self._out, self._options, self._job = Path(out), options, job
    self._read_options = ImageOptions(options.code_range)
    names = collections.Counter(photo.name for photo in photos)
    self._named: set[Path] = set()  # folders whose maps' classes are told
    self._repeated = {name for name, count in names.items() if count > 1}

  def __call__(self) -> dict[str, Any]:
    """Writes all files.

    Returns:
      What predictions.json says.
    """
    size = self._options.batch_size
    batches = [
      range(start, min(start + size, len(self._photos)))
      for start in range(0, len(self._photos), size)
    ]
    make_directory(self._out)
    log = Appender(self._out / _PARTIAL)
    try:
      lines = list(
        map(json.loads, read_appended(self._out / _PARTIAL).splitlines())
      )
      if lines:
        _check_same(lines[0].get("job"), self._job, self._out)
        self._remove_temporary()
      else:
        log.write(_line({"job": self._job}))
      done = {line["batch"]: line for line in lines[1:]}
      todo = [i for i in range(len(batches)) if i not in done]
      with (
        futures.ThreadPoolExecutor(_THREADS) as pool,
        tqdm(
          total=len(self._photos),
          initial=sum(len(batches[i]) for i in done),
          unit="image",
          disable=not sys.stderr.isatty(),
          leave=False,
        ) as bar,
      ):
        ahead = self._read(pool, batches[todo[0]]) if todo else []
        for i, following in itertools.zip_longest(todo, todo[1:]):
          read = [future.result() for future in ahead]
          if following is not None:
            ahead = self._read(pool, batches[following])
          done[i] = {"batch": i, **self._predict(pool, batches[i], read)}
          log.write(_line(done[i]))
          bar.update(len(batches[i]))
    finally:
      log.close()
    result = self._assemble([done[i] for i in range(len(batches))])
    if result["images"]:
      with publish(self._out / _RESULT) as file:
        file.write(_text(result).encode())
    _remove_partial(self._out)
    return result

  def _remove_temporary(self) -> None:
    """Removes files that a kill left half written."""
    if is_local(self._out):
      for name in list_tree(self._out, hidden=True):
        if _TEMPORARY.fullmatch(Path(name).name):
          remove(self._out / name)

  def _read(
    self, pool: futures.Executor, numbers: range
  ) -> list[futures.Future[Picture | str]]:
    return [
      pool.submit(_read_photo, self._photos[i].path, self._read_options)
      for i in numbers
    ]

  def _predict(
    self,
    pool: futures.Executor,
    numbers: range,
    read: Sequence[Picture | str],
  ) -> dict[str, Any]:
    """Predicts a batch and writes its files.

    Returns:
      What a line of the log says of it.
    """
    passed_over = []
    counts: collections.Counter[str] = collections.Counter()
    readable: list[tuple[int, Picture]] = []
    for i, picture in zip(numbers, read, strict=True):
      if isinstance(picture, Picture):
        counts.update(picture.counts)
        readable.append((i, picture))
        continue
      path = str(self._photos[i].path)
      named = {"named": True} if self._photos[i].is_named else {}
      passed_over.append({"path": path, "reason": picture, **named})
      tqdm.write(f"passed over: {path}: {picture}", file=sys.stderr)
    entries: dict[int, dict[str, Any]] = {}
    annotations: dict[int, list[dict[str, Any]]] = {}
    # Maps of large photos are large: only some wait to be written.
    pending: collections.deque[tuple[int, futures.Future[dict[str, Any]]]]
    pending = collections.deque()

    def finish(count: int) -> None:
      while len(pending) > count:
        i, future = pending.popleft()
        entries[i] = future.result()

    encoded = [(picture.data, picture.size) for _, picture in readable]
    if encoded:
      predicted = self._model.predict_batch(encoded, self._options.tasks)
      for row, found in predicted:
        i = readable[row][0]
        if self._options.min_score is not None:
          found = found.at_least(self._options.min_score)
        annotations[i] = found.to_coco(i + 1)
        pending.append((i, pool.submit(self._write, i, found)))
        finish(_THREADS)
    finish(0)
    return {
      "images": [entries[i] for i in sorted(entries)],
      "annotations": [a for i in sorted(entries) for a in annotations[i]],
      "passed_over": passed_over,
      "counts": dict(counts),
    }

  def _write(self, i: int, found: PhotoPrediction) -> dict[str, Any]:
    """Writes the files of a photo.

    Returns:
      Its entry in predictions.json.
    """
    photo, options = self._photos[i], self._options
    told: dict[str, Any] = {}
    for name, prediction in found.items():
      by_field: dict[str, Any] = {}
      task = prediction.task
      colors = prediction.table.colors(name)
      folder = Path("maps") / name
      for field_name, arrays in prediction.labels.items():
        field = task.fields[field_name]
        entry = field.to_json(arrays, task.classes, options.min_score)
        if len(prediction.labels) > 1:
          folder = Path("maps") / name / field_name
        if "png" in options.formats and (made := field.to_png(arrays, colors)):
          data, how = made
          target = self._publish(folder / f"{photo.stem}.png", data)
          entry["png"] = how | {"file": target}
          self._name_classes(folder, task.classes)
        if "npy" in options.formats:
          entry |= self._write_arrays(field.to_arrays(arrays), folder, photo)
        by_field[field_name] = entry
      if len(by_field) == 1:
        (by_field,) = by_field.values()
      if "pictures" in options.formats:
        picture = prediction.draw(options.min_score, options.max_side)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        target = Path("pictures") / f"{photo.stem}-{name}.png"
        by_field["picture"] = self._publish(target, file.getvalue())
      told[name] = by_field
    name = str(photo.path) if photo.name in self._repeated else photo.name
    return {
      "id": i + 1,
      "file_name": name,
      "width": found.size[1],
      "height": found.size[0],
      "path": str(photo.path),
      "predictions": told,
    }

  def _name_classes(self, folder: Path, classes: Sequence[str]) -> None:
    """Writes the names of the codes of maps, once."""
    if classes and folder not in self._named:
      self._named.add(folder)
      text = "\n".join(classes) + "\n"
      self._publish(folder / "classes.txt", text.encode())

  def _write_arrays(
    self, arrays: Mapping[str, np.ndarray], folder: Path, photo: _Photo
  ) -> dict[str, Any]:
    written = []
    for name, array in arrays.items():
      file = io.BytesIO()
      np.save(file, array)
      target = (folder / name if name else folder) / f"{photo.stem}.npy"
      written.append(self._publish(target, file.getvalue()))
    return {"npy": written} if written else {}

  def _publish(self, target: Path, data: bytes) -> str:
    path = self._out / target
    make_directory(path.parent)
    with publish(path) as file:
      file.write(data)
    return target.as_posix()

  def _assemble(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What predictions.json says, of the lines of all batches."""
    model, table = self._model, self._model.class_table
    names = self._options.tasks or tuple(model.tasks)
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
      counts.update(line["counts"])
    annotations = itertools.chain(*(line["annotations"] for line in lines))
    wanted = {
      name: i
      for name, i in table.category_ids.items()
      if any(
        name in model.tasks[task].classes and model.tasks[task].has_objects
        for task in names
      )
    }
    return {
      "info": {
        "description": "predictions of must_jax",
        "version": must_jax.__version__,
        "checkpoint": str(model.path),
        "tasks": {
          name: {
            "classes": list(model.tasks[name].classes),
            "colors": table.colors(name).tolist(),
          }
          for name in names
        },
        "counts": dict(counts),
        "job": self._job,
      },
      "images": [image for line in lines for image in line["images"]],
      "categories": [{"id": i, "name": name} for name, i in wanted.items()],
      "annotations": [
        {"id": i, **annotation} for i, annotation in enumerate(annotations, 1)
      ],
      "passed_over": [
        *(entry for line in lines for entry in line["passed_over"]),
        *self._others,
      ],
    }


def _read_photo(path: Path, options: ImageOptions) -> Picture | str:
  """A photo, or why there is none."""
  try:
    return image_files.read_image(path, options)
  except Rejected as error:
    return str(error)


def _line(value: Any) -> bytes:
  return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _text(result: Mapping[str, Any]) -> str:
  """JSON with a line for each entry of a list."""
  parts = []
  for key, value in result.items():
    if isinstance(value, list):
      lines = ",\n".join(map(json.dumps, value))
      text = f"[\n{lines}\n]" if value else "[]"
    else:
      text = json.dumps(value)
    parts.append(f"{json.dumps(key)}: {text}")
  return "{\n" + ",\n".join(parts) + "\n}\n"


def _remove_partial(out: Path) -> None:
  stem = Path(_PARTIAL).stem  # a bucket's has numbers
  for name in list_names(out):
    if name.startswith(stem):
      remove(Path(out) / name)


def _report(
  result: Mapping[str, Any], images: Sequence[Path], out: Path
) -> int:
  """Tells what was done.

  Returns:
    The exit status.

  Raises:
    ValueError: no file could be read.
  """
  for text in image_files.warn(result["info"]["counts"]):
    print(f"warning: {text}", file=sys.stderr)
  passed_over = result["passed_over"]
  count = len(result["images"])
  if not count:
    raise ValueError(
      f"None of the files in {', '.join(map(str, images))} can be read; the"
      " reasons are above."
    )
  print(f"{count} images -> {Path(out) / _RESULT}")
  if passed_over:
    print(f"{count} predicted, {len(passed_over)} passed over", file=sys.stderr)
  return int(any(entry.get("named") for entry in passed_over))
