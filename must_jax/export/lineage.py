"""What a model was made of, back to its images, teachers and published weights.

student <- label sets <- teachers <- their images or published weights; what a
run started from (`init_from`) belongs to it, too. Manifests of label sets carry
their teacher's whole config, so a teacher is known though its run is gone. What
is not there any more, or has changed since, is said by `problem`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self

from must_jax import config as config_lib
from must_jax import fields
from must_jax.export import licences
from must_jax.export.licences import Licence
from must_jax.fields.field import NamedScores
from must_jax.input.origins import SUPERVISED, label_sets, listed
from must_jax.storage.label_sets import reading_score
from must_jax.storage.path import Path, PathLike, read_files
from must_jax.storage.sets import content_digest, read_index, read_manifest
from must_jax.train import checkpoint
from must_jax.train.best import BEST_DIRECTORY, BEST_FILE
from must_jax.train.build import build_tasks

_CHANGED = "what is there now is not what was learned from"

_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageSplit:
  """A split of an image set.

  Attributes:
    name, split: of it.
    place: where it was, when it was learned from.
    licence: of images and labels, as the importer was told; None if that is
      not known, "" if nothing was told.
    num_records: images; None if not known.
    num_rejected: of them that could not be imported.
    warnings: of the import.
    problem: why less is known than could be.
  """

  name: str
  split: str
  place: str
  licence: str | None = None
  num_records: int | None = None
  num_rejected: int = 0
  warnings: tuple[str, ...] = ()
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
  """A label set as a task reads it.

  Attributes:
    task: that reads it.
    place: where it was.
    image_set: what was labelled: "name", "split", "licence", "num_records".
    num_records: images that were labelled.
    num_undecodable: of them that could not be.
    left: what is read at the task's threshold, by field, see `_left`.
    quality: {"truth": place, "metrics": {...}} if it was measured.
    alarms: why the labels cannot be right.
    teacher: what made them; None if the set is gone.
    problem: why less is known than could be.
  """

  task: str
  place: str
  image_set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_records: int | None = None
  num_undecodable: int = 0
  left: Mapping[str, _Json] = dataclasses.field(default_factory=dict)
  quality: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  alarms: tuple[str, ...] = ()
  teacher: "Model | None" = None
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class TrainedOn:
  """What a model learned from one dataset of its config.

  Attributes:
    name: of the dataset in the config.
    images: of it.
    supervised: tasks that read the image set's own labels.
    labels: label sets, task by task.
  """

  name: str
  images: ImageSplit
  supervised: tuple[str, ...]
  labels: tuple[PseudoLabels, ...]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and what it was made of.

  Attributes:
    name: of its run or folder, or of what else made labels.
    place: where its checkpoint was; "" if that was not recorded.
    digest: of its parameters; "" if not known.
    task: of a teacher, that which labelled.
    config: of the run, JSON; None for teachers that are no checkpoints.
    origin: of published weights, and of teachers that are no checkpoints.
    sources: what it learned from.
    start: what its parameters began as.
    problem: why less is known than could be.
  """

  name: str
  place: str = ""
  digest: str = ""
  task: str = ""
  config: _Json | None = None
  origin: _Json = dataclasses.field(default_factory=dict)
  sources: tuple[TrainedOn, ...] = ()
  start: "Model | None" = None
  problem: str = ""

  def to_json(self) -> _Json:
    """For a file."""
    return json.loads(json.dumps(dataclasses.asdict(self)))

  @classmethod
  def from_json(cls, value: Mapping[str, Any] | None) -> Self | None:
    """Reads `to_json`."""
    if value is None:
      return None
    sources = tuple(
      TrainedOn(
        source["name"],
        ImageSplit(
          **source["images"] | {"warnings": tuple(source["images"]["warnings"])}
        ),
        tuple(source["supervised"]),
        tuple(
          PseudoLabels(
            **entry
            | {
              "alarms": tuple(entry["alarms"]),
              "teacher": cls.from_json(entry["teacher"]),
            }
          )
          for entry in source["labels"]
        ),
      )
      for source in value["sources"]
    )
    start = cls.from_json(value["start"])
    return cls(**{**value, "sources": sources, "start": start})


class Licensed(NamedTuple):
  """A licence somewhere in a lineage.

  Attributes:
    what: it is of, for people.
    text: as it is recorded; None if nothing is.
    licence: what it says.
    path: by which it came, from the model on.
  """

  what: str
  text: str | None
  licence: Licence
  path: tuple[str, ...]


def trace(path: PathLike) -> Model:
  """Follows a checkpoint back.

  Args:
    path: as for `must_jax.load`, local or in a bucket.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it cannot be read.
  """
  return _trace(path, ())


def findings(model: Model) -> list[Licensed]:
  """All licences behind a model; each thing once, by the shortest path."""
  found: dict[tuple[str, str | None], Licensed] = {}
  for finding in sorted(_findings(model, ()), key=lambda x: len(x.path)):
    found.setdefault((finding.what, finding.text), finding)
  return list(found.values())


def teachers(model: Model) -> dict[str, Model]:
  """The teachers whose labels a model itself learned from, by digest."""
  found = (
    labels.teacher for source in model.sources for labels in source.labels
  )
  return {t.digest or t.name: t for t in found if t is not None}


def run_directory(step_dir: Path) -> Path | None:
  """The workdir of the run that a checkpoint of a step lies in, if it does."""
  if step_dir.parent.name != "checkpoints":
    return None
  workdir = step_dir.parent.parent
  is_best = workdir.name == BEST_DIRECTORY
  if is_best and (workdir.parent / BEST_FILE).exists():
    return workdir.parent
  return workdir


def read_json(path: Path) -> Any:
  """A file's JSON; None if there is no such file, or it is none."""
  (text,) = read_files([path])
  try:
    return json.loads(text) if text is not None else None
  except ValueError:
    return None


def _trace(path: PathLike, before: tuple[str, ...]) -> Model:
  step_dir = checkpoint.find(path)
  meta = checkpoint.read_meta(step_dir)
  if known := Model.from_json(meta.get("lineage")):
    return known
  workdir = run_directory(step_dir)
  record = read_json(workdir / "run.json") if workdir else None
  return _follow(
    (workdir or step_dir).name,
    str(step_dir),
    checkpoint.fingerprint(step_dir),
    meta["config"],
    meta.get("origin", {}),
    record or {},
    before,
  )


def _follow(
  name: str,
  place: str,
  digest: str,
  config: _Json,
  origin: _Json,
  record: _Json,
  before: tuple[str, ...],
  task: str = "",
) -> Model:
  """A model whose config is known.

  Args:
    name: see `Model`.
    place: see `Model`.
    digest: see `Model`.
    config: of it, which may be that of an earlier version.
    origin: see `Model`.
    record: `run.json`, what its data were; {} if that is not known.
    before: digests of the models that this one went into.
    task: see `Model`.
  """
  reads: dict[str, Collection[str]] = {}  # fields by task
  # Another version may have options or tasks that there are none of here.
  with contextlib.suppress(ValueError, KeyError, TypeError):
    known = config_lib.from_json(json.dumps(config))
    config = json.loads(config_lib.to_json(known))
    reads = {name: task.fields for name, task in build_tasks(known).items()}
  model = Model(name, place, digest, task, config, origin)
  if origin:
    return model
  if digest in before:
    return dataclasses.replace(model, problem="its own ancestor; see above")
  digests = record.get("sources", {})
  before = (*before, digest)
  return dataclasses.replace(
    model,
    sources=tuple(
      _source(name, config, reads, digests, before)
      for name in config.get("train_on", ())
    ),
    start=_start(config, record.get("init_from", ""), before),
  )


def _source(
  name: str,
  config: _Json,
  reads: Mapping[str, Collection[str]],
  digests: Mapping[str, str],
  before: tuple[str, ...],
) -> TrainedOn:
  entry = config["datasets"][name]
  supervised: list[str] = []
  labels: list[PseudoLabels] = []
  for task, options in config["tasks"].items():
    if SUPERVISED in listed(options["labels"].get(name)):
      supervised.append(task)
    for key, place in label_sets(task, options, name):
      min_score, digest = options.get("min_score"), digests.get(key)
      found = _labels(task, place, min_score, digest, before)
      left = {
        field: value
        for field, value in found.left.items()
        if field in reads.get(task, found.left)
      }
      labels.append(dataclasses.replace(found, left=left))
  images = images_of(entry, digests.get(f"datasets.{name}"))
  for found in labels:
    if images.licence is None and found.image_set:
      images = dataclasses.replace(
        images,
        name=found.image_set["name"],
        licence=found.image_set.get("licence"),
        num_records=found.image_set.get("num_records"),
      )
  return TrainedOn(name, images, tuple(supervised), tuple(labels))


def images_of(entry: _Json, digest: str | None = None) -> ImageSplit:
  """A split of an image set.

  Args:
    entry: of a config's `datasets`.
    digest: of what was learned from; None if not known.
  """
  place, split = entry["dir"], entry["split"]
  images = ImageSplit(Path(place).name, split, place)
  try:
    index = read_index(place)
    listed = index["splits"][split]
  except (ValueError, OSError) as error:
    return dataclasses.replace(images, problem=f"cannot be read: {error}")
  except KeyError:
    return dataclasses.replace(images, problem="has no such split any more")
  if digest and content_digest(listed["shards"]) != digest:
    return dataclasses.replace(images, problem=_CHANGED)
  return dataclasses.replace(
    images,
    name=index["name"],
    licence=index["licence"],
    num_records=listed["num_records"],
    num_rejected=listed.get("num_rejected", 0),
    warnings=tuple(listed.get("warnings", ())),
  )


def _labels(
  task: str,
  place: str,
  min_score: NamedScores | None,
  digest: str | None,
  before: tuple[str, ...],
) -> PseudoLabels:
  labels = PseudoLabels(task, place)
  try:
    manifest = read_manifest(place)
  except (ValueError, OSError) as error:
    return dataclasses.replace(labels, problem=f"cannot be read: {error}")
  if digest and content_digest(manifest["shards"]) != digest:
    return dataclasses.replace(labels, problem=_CHANGED)
  return dataclasses.replace(
    labels,
    image_set={
      key: value
      for key, value in manifest["image_set"].items()
      if key != "shards"
    },
    num_records=manifest.get("num_records"),
    num_undecodable=manifest.get("num_undecodable", 0),
    left=_left(manifest, reading_score(manifest, min_score)),
    quality=manifest.get("quality", {}),
    alarms=tuple(manifest.get("alarms", ())),
    teacher=_teacher(manifest["teacher"], before),
  )


def _left(manifest: _Json, min_score: NamedScores | None) -> dict[str, _Json]:
  """What a task reads of a label set.

  Returns:
    {field: {"min_score", "elements" (their name), "labels", "stored", "left"
    (least and most), "classes": {name: [stored, left] or [stored, None]}}}.
  """
  found = {}
  for name, sums in manifest.get("statistics", {}).items():
    description = manifest["fields"][name]
    classes = description.get("classes", ())
    kept = fields.kept_of(description, sums, min_score)
    found[name] = {
      "min_score": kept.min_score,
      "elements": kept.name,
      "labels": kept.labels,
      "stored": kept.stored,
      "left": list(kept.bounds),
      "classes": {
        classes[k]: [
          kept.stored_by_class.get(k, 0),
          kept.by_class.get(k, (0, 0))[0]
          if kept.by_class is not None
          else None,
        ]
        for k in range(len(classes))
      },
    }
  return found


def _teacher(described: _Json, before: tuple[str, ...]) -> Model:
  """A teacher as a manifest describes it."""
  digest, task = str(described.get("digest", "")), described.get("task", "")
  if "lineage" in described:
    known = Model.from_json(described["lineage"])
    assert known is not None
    return dataclasses.replace(known, task=task)
  config = described.get("config")
  if isinstance(config, dict) and "tasks" in config:
    origin = described.get("origin", {})
    name = origin.get("kind") or f"teacher of {task}"
    return _follow(name, "", digest, config, origin, {}, before, task)
  # Anything may be a teacher, and say anything of itself.
  name = described.get("name") or described.get("importer") or "a teacher"
  if corrections := described.get("corrections"):
    name = f"corrections by {corrections.get('by') or 'people'}"
  said = {k: v for k, v in described.items() if k != "config"}
  return Model(str(name), digest=digest, task=str(task), origin=said)


def _start(config: _Json, digest: str, before: tuple[str, ...]) -> Model | None:
  place = config.get("init_from")
  if not place:
    return None
  gone = Model(_name(place), str(place), digest)
  try:
    found = _trace(place, before)
  except (ValueError, OSError) as error:
    return dataclasses.replace(gone, problem=f"cannot be read: {error}")
  if digest and found.digest != digest:
    return dataclasses.replace(gone, problem=_CHANGED)
  return found


def _name(place: str) -> str:
  """Of the run that a path of a checkpoint is of."""
  path = Path(place)
  if path.parent.name == "checkpoints":
    path = path.parent.parent
  elif path.name == "checkpoints":
    path = path.parent
  return path.name


def _findings(model: Model, path: tuple[str, ...]) -> Iterator[Licensed]:
  if model.origin or model.problem or not model.sources:
    what = f"weights {model.name}" if model.config else model.name
    text = model.origin.get("licence")
    yield Licensed(what, text, licences.read(text), path)
  for source in model.sources:
    images = source.images
    yield Licensed(
      f"images {images.name} ({images.split})",
      images.licence,
      licences.read(images.licence),
      path,
    )
    for labels in source.labels:
      step = (*path, f"labels of {labels.task} on {images.name}")
      if labels.teacher is None:
        what = f"labels {Path(labels.place).name}"
        yield Licensed(what, None, licences.read(None), step)
      else:
        yield from _findings(labels.teacher, (*step, labels.teacher.name))
  if model.start is not None:
    yield from _findings(model.start, (*path, f"start from {model.start.name}"))
