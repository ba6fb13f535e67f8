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
_LEAST_FONT = 12  # that is legible
_LEAST_WIDTH = 240  # of a legend, pixels
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
  image: np.ndarray,
  boxes: np.ndarray,
  colors: np.ndarray,
  texts: Sequence[str] = (),
) -> np.ndarray:
  """Frames on an image.

  Args:
    image: uint8 [H, W, 3].
    boxes: float [n, 4], yxyx, pixels; later ones lie on top.
    colors: uint8 [n, 3].
    texts: one for each, at its upper left corner; images that are too small for
      text get none.
  """
  image = image.copy()
  width = max(1, min(image.shape[:2]) // 160)
  limit = np.array(image.shape[:2]) - 1
  for box, color in zip(boxes, colors, strict=True):
    corners = np.clip(np.rint(box.reshape(2, 2)), 0, limit).astype(int)
    (y0, x0), (y1, x1) = corners
    frame = image[y0 : y1 + 1, x0 : x1 + 1]
    sides = frame[:width], frame[-width:], frame[:, :width], frame[:, -width:]
    for side in sides:
      side[...] = color
  if min(image.shape[:2]) < 10 * _LEAST_FONT:
    texts = ()
  return _write_at(image, boxes, colors, texts) if texts else image


def _write_at(
  image: np.ndarray,
  boxes: np.ndarray,
  colors: np.ndarray,
  texts: Sequence[str],
) -> np.ndarray:
  """Texts on a ground of their colours, above boxes or else in them."""
  from PIL import Image, ImageDraw

  height, width = image.shape[:2]
  size = font_size((height, width))
  line = round(1.4 * size)
  drawn = Image.fromarray(image)
  pen = ImageDraw.Draw(drawn)
  for box, color, text in zip(boxes, colors.tolist(), texts, strict=True):
    text = _clip(text, width - size, size)
    room = _font(size).getlength(text) + size // 2
    top, left = float(box[0]) - line, float(box[1])
    top = min(max(top if top >= 0 else float(box[0]), 0), height - line)
    left = min(max(left, 0), width - room)
    pen.rectangle((left, top, left + room, top + line), tuple(color))
    # Whichever can be read on the colour, by its luminance.
    is_light = np.dot(color, (0.299, 0.587, 0.114)) > 128
    ink = _INK if is_light else _PAPER
    middle = (left + size // 4, top + line / 2)
    pen.text(middle, text, ink, _font(size), anchor="lm")
  return np.asarray(drawn)


def font_size(size: tuple[int, int]) -> int:
  """Of text on a picture of this height and width, pixels."""
  height, width = size
  return max(
    _LEAST_FONT, min(round((height * width) ** 0.5 / 45), min(size) // 10)
  )


def draw_classes(
  image: np.ndarray, classes: np.ndarray, colors: np.ndarray | None = None
) -> np.ndarray:
  """Colours of classes over an image; dark where they are unknown.

  Args:
    image: uint8 [H, W, 3].
    classes: int [H, W], `IGNORE_LABEL` where unknown.
    colors: uint8 [K, 3] of the classes; `palette`'s by default.
  """
  table = palette(IGNORE_LABEL + 1)
  if colors is not None:
    table[: len(colors)] = colors
  table[IGNORE_LABEL] = 0
  return (0.35 * image + 0.65 * table[classes]).astype(np.uint8)


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
  values, (low, high) = _nearness(values, valid, is_distance)
  near = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
  place = near * (len(_NEARNESS) - 1)
  stops = np.arange(len(_NEARNESS))
  rgb = np.stack([np.interp(place, stops, c) for c in _NEARNESS.T], -1)
  return np.where(valid[..., None], rgb, 0).astype(np.uint8)


def _nearness(
  values: np.ndarray, valid: np.ndarray, is_distance: bool
) -> tuple[np.ndarray, np.ndarray]:
  """What is coloured evenly, and between which of it."""
  if is_distance:  # inverse, so that a far sky leaves colours to a room
    values = 1 / np.maximum(values, 1e-6)
  return values, np.percentile(values[valid], (1, 99))


def explain_nearness(
  values: np.ndarray, valid: np.ndarray, *, is_distance: bool
) -> "list[Word]":
  """The colours of `draw_nearness` with their values, near first.

  Args:
    values: float [h, w]; see `draw_nearness`.
    valid: bool [h, w].
    is_distance: whether values are distances, else inverse.
  """
  if not valid.any():
    return [("nothing is known", None)]
  _, (low, high) = _nearness(values, valid, is_distance)
  marks = np.linspace(high, low, len(_NEARNESS))
  told = 1 / np.maximum(marks, 1e-6) if is_distance else marks
  colors = _NEARNESS[::-1].tolist()
  return [
    (f"{value:.3g}", tuple(color))
    for value, color in zip(told, colors, strict=True)
  ]


def explain_normals() -> "list[Word]":
  """The colours of `draw_normals`."""
  ways = {
    "right": (1, 0, 0),
    "left": (-1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "to the camera": (0, 0, -1),
  }
  vectors = np.array([list(ways.values())], np.float32)
  colors = draw_normals(vectors, np.ones(vectors.shape[:2], bool))[0]
  return [(k, tuple(c)) for k, c in zip(ways, colors.tolist(), strict=True)]


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
  """A picture uint8 [h, w, 3] at another size (height, width), cubic."""
  from PIL import Image

  cubic = Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(image).resize(size[::-1], cubic))


Word = tuple[str, tuple[int, ...] | None]  # a word and its colour, if any


def add_legend(
  picture: np.ndarray, title: str, words: Sequence[Word]
) -> np.ndarray:
  """A picture with words below it, which leave its pixels as they are.

  Args:
    picture: uint8 [H, W, 3].
    title: before the words.
    words: each after a patch of its colour.

  Returns:
    uint8 [H + h, max(W, 240), 3]; white beside a narrow picture.
  """
  height, width = picture.shape[:2]
  size = font_size((height, width))
  title_and_words: list[Word] = [(f"{title}:", None), *words]
  strip = _words(title_and_words, max(width, _LEAST_WIDTH), size)
  canvas = np.full((height + strip.height, strip.width, 3), 255, np.uint8)
  canvas[:height, :width] = picture
  canvas[height:] = np.asarray(strip)
  return canvas


# Several pictures.


def gallery(
  rows: Sequence[Sequence[np.ndarray]], cell: tuple[int, int]
) -> np.ndarray:
  """Pictures side by side, row below row.

  Args:
    rows: of pictures uint8 [h, w, 3], as many in each.
    cell: height and width that each is padded to.

  Returns:
    uint8 [rows * height, columns * width, 3].
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


def _words(
  words: Sequence[Word], width: int, size: int = _FONT_SIZE
) -> "Image.Image":
  """Words in lines, each after a patch of its colour.

  Args:
    words: in order.
    width: of the lines, pixels.
    size: of the font; all else has its proportions.
  """
  from PIL import Image, ImageDraw

  line_height, gap, patch = (
    round(length * size / _FONT_SIZE) for length in (_LINE, _GAP, _FONT_SIZE)
  )
  placed = []
  left = line = 0
  for word, color in words:
    word = _clip(word, width - line_height - 3 * gap, size)
    room = int(_font(size).getlength(word)) + 2 * gap
    room += line_height if color else 0
    if left + room > width:
      left, line = 0, line + 1
    placed.append((left + gap, line * line_height + gap, word, color))
    left += room
  height = (line + 1) * line_height + 2 * gap
  strip = Image.new("RGB", (width, height), _PAPER)
  pen = ImageDraw.Draw(strip)
  for left, top, word, color in placed:
    if color:
      first = top + gap // 4
      last = (left + patch - 1, first + patch - 1)
      pen.rectangle((left, first, *last), tuple(map(int, color)))
      left += line_height
    pen.text((left, top), word, _INK, _font(size))
  return strip


def _font(
  size: int = _FONT_SIZE,
) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
  from PIL import ImageFont

  return ImageFont.load_default(size)


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


def _clip(text: str, width: int, size: int = _FONT_SIZE) -> str:
  """As much of a text as fits into some pixels."""
  shown, keep = text, len(text)
  while keep and _font(size).getlength(shown) > width:
    keep -= 1
    shown = text[:keep] + "..."
  return shown
