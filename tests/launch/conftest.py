"""Stands-in for the programs that launchers call.

They go first in PATH, write down how they were called, and do what the real
ones would do to the runs: what a run does is told by a list of outcomes.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# The run itself. Its next outcome is a status to end with; "wait": until
# SIGTERM, and then 42; "hang": until SIGTERM; "preempted": as well, and its
# machine will be taken away; "reboot": gone at once, and its shell with it.
RUN = """
worker=${MUST_JAX_WORKER_COUNT:+ of $MUST_JAX_WORKER_COUNT: }
worker=${worker:+worker $MUST_JAX_WORKER_INDEX$worker}
gpu=${CUDA_VISIBLE_DEVICES:+gpu $CUDA_VISIBLE_DEVICES, }
echo "$gpu$worker$*" >>"$FAKE/runs"
outcomes=$FAKE/outcomes-${CUDA_VISIBLE_DEVICES:-$(basename "$HOME")}
outcome=$(head -1 "$outcomes")
sed -i 1d "$outcomes"
echo "the run: $outcome"
case $outcome in
  wait)
    trap 'exit 42' TERM
    echo ready >"$FAKE/ready"
    while true; do sleep 0.01; done ;;
  hang) exec sleep 60 ;;
  preempted) touch "$FAKE/preempted"; exec sleep 60 ;;
  reboot) kill -KILL 0 ;;
  *) exit "$outcome" ;;
esac
"""


class Box:
  """A machine on which a launcher runs.

  Attributes:
    fake: directory of what the stands-in know.
    environ: of the launcher.
  """

  def __init__(self, directory):
    self.fake = directory / "fake"
    self._bin = directory / "bin"
    self._directory = directory
    self.name = directory.name  # of the run, where there is one
    self.fake.mkdir()
    self._bin.mkdir()
    os.mkfifo(self.fake / "ready")
    self.environ = {
      "PATH": f"{self._bin}:/usr/local/bin:/usr/bin:/bin",
      "HOME": str(directory),
      "FAKE": str(self.fake),
      "LOGS": str(directory / "logs"),
      "TMPDIR": str(directory),
    }

  def program(self, name, code):
    """Puts a program into PATH, written in bash."""
    path = self._bin / name
    path.write_text(f"#!/bin/bash\n{code}")
    path.chmod(0o755)

  def python_program(self, name, file):
    """Puts a program into PATH, written in Python."""
    self.program(name, f'exec {sys.executable} -S {file} "$@"')

  def outcomes(self, run, *outcomes):
    """Tells a run what to do at each of its starts."""
    path = self.fake / f"outcomes-{run}"
    path.write_text("".join(f"{outcome}\n" for outcome in outcomes))

  def start(self, script, *args, ignored="", **environ):
    ignore = f"trap '' {ignored}; " if ignored else ""
    return subprocess.Popen(
      ["bash", "-c", f'{ignore}exec bash "$@"', "-", str(ROOT / script), *args],
      env=self.environ | environ,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, script, *args, **environ):
    """Returns the launcher's status and what it printed."""
    process = self.start(script, *args, **environ)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output

  def wait_for_run(self):
    """Returns when a run with the outcome "wait" hears SIGTERM."""
    (self.fake / "ready").read_text()

  def read(self, name):
    """Lines that a stand-in wrote."""
    path = self.fake / name
    return path.read_text().splitlines() if path.exists() else []

  def log(self, name):
    return (self._directory / "logs" / f"{name}.log").read_text()


@pytest.fixture
def run_code():
  return RUN


@pytest.fixture
def box(tmp_path):
  return Box(tmp_path)
