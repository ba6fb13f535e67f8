"""ONNX: what ONNX Runtime computes is what JAX does."""

import functools
import http.server
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from PIL import Image

from must_jax.cli import main
from must_jax.export import formats
from must_jax.export.formats import onnx
from must_jax.tasks.depth import Depth

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
INSTALL = f"ONNX is not installed: {onnx.INSTALL}"


@pytest.fixture
def onnxruntime():
  pytest.importorskip("jax2onnx", reason=INSTALL)
  return pytest.importorskip("onnxruntime", reason=INSTALL)


@pytest.fixture
def open_session(onnxruntime):
  """Opens a model: a path, or bytes."""
  return functools.partial(
    onnxruntime.InferenceSession, providers=["CPUExecutionProvider"]
  )


@pytest.fixture
def run(open_session):
  """Converts a function and runs it in ONNX Runtime on arrays by name."""

  def run(function, inputs):
    model = onnx.convert(
      function,
      {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()},
    )
    session = open_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))

  return run


@pytest.fixture
def exported(one_of_each, onnxruntime, make_checkpoint, tmp_path):
  """An export of all tasks, which the command has checked."""
  out = tmp_path / "out"
  command = ["export", str(make_checkpoint(one_of_each)), "--format", "onnx"]
  assert main([*command, "--out", str(out)]) == 0
  return out


@pytest.fixture
def photo(tmp_path):
  """One that fits the models' inputs as it is."""
  path = tmp_path / "photo.png"
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


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
  one_of_each, onnxruntime, make_checkpoint, tmp_path, capsys, monkeypatch
):
  primitive = Primitive("strange")  # to every other library
  primitive.def_abstract_eval(lambda x: x)
  predict = Depth.predict
  monkeypatch.setattr(
    Depth,
    "predict",
    lambda *args: {k: primitive.bind(x) for k, x in predict(*args).items()},
  )
  checkpoint = make_checkpoint(
    {k: one_of_each[k] for k in ("kind", "distance")}
  )
  command = ["export", str(checkpoint), "--format", "onnx"]
  assert main([*command, "--out", str(tmp_path / "out")]) == 2
  assert re.search("onnx .*'distance'.*'strange'", capsys.readouterr().err)
  assert not (tmp_path / "out").exists()


def test_all_tasks(one_of_each, exported, open_session, photo):
  # The command compared them, in a process that has no must_jax.
  checked = json.loads((exported / "check.json").read_text())
  assert checked["passed"]
  assert set(checked["differences"]) == set(one_of_each)
  assert checked["counts"]["things"]["valid"] > 10

  signature = json.loads((exported / "signature.json").read_text())
  session = open_session(exported / signature["artefact"])
  types = {"tensor(float)": "float32", "tensor(int32)": "int32"}
  types |= {"tensor(bool)": "bool", "tensor(uint8)": "uint8"}
  for described, given in (
    (signature["inputs"], session.get_inputs()),
    (signature["outputs"], session.get_outputs()),
  ):
    assert [(x["name"], x["shape"], x["dtype"]) for x in described] == [
      (x.name, x.shape, types[x.type]) for x in given
    ]

  program = subprocess.run(
    [sys.executable, EXAMPLES / "predict.py", exported, photo],
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    capture_output=True,
    text=True,
    check=True,
  )
  for name in one_of_each:
    assert f"  {name}: " in program.stdout


def test_page(exported, open_session, photo, tmp_path):
  """The browser's outputs are those of ONNX Runtime in Python."""
  browser = shutil.which("chromium") or shutil.which("google-chrome")
  if not browser:
    pytest.skip("needs chromium or google-chrome")
  modules = pathlib.Path(
    os.environ.get("NODE_MODULES", EXAMPLES / "web" / "node_modules")
  )
  if not (modules / "onnxruntime-web").is_dir():
    pytest.skip(
      "needs `npm install onnxruntime-web` in docs/examples/web, or where"
      " NODE_MODULES says"
    )
  site = tmp_path / "site"
  site.mkdir()
  shutil.copy(EXAMPLES / "web" / "index.html", site)
  shutil.copy(photo, site)
  (site / "model").symlink_to(exported)
  (site / "node_modules").symlink_to(modules.resolve())
  page = browse(browser, site, photo.name, tmp_path / "browser")
  assert "<figcaption>kind: " in page
  shown = re.findall(r"^.*?(\w+/\w+) ([\dx]+) mean (\S+?)(?:<|$)", page, re.M)
  session = open_session(exported / "model.onnx")
  inputs = {
    "images": np.asarray(Image.open(photo))[None],
    "content_size": np.float32([[64, 64]]),
  }
  names = [output.name for output in session.get_outputs()]
  assert [name for name, *_ in shown] == names
  for array, (name, shape, mean) in zip(
    session.run(None, inputs), shown, strict=True
  ):
    assert shape == "x".join(map(str, array.shape))
    expected = np.mean(array, dtype=np.float64)
    assert float(mean) == pytest.approx(expected, rel=1e-3, abs=1e-5), name


# Sends the page once it has outputs, or an error.
REPORT = """<script>
  const state = document.getElementById("state");
  new MutationObserver(() => {
    if (/ms$|Error/.test(state.textContent))
      fetch("/", {method: "POST", body: document.body.outerHTML});
  }).observe(state, {childList: true});
</script>"""


def browse(browser, site, photo, profile):
  """What the page shows of a photo, as HTML."""
  with (site / "index.html").open("a") as file:
    file.write(REPORT)
  pages = queue.Queue()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
      pages.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
      self.send_response(204)
      self.end_headers()

    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=site)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    process = subprocess.Popen(
      [browser, "--headless", "--no-sandbox", "--disable-gpu"]
      + [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
      + [f"http://127.0.0.1:{server.server_port}/?photo={photo}"],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      return pages.get(timeout=120)
    finally:
      process.terminate()
      process.wait()
      server.shutdown()


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(
    formats.importlib.util, "find_spec", lambda name: name != "jax2onnx"
  )
  with pytest.raises(ValueError, match=r"needs jax2onnx: .*--no-deps"):
    formats.get_format("onnx")
