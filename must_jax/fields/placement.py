"""Where an image lies in the network input: one affine map for all labels.

A window of the image is scaled to the content at the top left of the network
input, each axis by its own factor, and may be mirrored. Everything else derives
from it. Pixel i of an array covers [i, i + 1) of its own extent (half-pixel
centres), so cell i of a map with stride s covers [s i, s (i + 1)) of the
network input and takes the label at its centre.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  import tensorflow as tf


class Placement(NamedTuple):
  """From image pixels to network pixels.

  Attributes:
    size: int32 [2], height and width of the image.
    window: int32 or float32 [4], y, x, height, width of what is seen of the
      image.
    content: int32 [2], height and width of it in the network input.
    canvas: int32 [2], height and width of the network input.
    flip: bool, whether it is mirrored.
    reduction: int32, 1, 2, 4 or 8, a divisor of the window: squares of so many
      pixels a side are averaged before it is scaled.
  """

  size: "tf.Tensor"
  window: "tf.Tensor"
  content: "tf.Tensor"
  canvas: "tf.Tensor"
  flip: "tf.Tensor"
  reduction: "tf.Tensor | int" = 1


class Cells:
  """Where the centres of a map's cells lie in the image.

  Args:
    placement: of the image.
    image_size: (H, W) of the network input, tensors where it varies.
    stride: network pixels per cell.

  Attributes:
    rows: float32 [h], y as a fraction of the image's height.
    cols: float32 [w], x as a fraction of the image's width.
    inside: bool [h, w], whether a centre lies on the content.
    flip: bool, whether the content is mirrored.
  """

  def __init__(
    self,
    placement: Placement,
    image_size: "tuple[int, int] | list[tf.Tensor]",
    stride: int,
  ):
    import tensorflow as tf

    content = tf.cast(placement.content, tf.float32)
    size = tf.cast(placement.size, tf.float32)
    offset, visible = tf.split(tf.cast(placement.window, tf.float32), 2)
    y, x = (
      (tf.range(side // stride, dtype=tf.float32) + 0.5) * stride
      for side in image_size
    )
    self.inside = (y < content[0])[:, None] & (x < content[1])[None]
    x = tf.where(placement.flip, content[1] - x, x)
    self.rows = (offset[0] + y * visible[0] / content[0]) / size[0]
    self.cols = (offset[1] + x * visible[1] / content[1]) / size[1]
    self.flip = placement.flip

  def nearest(self, array: "tf.Tensor") -> "tf.Tensor":
    """Samples [mh, mw, ...] at the centres: [h, w, ...]."""
    import tensorflow as tf

    for place in (self.rows, self.cols):
      cells = tf.shape(array)[0]
      index = tf.cast(tf.floor(place * tf.cast(cells, tf.float32)), tf.int32)
      array = tf.gather(array, tf.clip_by_value(index, 0, cells - 1))
      # Gathering columns themselves takes longer than exchanging the axes.
      array = tf.transpose(array, [1, 0, *range(2, array.shape.rank)])
    return array

  def bilinear(self, array: "tf.Tensor") -> "tf.Tensor":
    """Samples float [mh, mw, c] between its centres: [h, w, c]."""
    import tensorflow as tf

    # Edges are repeated: the operation knows nothing beyond them.
    padded = tf.pad(array, [[1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    low, high = [], []
    for place, cells in zip(
      (self.rows, self.cols), tf.unstack(tf.shape(array))[:2], strict=True
    ):
      # Its coordinates are 0 at the first centre and 1 at the last.
      cells = tf.cast(cells, tf.float32)
      low.append((place[0] * cells + 0.5) / (cells + 1))
      high.append((place[-1] * cells + 0.5) / (cells + 1))
    size = [tf.size(self.rows), tf.size(self.cols)]
    return tf.image.crop_and_resize(
      padded[None], tf.stack([low + high]), [0], size
    )[0]

  def mean_of_valid(
    self, values: "tf.Tensor", valid: "tf.Tensor"
  ) -> "tuple[tf.Tensor, tf.Tensor]":
    """Samples bilinearly among valid pixels; the nearest decides what is valid.

    Args:
      values: float [mh, mw, c].
      valid: bool [mh, mw].

    Returns:
      float [h, w, c], finite but of no meaning where it is not valid; bool
      [h, w].
    """
    import tensorflow as tf

    def sparse() -> "tuple[tf.Tensor, tf.Tensor]":
      weight = tf.cast(valid, tf.float32)[..., None]
      sums = self.bilinear(tf.concat([values * weight, weight], -1))
      # The nearest pixel has a weight of a quarter at least.
      means = sums[..., :-1] / tf.maximum(sums[..., -1:], 0.1)
      return means, self.nearest(valid) & self.inside

    def dense() -> "tuple[tf.Tensor, tf.Tensor]":
      return self.bilinear(values), self.inside

    # A teacher's maps are valid everywhere, which takes half the time.
    return tf.cond(tf.reduce_all(valid), dense, sparse)
