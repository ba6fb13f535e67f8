"""Everything that is drawn on images: labels, predictions, sheets of both.

Pictures are uint8 [H, W, 3]. Maps of another resolution are resized to that of
the picture, nearest.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from must_jax.types import IGNORE_LABEL

if TYPE_CHECKING:
  from PIL import Image, ImageFont

SIDE = 256  # longest side of a picture in a sheet, pixels
_PER_ROW = 6  # pictures
_GAP = 8
_LINE = 20  # height of a line of text
_FONT_SIZE = 14
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_ALARM = (216, 32, 32)
BLANK = (224, 224, 224)  # of what is not there

# Dark violet (far) over orange to pale yellow (near).
_NEARNESS = np.array(
  [
    [13, 8, 65],
    [122, 30, 125],
    [222, 85, 75],
    [253, 174, 50],
    [252, 253, 191],
  ]
)


# What is drawn on one image.


def palette(num_colors: int) -> np.ndarray:
  """Well separated colours, uint8 [num_colors, 3] (golden-angle hues)."""
  hue = np.arange(num_colors) * 0.61803398875 % 1.0
  value = 0.95 - 0.25 * (np.arange(num_colors) // 8 % 3)
  # HSV to RGB with saturation 0.65.
  k = (np.array([5, 3, 1])[None] + hue[:, None] * 6) % 6
  ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
  rgb = value[:, None] * (1 - 0.65 * ramp)
  return (255 * rgb).astype(np.uint8)


def resize_map(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Nearest resize of a map [h, w, ...] to a picture's size."""
  rows = (np.arange(size[0]) + 0.5) * array.shape[0] / size[0]
  cols = (np.arange(size[1]) + 0.5) * array.shape[1] / size[1]
  return array[rows.astype(int)[:, None], cols.astype(int)[None]]


def draw_bars(image: np.ndarray, probs: np.ndarray) -> np.ndarray:
  """An image above a bar for each of its three most probable classes.

  Args:
    image: uint8 [H, W, 3].
    probs: float [K]; a bar is as long as its class is probable.
  """
  height, width = image.shape[:2]
  row = max(2, height // 24)
  top = np.argsort(-probs)[:3]
  bars = np.full((row * len(top), width, 3), 255, np.uint8)
  colors = palette(len(probs))
  for i, k in enumerate(top):
    length = int(np.clip(probs[k], 0, 1) * width)
    bars[i * row : (i + 1) * row - 1, :length] = colors[k]
  return np.concatenate([image[: height - len(bars)], bars])


def draw_boxes(
  image: np.ndarray, boxes: np.ndarray, colors: np.ndarray
) -> np.ndarray:
  """Frames on an image.

  Args:
    image: uint8 [H, W, 3].
    boxes: float [n, 4], yxyx, pixels.
    colors: uint8 [n, 3].
  """
  image = image.copy()
  width = max(1, min(image.shape[:2]) // 96)
  limit = np.array(image.shape[:2]) - 1
  for box, color in zip(boxes, colors, strict=True):
    corners = np.clip(np.rint(box.reshape(2, 2)), 0, limit).astype(int)
    (y0, x0), (y1, x1) = corners
    frame = image[y0 : y1 + 1, x0 : x1 + 1]
    sides = frame[:width], frame[-width:], frame[:, :width], frame[:, -width:]
    for side in sides:
      side[...] = color
  return image


def draw_classes(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Colours of classes over an image; dark where they are unknown.

  Args:
    image: uint8 [H, W, 3].
    classes: int [H, W], `IGNORE_LABEL` where unknown.
  """
  colors = palette(IGNORE_LABEL + 1)
  colors[IGNORE_LABEL] = 0
  return (0.35 * image + 0.65 * colors[classes]).astype(np.uint8)


def draw_nearness(
  values: np.ndarray, valid: np.ndarray, *, is_distance: bool
) -> np.ndarray:
  """Values as colours from far to near, all but the outermost percents.

  Args:
    values: float [H, W].
    valid: bool [H, W]; black where it is not.
    is_distance: whether large values are far.
  """
  if not valid.any():
    return np.zeros((*values.shape, 3), np.uint8)
  if is_distance:  # inverse, so that a far sky leaves colours to a room
    values = 1 / np.maximum(values, 1e-6)
  low, high = np.percentile(values[valid], (1, 99))
  near = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
  place = near * (len(_NEARNESS) - 1)
  stops = np.arange(len(_NEARNESS))
  rgb = np.stack([np.interp(place, stops, c) for c in _NEARNESS.T], -1)
  return np.where(valid[..., None], rgb, 0).astype(np.uint8)


def draw_normals(vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """Directions in the usual colours; black where they are not valid.

  x is red, y up green, towards the camera blue.

  Args:
    vectors: float [H, W, 3], unit vectors in the camera frame.
    valid: bool [H, W].
  """
  rgb = (vectors * (1, -1, -1) + 1) / 2 * 255
  rgb = np.where(valid[..., None], rgb, 0)
  return np.clip(rgb, 0, 255).astype(np.uint8)


def enlarge(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A picture at another size, cubic."""
  from PIL import Image

  cubic = Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(image).resize(size[::-1], cubic))


# Several pictures.


def gallery(
  rows: Sequence[Sequence[np.ndarray]], cell: tuple[int, int]
) -> np.ndarray:
  """Pictures side by side, row below row.

  Args:
    rows: of pictures, as many in each.
    cell: height and width that each is padded to.
  """

  def pad(picture: np.ndarray) -> np.ndarray:
    canvas = np.full((*cell, 3), 255, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas

  return np.concatenate(
    [np.concatenate([pad(picture) for picture in row], 1) for row in rows]
  )


class Panel(NamedTuple):
  """A picture uint8 [h, w, 3] and the line of text below it."""

  picture: np.ndarray
  caption: str


Word = tuple[str, tuple[int, ...] | None]  # a word and its colour, if any


def contact_sheet(
  title: str,
  tiles: Sequence[Sequence[Panel]],
  legends: Mapping[str, Mapping[str, tuple[int, ...]]],
  warnings: Sequence[str] = (),
) -> "Image.Image":
  """Tiles of panels in rows, with colours explained below.

  Args:
    title: above them.
    tiles: as many panels in each, of at most 256 pixels a side.
    legends: {what has colours: {what a colour means: the colour}}.
    warnings: below the title, each after a red patch.
  """
  from PIL import Image

  panels = max((len(tile) for tile in tiles), default=1)
  per_row = max(1, _PER_ROW // panels)
  width = _GAP + per_row * panels * (SIDE + _GAP)
  strips = [_words([(title, None)], width)]
  for text in warnings:
    strips += [
      _words([(line, _ALARM if i == 0 else None)], width)
      for i, line in enumerate(_wrap(text, width - _LINE - 3 * _GAP))
    ]
  for start in range(0, len(tiles), per_row):
    strips.append(_row(tiles[start : start + per_row], width))
  for name, meanings in legends.items():
    words: list[Word] = [(f"{name}:", None), *meanings.items()]
    strips.append(_words(words, width))
  sheet = Image.new("RGB", (width, sum(s.height for s in strips)), _PAPER)
  top = 0
  for strip in strips:
    sheet.paste(strip, (0, top))
    top += strip.height
  return sheet


def _row(tiles: Sequence[Sequence[Panel]], width: int) -> "Image.Image":
  """Tiles side by side; pictures stand on their captions."""
  from PIL import Image, ImageDraw

  height = max(panel.picture.shape[0] for tile in tiles for panel in tile)
  strip = Image.new("RGB", (width, height + _LINE + _GAP), _PAPER)
  pen = ImageDraw.Draw(strip)
  left = _GAP
  for tile in tiles:
    for picture, caption in tile:
      strip.paste(Image.fromarray(picture), (left, height - len(picture)))
      pen.text((left, height), _clip(caption, SIDE), _INK, _font())
      left += SIDE + _GAP
  return strip


def _words(words: Sequence[Word], width: int) -> "Image.Image":
  """Words in lines, each after a patch of its colour."""
  from PIL import Image, ImageDraw

  placed = []
  left = line = 0
  for word, color in words:
    word = _clip(word, width - _LINE - 3 * _GAP)
    room = int(_font().getlength(word)) + 2 * _GAP + (_LINE if color else 0)
    if left + room > width:
      left, line = 0, line + 1
    placed.append((left + _GAP, line * _LINE + _GAP, word, color))
    left += room
  strip = Image.new("RGB", (width, (line + 1) * _LINE + 2 * _GAP), _PAPER)
  pen = ImageDraw.Draw(strip)
  for left, top, word, color in placed:
    if color:
      pen.rectangle((left, top + 2, left + 13, top + 15), color)
      left += _LINE
    pen.text((left, top), word, _INK, _font())
  return strip


def _font() -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
  from PIL import ImageFont

  return ImageFont.load_default(_FONT_SIZE)


def _wrap(text: str, width: int) -> list[str]:
  """A text in lines of at most so many pixels, parted between words."""
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".lstrip()
    if lines[-1] and _font().getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def _clip(text: str, width: int) -> str:
  """As much of a text as fits into some pixels."""
  shown, keep = text, len(text)
  while _font().getlength(shown) > width:
    keep -= 1
    shown = text[:keep] + "..."
  return shown
