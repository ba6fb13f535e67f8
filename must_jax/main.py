"""A run: its flags, platform set-up, and dispatch on `config.stage`.

`python main.py --config=CONFIG` runs what the config says, and the verbs of
`must-jax`, which are the stages, what they say. The stages, all with the config
of the run and its directory:

  train     trains (the default), and goes on where the run was; a teacher, a
            student and a fine-tuned model are configs of it
  label     labels the images of `config.label.dataset` with the checkpoint
            `config.label.teacher`; workdir: of the label set
  evaluate  evaluates the latest checkpoint in the workdir on
            `config.evaluate_on`, and logs the metrics
"""

import functools
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax import stage
from must_jax.input.quarantine import TooManyBad
from must_jax.preflight import places
from must_jax.signals import heed_ctrl_c
from must_jax.storage import path

_CONFIG = flags.DEFINE_string(
  "config",
  None,
  "CONFIG or CONFIG:ARG, where CONFIG is a file, or the name of a shipped"
  " config (`must-jax configs`); --config.NAME=VALUE sets an option of it, as"
  " often as given. --config.stage says what is done with it: train (the"
  " default), label, or evaluate (metrics of the workdir's latest checkpoint on"
  " config.evaluate_on, which are logged). The verbs of must-jax say that, and"
  " take CONFIG without the flag.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: checkpoints, metrics, labels."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Processes of the run, where no launcher (TPU, SLURM, Open MPI) says it.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "This process's id among them, from 0."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0."
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  "initialization_timeout", 300, "Seconds to wait for all processes to start."
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout",
  100,
  "Seconds after which a silent process counts as dead, and the others end.",
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  os.environ.get("JAX_COMPILATION_CACHE_DIR"),
  "Directory of compiled programs, for the next start; empty for none. All"
  " processes of a run must see it: by default it is in the workdir if there"
  " are several, else in ~/.cache.",
)
_RUNNER = flags.DEFINE_string(
  "runner",
  None,
  "Of Apache Beam, such as DirectRunner, DataflowRunner, FlinkRunner: labels as"
  " a pipeline, a shard an element. Without Beam, start the same labelling"
  " command on as many machines as there are.",
)
_BEAM_OPTIONS = flags.DEFINE_string(
  "beam_options",
  "",
  "Of the runner, such as '--project=p --region=us-central1'.",
)
# Stages of the configs that a verb takes; the verb is the stage that it runs.
_TAKES = {
  "train": ("train",),
  "label": ("label",),
  "evaluate": ("train", "evaluate"),
}
_HELP = """\
usage: {program} CONFIG[:ARG] --workdir=DIR [--config.NAME=VALUE ...]

CONFIG is the name of a shipped config (must-jax configs), or a file. Flags are
written with - or _; --flagfile=FILE reads them from a file.
{flags}"""


def run_stage(
  config: ConfigDict,
  workdir: str,
  run: Callable[[ConfigDict, str], Any] = stage.run,
) -> Any:
  """Runs what `config.stage` names; returns its result.

  Args:
    config: of the run.
    workdir: of the run.
    run: what runs the stage, once all that it reads is known to be there.

  Raises:
    ValueError: the config is not valid, or does not fit what there is; nothing
      is written if what it reads is not all there.
    OSError: a bucket is not there, may not be used, or does not answer.
  """
  config_lib.validate(config)
  path.check_reachable(workdir)
  places.check(config, workdir)
  return run(config, workdir)


def _label_by_beam(config: ConfigDict, workdir: str) -> None:
  from must_jax.pseudo_label.job import ALARM
  from must_jax.storage import label_sets

  stage.quiet_libraries()
  try:
    from must_jax.pseudo_label import pipeline
  except ModuleNotFoundError as error:
    raise ValueError(
      f"--runner needs {error.name}: pip install 'must_jax[beam]'."
    ) from None
  runner, options = _RUNNER.value, shlex.split(_BEAM_OPTIONS.value)
  assert runner is not None
  manifest = pipeline.run(config, workdir, runner, options)
  output = config.label.output or workdir
  print(f"{manifest['num_records']:,} records: {output}")
  for name, left in label_sets.summary(manifest).items():
    print(f"  {name}: {left}")
  if manifest["alarms"]:
    sys.exit(ALARM)


def initialize_distributed() -> None:
  """Joins the other processes, if there are any.

  Raises:
    ValueError: it is not said how.
  """
  import jax

  from must_jax.train.launcher import find_launch

  needed = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
  missing = [flag.name for flag in needed if flag.value is None]
  if not missing:
    launcher = "--num_processes"
    if not re.fullmatch(r".+:\d+", _COORDINATOR.value or ""):
      raise ValueError(
        f"--coordinator is {_COORDINATOR.value!r}; expected HOST:PORT, which"
        " process 0 listens at and all others reach."
      )
  elif len(missing) < len(needed):
    raise ValueError(
      "--coordinator, --num_processes and --process_id say together where a"
      f" process belongs; not given: {', '.join(missing)}."
    )
  elif (launch := find_launch(os.environ)).num_processes > 1:
    launcher = launch.launcher
  else:
    return

  # JAX's own deadline ends the process with a stack trace.
  seconds = _INITIALIZATION_TIMEOUT.value
  alarm = threading.Timer(seconds, _give_up_waiting, (launcher,))
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      initialization_timeout=seconds + 60,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f"This process cannot join the others that {launcher} names: {error}"
      " Under SLURM, start it by srun; else give --coordinator,"
      " --num_processes and --process_id."
    ) from error
  finally:
    alarm.cancel()


def _give_up_waiting(launcher: str) -> None:
  seconds = _INITIALIZATION_TIMEOUT.value
  where = f" at {_COORDINATOR.value}" if _COORDINATOR.value else ""
  print(
    f"error: the processes that {launcher} names have not met{where} within"
    f" {seconds} s. Start all of them; every one must reach the address of"
    " process 0. --initialization_timeout is for those that start late.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def keep_compiled_programs(directory: str | None, workdir: str) -> None:
  """Spares the next start what this one compiles.

  Only process 0 writes. On GPUs the processes compile together, so either all
  of them find a program or none does.

  Args:
    directory: "" for none, None for the default.
    workdir: of the run.
  """
  import jax

  if directory is None:
    directory = os.path.join(workdir, "compiled")
    if not jax.distributed.is_initialized():
      cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
      directory = os.path.join(cache, "must_jax", "compiled")
  if directory and "://" not in directory:
    try:
      os.makedirs(directory, exist_ok=True)
      tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
      logging.warning("Compiled programs are not kept: %s", error)
      directory = ""
  jax.config.update("jax_compilation_cache_dir", directory or None)


def _main(verb: str, argv: list[str]) -> None:
  from must_jax.train.guard import TrainingDiverged

  try:
    config, workdir = _read_flags(verb, argv[1:])
    if config.stage != "label":  # whose workers need nobody
      initialize_distributed()
    keep_compiled_programs(_COMPILATION_CACHE.value, workdir)
    run_stage(config, workdir, _label_by_beam if _RUNNER.value else stage.run)
  except (ValueError, OSError, TooManyBad, TrainingDiverged) as error:
    # What a user can mend needs no traceback; --verbosity=1 shows it.
    logging.debug("", exc_info=True)
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print("\nInterrupted. The same command goes on.", file=sys.stderr)
    sys.exit(130)


def _read_flags(verb: str, overrides: Sequence[str]) -> tuple[ConfigDict, str]:
  """The config and the workdir of the command line.

  Args:
    verb: a stage, which becomes the config's; "" for what the config says.
    overrides: "--config.NAME=VALUE" each.

  Raises:
    ValueError: flags are missing, or contradict each other or the config.
  """
  program = f"must-jax {verb} " if verb else "python main.py --config="
  example = "label:kind=depth" if verb == "label" else "student:images=DIR"
  if not _CONFIG.value:
    raise ValueError(
      f"There is no config; expected {program}CONFIG --workdir=DIR, such as"
      f" {program}{example}, with a file or with a name of `must-jax configs`."
    )
  if not _WORKDIR.value:
    raise ValueError(
      "There is no --workdir; expected the directory of the run, which is made,"
      f" or goes on: {program}{_CONFIG.value} --workdir=DIR."
    )
  config = config_lib.load(_CONFIG.value, overrides, path.read_file)
  given = config.stage
  if verb and given in config_lib.STAGES:  # else `validate` says what is wrong
    is_override = any(re.match(r"--?config\.stage\b", o) for o in overrides)
    if is_override and given != verb:
      raise ValueError(
        f"--config.stage is {given!r}, and `must-jax {verb}` runs {verb!r}."
        f" Leave the option out, or call `must-jax {given}`."
      )
    if given not in _TAKES[verb]:
      raise ValueError(
        f"{_CONFIG.value} is a config of stage {given!r}; expected one that"
        f" `must-jax {verb}` takes, such as {example}. It runs by"
        f" `must-jax {given}`."
      )
    config.stage = verb
  for flag in (_RUNNER, _BEAM_OPTIONS):
    if flag.value and config.stage != "label":
      raise ValueError(
        f"--{flag.name} is {flag.value!r}; only labelling runs on Apache Beam,"
        f" and {_CONFIG.value} is run as stage {config.stage!r}. Leave it out."
      )
  if _BEAM_OPTIONS.value and not _RUNNER.value:
    raise ValueError(
      f"--beam_options is {_BEAM_OPTIONS.value!r}, of no runner; name it:"
      " --runner=DataflowRunner."
    )
  return config, _WORKDIR.value


def _parse_flags(verb: str, argv: list[str]) -> list[str]:
  """Parses our own flags; returns the rest, which set options of the config."""
  flags.FLAGS.set_gnu_getopt(True)  # CONFIG may stand anywhere
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    flag.unparse()  # what another call in this process has set
  own: list[str] = []
  overrides: list[str] = []
  taker = own
  for arg in flags.FLAGS.read_flags_from_files(argv, force_gnu=False):
    if re.match(r"--?(no)?config\.", arg):
      overrides.append(arg)
      taker = own if "=" in arg else overrides
    elif re.match(r"--?[a-z]", arg):
      name, equals, value = arg.partition("=")
      name = name.lstrip("-").replace("-", "_")
      own.append(f"--{name}{equals}{value}")
      taker = own
    else:  # the value of the flag before it
      taker.append(arg)
  if {"--h", "--help", "--helpshort"} & {*own}:
    known = flags.FLAGS.module_help(__name__)
    print(_HELP.format(program=argv[0], flags=known))
    sys.exit(0)
  try:
    words = flags.FLAGS(own)
  except flags.Error as error:
    sys.exit(f"error: {error}\nPass --help or --helpfull to see help on flags.")
  if verb and len(words) > 1 and not _CONFIG.present:
    flags.FLAGS[_CONFIG.name].parse(words.pop(1))
  return words + overrides


def run(verb: str = "", argv: Sequence[str] | None = None) -> None:
  """Entry point of `main.py` and of the verbs of `must-jax`; ends the process.

  Args:
    verb: a stage, which is run of the config; "" for the config's own.
    argv: the command line without the program; by default the process's.
  """
  heed_ctrl_c()
  flags.FLAGS.set_default("verbosity", logging.INFO)
  app.run(
    functools.partial(_main, verb),
    [
      f"must-jax {verb}" if verb else "main.py",
      *(sys.argv[1:] if argv is None else argv),
    ],
    flags_parser=functools.partial(_parse_flags, verb),
  )
