"""A number for each pixel.

F/png 16 bit, 0 unknown, else value = scale code + shift; F/scale, F/shift
float, F/unit ("metres", "inverse")
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import field, maps
from must_jax.fields.statistics import make_sums


@dataclasses.dataclass(frozen=True)
class ValueMap(maps.MapField):
  """Scalar per pixel: `values` float32 [B, h, w], `valid` bool [B, h, w].

  A cell interpolates the valid pixels beside it. Stored: values [h, w],
  (valid [h, w] bool); in parentheses what may be left out. Values are read
  back within half of `scale`, 1/65534 of the map's range.

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
    "unit": "bytes",
  }
  map_array = "values"
  read_seconds = 1 / 282 - 1 / 339
  store_cost = (2.4e-7, 1.44)

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
    return features | ({"unit": self.unit.encode()} if self.unit else {})

  def parse(self, name, features, table):
    import tensorflow as tf

    codes = maps.decode_map(name, features, 1, tf.uint16)[..., 0]
    scale, shift = features["scale"], features["shift"]
    finite = tf.math.is_finite(scale * maps.MAX_CODE)
    finite &= tf.math.is_finite(shift)
    field.require(finite, f"{name}/scale")
    valid = codes > 0
    values = scale * tf.cast(codes, tf.float32) + shift
    if self.unit == "inverse":
      is_metres = features["unit"] == "metres"
      valid &= ~is_metres | (values > 0)
      values = tf.where(is_metres, tf.math.divide_no_nan(1.0, values), values)
    values = tf.where(valid, values, 0)
    finite = tf.reduce_all(tf.math.is_finite(values))
    with field.require(finite, f"{name}/scale"):
      return {"values": tf.identity(values), "valid": valid}

  def move(self, arrays, placement, cells):
    values, valid = cells.mean_of_valid(
      arrays["values"][..., None], arrays["valid"]
    )
    return {"values": values[..., 0], "valid": valid}

  def batch_arrays(self, cells):
    return {
      "values": jax.ShapeDtypeStruct(cells, np.float32),
      "valid": jax.ShapeDtypeStruct(cells, np.bool_),
    }

  def sample(self, arrays, grid):
    valid = maps.check_valid(arrays, arrays["values"].shape)
    values, valid = grid.mean_of_valid(arrays["values"][..., None], valid)
    return {"values": values[..., 0], "valid": valid}

  def sums(self, arrays):
    values = np.asarray(arrays["values"])
    if "valid" in arrays:
      values = values[np.asarray(arrays["valid"])]
    values = values.reshape(-1)
    constant = len(values) > 0 and (values == values[0]).all()
    return make_sums(elements=len(values), constant=constant)

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
