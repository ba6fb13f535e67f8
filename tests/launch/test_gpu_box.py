import signal

import pytest

LABEL = {"CONFIG": "configs/label.py:teacher=t", "WORKDIR": "runs/labels/t"}
TRAIN = {"CONFIG": "configs/student.py:images=i", "WORKDIR": "runs/student"}


@pytest.fixture
def gpu_box(box, run_code):
  box.program("nvidia-smi", "echo 0; echo 1")
  box.program("nproc", "echo 12")
  box.program("python", run_code)
  box.environ["RESTART_SECONDS"] = "0"

  def launch(*args, **environ):
    return box.run("launch/gpu_box.sh", *args, **environ)

  return launch


def test_training_is_started_again_until_it_is_done(box, gpu_box):
  box.outcomes(box.name, 42, 42, 0)
  status, _ = gpu_box("train", "--config.seed=1", **TRAIN)
  assert status == 0
  assert box.read("runs") == 3 * [
    "main.py --config=configs/student.py:images=i --workdir=runs/student"
    " --config.seed=1"
  ]
  assert "the run: 42\nthe run: 42\nthe run: 0\n" in box.log("train")


@pytest.mark.parametrize("failure", [1, 3, 134])
def test_a_failure_ends_training_with_its_status(box, gpu_box, failure):
  box.outcomes(box.name, 42, failure, 0)
  status, output = gpu_box("train", **TRAIN)
  assert status == failure
  assert f"status {failure}" in output
  assert len(box.read("runs")) == 2


def test_labelling_has_a_worker_on_each_gpu(box, gpu_box):
  box.outcomes(0, 0)
  box.outcomes(1, 42, 0)
  status, _ = gpu_box("label", **LABEL)
  assert status == 0
  command = (
    "main.py --config=configs/label.py:teacher=t --workdir=runs/labels/t"
    " --config.data.num_threads=6"  # of 12 cores
  )
  assert sorted(box.read("runs")) == [
    f"gpu 0, worker 0 of 2: {command}",
    f"gpu 1, worker 1 of 2: {command}",
    f"gpu 1, worker 1 of 2: {command}",
  ]


def test_labelling_goes_on_where_a_worker_fails(box, gpu_box):
  box.outcomes(0, 1)
  box.outcomes(1, 42, 42, 0)
  status, _ = gpu_box("label", **LABEL)
  assert status == 1
  assert len(box.read("runs")) == 4


def test_some_gpus_can_be_chosen(box, gpu_box):
  box.outcomes(1, 0)
  assert gpu_box("label", GPUS="1", **LABEL)[0] == 0
  (run,) = box.read("runs")
  assert run.startswith("gpu 1, worker 0 of 1: main.py")


def test_workers_of_several_machines_are_numbered(box, gpu_box):
  box.outcomes(0, 0)
  box.outcomes(1, 0)
  assert gpu_box("label", BOX="1", BOXES="3", **LABEL)[0] == 0
  assert [line.partition(":")[0] for line in sorted(box.read("runs"))] == [
    "gpu 0, worker 2 of 6",
    "gpu 1, worker 3 of 6",
  ]


@pytest.mark.parametrize(
  ("signal_", "ignored"),
  [(signal.SIGTERM, ""), (signal.SIGINT, ""), (signal.SIGINT, "INT")],
)
@pytest.mark.parametrize(
  ("mode", "environ"),
  [("train", TRAIN), ("label", LABEL | {"GPUS": "0"})],
)
def test_a_signal_lets_the_run_save_itself(
  box, gpu_box, mode, environ, signal_, ignored
):
  """Where a script ignores the signal for its background job, too."""
  for run in (box.name, 0):
    box.outcomes(run, "wait", 0)
  process = box.start("launch/gpu_box.sh", mode, ignored=ignored, **environ)
  box.wait_for_run()
  process.send_signal(signal_)
  process.communicate(timeout=30)
  assert process.returncode == 42
  assert len(box.read("runs")) == 1  # not started again


def test_what_is_missing_is_named(gpu_box):
  status, output = gpu_box("train", CONFIG="configs/student.py")
  assert status == 1
  assert "WORKDIR: is not set" in output
  status, output = gpu_box("fly", **TRAIN)
  assert status == 2
  assert "fly is no mode" in output
