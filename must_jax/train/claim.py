"""One workdir, one run: another one would go on from a stranger's state.

  WORKDIR/config.json  all options of the run, class names included
  WORKDIR/run.json     what its data were, and the defaults of its options

Both are written after the first step: a run that made none claims nothing, and
of two that begin at the same time only the first to make a step goes on.
What the run has learned from counts, not where that lies: places are compared
as places, and data that were moved are the same if their index is.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.input.origins import SUPERVISED, label_sets, listed
from must_jax.storage.path import (
  Path,
  PathLike,
  is_same,
  publish_json,
  read_files,
  read_version,
  replace_json,
)
from must_jax.storage.sets import content_digest, read_index, read_manifest
from must_jax.tasks import TASKS, task_options
from must_jax.train import checkpoint

# Options that a run may change when it goes on: they suit the machines, say
# how it is measured or when it gives up, or belong to another stage. They make
# no other run of it.
_MAY_CHANGE = (
  "stage",
  "label",
  "mesh",
  "evaluate_on",
  "evaluate_from",
  "trackers",
  "model.remat",
  "data.num_threads",
  "data.eval_batch_size",
  "data.eval_resize",
  "data.max_bad",
  "train.log_every",
  "train.evaluate_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "train.best_metric",
  "train.patience",
  "train.pictures",
  "train.profile_steps",
  "train.max_rollbacks",
  "train.stuck_seconds",
)
_CONFIG_FILE, _RUN_FILE = "config.json", "run.json"

_Json = dict[str, Any]


class Claim:
  """A run's right to its workdir.

  Attributes:
    config: of the run. Where the default of an option has changed since it
      began, it keeps the old one.
  """

  def __init__(self, config: ConfigDict, workdir: PathLike):
    """Compares with the run whose workdir it is, if there is one.

    Args:
      config: with class names filled in.
      workdir: of the run.

    Raises:
      ValueError: it is another run; names what differs.
    """
    self._dir = Path(workdir)
    self._before = read_version(self._dir / _CONFIG_FILE)
    (record,) = read_files([self._dir / _RUN_FILE])
    new = _as_json(config)
    self._record: _Json = json.loads(record) if record else {}
    defaults = _defaults(config)
    # Of runs that began before there were records, none are known.
    known = self._record.get("defaults", {})
    if self._before is not None:
      # An option that did not exist then had what is its default now.
      text = json.dumps(self._before.value)
      old = _as_json(config_lib.from_json(text))
      kept = _inherit(old, new, known, defaults)
      if changed := config_lib.differences(kept, new):
        logging.warning(
          "Defaults have changed since the run in %s began; it keeps its own:"
          " %s",
          workdir,
          "; ".join(changed),
        )
        config, new = config_lib.from_json(json.dumps(kept)), kept
    sources = {name: _digest(*place) for name, place in _places(new).items()}
    start = _fingerprint(config.init_from)
    if self._before is not None:
      different = config_lib.differences(_identity(old), _identity(new))
      different += _other_sources(
        old, new, self._record.get("sources", {}), sources
      )
      begun = self._record.get("init_from", "")
      if is_same(old["init_from"], new["init_from"]):
        start = begun  # what is there now may have gone on since
      elif not start or start != begun:
        different += config_lib.differences(
          old["init_from"], new["init_from"], "init_from"
        )
      if different:
        raise ValueError(
          f"{workdir} belongs to a run with another config. Different:"
          f" {'; '.join(different)}. Give the run what it had, or choose"
          " another --workdir; with init_from it starts from what this one has"
          " learned."
        )
    self.config = config
    self._record = {
      "sources": sources,
      "init_from": start,
      "defaults": _merge(defaults, known),
    }

  def write(self) -> None:
    """Makes the workdir the run's own; called once a step was made.

    Raises:
      ValueError: another run has done so since this one began.
    """
    if jax.process_index():
      return
    path = self._dir / _CONFIG_FILE
    self._before = replace_json(path, self._before, _as_json(self.config))
    if self._before is None:
      raise ValueError(
        f"Another run that began at the same time has taken {self._dir}; choose"
        " another --workdir, or start the same command once only."
      )
    publish_json(self._dir / _RUN_FILE, self._record)


def _as_json(config: ConfigDict) -> _Json:
  return json.loads(config_lib.to_json(config))


def _defaults(config: ConfigDict) -> _Json:
  """Defaults of all options; those of tasks by name of the task."""
  defaults = _as_json(config_lib.base_config())
  defaults["tasks"] = {
    name: json.loads(json.dumps(task_options(entry.kind)))
    for name, entry in config.tasks.items()
  }
  return defaults


def _merge(new: Any, old: Any) -> Any:
  """Old defaults, and new ones of options that there were none of."""
  if isinstance(new, Mapping) and isinstance(old, Mapping):
    return {**old, **{k: _merge(v, old.get(k, v)) for k, v in new.items()}}
  return old


def _inherit(old: Any, new: Any, before: Any, now: Any) -> Any:
  """A config in which options left at their default keep that of the run.

  Args:
    old: config of the run.
    new: that which it shall go on with.
    before: defaults when the run began; options may be missing.
    now: defaults.
  """
  if all(isinstance(value, Mapping) for value in (old, new, before, now)):
    return {
      key: _inherit(old[key], value, before[key], now[key])
      if key in old and key in before and key in now
      else value
      for key, value in new.items()
    }
  return old if (old, new) == (before, now) else new


def _identity(config: _Json) -> _Json:
  """What makes it this run, without the places that it reads from."""
  kept = json.loads(json.dumps(config))
  trained = set(kept["train_on"])
  if kept["data"]["train_resize"] != "center_crop":
    del kept["data"]["crop_fraction"]  # of evaluation
  for option in (*_MAY_CHANGE, "init_from"):
    *groups, name = option.split(".")
    functools.reduce(dict.__getitem__, groups, kept).pop(name)
  kept["datasets"] = {
    name: {k: v for k, v in entry.items() if k not in ("dir", "split")}
    for name, entry in kept["datasets"].items()
    if name in trained
  }
  for entry in kept["tasks"].values():
    kind = TASKS[entry["kind"]]
    for option in (*kind.measurement, *kind.post_processing):
      entry.pop(option)
    entry["labels"] = {
      name: [x if x == SUPERVISED else "a label set" for x in listed(origins)]
      for name, origins in entry["labels"].items()
      if name in trained
    }
  return kept


def _places(config: _Json) -> dict[str, tuple[str, ...]]:
  """All that is learned from, by option: a label set, or images and split."""
  found: dict[str, tuple[str, ...]] = {}
  for name in config["train_on"]:
    entry = config["datasets"][name]
    found[f"datasets.{name}"] = entry["dir"], entry["split"]
    for task, options in config["tasks"].items():
      for key, origin in label_sets(task, options, name):
        found[key] = (origin,)
  return found


def _digest(place: str, *split: str) -> str:
  """Of a place out of `_places`, by its index or manifest."""
  if split:
    return content_digest(read_index(place)["splits"][split[0]]["shards"])
  return content_digest(read_manifest(place)["shards"])


def _is_there_as(digest: str, place: tuple[str, ...]) -> bool:
  try:
    return _digest(*place) == digest
  except (ValueError, KeyError, OSError):
    return False


def _other_sources(
  old: _Json, new: _Json, before: Mapping[str, str], now: Mapping[str, str]
) -> Iterator[str]:
  """Says where other data are learned from than the run's.

  Args:
    old: config of the run.
    new: that which it shall go on with.
    before: digests of the run's data, where they were kept.
    now: digests of the data.
  """
  places, wanted = _places(new), _places(old)
  for name in sorted(places.keys() & wanted.keys()):
    was, place = wanted[name], places[name]
    is_same_place = was[1:] == place[1:] and is_same(was[0], place[0])
    if name in before:
      if before[name] == now[name]:
        continue
    elif is_same_place or _is_there_as(now[name], was):
      continue
    shown = ", split ".join(place)
    yield (
      f"{name}: {shown} has other records than when the run began"
      if is_same_place
      else f"{name} was {', split '.join(was)}, is {shown} with other records"
    )


def _fingerprint(init_from: str) -> str:
  """Of the checkpoint that a run begins from; "" if it is gone, or none."""
  try:
    return checkpoint.fingerprint(init_from) if init_from else ""
  except (ValueError, OSError):
    return ""
