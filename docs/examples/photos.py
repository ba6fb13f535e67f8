"""Photos for exported models, and back: NumPy and Pillow, nothing else.

What `signature.json` says under "preprocessing", as a program. It makes the
pixels that must_jax makes, but for JPEGs that shrink to less than half: those
are averaged here, and decoded at a smaller size there.
"""

import math

import numpy as np
from PIL import Image, ImageOps


def read(path):
  """A photo as uint8 [h, w, 3], upright, on white where it is transparent."""
  with Image.open(path) as file:
    image = ImageOps.exif_transpose(file)
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA"):
      image = image.convert("RGBA")
      white = Image.new("RGBA", image.size, "white")
      image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def prepare(photo, spec):
  """The model's inputs for one photo.

  Args:
    photo: uint8 [h, w, 3].
    spec: "preprocessing" of `signature.json`.

  Returns:
    The image uint8 [H, W, 3]; height and width of its content; the window (y,
    x, height, width) of the photo that the content shows.
  """
  window, content = _layout(photo.shape[:2], spec)
  if spec["interpolation"].startswith("pillow"):
    pixels = _pillow(photo, spec)
  else:
    y, x, height, width = (int(side) for side in window)
    pixels = photo[y : y + height, x : x + width]
    if spec["shrink_first"]:
      pixels = _average(pixels, _reduction(window, content))
    pixels = _resample(
      pixels, content, spec["interpolation"], spec["antialias_below"]
    )
  image = np.empty((*spec["image_size"], 3), np.uint8)
  image[:] = spec["fill"]
  image[: content[0], : content[1]] = np.rint(np.clip(pixels, 0, 255))
  return image, content, window


def boxes_in_photo(boxes, content, window):
  """Boxes [n, 4] (ymin, xmin, ymax, xmax) of the image, in the photo."""
  corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
  corners = corners * np.divide(window[2:], content) + window[:2]
  return corners.reshape(-1, 4)


def map_in_photo(array, content, window, size):
  """A map [H, W] of the image at a photo's size; 0 where nothing was seen."""
  rows, cols = (
    (np.arange(size[i]) + 0.5 - window[i]) * content[i] / window[2 + i]
    for i in (0, 1)
  )
  seen = np.logical_and.outer(
    (rows >= 0) & (rows < content[0]), (cols >= 0) & (cols < content[1])
  )
  rows = np.clip(rows, 0, content[0] - 1).astype(int)
  cols = np.clip(cols, 0, content[1] - 1).astype(int)
  return np.where(seen, array[rows[:, None], cols], 0)


def _layout(size, spec):
  """The window of a photo, and height and width of its content."""
  target = spec["image_size"]
  if spec["fit"] == "contain":
    # In single precision, as the scale decides how halves are rounded.
    ratios = np.float32(target) / np.float32(size)
    content = np.rint(np.float32(size) * ratios.min()).astype(int)
    content = tuple(np.clip(content, 1, target).tolist())
    return _whole_squares(size, content, spec), content
  if spec["fit"] == "stretch":
    return _whole_squares(size, target, spec), tuple(target)
  if not spec["shrink_first"]:
    resized, offset = _pillow_layout(size, spec)
    scale = np.divide(size, resized)
    return (*(offset * scale), *(target * scale)), tuple(target)
  ratios = np.float32(size) / np.float32(target)
  side = np.float32(spec["crop_fraction"]) * ratios.min()
  visible = np.clip(np.rint(side * np.float32(target)), 1, size)
  reduction = _reduction((0, 0, *visible), target)
  visible = visible // reduction * reduction
  offset = (size - visible) // 2 // reduction * reduction
  return (*offset, *visible), tuple(target)


def _whole_squares(size, content, spec):
  """The whole photo, but for pixels that fill no square of the reduction."""
  n = _reduction((0, 0, *size), content) if spec["shrink_first"] else 1
  return (0, 0, *(side // n * n for side in size))


def _reduction(window, content):
  shrink = min(window[2] / content[0], window[3] / content[1])
  return next((n for n in (8, 4, 2) if shrink >= n), 1)


def _average(pixels, n):
  """Means of squares of n pixels a side, rounded half up."""
  height, width = (side // n for side in pixels.shape[:2])
  squares = pixels[: height * n, : width * n].reshape(height, n, width, n, 3)
  return np.floor(squares.mean((1, 3)) + 0.5)


def _resample(pixels, size, interpolation, antialias_below):
  scale = min(new / old for new, old in zip(size, pixels.shape, strict=False))
  smooth = scale < antialias_below
  pixels = pixels.astype(np.float32)
  for axis in (0, 1):
    weights = _weights(pixels.shape[axis], size[axis], interpolation, smooth)
    pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
  return pixels


def _weights(old, new, interpolation, smooth):
  """How much each of `old` pixels has in each of `new`, [new, old]."""
  step = old / new
  centre = (np.arange(new) + 0.5) * step - 0.5
  if interpolation == "bilinear" and smooth:
    wide = max(step, 1.0)
    distance = np.abs(centre[:, None] - np.arange(old)) / wide
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  first = np.floor(centre).astype(int)
  t = centre - first
  if interpolation == "bicubic":
    taps, a = np.arange(-1, 3), -0.75
    x = np.abs(t[:, None] - taps)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    values = np.where(x <= 1, near, far)
  else:
    taps = np.arange(2)
    values = np.stack([1 - t, t], 1)
  weights = np.zeros((new, old), np.float32)
  places = np.clip(first[:, None] + taps, 0, old - 1)
  np.add.at(weights, (np.arange(new)[:, None], places), values)
  return weights


def _pillow_layout(size, spec):
  target = spec["image_size"]
  ratios = [target[0] / size[0], target[1] / size[1]]
  first = 0 if ratios[0] >= ratios[1] else 1
  resized = [0, 0]
  resized[first] = math.floor(target[first] / spec["crop_fraction"] + 1e-6)
  resized[1 - first] = int(resized[first] * size[1 - first] / size[first])
  offset = [round((r - t) / 2) for r, t in zip(resized, target, strict=True)]
  return resized, np.array(offset)


def _pillow(photo, spec):
  resized, (top, left) = _pillow_layout(photo.shape[:2], spec)
  names = {
    "pillow_bilinear": Image.Resampling.BILINEAR,
    "pillow_bicubic": Image.Resampling.BICUBIC,
  }
  image = Image.fromarray(photo).resize(
    resized[::-1], names[spec["interpolation"]]
  )
  height, width = spec["image_size"]
  return np.asarray(image)[top : top + height, left : left + width]
