"""`must-jax tables`: the tables of the paper, each as one command."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from must_jax.lab.paper_tables import ALIASES, SCALES, TABLES
from must_jax.lab.stages import MADE_BY_OTHER_CODE, Stage, StageError, Stages
from must_jax.storage.path import Path, make_directory

if TYPE_CHECKING:
  from must_jax.lab.experiment import Experiment
  from must_jax.lab.scales import Prerequisite, Scale


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `must-jax tables`."""
  parser.add_argument(
    "tables",
    nargs="+",
    metavar="TABLE",
    choices=(*TABLES, *ALIASES, "all"),
    help=f"{', '.join(TABLES)} or all; "
    + ", ".join(f"{other} is {name}" for other, name in ALIASES.items()),
  )
  parser.add_argument(
    "--workdir",
    type=Path,
    required=True,
    help="keeps everything; the same command continues",
  )
  parser.add_argument(
    "--scale",
    choices=SCALES,
    default="mini",
    help="mini: the embedded world, on a CPU; photos: sets of photographs and"
    " a published backbone; paper: configs/ on the datasets",
  )
  parser.add_argument(
    "--data",
    default="data",
    help="where the datasets were imported to, each by its name (not mini)",
  )
  parser.add_argument(
    "--seeds", type=int, default=1, help="of pre-training and fine-tuning"
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="select learning rate and steps of each transfer",
  )
  parser.add_argument(
    "--jobs", type=int, default=2, help="stages that run at a time"
  )
  parser.add_argument(
    "--chip",
    choices=("v4", "v5e", "v5p", "v6e"),
    help="with --dry-run: what the stages cost on such chips (paper)",
  )
  mode = parser.add_mutually_exclusive_group()
  mode.add_argument(
    "--dry-run", action="store_true", help="list the stages and run nothing"
  )
  mode.add_argument(
    "--print-jobs",
    action="store_true",
    help="print a command for each stage that is not done, and run nothing",
  )
  mode.add_argument("--stage", help="run this stage only, and write no table")


def run(args: argparse.Namespace) -> int:
  """Runs what is not done yet, or says what that is.

  Returns:
    The exit status: 1 if a stage failed.

  Raises:
    ValueError: the arguments do not fit, or something is not there.
  """
  for name in ("seeds", "jobs"):
    if getattr(args, name) < 1:
      raise ValueError(
        f"--{name} is {getattr(args, name)}; expected 1 or more."
      )
  if args.chip and not (args.dry_run and args.scale == "paper"):
    raise ValueError("--chip prices a --dry-run of --scale=paper; add these.")
  from must_jax.lab.experiment import Experiment

  names = _tables(args.tables, args.scale)
  tables = [table for name in names for table in TABLES[name]]
  stages = Stages(args.workdir, args.jobs)
  seeds = tuple(range(args.seeds))
  experiment = Experiment(stages, _scale(args), seeds, args.sweep)
  for table in tables:
    experiment.add(table)
  command = ["must-jax", "tables", *names, *_options(args)]
  if args.dry_run:
    print("\n".join(describe(experiment)))
    if args.chip:
      for line in price(experiment, args.chip):
        print(line, flush=True)
    return 0
  if args.print_jobs:
    print("\n".join(jobs(experiment, command)))
    return 0
  if args.stage:
    return _run_stage(experiment, args.stage)
  _check_prerequisites(experiment, stages)
  # They import TensorFlow, which what ends above does without.
  from must_jax.lab import report_page, table_files

  report_page.check_libraries()
  make_directory(stages.workdir)
  failure = ""
  try:
    stages.run()
  except StageError as error:
    failure = str(error)
  for table in tables:
    print(f"\n{table.title}\n\n{experiment.results(table).to_text()}")
  table_files.write(stages.workdir, experiment, tables, shlex.join(command))
  for name in (table_files.MARKDOWN, table_files.PAGE, table_files.NUMBERS):
    print(stages.workdir / name)
  if failure:
    print(f"error: {failure}", file=sys.stderr)
  return int(bool(failure))


def describe(experiment: "Experiment") -> Iterator[str]:
  """Lines about every stage, and what is missing."""
  counts = dict.fromkeys(("done", "to do", "blocked"), 0)
  missing: dict[str, Prerequisite] = {}
  for directory, stage in experiment.stages.items():
    state = experiment.state(directory)
    counts[state] += 1
    yield f"{stage.name:<56}{state}"
    for line in _essentials(stage, experiment.classes.get(directory, {})):
      yield f"  {line}"
    if stage.after:
      names = [experiment.stages[path].name for path in stage.after]
      yield f"  after {', '.join(names)}"
    for item in experiment.unmet(directory):
      yield f"  without {item.path}"
      missing[item.path] = item
  total = sum(counts.values())
  states = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
  yield f"\n{total} stages: {states}."
  if outdated := len(experiment.stages.outdated):
    yield f"{outdated} of {total} {MADE_BY_OTHER_CODE}"
  for item in missing.values():
    splits = f" ({', '.join(item.splits)})" if item.splits else ""
    yield f"\n{item.path}{splits} is not there. To get it:"
    yield from (f"  {line}" for line in item.how.splitlines())


def price(experiment: "Experiment", chip: str) -> Iterator[str]:
  """Lines about what the stages cost."""
  from must_jax.lab.stage_costs import chip_hours
  from must_jax.preflight.chips import CHIPS
  from must_jax.preflight.estimate import HOPED_MFU

  worse, better = HOPED_MFU
  yield f"\nChip-hours of {chip}, at {better:.0%} and {worse:.0%} of its peak:"
  total, unknown = [0.0, 0.0], []
  for directory, hours in chip_hours(experiment, CHIPS[chip]):
    name = experiment.stages[directory].name
    if hours is None:
      unknown.append(name)
      continue
    yield f"  {name:<54}{hours[0]:>10,.0f} to {hours[1]:>7,.0f}"
    total = [a + b for a, b in zip(total, hours, strict=True)]
  yield f"  {'all':<54}{total[0]:>10,.0f} to {total[1]:>7,.0f}"
  if unknown:
    yield f"Not known, as their images are not counted: {', '.join(unknown)}."


def jobs(experiment: "Experiment", command: Sequence[str]) -> Iterator[str]:
  """A command for each stage that is not done, in waves.

  A wave is a comment and the commands that may run side by side once those
  above are done.
  """
  waves: dict[Path, int] = {}
  for directory, stage in experiment.stages.items():
    if not stage.is_done:
      waves[directory] = max(
        (waves[path] + 1 for path in stage.after if path in waves), default=0
      )
  first = 0
  for wave in range(max(waves.values(), default=-1) + 1):
    members = [directory for directory, at in waves.items() if at == wave]
    last = first + len(members) - 1
    yield f"# --array={first}-{last}" + (", after those above" if wave else "")
    for directory in members:
      name = experiment.stages[directory].name
      yield shlex.join([*command, f"--stage={name}"])
    first = last + 1


def _tables(names: Sequence[str], scale: str) -> list[str]:
  """The tables of these names, each once; "all" for all that the scale has.

  Raises:
    ValueError: a table has no rows at that scale.
  """
  there = [n for n in TABLES if any(table.at(scale) for table in TABLES[n])]
  if "all" in names:
    return there
  known = {ALIASES.get(name, name): name for name in names}
  for table, name in known.items():
    if table not in there:
      raise ValueError(
        f"{name} has no rows at the scale {scale!r}, which has"
        f" {', '.join(there)}; give --scale."
      )
  return list(known)


def _scale(args: argparse.Namespace) -> "Scale":
  if args.scale == "paper":
    from must_jax.lab.scale_paper import PaperScale

    return PaperScale(args.data)
  if args.scale == "photos":
    from must_jax.lab.scale_photos import PhotosScale

    return PhotosScale(args.data)
  from must_jax.lab.scale_mini import MINI

  return dataclasses.replace(MINI, sweep=args.sweep)


def _options(args: argparse.Namespace) -> list[str]:
  """The options that say what the stages are."""
  options = [f"--workdir={args.workdir}", f"--scale={args.scale}"]
  if args.scale != "mini":
    options.append(f"--data={args.data}")
  options.append(f"--seeds={args.seeds}")
  return options + ["--sweep"] * args.sweep


def _run_stage(experiment: "Experiment", name: str) -> int:
  found = [d for d, s in experiment.stages.items() if s.name == name]
  if not found:
    raise ValueError(
      f"--stage is {name!r}; these tables have no such stage, see --dry-run."
    )
  _check_prerequisites(experiment, found)
  try:
    experiment.stages.run_one(found[0])
  except StageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _check_prerequisites(
  experiment: "Experiment", stages: Iterable[Path]
) -> None:
  missing = {
    item.path: None
    for directory in stages
    if not experiment.stages[directory].is_done
    for item in experiment.unmet(directory)
  }
  if missing:
    raise ValueError(
      f"Not there: {', '.join(missing)}. --dry-run tells how to get them."
    )


def _essentials(stage: Stage, classes: Mapping[str, int]) -> list[str]:
  """What a stage does, in a line or two."""
  if stage.function.__name__ == "render":
    name, counts = stage.args
    splits = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    return [f"renders {name}: {splits}"]
  config = json.loads(stage.args[0])
  sets = config["datasets"]
  if stage.function.__name__ == "floor":
    places = [f"{sets[k]['dir']}:{sets[k]['split']}" for k in sets]
    return [f"measures on {places[1]} what is usual on {places[0]}"]
  if config["stage"] == "label":
    images = sets["images"]
    return [
      f"labels {images['dir']}:{images['split']}, batch"
      f" {config['label']['batch_size']}, by {config['label']['teacher']}"
    ]
  tasks = ", ".join(
    f"{name} ({classes[name]:,} classes)" if name in classes else name
    for name in config["tasks"]
  )
  images = ", ".join(
    f"{sets[name]['dir']}:{sets[name]['split']}" for name in config["train_on"]
  )
  height, width = config["data"]["image_size"]
  lines = [
    f"learns {tasks} on {images}",
    f"{config['train']['steps']:,} steps of {config['data']['batch_size']},"
    f" {height} x {width} pixels, {config['model']['backbone']}, learning rate"
    f" {config['optimizer']['lr']:g}",
  ]
  if config["init_from"]:
    lines.append(f"starts from {config['init_from']}")
  return lines
