import dataclasses

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from PIL import Image

from must_jax.fields import Boxes, ClassMap, ValueMap, VectorMap
from must_jax.fields.placement import Placement
from must_jax.input import color
from must_jax.input import geometry as geometry_lib
from must_jax.input.color import ColorOptions
from must_jax.input.geometry import AugmentOptions

INPUT = (64, 96)  # height and width of the network input
ROUGH = AugmentOptions(scale_jitter=(0.3, 3.0), flip=True)
LARGE_SCALE = AugmentOptions(scale_jitter=(0.1, 2.0), flip=True)
INCEPTION = AugmentOptions(resize="inception_crop", flip=True)
CENTER = AugmentOptions(resize="center_crop")
STRETCH = AugmentOptions(resize="stretch", flip=True)
COLORS = ColorOptions(
  num_ops=1,
  magnitude=5,
  brightness=0.4,
  hue=0.1,
  grey_probability=0.2,
  blur_probability=0.5,
)
quick = hypothesis.settings(max_examples=40, deadline=None)
sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))
positions = st.integers(0, 2**40)
every_option = st.sampled_from([ROUGH, LARGE_SCALE, INCEPTION, CENTER, STRETCH])


@st.composite
def geometries(draw):
  return geometry_of(draw(sizes), draw(positions), draw(every_option))


def chance(position):
  return geometry_lib.random_numbers(
    1, tf.convert_to_tensor(position, tf.int64)
  )


def geometry_of(size, position, options=ROUGH, image_size=INPUT):
  random = chance(position)
  return geometry_lib.choose_placement(
    tf.constant(size), image_size, options, random
  )


def fixed(size, window, content, flip=False):
  return Placement(
    size=tf.constant(size),
    window=tf.constant(window),
    content=tf.constant(content),
    canvas=tf.constant(INPUT),
    flip=tf.constant(flip),
  )


def move(name, field, arrays, geometry, stride=1, image_size=INPUT):
  labels = {name: {k: tf.constant(v) for k, v in arrays.items()}}
  labels[name]["present"] = tf.constant(True)
  moved = geometry_lib.place_labels(
    labels, {name: field}, geometry, image_size, stride
  )[name]
  assert moved.pop("present")
  return {k: v.numpy() for k, v in moved.items()}


def reduced(pixels, geometry):
  """The window of an image, squares of pixels averaged, in float64."""
  r = int(geometry.reduction)
  y, x, height, width = np.asarray(geometry.window)
  window = pixels[y : y + height, x : x + width].astype(float)
  return window.reshape(height // r, r, width // r, r, 3).mean((1, 3))


def move_image(pixels, geometry, options=ROUGH, image_size=INPUT, position=0):
  return geometry_lib.transform_image(
    tf.constant(np.rint(reduced(pixels, geometry)).astype(np.uint8)),
    geometry,
    image_size,
    options,
    chance(position),
  ).numpy()


def to_image(geometry, y, x):
  """Image coordinates of network coordinates, in float64."""
  _, window, content, _, flip, _ = (np.asarray(v, np.float64) for v in geometry)
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
    ((333, 500), (64, 96)),  # reduced four times
  ],
)
def test_without_augmentation_all_of_the_image_is_fitted_in(size, content):
  geometry = geometry_of(size, 5, AugmentOptions())
  seen = [side - side % int(geometry.reduction) for side in size]
  assert geometry.window.numpy().tolist() == [0, 0, *seen]
  assert geometry.content.numpy().tolist() == list(content)
  assert not geometry.flip


@quick
@hypothesis.given(geometries())
def test_windows_and_contents_stay_within_bounds(geometry):
  size, window, content, canvas, _, reduction = (v.numpy() for v in geometry)
  assert canvas.tolist() == list(INPUT)
  assert (window[:2] >= 0).all() and (window[2:] >= 1).all()
  # It is reduced as long as it then has a pixel for each of the content's.
  assert reduction in (1, 2, 4, 8) and not (window % reduction).any()
  shrink = (window[2:] / content).min()
  assert reduction == 8 or shrink < 2 * reduction + 1
  assert reduction == 1 or shrink >= reduction * 0.99
  assert (window[:2] + window[2:] <= size).all()
  assert (content >= 1).all() and (content <= INPUT).all()


@quick
@hypothesis.given(sizes, positions)
def test_one_scale_within_the_jitter_fits_both_sides(size, position):
  geometry = geometry_of(size, position)
  height, width = geometry.window.numpy().tolist()[2:]
  content = geometry.content.numpy().tolist()
  cut = int(geometry.reduction) - 1  # pixels, at most
  for axis, seen in enumerate((height, width)):
    # An image that is cropped fills the input.
    assert seen + cut >= size[axis] or content[axis] == INPUT[axis]
  if min(height, width, *content) == 1:
    return
  # One scale fits both sides, each being off by half a pixel at most.
  low = max(
    (c - 0.5) / (n + cut + 0.5)
    for c, n in zip(content, (height, width), strict=True)
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


@pytest.mark.parametrize(
  "size, image_size, fraction, window",
  [
    ((256, 256), (224, 224), 0.875, [16, 16, 224, 224]),
    # As torchvision's Resize(256), CenterCrop(224), in pixels of the image.
    ((375, 500), (224, 224), 0.875, [23, 86, 328, 328]),
    ((32, 32), (224, 224), 0.875, [2, 2, 28, 28]),
    ((100, 50), (64, 64), 1.0, [25, 0, 50, 50]),
    ((200, 200), (64, 96), 1.0, [34, 0, 132, 200]),  # reduced to a half
    ((1, 1), (64, 96), 0.875, [0, 0, 1, 1]),
  ],
)
def test_center_crops_by_hand(size, image_size, fraction, window):
  options = AugmentOptions(resize="center_crop", crop_fraction=fraction)
  geometry = geometry_of(size, 5, options, image_size)
  assert geometry.window.numpy().tolist() == window
  assert geometry.content.numpy().tolist() == list(image_size)
  assert not geometry.flip


def test_stretching_shows_the_whole_image():
  geometry = geometry_of((50, 30), 5, STRETCH)
  assert geometry.window.numpy().tolist() == [0, 0, 50, 30]
  assert geometry.content.numpy().tolist() == list(INPUT)


def torchvision_crops(size, count, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)):
  """Windows of torchvision's RandomResizedCrop, rewritten in numpy."""
  rng, windows = np.random.default_rng(0), []
  while len(windows) < count:
    for _ in range(10):
      target = np.prod(size) * rng.uniform(*area)
      ratio = np.exp(rng.uniform(*np.log(aspect)))
      w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
      if 0 < w <= size[1] and 0 < h <= size[0]:
        y, x = rng.integers(size[0] - h + 1), rng.integers(size[1] - w + 1)
        windows.append((y, x, h, w))
        break
  return np.array(windows, float)


def test_inception_crops_have_the_distribution_of_torchvision():
  size, count = (120, 160), 1500
  crop = tf.function(
    lambda p: (
      geometry_lib.choose_placement(
        tf.constant(size), (64, 64), INCEPTION, chance(p)
      ).window
    ),
    autograph=False,
  )
  got = np.array([crop(tf.constant(p, tf.int64)) for p in range(count)], float)
  expected = torchvision_crops(size, 4 * count)

  def features(windows):
    y, x, h, w = windows.T
    room = np.maximum([size[0] - h, size[1] - w], 1)
    return h * w / np.prod(size), np.log(w / h), y / room[0], x / room[1]

  for ours, theirs in zip(features(got), features(expected), strict=True):
    # Two-sample Kolmogorov-Smirnov, p = 1e-5.
    places = np.sort(np.concatenate([ours, theirs]))
    cdfs = [
      np.searchsorted(np.sort(v), places, "right") / len(v)
      for v in (ours, theirs)
    ]
    limit = 2.47 * np.sqrt(1 / len(ours) + 1 / len(theirs))
    assert np.abs(cdfs[0] - cdfs[1]).max() < limit


@quick
@hypothesis.given(
  st.tuples(st.integers(20, 300), st.integers(20, 300)),
  positions,
  st.sampled_from([(0.08, 1.0), (0.2, 0.3), (1.0, 1.0)]),
  st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 3.0)]),
)
def test_inception_crops_keep_area_and_aspect(size, position, area, aspect):
  options = AugmentOptions(
    resize="inception_crop", crop_area=area, crop_aspect=aspect
  )
  geometry = geometry_of(size, position, options)
  height, width = geometry.window.numpy()[2:].astype(float)
  # Half a pixel is due to rounding; aspects are relative to the input's.
  stretch = INPUT[0] / INPUT[1]
  cut = int(geometry.reduction) - 1  # pixels, at most
  more = cut + 0.5
  assert (width + more) / (height - 0.5) * stretch >= aspect[0] * 0.999
  assert (width - 0.5) / (height + more) * stretch <= aspect[1] * 1.001
  # Long images have no room for some areas: the largest window is taken.
  largest = height + cut >= size[0] or width + cut >= size[1]
  assert (height + more) * (width + more) >= area[0] * np.prod(size) or largest
  assert (height - 0.5) * (width - 0.5) <= area[1] * np.prod(size)


@pytest.mark.parametrize(
  "size, window",
  [((10, 1000), [0, 493, 10, 13]), ((1000, 10), [493, 0, 13, 10])],
)
def test_without_room_the_largest_inception_crop_is_taken(size, window):
  options = AugmentOptions(resize="inception_crop", crop_area=(1.0, 1.0))
  geometry = geometry_of(size, 5, options, (64, 64))
  # The middle, up to rounding: there are 987 or 988 pixels of room.
  np.testing.assert_allclose(geometry.window.numpy(), window, atol=1)


def test_chance_follows_from_seed_position_and_view():
  def draw(seed, position, view=0):
    return tuple(
      geometry_lib.random_numbers(seed, tf.constant(position), view).numpy()
    )

  assert draw(3, 5) == draw(3, 5) == draw(3, 5, 0)
  assert draw(3, 5, 1) == draw(3, 5, 1)
  draws = [draw(s, p, v) for s in range(5) for p in range(30) for v in range(3)]
  # A few of 1800 numbers of 24 bits may agree.
  assert len({number for numbers in draws for number in numbers[:4]}) > 1795
  assert draw(3, 2**33) != draw(3, 0)


def test_chance_of_many_positions_is_that_of_each():
  many = np.array([[7, 2**40], [63, 64], [8, 7]])
  got = geometry_lib.random_numbers(3, tf.constant(many), 1).numpy()
  for place, position in np.ndenumerate(many):
    alone = geometry_lib.random_numbers(3, tf.constant(position), 1)
    np.testing.assert_array_equal(got[place], alone)
  assert (got >= 0).all() and (got < 1).all()


def test_chance_is_uniform_and_independent():
  got = geometry_lib.random_numbers(5, tf.range(4096, dtype=tf.int64)).numpy()
  # Five standard deviations.
  assert np.abs(got.mean(0) - 0.5).max() < 5 * (1 / 12 / 4096) ** 0.5
  correlation = np.corrcoef(got, rowvar=False) - np.eye(got.shape[1])
  assert np.abs(correlation).max() < 5 / 64
  following = [np.corrcoef(c[1:], c[:-1])[0, 1] for c in got.T]
  assert np.abs(following).max() < 5 / 64


@quick
@hypothesis.given(st.lists(sizes, min_size=1, max_size=5), every_option)
def test_geometry_of_many_images_is_that_of_each(several, options):
  places = np.arange(len(several))
  many = geometry_of(several, places, options)
  for place in places:
    alone = geometry_of(several[place], place, options)
    for ours, theirs in zip(many, alone, strict=True):
      np.testing.assert_array_equal(ours[place], theirs)


def test_two_views_are_independent():
  views = [
    [geometry_lib.random_numbers(1, tf.constant(p), v).numpy() for v in (0, 1)]
    for p in range(500)
  ]
  first, second = np.swapaxes(views, 0, 1)
  for column in range(first.shape[1]):
    # Five standard deviations.
    assert abs(np.corrcoef(first[:, column], second[:, column])[0, 1]) < 0.224


def test_golden_chance():
  # A change here changes every run that is resumed.
  got = geometry_lib.random_numbers(7, tf.constant(123)).numpy()
  expected = [0.010961, 0.615339, 0.468169, 0.201801]  # geometry
  expected += [0.401707, 0.068551, 0.750340]  # brightness, contrast, saturation
  np.testing.assert_allclose(got[:7], expected, atol=1e-6)


@pytest.mark.parametrize(
  "kwargs",
  [
    {"scale_jitter": (2.0, 0.5)},
    {"scale_jitter": (0.0, 1.0)},
    {"scale_jitter": (1.0, 2.0, 3.0)},
    {"scale_jitter": (0.5, 2.0), "resize": "stretch"},
    {"resize": "fit"},
    {"crop_area": (0.0, 1.0)},
    {"crop_area": (0.5, 1.5)},
    {"crop_aspect": (2.0, 0.5)},
    {"crop_fraction": 0.0},
    {"crop_fraction": 1.1},
    {"antialias_below": 1.5},
  ],
)
def test_options_are_checked(kwargs):
  with pytest.raises(ValueError, match=next(iter(kwargs))):
    AugmentOptions(**kwargs)


# Images.


@quick
@hypothesis.given(
  st.tuples(st.integers(20, 90), st.integers(20, 90)), positions, every_option
)
def test_image_pixels_come_from_where_the_map_says(size, position, options):
  geometry = geometry_of(size, position, options)
  # A picture of its own coordinates: 2.5 levels a pixel.
  y, x = np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij")
  picture = np.stack([y, x, np.full(size, 40)], -1) * 2.5
  got = move_image(np.rint(picture).astype(np.uint8), geometry)
  rows, cols, inside = cell_centres(geometry, 1)
  # Half a pixel from the window's edge there is nothing to interpolate.
  top, left, height, width = geometry.window.numpy()
  half = int(geometry.reduction) / 2
  rows = np.clip(rows, top + half, top + height - half)
  cols = np.clip(cols, left + half, left + width - half)
  expected = (
    np.stack([*np.meshgrid(rows, cols, indexing="ij"), np.full(INPUT, 40)], -1)
    * 2.5
  )
  error = np.abs(got - expected)[inside]
  assert error.max() <= 1.01
  assert (got[~inside] == (124, 116, 104)).all()


@quick
@hypothesis.given(geometries(), positions)
def test_only_the_content_changes_its_colors(geometry, position):
  size = geometry.size.numpy()
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  options = AugmentOptions(color=COLORS)
  got = move_image(pixels, geometry, options, position=position)
  assert got.shape == (*INPUT, 3) and got.dtype == np.uint8
  height, width = geometry.content.numpy()
  plain = move_image(pixels, geometry)
  np.testing.assert_array_equal(got[height:], plain[height:])
  np.testing.assert_array_equal(got[:, width:], plain[:, width:])
  # It is what the colours make of the content.
  window = np.rint(reduced(pixels, geometry))
  expected = color.distort(
    tf.image.resize(window.astype(np.float32), geometry.content),
    COLORS,
    chance(position)[4 : 4 + color.NUM_RANDOM],
  ).numpy()
  expected = expected[:, ::-1] if geometry.flip else expected
  assert np.abs(got[:height, :width] - expected).max() < 0.51


@pytest.mark.parametrize(
  "options", [ROUGH, INCEPTION, CENTER, STRETCH], ids=lambda o: o.resize
)
def test_colors_move_nothing(options):
  for position in range(5):
    colored = dataclasses.replace(options, color=COLORS)
    for ours, theirs in zip(
      geometry_of((50, 70), position, options),
      geometry_of((50, 70), position, colored),
      strict=True,
    ):
      np.testing.assert_array_equal(ours, theirs)


def photo(size):
  coarse = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  image = Image.fromarray(coarse)
  return image.resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(256, 384), (341, 256), (384, 576)])
def test_classification_sees_what_pillow_shows_it(size):
  image = photo(size)
  options = AugmentOptions(resize="center_crop", antialias_below=1.0)
  geometry = geometry_of(size, 0, options, (224, 224))
  got = move_image(np.asarray(image), geometry, options, (224, 224))
  # Shorter side to 256, then the middle 224.
  scale = 256 / min(size)
  resized = image.resize(
    [round(side * scale) for side in size[::-1]], Image.Resampling.BILINEAR
  )
  left, top = ((side - 224) // 2 for side in resized.size)
  expected = resized.crop((left, top, left + 224, top + 224))
  # At the edges Pillow averages with what the window leaves out.
  error = np.abs(got - np.asarray(expected, int))[1:-1, 1:-1]
  assert error.max() <= 1


@pytest.mark.parametrize("size", [(65, 200), (300, 97), (40, 30)])
def test_stretching_averages_as_pillow_does(size):
  options = AugmentOptions(resize="stretch", antialias_below=1.0)
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  got = move_image(pixels, geometry_of(size, 0, options), options)
  expected = Image.fromarray(pixels).resize(
    INPUT[::-1], Image.Resampling.BILINEAR
  )
  # Pillow rounds after either axis.
  assert np.abs(got - np.asarray(expected, int)).max() <= 1


def test_only_strong_shrinking_averages():
  options = AugmentOptions(antialias_below=0.5)
  board = np.indices((200, 200)).sum(0) % 2 * 255
  board = np.repeat(board[..., None], 3, -1).astype(np.uint8)
  strong = fixed([200, 200], [0, 0, 200, 200], [50, 50])
  grey = move_image(board, strong, options)[:50, :50]
  assert np.abs(grey.astype(int) - 128).max() <= 1
  weak = fixed([200, 200], [0, 0, 90, 90], [50, 50])
  np.testing.assert_array_equal(
    move_image(board, weak, options), move_image(board, weak)
  )


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
  got = move("objects", Boxes(3, max_boxes=2), ONE_BOX, geometry)
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
  got = move("objects", Boxes(6, max_boxes=4), arrays, geometry)
  assert got["classes"].tolist() == [1, 4, 3, 0]
  # True boxes all have score 1: the first ones are kept.
  arrays["scores"][:] = 1
  got = move("objects", Boxes(6, max_boxes=4), arrays, geometry)
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
  geometry = geometry_of(size, data.draw(positions), data.draw(every_option))
  mask = np.zeros(size, np.int32)
  mask[y0:y1, x0:x1] = 1
  moved = move("mask", ClassMap(2), {"classes": mask}, geometry)
  box = np.array([[y0, x0, y1, x1]]) / np.tile(size, 2)
  arrays = {**ONE_BOX, "boxes": box.astype(np.float32)}
  objects = move("objects", Boxes(3, max_boxes=1), arrays, geometry)
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
  geometries(),
  st.tuples(st.integers(1, 60), st.integers(1, 60)),
  st.sampled_from([1, 4, 8]),
)
def test_class_maps_take_the_pixel_under_the_centre(geometry, map_size, stride):
  size = geometry.size.numpy()
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 200, map_size).astype(np.int32)
  got = move("m", ClassMap(200), {"classes": classes}, geometry, stride)
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
  geometries(),
  st.tuples(st.integers(2, 60), st.integers(2, 60)),
  st.sampled_from([1, 4]),
)
def test_value_maps_are_sampled_at_the_centres(geometry, map_size, stride):
  size = geometry.size.numpy()
  # A plane: bilinear sampling gives it back, up to the clamped border.
  i, j = np.meshgrid(
    *((np.arange(n) + 0.5) / n for n in map_size), indexing="ij"
  )
  values = (3 * i - 2 * j).astype(np.float32)
  arrays = {"values": values, "valid": np.ones(map_size, bool)}
  got = move("d", ValueMap(), arrays, geometry, stride)
  rows, cols, inside = cell_centres(geometry, stride)
  rows = np.clip(rows / size[0], 0.5 / map_size[0], 1 - 0.5 / map_size[0])
  cols = np.clip(cols / size[1], 0.5 / map_size[1], 1 - 0.5 / map_size[1])
  expected = 3 * rows[:, None] - 2 * cols
  np.testing.assert_array_equal(got["valid"], inside)
  np.testing.assert_allclose(
    got["values"], np.where(inside, expected, 0), atol=1e-4
  )


@quick
@hypothesis.given(geometries(), st.integers(0, 2**32 - 1))
def test_invalid_pixels_bleed_into_nothing(geometry, seed):
  rng = np.random.default_rng(seed)
  valid = rng.random((20, 30)) < 0.5
  values = np.where(valid, 7.0, 1e6).astype(np.float32)
  arrays = {"values": values, "valid": valid}
  got = move("d", ValueMap(), arrays, geometry, 4)
  np.testing.assert_allclose(got["values"][got["valid"]], 7, rtol=1e-6)
  assert (got["values"][~got["valid"]] == 0).all()
  # Valid is where the nearest pixel is.
  mask = move(
    "m", ClassMap(2), {"classes": valid.astype(np.int32)}, geometry, 4
  )
  np.testing.assert_array_equal(got["valid"], mask["classes"] == 1)


@quick
@hypothesis.given(geometries(), st.integers(0, 2**32 - 1))
def test_normals_stay_unit_vectors(geometry, seed):
  rng = np.random.default_rng(seed)
  vectors = rng.normal(size=(20, 30, 3))
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  valid = rng.random((20, 30)) < 0.7
  arrays = {"vectors": vectors.astype(np.float32), "valid": valid}
  got = move("n", VectorMap(), arrays, geometry, 4)
  norms = np.linalg.norm(got["vectors"], axis=-1)
  np.testing.assert_allclose(norms[got["valid"]], 1, atol=1e-5)
  assert (norms[~got["valid"]] == 0).all()


def test_a_flip_mirrors_normals():
  vectors = np.tile(np.array([0.6, 0.0, -0.8], np.float32), (40, 80, 1))
  arrays = {"vectors": vectors, "valid": np.ones((40, 80), bool)}
  geometry = fixed([40, 80], [0, 0, 40, 80], [40, 80], True)
  got = move("n", VectorMap(), arrays, geometry, 4)
  assert got["valid"][:10, :20].all() and got["valid"].sum() == 200
  np.testing.assert_allclose(
    got["vectors"][got["valid"]], np.tile([-0.6, 0, -0.8], (200, 1)), atol=1e-6
  )


def test_stretching_leaves_normals_as_they_are():
  vectors = np.tile(np.array([0.6, 0.0, -0.8], np.float32), (40, 80, 1))
  arrays = {"vectors": vectors, "valid": np.ones((40, 80), bool)}
  geometry = fixed([40, 80], [0, 0, 40, 20], INPUT)
  got = move("n", VectorMap(), arrays, geometry, 4)
  np.testing.assert_allclose(
    got["vectors"], np.tile([0.6, 0, -0.8], (16, 24, 1)), atol=1e-6
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
      ClassMap(9),
      {"classes": rng.integers(0, 9, INPUT).astype(np.int32)},
    ),
    (
      ValueMap(),
      {
        "values": rng.random(INPUT).astype(np.float32) * (vectors[..., 0] > 0),
        "valid": vectors[..., 0] > 0,
      },
    ),
    (VectorMap(), {"vectors": vectors, "valid": np.ones(INPUT, bool)}),
  ]
  for field, arrays in cases:
    again = move("x", field, move("x", field, arrays, once), once)
    for key, value in arrays.items():
      np.testing.assert_allclose(again[key], value, atol=1e-5)
  boxes = {**ONE_BOX, "boxes": np.array([[0.1, 0.2, 0.3, 0.9]], np.float32)}
  moved = move("o", Boxes(3, max_boxes=1), boxes, once)
  moved["boxes"] = moved["boxes"] / np.tile(INPUT, 2).astype(np.float32)
  del moved["valid"]
  again = move("o", Boxes(3, max_boxes=1), moved, once)
  np.testing.assert_allclose(
    again["boxes"] / np.tile(INPUT, 2), boxes["boxes"], atol=1e-6
  )
