import dataclasses
import json
import pathlib
import pickle
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import must_jax
from must_jax import convert
from must_jax.cli import main
from must_jax.config import base_config, task
from must_jax.convert import (
  conversion,
  convert_command,
  torchvision,
  weight_files,
)
from must_jax.convert.conversion import ConversionError
from must_jax.train import checkpoint

safetensors = pytest.importorskip("safetensors.numpy")


def tiny_config(weights):
  config = base_config()
  config.model.update({"backbone": "resnet18", "width": 8, "dtype": "float32"})
  config.data.update(
    {"image_size": (64, 64), "eval_resize": "pillow_bilinear_crop"}
  )
  config.tasks.classification = task(
    "classification", labels={}, classes=("cat", "dog", "bird")
  )
  return config


@pytest.fixture
def kind(monkeypatch):
  """A real kind, small."""
  kind = next(k for k in torchvision.KINDS if k.name == "torchvision_resnet18")
  kind = dataclasses.replace(kind, make_config=tiny_config)
  monkeypatch.setattr(convert_command, "get_kind", lambda name: kind)
  return kind


@pytest.fixture
def weights(kind):
  """By published name, as a file of this kind has them."""
  rng = np.random.default_rng(0)
  out = {}
  expected = convert_command._expected(tiny_config({}))
  for path, leaf in flatten_dict(expected).items():
    value = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    if value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
      value = value.T
    out[kind.find(path).name] = np.ascontiguousarray(value)
  return out | {"bn1.num_batches_tracked": np.zeros((), np.int64)}


@pytest.fixture
def file(tmp_path, weights):
  path = tmp_path / "tiny.safetensors"
  safetensors.save_file(weights, str(path))
  return path


def test_converts(tmp_path, file, weights, capsys):
  out = tmp_path / "checkpoint"
  status = main(
    ["convert", "torchvision_resnet18", str(file), "--out", str(out)]
  )
  assert status == 0
  shown = capsys.readouterr().out
  assert "backbone" in shown and "head_classification" in shown
  assert "unused on purpose: 1 tensors (bn1.num_batches_tracked)" in shown
  model = must_jax.load(str(out))
  assert model.tasks["classification"].classes == ("cat", "dog", "bird")
  np.testing.assert_array_equal(
    model.variables["params"]["backbone"]["conv1"]["kernel"],
    weights["conv1.weight"].transpose(2, 3, 1, 0),
  )
  np.testing.assert_array_equal(
    model.variables["params"]["head_classification"]["logits"]["kernel"],
    weights["fc.weight"].T,
  )
  origin = checkpoint.read_origin(out)
  assert origin["licence"] and origin["source"] and len(origin["sha256"]) == 64
  probs = model.predictor()(np.zeros((8, 64, 64, 3), np.uint8))
  assert probs["classification"]["probs"].shape == (8, 3)


def test_crop_of_another_recipe(tmp_path, file, capsys):
  command = ["convert", "torchvision_resnet18", str(file)]
  command += ["--out", str(tmp_path / "b"), "--crop-fraction"]
  assert main([*command, str(224 / 232)]) == 0
  assert must_jax.load(tmp_path / "b").config.data.crop_fraction == 224 / 232
  assert main([*command, "1.5"]) == 2
  assert "at most 1" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("kind", "size", "crop", "rule"),
  [
    # timm's default_cfg of tf_efficientnet_*, and of resnet*.
    ("timm_efficientnet_b0", 224, 0.875, "pillow_bicubic_crop"),
    ("timm_efficientnet_b3_ap", 300, 0.904, "pillow_bicubic_crop"),
    ("timm_efficientnet_b7", 600, 0.949, "pillow_bicubic_crop"),
    ("timm_resnet50", 224, 0.875, "pillow_bicubic_crop"),
    ("torchvision_resnet50", 224, 0.875, "pillow_bilinear_crop"),
  ],
)
def test_published_sizes_and_crops(kind, size, crop, rule):
  data = convert.kinds()[kind].make_config({}).data
  assert tuple(data.image_size) == (size, size)
  assert (data.crop_fraction, data.eval_resize) == (crop, rule)


def test_there_and_back_is_the_same_bits(tmp_path, file):
  first, second = tmp_path / "first", tmp_path / "second"
  exported = tmp_path / "exported.safetensors"
  convert_command.convert_file("torchvision_resnet18", file, first)
  assert main(["convert", "must_jax", str(first), "--out", str(exported)]) == 0
  assert main(["convert", "must_jax", str(exported), "--out", str(second)]) == 0
  before = checkpoint.load_variables(first)
  after = checkpoint.load_variables(second)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert checkpoint.read_origin(first) == checkpoint.read_origin(second)
  assert checkpoint.fingerprint(first) == checkpoint.fingerprint(second)
  assert (
    checkpoint.read_config(first).to_dict()
    == checkpoint.read_config(second).to_dict()
  )


def test_names_what_is_missing_extra_and_misshapen(tmp_path, weights):
  del weights["layer1.0.conv1.weight"]
  weights["layer9.weight"] = np.zeros(3, np.float32)
  weights["fc.bias"] = np.zeros(7, np.float32)
  path = tmp_path / "wrong.safetensors"
  safetensors.save_file(weights, str(path))
  out = tmp_path / "checkpoint"
  with pytest.raises(ConversionError) as error:
    convert_command.convert_file("torchvision_resnet18", path, out)
  text = str(error.value)
  assert "missing: layer1.0.conv1.weight" in text
  assert "extra: layer9.weight (3,)" in text
  assert "shape: fc.bias (7,)" in text and "(3,)" in text
  assert not out.exists()


def test_truncated_file(tmp_path, file):
  file.write_bytes(file.read_bytes()[:-1000])
  with pytest.raises(ConversionError, match="truncated"):
    convert_command.convert_file("torchvision_resnet18", file, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_does_not_write_over_a_checkpoint(tmp_path, file):
  out = tmp_path / "out"
  convert_command.convert_file("torchvision_resnet18", file, out)
  before = checkpoint.fingerprint(out)
  with pytest.raises(ValueError, match="holds a checkpoint already"):
    convert_command.convert_file("torchvision_resnet18", file, out)
  assert checkpoint.fingerprint(out) == before


def test_file_of_another_program(tmp_path, file):
  with pytest.raises(ConversionError, match="name the kind"):
    convert_command.from_safetensors(file, tmp_path / "out")


def test_own_file_that_does_not_fit_its_config(tmp_path, file):
  convert_command.convert_file("torchvision_resnet18", file, tmp_path / "first")
  exported = tmp_path / "exported.safetensors"
  convert_command.to_safetensors(tmp_path / "first", exported)
  tensors = safetensors.load_file(str(exported))
  del tensors["params/backbone/conv1/kernel"]
  with safetensors.safe_open(str(exported), framework="np") as opened:
    metadata = opened.metadata()
  safetensors.save_file(tensors, str(exported), metadata=metadata)
  with pytest.raises(ConversionError, match="conv1/kernel"):
    convert_command.from_safetensors(exported, tmp_path / "out")


def test_unknown_kind_ending_and_path(tmp_path, capsys):
  for arguments, message in (
    (["resnet", "x.pth", "--out", "o"], "expected one of must_jax"),
    (["torchvision_resnet50", "/none.pth", "--out", "o"], "no file of weights"),
    (["torchvision_resnet50"], "Expected KIND WEIGHTS --out"),
  ):
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
  text = tmp_path / "weights.txt"
  text.write_text("hello")
  assert main(["convert", "torchvision_resnet50", str(text), "--out", "o"]) == 2
  assert "expected .safetensors, .pt or .pth" in capsys.readouterr().err


def test_list_shows_source_and_licence(capsys):
  assert main(["convert", "--list"]) == 0
  shown = capsys.readouterr().out
  for name, kind in convert.kinds().items():
    assert name in shown and kind.source in shown and kind.licence in shown
  assert "384 x 384 (midas_upper_bound), mean 0.485/0.456/0.406" in shown
  assert "800 x 1333 (shortest_side)" in shown


class Evil:
  """Runs code when it is unpickled."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path("evil-was-here"),)


def test_pickled_code_is_refused(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  monkeypatch.chdir(tmp_path)
  for name, save in (
    ("zip.pth", lambda value, path: torch.save(value, path)),
    ("plain.pth", lambda value, path: path.write_bytes(pickle.dumps(value))),
  ):
    path = tmp_path / name
    save({"conv1.weight": Evil()}, path)
    with pytest.raises(ConversionError, match="never run"):
      convert_command.convert_file(
        "torchvision_resnet50", path, tmp_path / "out"
      )
    assert not (tmp_path / "evil-was-here").exists()


def test_torch_files(tmp_path, weights, kind):
  torch = pytest.importorskip("torch")
  state = {name: torch.tensor(value) for name, value in weights.items()}
  paths = []
  for name, value in (
    ("bare.pt", state),
    ("nested.pth", {"model": state, "optimizer": {"lr": 1.0}}),
    ("parallel.pth", {f"module.{k}": v for k, v in state.items()}),
  ):
    torch.save(value, tmp_path / name)
    paths.append(tmp_path / name)
  prints = set()
  for path in paths:
    out = tmp_path / path.stem
    convert_command.convert_file(kind.name, path, out)
    prints.add(checkpoint.fingerprint(out))
  assert len(prints) == 1
  truncated = tmp_path / "truncated.pt"
  truncated.write_bytes(paths[0].read_bytes()[:5000])
  with pytest.raises(ConversionError, match="truncated"):
    convert_command.convert_file(kind.name, truncated, tmp_path / "out")
  torch.save([1, 2], tmp_path / "list.pt")
  with pytest.raises(ConversionError, match="no state dict"):
    convert_command.convert_file(
      kind.name, tmp_path / "list.pt", tmp_path / "out"
    )


def test_metadata_is_json(tmp_path, file):
  convert_command.convert_file("torchvision_resnet18", file, tmp_path / "first")
  exported = tmp_path / "exported.safetensors"
  convert_command.to_safetensors(tmp_path / "first", exported)
  with safetensors.safe_open(str(exported), framework="np") as opened:
    metadata = {k: json.loads(v) for k, v in opened.metadata().items()}
  assert metadata["config"]["model"]["width"] == 8
  assert metadata["origin"]["kind"] == "torchvision_resnet18"


# Weights as training programs leave them.


class FakeTensor:
  """As much of a tensor of PyTorch as is read of it."""

  def __init__(self, value):
    self._value = value

  def is_floating_point(self):
    return self._value.dtype.kind == "f"

  def float(self):
    return FakeTensor(self._value.astype(np.float32))

  def numpy(self):
    return self._value


@pytest.fixture
def load_as(monkeypatch, tmp_path):
  """Has a file hold some value, as `torch.load` gives it."""
  original = weight_files._import

  def install(value):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"as loaded")
    torch = types.SimpleNamespace(
      Tensor=FakeTensor, load=lambda *_, **__: value
    )
    monkeypatch.setattr(
      weight_files,
      "_import",
      lambda name: torch if name == "torch" else original(name),
    )
    return path

  return install


def as_torch(weights):
  return {name: FakeTensor(value) for name, value in weights.items()}


def converted_kernel(path, out):
  report = convert_command.convert_file("torchvision_resnet18", path, out)
  variables = checkpoint.load_variables(out)
  return report, variables["params"]["backbone"]["conv1"]["kernel"]


@pytest.mark.parametrize(
  "wrapper",
  ["", "model", "state_dict", "model_state", "model_state_dict", "net"]
  + ["state_dict_ema", "model_ema", "model.state_dict", "net.model_state_dict"],
)
def test_wrapped_weights_are_found_and_told(
  load_as, weights, tmp_path, wrapper
):
  value = as_torch(weights)
  for key in reversed(wrapper.split(".") if wrapper else []):
    value = {key: value, "epoch": 7, "optimizer": {"state": {}}}
  report, kernel = converted_kernel(load_as(value), tmp_path / "out")
  expected = weights["conv1.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(kernel, expected)
  assert (f"weights: {wrapper}\n" in report) == bool(wrapper)


@pytest.mark.parametrize(
  ("averaged", "plain"),
  [("state_dict_ema", "state_dict"), ("model_ema", "model")],
)
def test_averaged_weights_go_before_others(
  load_as, weights, tmp_path, averaged, plain
):
  others = {k: np.zeros_like(v) for k, v in weights.items()}
  ema = {f"module.{name}": value for name, value in weights.items()}
  ema |= {"n_averaged": np.array(5)}
  value = {plain: as_torch(others), averaged: as_torch(ema), "lr": 0.1}
  report, kernel = converted_kernel(load_as(value), tmp_path / "out")
  expected = weights["conv1.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(kernel, expected)
  assert f"weights: {averaged} (not {plain}, which is there, too)" in report
  assert "names: 'module.' removed" in report
  value = {plain: as_torch(weights), averaged: None}  # a run without averages
  report, kernel = converted_kernel(load_as(value), tmp_path / "plain")
  np.testing.assert_array_equal(kernel, expected)


def test_a_file_without_weights_says_what_it_has(load_as, tmp_path):
  path = load_as({"epoch": 3, "encoder": {}, "names": ["a"]})
  with pytest.raises(ConversionError) as error:
    convert_command.convert_file("torchvision_resnet18", path, tmp_path / "o")
  assert "epoch (int), encoder (dict), names (list)" in str(error.value)
  assert "state_dict_ema, " in str(error.value)


@pytest.mark.parametrize(
  "prefix",
  ["module.", "_orig_mod.", "model.", "vision_model.", "module.model."]
  + ["_orig_mod.module.", "student.backbone."],
)
def test_prefixes_are_found_and_told(tmp_path, weights, prefix):
  path = tmp_path / "wrapped.safetensors"
  safetensors.save_file(
    {prefix + name: value for name, value in weights.items()}, str(path)
  )
  report, kernel = converted_kernel(path, tmp_path / "out")
  expected = weights["conv1.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(kernel, expected)
  assert f"names: '{prefix}' removed, {len(weights) - 1} tensors" in report


def test_names_that_lack_their_first_part_get_it():
  kind = convert.get_kind("align_efficientnet_b7")
  expected = [
    kind.find(path).name
    for path in flatten_dict(convert_command._expected(kind.make_config({})))
  ]
  for removed in ("", "module."):
    given = {
      removed + name.removeprefix("vision_model."): np.zeros(1)
      for name in expected
    }
    named, done = conversion.match_names(given, expected)
    assert set(named) == set(expected)
    assert "'vision_model.' added" in done
  named, done = conversion.match_names(dict.fromkeys(expected), expected)
  assert (set(named), done) == (set(expected), "")


def test_nothing_is_dropped_by_a_prefix(tmp_path, weights):
  two = {f"module.{name}": value for name, value in weights.items()}
  two |= {f"teacher.{name}": value for name, value in weights.items()}
  path = tmp_path / "two.safetensors"
  safetensors.save_file(two, str(path))
  with pytest.raises(ConversionError, match=r"extra: .*conv1.weight"):
    convert_command.convert_file("torchvision_resnet18", path, tmp_path / "o")
  some = {f"module.{name}": value for name, value in weights.items()}
  with pytest.raises(ConversionError, match=r"'module\.' before them"):
    conversion.match_names(some | {"fc.bias": 0}, list(weights))


def test_names_of_another_kind_stay(weights):
  other = {f"encoder.block{i}.weight": np.zeros(1) for i in range(9)}
  assert conversion.match_names(other, list(weights)) == (other, "")
  assert conversion.match_names({}, list(weights)) == ({}, "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, weights, value):
  weights["layer1.0.conv1.weight"].reshape(-1)[:3] = value
  path = tmp_path / "broken.safetensors"
  safetensors.save_file(weights, str(path))
  with pytest.raises(ConversionError) as error:
    convert_command.convert_file("torchvision_resnet18", path, tmp_path / "o")
  assert "layer1.0.conv1.weight, 3 of 576" in str(error.value)
  assert "not finite" in str(error.value)
  assert not (tmp_path / "o").exists()


def test_own_weights_that_are_not_finite_are_refused(tmp_path, file):
  convert_command.convert_file("torchvision_resnet18", file, tmp_path / "first")
  exported = tmp_path / "exported.safetensors"
  convert_command.to_safetensors(tmp_path / "first", exported)
  tensors = safetensors.load_file(str(exported))
  tensors["params/backbone/conv1/kernel"].reshape(-1)[0] = np.nan
  with safetensors.safe_open(str(exported), framework="np") as opened:
    metadata = opened.metadata()
  safetensors.save_file(tensors, str(exported), metadata=metadata)
  with pytest.raises(ConversionError, match="conv1/kernel, 1 of"):
    convert_command.from_safetensors(exported, tmp_path / "out")
