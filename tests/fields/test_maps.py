"""How maps are stored, against other readers and writers of PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from must_jax.fields import make_field
from must_jax.fields.maps import encode_png
from must_jax.quiet_tensorflow import tf


def smooth(height, width, dtype):
  """A slope with waves and a little noise, over most of the range."""
  rng = np.random.default_rng(0)
  rows, cols = np.mgrid[:height, :width] / max(height, width)
  part = 0.4 * rows + 0.3 * cols + 0.1 * np.sin(9 * cols) + 0.1
  part += 0.0005 * rng.standard_normal(part.shape)
  return np.rint(np.iinfo(dtype).max * part).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53)])
def test_others_read_the_codes_that_were_given(size, channels, dtype):
  rng = np.random.default_rng(0)
  high = np.iinfo(dtype).max
  codes = rng.integers(0, high, (*size, channels), dtype, endpoint=True)
  png = encode_png(codes)
  found = tf.io.decode_png(png, channels, tf.as_dtype(dtype)).numpy()
  np.testing.assert_array_equal(found, codes)
  if dtype == np.uint8:
    image = np.asarray(Image.open(io.BytesIO(png)))
    np.testing.assert_array_equal(image.reshape(codes.shape), codes)
  else:
    tall = np.asfortranarray(codes).astype(">u2")  # not as it lies in memory
    assert encode_png(tall) == png


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_maps_of_one_channel_need_none(dtype):
  codes = smooth(12, 20, dtype)
  assert encode_png(codes) == encode_png(codes[..., None])
  assert encode_png(codes[::2, ::3]) == encode_png(codes[::2, ::3].copy())


@pytest.mark.parametrize(
  "codes",
  [
    smooth(120, 160, np.uint16),
    smooth(120, 160, np.uint8),
    smooth(120, 160, np.uint8) // 32,
    np.zeros((120, 160), np.uint8),
  ],
  ids=["values", "confidences", "classes", "constant"],
)
def test_files_are_about_as_small_as_those_of_libpng(codes):
  theirs = tf.io.encode_png(codes[..., None]).numpy()
  assert len(encode_png(codes)) <= 1.1 * len(theirs) + 200


@pytest.mark.parametrize("scored", [True, False])
def test_sums_of_a_class_map_are_those_of_its_pixels(scored):
  rng = np.random.default_rng(0)
  classes = rng.choice([0, 1, 5, 254, 255], (23, 31))
  # As read: 256 values, those at the edges of bins among them.
  confidence = rng.integers(0, 256, classes.shape, np.uint8) / np.float32(255)
  names = [str(k) for k in range(255)]
  field = make_field({"kind": "ClassMap", "classes": names})
  given = {"classes": classes} | ({"confidence": confidence} if scored else {})
  sums = field.sums(given)
  count, by_class, bins, total = {}, {}, [0] * 10, 0
  for k, score in zip(classes.flat, confidence.flat, strict=True):
    if k == 255:
      continue
    count[str(k)] = count.get(str(k), 0) + 1
    bins[min(9, int(float(score) * 10))] += 1
    total += round(float(score) * 255)
    twentieth = sum(score >= np.float32(i / 20) for i in range(1, 20))
    by_class.setdefault(str(k), [0] * 20)[twentieth] += 1
  assert sums["classes"] == count
  assert sums["elements"] == sum(count.values())
  assert sums["unknown"] == (classes == 255).sum()
  if scored:
    assert sums["class_scores"] == by_class
    assert (sums["scores"], sums["score_sum"]) == (bins, total)
  else:
    assert not {"scores", "class_scores", "score_sum"} & set(sums)
