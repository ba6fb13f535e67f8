"""Stages: a run of a config, which trains or labels."""

from typing import Any

from must_jax import config as config_lib
from must_jax import stage
from must_jax.storage.path import Path


def train(directory: Path, config: str) -> dict[str, float]:
  """Trains; returns the final evaluation.

  Goes on from the last checkpoint in the directory.
  """
  return _run(directory, config)


def label(directory: Path, config: str, truth: str = "") -> dict[str, Any]:
  """Labels images; returns the labels' quality where the truth is known.

  Shards that are finished are kept.

  Args:
    directory: of the stage, which becomes the label set.
    config: of the labelling.
    truth: image set with the true labels; empty if there is none.
  """
  from must_jax.curation import inspect

  _run(directory, config)
  if not truth:
    return {}
  return inspect.record_quality(directory, Path(truth))


def _run(directory: Path, text: str) -> Any:
  config = config_lib.from_json(text)
  config_lib.validate(config)
  return stage.run(config, str(directory))
