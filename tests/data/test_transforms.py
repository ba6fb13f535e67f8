import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from must_jax import types
from must_jax.data import transforms
from must_jax.data.transforms import AugmentOptions

INPUT = (64, 96)  # height and width of the network input
ROUGH = AugmentOptions(scale_jitter=(0.3, 3.0), flip=True)
quick = hypothesis.settings(max_examples=40, deadline=None)
sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))
positions = st.integers(0, 2**40)


def geometry_of(size, position, options=ROUGH, image_size=INPUT):
  random = transforms.random_numbers(1, tf.constant(position, tf.int64))
  return transforms.make_geometry(
    tf.constant(size), image_size, options, random
  )


def fixed(size, window, content, flip=False):
  return transforms.Geometry(
    size=tf.constant(size),
    window=tf.constant(window),
    content=tf.constant(content),
    flip=tf.constant(flip),
  )


def move(name, field, arrays, geometry, stride=1, image_size=INPUT):
  labels = {name: {k: tf.constant(v) for k, v in arrays.items()}}
  labels[name]["present"] = tf.constant(True)
  moved = transforms.transform_labels(
    labels, {name: field}, geometry, image_size, stride
  )[name]
  assert moved.pop("present")
  return {k: v.numpy() for k, v in moved.items()}


def move_image(pixels, geometry, options=ROUGH, image_size=INPUT, position=0):
  y, x, height, width = geometry.window.numpy()
  random = transforms.random_numbers(1, tf.constant(position, tf.int64))
  return transforms.transform_image(
    tf.constant(pixels[y : y + height, x : x + width]),
    geometry,
    image_size,
    options,
    random,
  ).numpy()


def to_image(geometry, y, x):
  """Image coordinates of network coordinates, in float64."""
  _, window, content, flip = (np.asarray(v, np.float64) for v in geometry)
  x = content[1] - x if flip else x
  return (
    window[0] + y * window[2] / content[0],
    window[1] + x * window[3] / content[1],
  )


def cell_centres(geometry, stride):
  y = (np.arange(INPUT[0] // stride) + 0.5) * stride
  x = (np.arange(INPUT[1] // stride) + 0.5) * stride
  inside = (y < geometry.content[0].numpy())[:, None] & (
    x < geometry.content[1].numpy()
  )
  return *to_image(geometry, y, x), inside


# Geometry.


@pytest.mark.parametrize(
  "size, content",
  [
    ((64, 96), (64, 96)),
    ((128, 192), (64, 96)),
    ((32, 48), (64, 96)),
    ((100, 100), (64, 64)),
    ((50, 200), (24, 96)),
    ((200, 50), (64, 16)),
    ((1, 1), (64, 64)),
    ((1, 5000), (1, 96)),
    ((333, 500), (64, 96)),
  ],
)
def test_without_augmentation_all_of_the_image_is_fitted_in(size, content):
  geometry = geometry_of(size, 5, AugmentOptions())
  assert geometry.window.numpy().tolist() == [0, 0, *size]
  assert geometry.content.numpy().tolist() == list(content)
  assert not geometry.flip


@quick
@hypothesis.given(sizes, positions)
def test_geometry_stays_within_bounds(size, position):
  geometry = geometry_of(size, position)
  y, x, height, width = geometry.window.numpy().tolist()
  content = geometry.content.numpy().tolist()
  assert 0 <= y <= y + height <= size[0]
  assert 0 <= x <= x + width <= size[1]
  assert min(height, width) >= 1
  assert 1 <= content[0] <= INPUT[0] and 1 <= content[1] <= INPUT[1]
  for axis, seen in enumerate((height, width)):
    # An image that is cropped fills the input.
    assert seen == size[axis] or content[axis] == INPUT[axis]
  if min(height, width, *content) == 1:
    return
  # One scale fits both sides, each being off by half a pixel at most.
  low = max(
    (c - 0.5) / (n + 0.5) for c, n in zip(content, (height, width), strict=True)
  )
  high = min(
    (c + 0.5) / (n - 0.5) for c, n in zip(content, (height, width), strict=True)
  )
  fit = min(INPUT[0] / size[0], INPUT[1] / size[1])
  assert low <= high
  assert low <= 3.0 * fit * 1.001 and high >= 0.3 * fit * 0.999


def test_scales_crops_and_flips_are_uniform():
  got = [geometry_of((64, 96), p) for p in range(600)]
  scales = np.array([g.content[1] / g.window[3] for g in got])
  counts, _ = np.histogram(scales, bins=9, range=(0.3, 3.0))
  # 67 expected of each; chi-square with 8 degrees of freedom, p = 1e-5.
  assert ((counts - 600 / 9) ** 2 / (600 / 9)).sum() < 38
  flips = np.array([bool(g.flip) for g in got])
  assert 240 < flips.sum() < 360
  cropped = [g for g in got if g.window[2] < 40]
  place = np.array([g.window[0] / (64 - g.window[2]) for g in cropped])
  assert place.min() == 0 and place.max() == 1
  assert abs(place.mean() - 0.5) < 0.08
  corner = np.corrcoef(
    [g.window[0] / (64 - g.window[2]) for g in cropped],
    [g.window[1] / (96 - g.window[3]) for g in cropped],
  )
  assert abs(corner[0, 1]) < 0.25


def test_chance_follows_from_seed_and_position():
  def draw(seed, position):
    return tuple(transforms.random_numbers(seed, tf.constant(position)).numpy())

  assert draw(3, 5) == draw(3, 5)
  assert len({draw(s, p) for s in range(5) for p in range(50)}) == 250
  assert draw(3, 2**33) != draw(3, 0)


def test_golden_chance():
  # A change here changes every run that is resumed.
  got = transforms.random_numbers(7, tf.constant(123)).numpy()
  np.testing.assert_allclose(
    got[:4], [0.342732, 0.486679, 0.88971, 0.574174], atol=1e-6
  )


@pytest.mark.parametrize(
  "kwargs",
  [
    {"scale_jitter": (2.0, 0.5)},
    {"scale_jitter": (0.0, 1.0)},
    {"color_jitter": 1.0},
    {"color_jitter": -0.1},
  ],
)
def test_options_are_checked(kwargs):
  with pytest.raises(ValueError, match=next(iter(kwargs))):
    AugmentOptions(**kwargs)


# Images.


@quick
@hypothesis.given(
  st.tuples(st.integers(20, 90), st.integers(20, 90)), positions
)
def test_image_pixels_come_from_where_the_map_says(size, position):
  geometry = geometry_of(size, position)
  # A picture of its own coordinates: 2.5 levels a pixel.
  y, x = np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij")
  picture = np.stack([y, x, np.full(size, 40)], -1) * 2.5
  got = move_image(np.rint(picture).astype(np.uint8), geometry)
  rows, cols, inside = cell_centres(geometry, 1)
  # Half a pixel from the window's edge there is nothing to interpolate.
  top, left, height, width = geometry.window.numpy()
  rows = np.clip(rows, top + 0.5, top + height - 0.5)
  cols = np.clip(cols, left + 0.5, left + width - 0.5)
  expected = (
    np.stack([*np.meshgrid(rows, cols, indexing="ij"), np.full(INPUT, 40)], -1)
    * 2.5
  )
  error = np.abs(got - expected)[inside]
  assert error.max() <= 1.01
  assert (got[~inside] == (124, 116, 104)).all()


def test_color_jitter():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*INPUT, 3)).astype(np.uint8)
  geometry = fixed(INPUT, [0, 0, *INPUT], INPUT)
  options = AugmentOptions(color_jitter=0.5)
  got = [move_image(image, geometry, options, position=p) for p in range(8)]
  assert len({g.tobytes() for g in got}) == 8
  same = move_image(image, geometry, options, position=3)
  np.testing.assert_array_equal(got[3], same)
  # What it does, in float64.
  b, c, s = (
    0.5
    + np.asarray(transforms.random_numbers(1, tf.constant(3)), np.float64)[4:7]
  )
  lit = image * b
  grey = lit @ [0.299, 0.587, 0.114]
  colored = grey[..., None] + s * (lit - grey[..., None])
  expected = grey.mean() + c * (colored - grey.mean())
  assert np.abs(got[3] - np.clip(expected, 0, 255)).max() < 0.51


# Boxes.

ONE_BOX = {
  "boxes": np.array([[0.25, 0.5, 0.75, 1.0]], np.float32),
  "classes": np.array([2], np.int32),
  "ignore": np.array([True]),
  "scores": np.array([0.75], np.float32),
}


@pytest.mark.parametrize(
  "geometry, box",
  [
    # A 40 x 80 image as it is, at twice its size, and mirrored.
    (fixed([40, 80], [0, 0, 40, 80], [40, 80]), [10, 40, 30, 80]),
    (fixed([20, 40], [0, 0, 20, 40], [40, 80]), [10, 40, 30, 80]),
    (fixed([40, 80], [0, 0, 40, 80], [40, 80], True), [10, 0, 30, 40]),
    # Windows of it.
    (fixed([40, 80], [20, 50, 20, 20], [40, 60]), [0, 0, 20, 60]),
    (fixed([40, 80], [0, 20, 40, 40], [40, 40], True), [10, 0, 30, 20]),
    (fixed([40, 80], [0, 0, 40, 39], [40, 39]), None),
    # A sliver of less than a pixel is no object.
    (fixed([40, 80], [0, 0, 40, 41], [20, 20]), None),
  ],
)
def test_boxes_by_hand(geometry, box):
  got = move("objects", types.Boxes(3, max_boxes=2), ONE_BOX, geometry)
  found = box is not None
  assert got["valid"].tolist() == [found, False]
  assert got["ignore"].tolist() == [found, False]
  assert got["classes"].tolist() == [2 * found, 0]
  assert got["scores"].tolist() == [0.75 * found, 0]
  expected = [box if found else [0] * 4, [0] * 4]
  np.testing.assert_allclose(got["boxes"], expected, atol=1e-4)


def test_the_best_boxes_are_kept():
  geometry = fixed([40, 80], [0, 0, 40, 80], [40, 80])
  arrays = {
    "boxes": np.tile(np.array([[0, 0, 1, 1]], np.float32), (6, 1)),
    "classes": np.arange(6, dtype=np.int32),
    "ignore": np.zeros(6, bool),
    "scores": np.array([0.5, 0.9, 0.5, 0.7, 0.9, 0.1], np.float32),
  }
  got = move("objects", types.Boxes(6, max_boxes=4), arrays, geometry)
  assert got["classes"].tolist() == [1, 4, 3, 0]
  # True boxes all have score 1: the first ones are kept.
  arrays["scores"][:] = 1
  got = move("objects", types.Boxes(6, max_boxes=4), arrays, geometry)
  assert got["classes"].tolist() == [0, 1, 2, 3]


@quick
@hypothesis.given(st.data())
def test_a_box_and_its_mask_move_together(data):
  size = data.draw(st.tuples(st.integers(30, 120), st.integers(30, 120)))
  y0, x0 = (data.draw(st.integers(0, n - 12)) for n in size)
  y1, x1 = (
    data.draw(st.integers(low + 10, n))
    for low, n in zip((y0, x0), size, strict=True)
  )
  geometry = geometry_of(size, data.draw(positions))
  mask = np.zeros(size, np.int32)
  mask[y0:y1, x0:x1] = 1
  moved = move("mask", types.ClassMap(2), {"classes": mask}, geometry)
  box = np.array([[y0, x0, y1, x1]]) / np.tile(size, 2)
  arrays = {**ONE_BOX, "boxes": box.astype(np.float32)}
  objects = move("objects", types.Boxes(3, max_boxes=1), arrays, geometry)
  rows, cols = np.nonzero(moved["classes"] == 1)
  if not objects["valid"][0]:  # less than a pixel of it is left
    assert len(set(rows)) <= 1 or len(set(cols)) <= 1
    return
  hypothesis.assume(len(rows))
  hull = [rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]
  # A pixel belongs to the mask if its centre does.
  assert np.abs(hull - objects["boxes"][0]).max() <= 0.51


# Maps.


@quick
@hypothesis.given(
  sizes,
  st.tuples(st.integers(1, 60), st.integers(1, 60)),
  positions,
  st.sampled_from([1, 4, 8]),
)
def test_class_maps_take_the_pixel_under_the_centre(
  size, map_size, position, stride
):
  geometry = geometry_of(size, position)
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 200, map_size).astype(np.int32)
  got = move("m", types.ClassMap(200), {"classes": classes}, geometry, stride)
  rows, cols, inside = cell_centres(geometry, stride)
  rows, cols = rows * map_size[0] / size[0], cols * map_size[1] / size[1]
  # On the border of two pixels rounding decides.
  border = (np.abs(rows - np.rint(rows)) < 1e-3)[:, None] | (
    np.abs(cols - np.rint(cols)) < 1e-3
  )
  i = np.clip(rows.astype(int), 0, map_size[0] - 1)
  j = np.clip(cols.astype(int), 0, map_size[1] - 1)
  expected = np.where(inside, classes[i[:, None], j], 255)
  np.testing.assert_array_equal(
    np.where(border, 0, got["classes"]), np.where(border, 0, expected)
  )


@quick
@hypothesis.given(
  sizes,
  st.tuples(st.integers(2, 60), st.integers(2, 60)),
  positions,
  st.sampled_from([1, 4]),
)
def test_value_maps_are_sampled_at_the_centres(
  size, map_size, position, stride
):
  geometry = geometry_of(size, position)
  # A plane: bilinear sampling gives it back, up to the clamped border.
  i, j = np.meshgrid(
    *((np.arange(n) + 0.5) / n for n in map_size), indexing="ij"
  )
  values = (3 * i - 2 * j).astype(np.float32)
  arrays = {"values": values, "valid": np.ones(map_size, bool)}
  got = move("d", types.ValueMap(), arrays, geometry, stride)
  rows, cols, inside = cell_centres(geometry, stride)
  rows = np.clip(rows / size[0], 0.5 / map_size[0], 1 - 0.5 / map_size[0])
  cols = np.clip(cols / size[1], 0.5 / map_size[1], 1 - 0.5 / map_size[1])
  expected = 3 * rows[:, None] - 2 * cols
  np.testing.assert_array_equal(got["valid"], inside)
  np.testing.assert_allclose(
    got["values"], np.where(inside, expected, 0), atol=1e-4
  )


@quick
@hypothesis.given(sizes, positions, st.integers(0, 2**32 - 1))
def test_invalid_pixels_bleed_into_nothing(size, position, seed):
  rng = np.random.default_rng(seed)
  valid = rng.random((20, 30)) < 0.5
  values = np.where(valid, 7.0, 1e6).astype(np.float32)
  geometry = geometry_of(size, position)
  arrays = {"values": values, "valid": valid}
  got = move("d", types.ValueMap(), arrays, geometry, 4)
  np.testing.assert_allclose(got["values"][got["valid"]], 7, rtol=1e-6)
  assert (got["values"][~got["valid"]] == 0).all()
  # Valid is where the nearest pixel is.
  mask = move(
    "m", types.ClassMap(2), {"classes": valid.astype(np.int32)}, geometry, 4
  )
  np.testing.assert_array_equal(got["valid"], mask["classes"] == 1)


@quick
@hypothesis.given(sizes, positions, st.integers(0, 2**32 - 1))
def test_normals_stay_unit_vectors(size, position, seed):
  rng = np.random.default_rng(seed)
  vectors = rng.normal(size=(20, 30, 3))
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  valid = rng.random((20, 30)) < 0.7
  arrays = {"vectors": vectors.astype(np.float32), "valid": valid}
  got = move("n", types.VectorMap(), arrays, geometry_of(size, position), 4)
  norms = np.linalg.norm(got["vectors"], axis=-1)
  np.testing.assert_allclose(norms[got["valid"]], 1, atol=1e-5)
  assert (norms[~got["valid"]] == 0).all()


def test_a_flip_mirrors_normals():
  vectors = np.tile(np.array([0.6, 0.0, -0.8], np.float32), (40, 80, 1))
  arrays = {"vectors": vectors, "valid": np.ones((40, 80), bool)}
  geometry = fixed([40, 80], [0, 0, 40, 80], [40, 80], True)
  got = move("n", types.VectorMap(), arrays, geometry, 4)
  assert got["valid"][:10, :20].all() and got["valid"].sum() == 200
  np.testing.assert_allclose(
    got["vectors"][got["valid"]], np.tile([-0.6, 0, -0.8], (200, 1)), atol=1e-6
  )


def test_flipping_twice_changes_nothing():
  rng = np.random.default_rng(0)
  once = fixed(INPUT, [0, 0, *INPUT], INPUT, True)
  image = rng.integers(0, 256, (*INPUT, 3)).astype(np.uint8)
  flipped = move_image(image, once)
  np.testing.assert_array_equal(flipped, image[:, ::-1])
  np.testing.assert_array_equal(move_image(flipped, once), image)
  vectors = rng.normal(size=(*INPUT, 3)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  cases = [
    (
      types.ClassMap(9),
      {"classes": rng.integers(0, 9, INPUT).astype(np.int32)},
    ),
    (
      types.ValueMap(),
      {
        "values": rng.random(INPUT).astype(np.float32) * (vectors[..., 0] > 0),
        "valid": vectors[..., 0] > 0,
      },
    ),
    (types.VectorMap(), {"vectors": vectors, "valid": np.ones(INPUT, bool)}),
  ]
  for field, arrays in cases:
    again = move("x", field, move("x", field, arrays, once), once)
    for key, value in arrays.items():
      np.testing.assert_allclose(again[key], value, atol=1e-5)
  boxes = {**ONE_BOX, "boxes": np.array([[0.1, 0.2, 0.3, 0.9]], np.float32)}
  moved = move("o", types.Boxes(3, max_boxes=1), boxes, once)
  moved["boxes"] = moved["boxes"] / np.tile(INPUT, 2).astype(np.float32)
  del moved["valid"]
  again = move("o", types.Boxes(3, max_boxes=1), moved, once)
  np.testing.assert_allclose(
    again["boxes"] / np.tile(INPUT, 2), boxes["boxes"], atol=1e-6
  )
