"""Whether an exported model says what its checkpoint says: `check.json`.

The model is loaded by its own runtime in a process that knows nothing of this
package, and gets the same images.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from must_jax.config import dataset
from must_jax.export import runner
from must_jax.export.formats import Format
from must_jax.export.program import ANY, ExportProgram
from must_jax.fields.field import differences
from must_jax.input import batches, sources
from must_jax.input.origins import SUPERVISED, Source
from must_jax.input.quarantine import BadRecord
from must_jax.storage import image_files
from must_jax.storage.path import Path
from must_jax.storage.sets import read_index
from must_jax.train.evaluate import measure
from must_jax.train.inference import Batch, Outputs

TOLERANCE = 1e-3
_CHECKED = "check"  # name of the dataset
_NUM_PHOTOS = 4  # of the checkpoint's own data
_NUM_NOISE = 2
_REPEATS = 5
_TAIL = 2000  # characters of a runtime's last words


@dataclasses.dataclass(frozen=True)
class Images:
  """What a model is checked on.

  Attributes:
    images: uint8 [N, H, W, 3].
    content_size: float32 [N, 2].
    origin: what they are, in words.
  """

  images: np.ndarray
  content_size: np.ndarray
  origin: str


class Runtime:
  """An exported model in its own process; a context manager."""

  def __init__(self, name: str, artefact: Path):
    """Starts it.

    Args:
      name: of the format.
      artefact: what the model is loaded from.
    """
    self._folder = tempfile.TemporaryDirectory()
    self._log = open(  # noqa: SIM115  # closed at exit
      os.path.join(self._folder.name, "log"), "w+"
    )
    self._process = subprocess.Popen(
      # Isolated: neither the current folder nor PYTHONPATH is looked at.
      [sys.executable, "-I", runner.__file__, name, str(artefact)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env=os.environ
      | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
      },
    )
    self.name = name

  def __enter__(self) -> "Runtime":
    return self

  def __exit__(self, *unused: object) -> None:
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._log):
      if stream:
        stream.close()
    self._folder.cleanup()

  def __call__(
    self, images: np.ndarray, content_size: np.ndarray, repeats: int = 0
  ) -> tuple[dict[str, np.ndarray], float]:
    """Outputs by name, and seconds of the fastest repeated call.

    Raises:
      ValueError: the runtime cannot load or run the model.
    """
    assert self._process.stdin and self._process.stdout
    inputs, outputs = (
      os.path.join(self._folder.name, name) for name in ("in.npz", "out.npz")
    )
    np.savez(inputs, images=images, content_size=content_size)
    try:
      self._process.stdin.write(f"{inputs} {outputs} {repeats}\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it has ended, and said why
    for line in self._process.stdout:
      if line.startswith("{"):
        with np.load(outputs) as file:
          return dict(file), json.loads(line)["seconds"]
    self._log.seek(0)
    raise ValueError(
      f"The runtime of {self.name} cannot run the exported model:\n"
      f"{self._log.read()[-_TAIL:]}"
    )


def check(
  program: ExportProgram,
  name: str,
  form: Format,
  directory: Path,
  images: Sequence[Images],
  validation: "Validation | None" = None,
) -> dict[str, Any]:
  """Compares an exported model with its checkpoint.

  Args:
    program: that was exported.
    name: of the format.
    form: its module.
    directory: of the export, on a disk.
    images: to compare on.
    validation: to measure both on.

  Returns:
    What `check.json` says of it: "passed", "exceeded" (outputs past their
    tolerance),
    "nothing_to_compare" (flags that are nowhere true, as without detections),
    "differences" by task and output, "seconds" and "ratio" of a batch, ...

  Raises:
    ValueError: the runtime cannot run the model.
  """
  reference = _reference(program)
  found: dict[str, dict[str, float]] = {task: {} for task in program.tasks}
  counts: dict[str, dict[str, int]] = {task: {} for task in program.tasks}
  seconds = {"jax": np.inf, name: np.inf}
  with Runtime(name, directory / form.ARTEFACT) as runtime:
    for group in images:
      for batch in _cut(program, group):
        ours, took = _timed(reference, batch)
        seconds["jax"] = min(seconds["jax"], took)
        flat, took = runtime(*batch, _REPEATS)
        seconds[name] = min(seconds[name], took)
        for task, theirs in _by_task(flat).items():
          _add(found[task], _differences(program, task, ours[task], theirs))
          for key, array in ours[task].items():
            if array.dtype == bool:
              counts[task][key] = counts[task].get(key, 0) + int(array.sum())
    result = {
      "versions": _versions(form),
      "machine": f"{platform.machine()}, {os.cpu_count()} cores",
      "images": [f"{len(group.images)} {group.origin}" for group in images],
      "image_size": list(program.image_size),
      "batch": program.batch,
      "differences": found,
      "counts": {task: n for task, n in counts.items() if n},
      "seconds": {key: round(value, 6) for key, value in seconds.items()},
      "ratio": round(seconds[name] / seconds["jax"], 3),
    }
    if validation is not None:
      result["metrics"] = validation.measure(runtime)
  tolerances = _tolerances(program, found)
  exceeded = [
    f"{task}/{key}"
    for task, values in found.items()
    for key, value in values.items()
    if not value <= tolerances[task][key]
  ]
  return result | {
    "tolerances": tolerances,
    "exceeded": exceeded,
    "nothing_to_compare": [
      f"{task}/{key}"
      for task, flags in counts.items()
      for key, count in flags.items()
      if not count
    ],
    "passed": not exceeded,
  }


def own_photos(program: ExportProgram) -> Images | None:
  """A few images of the data that the checkpoint knows, if still there."""
  config = program.config
  for name in (*config.evaluate_on, *config.train_on):
    entry = config.datasets[name]
    try:
      examples = batches.eval_batches(
        [Source(entry.dir, entry.split)],
        {},
        batch_size=_NUM_PHOTOS,
        image_size=program.image_size,
        augment=sources.eval_geometry(config),
      )
      batch = next(examples, None)
    except (OSError, ValueError):
      continue
    rows = np.flatnonzero(batch["valid"]) if batch else ()
    if batch and len(rows):
      return Images(
        as_bytes(batch["image"])[rows],
        batch["content_size"][rows],
        f"images of {entry.dir}, split {entry.split}",
      )
  return None


def read_photos(program: ExportProgram, paths: Sequence[Path]) -> Images:
  """Photos as the model takes them.

  Raises:
    ValueError: one cannot be read.
  """
  pictures = []
  for path in paths:
    try:
      pictures.append(image_files.read_image(path))
    except image_files.Rejected as error:
      raise ValueError(f"--photos: {path}: {error}") from None
  batch = batches.photo_batch(
    [(picture.data, picture.size) for picture in pictures],
    program.image_size,
    sources.eval_geometry(program.config),
  )
  return Images(as_bytes(batch["image"]), batch["content_size"], "photos")


def noise(program: ExportProgram) -> Images:
  """Images of random bytes, the last of them with padding."""
  size = np.tile(np.array(program.image_size, np.float32), (_NUM_NOISE, 1))
  size[-1] = np.maximum(1, size[-1] // [1, 2])
  random = np.random.default_rng(0)
  shape = (_NUM_NOISE, *program.image_size, 3)
  return Images(
    random.integers(0, 256, shape, np.uint8), size, "images of noise"
  )


def _reference(program: ExportProgram):
  """What the checkpoint itself predicts, in float32."""
  loaded = dataclasses.replace(
    program.loaded,
    config=program.config,
    tasks=program.chosen,
    model=program.model,
    variables=program.variables,
  )
  return loaded.predictor(map_stride=1)


def as_bytes(images: np.ndarray) -> np.ndarray:
  """Images uint8 of floats, of any shape; rounds, and cuts to 0..255.

  Published rules give numbers between whole ones, and beyond.
  """
  return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


def _cut(
  program: ExportProgram, group: Images
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Batches of the program's size; of any size, all images."""
  total = len(group.images)
  size = total if program.batch == ANY else int(program.batch)
  for start in range(0, total, size):
    rows = np.arange(start, start + size) % total
    yield group.images[rows], group.content_size[rows]


def _timed(reference: Any, batch: Any) -> tuple[Outputs, float]:
  outputs = reference(*batch)
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    reference(*batch)
    seconds.append(time.perf_counter() - start)
  return outputs, min(seconds)


def _by_task(flat: dict[str, np.ndarray]) -> Outputs:
  outputs: Outputs = {}
  for name, array in flat.items():
    task, key = name.rsplit("/", 1)
    outputs.setdefault(task, {})[key] = array
  return outputs


def _differences(
  program: ExportProgram, task: str, ours: Any, theirs: Any
) -> dict[str, float]:
  """Those that its fields find, and of what is no field's, all."""
  found: dict[str, float] = {}
  rest = set(ours)
  for field in program.loaded.tasks[task].fields.values():
    if names := rest & set(field.predicted):
      rest -= names
      found |= field.differences(
        *({name: arrays[name] for name in names} for arrays in (ours, theirs))
      )
  return found | differences({name: ours[name] for name in rest}, theirs)


def _tolerances(
  program: ExportProgram, found: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
  return {
    task: dict.fromkeys(values, TOLERANCE)
    | {
      key: tolerance
      for field in program.loaded.tasks[task].fields.values()
      for key, tolerance in field.tolerances.items()
    }
    for task, values in found.items()
  }


def _add(total: dict[str, float], values: dict[str, float]) -> None:
  for key, value in values.items():
    total[key] = max(total.get(key, 0.0), value)


def _versions(form: Format) -> dict[str, str]:
  return {"python": platform.python_version()} | {
    name: importlib.metadata.version(name) for name in ("jax", *form.REQUIRES)
  }


class Validation:
  """An image set with labels, to measure a checkpoint and its export on."""

  def __init__(self, program: ExportProgram, data: Path, split: str):
    """Opens it.

    Args:
      program: that is exported.
      data: the image set.
      split: of it.

    Raises:
      ValueError: it has no such split, or labels of none of the tasks.
    """
    fields = read_index(data)["fields"]
    self._program, self._data, self._split = program, data, split
    self._tasks = {
      name: task
      for name, task in program.chosen.items()
      if task.fields and set(task.fields) <= set(fields)
    }
    if not self._tasks:
      raise ValueError(
        f"--data {data} has the labels {', '.join(sorted(fields)) or 'none'};"
        f" expected those of one of the tasks {', '.join(program.tasks)}."
      )
    config = self._config(program.config)
    sources.check_classes(config, str(program.loaded.path))
    sources.eval_union(config, _CHECKED)

  def _config(self, config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.datasets = {_CHECKED: dataset(self._data, self._split)}
    config.train_on, config.evaluate_on = (), (_CHECKED,)
    for name, entry in config.tasks.items():
      entry.labels = {_CHECKED: SUPERVISED} if name in self._tasks else {}
    return config

  def measure(self, runtime: Runtime) -> dict[str, dict[str, float]]:
    """Metrics of both.

    Those of the checkpoint are what `evaluate` has; the exported model takes
    images of its own size.
    """
    program = self._program

    def exported(batch: Batch) -> Iterator[tuple[np.ndarray, Outputs]]:
      group = Images(as_bytes(batch["image"]), batch["content_size"], "")
      count = len(group.images)
      parts = [_by_task(runtime(*part)[0]) for part in _cut(program, group)]
      outputs = {
        name: {
          key: np.concatenate([part[name][key] for part in parts])[:count]
          for key in parts[0][name]
        }
        for name in self._tasks
      }
      yield np.arange(count), outputs

    own = program.loaded.batch_predictor(tuple(self._tasks), map_stride=1)
    return {
      who: measure(
        predict,
        sources.eval_batches(self._config(config), _CHECKED, _tell),
        self._tasks,
        lambda: False,
      )
      or {}
      for who, predict, config in (
        ("checkpoint", own, program.loaded.config),
        ("exported", exported, program.config),
      )
    }


def _tell(bad: BadRecord) -> None:
  logging.warning("--data: %s", bad)
