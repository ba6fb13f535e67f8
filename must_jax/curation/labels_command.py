"""`must-jax labels`: to the tools in which people mend them, and back."""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from must_jax.annotations import FORMATS, exchange
from must_jax.annotations.exchange import Returned, Shown, Target
from must_jax.curation import corrections, selection
from must_jax.curation.corrections import Correction
from must_jax.curation.selection import Selection
from must_jax.fields import make_field
from must_jax.importers import write as write_lib
from must_jax.storage import path as path_lib
from must_jax.storage.image_files import Picture
from must_jax.storage.label_sets import reading_score
from must_jax.storage.path import Path
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord

_SELECTION = "selection"  # the format of corrections that were made on a page
_SHOWN = 5  # unknown images that are named


def run_export(args: argparse.Namespace) -> int:
  """Exports what the arguments of `must-jax labels export` ask for.

  Raises:
    ValueError: sets, selection or thresholds that do not fit.
  """
  if args.format != "label-studio":
    _check_absent(args, ["image_url"], "needs --format label-studio")
  if not args.selection:
    _check_absent(args, ["decision"], "needs --selection")
  labels, images = _open(args.labels, args.images)
  chosen = None
  if args.selection:
    chosen = selection.read(args.selection, labels.manifest)
  thresholds = _thresholds(args.min_score, labels, chosen)
  if path_lib.is_file(args.out) or (
    args.out.is_dir() and path_lib.list_names(args.out)
  ):
    raise ValueError(f"{args.out} is there; expected a new folder as --out.")
  keys = _keys(labels)
  wanted: Sequence[str] = list(keys)
  if chosen:
    selection.check_known(f"{args.selection}", "images", chosen.decisions, keys)
    decisions = dict.fromkeys(args.decision or ["correct"])
    wanted = [key for name in decisions for key in chosen.keys(name)]
    if not wanted:
      found = dict(collections.Counter(chosen.decisions.values()))
      raise ValueError(
        f"{args.selection} has no image to {' or '.join(decisions)}; it has"
        f" {found}. See --decision."
      )
  target = _target(args, labels, keys, FORMATS[args.format].FIELDS)
  counts: collections.Counter[str] = collections.Counter()
  shown = _shown(labels, images, target, {*wanted}, thresholds, counts, args)
  with _whole_or_gone(args.out):
    file = FORMATS[args.format].write(args.out, target, shown)
    if not counts["images"]:
      raise ValueError(f"None of {len(wanted)} images has labels to export.")
  if missing := counts["without"]:
    print(f"  images without labels, left out: {missing}")
  limits = {
    target.fields[r]: thresholds[target.fields[r]] for r in target.fields
  }
  print(
    f"labels of {counts['images']} images at scores from"
    f" {json.dumps(limits)}: {file}"
  )
  return 0


@contextlib.contextmanager
def _whole_or_gone(folder: Path) -> Iterator[None]:
  """Removes a new folder that is not finished: it would be in its own way."""
  try:
    yield
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      path_lib.remove_tree(folder)
    raise


def run_import(args: argparse.Namespace) -> int:
  """Imports what the arguments of `must-jax labels import` ask for.

  Raises:
    ValueError: files or sets that do not fit.
  """
  if not 0 <= args.max_rejected <= 1:
    raise ValueError(f"--max-rejected is {args.max_rejected}; expected 0 to 1.")
  if not args.only_changed:
    _check_absent(args, ["min_score"], "needs --only-changed")
  labels, images = _open(args.labels, args.images)
  form = _format_of(args)
  if form == _SELECTION:
    unused = ["only_changed", "fields"]
    _check_absent(args, unused, "does not go with a selection")
  keys = _keys(labels)
  by, when = args.by, ""
  notes: Sequence[str] = ()
  descriptions = labels.fields
  if form == _SELECTION:
    chosen = selection.read(args.file, labels.manifest)
    selection.check_known(f"{args.file}", "images", chosen.decisions, keys)
    thresholds = _thresholds(None, labels, chosen)
    decided = {
      "accept": Correction("corrected", None, thresholds),
      "reject": Correction("rejected"),
    }
    correctors = {
      key: functools.partial(_decided, decided[decision])
      for key, decision in chosen.decisions.items()
      if decision in decided
    }
    if waiting := len(chosen.decisions) - len(correctors):
      notes = [f"images that are still to be corrected: {waiting}"]
  else:
    target = _target(args, labels, keys, FORMATS[form].FIELDS)
    returned = FORMATS[form].read(args.file, target)
    unknown = [key for key in returned.elements if key not in keys]
    if len(unknown) > args.max_rejected * len(returned.elements):
      selection.check_known(f"{args.file}", "images", returned.elements, keys)
    thresholds = None
    if args.only_changed:
      thresholds = _thresholds(args.min_score, labels, None)
    correctors = {
      key: functools.partial(_read, returned, target, thresholds, element)
      for key, element in returned.elements.items()
      if key in keys
    }
    descriptions = {n: labels.fields[n] for n in target.fields.values()}
    notes, when = returned.notes, returned.when
    if unknown:
      shown = ", ".join(map(repr, unknown[:_SHOWN]))
      more = ", ..." * (len(unknown) > _SHOWN)
      notes = [
        *notes,
        f"unknown images, left out: {len(unknown)}: {shown}{more}",
      ]
    by = by or ", ".join(returned.by)
  if not correctors:
    told = "".join(f"; {line}" for line in notes)
    raise ValueError(f"{args.file} has no image that was looked at{told}.")
  summary = corrections.write(
    args.out,
    images,
    labels,
    correctors,
    descriptions,
    by=by or getpass.getuser(),
    when=_utc(when),
    form=form,
    max_rejected=args.max_rejected,
    overwrite=args.overwrite,
  )
  _print_summary(args, summary, notes)
  return 0


def _check_absent(
  args: argparse.Namespace, options: Sequence[str], reason: str
) -> None:
  """Raises `ValueError` for options that would do nothing."""
  for option in options:
    if getattr(args, option):
      raise ValueError(f"--{option.replace('_', '-')} {reason}.")


def _print_summary(
  args: argparse.Namespace,
  summary: corrections.Written,
  notes: Sequence[str],
) -> None:
  write_lib.show_rejected(summary.rejected)
  for line in notes:
    print(f"  {line}")
  if summary.same:
    print(f"  images that came back as they were: {summary.same}")
  if summary.without:
    print(f"  accepted without labels, not looked at: {summary.without}")
  if clipped := summary.counts["clipped"]:
    print(f"  boxes that reached out of their image, clipped: {clipped}")
  found = summary.statuses
  by = summary.manifest["teacher"][corrections.ENTRY]["by"]
  print(
    f"corrections by {by}: {found['corrected']} images corrected,"
    f" {found['rejected']} rejected, {found['']} of {found.total()} not looked"
    f" at: {args.out}"
  )


def _open(labels: Path, images: Path) -> tuple[LabelSet, ImageSet]:
  opened = LabelSet.open(labels)
  image_set = ImageSet.open(images, opened.manifest["image_set"]["split"])
  opened.check_images(image_set)
  return opened, image_set


def _keys(labels: LabelSet) -> dict[str, int]:
  """Records of images by their keys.

  Raises:
    ValueError: a record is damaged.
  """
  from must_jax.storage import records

  found = (r for i in range(len(labels.shards)) for r in labels.reader(i))
  keys = (records.key_of(r).decode(errors="surrogateescape") for r in found)
  try:
    return {key: i for i, key in enumerate(keys) if key}
  except CorruptRecord as error:
    raise ValueError(
      f"{error}. Copy the set again, or make it anew; `must-jax data verify`"
      " names all that is damaged."
    ) from None


def _target(
  args: argparse.Namespace,
  labels: LabelSet,
  keys: Mapping[str, int],
  possible: Sequence[str],
) -> Target:
  image_set = labels.manifest["image_set"]
  return exchange.choose_target(
    f"{image_set['name']}-{image_set['split']}",
    str(labels.manifest["teacher"].get("digest", "")),
    labels.fields,
    keys,
    possible,
    args.fields,
    getattr(args, "image_url", None),
  )


def _thresholds(
  given: str | None, labels: LabelSet, chosen: Selection | None
) -> dict[str, Any]:
  """Thresholds of all fields, as people give them."""
  default = reading_score(labels.manifest)
  found: dict[str, Any] = {
    name: _usual_score(description) if default is None else default
    for name, description in labels.fields.items()
  }
  if given is None:
    return found | dict(chosen.min_score if chosen else {})
  try:
    value: Any = dict.fromkeys(labels.fields, float(given))
  except ValueError:
    try:
      value = json.loads(path_lib.read_file(given))
    except (OSError, ValueError):
      raise ValueError(
        f"--min-score is {given!r}; expected a number, or a JSON file of"
        " {field: number or {class: number}}."
      ) from None
    if selection.is_selection(value):
      value = selection.read(given, labels.manifest).min_score
  selection.check_thresholds("--min-score", value, labels.fields)
  return found | value


def _usual_score(description: Mapping[str, Any]) -> float:
  """At which tasks read a field unless they say something else."""
  field = type(make_field(description)).as_read(description)
  return getattr(field, "min_score", 0.0)


def _shown(
  labels: LabelSet,
  images: ImageSet,
  target: Target,
  wanted: set[str],
  thresholds: Mapping[str, Any],
  counts: collections.Counter[str],
  args: argparse.Namespace,
) -> Iterator[Shown]:
  """Images with their labels; their files are written on the way."""
  from must_jax.quiet_tensorflow import tf
  from must_jax.storage import records

  fields = {n: make_field(labels.fields[n]) for n in target.fields.values()}
  for i in range(len(labels.shards)):
    pictures = images.reader(i)
    for place, record in enumerate(labels.reader(i)):
      key = records.key_of(record).decode(errors="surrogateescape")
      if key not in wanted:
        continue
      stored = records.stored_labels(record, fields)
      try:
        example = tf.train.Example.FromString(pictures.read(place))
      except CorruptRecord:
        stored = {}
      if not stored:
        counts["without"] += 1
        continue
      features = example.features.feature
      height, width = (
        features[name].int64_list.value[0] for name in ("height", "width")
      )
      data = features["image"].bytes_list.value[0]
      checked = records.status_of(record) == "corrected"
      found = {}
      for role, name in target.fields.items():
        if name in stored:
          arrays = corrections.at_least(
            labels.fields[name],
            stored[name],
            0.0 if checked else thresholds[name],
          )
          found[role] = fields[name].at_size(arrays, (height, width))
      shown = Shown(key, exchange.file_name(key, data), (height, width), found)
      if not args.no_images:
        folder = args.out / FORMATS[args.format].IMAGES
        exchange.write_file(folder / shown.name, data)
      counts["images"] += 1
      yield shown


def _decided(correction: Correction, size: tuple[int, int]) -> Correction:
  del size
  return correction


def _read(
  returned: Returned,
  target: Target,
  shown_at: Mapping[str, Any] | None,
  element: Any,
  size: tuple[int, int],
) -> Correction:
  """What a file says of an image, by fields of the label set."""
  labels = returned.read(element, Picture(b"", size))
  arrays = {target.fields[role]: value for role, value in labels.arrays.items()}
  labels = dataclasses.replace(labels, arrays=arrays)
  return Correction("corrected", labels, shown_at)


def _format_of(args: argparse.Namespace) -> str:
  """The format of a file, by what it holds."""
  path, value, broken = args.file, None, ""
  if not path_lib.is_file(path) and not path.is_dir():
    raise ValueError(f"{path} is not there; expected a file or folder.")
  if path.suffix.lower() == ".zip":
    raise ValueError(
      f"{path} is an archive; unpack it, and give what is in it."
    )
  if args.format:
    return args.format
  if path_lib.is_file(path):
    try:
      value = json.loads(path_lib.read_file(path))
    except (ValueError, RecursionError) as error:
      broken = f"is no JSON ({error}) and " if path.suffix == ".json" else ""
  if selection.is_selection(value):
    return _SELECTION
  for form, module in FORMATS.items():
    if module.recognizes(path, value):
      return form
  raise ValueError(
    f"{path} {broken}does not tell its format; expected a selection, or"
    f" --format {' or '.join(FORMATS)}."
  )


def _utc(text: str) -> str:
  """A time in ISO 8601, UTC, to the second; now where there is none."""
  now = datetime.datetime.now(datetime.UTC)
  try:
    when = datetime.datetime.fromisoformat(text)
  except ValueError:
    when = now
  when = when.replace(tzinfo=when.tzinfo or datetime.UTC)
  return when.astimezone(datetime.UTC).isoformat(timespec="seconds")
