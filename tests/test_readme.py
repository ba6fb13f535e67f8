"""The README's example of a task is real: it trains, predicts and labels."""

import argparse
import pathlib
import re
import shlex

import numpy as np
import pytest

from must_jax import config as config_lib
from must_jax import importers, main, tasks
from must_jax.config import base_config, dataset, task

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture
def own_task():
  code = re.search(
    r"<!-- test: own task -->\n```python\n(.*?)```",
    README.read_text(),
    re.DOTALL,
  ).group(1)
  # exec'd dataclasses look their module up.
  exec(compile(code, "README.md", "exec"), {"__name__": __name__})
  yield
  del tasks.TASKS["brightness"]


def test_own_task_trains_and_predicts(own_task, tmp_path):
  import io

  from PIL import Image

  import must_jax
  from must_jax.storage.set_writer import write_image_set
  from must_jax.train import loop

  def examples():
    rng = np.random.default_rng(0)
    for i in range(8):
      image = rng.integers(0, 255, (64, 64, 3), np.uint8)
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "PNG")
      yield {
        "key": f"image-{i}",
        "image": buffer.getvalue(),
        "height": 64,
        "width": 64,
        "labels": {"brightness": {"values": image.mean(-1) / 255}},
      }

  fields = {"brightness": {"kind": "ValueMap"}}
  write_image_set(tmp_path / "set", "gray", "train", examples(), fields)
  config = base_config()
  config.datasets.gray = dataset(str(tmp_path / "set"), "train")
  config.train_on = config.evaluate_on = ("gray",)
  config.tasks.light = task("brightness", labels={"gray": "supervised"})
  config = config_lib.smoke(config)
  config.train.steps = 3
  result = loop.train(config, tmp_path / "run")
  assert result["gray/light/rmse"] < 2
  model = must_jax.load(str(tmp_path / "run"))
  images = np.zeros((2, 64, 64, 3), np.uint8)
  assert model.predictor()(images)["light"]["values"].shape == (2, 16, 16)


@pytest.mark.parametrize(
  "page",
  ["README.md"]
  + [f"docs/{n}.md" for n in ("your-own-data", "datasets", "your-own-teacher")],
)
def test_configs_of_commands_load(page, monkeypatch):
  monkeypatch.chdir(README.parent)
  text = (README.parent / page).read_text()
  text = text.replace("$kind", "depth").replace("$init", "runs/student")
  found = re.findall(r"(?:--config=|`)(configs/\w+\.py(?::[\w=,./:+]+)?)", text)
  own = ("CONFIG", "my_student.py")
  verbs = re.findall(r"must-jax (train|label|evaluate) (\w[\w=,./:+-]*)", text)
  verbs = [(verb, config) for verb, config in verbs if config not in own]
  assert len(found) + len(verbs) > 2
  for verb, config in [*verbs, *((None, config) for config in found)]:
    loaded = config_lib.load(config)
    config_lib.validate(loaded)
    assert verb is None or loaded.stage in main._TAKES[verb]


def test_config_of_several_datasets_is_valid():
  page = README.parent / "docs" / "your-own-data.md"
  code = re.search(
    r"<!-- test: several datasets -->\n```python\n(.*?)```",
    page.read_text(),
    re.DOTALL,
  ).group(1)
  names = {}
  exec(compile(code, str(page), "exec"), names)
  config_lib.validate(names["get_config"]())


@pytest.mark.parametrize(
  "page",
  ["README.md"]
  + [f"docs/{n}.md" for n in ("your-own-data", "datasets", "photographs")],
)
def test_import_commands_are_understood(page):
  parser = argparse.ArgumentParser()
  importers.add_arguments(parser.add_subparsers(dest="kind", required=True))
  text = (README.parent / page).read_text()
  blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  commands = [
    shlex.split(line, comments=True)
    for line in map(str.strip, lines)
    if line.startswith("must-jax import ") and "NAME[" not in line
  ]
  assert commands
  for words in commands:
    # A split may be a variable of the shell.
    named = {"$split": "train"}
    names = [named.get(word, word) for word in words[2:]]
    if names[0] in importers.datasets.DATASETS:
      splits = importers.datasets.DATASETS[names[0]].splits
      names = [next(iter(splits)) if w == "train" else w for w in names]
    parser.parse_args(names)
