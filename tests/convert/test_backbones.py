"""Our backbones against the original code, see `make_golden_backbones.py`."""

import dataclasses
import functools
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from must_jax.convert import (
  align,
  conversion,
  efficientnet_lite,
  timm,
  torchvision,
)
from must_jax.models.must import BACKBONES, normalise
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

HERE = pathlib.Path(__file__).parent
make_weights, sample = (
  runpy.run_path(str(HERE / "weights.py"))[name]
  for name in ("make_weights", "sample")
)

KINDS = {
  kind.name: kind
  for module in (torchvision, timm, efficientnet_lite, align)
  for kind in module.KINDS
}
# Published networks that only other kinds or users' own weights build on.
OTHER_KINDS = {
  "timm_efficientnet_b0_torch": dataclasses.replace(
    KINDS["timm_efficientnet_b0"],
    make_config=functools.partial(
      KINDS["timm_efficientnet_b0"].make_config,
      backbone="efficientnet_b0_torch",
      norm_epsilon=1e-5,
    ),
  ),
}


def expected_tree(config):
  model = build_model(config, build_tasks(config))
  init = functools.partial(init_variables, model, config.data.image_size)
  return model, jax.eval_shape(init, jax.random.key(0))


def run(model, variables, image):
  """Features of the backbone by name of the level, and logits if any."""

  def forward(variables, image):
    scope = {k: v["backbone"] for k, v in variables.items()}
    features = model.backbone.apply(
      scope, normalise(image, model.image_mean, model.image_std)
    )
    features = {str(level): x for level, x in features.items()}
    outputs = model.apply(variables, image)
    return features, outputs.get("classification", {}).get("logits")

  return jax.jit(forward)(variables, image)


@pytest.mark.parametrize(
  "name",
  [
    "torchvision_resnet18",
    "torchvision_resnext101_32x8d",
    "timm_resnet50",
    "timm_efficientnet_b0",
    "timm_efficientnet_b0_ap",
    "timm_efficientnet_b0_torch",
    "timm_efficientnet_lite3",
    "efficientnet_lite1",
    "align_efficientnet_b7",
  ],
)
def test_features_are_those_of_the_original(name):
  compare((KINDS | OTHER_KINDS)[name], np.load(HERE / f"golden/{name}.npz"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    "torchvision_resnet50",
    "torchvision_resnet152",
    "torchvision_resnext101_32x8d",
    "timm_efficientnet_b0",
    "timm_efficientnet_b7",
    "timm_efficientnet_l2",
    "align_efficientnet_b7",
  ],
)
def test_full_size(name, parity_file):
  compare(KINDS[name], np.load(parity_file(name)))


def compare(kind, golden):
  """Compares all levels and the logits; prints the largest differences."""
  weights = make_weights(
    json.loads(str(golden["shapes"])), float(golden["gain"])
  )
  model, expected = expected_tree(kind.make_config(weights))
  variables, _ = conversion.convert(kind, weights, expected)
  features, logits = run(model, variables, golden["image"])

  levels = {key[7:] for key in golden if key.startswith("sample_")}
  if not getattr(model.backbone, "head_conv", False):
    levels.discard("top")
  assert set(features) == levels
  for level, x in features.items():
    mean, std = golden[f"mean_std_{level}"]
    near = functools.partial(
      np.testing.assert_allclose, rtol=0, atol=1e-4 * std, err_msg=level
    )
    ours, theirs = sample(level, np.asarray(x)), golden[f"sample_{level}"]
    print(f"{kind.name} c{level}: {np.abs(ours - theirs).max() / std:.1e}")
    near(ours, theirs)
    near([x.mean(), x.std()], [mean, std])
  assert (logits is not None) == bool(model.heads)
  if logits is not None:
    scale = np.std(golden["logits"])
    error = np.abs(logits[0, :16] - golden["logits"]).max() / scale
    print(f"{kind.name} logits: {error:.1e}")
    np.testing.assert_allclose(
      logits[0, :16], golden["logits"], rtol=0, atol=1e-4 * scale
    )


def published_shapes(name):
  """Names and shapes of a golden file's weights as arrays without memory."""
  golden = np.load(HERE / "golden" / f"{name}.npz")
  return {
    key: np.broadcast_to(np.float32(0), shape)
    for key, shape in json.loads(str(golden["shapes"])).items()
  }


def converted(kind, weights):
  _, expected = expected_tree(kind.make_config(weights))
  return conversion.convert(kind, weights, expected)


@pytest.mark.parametrize(
  ("name", "size", "mean", "epsilon"),
  [
    ("torchvision_resnet18", 224, 0.485, 1e-5),
    ("timm_resnet50", 224, 0.485, 1e-5),
    ("timm_efficientnet_b0", 224, 0.485, 1e-3),
    ("timm_efficientnet_b0_ap", 224, 0.5, 1e-3),
    ("timm_efficientnet_lite3", 300, 0.5, 1e-3),
    ("efficientnet_lite1", 240, 127 / 255, 1e-3),
    ("align_efficientnet_b7", 289, 0.5, 1e-3),
  ],
)
def test_config_is_the_published_one(name, size, mean, epsilon):
  config = KINDS[name].make_config(published_shapes(name))
  assert config.data.image_size == (size, size)
  assert config.model.image_mean[0] == mean
  assert config.model.norm_epsilon == epsilon
  assert config.model.dtype == "float32"


def test_every_kind_has_a_backbone_and_a_size_of_its_own():
  sizes = {
    name.removeprefix("timm_efficientnet_"): kind.make_config(
      {}
    ).data.image_size
    for name, kind in KINDS.items()
    if name.startswith("timm_efficientnet_") and not name.endswith("_ap")
  }
  assert {k: v[0] for k, v in sizes.items()} == {
    "b0": 224,
    "b1": 240,
    "b2": 260,
    "b3": 300,
    "b4": 380,
    "b5": 456,
    "b6": 528,
    "b7": 600,
    "b8": 672,
    "l2": 800,
    "lite0": 224,
    "lite1": 240,
    "lite2": 260,
    "lite3": 300,
    "lite4": 380,
  }
  for kind in KINDS.values():
    assert kind.make_config({}).model.backbone in BACKBONES


def test_classes_follow_the_classifier():
  kind = KINDS["torchvision_resnet18"]
  weights = published_shapes("torchvision_resnet18")
  classes = kind.make_config(weights).tasks.classification.classes
  assert len(classes) == len(set(classes)) == 1000
  assert (classes[0], classes[207]) == ("tench", "golden retriever")

  weights |= {"fc.weight": np.zeros((3, 512)), "fc.bias": np.zeros(3)}
  classes = kind.make_config(weights).tasks.classification.classes
  assert classes == ("class_0", "class_1", "class_2")
  variables, _ = converted(kind, weights)
  assert variables["params"]["head_classification"]["logits"][
    "kernel"
  ].shape == (512, 3)

  del weights["fc.weight"], weights["fc.bias"]
  assert not kind.make_config(weights).tasks
  variables, _ = converted(kind, weights)
  assert set(variables["params"]) == {"backbone"}


def test_the_text_tower_of_align_is_unused():
  weights = published_shapes("align_efficientnet_b7")
  text = {
    "temperature": np.ones(()),
    "text_model.embeddings.LayerNorm.bias": np.zeros(768),
    "text_projection.weight": np.zeros((640, 768)),
  }
  _, unused = converted(KINDS["align_efficientnet_b7"], weights | text)
  assert set(text) == {n for n in unused if "num_batches" not in n}


def test_weights_of_another_depth_are_refused():
  with pytest.raises(
    conversion.ConversionError, match=r"missing: layer1\.2\.bn1"
  ):
    converted(
      KINDS["torchvision_resnet34"], published_shapes("torchvision_resnet18")
    )


def test_resnext_has_the_published_number_of_parameters():
  weights = published_shapes("torchvision_resnext101_32x8d")
  config = KINDS["torchvision_resnext101_32x8d"].make_config(weights)
  _, expected = expected_tree(config)
  sizes = (x.size for x in jax.tree.leaves(expected["params"]))
  assert sum(sizes) == 88_791_336
