import os
import pathlib
import re
import signal

import pytest

SLURM = pathlib.Path(__file__).parents[2] / "launch" / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))

# Of sbatch(1), with the form of the value; None for none.
OPTIONS = {
  "array": r"\d+-\d+",
  "cpus-per-task": r"\d+",
  "gres": r"gpu:\d+",
  "job-name": r"\w+",
  "mem": r"0",
  "nodes": r"\d+",
  "ntasks": r"\d+",
  "ntasks-per-node": r"\d+",
  "open-mode": r"append",
  "output": r"%x-(%j|%A_%a)\.log",
  "requeue": None,
  "signal": r"B:TERM@120",
  "time": r"\d\d:\d\d:\d\d",
}

# The run is a process of its own; srun kills it where it is told to end itself.
SRUN = """
echo "srun $*" >>"$FAKE/calls"
while [[ $1 == -* ]]; do shift; done
"$@" &
echo $! >"$FAKE/task"
trap 'kill -KILL $!; exit 137' TERM
wait $!
"""


def header(script):
  """Options of a batch script; sbatch stops reading at the first command."""
  options = {}
  for line in script.read_text().splitlines()[1:]:
    if not line.startswith("#"):
      break
    if line.startswith("#SBATCH "):
      name, equals, value = line.removeprefix("#SBATCH --").partition("=")
      assert name not in options
      options[name] = value if equals else None
  return options


def test_there_are_scripts_to_train_label_and_sweep():
  assert [s.stem for s in SCRIPTS] == ["label", "sweep", "train"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_headers_hold_options_of_sbatch(script):
  text, options = script.read_text(), header(script)
  assert text.startswith("#!/usr/bin/env bash\n")
  assert text.count("#SBATCH ") == len(options)  # none comes too late
  for name, value in options.items():
    form = OPTIONS[name]
    assert value is None if form is None else re.fullmatch(form, value)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_jobs_hear_of_their_end_and_come_back(script):
  options = header(script)
  assert options["signal"] == "B:TERM@120"
  assert "requeue" in options
  assert options["open-mode"] == "append"  # the log of before stays


def test_training_has_a_process_on_each_gpu():
  options = header(SLURM / "train.sbatch")
  assert options["gres"] == f"gpu:{options['ntasks-per-node']}"
  for script in SCRIPTS:  # these would hide the other GPUs of the node
    assert not re.search(r"(SBATCH|srun).*--gpu", script.read_text())


@pytest.mark.parametrize("name", ["label", "sweep"])
def test_tasks_of_arrays_are_one_process(name):
  options = header(SLURM / f"{name}.sbatch")
  assert (options["nodes"], options["ntasks"]) == ("1", "1")
  assert "array" in options


def test_the_sweep_has_a_run_for_each_task():
  last = int(header(SLURM / "sweep.sbatch")["array"].split("-")[1])
  runs = re.search(
    r"^RUNS=\((.*?)^\)", (SLURM / "sweep.sbatch").read_text(), re.M | re.S
  )
  assert len(re.findall(r'"--config.*"', runs[1])) == last + 1


@pytest.fixture
def slurm(box, run_code):
  """The environment and programs of a job."""
  box.program("python", run_code)
  box.program("srun", SRUN)
  box.program(
    "scancel",
    'echo "scancel $*" >>"$FAKE/calls"; kill -TERM "$(cat "$FAKE/task")"',
  )
  box.program("squeue", 'cat "$FAKE/state"')
  box.program("scontrol", 'echo "scontrol $*" >>"$FAKE/calls"')
  (box.fake / "state").write_text("RUNNING\n")
  box.environ |= {
    "CONFIG": "configs/x.py",
    "WORKDIR": "/shared/run",
    "SLURM_JOB_ID": "77",
    "SLURM_CPUS_PER_TASK": "12",
  }
  return box


ARRAY = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}
JOBS = [("train", {}, "77"), ("label", ARRAY, "70_2"), ("sweep", ARRAY, "70_2")]
jobs = pytest.mark.parametrize(("name", "environ", "job"), JOBS)


def calls(slurm):
  """What was called after the step."""
  srun, *rest = slurm.read("calls")
  assert srun.startswith("srun --cpus-per-task=12 ")
  return rest


@jobs
def test_a_job_that_is_done_ends(slurm, name, environ, job):
  slurm.outcomes(slurm.name, 0)
  status, output = slurm.run(f"launch/slurm/{name}.sbatch", "--x", **environ)
  assert status == 0, output
  assert calls(slurm) == []
  (run,) = slurm.read("runs")
  assert run.startswith("main.py --config=configs/x.py --workdir=/shared/run")
  assert run.endswith("--x")


@jobs
def test_a_job_that_saved_itself_is_requeued(slurm, name, environ, job):
  slurm.outcomes(slurm.name, 42)
  status, _ = slurm.run(f"launch/slurm/{name}.sbatch", **environ)
  assert status == 42
  assert calls(slurm) == [f"scontrol requeue {job}"]


@jobs
@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING"])
def test_before_its_time_is_over_a_job_saves_itself(
  slurm, name, environ, job, state
):
  (slurm.fake / "state").write_text(f"{state}\n")
  slurm.outcomes(slurm.name, "wait")
  process = slurm.start(f"launch/slurm/{name}.sbatch", **environ)
  slurm.wait_for_run()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 42
  assert calls(slurm) == [
    f"scancel --signal=TERM {job}",
    f"scontrol requeue {job}",
  ]


@jobs
def test_a_job_that_was_cancelled_stays_away(slurm, name, environ, job):
  slurm.outcomes(slurm.name, 42)
  (slurm.fake / "state").write_text("COMPLETING\n")
  status, _ = slurm.run(f"launch/slurm/{name}.sbatch", **environ)
  assert status == 42
  assert calls(slurm) == []


def test_a_job_that_is_cancelled_gets_no_second_signal(slurm):
  (slurm.fake / "state").write_text("COMPLETING\n")
  slurm.outcomes(slurm.name, "wait")
  process = slurm.start("launch/slurm/train.sbatch")
  slurm.wait_for_run()
  process.send_signal(signal.SIGTERM)
  # SLURM itself tells the step.
  (task,) = slurm.read("task")
  os.kill(int(task), signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 42
  assert calls(slurm) == []


@jobs
@pytest.mark.parametrize("failure", [1, 3, 134])
def test_a_job_that_fails_ends(slurm, name, environ, job, failure):
  slurm.outcomes(slurm.name, failure)
  status, _ = slurm.run(f"launch/slurm/{name}.sbatch", **environ)
  assert status == failure
  assert calls(slurm) == []


def test_a_step_of_several_processes_waits_for_all_to_save(slurm):
  slurm.outcomes(slurm.name, 0)
  slurm.run("launch/slurm/train.sbatch")
  (srun,) = slurm.read("calls")
  assert "--kill-on-bad-exit=0 --wait=300" in srun


def test_runs_of_a_sweep_differ(slurm):
  slurm.outcomes(slurm.name, 0, 0, 0)
  for task in ("0", "1", "2"):
    environ = ARRAY | {"SLURM_ARRAY_TASK_ID": task}
    assert slurm.run("launch/slurm/sweep.sbatch", **environ)[0] == 0
  runs = slurm.read("runs")
  assert len(set(runs)) == 3
  for task, run in enumerate(runs):
    assert f"--workdir=/shared/run/{task} --config.optimizer.lr=" in run


def test_a_task_without_a_run_is_an_error(slurm):
  environ = ARRAY | {"SLURM_ARRAY_TASK_ID": "3"}
  status, output = slurm.run("launch/slurm/sweep.sbatch", **environ)
  assert status == 2
  assert "--array=0-2" in output


def test_a_sweep_runs_lists_of_commands(slurm, tmp_path):
  jobs = tmp_path / "jobs"
  jobs.write_text(
    "# --array=0-1\npython main.py first\n"
    "python main.py 'a b' '$HOME'\n# --array=2-2\npython main.py last\n"
  )
  del slurm.environ["CONFIG"], slurm.environ["WORKDIR"]
  slurm.outcomes(slurm.name, 0, 42)
  for task, expected in (("1", 0), ("2", 42), ("3", 2)):
    environ = {**ARRAY, "SLURM_ARRAY_TASK_ID": task, "JOBS": str(jobs)}
    status, output = slurm.run("launch/slurm/sweep.sbatch", **environ)
    assert status == expected, output
  assert "--array=0-2" in output
  assert slurm.read("runs") == ["main.py a b $HOME", "main.py last"]
  assert "scontrol requeue 70_2" in slurm.read("calls")
  environ["JOBS"] += "x"
  status, output = slurm.run("launch/slurm/sweep.sbatch", **environ)
  assert (status, "there is no such file" in output) == (2, True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_what_is_missing_is_named(slurm, script):
  del slurm.environ["WORKDIR"]
  status, output = slurm.run(f"launch/slurm/{script.name}", **ARRAY)
  assert status == 1
  assert "WORKDIR: is not set" in output
