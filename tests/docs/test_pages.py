"""What pages tell to write is real: it trains, predicts and labels."""

import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from must_jax import main, tasks
from must_jax.storage.sets import read_manifest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
TASK = "docs/your-own-task.md"


@pytest.fixture
def own_task(code_of, tmp_path, monkeypatch):
  """The folder of someone who has saved the files of the page."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  for file, name in {
    "brightness.py": "own task",
    "light.py": "own task config",
    "must_jax_light.py": "own task program",
  }.items():
    (tmp_path / file).write_text(code_of(TASK, name))
  (tmp_path / "photos").mkdir()
  rng = np.random.default_rng(0)
  for i in range(8):
    pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(f"photos/{i}.jpg")
  yield
  sys.modules.pop("brightness", None)
  tasks.TASKS.pop("brightness", None)


def test_own_task_trains_labels_and_predicts(own_task, code_of, monkeypatch):
  # The session's own is warm.
  monkeypatch.setattr(main, "keep_compiled_programs", lambda *_: None)
  exec(code_of(TASK, "own labels"), {})

  def run(*words):
    monkeypatch.setattr(sys, "argv", ["must_jax_light.py", *words])
    with pytest.raises(SystemExit) as end:
      runpy.run_path("must_jax_light.py", run_name="__main__")
    assert not end.value.code

  run("data", "verify", "data/light")
  run(*["train", "light.py:smoke", "--workdir=runs/light"])
  run(
    *["label", "label:teacher=runs/light,images=data/light"],
    *["--workdir=labels/light/brightness", "--config.label.batch_size=8"],
  )
  (sums,) = read_manifest("labels/light/brightness")["statistics"].values()
  assert sums["examples"] == 8
  run(*["predict", "runs/light", "photos/0.jpg", "--out", "seen"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_in_the_code_are_there(page):
  text = page.read_text()
  for path in re.findall(
    r"`((?:must_jax|configs|launch|tests)/[\w/.*]+)`", text
  ):
    assert [*ROOT.glob(path)], path
  for path, names in re.findall(r"`(must_jax/\S+)`: ((?:`\w+`(?:, )?)+)", text):
    code = (ROOT / path).read_text()
    for name in re.findall(r"\w+", names):
      assert re.search(rf"(def|class) {name}\b|^  {name}:", code, re.M), name


def test_the_bucket_of_the_page_takes_an_import(
  code_of, bucket_module, tmp_path, monkeypatch
):
  pytest.importorskip("gcsfs", reason="pip install -e '.[dev]'")
  try:
    bucket_module.find_emulator()
  except FileNotFoundError as error:
    pytest.skip(str(error))
  Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
  shell = tmp_path / "shell"
  commands = [
    f"import folder --unlabelled --images {tmp_path} --out $ROOT/data/pile"
    " --name pile --split train --workers 1",
    "data verify $ROOT/data/pile",
  ]
  run = f"{sys.executable} -m must_jax.cli"
  lines = [f"{run} {command} || exit" for command in commands]
  shell.write_text("\n".join(["#!/bin/sh", *lines, f"touch {tmp_path}/done"]))
  shell.chmod(0o755)
  monkeypatch.setenv("SHELL", str(shell))
  monkeypatch.syspath_prepend(ROOT)
  code = code_of("docs/buckets.md", "bucket on this machine")
  exec(code.replace("/tmp/bucket", str(tmp_path / "bucket")), {})
  assert (tmp_path / "done").exists()
