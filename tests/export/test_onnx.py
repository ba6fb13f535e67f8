"""ONNX: what ONNX Runtime computes is what JAX does."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from must_jax.cli import main
from must_jax.config import task
from must_jax.export import formats
from must_jax.export.formats import onnx
from must_jax.tasks.depth import Depth

INSTALL = f"ONNX is not installed: {onnx.INSTALL}"


@pytest.fixture
def run():
  """Converts a function and runs it in ONNX Runtime on arrays by name."""
  pytest.importorskip("jax2onnx", reason=INSTALL)
  onnxruntime = pytest.importorskip("onnxruntime", reason=INSTALL)

  def run(function, inputs):
    model = onnx.convert(
      function,
      {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()},
    )
    session = onnxruntime.InferenceSession(
      model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))

  return run


@pytest.mark.parametrize(
  ("window", "strides", "padding"),
  [
    ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))),
    ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))),
    ((1, 1, 1, 1), (1, 2, 2, 1), ((0, 0), (0, 0), (0, 0), (0, 0))),
    ((1, 2, 5, 1), (1, 3, 1, 1), ((0, 0), (1, 0), (0, 3), (0, 0))),
  ],
)
def test_pooling_by_slices_is_reduce_window(window, strides, padding):
  x = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)
  expected = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, window, strides, padding
  )
  ones = (1, 1, 1, 1)
  found = onnx._max_pool(x, window, strides, padding, ones, ones)
  np.testing.assert_array_equal(found, expected)


def test_names_types_and_pooling(run):
  import flax.linen as nn

  def function(images, content_size):
    x = images.astype(jnp.float32) / 255
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    return {
      "z/largest": x,
      "a/class": jnp.argmax(x, -1).astype(jnp.int32),
      "a/inside": (x < content_size[:, 0, None, None, None]),
    }

  rng = np.random.default_rng(0)
  inputs = {
    "images": rng.integers(0, 256, (2, 8, 10, 3), np.uint8),
    "content_size": np.float32([[0.5, 10], [0.9, 9]]),
  }
  found = run(function, inputs)
  expected = jax.device_get(function(**inputs))
  assert list(found) == sorted(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_suppression(run):
  """Its bitwise operations; the boxes have ties and overlaps of all degrees."""
  from must_jax.ops import nms

  def function(boxes, scores):
    keep, there = jax.vmap(
      lambda b, s: nms.nms(b, s, s > 0.1, 0.5, max_outputs=100)
    )(boxes, scores)
    return {"keep": keep, "there": there}

  rng = np.random.default_rng(0)
  corner = rng.integers(0, 40, (2, 100, 2))
  boxes = np.concatenate([corner, corner + rng.integers(0, 30, (2, 100, 2))], 2)
  inputs = {
    "boxes": boxes.astype(np.float32),
    "scores": rng.integers(0, 20, (2, 100)).astype(np.float32) / 20,
  }
  found, expected = run(function, inputs), function(**inputs)
  assert 20 < expected["there"].sum() < 180
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)


def test_jax_is_as_before(run):
  import flax.linen as nn

  modules = (jax, jnp, jax.lax, jax.nn, jax.image, nn)
  before = [dict(vars(module)) for module in modules]
  run(lambda x: {"y": x + 1}, {"x": np.zeros(2, np.float32)})
  for module, names in zip(modules, before, strict=True):
    changed = [k for k, v in names.items() if getattr(module, k) is not v]
    assert not changed, module


@pytest.fixture
def strange():
  """A function with a primitive that no other library knows."""
  primitive = Primitive("strange")
  primitive.def_abstract_eval(lambda x: x)
  return primitive.bind


def test_what_cannot_be_converted_is_named(
  run, strange, make_checkpoint, tmp_path, capsys, monkeypatch
):
  checkpoint = make_checkpoint(
    {"kind": task("classification", labels={}, classes=("cat", "dog"))}
    | {"distance": task("depth", labels={})}
  )
  predict = Depth.predict
  monkeypatch.setattr(
    Depth,
    "predict",
    lambda *args: {k: strange(x) for k, x in predict(*args).items()},
  )
  command = ["export", str(checkpoint), "--format", "onnx"]
  assert main([*command, "--out", str(tmp_path / "out")]) == 2
  assert re.search("onnx .*'distance'.*'strange'", capsys.readouterr().err)
  assert not (tmp_path / "out").exists()


def test_all_tasks(run, make_checkpoint, tmp_path, capsys):
  """The command compares, in a process that has no must_jax."""
  classes = ("cat", "dog", "bird")
  kinds = ("classification", "detection", "segmentation", "depth", "normals")
  checkpoint = make_checkpoint(
    {
      f"my_{kind}": task(
        kind, labels={}, classes=() if kind in ("depth", "normals") else classes
      )
      for kind in kinds
    }
  )
  out = tmp_path / "out"
  command = ["export", str(checkpoint), "--format", "onnx", "--batch", "2"]
  assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
  checked = json.loads((out / "check.json").read_text())
  assert set(checked["differences"]) == {f"my_{kind}" for kind in kinds}
  assert checked["counts"]["my_detection"]["valid"] > 0
  signature = json.loads((out / "signature.json").read_text())
  onnxruntime = pytest.importorskip("onnxruntime")
  session = onnxruntime.InferenceSession(
    out / signature["artefact"], providers=["CPUExecutionProvider"]
  )
  types = {"tensor(float)": "float32", "tensor(int32)": "int32"}
  types |= {"tensor(bool)": "bool", "tensor(uint8)": "uint8"}
  for described, given in (
    (signature["inputs"], session.get_inputs()),
    (signature["outputs"], session.get_outputs()),
  ):
    assert [(x["name"], x["shape"], x["dtype"]) for x in described] == [
      (x.name, x.shape, types[x.type]) for x in given
    ]


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(
    formats.importlib.util, "find_spec", lambda name: name != "jax2onnx"
  )
  with pytest.raises(ValueError, match=r"needs jax2onnx: .*--no-deps"):
    formats.get_format("onnx")
