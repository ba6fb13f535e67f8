"""`must-jax <command>`; the verbs are runs of a config, see `main`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import must_jax
from must_jax.signals import heed_ctrl_c
from must_jax.storage.path import Path

# The stages of a run; `main` reads the rest of their command lines.
VERBS = {
  "train": "train by a config, or go on: must-jax train CONFIG --workdir=DIR",
  "label": "label an image set by a config, on any number of machines",
  "evaluate": "measure a run's latest checkpoint by a config",
}


def make_parser() -> argparse.ArgumentParser:
  """The parser of `must-jax`; of the verbs it knows the names alone."""
  parser = argparse.ArgumentParser(
    prog="must-jax", description="Multi-Task Self-Training in JAX."
  )
  parser.add_argument(
    "--version", action="version", version=f"must-jax {must_jax.__version__}"
  )
  commands = parser.add_subparsers(dest="command", required=True)
  for verb, text in VERBS.items():
    commands.add_parser(verb, help=text)

  configs = commands.add_parser(
    "configs", help="the shipped configs, with their arguments"
  )
  configs.add_argument("name", nargs="?", help="show all that is known of one")
  configs.set_defaults(run=_configs)

  demo = commands.add_parser(
    "demo", help="the paper's whole chain on an embedded world"
  )
  demo.add_argument(
    "--workdir", type=Path, help="by default runs/demo, or runs/photographs"
  )
  demo.add_argument(
    "--photos",
    action="store_true",
    help="on photographs instead, from a published backbone:"
    " `must-jax tables photographs`",
  )
  demo.add_argument(
    "--data", help="with --photos: where they were imported to, by default data"
  )
  demo.add_argument(
    "--full",
    action="store_true",
    help="three seeds, and longer training on the embedded world",
  )
  demo.add_argument(
    "--jobs", type=int, default=2, help="stages that run at a time"
  )
  demo.set_defaults(run=_demo)

  importer = commands.add_parser(
    "import", help="bring a dataset into sharded TFRecords"
  )
  importer.set_defaults(run=_import)
  importer.add_argument(
    "--list",
    action=_ListDatasets,
    nargs=0,
    help="show the datasets of the paper and leave",
  )
  from must_jax import importers
  from must_jax.importers import arguments
  from must_jax.input import show
  from must_jax.storage import verify

  importers.add_arguments(importer.add_subparsers(dest="kind", required=True))

  data = commands.add_parser("data", help="check an image set, or look at it")
  actions = data.add_subparsers(dest="action", required=True)
  verifier = actions.add_parser(
    "verify", help="read an image set or label set whole and check it"
  )
  verify.add_arguments(verifier)
  verifier.set_defaults(run=_verify)
  viewer = actions.add_parser(
    "show", help="print a summary and draw examples with their labels"
  )
  show.add_arguments(viewer)
  viewer.set_defaults(run=_show)

  convert = commands.add_parser(
    "convert", help="make a checkpoint of published weights, or the reverse"
  )
  convert.add_argument("kind", nargs="?", help="see --list")
  convert.add_argument(
    "weights",
    nargs="?",
    type=Path,
    help=".pt, .pth or .safetensors; for the kind must_jax also a checkpoint;"
    " needless where a package of pip has them (--list)",
  )
  convert.add_argument(
    "--out",
    type=Path,
    help="checkpoint directory to make; a .safetensors file where WEIGHTS is a"
    " checkpoint",
  )
  convert.add_argument(
    "--crop-fraction",
    type=float,
    metavar="F",
    help="of a classifier that was published with another centre crop: side of"
    " the crop over the shorter side of the image before it, such as 0.95",
  )
  convert.add_argument(
    "--list", action="store_true", help="show all kinds and leave"
  )
  convert.set_defaults(run=_convert)

  inspect = commands.add_parser(
    "inspect", help="progress, statistics and quality of a label set"
  )
  inspect.add_argument(
    "labels",
    type=Path,
    nargs="+",
    help="label set; several of the same images with --out",
  )
  inspect.add_argument(
    "--status", action="store_true", help="progress of the labelling job"
  )
  inspect.add_argument(
    "--min-score",
    type=float,
    help="count what is left at this score; by default the teacher's min_score",
  )
  inspect.add_argument(
    "--images", type=Path, help="image set, for --out and --gallery"
  )
  inspect.add_argument(
    "--truth",
    type=Path,
    help="image set with the same records and true labels, to measure against;"
    " the result is kept in the manifest. With --out, to compare with on the"
    " page",
  )
  inspect.add_argument(
    "--out",
    type=Path,
    metavar="FOLDER",
    help="make a page to look at labels, sort, filter and select them in a"
    " browser; needs --images",
  )
  inspect.add_argument(
    "--single-file",
    action="store_true",
    help="the page is one file, of at most 500 images",
  )
  inspect.add_argument(
    "--count",
    type=int,
    default=10_000,
    help="images on the page, of more a random choice; default %(default)s",
  )
  inspect.add_argument(
    "--max-side",
    type=int,
    default=512,
    help="longer side of its pictures; default %(default)s",
  )
  inspect.add_argument(
    "--against",
    type=Path,
    nargs="+",
    default=(),
    metavar="OTHER",
    help="label sets of the same images (of other teachers, of another round),"
    " or an image set with true labels: how far they agree, by class",
  )
  inspect.add_argument(
    "--worst",
    type=int,
    default=10,
    metavar="N",
    help="images to name on which --against disagrees most; default"
    " %(default)s",
  )
  inspect.add_argument(
    "--gallery", type=Path, help="PNG to write, needs --images"
  )
  inspect.set_defaults(run=_inspect)

  from must_jax.curation import threshold_arguments

  chooser = commands.add_parser(
    "thresholds",
    help="propose from which scores labels are read, by class",
  )
  threshold_arguments.add(chooser)
  chooser.set_defaults(run=_thresholds)
  from must_jax.curation import labels_arguments

  labels = commands.add_parser(
    "labels", help="labels to tools in which people mend them, and back"
  )
  ways = labels.add_subparsers(dest="action", required=True)
  goer = ways.add_parser(
    "export", help="write labels and images for COCO's tools, CVAT and others"
  )
  labels_arguments.add_export(goer)
  goer.set_defaults(run=_labels_export)
  comer = ways.add_parser(
    "import", help="make a label set of corrections that came back"
  )
  labels_arguments.add_import(comer)
  comer.set_defaults(run=_labels_import)

  from must_jax.preflight import doctor

  checker = commands.add_parser(
    "doctor", help="check machine, workdir and config before a run"
  )
  doctor.add_arguments(checker)
  checker.set_defaults(run=_doctor, overrides=())

  from must_jax.lab import tables_command as tables

  tabler = commands.add_parser("tables", help="the tables of the paper")
  tables.add_arguments(tabler)
  tabler.set_defaults(run=_tables)

  plan = commands.add_parser(
    "plan",
    help="what a config needs of a TPU slice, compiled without one;"
    " --config.NAME=VALUE as in a run",
  )
  from must_jax.preflight import plan_arguments

  plan_arguments.add_arguments(plan)
  plan.set_defaults(run=_plan, overrides=())

  from must_jax.export import export_arguments

  carder = commands.add_parser(
    "card", help="what a model is: a page with the metadata of model hubs"
  )
  export_arguments.add_card(carder)
  carder.set_defaults(run=_card)

  predict = commands.add_parser(
    "predict",
    help="write what a checkpoint sees in photos: JSON, maps, pictures",
  )
  predict.add_argument("checkpoint", type=Path)
  predict.add_argument(
    "images",
    type=Path,
    nargs="+",
    help="files, folders, or lists (.txt) of files, a path a line",
  )
  predict.add_argument(
    "--out",
    type=Path,
    required=True,
    help="folder to make; broken off, the same command goes on",
  )
  predict.add_argument(
    "--tasks", nargs="+", default=(), help="some of the checkpoint's; all"
  )
  predict.add_argument(
    "--format",
    nargs="+",
    help="some of json (always written), png and npy (maps), pictures; by"
    " default all",
  )
  predict.add_argument(
    "--min-score",
    type=float,
    metavar="S",
    help="leave out what has a lower score; by default JSON and maps have all,"
    " and pictures what reaches the task's own threshold",
  )
  predict.add_argument(
    "--batch-size",
    type=int,
    default=16,
    help="photos that this machine's devices get at a time; default"
    " %(default)s",
  )
  predict.add_argument(
    "--max-side",
    type=int,
    default=0,
    help="longer side of the pictures; by default that of the photos",
  )
  arguments.add_code_range(predict)
  predict.set_defaults(run=_predict)

  exporter = commands.add_parser(
    "export",
    help="a checkpoint as a file that runs elsewhere, checked in its runtime",
  )
  export_arguments.add_export(exporter)
  exporter.set_defaults(run=_export)
  return parser


class _ListDatasets(argparse.Action):
  """Prints the datasets that `must-jax import` knows by name."""

  def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
    from must_jax.importers import datasets

    datasets.print_list()
    parser.exit()


def _configs(args: argparse.Namespace) -> int:
  from must_jax.preflight import configs_command

  return configs_command.run(args.name)


def _demo(args: argparse.Namespace) -> int:
  if args.photos:
    options = {"workdir": args.workdir or "runs/photographs"}
    options |= {"data": args.data or "data", "jobs": args.jobs}
    options |= {"scale": "photos", "seeds": 3 if args.full else 1}
    words = [f"--{name}={value}" for name, value in options.items()]
    return main(["tables", "photographs", *words])
  if args.data:
    raise ValueError("--data says where photographs are; add --photos.")
  from must_jax.lab import demo

  workdir = args.workdir or Path("runs/demo")
  return demo.run(workdir, full=args.full, jobs=args.jobs)


def _import(args: argparse.Namespace) -> int:
  from must_jax import importers

  return importers.run(args)


def _verify(args: argparse.Namespace) -> int:
  from must_jax.storage import verify

  return verify.run(args)


def _show(args: argparse.Namespace) -> int:
  from must_jax.input import show

  return show.run(args)


def _convert(args: argparse.Namespace) -> int:
  from must_jax.convert import convert_command

  return convert_command.run(args)


def _inspect(args: argparse.Namespace) -> int:
  from must_jax.curation import inspect

  return inspect.run(args)


def _thresholds(args: argparse.Namespace) -> int:
  from must_jax.curation import thresholds

  return thresholds.run(args)


def _labels_export(args: argparse.Namespace) -> int:
  from must_jax.curation import labels_command

  return labels_command.run_export(args)


def _labels_import(args: argparse.Namespace) -> int:
  from must_jax.curation import labels_command

  return labels_command.run_import(args)


def _doctor(args: argparse.Namespace) -> int:
  from must_jax.preflight import doctor
  from must_jax.train.build import build

  return doctor.run(args, compile_step=lambda c: build(c).lower().compile())


def _tables(args: argparse.Namespace) -> int:
  from must_jax.lab import tables_command

  return tables_command.run(args)


def _plan(args: argparse.Namespace) -> int:
  from must_jax.preflight import plan

  return plan.run(args, args.overrides)


def _card(args: argparse.Namespace) -> int:
  from must_jax.export import card

  return card.run(args)


def _predict(args: argparse.Namespace) -> int:
  from must_jax.export import predict

  options = predict.PredictOptions(
    tasks=tuple(args.tasks),
    formats=tuple(args.format or predict.FORMATS),
    min_score=args.min_score,
    max_side=args.max_side,
    code_range=args.code_range and tuple(args.code_range),
    batch_size=args.batch_size,
  )
  return predict.run(args.checkpoint, args.images, args.out, options)


def _export(args: argparse.Namespace) -> int:
  from must_jax.export import export_command

  return export_command.run(args)


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `must-jax`; returns the exit status.

  Raises:
    SystemExit: of a verb, and where arguments are wrong.
  """
  heed_ctrl_c()
  words = sys.argv[1:] if argv is None else [*argv]
  if words and words[0] in VERBS:
    from must_jax import main as runs

    runs.run(words[0], words[1:])
  parser = make_parser()
  args, rest = parser.parse_known_args(words)
  if rest and not hasattr(args, "overrides"):
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  args.overrides = rest
  try:
    return args.run(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(
      "\nInterrupted. The same command continues, or begins anew.",
      file=sys.stderr,
    )
    return 130


if __name__ == "__main__":
  sys.exit(main())
