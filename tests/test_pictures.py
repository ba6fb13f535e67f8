import numpy as np
import pytest

from must_jax import pictures
from must_jax.types import IGNORE_LABEL

IMAGE = np.full((48, 64, 3), 100, np.uint8)


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    (2, 4, [0, 0, 1, 1]),
    (4, 2, [1, 3]),  # equally near: the right one
    (3, 2, [0, 2]),
    (2, 3, [0, 1, 1]),
    (5, 5, [0, 1, 2, 3, 4]),
  ],
)
def test_maps_are_resized_to_the_nearest_pixel(old, new, expected):
  x = np.arange(old, dtype=np.uint8)
  row = pictures.resize_map(x.reshape(1, old), (1, new))
  assert row.dtype == np.uint8
  np.testing.assert_array_equal(row[0], expected)
  column = pictures.resize_map(x.reshape(old, 1, 1), (new, 1))
  np.testing.assert_array_equal(column[:, 0, 0], expected)


def test_palette_has_distinct_colours():
  colors = pictures.palette(40).astype(int)
  distance = np.abs(colors[:, None] - colors[None]).sum(-1)
  assert (distance + 1000 * np.eye(40) > 10).all()


def test_boxes_are_framed_and_nothing_else_changes():
  colors = np.array([[255, 0, 0]], np.uint8)
  drawn = pictures.draw_boxes(IMAGE, np.array([[10, 20, 30, 50.0]]), colors)
  changed = (drawn != IMAGE).any(-1)
  rows, columns = np.nonzero(changed)
  assert (rows.min(), rows.max()) == (10, 30)
  assert (columns.min(), columns.max()) == (20, 50)
  assert not changed[11:30, 21:50].any()
  assert (IMAGE == 100).all()


def test_boxes_beyond_the_image_are_framed_at_its_edge():
  colors = np.zeros((1, 3), np.uint8)
  drawn = pictures.draw_boxes(IMAGE, np.array([[-5, -5, 99, 99.0]]), colors)
  assert not drawn[0].any() and not drawn[-1].any()
  assert (drawn[1:-1, 1:-1] == 100).all()


def test_unknown_pixels_are_dark():
  classes = np.zeros((48, 64), int)
  classes[:, 32:] = IGNORE_LABEL
  drawn = pictures.draw_classes(IMAGE, classes)
  assert (drawn[:, 32:] == 35).all()
  assert (drawn[:, :32] != 35).any()


@pytest.mark.parametrize("is_distance", [False, True])
def test_near_is_bright(is_distance):
  values = np.tile(np.linspace(0, 1, 64), (48, 1))
  valid = values < 0.9
  drawn = pictures.draw_nearness(values, valid, is_distance=is_distance)
  brightness = drawn.sum(-1).astype(int)
  assert (brightness[~valid] == 0).all()
  rises = brightness[0, 50] > brightness[0, 5]
  assert rises != is_distance
  nothing = pictures.draw_nearness(values, valid & False, is_distance=False)
  assert not nothing.any()


def test_a_room_beside_a_sky_has_many_colours():
  values = np.tile(np.linspace(1, 8, 64), (48, 1))
  values[:16] = 1e10
  drawn = pictures.draw_nearness(values, values > 0, is_distance=True)
  assert len(np.unique(drawn[16:].reshape(-1, 3), axis=0)) > 30


def test_a_surface_that_faces_the_camera_is_blue():
  vectors = np.tile([0.0, 0.0, -1.0], (4, 4, 1))
  valid = np.eye(4) > 0
  drawn = pictures.draw_normals(vectors, valid)
  assert drawn[0, 0].tolist() == [127, 127, 255]
  assert drawn[0, 1].tolist() == [0, 0, 0]


def test_galleries_pad_their_cells():
  small = np.zeros((10, 20, 3), np.uint8)
  drawn = pictures.gallery([(IMAGE, small), (small, small)], (48, 64))
  assert drawn.shape == (96, 128, 3)
  assert (drawn[:48, :64] == IMAGE).all()
  assert (drawn[48:58, :20] == 0).all() and (drawn[58:, :64] == 255).all()


def test_sheets_hold_every_tile_and_colour():
  picture = np.full((100, 256, 3), 7, np.uint8)
  tiles = [[pictures.Panel(picture, f"image {i}")] * 2 for i in range(4)]
  sheet = np.asarray(
    pictures.contact_sheet("A title", tiles, {"what": {"cat": (250, 1, 2)}})
  )
  assert (sheet == 7).all(-1).sum() == 8 * 100 * 256
  assert (sheet == (250, 1, 2)).all(-1).sum() > 100


def test_texts_stand_at_their_boxes():
  image = np.full((300, 400, 3), 100, np.uint8)
  boxes = np.array([[100, 50, 200, 150.0], [-9, 380, 60, 399]])
  colors = np.array([[250, 240, 10], [20, 20, 90]], np.uint8)
  plain = pictures.draw_boxes(image, boxes, colors)
  drawn = pictures.draw_boxes(image, boxes, colors, ["cat 0.93", "dog 0.50"])
  rows, columns = np.nonzero((drawn != plain).any(-1))
  first = columns < 250
  assert rows[first].min() > 70 and rows[first].max() <= 100  # above it
  assert (columns[first].min(), columns[first].max() < 150) == (50, True)
  assert columns[~first].max() <= 399  # kept inside
  # Dark on a light ground, light on a dark one.
  assert drawn[75:100, 50:110].min() < 40
  assert drawn[:20, 260:].max() > 240


def test_small_images_have_no_texts_on_them():
  image = np.full((64, 64, 3), 100, np.uint8)
  box, color = np.array([[10, 10, 50, 50.0]]), np.array([[9, 9, 9]], np.uint8)
  plain = pictures.draw_boxes(image, box, color)
  assert (pictures.draw_boxes(image, box, color, ["cat"]) == plain).all()


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (3000, 4000), (99, 3)])
def test_a_legend_is_below_and_as_large_as_the_picture_asks(size):
  image = np.random.default_rng(0).integers(0, 99, (*size, 3), np.uint8)
  words = [("cat", (255, 0, 0)), ("dog", (0, 255, 0))]
  drawn = pictures.add_legend(image, "animals", words)
  assert (drawn[: size[0], : size[1]] == image).all()
  assert (drawn[: size[0], size[1] :] == 255).all()
  strip = drawn[size[0] :]
  patch = (strip == (255, 0, 0)).all(-1).sum() ** 0.5
  assert patch >= 12
  assert patch == pytest.approx(max(12, (size[0] * size[1]) ** 0.5 / 45), abs=1)
  assert (strip == (0, 255, 0)).all(-1).sum() == round(patch**2)


def test_lines_are_thicker_on_larger_pictures():
  colors = np.array([[255, 0, 0]], np.uint8)
  for side, width in ((100, 1), (640, 4), (3200, 20)):
    image = np.zeros((side, side, 3), np.uint8)
    box = np.array([[side / 4, side / 4, side / 2, side / 2]])
    drawn = pictures.draw_boxes(image, box, colors)
    assert (drawn[side // 3, : side // 3, 0] == 255).sum() == width


@pytest.mark.parametrize("is_distance", [False, True])
def test_the_legend_of_nearness_has_its_colours(is_distance):
  values = np.tile(np.linspace(1, 2, 201), (4, 1))
  valid = values > 0
  drawn = pictures.draw_nearness(values, valid, is_distance=is_distance)
  marks = pictures.explain_nearness(values, valid, is_distance=is_distance)
  told = [float(text) for text, _ in marks]
  assert told == sorted(told, reverse=not is_distance)  # near first
  for value, (_, color) in zip(told, marks, strict=True):
    column = np.abs(values[0] - value).argmin()
    assert np.abs(drawn[0, column] - np.array(color)).max() <= 8
  nothing = pictures.explain_nearness(
    values, valid & False, is_distance=is_distance
  )
  assert nothing == [("nothing is known", None)]
