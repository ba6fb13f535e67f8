"""Stages: a run of a config, which trains or labels."""

import pathlib
from typing import Any

from must_jax import config as config_lib


def train(directory: pathlib.Path, config: str) -> dict[str, float]:
  """Trains; returns the final evaluation.

  Goes on from the last checkpoint in the directory.
  """
  from must_jax.main import run_stage

  return run_stage(config_lib.from_json(config), str(directory))


def label(
  directory: pathlib.Path, config: str, truth: str = ""
) -> dict[str, Any]:
  """Labels images; returns the labels' quality where the truth is known.

  Shards that are finished are kept.

  Args:
    directory: of the stage, which becomes the label set.
    config: of the labelling.
    truth: image set with the true labels; empty if there is none.
  """
  from must_jax.main import run_stage
  from must_jax.pseudo_label import inspect

  run_stage(config_lib.from_json(config), str(directory))
  if not truth:
    return {}
  return inspect.record_quality(directory, pathlib.Path(truth))
