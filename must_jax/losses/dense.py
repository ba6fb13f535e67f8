"""Losses for maps: classes, depth and normals per pixel.

Legend: B images, h and w pixels of the map, K classes.

Every loss divides by the number of valid pixels in the whole batch ("batch
reduction" in MiDaS), so an image counts in proportion to its labelled area.
"""

import functools

import jax
import jax.numpy as jnp

from must_jax.losses.classification import cross_entropy
from must_jax.types import Array, Mean


def segmentation_cross_entropy(
  logits: Array,
  classes: Array,
  present: Array,
  known: Array | None = None,
  confidence: Array | None = None,
  *,
  weigh: bool = False,
  soften: bool = False,
  trim: float = 0.0,
) -> Mean:
  """Mean softmax cross entropy over labelled pixels.

  A pixel labelled as one class may be of another that whoever made the labels
  did not know, if only as a part of "background": such classes are out of the
  softmax of their images.

  With pseudo labels, some of which are wrong, a pixel may weigh by its
  confidence (as images do in Iscen et al., "Label propagation for deep
  semi-supervised learning", CVPR 2019); have it as its probability, the rest of
  which is spread over the other classes (soft labels, as in Xie et al., "Noisy
  student", CVPR 2020, of which a label set keeps the largest only); and those
  with the largest losses may be left out (Han et al., "Co-teaching", NeurIPS
  2018).

  Args:
    logits: [B, h, w, K].
    classes: int [B, h, w]; pixels outside 0..K-1, `IGNORE_LABEL` among them,
      do not count.
    present: bool [B], images that have a label.
    known: bool [B, K], classes that could have been labelled; all by default.
    confidence: [B, h, w], of the labels; needed for the next two.
    weigh: whether pixels weigh by it.
    soften: whether it is the probability of their class.
    trim: part of each image's labelled pixels that is left out.
  """
  labelled = (classes >= 0) & (classes < logits.shape[-1])
  valid = labelled & present[:, None, None]
  logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0)
  possible = None
  if known is not None:
    possible = known[:, None, None] | ~valid[..., None]
    logits = jnp.where(possible, logits, -jnp.inf)
  classes = jnp.where(valid, classes, 0)
  if soften:
    assert confidence is not None
    losses = _soft_cross_entropy(logits, classes, confidence, possible)
  else:
    losses = cross_entropy(logits, classes)
  weights = valid.astype(jnp.float32)
  if weigh:
    assert confidence is not None
    weights *= confidence
  if trim:
    weights *= jax.vmap(functools.partial(_smallest, trim=trim))(losses, valid)
  return Mean(jnp.sum(weights * losses), jnp.sum(weights))


def _soft_cross_entropy(
  logits: Array, classes: Array, confidence: Array, possible: Array | None
) -> Array:
  """Cross entropy with a probability of one class and the rest spread.

  Args:
    logits: float32 [..., K].
    classes: int [...], all in 0..K-1.
    confidence: [...], probability of the class.
    possible: bool [..., K], the classes that the rest is spread over, and the
      class itself; all by default.
  """
  hit = classes[..., None] == jnp.arange(logits.shape[-1])
  others = ~hit if possible is None else ~hit & possible
  count = jnp.sum(others, -1, keepdims=True)
  # With no other class there is nothing to spread.
  sure = jnp.where(count > 0, confidence[..., None], 1)
  targets = jnp.where(hit, sure, (1 - sure) / jnp.maximum(count, 1))
  counted = hit | others
  logits = jnp.where(counted, logits, 0)
  norm = jax.nn.logsumexp(jnp.where(counted, logits, -jnp.inf), -1)
  return norm - jnp.sum(jnp.where(counted, targets * logits, 0), -1)


def scale_shift_invariant(
  pred: Array,
  target: Array,
  valid: Array,
  present: Array,
  trim: float = 0.2,
  alpha: float = 0.5,
  scales: int = 4,
) -> Mean:
  """MiDaS loss on inverse depth that is known up to scale and shift.

  Both maps are brought to median 0 and mean absolute deviation 1, image by
  image. The loss is half the mean absolute residual without the largest ones,
  plus `alpha` times the differences between neighbouring residuals at several
  resolutions (Ranftl et al., TPAMI 2022, section 5). Medians and trimming see
  valid pixels only and act per image, as in the paper; the published code
  pools residuals over the batch, counts invalid pixels in the median and trims
  nothing. At resolution 1/s each difference counts s^2 times, for the pixels
  it stands for; so all resolutions weigh alike.

  Args:
    pred: [B, h, w].
    target: [B, h, w].
    valid: bool [B, h, w].
    present: bool [B], images that have a label.
    trim: fraction of each image's pixels, with the largest residuals, that
      the first term leaves out.
    alpha: weight of the second term.
    scales: number of resolutions in the second term: 1, 1/2, 1/4, ...
  """
  valid = valid & present[:, None, None]
  pred = jnp.where(valid, pred.astype(jnp.float32), 0)
  target = jnp.where(valid, target.astype(jnp.float32), 0)

  def image_loss(pred, target, valid):
    residual = _normalise(pred, valid) - _normalise(target, valid)
    residual = jnp.where(valid, residual, 0)
    loss = _trimmed_sum(jnp.abs(residual), valid, trim) / 2
    for stride in (2**k for k in range(scales)):
      r, v = residual[::stride, ::stride], valid[::stride, ::stride]
      dy = jnp.where(v[1:] & v[:-1], r[1:] - r[:-1], 0)
      dx = jnp.where(v[:, 1:] & v[:, :-1], r[:, 1:] - r[:, :-1], 0)
      difference = jnp.sum(jnp.abs(dy)) + jnp.sum(jnp.abs(dx))
      loss += alpha * stride**2 * difference
    return loss

  return Mean(
    jnp.sum(jax.vmap(image_loss)(pred, target, valid)),
    jnp.sum(valid, dtype=jnp.float32),
  )


def l1(pred: Array, target: Array, valid: Array, present: Array) -> Mean:
  """Mean absolute error of depth in metres.

  Args:
    pred: [B, h, w].
    target: [B, h, w].
    valid: bool [B, h, w].
    present: bool [B], images that have a label.
  """
  valid, residual = _residual(pred, target, valid, present)
  return _masked_mean(jnp.abs(residual), valid)


def berhu(pred: Array, target: Array, valid: Array, present: Array) -> Mean:
  """Reverse Huber loss on depth in metres (Laina et al., 3DV 2016).

  Linear up to c and square beyond, where c is a fifth of the largest error in
  the image. (In the paper: in the batch. An image's loss would then depend on
  the images it happens to share a batch with.)

  Args:
    pred: [B, h, w].
    target: [B, h, w].
    valid: bool [B, h, w].
    present: bool [B], images that have a label.
  """
  valid, residual = _residual(pred, target, valid, present)
  error = jnp.abs(residual)
  c = 0.2 * jnp.max(error, (1, 2), keepdims=True)
  c = jnp.maximum(jax.lax.stop_gradient(c), 1e-6)
  losses = jnp.where(error <= c, error, (error**2 + c**2) / (2 * c))
  return _masked_mean(losses, valid)


def silog(
  pred: Array,
  target: Array,
  valid: Array,
  present: Array,
  variance_focus: float = 0.85,
) -> Mean:
  """Scale-invariant error of log depth (Eigen et al., NIPS 2014, eq. 4).

  Per image mean(d^2) - variance_focus * mean(d)^2 with d = log pred - log
  target; images weigh by their valid pixels. The logarithm goes on as its
  tangent below 0.1 m, for a prediction of zero or less would else be stuck
  without a gradient.

  Args:
    pred: [B, h, w] in metres.
    target: [B, h, w] in metres.
    valid: bool [B, h, w].
    present: bool [B], images that have a label.
    variance_focus: how much of an error in overall scale is forgiven; 0.85
      as in BTS.
  """
  valid = valid & present[:, None, None]

  def log(depth):
    depth = jnp.where(valid, depth.astype(jnp.float32), 1)
    floor = 0.1
    tangent = jnp.log(floor) + (depth - floor) / floor
    return jnp.where(depth > floor, jnp.log(jnp.maximum(depth, floor)), tangent)

  d = log(pred) - log(target)
  count = jnp.sum(valid, (1, 2), dtype=jnp.float32)
  squares = jnp.sum(d**2, (1, 2))
  square_of_sum = jnp.sum(d, (1, 2)) ** 2 / jnp.maximum(count, 1)
  return Mean(jnp.sum(squares - variance_focus * square_of_sum), jnp.sum(count))


def cosine_loss(
  pred: Array, target: Array, valid: Array, present: Array
) -> Mean:
  """Mean of 1 - cos(angle) between predicted and true normals.

  Args:
    pred: [B, h, w, 3], of any length.
    target: [B, h, w, 3], unit vectors.
    valid: bool [B, h, w].
    present: bool [B], images that have a label.
  """
  valid = valid & present[:, None, None]
  pred = jnp.where(valid[..., None], pred.astype(jnp.float32), 0)
  target = jnp.where(valid[..., None], target.astype(jnp.float32), 0)
  # The floor bounds the gradient of a vanishing prediction.
  length = jnp.sqrt(jnp.maximum(jnp.sum(pred**2, -1), 1e-8))
  return _masked_mean(1 - jnp.sum(pred * target, -1) / length, valid)


def _masked_mean(losses: Array, valid: Array) -> Mean:
  return Mean(
    jnp.sum(jnp.where(valid, losses, 0)), jnp.sum(valid, dtype=jnp.float32)
  )


def _residual(
  pred: Array, target: Array, valid: Array, present: Array
) -> tuple[Array, Array]:
  """The valid pixels and pred - target there, 0 elsewhere."""
  valid = valid & present[:, None, None]
  residual = pred.astype(jnp.float32) - target.astype(jnp.float32)
  return valid, jnp.where(valid, residual, 0)


def _normalise(values: Array, valid: Array) -> Array:
  """Median 0 and mean absolute deviation 1 over valid pixels.

  Args:
    values: [h, w], finite everywhere.
    valid: bool [h, w].
  """
  count = jnp.sum(valid)
  flat = values.ravel()
  # Only the order comes from sorting; differentiating a batched sort would
  # gather across devices.
  keys = jnp.where(valid.ravel(), jax.lax.stop_gradient(flat), jnp.inf)
  order = jnp.argsort(keys)
  median = (flat[order[(count - 1) // 2]] + flat[order[count // 2]]) / 2
  centred = jnp.where(valid, values - median, 0)
  deviation = jnp.sum(jnp.abs(centred)) / jnp.maximum(count, 1)
  return centred / jnp.maximum(deviation, 1e-6)


def _trimmed_sum(errors: Array, valid: Array, trim: float) -> Array:
  """Sum of the smallest floor((1 - trim) * count) errors of valid pixels.

  Args:
    errors: [h, w], not negative.
    valid: bool [h, w].
    trim: fraction left out.
  """
  return jnp.sum(_smallest(errors, valid, trim) * errors)


def _smallest(errors: Array, valid: Array, trim: float) -> Array:
  """Weights [h, w] that pick those errors: 1, 0, or a share among equals.

  Args:
    errors: [h, w], not negative.
    valid: bool [h, w].
    trim: fraction left out.
  """
  keep = jnp.floor((1 - trim) * jnp.sum(valid, dtype=jnp.float32))
  keys = jnp.where(valid, jax.lax.stop_gradient(errors), jnp.inf)
  last = jnp.sort(keys.ravel())[jnp.maximum(keep.astype(jnp.int32) - 1, 0)]
  below, at = keys < last, keys == last
  # Errors equal to the last one kept share what is left to keep.
  share = (keep - jnp.sum(below)) / jnp.maximum(jnp.sum(at), 1)
  return jnp.where(below, 1.0, jnp.where(at & valid, share, 0.0))
