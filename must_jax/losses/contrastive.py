"""Contrastive loss of SimCLR (Chen et al., 2002.05709; paper 4.1).

Legend: B images, D channels of an embedding.
"""

import jax
import jax.numpy as jnp

from must_jax.types import Array, Mean

_EPSILON = 1e-12


def nt_xent(embeddings: Array, valid: Array, temperature: float) -> Mean:
  """Normalised temperature-scaled cross entropy; mean over the images.

  Each view of an image shall pick the image's other view out of all views of
  the batch, all devices' together, by cosine similarity. The two directions are
  summed, as in SimCLR's code.

  Args:
    embeddings: [B, 2, D], of two views of each image, of any length.
    valid: bool [B]; other images are neither counted nor negatives.
    temperature: similarities are divided by it.
  """
  # What is not counted must not reach the gradient as 0 * inf either.
  embeddings = jnp.where(
    valid[:, None, None], embeddings.astype(jnp.float32), 1.0
  )
  squares = jnp.sum(embeddings**2, -1, keepdims=True)
  unit = embeddings * jax.lax.rsqrt(jnp.maximum(squares, _EPSILON))
  first, second = unit[:, 0], unit[:, 1]
  num = len(valid)
  itself = jnp.eye(num, dtype=bool)

  def direction(anchors: Array, others: Array) -> Array:
    """Losses [B] of finding among `others` and the rest of `anchors`."""
    across = anchors @ others.T / temperature
    within = anchors @ anchors.T / temperature
    across = jnp.where(valid, across, -jnp.inf)
    within = jnp.where(valid & ~itself, within, -jnp.inf)
    logits = jnp.concatenate([across, within], 1)
    positive = jnp.sum(anchors * others, -1) / temperature
    return jax.nn.logsumexp(logits, 1, where=jnp.isfinite(logits)) - positive

  losses = direction(first, second) + direction(second, first)
  return Mean(
    jnp.sum(jnp.where(valid, losses, 0)), jnp.sum(valid, dtype=jnp.float32)
  )
