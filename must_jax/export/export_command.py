"""`must-jax export`: a checkpoint as a file that runs without this package."""

import argparse
import contextlib
import sys
import tempfile

import must_jax
from must_jax.export import check, formats, signature
from must_jax.export.program import (
  ANY,
  ExportProgram,
  check_batch,
  make_program,
)
from must_jax.storage.path import (
  Path,
  list_tree,
  make_directory,
  publish,
  publish_json,
)

SIGNATURE, CHECK = "signature.json", "check.json"


def run(args: argparse.Namespace) -> int:
  """Exports, and checks what was exported in its own runtime.

  Returns:
    0; 1 if an output is further from the checkpoint's than it may be.

  Raises:
    ValueError: an option is wrong, or the folder is there already; nothing is
      written.
  """
  form = formats.get_format(args.format)
  _check_free(args.out, form.ARTEFACT)
  batch = check_batch(args.batch)
  if batch == ANY and not form.ANY_BATCH:
    raise ValueError(
      f"--batch is {ANY!r}, which {args.format} does not take here; expected a"
      " number."
    )
  own_check = getattr(form, "check", None)
  if own_check:
    _check_whole(args)
  loaded = must_jax.load(str(args.checkpoint))
  program = make_program(loaded, args.tasks, args.image_size, batch)
  images = [] if own_check else _images(args, program)
  validation = None
  if args.data is not None:
    validation = check.Validation(program, args.data, args.split)
  with tempfile.TemporaryDirectory() as directory:
    folder = Path(directory)
    _tell(f"Makes {args.format} of {args.checkpoint}, which may take minutes.")
    form.write(program, folder)
    described = signature.describe(program)
    described["format"], described["artefact"] = args.format, form.ARTEFACT
    names = sorted(list_tree(folder))
    result = {
      "format": args.format,
      "artefact": form.ARTEFACT,
      "bytes": sum((folder / name).stat().length for name in names),
    }
    if own_check:
      result |= own_check(program, folder)
    else:
      _tell("Compares it with the checkpoint, in its own runtime.")
      result |= check.check(
        program, args.format, form, folder, images, validation
      )
    for name in names:
      make_directory((args.out / name).parent)
      with publish(args.out / name) as file:
        file.write((folder / name).read_bytes())
  publish_json(args.out / CHECK, result)
  # Last, so that an export without it is one that was broken off.
  publish_json(args.out / SIGNATURE, described)
  _print(args.out, result)
  for name in result.get("nothing_to_compare", ()):
    print(
      f"warning: {name} is nowhere true on these images, so nothing of it was"
      " compared; --photos FILE... names others.",
      file=sys.stderr,
    )
  if not result["passed"]:
    print(
      f"error: {', '.join(result['exceeded'])} differ from the checkpoint by"
      f" more than they may; {args.out / CHECK} has the figures.",
      file=sys.stderr,
    )
  return 0 if result["passed"] else 1


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _check_whole(args: argparse.Namespace) -> None:
  """Raises `ValueError` for options that a whole checkpoint does not take."""
  given = {
    "--tasks": args.tasks,
    "--image-size": args.image_size,
    "--batch": args.batch != "1",
    "--photos": args.photos,
    "--data": args.data,
  }
  if wrong := [option for option, value in given.items() if value]:
    raise ValueError(
      f"--format {args.format} has the whole checkpoint, and is compared bit by"
      f" bit; expected no {', '.join(wrong)}."
    )


def _images(
  args: argparse.Namespace, program: ExportProgram
) -> list[check.Images]:
  """What the export is checked on."""
  images = [check.noise(program)]
  if args.photos:
    images.insert(0, check.read_photos(program, args.photos))
  elif own := check.own_photos(program):
    images.insert(0, own)
  else:
    print(
      "warning: it is checked on noise alone, since the checkpoint's data are"
      " not there; --photos FILE... names photos.",
      file=sys.stderr,
    )
  return images


def _check_free(out: Path, artefact: str) -> None:
  """Raises `ValueError` if something is there."""
  names: list[str] = []
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    names = list_tree(out)
  if names or out.exists():
    is_export = any(
      name.partition("/")[0] in (artefact, CHECK) for name in names
    )
    is_broken = is_export and SIGNATURE not in names
    state = " (of an export that was broken off)" if is_broken else ""
    raise ValueError(
      f"--out {out} is there already{state}; expected a new"
      " folder. Remove it, or name another."
    )


def _print(out: Path, result: dict) -> None:
  size = f"{out}: {result['bytes'] / 1e6:.1f} MB"
  if "digest" in result:
    print(f"{size}, weights {result['digest']}")
    return
  print(f"{size}, {', '.join(result['images'])}")
  for task, values in result["differences"].items():
    shown = ", ".join(f"{key} {value:.2g}" for key, value in values.items())
    print(f"  {task}: {shown}")
  print(
    f"  {result['ratio']:g} times the seconds of jax for a batch:"
    f" {result['seconds']}"
  )
  for who, values in result.get("metrics", {}).items():
    shown = ", ".join(
      f"{key} {value:.4f}"
      for key, value in values.items()
      if key.count("/") < 2  # those by class are in the file
    )
    print(f"  {who}: {shown}")
