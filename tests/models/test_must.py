import functools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models.fpn import FPN
from must_jax.models.heads import ClassificationHead, PixelHead
from must_jax.models.must import (
  BACKBONES,
  MustModel,
  build_backbone,
  normalise,
)
from must_jax.models.rcnn import FasterRCNNHead, RCNNOptions

GOLDEN = pathlib.Path(__file__).with_name("golden_names.txt")
# Less time in LLVM for programs that run once.
FAST = {"xla_backend_optimization_level": 0}


def small_model(dtype=jnp.float32):
  return MustModel(
    backbone=build_backbone("resnet18", width=4, dtype=dtype),
    fpn=FPN(channels=8, dtype=dtype),
    heads=(
      ("label", ClassificationHead(num_classes=5)),
      (
        "detect",
        FasterRCNNHead(
          num_classes=3,
          options=RCNNOptions(
            fc_dims=16,
            head_convs=1,
            rpn_pre_nms=24,
            rpn_post_nms=16,
            num_rois=12,
            roi_canonical_size=64.0,
          ),
          channels=8,
          roi_output_size=3,
          dtype=dtype,
        ),
      ),
      ("segment", PixelHead(4, num_convs=1, channels=8, dtype=dtype)),
    ),
  )


def images(batch, size=(64, 64), seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (batch, *size, 3), np.uint8)


def detect_labels(batch):
  boxes = np.array([[8, 8, 40, 40], [20, 30, 60, 60]], np.float32)
  return {
    "detect": {
      "objects": {
        "boxes": np.tile(boxes, (batch, 1, 1)),
        "classes": np.tile(np.array([0, 2], np.int32), (batch, 1)),
        "valid": np.ones((batch, 2), bool),
        "ignore": np.zeros((batch, 2), bool),
        "scores": np.ones((batch, 2), np.float32),
        "present": np.arange(batch) != 1,
      }
    }
  }


def names_and_shapes(model):
  """One "path shape" line for each variable, sorted."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3), "uint8"))
  )
  leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
  return sorted(
    "/".join(key.key for key in path) + " " + "x".join(map(str, x.shape))
    for path, x in leaves
  )


def golden_models():
  return {
    "small": small_model(),
    "resnet50": MustModel(
      backbone=build_backbone("resnet50"),
      fpn=FPN(),
      heads=(
        ("imagenet", ClassificationHead(num_classes=1000)),
        ("coco", FasterRCNNHead(num_classes=80)),
        ("ade20k", PixelHead(num_outputs=150)),
      ),
    ),
  }


def golden_text():
  lines = [
    "# Names of the model's variables: an interface of checkpoints. Rewrite",
    "# after a deliberate change: python tests/models/test_must.py",
  ]
  for name, model in golden_models().items():
    lines += ["", f"[{name}]", *names_and_shapes(model)]
  return "\n".join(lines) + "\n"


def test_names_of_variables_are_the_golden_ones():
  assert golden_text().split("\n") == GOLDEN.read_text().split("\n")


def test_the_pyramid_is_built_only_for_heads_that_need_it():
  label, detect, segment = small_model().heads
  for heads, parts in {
    (label,): {"backbone", "head_label"},
    (detect,): {"backbone", "fpn", "head_detect"},
    (label, segment): {"backbone", "fpn", "head_label", "head_segment"},
  }.items():
    model = small_model().clone(heads=heads)
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8)
    )
    assert set(shapes["params"]) == parts


def test_two_tasks_of_a_kind_have_heads_of_their_own():
  heads = (("a", PixelHead(2)), ("b", PixelHead(2)))
  model = small_model().clone(heads=heads)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images(1))
  assert set(shapes["params"]) == {"backbone", "fpn", "head_a", "head_b"}


def test_images_are_normalised_by_the_imagenet_statistics():
  image = np.array([[[[0, 0, 0], [255, 255, 255], [124, 116, 104]]]], np.uint8)
  expected = [
    [-2.1179, -2.0357, -1.8044],
    [2.2489, 2.4286, 2.6400],
    [0.0056, -0.0049, 0.0082],  # the padding colour is all but 0
  ]
  np.testing.assert_allclose(normalise(image)[0, 0], expected, atol=2e-4)


def test_the_batch_does_not_matter_in_evaluation(draw_variables):
  model = small_model()
  image = images(3)
  variables = draw_variables(model.init, image)
  apply = jax.jit(model.apply, compiler_options=FAST)
  together = apply(variables, image)
  alone = [apply(variables, image[b : b + 1]) for b in range(3)]
  jax.tree.map(
    lambda x, *ys: np.testing.assert_allclose(
      x, np.concatenate(ys), rtol=1e-3, atol=1e-3
    ),
    together,
    *alone,
  )


@pytest.mark.parametrize("size", [(128, 96), (97, 65)])
def test_output_sizes(size):
  outputs = jax.eval_shape(
    lambda: small_model().init_with_output(jax.random.key(0), images(2, size))[
      0
    ]
  )
  assert outputs["label"]["logits"].shape == (2, 5)
  h, w = -(-size[0] // 4), -(-size[1] // 4)
  assert outputs["segment"]["map"].shape == (2, h, w, 4)
  assert outputs["detect"]["class_logits"].shape == (2, 16, 4)


def gradients(model, variables, image, labels):
  """Of a loss in which every float output takes part, and new statistics."""

  def loss(params):
    outputs, stats = model.apply(
      variables | {"params": params},
      image,
      labels=labels,
      train=True,
      rngs={"sample": jax.random.key(1)},
      mutable=["batch_stats"],
    )
    floats = [
      outputs["label"]["logits"],
      outputs["segment"]["map"],
      *(
        outputs["detect"][key]
        for key in ("rpn_logits", "rpn_deltas", "class_logits", "box_deltas")
      ),
    ]
    return sum(jnp.sum((x - 1) ** 2) for x in floats), (floats, stats)

  return jax.grad(loss, has_aux=True)(variables["params"])


def test_gradients_are_finite_and_reach_every_parameter(draw_variables):
  model, image = small_model(), images(2)
  step = jax.jit(functools.partial(gradients, model), compiler_options=FAST)
  grads, (_, stats) = step(
    draw_variables(model.init, image), image, detect_labels(2)
  )
  for path, x in jax.tree_util.tree_flatten_with_path(grads)[0]:
    assert np.isfinite(x).all() and np.abs(x).max() > 0, path
  for path, x in jax.tree_util.tree_flatten_with_path(stats)[0]:
    assert np.isfinite(x).all(), path


def test_bfloat16_stays_within_the_model(draw_variables):
  model, image = small_model(jnp.bfloat16), images(2)
  variables = draw_variables(model.init, image)
  results = jax.eval_shape(
    functools.partial(gradients, model), variables, image, detect_labels(2)
  )
  assert {x.dtype for x in jax.tree.leaves((variables, results))} == {
    jnp.dtype(jnp.float32)
  }


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnext101_32x8d"])
def test_every_backbone_carries_every_head(name):
  """A last convolution for the classifier stays out of the pyramid."""
  model = MustModel(
    backbone=build_backbone(name),
    fpn=FPN(channels=8),
    heads=(
      ("kind", ClassificationHead(3)),
      ("mask", PixelHead(4, channels=8)),
    ),
  )
  image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.uint8)

  def run(image):
    return model.init_with_output(jax.random.key(0), image)

  outputs, variables = jax.eval_shape(run, image)
  assert outputs["kind"]["logits"].shape == (2, 3)
  assert outputs["mask"]["map"].shape == (2, 16, 24, 4)
  top = variables["params"]["head_kind"]["logits"]["kernel"].shape[0]
  assert top == {"efficientnet_b0": 1280, "resnext101_32x8d": 2048}[name]


def test_unknown_backbone_names_the_known_ones():
  with pytest.raises(ValueError, match=r"'resnet9'; .*'resnet18'"):
    build_backbone("resnet9")


# Runs where four devices are: a step's outputs, whole and by shards.
SHARDED = """
import re
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import conftest
import test_must

model = test_must.small_model()
image, labels = test_must.images(4), test_must.detect_labels(4)
variables = conftest.draw(model.init, image)

def run(variables, image, labels):
  trained, _ = model.apply(
    variables, image, labels=labels, train=True,
    rngs={"sample": jax.random.key(1)}, mutable=["batch_stats"],
  )
  return trained, model.apply(variables, image)

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
batch = NamedSharding(mesh, PartitionSpec("data"))
everywhere = NamedSharding(mesh, PartitionSpec())
arguments = variables, image, labels
split = jax.device_put(arguments, (everywhere, batch, batch))

def compiled(*arguments):
  return jax.jit(run).lower(*arguments).compile(test_must.FAST)

sharded = compiled(*split)
for op in ("all-gather", "all-to-all", "collective-permute"):
  found = re.findall(r".*= .*\\b" + op + r"(?:-start)?\\(.*", sharded.as_text())
  assert not found, found[0]
jax.tree.map(
  lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3),
  compiled(*arguments)(*arguments),
  sharded(*split),
)
"""


def test_a_batch_on_four_devices_gives_the_same_without_gathering():
  done = subprocess.run(
    [sys.executable, "-c", SHARDED],
    cwd=pathlib.Path(__file__).parent,
    env={
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


if __name__ == "__main__":
  GOLDEN.write_text(golden_text())


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_state_their_layers_in_order(name):
  backbone = build_backbone(name)
  image = jnp.zeros((1, 64, 64, 3))
  params = jax.eval_shape(backbone.init, jax.random.key(0), image)["params"]
  named = [module for layer in backbone.layers for module in layer]
  assert len(named) == len({*named}) and {*named} <= {*params}
  for module in {*params} - {*named}:  # the stem
    assert not re.search("block|head|reassemble", module)
  # Stages of convolutions come before transformers, blocks by their number.
  blocks = [module for module in named if "block" in module]
  assert blocks == sorted(
    blocks,
    key=lambda x: (x.startswith("b"), [int(n) for n in re.findall(r"\d+", x)]),
  )
  assert backbone.last_block == (blocks[-1],)
