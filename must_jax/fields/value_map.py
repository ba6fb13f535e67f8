"""A number for each pixel.

F/png 16 bit, 0 unknown, else value = t with t = scale code + shift, or
bend sinh(t) if there is F/bend; F/scale, F/shift, F/bend float, F/unit
("metres", "inverse")
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import field, maps
from must_jax.fields.statistics import PER_OCTAVE, count_octaves, make_sums

_MAX_RATIO = 256.0  # of magnitudes that are stored in even steps
_FAR = 1000  # metres, farther than cameras and scanners measure
_MAX_MEDIAN = 100  # metres, of depth that is not given in another unit
_SAME_FACTOR = 1.25  # of values that agree, as in NYU's protocol


@dataclasses.dataclass(frozen=True)
class ValueMap(maps.MapField):
  """Scalar per pixel: `values` float32 [B, h, w], `valid` bool [B, h, w].

  A cell interpolates the valid pixels beside it. Stored: values [h, w],
  (valid [h, w] bool); in parentheses what may be left out.

  Values are read back within 1/131068 of the map's range. Where a sky of 1e10
  makes that too much for a room, which is where magnitudes other than 0 differ
  by more than a factor of 256, codes are even in asinh(value / bend), bend
  being the least magnitude: like logarithms, but for 0 and both signs. Either
  way all values are read back within 0.4% of themselves.

  Attributes:
    unit: "" for whatever is stored; of depth, "metres" or "inverse" (1 over
      the distance up to scale and shift). Stored metres are read as inverse
      depth where that is asked for; the other way there is none.
  """

  unit: str = ""

  needed = ("values",)
  optional = ("valid",)
  features: ClassVar = {
    "png": "bytes",
    "scale": "float",
    "shift": "float",
    "bend": "float",
    "unit": "bytes",
  }
  map_array = "values"
  read_seconds = 1 / 305 - 1 / 370
  store_cost = (4.0e-8, 1.33)
  page_form = "values"
  predicted: ClassVar = {
    "values": "a number for each pixel: metres, or inverse depth without a"
    " unit, larger where nearer, known up to scale and shift"
  }

  def describe(self, classes):
    return super().describe(classes) | (
      {"unit": self.unit} if self.unit else {}
    )

  def check_stored(self, description):
    if (description.get("unit", ""), self.unit) == ("inverse", "metres"):
      raise ValueError(
        "is inverse depth of unknown scale, not metres. Set the task's unit to"
        " 'inverse', with the objective 'scale_shift_invariant'."
      )

  def encode(self, arrays):
    values = maps.check_map("values", arrays["values"], 2).astype(np.float64)
    valid = maps.check_valid(arrays, values.shape)
    maps.check_finite("values", values[valid])
    if np.abs(values[valid]).max(initial=0.0) > np.finfo(np.float32).max:
      raise ValueError("values are too large for 32 bits")
    bend = _bend(values[valid])
    if bend:
      values[valid] = np.arcsinh(values[valid] / bend)
    low = high = 0.0
    if valid.any():
      low, high = values[valid].min(), values[valid].max()
    # Rounded as they are stored, so that the codes make up for the rounding.
    scale = float(np.float32((high - low) / (maps.MAX_CODE - 1)))
    shift = float(np.float32(low - scale))
    codes = np.zeros(values.shape)
    codes[valid] = 1
    if scale > 0:
      codes[valid] = np.clip(
        np.rint((values[valid] - shift) / scale), 1, maps.MAX_CODE
      )
    features = {
      "png": maps.encode_png(codes.astype(np.uint16)),
      "scale": np.array([scale], np.float32),
      "shift": np.array([shift], np.float32),
    }
    if bend:
      features["bend"] = np.array([bend], np.float32)
    return features | ({"unit": self.unit.encode()} if self.unit else {})

  def decode(self, features):
    codes = maps.decode_codes(features["png"], np.uint16)
    scale, shift = features["scale"][0], features["shift"][0]
    values = scale * codes.astype(np.float64) + shift
    if len(features["bend"]):
      values = features["bend"][0] * np.sinh(values)
    valid = codes > 0
    return {"values": np.where(valid, values, 0), "valid": valid}

  def parse(self, name, features, table):
    import tensorflow as tf

    codes = maps.decode_map(name, features, 1, tf.uint16)[..., 0]
    scale, shift = features["scale"], features["shift"]
    finite = tf.math.is_finite(scale * maps.MAX_CODE)
    finite &= tf.math.is_finite(shift)
    field.require(finite, f"{name}/scale")
    valid = codes > 0
    bend = features["bend"]

    def even(codes: tf.Tensor) -> tf.Tensor:
      return scale * tf.cast(codes, tf.float32) + shift

    def bent(codes: tf.Tensor) -> tf.Tensor:
      return bend * tf.sinh(even(codes))

    values = tf.case(
      [
        (bend <= 0, lambda: even(codes)),
        (tf.size(codes) <= maps.MAX_CODE, lambda: bent(codes)),
      ],
      # The hyperbolic sine is slow: of large maps, that of each code.
      lambda: tf.gather(
        bent(tf.range(maps.MAX_CODE + 1)), tf.cast(codes, tf.int32)
      ),
    )
    if self.unit == "inverse":
      is_metres = features["unit"] == "metres"
      valid &= ~is_metres | (values > 0)
      values = tf.where(is_metres, tf.math.divide_no_nan(1.0, values), values)
    values = tf.where(valid, values, 0)
    finite = tf.reduce_all(tf.math.is_finite(values))
    with field.require(finite, f"{name}/scale"):
      return {"values": tf.identity(values), "valid": valid}

  def move(self, arrays, placement, cells):
    import tensorflow as tf

    values, valid = cells.mean_of_valid(
      arrays["values"][..., None], arrays["valid"]
    )
    return {"values": tf.where(valid, values[..., 0], 0), "valid": valid}

  def batch_arrays(self, cells):
    return {
      "values": jax.ShapeDtypeStruct(cells, np.float32),
      "valid": jax.ShapeDtypeStruct(cells, np.bool_),
    }

  def sample(self, arrays, grid):
    valid = maps.check_valid(arrays, arrays["values"].shape)
    values, valid = grid.mean_of_valid(arrays["values"][..., None], valid)
    return {"values": values[..., 0], "valid": valid}

  def to_json(self, arrays, classes, min_score=None):
    values = arrays["values"][arrays["valid"]]
    span = [values.min(), values.max()] if values.size else []
    return {"range": field.numbers(np.array(span, np.float32))} | (
      {"unit": self.unit} if self.unit else {}
    )

  def to_png(self, arrays, colors):
    valid = arrays["valid"]
    values = np.where(valid, arrays["values"], 0).astype(np.float64)
    low = high = 0.0
    if valid.any():
      low, high = values[valid].min(), values[valid].max()
    # Even steps only: one line reads them, in any language.
    scale = (high - low) / (maps.MAX_CODE - 1)
    shift = low - scale
    codes = np.ones(values.shape)
    if scale > 0:
      codes = np.clip(np.rint((values - shift) / scale), 1, maps.MAX_CODE)
    codes = np.where(valid, codes, 0).astype(np.uint16)
    how = {
      "value": "scale * code + shift",
      "scale": scale,
      "shift": shift,
      "unknown": 0,
    }
    return maps.encode_png(codes), how | (
      {"unit": self.unit} if self.unit else {}
    )

  def to_arrays(self, arrays):
    return {"": np.where(arrays["valid"], arrays["values"], np.nan)}

  def shared(self, other):
    unit = self.unit if self.unit == other.unit else ""
    # What is metres in one, may be read as inverse depth.
    inverse = "inverse" in (self.unit, other.unit)
    return dataclasses.replace(self, unit="inverse" if inverse else unit)

  def agreement(self, first, second):
    """Pixels whose values are within a factor of 1.25 ("delta1").

    Metres as they are; others once one map has the scale and shift that bring
    it to the other in least squares, both ways. Values must be above 0.
    """
    first, second = self.at_finest(first, second)
    valid = first["valid"] & second["valid"]
    a, b = (m["values"][valid].astype(np.float64) for m in (first, second))
    if self.unit == "metres":
      counts = (a > 0) & (b > 0)
      pairs = [(a[counts], b[counts])]
    else:
      pairs = [(_aligned(x, y), y[y > 0]) for x, y in ((a, b), (b, a))]
    total = sum(len(target) for _, target in pairs)
    agreeing = sum(
      int((np.maximum(x / y, y / x) < _SAME_FACTOR).sum()) for x, y in pairs
    )
    return {0: (agreeing, total)} if total else {}

  def to_page(self, arrays, size):
    """Codes of nearness from 1 to 255, as `pictures.draw_nearness` spreads."""
    arrays = self.reduced(arrays, size)
    values = np.asarray(arrays["values"], np.float64)
    valid = maps.check_valid(arrays, values.shape)
    marks: list[float] = []
    codes = np.zeros(values.shape, np.uint8)
    if valid.any():
      # Inverse, so that a far sky leaves colours to a room.
      is_metres = self.unit == "metres"
      near = 1 / np.maximum(values, 1e-6) if is_metres else values
      low, high = np.percentile(near[valid], (1, 99))
      part = np.clip((near - low) / max(high - low, 1e-12), 0, 1)
      codes = np.where(valid, 1 + np.rint(254 * part), 0).astype(np.uint8)
      ends = np.array([low, high])
      marks = (1 / np.maximum(ends, 1e-6) if is_metres else ends).tolist()
    pixels = np.repeat(codes[..., None], 3, -1)
    drawing = {
      "height": values.shape[0],
      "width": values.shape[1],
      "range": [float(f"{mark:.4g}") for mark in marks],  # far, near
      "unit": self.unit,
    }
    return field.PageLabel({}, drawing, maps.encode_png(pixels))

  def constant(self, labels):
    """The median of each pixel: in logarithms, and inverse, it is the same."""
    values = np.stack(
      [np.where(label["valid"], label["values"], np.nan) for label in labels]
    )
    known = ~np.isnan(values).all(0)
    overall = np.nanmedian(values[:, known]) if known.any() else 0.0
    values[:, ~known] = overall
    return {"values": np.nanmedian(values, 0)}

  def sums(self, arrays):
    values = np.asarray(arrays["values"])
    if "valid" in arrays:
      values = values[np.asarray(arrays["valid"])]
    values = values.reshape(-1)
    constant = len(values) > 0 and (values == values[0]).all()
    octaves = count_octaves(values[values > 0])
    return make_sums(elements=len(values), constant=constant, octaves=octaves)

  def alarm(self, sums, classes):
    return maps.constant_alarm(sums)

  def warnings(self, sums, classes):
    octaves = {int(k): n for k, n in sums["octaves"].items()}
    if self.unit != "metres" or not octaves:
      return
    places = np.array(sorted(octaves))
    metres = 2 ** ((places + 0.5) / PER_OCTAVE)
    counts = np.array([octaves[k] for k in places.tolist()])
    below = np.cumsum(counts) / counts.sum()
    median, most = (metres[np.searchsorted(below, q)] for q in (0.5, 0.9))
    far = counts[metres > _FAR].sum() / counts.sum()
    if median > _MAX_MEDIAN:
      yield (
        f"half of the pixels are farther than about {median:,.0f} metres; are"
        " the values millimetres or centimetres? Then give --scale."
      )
    elif far > 0:
      yield (
        f"{far:.2%} of the pixels are farther than {_FAR:,} metres, up to about"
        f" {metres[-1]:.3g}, though half are nearer than {median:.3g}; are"
        " these the sky, or a code for unknown ones? Then give --invalid."
      )
    if most < 1:
      yield (
        f"nine of ten pixels are nearer than about {most:.2g} metres; are the"
        " values parts of a range, or inverse depth? Then give --scale or"
        " --inverse."
      )

  def measure(self, arrays):
    """Part of the pixels that are valid; least, median and greatest value."""
    valid = arrays["valid"]
    values = arrays["values"][valid]
    if not values.size:
      return np.array([0, np.nan, np.nan, np.nan])
    return np.array(
      [valid.mean(), values.min(), np.median(values), values.max()]
    )

  def summarize(self, measured, classes):
    yield f"  {measured[:, 0].mean():.1%} of the pixels are valid"
    known = measured[measured[:, 0] > 0]
    if len(known):
      yield (
        f"  values {known[:, 1].min():.4g} to {known[:, 3].max():.4g}, median"
        f" {np.median(known[:, 2]):.4g}, unit {self.unit or 'not given'}"
      )

  def caption(self, arrays, classes):
    values = arrays["values"][arrays["valid"]]
    if not values.size:
      return "nothing is known"
    return f"{values.min():.3g} to {values.max():.3g} {self.unit}"


def _bend(values: np.ndarray) -> float:
  """Where codes begin to be logarithmic, see `ValueMap`; 0 if they are even."""
  magnitudes = np.abs(values[values != 0])
  high = magnitudes.max(initial=0.0)
  low = magnitudes.min(initial=high)
  if high <= _MAX_RATIO * low:
    return 0.0
  # sinh must not overflow, nor a float32 be denormal.
  return float(np.float32(max(low, high * 1e-30, 1e-37)))


def _aligned(values: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Values where the target is above 0, brought to its scale and shift.

  Within the range of the target, so that they are above 0, too.
  """
  counts = target > 0
  values, target = values[counts], target[counts]
  if not len(target):
    return target
  centred = values - values.mean()
  spread = np.sum(centred**2)
  scale = np.sum(centred * target) / spread if np.ptp(values) else 0.0
  return np.clip(scale * centred + target.mean(), target.min(), target.max())
