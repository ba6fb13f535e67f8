"""Writes the world's image sets."""

import concurrent.futures
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from must_jax.lab.world.image_sets import SETS, get_spec
from must_jax.lab.world.rendered import render_example, stored_labels
from must_jax.storage.path import Path, PathLike, publish_json
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import INDEX_FILE, ImageSet, read_index

# Grows whenever the same arguments give other bytes.
VERSION = 4
WORLD_FILE = "world.json"
LICENCE = "CC0-1.0 (generated)"

Counts = Mapping[str, Mapping[str, int]]


def default_counts() -> dict[str, dict[str, int]]:
  """Examples by set and split."""
  return {name: dict(spec.counts) for name, spec in SETS.items()}


def build(
  out_dir: PathLike,
  image_size: int = 96,
  counts: Counts | None = None,
  num_shards: int = 4,
  workers: int = 2,
  seed: int = 0,
) -> dict[str, str]:
  """Writes image sets to `out_dir/<set>/`; what is finished already is kept.

  The bytes do not depend on `workers`. Processes are spawned, so scripts that
  call this with workers > 1 need the `if __name__ == "__main__":` guard.

  Args:
    out_dir: of the world.
    image_size: pixels a side.
    counts: {set: {split: examples}}, `default_counts()` if None.
    num_shards: of each split, at most.
    workers: processes that draw, each a set at a time.
    seed: another one gives another world of the same kind.

  Returns:
    {set: directory}.

  Raises:
    ValueError: no such set, or the directory holds a world made with other
      arguments.
  """
  if counts is None:
    counts = default_counts()
  out_dir = Path(out_dir)
  for name, splits in counts.items():
    get_spec(name)
    if not splits or min(splits.values()) < 1:
      raise ValueError(
        f"Counts of set {name!r} are {dict(splits)}; expected at least one"
        " split of at least one example."
      )
  _claim(out_dir, image_size, num_shards, seed)
  todo = [
    (out_dir / name, name, missing, image_size, num_shards, seed)
    for name, splits in counts.items()
    if (missing := _missing(out_dir / name, splits))
  ]
  # The longest first, so that workers end together.
  todo.sort(key=lambda job: -sum(job[2].values()))
  workers = min(workers, len(todo))
  if workers <= 1:
    for done, job in enumerate(todo):
      _report(done, len(todo), job[1])
      _write_set(*job)
  else:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
      futures = [pool.submit(_write_set, *job) for job in todo]
      for done, future in enumerate(concurrent.futures.as_completed(futures)):
        _report(done + 1, len(todo), future.result())
  _report(len(todo), len(todo), "done")
  return {name: str(out_dir / name) for name in counts}


def _claim(out_dir: Path, image_size: int, num_shards: int, seed: int) -> None:
  """Notes with what arguments a world is made, or checks that they agree."""
  world = {
    "version": VERSION,
    "image_size": image_size,
    "num_shards": num_shards,
    "seed": seed,
  }
  for name in ("image_size", "num_shards"):
    if world[name] < 1:
      raise ValueError(f"{name} is {world[name]}; expected at least 1.")
  file = out_dir / WORLD_FILE
  if not file.exists():
    out_dir.mkdir(parents=True, exist_ok=True)
    publish_json(file, world)
    return
  found = json.loads(file.read_text())
  if found != world:
    raise ValueError(
      f"{out_dir} holds a synthetic world made with {found}; given are {world}."
      " Build in another directory, or delete that one."
    )


def _missing(directory: Path, splits: Mapping[str, int]) -> dict[str, int]:
  """The splits of a set that are still to be written."""
  if not (directory / INDEX_FILE).exists():
    return dict(splits)
  written = read_index(directory)["splits"]
  for split, count in splits.items():
    if (
      split in written and ImageSet.open(directory, split).num_records != count
    ):
      raise ValueError(
        f"Split {split!r} of {directory} has"
        f" {written[split]['num_records']} examples; given is a count of"
        f" {count}. Build in another directory, or delete that one."
      )
  return {s: n for s, n in splits.items() if s not in written}


def _write_set(
  directory: Path,
  name: str,
  splits: Mapping[str, int],
  image_size: int,
  num_shards: int,
  seed: int,
) -> str:
  """Draws and writes splits of a set; returns its name."""
  spec = get_spec(name)
  for split, count in splits.items():
    write_image_set(
      directory,
      # The pile's twin names its shards like the pile.
      spec.scenes_of or name,
      split,
      _examples(name, split, count, image_size, seed),
      spec.field_specs(),
      LICENCE,
      num_shards=min(num_shards, count),
    )
  return name


def _examples(
  name: str, split: str, count: int, image_size: int, seed: int
) -> Iterator[dict[str, Any]]:
  """Arguments of `records.encode_example`."""
  from must_jax.quiet_tensorflow import tf  # all but writing works without

  for index in range(count):
    example = render_example(name, split, index, image_size, seed)
    yield {
      "key": example["key"],
      "image": tf.io.encode_png(example["image"]).numpy(),
      "height": image_size,
      "width": image_size,
      "labels": stored_labels(name, example),
    }


def _report(done: int, total: int, name: str) -> None:
  """One line of progress, on terminals only."""
  if total and sys.stderr.isatty():
    end = "\n" if name == "done" else ""
    line = f"\rsynthetic world: {done} of {total} sets ({name})"
    print(f"{line:<60}", end=end, file=sys.stderr, flush=True)
