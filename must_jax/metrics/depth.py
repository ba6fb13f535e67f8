"""Errors of depth, plain and after alignment of scale and shift."""

import numpy as np

from must_jax.metrics import metric

UNITS = ("metres", "inverse")
# Parts of the image's height and width: top, left, bottom, right.
CROPS = {
  # Rows 45 to 470 and columns 41 to 600 of NYU's 480 x 640 pixels, beyond which
  # its rectified images have no colour (Eigen et al. 2014; the numbers as in
  # BTS and later code).
  "eigen": (45 / 480, 41 / 640, 471 / 480, 601 / 640),
}


class DepthError(metric.Metric):
  """Depth errors per image, averaged over images (NYU protocol).

  Of a prediction p and true depth t in metres: "delta1", the fraction of
  pixels with max(p/t, t/p) < 1.25; "abs_rel", the mean of |p - t| / t; "rmse",
  the root of the mean of (p - t)^2. Pixels count whose true depth is within
  (min_depth, max_depth); predictions are clipped to that range.

  The names come twice. Plain ones compare metres with metres. "aligned_" ones
  first bring the inverse of the prediction to the inverse of the truth with
  the scale and shift of least squares, image by image (MiDaS protocol), and
  so also judge predictions that are inverse depth of unknown scale and shift.

  Labels that are such inverse depth themselves (those of a MiDaS teacher) have
  no metres. They give "aligned_delta1", over pixels with inverse depth above 0
  and with predictions clipped to the image's range of such labels, and
  "correlation" of predicted and true inverse depth, which no scale or shift of
  the labels alters (0 if either is constant).

  | prediction | labels  | numbers                                    |
  |------------|---------|--------------------------------------------|
  | metres     | metres  | delta1 abs_rel rmse aligned_... (all three)|
  | inverse    | metres  | aligned_delta1 aligned_abs_rel aligned_rmse|
  | any        | inverse | aligned_delta1 correlation                 |

  With a `crop` these are over the crop, and all of them come again with
  "whole_" before their names, over the whole image.

  A prediction that is not finite counts as 0. Images without a valid pixel do
  not count; without images all numbers are 0.

  Args:
    unit: of the predictions, "metres" or "inverse".
    label_unit: of the labels; by default that of the predictions.
    min_depth: metres.
    max_depth: metres.
    crop: key of `CROPS`, or empty for the whole image.
  """

  errors = ("abs_rel", "rmse")

  def __init__(
    self,
    unit: str = "metres",
    label_unit: str | None = None,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
    crop: str = "",
  ):
    label_unit = label_unit or unit
    for value in (unit, label_unit):
      if value not in UNITS:
        raise ValueError(
          f"Unit of depth is {value!r}; expected one of {UNITS}."
        )
    if not 0 < min_depth < max_depth:
      raise ValueError(
        f"Range of depth is {min_depth} to {max_depth} metres; expected"
        " 0 < min_depth < max_depth."
      )
    self._unit, self._label_unit = unit, label_unit
    if crop and crop not in CROPS:
      raise ValueError(
        f"Crop of depth is {crop!r}; expected one of {sorted(CROPS)}, or ''."
      )
    self._range = (min_depth, max_depth)
    # Prefix of the names -> the crop.
    self._crops = {"": CROPS[crop], "whole_": None} if crop else {"": None}
    names = ["delta1", "abs_rel", "rmse"]
    aligned = [f"aligned_{name}" for name in names]
    if label_unit == "inverse":
      names = ["aligned_delta1", "correlation"]
    else:
      names = aligned if unit == "inverse" else names + aligned
    self._sums = {p: dict.fromkeys(names, 0.0) for p in self._crops}
    self._counts = dict.fromkeys(self._crops, 0)
    self.headline = names[0]

  def update(self, prediction, label, batch):
    depth = {k: np.asarray(v) for k, v in label.items()}
    values = np.asarray(prediction["values"])
    if values.shape != depth["values"].shape:
      raise ValueError(
        f"Predicted depth maps are {values.shape}, labels"
        f" {depth['values'].shape}; expected equal shapes. Resize predictions"
        " to the labels (`map_stride=1`)."
      )
    for i in metric.counted(label, batch):
      truth, pred = depth["values"][i], values[i]
      for prefix, crop in self._crops.items():
        valid = depth["valid"][i]
        if crop:
          valid = valid & _inside(crop, valid.shape, batch, i)
        self._add(
          prefix, pred[valid].astype(np.float64), truth[valid].astype(float)
        )

  def _add(self, prefix: str, pred: np.ndarray, truth: np.ndarray) -> None:
    """Takes in the valid pixels [n] of an image."""
    pred[~np.isfinite(pred)] = 0
    if self._label_unit == "inverse":
      counts = truth > 0
    else:
      counts = (truth > self._range[0]) & (truth < self._range[1])
    if not counts.any():
      return
    for name, value in self._errors(pred[counts], truth[counts]).items():
      self._sums[prefix][name] += value
    self._counts[prefix] += 1

  def _errors(self, pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The errors of one image from its counted pixels [n], n >= 1."""
    low, high = self._range
    metres = np.clip(pred, low, high)
    inverse = pred if self._unit == "inverse" else 1 / metres
    if self._label_unit == "inverse":
      aligned = np.clip(align(inverse, truth), truth.min(), truth.max())
      return {
        "aligned_delta1": _delta1(aligned, truth),
        "correlation": _correlation(inverse, truth),
      }
    aligned = 1 / np.clip(align(inverse, 1 / truth), 1 / high, 1 / low)
    errors = {
      f"aligned_{name}": value
      for name, value in _metric_errors(aligned, truth).items()
    }
    if self._unit == "metres":
      errors |= _metric_errors(metres, truth)
    return errors

  def merge(self, other):
    for prefix, sums in other._sums.items():
      for name, value in sums.items():
        self._sums[prefix][name] += value
      self._counts[prefix] += other._counts[prefix]

  def compute(self):
    return {
      f"{prefix}{name}": float(value / max(self._counts[prefix], 1))
      for prefix, sums in self._sums.items()
      for name, value in sums.items()
    }


def _inside(
  crop: tuple[float, float, float, float],
  shape: tuple[int, ...],
  batch: dict,
  i: int,
) -> np.ndarray:
  """Which cells bool [h, w] of a map have their centre in a crop of image i."""
  sides = []
  for axis in range(2):
    cell = batch["image"].shape[1 + axis] / shape[axis]
    centres = (np.arange(shape[axis]) + 0.5) * cell
    place = centres / float(batch["content_size"][i][axis])
    sides.append((place >= crop[axis]) & (place < crop[2 + axis]))
  return sides[0][:, None] & sides[1]


def align(values: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Values * scale + shift, closest to the target in least squares; [n].

  Constant values have no scale: the result is then the target's mean.
  """
  if np.ptp(values) == 0:
    return np.full_like(target, target.mean())
  centred = values - values.mean()
  scale = np.sum(centred * target) / np.sum(centred**2)
  return scale * centred + target.mean()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  return float(np.corrcoef(a, b)[0, 1])


def _delta1(pred: np.ndarray, truth: np.ndarray) -> float:
  return float(np.mean(np.maximum(pred / truth, truth / pred) < 1.25))


def _metric_errors(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  return {
    "delta1": _delta1(pred, truth),
    "abs_rel": float(np.mean(np.abs(pred - truth) / truth)),
    "rmse": float(np.sqrt(np.mean((pred - truth) ** 2))),
  }
