import contextlib
import importlib.util
import json
import os
import pathlib
import sys
import time

import pytest

# Tests run on the CPU, wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What runs a few times is not worth optimizing.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Read as gcsfs is imported, which may be before a bucket is made.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


class _Blocked:
  """Makes an import fail as if the package were not installed."""

  names = ("tensorflow", "tensorflow_datasets", "clu")

  def find_spec(self, name, *_):
    if name.split(".")[0] in self.names:
      raise ModuleNotFoundError(f"{name} is blocked", name=name)


if os.environ.get("BLOCK_TENSORFLOW"):
  sys.meta_path.insert(0, _Blocked())
else:
  # Programs that several tests share are compiled once. (JAX would look for
  # TensorFlow to read the cache.)
  cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture
def make_checkpoint(tmp_path):
  """Makes a checkpoint of a small model with weights at random."""

  def make(tasks, name="model", image_size=(64, 64), **data):
    import jax

    from must_jax.config import base_config
    from must_jax.train import checkpoint
    from must_jax.train.build import build_model, build_tasks
    from must_jax.train.state import init_variables

    config = base_config()
    config.model.update(
      {"backbone": "resnet18", "width": 8, "channels": 8, "dtype": "float32"}
    )
    config.model.update({"min_level": 2, "max_level": 4})
    config.data.update({"image_size": image_size, **data})
    config.tasks = tasks
    model = build_model(config, build_tasks(config))
    variables = init_variables(model, (64, 64), jax.random.key(0))
    path = tmp_path / name
    origin = {"kind": "test", "licence": "none"}
    checkpoint.write_variables(
      path, config, dict(jax.device_get(variables)), origin
    )
    return path

  return make


@pytest.fixture
def one_of_each():
  """A task of each kind, with detections though nothing was learned."""
  from must_jax.config import task

  return {
    "kind": task("classification", labels={}, classes=("cat", "dog", "cow")),
    "things": task(
      "detection",
      labels={},
      classes=("cat", "dog"),
      score_threshold=0.0,
      min_score=0.0,
      max_detections=20,
      rpn_pre_nms=50,
      rpn_post_nms=20,
      pre_nms=40,
    ),
    "stuff": task("segmentation", labels={}, classes=("sky", "sea", "sand")),
    "distance": task("depth", labels={}),
    "faces": task("normals", labels={}),
  }


@pytest.fixture
def lease_of_another_host():
  """Writes a lease whose holder has been silent for some seconds."""

  def write(path, silent):
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {
      "host": "elsewhere.example",
      "pid": 1,
      "beat": time.time() - silent,
      "seconds": 10.0,
      "num_records": 40,
    }
    path.write_text(json.dumps(holder))

  return write


@pytest.fixture(scope="session")
def code_of():
  """Gives the Python below `<!-- test: NAME -->` of a page."""
  root = pathlib.Path(__file__).parent.parent

  def read(page, *names):
    text = (root / page).read_text()
    blocks = [
      text.partition(f"<!-- test: {name} -->\n```python\n")[2].partition("```")[
        0
      ]
      for name in names
    ]
    assert all(blocks)
    return "\n".join(blocks)

  return read


def _load(path):
  """A module that is a program, too."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def write_config_file():
  """Writes a config as a file that `--config` takes; returns its path."""

  def write(directory, config):
    from must_jax.config import to_json

    (directory / "config.json").write_text(to_json(config))
    file = directory / "config.py"
    file.write_text(
      "import pathlib\n"
      "from must_jax import config\n"
      "def get_config():\n"
      "  path = pathlib.Path(__file__).with_suffix('.json')\n"
      "  return config.from_json(path.read_text())\n"
    )
    return file

  return write


@pytest.fixture(scope="session")
def draw_pile(tmp_path_factory):
  """Draws the first images of the world's pile, and the truth beside them."""
  from must_jax.lab import world

  def draw(count):
    directory = tmp_path_factory.mktemp("world")
    counts = {name: {"train": count} for name in ("pile", "pile_truth")}
    world.build(directory, 48, counts, num_shards=2, workers=1)
    return directory

  return draw


@pytest.fixture(scope="session")
def fake():
  """The module `fake_worker`: labelling without a network."""
  here = pathlib.Path(__file__)
  return _load(here.with_name("pseudo_label") / "fake_worker.py")


@pytest.fixture(scope="session")
def scribbles():
  """The module `scribbles`: label sets of what a test says."""
  here = pathlib.Path(__file__)
  return _load(here.with_name("curation") / "scribbles.py")


@pytest.fixture(scope="session")
def bucket_module():
  """The module `bucket`."""
  return _load(pathlib.Path(__file__).with_name("bucket.py"))


@pytest.fixture(scope="session")
def bucket_front(bucket_module, tmp_path_factory):
  """The address of what serves the buckets of all tests."""
  with contextlib.ExitStack() as stack:
    try:
      directory = tmp_path_factory.mktemp("front")
      address = stack.enter_context(bucket_module.start_front(directory))
    except FileNotFoundError as error:
      pytest.skip(str(error))
    yield address


@pytest.fixture
def bucket(bucket_module, bucket_front, monkeypatch):
  """A new bucket on this machine, which clients find by the environment."""
  gcsfs = pytest.importorskip("gcsfs", reason="pip install -e '.[dev]'")
  with bucket_module.make_bucket(bucket_front) as made:
    for key, value in made.environ.items():
      monkeypatch.setenv(key, value)
    # A file system remembers where it was made, and what it listed.
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield made
    gcsfs.GCSFileSystem.clear_instance_cache()
