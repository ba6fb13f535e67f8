"""`must-jax predict`: pictures of what a checkpoint sees."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

import must_jax
from must_jax.storage.path import (
  Path,
  list_tree,
  make_directory,
  publish,
  read_file,
)
from must_jax.types import MEAN_COLOR


def load_image(
  path: Path, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Reads a file as the network wants it: whole, upright, at the top left.

  Args:
    path: an image file.
    image_size: (H, W) of the network input.

  Returns:
    uint8 [H, W, 3] and the content's size, float32 [2].

  Raises:
    ValueError: the file is no image.
  """
  try:
    with Image.open(io.BytesIO(read_file(path))) as file:
      image = ImageOps.exif_transpose(file).convert("RGB")
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read as an image ({error}); expected a JPEG or PNG."
    ) from None
  scale = min(image_size[0] / image.height, image_size[1] / image.width)
  height = max(1, round(image.height * scale))
  width = max(1, round(image.width * scale))
  canvas = np.empty((*image_size, 3), np.uint8)
  canvas[:] = MEAN_COLOR
  canvas[:height, :width] = np.asarray(
    image.resize((width, height), Image.Resampling.BILINEAR)
  )
  return canvas, np.array([height, width], np.float32)


def run(checkpoint: Path, images: Sequence[Path], out: Path) -> int:
  """Draws every task's predictions for image files.

  Args:
    checkpoint: a checkpoint or a run's workdir.
    images: files, or directories of files.
    out: directory for `IMAGE-TASK.png`.

  Returns:
    The exit status.
  """
  model = must_jax.load(str(checkpoint))
  files = []
  for path in map(Path, images):
    if path.is_dir():
      files += [
        path / name
        for name in sorted(list_tree(path))
        if Path(name).suffix.lower() in (".jpg", ".jpeg", ".png")
      ]
    else:
      files.append(path)
  if not files:
    raise ValueError(f"No images in {', '.join(map(str, images))}.")
  out = Path(out)
  make_directory(out)
  predict = model.predictor(map_stride=1)
  for path in files:
    image, content = load_image(path, model.image_size)
    for name, arrays in predict(image[None], content[None]).items():
      picture = model.tasks[name].draw(
        image, {key: value[0] for key, value in arrays.items()}
      )
      height, width = content.astype(int)
      picture = picture[:height, :width]
      target = out / f"{path.stem}-{name}.png"
      with publish(target) as file:
        Image.fromarray(picture).save(file, "PNG")
      print(target)
  return 0
