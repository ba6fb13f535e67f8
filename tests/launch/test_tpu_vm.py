import pathlib
import re
import subprocess
import sys

import pytest

ENVIRON = {
  "NAME": "student",
  "ZONE": "here",
  "CONFIG": "configs/student.py:images=gs://b/pile",
  "WORKDIR": "gs://b/run's",  # quotes survive three shells
}


@pytest.fixture
def tpu_vm(box, run_code):
  """Runs the launcher on a slice of two workers."""
  box.python_program("gcloud", pathlib.Path(__file__).parent / "fake_gcloud.py")
  box.program(
    "git",
    'mkdir "$FAKE/tree"; touch "$FAKE/tree/main.py"\n'
    'tar czf "${5#--output=}" -C "$FAKE/tree" main.py; rm -r "$FAKE/tree"',
  )
  (box.fake / "run").write_text(f"#!/bin/bash\n{run_code}")
  box.program(
    "python3",
    'if [[ "$*" == "-m uv venv"* ]]; then mkdir -p .venv/bin\n'
    'cp "$FAKE/run" .venv/bin/python; chmod +x .venv/bin/python; fi',
  )
  (box.fake / "states").write_text("WAITING_FOR_RESOURCES ACTIVE")
  box.environ |= ENVIRON | {"POLL_SECONDS": "0.05"}

  def launch(outcomes_0, outcomes_1, *args, **environ):
    box.outcomes(0, *outcomes_0)
    box.outcomes(1, *outcomes_1)
    return box.run("launch/tpu_vm.sh", *args, **environ)

  return launch


def steps(box):
  """What was done, without looking and waiting."""
  return [
    call for call in box.read("calls") if call not in ("list", "ssh all look")
  ]


BEGIN = ["create", "scp", "ssh all prepare", "ssh all start"]
FETCH = ["ssh 0 fetch", "ssh 1 fetch"]


def test_a_slice_is_made_and_the_run_is_started_on_all_workers(box, tpu_vm):
  status, output = tpu_vm([0], [0], "--config.seed=1")
  assert status == 0, output
  assert steps(box) == [*BEGIN, *FETCH]
  assert box.read("runs") == 2 * [
    "main.py --config=configs/student.py:images=gs://b/pile"
    " --workdir=gs://b/run's --config.seed=1"
  ]
  for worker in (0, 1):
    assert "the run: 0" in box.log(f"worker-{worker}")
  assert "--spot" in box.read("create")[0]
  assert "is billed" in output


def test_a_run_that_saved_itself_is_started_again(box, tpu_vm):
  status, output = tpu_vm([42, 42, 0], [42, 42, 0])
  assert status == 0, output
  again = [*FETCH, "ssh all start"]
  assert steps(box) == [*BEGIN, *again, *again, *FETCH]
  assert len(box.read("runs")) == 6


def test_a_preempted_slice_is_asked_for_again(box, tpu_vm):
  status, output = tpu_vm(["preempted", 0], ["preempted", 0])
  assert status == 0, output
  assert steps(box) == [*BEGIN, "delete", *BEGIN, *FETCH]


def test_a_rebooted_worker_starts_the_run_again(box, tpu_vm):
  # The others lose their peer, and abort.
  status, output = tpu_vm(["reboot", 0], [134, 0])
  assert status == 0, output
  assert steps(box) == [*BEGIN, "ssh all stop", "ssh all start", *FETCH]


@pytest.mark.parametrize("others", [1, 0, 42, "hang"])
def test_a_failure_ends_the_run_with_its_status(box, tpu_vm, others):
  status, output = tpu_vm([1, 0], [others, 0])
  assert status == 1
  assert "failed with status 1" in output
  assert steps(box) == [*BEGIN, "ssh all stop", *FETCH]
  assert len(box.read("runs")) == 2


def test_a_request_that_fails_is_not_repeated(box, tpu_vm):
  (box.fake / "states").write_text("FAILED")
  status, output = tpu_vm([], [])
  assert status == 1
  assert "no such accelerator type" in output
  assert steps(box) == ["create", "describe"]


def test_a_slice_that_is_there_is_used(box, tpu_vm):
  assert tpu_vm([0], [0])[0] == 0
  (box.fake / "calls").unlink()
  # What ran before was another run, or has failed since: start anew.
  assert tpu_vm([0], [0])[0] == 0
  assert steps(box) == [*BEGIN[1:], *FETCH]


def test_a_run_that_still_goes_is_found_again(box, tpu_vm):
  assert tpu_vm([0], [0])[0] == 0
  (box.fake / "calls").unlink()
  # A run that nobody watches, and that ends while the launcher waits.
  for worker in (0, 1):
    must_jax = box.fake / "workers" / str(worker) / "must_jax"
    (must_jax / "status").rename(must_jax / "later")
  box.program(
    "sleep",
    'for w in "$FAKE"/workers/*/must_jax; do mv $w/later $w/status; done',
  )
  command = [sys.executable, "-S", "-c", "print(); input()", "main.py"]
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
  ) as process:
    process.stdout.readline()  # it runs
    for pid in (box.fake / "workers").glob("*/must_jax/pid"):
      pid.write_text(str(process.pid))
    status, output = tpu_vm([], [])
    process.communicate(b"\n")
  assert status == 0, output
  assert steps(box) == FETCH


def test_the_slice_is_given_back_if_asked(box, tpu_vm):
  assert tpu_vm([0], [0], DELETE="1", SPOT="")[0] == 0
  assert steps(box) == [*BEGIN, *FETCH, "delete"]
  assert "--spot" not in box.read("create")[0]


def test_slices_that_label_together_are_numbered(box, tpu_vm):
  assert tpu_vm([0], [0], SLICE="3", SLICES="8")[0] == 0
  start = "worker 3 of 8: main.py --config="
  assert [line[: len(start)] for line in box.read("runs")] == [start] * 2


def test_the_slice_has_the_rights_of_an_account(box, tpu_vm):
  tpu_vm([0], [0], SERVICE_ACCOUNT="must@p.iam.gserviceaccount.com")
  assert "--service-account=must@p.iam" in box.read("create")[0]


def test_a_dry_run_prints_all_and_runs_nothing(box, tpu_vm):
  status, output = tpu_vm([], [], "--config.seed=1", DRY_RUN="1")
  assert status == 0
  assert not box.read("calls")
  found = re.findall(
    r"queued-resources create|git .* archive|scp|tar xzf|setsid|"
    r"queued-resources delete",
    output,
  )
  assert [f.split()[-1] for f in found] == [
    "create",
    "archive",
    "scp",
    "xzf",
    "setsid",
    "delete",
  ]


def test_what_is_missing_is_named(tpu_vm):
  status, output = tpu_vm([], [], ZONE="")
  assert status == 1
  assert "ZONE: is not set" in output
