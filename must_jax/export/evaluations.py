"""What was measured of a checkpoint: `result.json`, and which weights it is of.

An evaluation by itself says it in `evaluation.json`; one during training is in
the run's `metrics.jsonl`, with its step.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from must_jax.export.lineage import Model, images_of, read_json
from must_jax.storage.path import Path, PathLike, read_appended
from must_jax.train.evaluate import EVALUATION_FILE, RESULT_FILE
from must_jax.train.metric_logger import METRICS_FILE

_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of a checkpoint.

  Attributes:
    metrics: {"dataset/task/metric" or "dataset/task/metric/class": value}.
    datasets: what was measured on, by its name in the config: "name", "split",
      "num_records", "licence", the last two None if not known.
    problem: why it may not be of these weights; "" if it is.
  """

  metrics: Mapping[str, float]
  datasets: Mapping[str, _Json]
  problem: str = ""

  def numbers(
    self, dataset: str, task: str
  ) -> Iterator[tuple[str, str, float]]:
    """(metric, class or "", value) of a task on a dataset."""
    prefix = f"{dataset}/{task}/"
    for key, value in self.metrics.items():
      if key.startswith(prefix):
        metric, _, name = key.removeprefix(prefix).partition("/")
        yield metric, name, value


def read_own(
  workdir: PathLike, model: Model, step: int | None
) -> Evaluation | None:
  """The evaluation of a step in a run's workdir, else its last one.

  None if there is none.

  Args:
    workdir: of the run.
    model: whose weights are asked about.
    step: of these.
  """
  result = read_json(Path(workdir) / RESULT_FILE)
  if not result:
    return None
  record = _record(workdir, result)
  if record:
    evaluation = Evaluation(result, record["datasets"])
    if record["digest"] == model.digest:
      return evaluation
  if (of_step := _measured_at(workdir, step, result)) is not None:
    return Evaluation(of_step, _datasets(model, of_step))
  if record:
    other = f"weights {record['digest'][:12]}, not of these"
    return dataclasses.replace(evaluation, problem=f"measured of {other}")
  evaluation = Evaluation(result, _datasets(model, result))
  measured_at = _step_of(workdir, result)
  if measured_at is None:
    problem = "of which checkpoint was not recorded"
  else:
    problem = f"measured at step {measured_at:,}; these weights are of {step:,}"
  return dataclasses.replace(evaluation, problem=problem)


def read_given(workdir: PathLike, model: Model) -> Evaluation:
  """An evaluation of a model in a workdir of its own.

  Raises:
    ValueError: there is none, or it is of other weights.
  """
  result = read_json(Path(workdir) / RESULT_FILE)
  record = _record(workdir, result)
  if not result or not record:
    raise ValueError(
      f"{workdir} has no {RESULT_FILE} with an {EVALUATION_FILE} of the same"
      " metrics; expected the workdir of --config.stage=evaluate."
    )
  if record["digest"] != model.digest:
    raise ValueError(
      f"{workdir} is an evaluation of {record['checkpoint']}, digest"
      f" {record['digest']}; the card is of a model of digest {model.digest}."
      " Evaluate that one: --config.stage=evaluate --config.evaluate_from=..."
    )
  return Evaluation(result, record["datasets"])


def _record(workdir: PathLike, result: _Json | None) -> _Json | None:
  """`evaluation.json`, unless a later evaluation has replaced the result."""
  record = read_json(Path(workdir) / EVALUATION_FILE)
  return record if record and record["metrics"] == result else None


def read_metrics(workdir: PathLike) -> Iterator[_Json]:
  """What a run said of its steps, line by line."""
  for line in read_appended(Path(workdir) / METRICS_FILE).splitlines():
    with contextlib.suppress(ValueError):  # half written
      yield json.loads(line)


def _step_of(workdir: PathLike, result: _Json) -> int | None:
  """The last step at which a run measured this."""
  found = None
  for value in read_metrics(workdir):
    if {**value, **result} == value:
      found = value["step"]
  return found


def _measured_at(
  workdir: PathLike, step: int | None, result: _Json
) -> _Json | None:
  """What a run measured last at a step, of what a result has."""
  found = None
  for value in read_metrics(workdir):
    if value["step"] == step and value.keys() >= result.keys():
      found = {name: value[name] for name in result}
  return found


def _datasets(model: Model, result: _Json) -> dict[str, _Json]:
  known = (model.config or {}).get("datasets", {})
  found: dict[str, _Json] = {}
  for name in dict.fromkeys(key.partition("/")[0] for key in result):
    if name not in known:
      found[name] = {"name": name, "split": "", "num_records": None}
      continue
    images = images_of(known[name])
    found[name] = {
      "name": images.name,
      "split": images.split,
      "num_records": images.num_records,
      "licence": images.licence,
    }
  return found
