"""`must-jax predict`: pictures of what a checkpoint sees."""

import collections
import io
import itertools
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

import must_jax
from must_jax.importers import files
from must_jax.storage import image_files
from must_jax.storage.image_files import ImageOptions, Picture, Rejected
from must_jax.storage.path import Path, list_tree, make_directory, publish
from must_jax.train.load import LoadedModel


def run(
  checkpoint: Path,
  images: Sequence[Path],
  out: Path,
  max_side: int = 0,
  code_range: Sequence[int] | None = None,
) -> int:
  """Draws every task's predictions for image files.

  What cannot be read as an import would read it is named and passed over.

  Args:
    checkpoint: a checkpoint or a run's workdir.
    images: files, or directories of files.
    out: directory for `IMAGE-TASK.png`; images in folders of a directory get
      folders there.
    max_side: pictures are reduced to it; 0 for the photos' own size.
    code_range: codes of 16 bits that become black and white.

  Returns:
    0; 1 if a file that was named itself could not be read.

  Raises:
    ValueError: there is nothing that can be read, or an option is wrong.
  """
  if max_side < 0:
    raise ValueError(f"--max-side is {max_side}; expected 0 or more.")
  options = ImageOptions(image_files.check_code_range(code_range))
  found, num_others = _find(images)
  model = must_jax.load(str(checkpoint))
  taken: set[str] = set()
  counts: collections.Counter[str] = collections.Counter()
  num_drawn = status = 0
  for path, name, is_named in found:
    try:
      picture = image_files.read_image(path, options)
    except Rejected as error:
      print(f"passed over: {path}: {error}", file=sys.stderr)
      status |= is_named
      continue
    num_drawn += 1
    counts.update(picture.counts)
    drawn = _draw(model, picture, max_side)
    stem = _free_name(name, list(drawn), taken)
    for task, pixels in drawn.items():
      target = Path(out) / f"{stem}-{task}.png"
      make_directory(target.parent)
      with publish(target) as file:
        Image.fromarray(pixels).save(file, "PNG")
      print(f"{path} -> {target}")
  for text in image_files.warn(counts):
    print(f"warning: {text}", file=sys.stderr)
  if not num_drawn:
    raise ValueError(
      f"None of the {len(found)} files in {', '.join(map(str, images))} can be"
      " read; the reasons are above."
    )
  num_passed = len(found) - num_drawn + num_others
  if num_passed:
    print(
      f"{num_drawn} images drawn, {num_passed} files passed over",
      file=sys.stderr,
    )
  return int(status)


def _find(
  images: Sequence[Path],
) -> tuple[list[tuple[Path, str, bool]], int]:
  """Finds images; names the other files of directories.

  Returns:
    (file, its name below its directory, whether it was named itself) of each
    image, and how many other files there are.

  Raises:
    ValueError: a directory has no images.
  """
  found: list[tuple[Path, str, bool]] = []
  num_others = 0
  for place in map(Path, images):
    if not place.is_dir():
      found.append((place, place.name, True))
      continue
    wanted, others = files.find_files(place, image_files.IMAGE_SUFFIXES)
    suffixes = ", ".join(image_files.IMAGE_SUFFIXES)
    num_others += len(others)
    for name in others:
      print(
        f"passed over: {place / name}: no image that is read ({suffixes})",
        file=sys.stderr,
      )
    for name in sorted(list_tree(place, hidden=True)):
      if Path(name).name.startswith("."):
        num_others += 1
        print(f"passed over: {place / name}: hidden", file=sys.stderr)
    if not wanted:
      raise ValueError(
        f"{place} has no images ({len(others)} other files); expected"
        f" {suffixes}."
      )
    found += [(place / name, name, False) for name in wanted]
  return found, num_others


def _free_name(name: str, tasks: Sequence[str], taken: set[str]) -> str:
  """What the pictures of an image are called, so that none replaces another."""
  stem = files.key_of(name)
  candidates = itertools.chain(
    (stem, name), (f"{name}-{number}" for number in itertools.count(2))
  )
  for candidate in candidates:
    targets = {f"{candidate}-{task}" for task in tasks}
    if not targets & taken:
      break
  taken |= targets
  return candidate


def _draw(
  model: LoadedModel, picture: Picture, max_side: int
) -> dict[str, np.ndarray]:
  """Pictures uint8 [h, w, 3] by task."""
  with Image.open(io.BytesIO(picture.data)) as file:
    photo = file.convert("RGB")
  if max_side:
    photo.thumbnail((max_side, max_side))
  canvas = np.asarray(photo)
  scale = np.divide(canvas.shape[:2], picture.size)
  (predictions,) = model.predict([picture])
  drawn = {}
  for name, arrays in predictions.items():
    task = model.tasks[name]
    for field in task.fields.values():
      arrays = field.scaled(arrays, scale)
    drawn[name] = task.draw(canvas, arrays)
  return drawn
