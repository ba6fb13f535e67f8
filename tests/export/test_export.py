"""Exported models in their own runtimes, and what is refused."""

import http.server
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import types
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import must_jax
from must_jax.cli import main
from must_jax.config import base_config, task
from must_jax.export import check, signature
from must_jax.export.program import ANY, make_program
from must_jax.input import sources
from must_jax.input.batches import photo_batch
from must_jax.lab import world as world_lib

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
sys.path.append(str(EXAMPLES))
import photos  # noqa: E402

ARRAYS = {
  "kind/probs": [3],
  "things/boxes": [20, 4],
  "things/classes": [20],
  "things/scores": [20],
  "things/valid": [20],
  "stuff/classes": [64, 64],
  "stuff/confidence": [64, 64],
  "distance/values": [64, 64],
  "faces/vectors": [64, 64, 3],
}


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def run(*args):
  return main(["export", *map(str, args)])


@pytest.fixture
def model(one_of_each, make_checkpoint):
  return make_checkpoint(one_of_each)


@pytest.fixture
def photo(tmp_path):
  path = tmp_path / "photo.png"
  Image.fromarray(noise(50, 90, 3, seed=1)).save(path)
  return path


@pytest.mark.parametrize(
  ("form", "batch"), [("stablehlo", "any"), ("savedmodel", "any")]
)
def test_runtimes_agree_with_the_checkpoint(
  model, tmp_path, photo, form, batch
):
  out = tmp_path / "out"
  assert (
    run(
      model, "--format", form, "--out", out, "--batch", batch, "--photos", photo
    )
    == 0
  )
  result = json.loads((out / "check.json").read_text())
  assert result["passed"] and not result["exceeded"]
  assert result["counts"]["things"]["valid"] > 20  # it compares something
  for values in result["differences"].values():
    assert max(values.values()) < 1e-3
  described = json.loads((out / "signature.json").read_text())
  assert [i["shape"] for i in described["inputs"]] == [
    [None, 64, 64, 3],
    [None, 2],
  ]
  assert {o["name"]: o["shape"][1:] for o in described["outputs"]} == ARRAYS
  assert all(o["meaning"] for o in described["outputs"])
  assert described["tasks"]["kind"]["classes"] == ["cat", "dog", "cow"]
  assert described["tasks"]["things"]["thresholds"]["max_detections"] == 20

  # The example predicts the photo as must_jax does.
  outputs = example_outputs(out, photo)
  (found,) = must_jax.load(model).predict([photo])
  np.testing.assert_allclose(
    outputs["kind/probs"], found["kind"]["probs"], atol=0.01
  )


def example_outputs(out, photo):
  """Outputs of `docs/examples/predict.py`'s model for a photo."""
  code = (
    "import json, pathlib, sys, numpy as np, photos, predict\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "spec = json.loads((folder / 'signature.json').read_text())\n"
    "model = predict.load(folder, spec)\n"
    "image, content, window = photos.prepare(\n"
    "  photos.read(sys.argv[2]), spec['preprocessing'])\n"
    "found = model(image[None], np.float32([content]))\n"
    "np.savez(sys.argv[3], **{k: v[0] for k, v in found.items()})\n"
    "assert 'must_jax' not in sys.modules\n"
  )
  target = out.parent / "found.npz"
  subprocess.run(
    [sys.executable, "-c", code, out, photo, target],
    env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
    check=True,
  )
  with np.load(target) as file:
    return dict(file)


def test_fewer_tasks_of_another_size_in_batches(model, tmp_path, photo, capsys):
  out = tmp_path / "out"
  args = ("--format", "stablehlo", "--out", out, "--photos", photo)
  assert run(
    model, *args, "--tasks", "distance", "kind", "--image-size", 96, 64,
    "--batch", 2,
  ) == 0  # fmt: skip
  described = json.loads((out / "signature.json").read_text())
  assert {o["name"]: o["shape"] for o in described["outputs"]} == {
    "distance/values": [2, 96, 64],
    "kind/probs": [2, 3],
  }
  program = subprocess.run(
    [sys.executable, EXAMPLES / "predict.py", out, photo],
    capture_output=True,
    text=True,
  )
  assert program.returncode == 0, program.stderr
  assert "  kind: c" in program.stdout or "  kind: d" in program.stdout
  assert "  distance: distance/values from" in program.stdout
  assert "1 photos" in capsys.readouterr().out


def test_other_weights_do_not_pass(
  one_of_each, make_checkpoint, tmp_path, monkeypatch, capsys
):
  from must_jax.export.formats import stablehlo

  model = make_checkpoint({"distance": one_of_each["distance"]})
  write = stablehlo.write

  def write_others(program, directory):
    layer = program.variables["params"]["head_distance"]["map"]
    layer["bias"] = layer["bias"] + 1.0
    write(program, directory)
    layer["bias"] = layer["bias"] - 1.0

  monkeypatch.setattr(stablehlo, "write", write_others)
  out = tmp_path / "out"
  assert run(model, "--format", "stablehlo", "--out", out) == 1
  captured = capsys.readouterr()
  assert "distance/values differ from the checkpoint" in captured.err
  assert "on noise alone" in captured.err
  result = json.loads((out / "check.json").read_text())
  assert result["exceeded"] == ["distance/values"]
  assert result["differences"]["distance"]["values"] == pytest.approx(
    1, rel=0.5
  )


def test_metrics_of_both_on_a_validation_set(make_checkpoint, tmp_path):
  world_lib.build(tmp_path, 64, {"src_cls": {"validation": 12}}, 1, workers=1)
  index = json.loads((tmp_path / "src_cls" / "index.json").read_text())
  classes = tuple(index["fields"]["label"]["classes"])
  model = make_checkpoint(
    {"kind": task("classification", labels={}, classes=classes)}
  )
  out = tmp_path / "out"
  data = tmp_path / "src_cls"
  assert run(model, "--format", "stablehlo", "--out", out, "--data", data) == 0
  metrics = json.loads((out / "check.json").read_text())["metrics"]
  assert metrics["exported"] == metrics["checkpoint"]
  assert 0 <= metrics["exported"]["kind/top1"] <= 1


def test_data_that_measure_nothing_are_told_before_it_is_written(
  one_of_each, make_checkpoint, tmp_path, monkeypatch, capsys
):
  from must_jax.export.formats import stablehlo

  world_lib.build(tmp_path, 64, {"src_cls": {"validation": 2}}, 1, workers=1)
  model = make_checkpoint({"distance": one_of_each["distance"]})
  monkeypatch.setattr(stablehlo, "write", None)  # is not reached
  args = ("--format", "stablehlo", "--out", tmp_path / "out")
  assert run(model, *args, "--data", tmp_path / "src_cls") == 2
  assert "has the labels label; expected those of" in capsys.readouterr().err


def test_it_is_told_where_nothing_was_compared(
  make_checkpoint, tmp_path, capsys
):
  things = task(
    "detection", labels={}, classes=("cat", "dog"), score_threshold=1.0
  )
  model = make_checkpoint({"things": things})
  out = tmp_path / "out"
  assert run(model, "--format", "stablehlo", "--out", out) == 0
  assert "things/valid is nowhere true" in capsys.readouterr().err
  result = json.loads((out / "check.json").read_text())
  assert result["nothing_to_compare"] == ["things/valid"]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--format", "stablehl"], r"expected one of .*Did you mean 'stablehlo'\?"),
    (["--format", "stablehlo", "--tasks", "cats"], "has the tasks distance"),
    (["--format", "stablehlo", "--image-size", "70", "64"], "such as 64 64"),
    (["--format", "stablehlo", "--batch", "0"], "expected 1 or more, or 'any'"),
    (["--format", "stablehlo", "--batch", "x"], "expected 1 or more, or 'any'"),
    (["--format", "stablehlo", "--photos", "none.jpg"], "there is no file"),
    (["--format", "stablehlo", "--data", "none"], "Image set none is no dir"),
  ],
)
def test_what_is_refused(
  one_of_each, make_checkpoint, tmp_path, capsys, args, message
):
  model = make_checkpoint(one_of_each)
  out = tmp_path / "out"
  assert run(model, "--out", out, *args) == 2
  error = capsys.readouterr().err
  assert re.search(message, error), error
  assert not out.exists()


def test_a_folder_that_exists_is_kept(tmp_path, capsys):
  out = tmp_path / "out"
  out.mkdir()
  (out / "mine").write_text("mine")
  args = ("nowhere", "--format", "stablehlo", "--out", out)
  assert run(*args) == 2
  assert "is there already;" in capsys.readouterr().err
  assert [p.name for p in out.iterdir()] == ["mine"]
  (out / "model.stablehlo").write_text("half")
  assert run(*args) == 2
  assert "(of an export that was broken off);" in capsys.readouterr().err


def test_a_missing_runtime_is_named(monkeypatch, tmp_path, capsys):
  from must_jax.export.formats import savedmodel

  monkeypatch.setattr(savedmodel, "REQUIRES", ("no_such_runtime",))
  assert run("x", "--format", "savedmodel", "--out", tmp_path / "out") == 2
  assert "needs no_such_runtime" in capsys.readouterr().err


@pytest.mark.parametrize("antialias", [0.0, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize(
  "resize",
  [
    "pad",
    "stretch",
    "center_crop",
    "pillow_bilinear_crop",
    "pillow_bicubic_crop",
    "bilinear_pad",
    "bicubic_stretch",
  ],
)
def test_signatures_tell_all_of_the_preprocessing(resize, size, antialias):
  """The example program, which knows no more, makes the pipeline's pixels."""
  config = base_config()
  config.data.update({"eval_resize": resize, "image_size": size})
  config.data.antialias_below = antialias
  program = types.SimpleNamespace(
    config=config, image_size=size, loaded=types.SimpleNamespace(config=config)
  )
  spec = json.loads(json.dumps(signature.preprocessing(program)))
  for photo_size in ((50, 70), (64, 64), (333, 200), (1000, 611), (37, 500)):
    small = Image.fromarray(noise(9, 9, 3))
    smooth = np.asarray(
      small.resize(photo_size[::-1], Image.Resampling.BICUBIC)
    )
    photo = np.clip(smooth + noise(*photo_size, 3) / 8, 0, 255).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(photo).save(png, "PNG")
    batch = photo_batch(
      [(png.getvalue(), photo_size)], size, sources.eval_geometry(config)
    )
    image, content, window = photos.prepare(photo, spec)
    assert batch["content_size"][0].tolist() == list(content)
    np.testing.assert_allclose(
      batch["placement"]["window"][0], window, atol=1e-3
    )
    ours = check.as_bytes(batch["image"])[0].astype(int)
    assert np.abs(ours - image).max() <= 1  # rounding


@pytest.mark.parametrize(
  ("resize", "size", "expected"),
  [
    ("midas_upper_bound", (64, 64), (64, 64)),
    ("midas_minimal", (64, 64), (64, 64)),
    ("shortest_side", (64, 107), (64, 128)),
    ("pad", (64, 64), (64, 64)),
  ],
)
def test_many_sizes_become_one(
  one_of_each, make_checkpoint, resize, size, expected
):
  path = make_checkpoint(
    {"distance": one_of_each["distance"]}, image_size=size, eval_resize=resize
  )
  program = make_program(must_jax.load(path), batch=ANY)
  assert program.image_size == expected
  assert signature.describe(program)["preprocessing"].get("instead_of") == (
    None if resize == "pad" else resize
  )
  batch = check.noise(program)
  outputs = program(batch.images, batch.content_size)
  assert outputs["distance/values"].shape == (2, *expected)


class Serving(http.server.BaseHTTPRequestHandler):
  """The predict method of TensorFlow Serving's REST interface."""

  models: ClassVar = {}

  def do_POST(self):
    name, _, method = self.path.removeprefix("/v1/models/").partition(":")
    assert method == "predict"
    request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    answer = json.dumps({"outputs": self.models[name](request)}).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  def log_message(self, *args):
    pass


def test_a_client_of_tensorflow_serving(
  one_of_each, make_checkpoint, tmp_path, photo
):
  import tensorflow as tf

  model = make_checkpoint(
    {"kind": one_of_each["kind"], "faces": one_of_each["faces"]}
  )
  out = tmp_path / "out"
  assert run(
    model, "--format", "savedmodel", "--batch", "any", "--out", out
  ) == 0  # fmt: skip
  # Serving finds the newest version in the folder that it is given.
  loaded = tf.saved_model.load(str(out / "savedmodel" / "1"))

  def predict(request):
    call = loaded.signatures[request["signature_name"]]
    _, specs = call.structured_input_signature
    inputs = {
      name: tf.constant(value, specs[name].dtype)
      for name, value in request["inputs"].items()
    }
    return {k: v.numpy().tolist() for k, v in call(**inputs).items()}

  Serving.models = {"student": predict}
  server = http.server.HTTPServer(("127.0.0.1", 0), Serving)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    client = subprocess.run(
      [
        sys.executable,
        EXAMPLES / "serving_client.py",
        f"http://127.0.0.1:{server.server_port}/v1/models/student",
        out / "signature.json",
        photo,
      ],
      capture_output=True,
      text=True,
    )
  finally:
    server.shutdown()
    server.server_close()
  assert client.returncode == 0, client.stderr
  lines = client.stdout.splitlines()
  assert [line.split(":")[0] for line in lines] == [
    "faces",
    "kind",
    "kind",
    "kind",
  ]
