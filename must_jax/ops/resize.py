"""Resizing of feature maps and label maps, with half-pixel centres.

Pixel (i, j) is centred at (i + 0.5, j + 0.5), and both maps cover the same
extent. Only `align_corners` differs: the centres of the corner pixels of both
maps coincide.
"""

import jax
import jax.numpy as jnp
import numpy as np

from must_jax.types import Array


def resize_bilinear(
  x: Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
  """Resizes [..., H, W, C] to [..., *size, C], without antialiasing.

  Runs as matrix products, which differentiate without scatters.

  Args:
    x: the map.
    size: height and width of the result.
    align_corners: put the centres of the corner pixels onto each other, as some
      published decoders do; by default the borders of both maps coincide.
  """
  if not align_corners:
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)
  rows, cols = (
    jnp.asarray(_corner_weights(old, new), x.dtype)
    for old, new in zip(x.shape[-3:-1], size, strict=True)
  )
  return jnp.einsum(
    "ih,jw,...hwc->...ijc", rows, cols, x, precision=jax.lax.Precision.HIGHEST
  )


def _corner_weights(old: int, new: int) -> np.ndarray:
  """The weight of each of `old` pixels in each of `new`, [new, old]."""
  position = np.arange(new) * ((old - 1) / max(new - 1, 1))
  distance = np.abs(position[:, None] - np.arange(old))
  return np.maximum(1 - distance, 0)


def upsample_nearest_2x(x: Array, size: tuple[int, int]) -> jax.Array:
  """Doubles x [h, w, C] and crops it to [*size, C].

  Args:
    x: the coarser map.
    size: of the finer map, 2h or 2h - 1 by 2w or 2w - 1.

  Raises:
    ValueError: another size.
  """
  h, w, channels = x.shape
  if size[0] not in (2 * h, 2 * h - 1) or size[1] not in (2 * w, 2 * w - 1):
    raise ValueError(
      f"upsample_nearest_2x got the size {tuple(size)} for a map of {h} x {w};"
      f" expected {2 * h - 1} or {2 * h} by {2 * w - 1} or {2 * w}: take both"
      " maps from one pyramid."
    )
  x = jnp.broadcast_to(x[:, None, :, None], (h, 2, w, 2, channels))
  return x.reshape(2 * h, 2 * w, channels)[: size[0], : size[1]]
