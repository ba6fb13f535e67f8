"""Checkpoints: the only module that knows orbax.

Layout: `WORKDIR/checkpoints/STEP/{state,meta}`. `meta` holds the format
version, the run's whole config (class names included), a digest of the state
and a checksum of itself, so a checkpoint explains itself and flipped bits are
noticed. A converted one also has an `origin`: where its weights are from, and
their licence.

A folder for a hub is read like one: `model.safetensors` has the variables,
`config.json` what `meta` holds (`describe_folder`).
"""

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.storage import tensor_file
from must_jax.storage.path import (
  Path,
  PathLike,
  absolute,
  check_bucket,
  is_local,
  read_files,
)
from must_jax.train import runtime
from must_jax.train.state import TrainState
from must_jax.types import PyTree

FORMAT_VERSION = 2
# Of a folder for a hub.
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_COMMITTED = "commit_success.txt"  # of orbax, on object stores
_UNFINISHED = (
  f"was not saved to its end: {_COMMITTED} is missing. One that was copied from"
  " a disk gets it by hand, an empty file beside `state` and `meta`."
)
# Version 1 held less of the state of training, and the same variables.
_READABLE = (1, FORMAT_VERSION)


class CorruptCheckpointError(ValueError):
  """The bits of a checkpoint are not those that were saved."""


class OtherFormatError(ValueError):
  """Another version of must_jax wrote a checkpoint, or no run did."""


class CheckpointNotSavedError(OSError):
  """A checkpoint could not be written; those before it are as they were."""


class _Manager(ocp.CheckpointManager):
  """Leaves questions about preemption to `must_jax.train.runtime.Preemption`.

  Processes agree on a number; those of orbax, which are steps, would be other
  numbers than those of the questions.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(self, workdir: PathLike, config: ConfigDict, keep: int = 0):
    """Opens `workdir/checkpoints`, which is made if need be.

    Args:
      workdir: of the run.
      config: of the run, with class names filled in.
      keep: how many stay; by default `train.keep_checkpoints`.
    """
    check_bucket(workdir)  # before anything is computed
    self._config = json.loads(config_lib.to_json(config))
    self._num_bytes = 0
    self._manager = _Manager(
      absolute(workdir) / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep or config.train.keep_checkpoints,
        cleanup_tmp_directories=True,
        create=True,
      ),
      item_handlers=_handlers(),
    )

  def save(self, state: TrainState) -> None:
    """Saves in the background; a step that is already there is left alone.

    Args:
      state: of a step after all those that are there.

    Raises:
      CheckpointNotSavedError: this one, or the one before, cannot be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    args = _save_args(state, _meta(self._config, _digests(state)))
    self.wait()
    self._num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    try:
      self._manager.save(step, args=args)
    except Exception as error:  # as it comes: OSError, ValueError, ...
      raise self._not_saved(error) from error

  def check(self) -> None:
    """Whether what is saved in the background can be written.

    Raises:
      CheckpointNotSavedError: it cannot.
    """
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits for what is saved in the background.

    Raises:
      CheckpointNotSavedError: it cannot be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._not_saved(error) from error

  def _not_saved(self, error: Exception) -> CheckpointNotSavedError:
    self._manager.reload()
    directory, steps = self._manager.directory, self._manager.all_steps()
    reason = str(error).split(" [tensorstore_spec")[0]  # pages long
    if len(reason) > 300:  # what was done, and at the end why it failed
      reason = f"{reason[:150]} ... {reason[-150:]}"
    good = (
      f"The last one, that of step {max(steps)}, is intact."
      if steps
      else "There is none before it."
    )
    room = f"One needs up to {self._num_bytes / 1e6:.1f} MB"
    if is_local(directory) and directory.exists():
      free = shutil.disk_usage(directory).free
      room += f", and {free / 1e6:.1f} MB are free"
    return CheckpointNotSavedError(
      f"A checkpoint could not be saved in {directory}:"
      f" {reason}\n{room}. {good} Free some space, or mend what the message"
      " says; the same command goes on."
    )

  def restore(
    self, abstract: TrainState, latest: int | None = None
  ) -> TrainState | None:
    """The latest intact state; None if there is no checkpoint to look at.

    A checkpoint that cannot be read, or whose digest does not match, is put
    aside, loudly, and the one before it is used.

    Args:
      abstract: shapes and shardings of the state.
      latest: step after which no checkpoint is looked at.

    Raises:
      CorruptCheckpointError: none is intact.
      OtherFormatError: it cannot go on from this format.
    """
    problems: dict[int, CorruptCheckpointError] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      if latest is not None and step > latest:
        continue
      try:
        state = self._read(step, abstract)
      except CorruptCheckpointError as error:
        logging.error("%s", error)
        problems[step] = error
        continue
      # Orbax refuses to save a step while a later one exists.
      self._put_aside(problems)
      return state
    if problems:
      reasons = "\n  ".join(map(str, problems.values()))
      raise CorruptCheckpointError(
        f"No checkpoint in {self._manager.directory} is intact:\n  {reasons}\n"
        "Bring back a copy of one, or begin anew in another --workdir."
      )
    return None

  def _read(self, step: int, abstract: TrainState) -> TrainState:
    path = self._manager.directory / str(step)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
    problem, digests, state = "", {}, abstract
    try:
      meta = _read_meta(path, (FORMAT_VERSION,))
      if "origin" in meta:
        raise OtherFormatError(
          f"The checkpoint at {path} holds converted weights; no run goes on"
          " from them. Start from them, config.init_from, in another --workdir."
        )
      digests = meta["digest"]
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=args)
      )
      state = restored["state"]
    except OtherFormatError:
      raise
    except CorruptCheckpointError as error:
      problem = str(error)
    except Exception as error:  # as it comes: KeyError, JSONDecodeError, ...
      problem = str(_corrupt(path, error))
    # Another process may see what this one does not.
    for seen in runtime.gather(problem.encode()):
      if seen:
        raise CorruptCheckpointError(seen.decode())
    _check(digests, _digests(state), path)
    return state

  def _put_aside(self, steps: Iterable[int]) -> None:
    for step in steps:
      path = self._manager.directory / str(step)
      aside = path.with_name(f"{step}.corrupt")
      logging.error("Kept as %s; using the one before.", aside)
      if jax.process_index() == 0:
        if aside.exists():
          aside.rmtree()
        path.rename(aside)
    runtime.gather(b"")  # all wait for the first
    self._manager.reload()

  def roll_back(self, abstract: TrainState, step: int) -> TrainState | None:
    """The latest intact state up to a step; later checkpoints are deleted.

    Args:
      abstract: shapes and shardings of the state.
      step: the latest to go back to.

    Returns:
      The state; None, and nothing is deleted, if there is none so early.

    Raises:
      CheckpointNotSavedError: what is being saved cannot be written.
      CorruptCheckpointError: there are some so early, but none is intact.
    """
    self.wait()
    state = self.restore(abstract, latest=step)
    if state is not None:
      self.delete_after(int(state.step))
    return state

  @property
  def steps(self) -> tuple[int, ...]:
    """Those that are there, or are being saved."""
    return tuple(self._manager.all_steps())

  def delete_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps.

    Raises:
      CheckpointNotSavedError: what is being saved cannot be written.
    """
    self.wait()
    for later in self.steps:
      if later > step:
        self._manager.delete(later)

  def close(self) -> None:
    """Waits for pending saves.

    Raises:
      CheckpointNotSavedError: one cannot be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()


def write_variables(
  workdir: PathLike,
  config: ConfigDict,
  variables: dict[str, PyTree],
  origin: dict[str, Any],
) -> Path:
  """Writes parameters that no run of ours made, as the checkpoint of step 0.

  Args:
    workdir: receives `checkpoints/0`.
    config: all that `must_jax.load` needs: model, tasks, preprocessing.
    variables: {"params": ..., "batch_stats": ...} of numpy arrays.
    origin: JSON: source, licence, ...

  Returns:
    The directory of the step.

  Raises:
    ValueError: `workdir` holds a checkpoint already.
  """
  root = absolute(workdir) / "checkpoints"
  if root.exists() and any(root.iterdir()):
    raise ValueError(
      f"{root} holds a checkpoint already; choose another directory."
    )
  meta = _meta(
    json.loads(config_lib.to_json(config)),
    {part: digest(tree) for part, tree in variables.items()},
    origin=origin,
  )
  with ocp.CheckpointManager(root, item_handlers=_handlers()) as manager:
    manager.save(0, args=_save_args(variables, meta))
  return root / "0"


def describe_folder(path: PathLike, **more: Any) -> dict[str, Any]:
  """What `config.json` says in a folder that has a checkpoint's variables.

  Args:
    path: of the checkpoint.
    **more: JSON values by name, which `read_meta` gives back.
  """
  meta = read_meta(path)
  config = json.loads(config_lib.to_json(read_config(path)))
  parts = ("ema",) if "ema" in meta["digest"] else ("params", "batch_stats")
  kept = {name: meta[name] for name in ("origin",) if name in meta}
  digests = {part: meta["digest"][part] for part in parts}
  return _meta(config, digests, library="must_jax", **kept, **more)


def find(path: PathLike) -> Path:
  """The directory of one step, from it, its parent or a workdir.

  Or a folder for a hub, as it is.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  path = absolute(path)
  if (path / "state").exists() and (path / "meta").exists():
    if is_finished(path):
      return path
    raise FileNotFoundError(f"The checkpoint {path} {_UNFINISHED}")
  if (path / WEIGHTS_FILE).exists():
    return path
  unfinished = ""
  for root in (path / "checkpoints", path):
    if root.is_dir():
      steps = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())
      for step in reversed(steps):
        if is_finished(root / str(step)):
          return root / str(step)
        unfinished = f" That of step {step} {_UNFINISHED}"
  raise FileNotFoundError(
    f"No checkpoint at {path}: expected a directory of a step (with `state`"
    " and `meta`), a directory of such, a run's workdir, or a folder with"
    f" {WEIGHTS_FILE}." + unfinished
  )


def is_finished(path: Path) -> bool:
  """Whether the checkpoint of a step was saved to its end.

  On a disk only such have their name; in a bucket a file says so, which comes
  last.
  """
  return is_local(path) or (path / _COMMITTED).exists()


def read_meta(path: PathLike) -> dict[str, Any]:
  """What a checkpoint says of itself.

  Returns:
    "config", "digest" by part; "origin" of converted weights; what a folder for
    a hub adds.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: it is not what was saved.
    OtherFormatError: it is of another version, or none of ours.
  """
  return _read_meta(find(path))


def read_config(path: PathLike) -> ConfigDict:
  """The config that made a checkpoint, class names included."""
  return config_lib.from_json(json.dumps(read_meta(path)["config"]))


def read_origin(path: PathLike) -> dict[str, Any]:
  """Where converted weights are from; {} for those that a run made."""
  return read_meta(path).get("origin", {})


def fingerprint(path: PathLike) -> str:
  """Identifies the parameters of a checkpoint, for manifests."""
  digests = read_meta(path)["digest"]
  words = digests.get("ema") or digests["params"] + digests["batch_stats"]
  return "".join(f"{word:08x}" for word in words)


def load_variables(path: PathLike) -> dict[str, PyTree]:
  """Parameters and norm statistics as numpy, whatever saved them.

  Where training kept averages of them, these.

  Raises:
    CorruptCheckpointError: they are not what was saved.
  """
  path = find(path)
  meta = _read_meta(path)
  try:
    if (path / "state").exists():
      restored = _read_variables(path / "state")
    else:
      restored = _read_folder(path, "ema" in meta["digest"])
  except Exception as error:  # as it comes: AttributeError, ValueError, ...
    raise _corrupt(path, error) from error
  found = {part: digest(restored[part]) for part in restored}
  _check(meta["digest"], found, path)
  return {"batch_stats": {}} | restored.get("ema", restored)


def _read_folder(path: Path, are_averages: bool) -> dict[str, PyTree]:
  tensors, _ = tensor_file.read(path / WEIGHTS_FILE)
  variables = {"batch_stats": {}} | unflatten_dict(tensors, sep="/")
  return {"ema": variables} if are_averages else variables


def _read_variables(path: Path) -> dict[str, PyTree]:
  # (A Checkpointer would look for metadata that a part of a step has not.)
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path).tree
    parts = ("ema",) if tree.get("ema") else ("params", "batch_stats")
    item = {
      part: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        tree[part],
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
      )
      for part in parts
      if part in tree  # a network without BatchNorm has no statistics
    }
    return handler.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item
        ),
        partial_restore=True,
      ),
    )


class WarmStart:
  """The parts of a checkpoint that a fresh state takes.

  A head is taken only as a whole: the task of that name must have the same
  classes and every array the same shape, else it stays fresh.

  Attributes:
    table: what becomes of every module, for people.
  """

  def __init__(
    self,
    abstract: TrainState,
    path: PathLike,
    parts: tuple[str, ...],
    classes: dict[str, tuple[str, ...]],
    model: ConfigDict,
  ):
    """Reads the checkpoint and checks that it fits; nothing is compiled.

    Args:
      abstract: shapes of the fresh state.
      path: checkpoint.
      parts: out of "backbone", "fpn", "heads".
      classes: class names of the tasks being trained.
      model: `config.model` of the state.

    Raises:
      ValueError: the backbone or FPN does not fit, there is no backbone, or it
        was trained on images that were normalised in another way.
    """
    loaded = load_variables(path)
    old_config = read_config(path)
    if "backbone" in parts:
      _check_inputs(model, old_config.model, path)
    old_classes = {
      name: tuple(entry.classes) for name, entry in old_config.tasks.items()
    }
    rows: list[tuple[str, str, str]] = []
    self._taken: dict[str, dict[str, PyTree]] = {kind: {} for kind in loaded}
    for module in sorted(set(loaded["params"]) | set(abstract.params)):
      part = "heads" if module.startswith("head_") else module
      task = module.removeprefix("head_")
      mismatch = _mismatch(abstract.variables, loaded, module)
      if module not in abstract.params:
        rows.append((module, "unused", "not in this model"))
      elif module not in loaded["params"]:
        rows.append((module, "fresh", "not in the checkpoint"))
      elif part not in parts:
        rows.append((module, "fresh", "not in init_parts"))
      elif part == "heads" and classes.get(task) != old_classes.get(task):
        given, had = len(classes[task]), len(old_classes[task])
        rows.append((module, "fresh", f"other classes ({had} before, {given})"))
      elif mismatch and part == "heads":
        rows.append((module, "fresh", f"shape mismatch: {mismatch}"))
      elif mismatch:
        raise ValueError(
          f"{module} of {path} does not fit this model: {mismatch}. Use the"
          " checkpoint's model options (config.model), or leave"
          f" {part!r} out of init_parts."
        )
      else:
        count = 0
        for kind, tree in abstract.variables.items():
          if module in tree:
            self._taken[kind][module] = loaded[kind][module]
            count += sum(x.size for x in jax.tree.leaves(tree[module]))
        rows.append((module, "loaded", f"{count:,} values"))
    if "backbone" in parts and "backbone" not in loaded["params"]:
      raise ValueError(
        f"{path} has no backbone, which init_parts asks for; it has"
        f" {sorted(loaded['params'])}."
      )
    width = max(len(row[0]) for row in rows)
    table = "\n".join(f"  {m:<{width}}  {s:<7} {d}" for m, s, d in rows)
    self.table = f"Warm start from {path}\n{table}"

  def __call__(self, state: TrainState) -> TrainState:
    """A fresh state with what is taken in its place."""
    new = {"params": state.params, "batch_stats": state.batch_stats}
    for kind, fresh in new.items():
      taken = jax.tree.map(
        lambda old, value: jax.device_put(value, old.sharding),
        {module: fresh[module] for module in self._taken[kind]},
        self._taken[kind],
      )
      new[kind] = {**fresh, **taken}
    # The averages begin where the parameters do.
    ema = {kind: jax.tree.map(jnp.copy, new[kind]) for kind in state.ema}
    return state.replace(**new, ema=ema)


def _check_inputs(new: ConfigDict, old: ConfigDict, path: PathLike) -> None:
  """A backbone's parameters mean nothing without its way of normalising."""
  for key in ("backbone", "image_mean", "image_std", "norm_epsilon"):
    if new[key] != old[key]:
      raise ValueError(
        f"model.{key} is {new[key]!r}; the backbone of {path} was trained with"
        f" {old[key]!r}. Set config.model.{key} to that, or leave 'backbone'"
        " out of init_parts."
      )


def _mismatch(
  fresh: dict[str, PyTree], loaded: dict[str, PyTree], module: str
) -> str:
  """The first array of a module whose shape differs, or ''."""

  def shapes(tree: dict[str, PyTree]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(
      {k: v[module] for k, v in tree.items() if module in v and k in loaded}
    )
    return {
      jax.tree_util.keystr(k, simple=True, separator="/"): v.shape
      for k, v in leaves
    }

  here, there = shapes(fresh), shapes(loaded)
  for name in sorted(set(here) | set(there)):
    if here.get(name) != there.get(name):
      return f"{name} is {here.get(name)} here, {there.get(name)} there"
  return ""


def digest(tree: PyTree) -> list[int]:
  """A checksum of every bit of a tree of arrays, two 32-bit words.

  Orbax restores flipped bits without a word, so each checkpoint carries this.
  It is a sum modulo 2**32 in which each word has an odd factor of its own: any
  one changed word changes it, and neither the order of summation nor the
  layout over devices and processes matters.
  """
  total = [0, 0]
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    salt = number * 0x9E3779B9
    for data, place in _pieces(leaf):
      word = _words(data)
      place = ((place + salt) & 0xFFFFFFFF).astype(np.uint32)
      mixed = (place ^ (place >> 15)) * np.uint32(0x2C1B3C6D)
      total[0] += int(np.sum(word * (2 * place + 1), dtype=np.uint32))
      total[1] += int(np.sum((word ^ mixed) * (2 * mixed + 1), dtype=np.uint32))
  if jax.process_count() > 1:
    total = multihost_utils.process_allgather(np.array(total)).sum(0)
  return [int(word) & 0xFFFFFFFF for word in total]


def _pieces(leaf: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """This process's pieces of an array, and the places of their elements."""
  if not isinstance(leaf, jax.Array):
    yield np.asarray(leaf), np.arange(np.size(leaf))
    return
  for shard in leaf.addressable_shards:
    if shard.replica_id:
      continue
    place = np.zeros((), np.int64)
    for part, size in zip(shard.index, leaf.shape, strict=True):
      place = place[..., None] * size + np.arange(*part.indices(size))
    yield np.asarray(shard.data), place.reshape(-1)


def _words(x: np.ndarray) -> np.ndarray:
  """The bits of at most 32-bit elements, as uint32 [N]."""
  x = np.ascontiguousarray(x).reshape(-1)
  return x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)


def _handlers() -> dict[str, Any]:
  return {
    "state": ocp.PyTreeCheckpointHandler(),
    "meta": ocp.JsonCheckpointHandler(),
  }


def _save_args(state: PyTree, meta: dict[str, Any]) -> Any:
  return ocp.args.Composite(
    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
  )


def _digests(state: TrainState) -> dict[str, list[int]]:
  """By part of the state; of `ema` only if there are averages."""
  return {
    part: digest(tree)
    for part, tree in vars(state).items()
    if part != "ema" or tree
  }


def _meta(config: Any, digests: dict[str, list[int]], **more: Any) -> Any:
  meta = {
    "format_version": FORMAT_VERSION,
    "config": config,
    "digest": digests,
    **more,
  }
  return meta | {"checksum": _checksum(meta)}


def _checksum(meta: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _read_meta(
  path: Path, readable: tuple[int, ...] = _READABLE
) -> dict[str, Any]:
  files = read_files([path / "meta" / "metadata", path / CONFIG_FILE])
  try:
    meta = json.loads(next(text for text in files if text is not None))
    version, checksum = meta["format_version"], meta.pop("checksum", None)
  except StopIteration:
    raise _corrupt(path, f"there is no meta, or {CONFIG_FILE}") from None
  except (ValueError, KeyError, TypeError) as error:
    if (path / WEIGHTS_FILE).exists():
      raise OtherFormatError(
        f"{path / CONFIG_FILE} is not that of a must_jax model; convert"
        f" published weights: must-jax convert KIND {path / WEIGHTS_FILE}."
      ) from error
    raise _corrupt(path, f"meta cannot be read ({error})") from error
  if version not in readable:
    raise OtherFormatError(
      f"The checkpoint at {path} has format version {version!r}; this must_jax"
      f" reads {readable} here. Use the version that wrote it, or start from"
      " it: config.init_from."
    )
  if version > 1 and checksum != _checksum(meta):
    raise _corrupt(path, "meta is not what was saved")
  return meta


def _check(
  saved: dict[str, list[int]], found: dict[str, list[int]], path: Path
) -> None:
  for part, value in found.items():
    if value != saved.get(part):
      raise _corrupt(path, f"{part} is not what was saved")


def _corrupt(path: Path, problem: Any) -> CorruptCheckpointError:
  if isinstance(problem, Exception):
    problem = f"{type(problem).__name__}: {problem}"
  return CorruptCheckpointError(
    f"The checkpoint at {path} is corrupt: {' '.join(problem.split()):.500}."
  )


__all__ = [
  "CheckpointNotSavedError",
  "Checkpoints",
  "CorruptCheckpointError",
  "OtherFormatError",
  "WarmStart",
  "describe_folder",
  "find",
  "fingerprint",
  "load_variables",
  "read_config",
  "read_meta",
  "read_origin",
  "write_variables",
]
