"""`must-jax`: the verbs, which run a config, and the shipped configs."""

import inspect
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from must_jax import cli, main
from must_jax import config as config_lib
from must_jax.preflight import configs_command

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def runs(monkeypatch):
  """What would be run: pairs of a config and a workdir."""
  found = []

  def run_stage(config, workdir, run):
    config_lib.validate(config)
    found.append((config, workdir))

  monkeypatch.setattr(main, "run_stage", run_stage)
  monkeypatch.setattr(main, "keep_compiled_programs", lambda *_: None)
  return found


def call(*words):
  """Calls `must-jax`; returns its exit status, or the error."""
  try:
    return cli.main([*map(str, words)])
  except SystemExit as end:
    return end.code or 0


# Verbs


@pytest.mark.parametrize(
  ("words", "stage"),
  [
    (["train", "student:smoke", "--workdir=w"], "train"),
    (["evaluate", "student:smoke", "--workdir", "w"], "evaluate"),
    (["label", "label:kind=depth", "--workdir=w"], "label"),
    (["label", "--config=label_midas", "--workdir=w"], "label"),  # before
    (["label", "--workdir=w", "label"], "label"),
    (["train", "--workdir", "w", "--verbosity=0", "student:smoke"], "train"),
    (["evaluate", "student", "--workdir=w", "--config.stage=evaluate"],)
    + ("evaluate",),
  ],
)
def test_a_verb_is_the_stage(runs, words, stage):
  assert call(*words) == 0
  ((config, workdir),) = runs
  assert (config.stage, workdir) == (stage, "w")


def test_options_and_flags_are_those_of_a_run(runs, tmp_path):
  flagfile = tmp_path / "flags"
  flagfile.write_text("--config.train.steps=77\n--workdir=w\n")
  options = ["--config.optimizer.lr", "0.5", "--config.data.flip=false"]
  flags = ["--heartbeat-timeout=7", "--initialization_timeout", "9"]
  words = ["student:smoke", *options, *flags, f"--flagfile={flagfile}"]
  assert call("train", *words) == 0
  ((config, _),) = runs
  assert (config.optimizer.lr, config.data.flip) == (0.5, False)
  assert config.train.steps == 77
  assert main._HEARTBEAT_TIMEOUT.value == 7
  assert main._INITIALIZATION_TIMEOUT.value == 9
  # What one call sets, another does not have.
  assert call("train", "student:smoke", "--workdir=w") == 0
  assert main._HEARTBEAT_TIMEOUT.value == 100


def test_files_and_names_are_one_config(runs, tmp_path):
  own = tmp_path / "own.py"
  own.write_text("from must_jax.configs.student import get_config")
  for config in ("student", f"{config_lib.SHIPPED}/student.py", own):
    assert call("train", f"{config}:images=a,smoke", "--workdir=w") == 0
  assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (
      ["train", "student:smoke"],
      "There is no --workdir; expected the directory",
    ),
    (["train", "--workdir=w"], "There is no config; expected must-jax train"),
    (["train", "studnet", "--workdir=w"], "Did you mean 'student'?"),
    (
      ["train", "student:image=x", "--workdir=w"],
      "Config argument 'image' is not known",
    ),
    (
      ["train", "student", "--workdir=w", "--config.optimizer.lrr=1"],
      "There is no option optimizer.lrr; did you mean --config.optimizer.lr?",
    ),
    (
      ["train", "label_midas:images=x", "--workdir=w"],
      "label_midas:images=x is a config of stage 'label'; expected one that"
      " `must-jax train` takes, such as student:images=DIR. It runs by"
      " `must-jax label`.",
    ),
    (
      ["label", "student", "--workdir=w"],
      "student is a config of stage 'train'; expected one that `must-jax label`"
      " takes, such as label:kind=depth. It runs by `must-jax train`.",
    ),
    (["evaluate", "label", "--workdir=w"], "It runs by `must-jax label`."),
    (
      ["train", "student", "--workdir=w", "--config.stage=evaluate"],
      "--config.stage is 'evaluate', and `must-jax train` runs 'train'. Leave"
      " the option out, or call `must-jax evaluate`.",
    ),
    (
      ["evaluate", "student", "--workdir=w", "--config.stage", "train"],
      "--config.stage is 'train', and `must-jax evaluate` runs 'evaluate'.",
    ),
    (
      ["train", "student", "--workdir=w", "--config.stage=trian"],
      "stage is 'trian'; expected one of",
    ),
    (
      ["train", "student", "--workdir=w", "--runner=DirectRunner"],
      "only labelling runs on Apache Beam, and student is run as stage 'train'",
    ),
    (
      ["label", "label", "--workdir=w", "--beam-options=--project=p"],
      "--beam_options is '--project=p', of no runner; name it",
    ),
    (
      ["train", "student", "simclr", "--workdir=w"],
      "Arguments not understood: ['simclr']",
    ),
    (["train", "student", "--wrkdir=w"], "Did you mean: workdir ?"),
  ],
)
def test_what_is_wrong_is_one_line(runs, words, message):
  error = call(*words)
  assert error.startswith("error: ") and message in error
  assert not runs
  assert len(error.splitlines()) <= 2  # the second on --help


@pytest.mark.parametrize("verb", config_lib.STAGES)
def test_every_stage_has_a_verb_with_help(verb, capsys):
  assert call(verb, "--help") == 0
  text = capsys.readouterr().out
  assert text.startswith(f"usage: must-jax {verb} CONFIG[:ARG] --workdir=DIR")
  for flag in ("workdir", "coordinator", "compilation_cache", "runner"):
    assert f"--{flag}: " in text
  assert call("--help") == 0
  assert re.search(rf"^    {verb} ", capsys.readouterr().out, re.MULTILINE)


def test_version(capsys):
  assert call("--version") == 0
  assert re.fullmatch(r"must-jax \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


# As processes


def start(verb, *words, log):
  command = [sys.executable, "-m", "must_jax.cli", verb, *words]
  return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """An image set with classes."""
  directory = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for i in range(16):
    file = directory / "photos" / "ab"[i % 2] / f"{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(file)
  imported = call(
    *("import", "folder", f"--images={directory}/photos", "--name=photos"),
    *(f"--out={directory}/set", "--split=train", "--workers=1"),
  )
  assert imported == 0
  return directory / "set"


def test_a_run_saves_itself_at_a_signal_and_is_evaluated(photos, tmp_path):
  config = f"teacher_classification:data={photos},validation=train,smoke"
  workdir = tmp_path / "run"
  words = (config, f"--workdir={workdir}", "--config.train.steps=100000")
  with (tmp_path / "log").open("w") as log:
    run = start("train", *words, log=log)
    try:
      while run.poll() is None and not list(workdir.glob("checkpoints/*")):
        time.sleep(0.1)
      run.send_signal(signal.SIGTERM)
      assert run.wait(60) == config_lib.PREEMPTED
      # A verb, and what main.py has always taken.
      assert start("evaluate", *words, log=log).wait(120) == 0
    finally:
      run.kill()
  assert (
    "validation/classification/top1" in (workdir / "result.json").read_text()
  )


# Shipped configs


def words_of(text):
  return set(re.findall(r"[\w.]+", text))


@pytest.mark.parametrize("name", config_lib.shipped())
def test_every_argument_is_documented(name):
  module = configs_command.load(name)
  text = inspect.getdoc(module)
  # "Arguments as those of NAME.py": of that one, and what it says itself.
  for other in re.findall(r"Arguments\s+as\s+those\s+of\s+(\w+)\.py", text):
    text += inspect.getdoc(configs_command.load(other))
  _, _, documented = text.partition("\nArguments:\n")
  known = configs_command.arguments(module)
  assert set(known) <= words_of(documented.partition("\n\n")[0])
  assert {"root", "batch_size", "small"} & set(known)


def test_configs_are_listed_with_arguments_and_defaults(capsys):
  assert call("configs") == 0
  train, _, label = capsys.readouterr().out.partition("must-jax label NAME")
  for name in config_lib.shipped():
    part = label if name.startswith("label") else train
    first = inspect.getdoc(configs_command.load(name)).partition("\n")[0]
    assert f"  {name}\n    {first}\n" in part
  simclr = train[train.index("  simclr\n") :].splitlines()[2:4]
  assert " ".join(simclr).split() == [
    *("root=", "images=data/imagenet", "split=train", "epochs=800.0"),
    *("num_images=1281167", "small", "smoke"),
  ]


def test_all_of_a_config_is_shown(capsys):
  assert call("configs", "student_jft") == 0
  text = capsys.readouterr().out
  assert "JFT-300M is not public" in text and "Result: paper: CIFAR-100" in text
  assert "  images=data/jft\n" in text  # student_jft's own
  assert call("configs", "studentjft") == 2
  assert "Did you mean 'student_jft'?" in capsys.readouterr().err
