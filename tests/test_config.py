import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, parse_arg, task

CONFIGS = sorted(
  (pathlib.Path(__file__).parent.parent / "configs").glob("*.py")
)


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def valid_config():
  config = base_config()
  config.datasets.flowers = dataset("data/flowers", "train")
  config.train_on = ("flowers",)
  config.tasks.kinds = task("classification", labels={"flowers": "supervised"})
  return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("size", ["", "small", "smoke"])
def test_shipped_configs_are_valid_and_documented(path, size):
  module = load(path)
  assert "python main.py" in module.__doc__
  assert "Cost:" in module.__doc__
  assert "Result:" in module.__doc__
  arg = "" if path.stem.startswith("label") else size
  config_lib.validate(module.get_config(arg or None))


NEIGHBOURS = """
from neighbour import config


def get_config(arg=None):
  made = config()
  made.train.steps = int(arg or 7)
  return made
"""
NEIGHBOUR = """
from must_jax.config import base_config as config
"""


@pytest.fixture
def neighbours(tmp_path, monkeypatch):
  """A directory with a config that imports another file there."""
  (tmp_path / "mine.py").write_text(NEIGHBOURS)
  (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  sys.modules.pop("neighbour", None)


@pytest.mark.usefixtures("neighbours")
def test_load_takes_arguments_overrides_and_neighbours():
  before = list(sys.path)
  assert config_lib.load("mine.py").train.steps == 7
  config = config_lib.load("mine.py:12", ["--config.optimizer.lr=0.5"])
  assert (config.train.steps, config.optimizer.lr) == (12, 0.5)
  assert sys.path == before


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize(
  ("path", "overrides", "expected"),
  [
    ("yours.py", (), "no such file; expected one such as"),
    ("mine.py", ("--config.optimizer.rate=1",), "rate"),
    ("mine.py", ("--config.train.steps=many",), "many"),
    ("mine.py", ("train.steps=3",), r"not understood: \['train.steps=3'\]"),
  ],
)
def test_load_says_what_is_wrong(path, overrides, expected):
  before = list(sys.path)
  with pytest.raises(ValueError, match=expected):
    config_lib.load(path, overrides)
  assert sys.path == before


def test_json_round_trip():
  config = valid_config()
  config.tasks.boxes = task(
    "detection", labels={"flowers": "runs/labels/a.b"}, weight=2.0
  )
  text = config_lib.to_json(config)
  again = config_lib.from_json(text)
  assert config_lib.to_json(again) == text
  assert again.tasks.boxes.weight == 2.0
  assert again.tasks.kinds.weight is None
  assert again.tasks.boxes.aspect_ratios == (0.5, 1.0, 2.0)


def test_stored_config_of_another_version_is_refused():
  text = config_lib.to_json(valid_config()).replace('"seed"', '"sead"')
  with pytest.raises(ValueError, match=r"(?s)sead.*another version"):
    config_lib.from_json(text)


def test_parse_arg():
  args = parse_arg("smoke,data=/a/b=c,steps=3", data="", steps=1, smoke=False)
  assert (args.data, args.steps, args.smoke) == ("/a/b=c", 3, True)
  with pytest.raises(ValueError, match=r"'dat'.*\['data'\]"):
    parse_arg("dat=x", data="")
  with pytest.raises(ValueError, match="expected a int"):
    parse_arg("steps=many", steps=1)


@pytest.mark.parametrize(
  ("root", "path", "expected"),
  [
    ("", "data/pile", "data/pile"),
    ("here", "data/pile", "here/data/pile"),
    ("gs://bucket/must/", "data/pile", "gs://bucket/must/data/pile"),
    ("gs://bucket/must", "/data/pile", "/data/pile"),
    ("/mnt", "gs://bucket/pile", "gs://bucket/pile"),
    ("/", "data/pile", "/data/pile"),
    ("/mnt", "", ""),
  ],
)
def test_under_a_root(root, path, expected):
  assert config_lib.under(root, path) == expected


def test_root_of_an_argument():
  assert config_lib.root_of("small,root=gs://b/a=b,images=x") == "gs://b/a=b"
  assert config_lib.root_of("images=root") == config_lib.root_of(None) == ""


def test_a_stored_config_gets_the_defaults_of_new_options():
  config = valid_config()
  stored = json.loads(config_lib.to_json(config))
  del stored["balancing"], stored["optimizer"]["ema_decay"]
  del (
    stored["tasks"]["kinds"]["classes"],
    stored["datasets"]["flowers"]["share"],
  )
  again = config_lib.from_json(json.dumps(stored))
  assert config_lib.to_json(again) == config_lib.to_json(config)


def test_unknown_key_is_refused():
  config = valid_config().lock()
  with pytest.raises((AttributeError, KeyError), match="learning_rate"):
    config.optimizer.learning_rate = 1.0


BAD = {
  "stage is 'tarin'; expected one of": {"stage": "tarin"},
  "schedule is 'linear'; expected": {"optimizer.schedule": "linear"},
  "fpn_norm is 'all'; expected one of": {"model.fpn_norm": "all"},
  "fpn_top is 'max'; expected one of": {"model.fpn_top": "max"},
  "train_on is 'roses'; expected one of": {"train_on": ("roses",)},
  "expected positive multiples of data.label_stride": {
    "data.image_size": (641, 640)
  },
  "must be below": {"train.steps": 100},
  "map_stride is -1; expected 0": {"label.map_stride": -1},
  "Set model.max_level to 5 or more": {
    "balancing.method": "gradnorm",
    "model.max_level": 4,
  },
  "with 'backbone' in freeze there are none": {
    "balancing.method": "gradnorm",
    "freeze": ("backbone",),
  },
  "train_on is empty": {"train_on": ()},
  "label.teacher is empty": {"stage": "label"},
}


@pytest.mark.parametrize("message", BAD)
def test_validate_says_what_is_wrong(message):
  config = valid_config()
  config_lib.validate(config)
  config.update_from_flattened_dict(BAD[message])
  with pytest.raises(ValueError, match=message):
    config_lib.validate(config)


def test_unknown_option_of_a_task():
  with pytest.raises(ValueError, match=r"no option \['anchor'\]; it has"):
    task("detection", labels={}, anchor=3)
  with pytest.raises(ValueError, match="Kind of task is 'detect'"):
    task("detect", labels={})


def test_names_that_are_no_names():
  config = valid_config()
  config.datasets["evil/name"] = dataset("x", "train")
  with pytest.raises(ValueError, match="no name for a task or dataset"):
    config_lib.validate(config)


def test_shipped_configs_load_outside_of_the_checkout(tmp_path):
  configs = pathlib.Path(config_lib.__file__).parents[1] / "configs"
  result = subprocess.run(
    [
      *(sys.executable, "-c"),
      "import sys; from must_jax.config import load; before = list(sys.path);"
      "print(*load(sys.argv[1]).tasks); assert sys.path == before",
      str(configs / "student_jft.py"),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.split() == [
    *("classification", "depth", "detection", "segmentation"),
  ], result.stderr
