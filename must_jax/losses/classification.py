"""Losses for image-level classes.

Legend: B images, K classes.
"""

import jax
import jax.numpy as jnp
import optax

from must_jax.types import Array, Mean


def cross_entropy(logits: Array, classes: Array) -> Array:
  """Softmax cross entropy of each element with its class.

  The class is picked by comparison and not by a gather: its gradient would be
  a scatter, which is slow on TPUs.

  Args:
    logits: float32 [..., K].
    classes: int [...], all in 0..K-1.

  Returns:
    float32 [...].
  """
  hit = classes[..., None] == jnp.arange(logits.shape[-1])
  picked = jnp.sum(jnp.where(hit, logits, 0), -1)
  return jax.nn.logsumexp(logits, -1) - picked


def softmax_cross_entropy(
  logits: Array, probs: Array, present: Array, label_smoothing: float = 0.0
) -> Mean:
  """Softmax cross entropy with one-hot or soft labels; mean over examples.

  Args:
    logits: [B, K].
    probs: [B, K], each row sums to 1.
    present: bool [B], examples that have a label.
    label_smoothing: mass moved to the uniform distribution.
  """
  # What is not counted is replaced before and not only after the computation:
  # otherwise its infinities would reach the gradient as 0 * inf.
  logits = jnp.where(present[:, None], logits.astype(jnp.float32), 0)
  probs = jnp.where(present[:, None], probs.astype(jnp.float32), 0)
  targets = optax.smooth_labels(probs, label_smoothing)
  losses = -jnp.sum(targets * jax.nn.log_softmax(logits), -1)
  return Mean(
    jnp.sum(jnp.where(present, losses, 0)),
    jnp.sum(present, dtype=jnp.float32),
  )


def most_probable(probs: Array) -> Array:
  """Hard labels of soft ones: the first of the most probable classes.

  Args:
    probs: [B, K].

  Returns:
    bool [B, K]; a row is all False where no class has a probability.
  """
  best = jax.nn.one_hot(jnp.argmax(probs, -1), probs.shape[-1], dtype=bool)
  return best & (probs > 0)


def sigmoid_cross_entropy(
  logits: Array, targets: Array, present: Array
) -> Mean:
  """Multi-label loss: sum over the classes, mean over the examples.

  The sum over classes keeps the gradient of one class independent of how many
  other classes there are.

  Args:
    logits: [B, K].
    targets: [B, K], probability of each class by itself.
    present: bool [B], examples that have a label.
  """
  logits = jnp.where(present[:, None], logits.astype(jnp.float32), 0)
  targets = jnp.where(present[:, None], targets.astype(jnp.float32), 0)
  losses = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), -1)
  return Mean(
    jnp.sum(jnp.where(present, losses, 0)),
    jnp.sum(present, dtype=jnp.float32),
  )
