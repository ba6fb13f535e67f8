"""What is in a wheel and in a source distribution, and that it runs.

The packages that it needs are those of this environment.
"""

import os
import pathlib
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile

import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

setuptools = pytest.importorskip("setuptools")
pytestmark = pytest.mark.skipif(
  Version(setuptools.__version__) < Version("77"),
  reason="a wheel is built by setuptools>=77, which the extra dev has",
)
ROOT = pathlib.Path(__file__).parent.parent
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # which setuptools changes
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""


def run(command, cwd, **environ):
  """Runs a command that sees nothing of this checkout."""
  base = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  result = subprocess.run(
    [*map(str, command)],
    cwd=cwd,
    env=base | environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


def build(tree, out):
  run([sys.executable, "-c", BUILD, out], tree)
  (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
  return wheel, sdist


def names(wheel):
  """Files of a wheel, less those that describe it."""
  with zipfile.ZipFile(wheel) as archive:
    return {n for n in archive.namelist() if ".dist-info/" not in n}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
  """A wheel and a source distribution of this checkout."""
  directory = tmp_path_factory.mktemp("build")
  skip = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__")
  tree = shutil.copytree(ROOT, directory / "tree", symlinks=True, ignore=skip)
  return build(tree, directory)


def test_a_wheel_has_all_of_the_package_and_nothing_else(distributions):
  package = ROOT / "must_jax"
  files = {p for p in package.rglob("*") if "__pycache__" not in p.parts}
  files |= {*(package / "configs").glob("*.py")}
  expected = {str(p.relative_to(ROOT)) for p in files if p.is_file()}
  assert names(distributions[0]) == expected
  for file in (
    *("configs/student.py", "convert/classes/imagenet.txt", "py.typed"),
    "lab/report_page.html",
  ):
    assert f"must_jax/{file}" in expected


def test_a_wheel_has_the_licence(distributions):
  if not (ROOT / "LICENSE").exists():
    pytest.skip("there is no LICENSE in this checkout")
  with zipfile.ZipFile(distributions[0]) as archive:
    (licence,) = [n for n in archive.namelist() if n.endswith("/LICENSE")]
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_a_source_distribution_makes_the_same_wheel(distributions, tmp_path):
  wheel, sdist = distributions
  with tarfile.open(sdist) as archive:
    archive.extractall(tmp_path, filter="data")
  (tree,) = tmp_path.iterdir()
  top = {path.name for path in tree.iterdir()}
  assert {"setup.py", "README.md", "CHANGELOG.md", "must_jax"} <= top
  assert not top & {"tests", "benchmarks", "launch", "runs"}
  assert names(build(tree, tmp_path)[0]) == names(wheel)


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
  """A Python that has the wheel, and the packages of this one."""
  directory = tmp_path_factory.mktemp("venv")
  venv.create(directory, symlinks=True)
  python = directory / "bin" / "python"
  where = "import sysconfig; print(sysconfig.get_path('purelib'))"
  packages = pathlib.Path(run([python, "-c", where], directory).strip())
  run(
    [
      *(sys.executable, "-m", "pip", "--python", python, "install"),
      *("--no-deps", "--no-index", "--quiet", distributions[0]),
    ],
    directory,
  )
  # After pip, which would find this checkout in there. In a .pth, so that no
  # .pth in there is read, and none leads to the checkout.
  (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
  return python


def test_verbs_and_configs_are_those_of_the_wheel(installed, tmp_path):
  must_jax = installed.with_name("must-jax")
  assert "\n  student\n" in run([must_jax, "configs"], tmp_path)
  code = (
    "import must_jax.config as c; print(c.SHIPPED, *c.load('simclr').tasks)"
  )
  found = run([installed, "-c", code], tmp_path).split()
  assert found[0].startswith(str(installed.parent.parent.resolve()))
  assert found[1:] == ["contrastive"]


@pytest.mark.slow
def test_a_stranger_trains_a_student_in_an_empty_folder(installed, tmp_path):
  rng = np.random.default_rng(0)
  for i in range(16):
    file = tmp_path / "photos" / ["cat", "dog"][i % 2] / f"{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(file)
  must_jax = installed.with_name("must-jax")
  data = "--out=data/mine --name=mine --split=train --workers=1"
  run(
    [must_jax, "import", "folder", "--images=photos", *data.split()], tmp_path
  )
  run(
    [
      *(must_jax, "train", "--workdir=runs/student"),
      "student:images=data/mine,tasks=classification,classification=supervised,"
      "smoke",
    ],
    tmp_path,
  )
  code = "import must_jax; print(*must_jax.load('runs/student').tasks)"
  assert run([installed, "-c", code], tmp_path) == "classification\n"


PROGRAM = """
import must_jax

model = must_jax.load("runs/student")
reveal_type(model)
must_jax.load(3)
"""


@pytest.mark.slow
def test_types_are_seen_by_programs_of_users(installed, tmp_path):
  pytest.importorskip("mypy")
  (tmp_path / "program.py").write_text(PROGRAM)
  base = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  result = subprocess.run(
    [
      *(sys.executable, "-m", "mypy", f"--python-executable={installed}"),
      *("--follow-imports=silent", "program.py"),
    ],
    cwd=tmp_path,
    env=base,
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'Revealed type is "must_jax.train.load.LoadedModel"' in result.stdout
  assert 'Argument 1 to "load" has incompatible type "int"' in result.stdout
  assert "py.typed" not in result.stdout
