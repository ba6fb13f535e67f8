import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from must_jax import config as config_lib
from must_jax.config import RANGES, base_config, dataset, parse_arg, task
from must_jax.tasks import TASKS, make_task, task_options

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
  verb = module.get_config().stage
  assert f"must-jax {verb} {path.stem}" in module.__doc__
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


def test_a_runs_own_config_loads(tmp_path):
  config = config_lib.base_config()
  config.datasets.d = config_lib.dataset("data/d", "train")
  config.tasks.kind = config_lib.task("depth", labels={"d": "supervised"})
  file = tmp_path / "config.json"
  file.write_text(config_lib.to_json(config))
  again = config_lib.load(str(file), ["--config.tasks.kind.weight=0.5"])
  assert again.tasks.kind.weight == 0.5
  again.tasks.kind.weight = None
  assert config_lib.to_json(again) == file.read_text()
  with pytest.raises(ValueError, match=r"did you mean --config\.optimizer\.lr"):
    config_lib.load(str(file), ["--config.optimizr.lr=1"])
  for text in ("[]", "{", '{"model_type": "vit"}'):
    file.write_text(text)
    with pytest.raises(
      ValueError, match=r"is no config\.json of a run"
    ) as error:
      config_lib.load(str(file))
    assert len(str(error.value)) < 300


@pytest.mark.usefixtures("neighbours")
def test_load_takes_arguments_overrides_and_neighbours():
  before = list(sys.path)
  assert config_lib.load("mine.py").train.steps == 7
  config = config_lib.load("mine.py:12", ["--config.optimizer.lr=0.5"])
  assert (config.train.steps, config.optimizer.lr) == (12, 0.5)
  assert sys.path == before


def detector_config(folder):
  config = config_lib.base_config()
  config.datasets.d = config_lib.dataset("data/d", "train")
  config.tasks.det = config_lib.task("detection", labels={"d": "supervised"})
  config.train_on = ("d",)
  file = folder / "config.json"
  file.write_text(config_lib.to_json(config))
  return file


def test_labels_are_one_place_or_a_list(tmp_path):
  file = detector_config(tmp_path)
  option = "--config.tasks.det.labels.d"
  config = config_lib.load(str(file), [f"{option}=labels/d"])
  assert config.tasks.det.labels.d == "labels/d"
  places = ("corrections/d", "supervised", "labels/d")
  config = config_lib.load(str(file), [f"{option}={places}"])
  assert config.tasks.det.labels.d == places
  again = config_lib.from_json(config_lib.to_json(config))
  assert again.tasks.det.labels.d == places
  again.tasks.det.labels.d = "supervised"  # in a config file
  for wrong in (3, ("labels/d", 3), {"labels/d": 1}):
    config.tasks.det.labels.d = wrong
    with pytest.raises(ValueError, match=r"labels\.d is .* best first"):
      config_lib.validate(config)
  student = config_lib.load(
    "student:tasks=detection,root=gs://b,detection=new+supervised+labels/old"
  )
  assert student.tasks.detection.labels.images == (
    *("gs://b/new", "supervised", "gs://b/labels/old"),
  )


def test_thresholds_are_a_number_names_or_a_file(tmp_path):
  file = detector_config(tmp_path)
  by_class = {"*": 0.6, "car": 0.25}
  option = "--config.tasks.det.min_score"
  saved = tmp_path / "thresholds.json"
  saved.write_text(json.dumps({"objects": by_class, "mask": {"sky": 0.1}}))
  for text, expected in (
    ("0.25", 0.25),
    (str(by_class), by_class),
    (str(saved), by_class),
  ):
    config = config_lib.load(str(file), [f"{option}={text}"])
    config_lib.validate(config)
    assert config.tasks.det.min_score == expected
    # As it is stored in a run, and read again.
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.tasks.det.min_score == expected
    again.tasks.det.min_score = {"car": 0.5}  # in a config file
    task = make_task(
      "detection",
      "det",
      ("bus", "car"),
      config_lib.task_kwargs(again.tasks.det),
    )
    assert task.fields["objects"].min_score == (0.5, 0.5)
  for wrong, expected in (
    ({"car": 1.5}, "0 to 1 each"),
    ((0.3, 0.6), "expected one number"),  # of which classes?
  ):
    config.tasks.det.min_score = wrong
    with pytest.raises(ValueError, match=f"det': min_score .* {expected}"):
      config_lib.validate(config)


@pytest.mark.parametrize(
  ("contents", "expected"),
  [
    (None, "there is no such file; expected a number, {class: number}, or a"),
    ("{", "which is no JSON"),
    ("[]", "has no thresholds of objects"),
    ('{"mask": {"car": 0.5}}', "has no thresholds of objects"),
    ('{"objects": 0.5}', "has no thresholds of objects"),
  ],
)
def test_a_file_that_has_no_thresholds(tmp_path, contents, expected):
  file, saved = detector_config(tmp_path), tmp_path / "thresholds.json"
  if contents is not None:
    saved.write_text(contents)
  with pytest.raises(ValueError, match=re.escape(expected)) as error:
    config_lib.load(str(file), [f"--config.tasks.det.min_score={saved}"])
  assert str(error.value).startswith(f"tasks.det.min_score is '{saved}'")


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize(
  ("path", "overrides", "expected"),
  [
    (
      "yours.py",
      (),
      r"^The config is 'yours\.py': there is no such file, and no shipped"
      r" config of that name\. `must-jax configs` lists",
    ),
    ("studnet:smoke", (), "^The config is 'studnet': .* mean 'student'?"),
    ("configs/label_mida.py", (), r"mean 'label_midas'\?"),
    (
      "mine.py",
      ("--config.optimizer.learning_rate=1",),
      r"option optimizer.learning_rate; did you mean --config.optimizer.lr\?",
    ),
    (
      "mine.py",
      ("--config.batch_size=1",),
      r"mean --config.data.batch_size or --config.label.batch_size\?",
    ),
    ("mine.py", ("--config.mesh.wings=1",), "mesh has data, fsdp"),
    ("mine.py", ("--config.mesh=1",), "mesh is a group of options.*: data, fs"),
    ("mine.py", ("--config.train.lr.x=1",), "no option train.lr.x; "),
    (
      "mine.py",
      ("--config.seed=1", "--config.train.steps=many"),
      "train.steps is 'many'; expected a whole number, such as 7",
    ),
    ("mine.py", ("--config.data.flip=1.5",), "expected true or false, such"),
    ("mine.py", ("--config.train_on[0]=x",), "index"),
    ("mine.py", ("--config.train.steps",), "Missing value"),
    ("mine.py", ("--confg.train.steps=1",), "Unknown command line flag"),
    ("mine.py", ("train.steps=3",), r"not understood: \['train.steps=3'\]"),
  ],
)
def test_load_says_what_is_wrong(path, overrides, expected):
  before = list(sys.path)
  with pytest.raises(ValueError, match=expected) as error:
    config_lib.load(path, overrides)
  assert "\n" not in str(error.value)
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


def test_backbone_of_midas_keeps_its_place_under_the_name_it_had():
  config = valid_config()
  config.model.backbone = "efficientnet_lite3_midas"
  config.tasks.distance = task("depth", labels={}, decoder="midas_v21_small")
  stored = json.loads(config_lib.to_json(config))
  stored["model"]["backbone"] = "efficientnet_lite3"
  again = config_lib.from_json(json.dumps(stored))
  assert again.model.backbone == "efficientnet_lite3_midas"
  # The classifier's is another.
  del stored["tasks"]["distance"]
  again = config_lib.from_json(json.dumps(stored))
  assert again.model.backbone == "efficientnet_lite3"


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
  "expected 2 whole numbers, such as": {"data.image_size": (640,)},
  "640.5.*expected 2 whole numbers": {"data.image_size": (640, 640.5)},
  "'a'.*; expected 1 or more each": {"data.image_size": ("a", 640)},
  "expected 3 numbers, such as": {"model.image_std": (1.0, 1.0)},
  "expected the lower number first": {"data.crop_area": (0.9, 0.1)},
  "the finer, which is the lower one": {"model.min_level": 8},
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


def test_a_teacher_of_any_balancing_labels():
  """What says how a model is trained is nothing to a labelling job."""
  config = valid_config()
  config.stage, config.freeze = "label", ("backbone",)
  config.balancing.method = "gradnorm"
  config.label.update({"teacher": "runs/teacher", "dataset": "flowers"})
  config_lib.validate(config)


def numbers_of(values):
  """Names of the options that are numbers, or tuples of such."""
  return {
    name
    for name, value in values.items()
    for first in [value[0] if isinstance(value, tuple) and value else value]
    if isinstance(first, int | float) and not isinstance(first, bool)
  }


def test_every_number_has_a_range():
  assert set(RANGES) == numbers_of(config_lib.options(base_config()))
  for kind, cls in TASKS.items():
    assert set(cls.ranges) == numbers_of(task_options(kind)), kind


def outside(allowed):
  """Numbers that a range does not hold, next to those that it does."""
  yield from (math.nan, math.inf, -math.inf)
  for bound, beyond, is_open in (
    (allowed.low, -math.inf, allowed.open_low),
    (allowed.high, math.inf, allowed.open_high),
  ):
    if math.isfinite(bound):
      yield bound if is_open else math.nextafter(bound, beyond)


@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range_are_refused(name):
  config = valid_config()
  default = config_lib.options(config)[name]
  scalar = default[0] if isinstance(default, tuple) else default
  for number in outside(RANGES[name]):
    if isinstance(scalar, int):
      if not math.isfinite(number):
        continue
      number = math.floor(number) if number < scalar else math.ceil(number)
    value = number
    if isinstance(default, tuple):
      value = (number, *default[1:])
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected "):
      config_lib.validate(config)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("tasks.kinds.weight", -1.0),
    ("tasks.kinds.weight", math.nan),
    ("datasets.flowers.share", 0.0),
    ("datasets.flowers.share", math.nan),
  ],
)
def test_entries_of_tasks_and_datasets_are_checked(name, value):
  config = valid_config()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f"^{name} is {value}; expected "):
    config_lib.validate(config)


@pytest.mark.parametrize("kind", TASKS)
def test_options_of_tasks_out_of_range_are_refused(kind):
  for name, allowed in TASKS[kind].ranges.items():
    for number in outside(allowed):
      config = valid_config()
      config.tasks.mine = task(kind, labels={})
      default = config.tasks.mine[name]
      with config.ignore_type():
        config.tasks.mine[name] = (
          (number,) if isinstance(default, tuple) else number
        )
      with pytest.raises(ValueError, match=f"'mine': {name} is .*; expected "):
        config_lib.validate(config)


NAMES = config_lib.options(valid_config())


def test_the_nearest_name_is_the_one_that_was_meant():
  """Any one letter may be missing, or stand twice."""
  for name in NAMES:
    for i in range(name.rfind(".") + 1, len(name)):
      for typed in (name[:i] + name[i + 1 :], name[: i + 1] + name[i:]):
        if typed not in NAMES and not typed.endswith("."):
          assert config_lib.nearest(typed, NAMES) == name, typed
  assert config_lib.nearest("optimizer.learning_rate", NAMES) == "optimizer.lr"
  assert config_lib.nearest("zebra", NAMES) == ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("size", ["", "small", "smoke"])
def test_every_option_is_set_from_the_command_line(path, size):
  if path.stem.startswith("label"):
    size = ""
  config = config_lib.load(f"{path}:{size}" if size else str(path))
  values = {
    name: value
    for name, value in config_lib.options(config).items()
    if isinstance(value, int | float | str)
  }
  values |= {f"tasks.{name}.weight": 0.25 for name in config.tasks}
  again = config_lib.load(
    f"{path}:{size}" if size else str(path),
    [f"--config.{name}={value}" for name, value in values.items()],
  )
  assert config_lib.options(again) == config_lib.options(config) | values


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


def test_a_student_is_measured_on_the_sets_that_are_given():
  config = config_lib.load(
    "student:root=gs://b,images=data/pile,tasks=detection+depth,"
    "detection_validation=data/boxes,depth_validation=/d/rooms,validation=val"
  )
  config_lib.validate(config)
  places = {"detection": "gs://b/data/boxes", "depth": "/d/rooms"}
  assert config.train_on == ("images",)
  assert config.evaluate_on == ("detection_validation", "depth_validation")
  for kind, place in places.items():
    entry = config.datasets[f"{kind}_validation"]
    assert (entry.dir, entry.split) == (place, "val")
    assert config.tasks[kind].labels.to_dict() == {
      "images": f"gs://b/labels/pile/{kind}",
      f"{kind}_validation": "supervised",
    }
  assert config_lib.load("student").evaluate_on == ()


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    (
      "tasks=depth,detection_validation=data/boxes",
      "detection_validation='data/boxes'.*tasks=depth.detection",
    ),
    ("tasks=depth,validation=val", "validation='val'.*depth_validation=..."),
    ("depth_validations=x", "Did you mean 'depth_validation'"),
  ],
)
def test_validation_of_nothing(arg, message):
  with pytest.raises(ValueError, match=message):
    config_lib.load(f"student:{arg}")


def test_shipped_configs_load_by_name_in_any_folder(tmp_path):
  # Folders and modules of a user's own are no matter.
  for name in ("configs/student.py", "types.py", "must_jax.py"):
    (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a" / name).write_text("raise ValueError('not me')")
  result = subprocess.run(
    [
      *(sys.executable, "-P", "-c"),
      "import sys; from must_jax.config import load; before = list(sys.path);"
      "print(*load('student_jft:images=x').tasks); assert sys.path == before",
    ],
    cwd=tmp_path / "a",
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.split() == [
    *("classification", "depth", "detection", "segmentation"),
  ], result.stderr


def test_a_shipped_config_is_the_same_by_name_and_by_file():
  by_name = config_lib.load("student_jft:smoke")
  assert by_name == config_lib.load(f"{CONFIGS[0].parent}/student_jft.py:smoke")
  assert config_lib.shipped() == [path.stem for path in CONFIGS]
