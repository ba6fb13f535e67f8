import dataclasses
import hashlib
import math

import numpy as np
import pytest

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.lab import world as world_lib
from must_jax.lab.world import shapes, styles, write_sets
from must_jax.lab.world.object_kinds import KINDS, Draw
from must_jax.lab.world.scene import (
  Camera,
  Light,
  Material,
  Patch,
  Plane,
  Scene,
  Sky,
  Solid,
)
from must_jax.lab.world.shade import render
from must_jax.lab.world.trace import View
from must_jax.storage.sets import ImageSet

LEVEL = Camera(height=1.5, forward=(1.0, 0.0), tan_half_view=0.5)
GRAY = Material(((0.5, 0.5, 0.5),) * 2)


def scene(solids=(), camera=LEVEL, light=(0.0, 0.0, 1.0), **kwargs):
  return Scene(
    camera=camera,
    light=Light(light, (1.0, 1.0, 1.0), (0.3, 0.3, 0.3)),
    sky=Sky((0.2, 0.4, 0.8), (0.7, 0.8, 0.9), 0.5, 60.0),
    floor=GRAY,
    floor_name="ground",
    turn=(1.0, 0.0),
    solids=tuple(solids),
    **kwargs,
  )


def solid(shape, position, scale=(1.0, 1.0, 1.0), rotation=shapes.AXES):
  return Solid(shape, position, rotation, scale, GRAY, 0, "thing")


def rays(camera, size):
  """Directions [S, S, 3] in the world, of length 1 along the camera's axis."""
  place = (np.arange(size) + 0.5) / size * 2 - 1
  u, v = np.meshgrid(place, place)
  u, v = u * camera.tan_half_view, v * camera.tan_half_view
  right = np.array([1.0, 0.0, 0.0])
  forward = np.array([0.0, *camera.forward])
  down = np.cross(forward, right)
  return u[..., None] * right + v[..., None] * down + forward


def tilted(camera, degrees):
  angle = math.radians(degrees)
  forward = (math.cos(angle), -math.sin(angle))
  return dataclasses.replace(camera, forward=forward)


@pytest.mark.parametrize("degrees", [0, 20])
def test_depth_and_normals_of_a_ball(degrees):
  camera = tilted(LEVEL, degrees)
  center, radius = np.array([0.3, 6.0, 1.0]), 0.9
  out = render(
    scene([solid(shapes.BALL, tuple(center), (radius,) * 3)], camera), 33
  )

  ray = rays(camera, 33)
  eye = np.array([0.0, 0.0, camera.height])
  unit = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
  middle = unit @ (center - eye)  # along the ray, where it is nearest
  away = (center - eye) @ (center - eye) - middle**2
  hit = away < radius**2
  distance = middle - np.sqrt(np.maximum(radius**2 - away, 0))
  point = eye + unit * distance[..., None]
  forward = np.array([0.0, *camera.forward])
  fall = np.maximum(-ray[..., 2], 1e-9)
  floor = np.where(camera.height < 400 * fall, camera.height / fall, np.inf)
  np.testing.assert_allclose(
    out.depth, np.where(hit, (point - eye) @ forward, floor), rtol=1e-9
  )
  np.testing.assert_array_equal(out.surface == 2, hit)
  assert hit.sum() > 50

  normal = (point - center) / radius
  right = np.array([1.0, 0.0, 0.0])
  axes = np.stack([right, np.cross(forward, right), forward], -1)
  np.testing.assert_allclose(out.normals[hit], (normal @ axes)[hit], atol=1e-6)
  ground = ~hit & np.isfinite(floor)
  np.testing.assert_allclose(
    out.normals[ground], np.tile(axes[2], (ground.sum(), 1)), atol=1e-6
  )


# Whether a point is inside, as plain as it can be said.
INSIDE = {
  "ball": (shapes.BALL, lambda x, y, z: x**2 + y**2 + z**2 < 1),
  "dome": (shapes.DOME, lambda x, y, z: (x**2 + y**2 + z**2 < 1) & (z > 0)),
  "box": (
    shapes.BOX,
    lambda x, y, z: np.maximum(abs(x), np.maximum(abs(y), abs(z))) < 1,
  ),
  "pyramid": (
    shapes.PYRAMID,
    lambda x, y, z: (z > 0) & (np.maximum(abs(x), abs(y)) < 1 - z),
  ),
  "roof": (
    shapes.ROOF,
    lambda x, y, z: (z > 0) & (abs(x) < 1 - z) & (abs(y) < 1),
  ),
  "wedge": (
    shapes.WEDGE,
    lambda x, y, z: (z > 0) & (x > 0) & (x + z < 1) & (abs(y) < 1),
  ),
  "octahedron": (
    shapes.OCTAHEDRON,
    lambda x, y, z: abs(x) + abs(y) + abs(z) < 1,
  ),
  "hexagon": (
    shapes.HEXAGON,
    lambda x, y, z: (
      (z > 0)
      & (z < 1)
      & (abs(y) < math.sqrt(3) / 2)
      & (math.sqrt(3) * abs(x) + abs(y) < math.sqrt(3))
    ),
  ),
  **{
    f"frustum {top}": (
      shapes.frustum(top),
      lambda x, y, z, top=top: (
        (z > 0) & (z < 1) & (np.hypot(x, y) < 1 + (top - 1) * z)
      ),
    )
    for top in (0.0, 0.3, 1.0)
  },
}


@pytest.mark.parametrize("name", INSIDE)
def test_rays_are_inside_where_their_points_are(name):
  shape, inside = INSIDE[name]
  rng = np.random.RandomState(0)
  origin = rng.normal(size=(3, 400)) * 2
  aim = rng.uniform(-0.8, 0.8, size=(3, 400))
  direction = aim - origin
  direction[:, :40] = np.array([[0.0], [0.0], [1.0]])  # steep and parallel
  direction[:, 40:80] = np.array([[1.0], [0.0], [0.0]])
  direction[:, 80:120] = np.array([[0.1], [0.1], [-1.0]])
  with np.errstate(all="ignore"):
    enter, leave = shapes.meet(
      shape, lambda n: (np.dot(n, origin), np.dot(n, direction))
    )
  t = np.linspace(-8, 8, 1601)[:, None]
  points = (o + t * d for o, d in zip(origin, direction, strict=True))
  given = (t > enter) & (t < leave)
  wrong = given != inside(*points)
  # Only what is next to a border may differ.
  near = (abs(t - enter) < 1e-9) | (abs(t - leave) < 1e-9)
  assert not (wrong & ~near).any()
  assert given.any(0).sum() > 50
  low, high = np.array(shape.low), np.array(shape.high)
  ends = origin + np.where(enter < leave, enter, np.nan) * direction
  inbox = (ends > low[:, None] - 1e-9) & (ends < high[:, None] + 1e-9)
  assert inbox.all(0).sum() == (enter < leave).sum()


@pytest.mark.parametrize("name", ["src_seg", "down_normals", "down_depth"])
def test_normals_are_those_of_the_unprojected_depth(name):
  size, agree, total = 128, 0, 0
  for index in range(4):
    key = f"{name}/{index}"
    drawn = styles.draw_scene(Draw(key), world_lib.SETS[name].styles[0])
    out = render(drawn.scene, size)
    tan = drawn.scene.camera.tan_half_view
    place = ((np.arange(size) + 0.5) / size * 2 - 1) * tan
    u, v = np.meshgrid(place, place)
    depth = np.where(np.isfinite(out.depth), out.depth, 0)
    points = np.stack([u * depth, v * depth, depth], -1)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    estimate = np.cross(down, across)  # towards the camera
    estimate /= np.maximum(np.linalg.norm(estimate, axis=-1), 1e-9)[..., None]
    same = np.isfinite(out.depth)[1:-1, 1:-1]
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
      window = out.surface[dy : dy + size - 2, dx : dx + size - 2]
      same &= window == out.surface[1:-1, 1:-1]
    cosine = (estimate * out.normals[1:-1, 1:-1]).sum(-1)[same]
    agree += (cosine > math.cos(math.radians(3))).sum()
    total += same.sum()
    length = np.linalg.norm(out.normals, axis=-1)
    solid_pixels = np.isfinite(out.depth)
    np.testing.assert_allclose(length[solid_pixels], 1, atol=1e-5)
    assert not length[~solid_pixels].any()
    # What is seen faces the camera.
    towards = (out.normals * np.stack([u, v, np.ones_like(u)], -1)).sum(-1)
    assert towards.max() < 1e-5
  # The rest are edges within a solid and round parts seen edge on.
  assert agree > 0.97 * total


def test_a_mirrored_scene_gives_the_mirrored_picture():
  cos, sin = 0.8, 0.6
  parts = [
    (shapes.BOX, (-0.8, 4.0, 0.4), (0.5, 0.3, 0.4)),
    (shapes.frustum(0.3), (0.7, 5.0, 0.0), (0.5, 0.5, 1.2)),
    (shapes.ROOF, (0.1, 3.0, 0.0), (0.3, 0.4, 0.5)),
  ]

  def picture(side):
    turned = ((cos, -side * sin, 0), (side * sin, cos, 0), (0.0, 0.0, 1.0))
    solids = [
      solid(shape, (side * x, y, z), scale, turned)
      for shape, (x, y, z), scale in parts
    ]
    walls = [
      Plane((nx, 0.0, 0.0), 2.0 if nx == side else 3.0, GRAY, "wall")
      for nx in (1.0, -1.0)
    ]
    light = (side * 0.48, -0.36, 0.8)
    camera = tilted(LEVEL, 15)
    order = slice(None, None, int(side))
    made = scene(solids, camera, light, planes=tuple(walls[order]))
    return render(made, 48)

  out, mirrored = picture(1.0), picture(-1.0)
  assert len(np.unique(out.surface)) == 6
  np.testing.assert_array_equal(mirrored.surface, out.surface[:, ::-1])
  np.testing.assert_allclose(mirrored.depth, out.depth[:, ::-1], rtol=1e-12)
  np.testing.assert_allclose(
    mirrored.normals, out.normals[:, ::-1] * [-1, 1, 1], atol=1e-6
  )
  difference = mirrored.image.astype(int) - out.image[:, ::-1]
  assert abs(difference).max() <= 1


def test_shadow_of_a_ball():
  light = np.array([0.48, -0.36, 0.8])
  center, radius = np.array([0.0, 5.0, 1.0]), 0.6
  camera = tilted(LEVEL, 15)
  ball = solid(shapes.BALL, tuple(center), (radius,) * 3)
  made = scene([ball], camera, tuple(light))
  size = 64
  view = View(made, (2 * np.arange(size) + 1) / size - 1)
  with np.errstate(all="ignore"):
    depth, surface = view.trace()
    shadow = view.shadows(depth)
  points = (
    np.array([0, 0, camera.height])
    + rays(camera, size) * np.where(surface == 1, depth, 0)[..., None]
  )
  from_axis = np.linalg.norm(np.cross(points - center, light), axis=-1)
  clear = (surface == 1) & (abs(from_axis - radius) > 0.01)
  np.testing.assert_array_equal(shadow[clear], from_axis[clear] < radius)
  assert shadow[clear].sum() > 30
  # The ball shades its own far side.
  there = surface == 2
  normal = rays(camera, size) * np.where(there, depth, 0)[..., None]
  normal = normal + np.array([0, 0, camera.height]) - center
  facing = normal @ light / radius
  assert not shadow[there & (facing > 0.05)].any()
  assert shadow[there & (facing < -0.05)].all()


def test_patches_lie_on_floor_and_wall():
  wall = Plane((0.0, 1.0, 0.0), 5.0, GRAY, "wall")
  patches = (
    Patch(1, (0.0, 4.0), (1.0, 0.5), (1.0, 0.0), False, GRAY, "rug"),
    Patch(2, (0.5, 1.5), (0.4, 0.4), (1.0, 0.0), True, GRAY, "picture"),
  )
  camera = tilted(LEVEL, 5)
  made = scene([], camera, planes=(wall,), patches=patches)
  out = render(made, 64)
  points = np.array([0, 0, 1.5]) + rays(camera, 64) * out.depth[..., None]
  x, y, z = np.moveaxis(points, -1, 0)
  names = np.array(made.names)[out.surface]
  floor = abs(z) < 1e-9
  rug = floor & (abs(x) < 1) & (abs(y - 4) < 0.5)
  disc = ~floor & ((x - 0.5) ** 2 + (z - 1.5) ** 2 < 0.16)
  np.testing.assert_array_equal(names == "rug", rug)
  np.testing.assert_array_equal(names == "picture", disc)
  assert rug.sum() > 20
  assert disc.sum() > 20


@pytest.mark.parametrize("kind", KINDS)
def test_objects_stand_on_the_floor(kind):
  style = dataclasses.replace(
    world_lib.SETS["src_cls"].styles[0], kinds=(kind,), num_objects=(1, 1)
  )
  drawn = styles.draw_scene(Draw(kind), style)
  parts = [s for s in drawn.scene.solids if s.owner == 0]
  assert drawn.kinds == (kind,)
  lows, highs = [], []
  for part in parts:
    bounds = np.array([part.shape.low, part.shape.high])
    corners = np.array(np.meshgrid(*bounds.T))
    local = corners.reshape(3, -1) * np.array(part.scale)[:, None]
    z = (np.array(part.rotation) @ local)[2] + part.position[2]
    lows.append(z.min())
    highs.append(z.max())
  height = max(highs)
  assert abs(min(lows)) < 0.06 * height
  made = drawn.scene
  surface = render(made, 96).surface
  assert 0.02 < (surface >= made.first_solid).mean() < 0.7
  # No two faces lie in one plane: the order of parts makes no difference.
  turned = dataclasses.replace(made, solids=made.solids[::-1])
  again = render(turned, 96).surface
  ends = 2 * made.first_solid + len(made.solids) - 1
  again = np.where(again < made.first_solid, again, ends - again)
  assert (again != surface).mean() < 2e-4


@pytest.mark.parametrize("name", world_lib.SETS)
def test_labels_agree_with_each_other(name):
  spec = world_lib.SETS[name]
  size, seen = 64, 0
  for index in range(6):
    example = world_lib.render_example(name, "train", index, size)
    assert example["image"].shape == (size, size, 3)
    assert example["image"].dtype == np.uint8
    assert example["image"].std() > 5
    instances, mask = example["instances"], example["mask"]
    objects = example["objects"]
    shown = sorted(set(instances[instances >= 0].tolist()))
    assert example["box_instances"].tolist() == shown
    for number, box, kind, ignore in zip(
      shown,
      objects["boxes"] * size,
      objects["classes"],
      objects["ignore"],
      strict=True,
    ):
      there = instances == number
      rows, columns = there.any(1), there.any(0)
      expected = [
        rows.argmax(),
        columns.argmax(),
        size - rows[::-1].argmax(),
        size - columns[::-1].argmax(),
      ]
      np.testing.assert_allclose(box, expected, atol=1e-4)
      if there.sum() < 12:
        assert ignore
      if not ignore:
        seen += 1
        assert there.sum() >= 12
        if spec.mask_classes:
          kinds = {spec.mask_classes[c] for c in np.unique(mask[there])}
          assert kinds == {spec.kinds[kind]}
    if spec.mask_classes:
      stuff = set(spec.mask_classes) - set(spec.kinds)
      behind = np.unique(mask[instances < 0])
      assert {spec.mask_classes[c] for c in behind} <= stuff
      sky = [i for i, c in enumerate(spec.mask_classes) if c == "sky"]
      if sky:
        np.testing.assert_array_equal(
          mask == sky[0], np.isinf(example["depth"])
        )
    assert 0 <= example["label"] < len(spec.kinds)
  assert seen >= 6


def test_sky():
  for index in range(20):
    example = world_lib.render_example("down_normals", "train", index, 32)
    sky = np.isinf(example["depth"])
    if sky.any():
      break
  assert 0 < sky.mean() < 1
  # The sky is at the top.
  assert sky[0].any()
  assert not sky[-1].any()
  assert (example["inverse_depth"][sky] == 0).all()
  assert (example["normals"][sky] == 0).all()
  np.testing.assert_allclose(
    example["inverse_depth"][~sky] * example["depth"][~sky], 1, rtol=1e-6
  )
  stored = world_lib.stored_labels("src_depth", example)["depth"]
  assert stored["valid"].all()
  stored = world_lib.stored_labels("down_depth", example)["depth"]
  np.testing.assert_array_equal(stored["valid"], ~sky)
  stored = world_lib.stored_labels("down_normals", example)["normals"]
  np.testing.assert_array_equal(stored["valid"], ~sky)


def test_rooms_of_the_metric_set_are_closed():
  for index in range(10):
    example = world_lib.render_example("down_depth", "train", index, 24)
    assert example["depth"].min() > 0.2
    assert example["depth"].max() < 12


def test_the_scene_does_not_depend_on_the_size():
  for name in ("src_cls", "down_ade"):
    small = world_lib.render_example(name, "train", 3, 32)
    large = world_lib.render_example(name, "train", 3, 96)
    # Every third pixel has the same centre.
    same = large["instances"][1::3, 1::3] == small["instances"]
    assert same.mean() > 0.995
    np.testing.assert_allclose(
      large["inverse_depth"][1::3, 1::3][same],
      small["inverse_depth"][same],
      atol=1e-5,
    )
    shrunk = large["image"].reshape(32, 3, 32, 3, 3).mean((1, 3))
    assert abs(shrunk - small["image"]).mean() < 6


def test_the_class_of_an_image_is_what_dominates_it():
  labels = []
  for index in range(40):
    example = world_lib.render_example("src_cls", "train", index, 48)
    instances = example["instances"]
    areas = np.bincount(instances[instances >= 0])
    assert areas.argmax() == 0
    objects = example["objects"]
    assert objects["classes"][0] == example["label"]
    labels.append(example["label"])
  assert len(set(labels)) >= 7


def digest(example):
  state = hashlib.blake2b(digest_size=8)
  for name in ("image", "depth", "mask", "normals", "instances"):
    state.update(np.ascontiguousarray(example[name]).tobytes())
  return state.hexdigest()


def test_the_same_integers_give_the_same_bytes_on_every_machine():
  # A change here means another world: `world.VERSION` must grow with it.
  given = {
    name: digest(world_lib.render_example(name, "train", 0, 32))
    for name in ("pile_truth", "src_cls", "down_ade")
  }
  assert given == {
    "pile_truth": "a7cc56c886c99ed1",
    "src_cls": "4ce0c32c7582e61a",
    "down_ade": "894741f45d92fd6b",
  }


def test_seeds_splits_and_indices_differ():
  digests = {
    digest(world_lib.render_example("src_seg", split, index, 16, seed))
    for split in ("train", "validation")
    for index in (0, 1)
    for seed in (0, 1)
  }
  assert len(digests) == 8


def test_sets_have_the_roles_of_the_paper():
  fields = {name: spec.fields for name, spec in world_lib.SETS.items()}
  assert fields == {
    "src_cls": ("label",),
    "src_det": ("objects",),
    "src_seg": ("mask",),
    "src_depth": ("depth",),
    "pile": (),
    "pile_truth": ("label", "objects", "mask", "depth", "normals"),
    "down_cls": ("label",),
    "down_det": ("objects",),
    "down_seg": ("mask",),
    "down_depth": ("depth",),
    "down_ade": ("mask",),
    "down_normals": ("normals",),
  }
  known = set(world_lib.SETS["src_cls"].kinds)
  for name in ("down_cls", "down_det", "down_seg"):
    assert not known & set(world_lib.SETS[name].kinds)


TINY = {
  name: dict.fromkeys(splits, 3)
  for name, splits in world_lib.default_counts().items()
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  out = tmp_path_factory.mktemp("world")
  world_lib.build(out, 32, TINY, num_shards=2, workers=1)
  return out


def kind_of(name, spec):
  kinds = {
    "label": lambda: ClassVector(len(spec.kinds)),
    "objects": lambda: Boxes(len(spec.kinds)),
    "mask": lambda: ClassMap(len(spec.mask_classes)),
    "depth": ValueMap,
    "normals": VectorMap,
  }
  return kinds[name]()


@pytest.mark.parametrize("name", world_lib.SETS)
def test_sets_read_back_as_they_were_drawn(world, name):
  import tensorflow as tf

  from must_jax.storage import records

  spec = world_lib.SETS[name]
  for split, count in TINY[name].items():
    images = ImageSet.open(world / name, split)
    assert images.num_records == count
    assert len(images.shards) == 2
    assert set(images.fields) == set(spec.fields)
    # Dealt out to the shards in turn.
    for place, index in enumerate((0, 2, 1)):
      record = images.read(place)
      expected = world_lib.render_example(name, split, index, 32)
      parsed = records.parse_image(tf.constant(record))
      assert parsed["key"].numpy().decode() == expected["key"]
      np.testing.assert_array_equal(
        tf.io.decode_png(parsed["image"]), expected["image"]
      )
      fields = {field: kind_of(field, spec) for field in spec.fields}
      labels = records.read_labels(record, fields)
      assert set(labels) == set(spec.fields)
      if "label" in labels:
        assert labels["label"]["probs"].argmax() == expected["label"]
      if "objects" in labels:
        for array in ("boxes", "classes", "ignore"):
          np.testing.assert_allclose(
            labels["objects"][array], expected["objects"][array], atol=1e-6
          )
      if "mask" in labels:
        np.testing.assert_array_equal(
          labels["mask"]["classes"], expected["mask"]
        )
      if "depth" in labels:
        inverse = images.fields["depth"]["unit"] == "inverse"
        truth = expected["inverse_depth" if inverse else "depth"]
        assert labels["depth"]["valid"].all()  # rooms have no sky
        np.testing.assert_allclose(
          labels["depth"]["values"], truth, atol=1e-4 * truth.max()
        )
      if "normals" in labels:
        np.testing.assert_allclose(
          labels["normals"]["vectors"], expected["normals"], atol=1e-4
        )


def test_the_twin_has_the_pictures_of_the_pile(world):
  pile = ImageSet.open(world / "pile", "train")
  truth = ImageSet.open(world / "pile_truth", "train")
  assert [s.file for s in pile.shards] == [s.file for s in truth.shards]
  assert [s.keys for s in pile.shards] == [s.keys for s in truth.shards]
  for index in range(3):
    a = world_lib.render_example("pile", "train", index, 32)
    b = world_lib.render_example("pile_truth", "train", index, 32)
    np.testing.assert_array_equal(a["image"], b["image"])


def files(directory):
  return {
    str(p.relative_to(directory)): p.read_bytes()
    for p in sorted(directory.rglob("*"))
    if p.is_file()
  }


def test_workers_do_not_change_the_bytes(world, tmp_path):
  counts = {name: TINY[name] for name in ("src_det", "down_normals")}
  world_lib.build(tmp_path, 32, counts, num_shards=2, workers=2)
  given, expected = files(tmp_path), files(world)
  assert len(given) > 10
  assert given == {name: expected[name] for name in given}


def test_building_again_keeps_what_is_there(world, monkeypatch):
  def no_more(*args):
    raise AssertionError("drawn again")

  before = {p: p.stat().st_mtime_ns for p in world.rglob("*")}
  monkeypatch.setattr(write_sets, "_write_set", no_more)
  world_lib.build(world, 32, TINY, num_shards=2, workers=1)
  assert before == {p: p.stat().st_mtime_ns for p in world.rglob("*")}


def test_an_interrupted_build_goes_on(world, tmp_path):
  world_lib.build(tmp_path, 32, {"src_cls": {"train": 3}}, 2, 1)
  world_lib.build(tmp_path, 32, {"src_cls": TINY["src_cls"]}, 2, 1)
  expected = files(world)
  given = files(tmp_path)
  assert given == {name: expected[name] for name in given}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image_size": 48}, "holds a synthetic world made with"),
    ({"seed": 1}, "holds a synthetic world made with"),
    ({"counts": {"src_cls": {"train": 4}}}, "has 3 examples; given"),
    ({"counts": {"src_cls": {"train": 0}}}, "at least one"),
    ({"counts": {"src_mood": {"train": 1}}}, "no set 'src_mood'"),
    ({"num_shards": 0}, "num_shards is 0"),
  ],
)
def test_another_world_in_the_same_place_is_an_error(world, change, message):
  arguments = {"image_size": 32, "counts": TINY, "num_shards": 2, "workers": 1}
  with pytest.raises(ValueError, match=message):
    world_lib.build(world, **(arguments | change))
