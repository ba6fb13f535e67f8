"""`must-jax card`: what a model is, as a page for people and model hubs.

Markdown with the YAML that hubs read at its top (Hugging Face's model card
metadata). All of it is read from files: the checkpoint, its run, and what its
lineage names. What they do not say, the card says it does not know.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

import must_jax
from must_jax import config as config_lib
from must_jax.export import evaluations, licences, lineage, signature
from must_jax.export.evaluations import Evaluation
from must_jax.export.lineage import Licensed, Model, PseudoLabels
from must_jax.export.program import make_program
from must_jax.fields.kept import share_text, threshold_text
from must_jax.input.preprocess import varies_size
from must_jax.storage.path import (
  Path,
  PathLike,
  make_directory,
  publish,
)
from must_jax.tasks import Task
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.load import LoadedModel

_NOT_MEASURED, _UNKNOWN = "not measured", "unknown"
_PAPER = "https://arxiv.org/abs/2108.11353"
_MAX_CLASSES = 12  # shown at once; more are folded away
_MAX_ROWS = 400  # of a table
_SHORT = 12  # characters of a digest in running text

_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Facts:
  """All that a card says.

  Attributes:
    model: with its lineage.
    step: of training that the weights are of; None for converted ones.
    last: the run's last line of metrics up to that step.
    evaluations: of these weights, and others where that is said.
  """

  model: Model
  step: int | None
  last: _Json
  evaluations: tuple[Evaluation, ...]

  def to_json(self) -> _Json:
    """All but the model, for a folder that the run is not in."""
    return {
      "step": self.step,
      "last": self.last,
      "evaluations": [dataclasses.asdict(e) for e in self.evaluations],
    }

  @property
  def config(self) -> _Json:
    """Of the run."""
    assert self.model.config is not None  # it has a checkpoint
    return self.model.config

  @property
  def tasks(self) -> dict[str, Task]:
    """Of the model, by name."""
    return build_tasks(config_lib.from_json(json.dumps(self.config)))


def collect(path: PathLike, measured: Sequence[PathLike] = ()) -> Facts:
  """Reads what is known of a model.

  Args:
    path: as for `must_jax.load`.
    measured: workdirs of evaluations of it.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it cannot be read, or an evaluation is of other weights.
  """
  model = lineage.trace(path)
  given = tuple(evaluations.read_given(place, model) for place in measured)
  step_dir = checkpoint.find(path)
  kept = checkpoint.read_meta(step_dir).get("run")
  if kept is not None:
    own = tuple(Evaluation(**entry) for entry in kept["evaluations"])
    return Facts(model, kept["step"], kept["last"], own + given)
  if model.origin:
    return Facts(model, None, {}, given)
  step = int(step_dir.name) if step_dir.name.isdigit() else None
  workdir = lineage.run_directory(step_dir)
  if workdir is None:
    return Facts(model, step, {}, given)
  found = evaluations.read_own(workdir, model, step)
  own = (found,) if found else ()
  return Facts(model, step, _last_line(workdir, step), own + given)


def _last_line(workdir: Path, step: int | None) -> _Json:
  """What a run said of its training last, up to a step."""
  last: _Json = {}
  for value in evaluations.read_metrics(workdir):
    if "loss" in value and (step is None or value["step"] <= step):
      last = value
  return last


def render(facts: Facts, name: str = "", licence: str = "") -> str:
  """The card.

  Args:
    facts: see `collect`.
    name: of the model; by default that of its run.
    licence: of the model, as its makers say; by default that of converted
      weights, else it is unknown.
  """
  name = name or facts.model.name
  facts = dataclasses.replace(
    facts, model=dataclasses.replace(facts.model, name=name)
  )
  licence = licence or facts.model.origin.get("licence", "")
  found = lineage.findings(facts.model)
  metadata = yaml.safe_dump(
    _metadata(facts, name, licence, found),
    sort_keys=False,
    allow_unicode=True,
    width=1000,
  )
  sections = [
    ("", _warning(found)),
    ("", _summary(facts)),
    ("Licence", _licence(licence, found)),
    ("Tasks and classes", _tasks(facts.tasks)),
    ("How to use it", _usage(facts)),
    ("Evaluation", _evaluation(facts)),
    ("What it learned from", _lineage(facts)),
    ("Teachers", _teachers(facts.model)),
    ("Quality of the labels", _label_quality(facts.model)),
    ("Training", _training(facts)),
    ("Preprocessing", _preprocessing(facts)),
    ("Limits", _limits(facts)),
    ("Citation", _citation()),
  ]
  body = [f"# {name}"]
  for title, lines in sections:
    text = "\n".join(lines).strip()
    if text:
      body += [f"## {title}\n\n{text}" if title else text]
  return f"---\n{metadata}---\n\n" + "\n\n".join(body) + "\n"


def run(args: argparse.Namespace) -> int:
  """Does what the arguments of `must-jax card` ask for."""
  facts = collect(args.model, args.evaluation)
  text = render(facts, args.name, args.licence)
  if args.out is None:
    sys.stdout.write(text)
  else:
    make_directory(args.out.parent)
    with publish(args.out) as file:
      file.write(text.encode())
    print(f"Wrote {args.out}")
    for finding in lineage.findings(facts.model):
      if terms := _CONCERNS.get(finding.licence.kind):
        print(f"warning: {terms}: {_finding(finding)}", file=sys.stderr)
  return 0


# What hubs read


def _metadata(
  facts: Facts, name: str, licence: str, found: Sequence[Licensed]
) -> _Json:
  """See https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
  tasks = facts.tasks
  kinds = dict.fromkeys(t.hub_task for t in tasks.values() if t.hub_task)
  # A hub takes one; a model of many tasks is a backbone first.
  tag = next(iter(kinds)) if len(kinds) == 1 else "image-feature-extraction"
  metadata: _Json = _hub_licence(licence, facts.model.origin)
  metadata |= {
    "library_name": "must_jax",
    "pipeline_tag": tag,
    "tags": [
      *("must_jax", "jax", "flax", *kinds),
      *(["multi-task"] if len(tasks) > 1 else []),
    ],
  }
  if images := list(dict.fromkeys(_image_sets(facts.model))):
    metadata["datasets"] = images
  if base := list(dict.fromkeys(_hub_models(facts.model))):
    metadata["base_model"] = base
  if results := list(_results(facts)):
    metadata["model-index"] = [{"name": name, "results": results}]
  return metadata


def _hub_licence(text: str, origin: _Json) -> _Json:
  if not text:
    return {"license": "unknown"}
  if hub_id := licences.read(text).hub_id:
    return {"license": hub_id}
  words = "".join(c if c.isalnum() or c in ".-" else "-" for c in text.lower())
  named = {"license": "other", "license_name": words.strip("-")[:60].strip("-")}
  link = {"license_link": origin["source"]} if "source" in origin else {}
  return named | link


def _image_sets(model: Model) -> Iterator[str]:
  for source in model.sources:
    yield source.images.name
    for labels in source.labels:
      if labels.teacher:
        yield from _image_sets(labels.teacher)
  if model.start:
    yield from _image_sets(model.start)


def _hub_models(model: Model) -> Iterator[str]:
  """Published weights that have a page on the hub."""
  prefix = "https://huggingface.co/"
  source = str(model.origin.get("source", ""))
  place = source.removeprefix(prefix)
  if source.startswith(prefix) and place.count("/") == 1 and "?" not in place:
    yield place
  for teacher in lineage.teachers(model).values():
    yield from _hub_models(teacher)
  if model.start:
    yield from _hub_models(model.start)


def _results(facts: Facts) -> Iterator[_Json]:
  """The model index: the overall numbers of these very weights."""
  for evaluation in facts.evaluations:
    if evaluation.problem:
      continue
    for dataset, described in evaluation.datasets.items():
      for name, task in facts.tasks.items():
        metrics = [
          {"type": metric, "name": metric, "value": value}
          for metric, class_name, value in evaluation.numbers(dataset, name)
          if not class_name
        ]
        if metrics:
          split = {"split": described["split"]} if described["split"] else {}
          yield {
            "task": {
              "type": task.hub_task or type(task).__name__,
              "name": name,
            },
            "dataset": {
              "type": described["name"],
              "name": described["name"],
              **split,
            },
            "metrics": metrics,
          }


# Sections


# What must not be met unnoticed.
_CONCERNS = {
  licences.NON_COMMERCIAL: "for non-commercial use or research only",
  licences.UNKNOWN: "under a licence that is not known",
}


def _warning(found: Sequence[Licensed]) -> Iterator[str]:
  """Names what a product must ask about, and the way by which it came."""
  says = "> [!WARNING]"
  for kind, terms in _CONCERNS.items():
    concerned = [f for f in found if f.licence.kind == kind]
    if concerned:
      yield says
      yield f"> **Part of what this model was made of is {terms}:**"
      yield ">"
      yield from (f"> - {_finding(finding)}" for finding in concerned)
      says = ">"


def _finding(finding: Licensed) -> str:
  text = (
    f'"{" ".join(finding.text.split())}"'
    if finding.text
    else "no licence is recorded"
    if finding.text == ""
    else "nothing is known of its licence"
  )
  way = " ← ".join(("this model", *finding.path))
  return f"{finding.what}: {text} ({way})"


def _summary(facts: Facts) -> Iterator[str]:
  config, model = facts.config, facts.model
  names = _and(facts.tasks)
  what = (
    f"One {config['model']['backbone']} backbone with"
    f" {'heads' if len(facts.tasks) > 1 else 'a head'} for {names}, for images"
    f" at {_size(config)} pixels"
  )
  if model.origin:
    yield (
      f"{what}. Converted from published weights:"
      f" {model.origin.get('title', model.origin.get('kind', _UNKNOWN))}."
    )
  else:
    taught = lineage.teachers(model)
    how = (
      f", trained by [Multi-Task Self-Training]({_PAPER}), with labels of"
      f" {len(taught)} teacher{'s' * (len(taught) > 1)},"
      if taught
      else ", trained"
    )
    yield f"{what}{how} on {_data(model)}."
  yield ""
  yield (
    f"Weights `{model.digest}`"
    + (f", step {facts.step:,}" if facts.step is not None else "")
    + f"; card by must_jax {must_jax.__version__}."
  )


def _data(model: Model) -> str:
  counts = [source.images.num_records for source in model.sources]
  if not counts:
    return "unknown data"
  known = sum(count or 0 for count in counts)
  unknown = counts.count(None)
  more = f", and {unknown} sets of unknown size" if unknown else ""
  return f"{known:,} images{more}"


def _licence(licence: str, found: Sequence[Licensed]) -> Iterator[str]:
  yield (
    f"This model: {licence}."
    if licence
    else "This model: its makers have stated none, so it is unknown."
  )
  yield "What it was made of, as recorded where each was imported:"
  yield ""
  yield from _table(
    ("what", "licence", "read as", "came by"),
    [
      (
        finding.what,
        finding.text or ("none recorded" if finding.text == "" else _UNKNOWN),
        finding.licence.kind,
        " ← ".join(finding.path) or "itself",
      )
      for finding in found
    ],
  )


def _tasks(tasks: dict[str, Task]) -> Iterator[str]:
  rows, folded = [], []
  for name, task in tasks.items():
    gives = [f"{array}: {what}" for array, what in _predicted(task).items()]
    described = [f.describe(task.classes) for f in task.fields.values()]
    gives += [f"unit: {d['unit']}" for d in described if d.get("unit")]
    shown = ", ".join(task.classes[:_MAX_CLASSES])
    if len(task.classes) > _MAX_CLASSES:
      shown += f", ... ({len(task.classes)}, listed below)"
      folded.append((name, task.classes))
    kind = type(task).__name__
    title = name if name == kind.lower() else f"{name} ({kind})"
    rows.append((title, "; ".join(gives) or "-", shown or "-"))
  yield from _table(("task", "gives", "classes"), rows)
  yield ""
  yield (
    "`must_jax` gives boxes and maps in the photo's own pixels, exported files"
    " in those of the image that they take."
  )
  for name, classes in folded:
    yield from _folded(
      f"The {len(classes)} classes of {name}", [", ".join(classes)]
    )


def _predicted(task: Task) -> dict[str, str]:
  """What the arrays are that a task predicts, by name."""
  return {
    name: meaning
    for field in task.fields.values()
    for name, meaning in field.predicted.items()
    if name != "valid"  # of exported files, which have fixed shapes
  }


def _usage(facts: Facts) -> Iterator[str]:
  yield "```python"
  yield "import must_jax"
  yield ""
  yield 'model = must_jax.load("PATH")  # of this folder, a run or a checkpoint'
  yield '(found,) = model.predict(["photo.jpg"])'
  for name, task in facts.tasks.items():
    arrays = ", ".join(_predicted(task)) or "arrays"
    yield f'found["{name}"]  # {arrays}'
  yield "```"
  yield ""
  yield "Labels for many images, pictures, and files for other runtimes:"
  yield ""
  yield "```sh"
  yield "must-jax predict PATH photos/ --out pictures"
  yield "must-jax export PATH --format stablehlo --out exported"
  yield "```"


def _evaluation(facts: Facts) -> Iterator[str]:
  missing = [*facts.tasks]
  if facts.evaluations and not facts.model.origin:
    yield (
      f"Of one run, seed {facts.config['seed']}; how much other seeds differ is"
      f" {_NOT_MEASURED}. What the metrics are: `docs/protocols.md` of"
      " must_jax."
    )
    yield ""
  for evaluation in facts.evaluations:
    if evaluation.problem:
      yield f"**Not of these weights:** {evaluation.problem}."
      yield ""
    for dataset, described in evaluation.datasets.items():
      for name in facts.tasks:
        numbers = [*evaluation.numbers(dataset, name)]
        if not numbers:
          continue
        if name in missing and not evaluation.problem:
          missing.remove(name)
        count = described.get("num_records")
        size = f"{count:,} images" if count is not None else "size unknown"
        where = " ".join(filter(None, (described["name"], described["split"])))
        yield f"**{name}** on {where} ({size}):"
        yield ""
        overall = [(m, _number(v)) for m, c, v in numbers if not c]
        yield from _table(*_across(overall))
        by_class = [(f"{c} ({m})", _number(v)) for m, c, v in numbers if c]
        if by_class:
          yield from _folded(
            f"{name} by class", [*_table(("class", "value"), by_class)]
          )
        yield ""
  for name in missing:
    yield f"- {name}: {_NOT_MEASURED}"
  yield ""
  yield (
    "`must-jax evaluate CONFIG --config.evaluate_from=PATH --workdir=WORKDIR`"
    " measures, on what the config's `evaluate_on` names; `must-jax card PATH"
    " --evaluation WORKDIR` puts it here."
  )


def _lineage(facts: Facts) -> Iterator[str]:
  model = facts.model
  if not model.sources and not model.start and not model.origin:
    yield f"{_UNKNOWN.capitalize()}."
    return
  if model.sources:
    rows = []
    for source in model.sources:
      images = source.images
      drawn = facts.last.get(f"examples/{source.name}")
      rows.append(
        (
          f"{images.name} ({images.split})",
          _count(images.num_records),
          f"{int(drawn):,}" if drawn is not None else _UNKNOWN,
          _and(source.supervised) or "-",
          _and(dict.fromkeys(x.task for x in source.labels)) or "-",
        )
      )
    yield from _table(
      ("images", "number", "drawn", "own labels of", "teachers' labels of"),
      rows,
    )
    yield ""
  yield from _tree(model, set())


def _tree(
  model: Model, seen: set[str], depth: int = 0, before: str = ""
) -> Iterator[str]:
  """The lineage as nested lists.

  Args:
    model: at its root.
    seen: digests of models that were described; gets more.
    depth: of the list.
    before: words before the model's name.
  """
  indent = "  " * depth
  is_known = model.digest in seen and (model.sources or model.start)
  about = ", see above" if is_known else _about(model)
  yield f"{indent}- {before}**{model.name}** {_digest(model.digest)}{about}"
  if is_known:
    return
  seen.add(model.digest)
  for source in model.sources:
    images = source.images
    licence = images.licence
    yield (
      f"{indent}  - images {images.name} ({images.split}):"
      f" {_count(images.num_records)}, licence"
      f" {licence or ('none recorded' if licence == '' else _UNKNOWN)}"
      + (
        f", their own labels of {_and(source.supervised)}"
        if source.supervised
        else ""
      )
      + (
        f"; {images.num_rejected:,} could not be imported"
        if images.num_rejected
        else ""
      )
      + (f"; {images.problem}" if images.problem else "")
    )
    for text in images.warnings:
      yield f"{indent}    - warning of the import: {text}"
    for labels in source.labels:
      by = f"labels of {labels.task} by "
      if labels.teacher is None:
        yield f"{indent}    - {by}{_UNKNOWN}: {labels.problem}"
      else:
        yield from _tree(labels.teacher, seen, depth + 2, by)
  if model.start is not None:
    parts = (model.config or {}).get("init_parts", ())
    yield from _tree(
      model.start, seen, depth + 1, f"started from {_and(parts)} of "
    )


def _about(model: Model) -> str:
  origin = model.origin
  words = [
    *([origin["title"]] if "title" in origin else []),
    *([f"from {origin['source']}"] if "source" in origin else []),
    *([f"licence {origin['licence']}"] if origin.get("licence") else []),
    *([model.problem] if model.problem else []),
  ]
  if model.config is None and not origin.get("licence"):
    words.append("licence " + _UNKNOWN)
  return f": {'; '.join(words)}" if words else ""


def _teachers(model: Model) -> Iterator[str]:
  rows = []
  for teacher in lineage.teachers(model).values():
    config = teacher.config
    images = [
      f"{s.images.name} ({_count(s.images.num_records)})"
      for s in teacher.sources
    ]
    published = teacher.origin.get("source") or teacher.origin.get("file")
    rows.append(
      (
        teacher.task or _UNKNOWN,
        f"`{teacher.digest}`",
        config["model"]["backbone"] if config else _UNKNOWN,
        _size(config) if config else _UNKNOWN,
        _and(images) or published or _UNKNOWN,
        _recipe(config) if config and not teacher.origin else _UNKNOWN,
      )
    )
  if rows:
    yield from _table(
      ("task", "weights", "backbone", "images at", "learned from", "recipe"),
      rows,
    )


def _recipe(config: _Json) -> str:
  return (
    f"{config['train']['steps']:,} steps of {config['data']['batch_size']},"
    f" {config['optimizer']['name']}, lr {config['optimizer']['lr']:g}, seed"
    f" {config['seed']}"
  )


def _label_quality(model: Model) -> Iterator[str]:
  rows, details = [], []
  for source in model.sources:
    for labels in source.labels:
      where = f"{labels.task} on {source.images.name}"
      rows += [(where, *row) for row in _label_rows(labels)]
      details += [*_label_details(where, labels)]
  if not rows:
    return
  yield from _table(
    ("labels", "threshold", "stored", "read", "images", "against the truth"),
    rows,
  )
  yield ""
  yield (
    "Read is what is left at the score from which the student reads them."
    " Measured are all stored labels, those below it, too."
  )
  yield ""
  yield from details


def _label_rows(labels: PseudoLabels) -> Iterator[tuple[str, ...]]:
  """A row for each field; what is not known of it says so."""
  if labels.problem or not labels.left:
    reason = labels.problem or _against_the_truth(labels, "")
    yield (*[_UNKNOWN] * 4, reason)
  for field, left in labels.left.items():
    yield (
      threshold_text(left["min_score"]) if left["min_score"] else "none",
      f"{left['stored']:,} {left['elements']}",
      share_text(left["left"], left["stored"]),
      f"{left['labels']:,}",
      _against_the_truth(labels, field),
    )


def _against_the_truth(labels: PseudoLabels, field: str) -> str:
  overall = [
    f"{name} {_number(value)}"
    for name, value in _quality(labels, field).items()
    if "/" not in name
  ]
  if not overall:
    return _NOT_MEASURED
  return f"{', '.join(overall[:3])} ({Path(labels.quality['truth']).name})"


def _quality(labels: PseudoLabels, field: str) -> dict[str, float]:
  """What was measured of a field; of several each has its name before it."""
  metrics = labels.quality.get("metrics", {})
  prefix = f"{field}/"
  if not any(name.startswith(prefix) for name in metrics):
    return metrics
  return {
    name.removeprefix(prefix): value
    for name, value in metrics.items()
    if name.startswith(prefix)
  }


def _label_details(where: str, labels: PseudoLabels) -> Iterator[str]:
  for alarm in labels.alarms:
    yield f"- **{where}: alarm:** {alarm}"
  if labels.num_undecodable:
    yield f"- {where}: {labels.num_undecodable:,} images could not be decoded."
  for field, left in labels.left.items():
    by_class = {
      name.rpartition("/")[2]: value
      for name, value in _quality(labels, field).items()
      if "/" in name
    }
    if not left["classes"]:
      continue
    classes = left["classes"].items()
    if lost := [n for n, (stored, kept) in classes if stored and kept == 0]:
      more = len(lost) - _MAX_CLASSES
      named = [*lost[:_MAX_CLASSES], *([f"{more:,} more"] if more > 0 else [])]
      yield f"- {where}: nothing is left of {_and(named)}."
    shown = sorted(classes, key=lambda entry: -entry[1][0])[:_MAX_ROWS]
    cut = len(classes) - len(shown)
    yield from _folded(
      f"{where} by class"
      + f", the {_MAX_ROWS} most frequent of {len(classes):,}" * bool(cut),
      [
        *_table(
          ("class", "stored", "read", "against the truth"),
          [
            (
              name,
              f"{stored:,}",
              f"{kept:,}" if kept is not None else _UNKNOWN,
              _number(by_class[name]) if name in by_class else _NOT_MEASURED,
            )
            for name, (stored, kept) in shown
          ],
        )
      ],
    )


def _training(facts: Facts) -> Iterator[str]:
  config, model = facts.config, facts.model
  if model.origin:
    yield (
      "Not trained here. How the published network was trained its source says:"
      f" {model.origin.get('source', _UNKNOWN)}."
    )
    yield ""
    for key in ("file", "sha256"):
      yield f"- {key}: `{model.origin.get(key, _UNKNOWN)}`"
    return
  optimizer = config["optimizer"]
  weights = {
    name: facts.last.get(f"{name}/weight", config["tasks"][name].get("weight"))
    for name in facts.tasks
  }
  weighed = ", ".join(
    f"{name} {_number(value) if value is not None else _UNKNOWN}"
    for name, value in weights.items()
  )
  yield f"- {_recipe(config)}; schedule {optimizer['schedule']}"
  yield f"- losses weighed by `{config['balancing']['method']}`: {weighed}"
  yield f"- backbone {config['model']['backbone']}, {config['model']['dtype']}"
  yield (
    f"- started from: {config['init_from'] and _start_name(model)}"
    if config["init_from"]
    else "- started from random weights"
  )
  if frozen := config.get("freeze"):
    yield f"- frozen: {_and(frozen)}"
  if skipped := facts.last.get("skipped_steps"):
    yield f"- {int(skipped):,} steps were skipped"
  yield f"- versions of libraries, machine, time: {_UNKNOWN} (not recorded)"
  yield ""
  yield (
    "All options are in `config.json` beside the weights; with the data at the"
    " places that it names, this trains the model again, from the same seed:"
  )
  yield ""
  yield "```sh"
  yield "must-jax train config.json --workdir runs/again"
  yield "```"


def _start_name(model: Model) -> str:
  start = model.start
  return f"{start.name} {_digest(start.digest)}" if start else _UNKNOWN


def _preprocessing(facts: Facts) -> Iterator[str]:
  config = config_lib.from_json(json.dumps(facts.config))
  tasks = build_tasks(config)
  described = signature.preprocessing(
    make_program(
      LoadedModel(Path(), config, tasks, build_model(config, tasks), {})
    )
  )
  resize = config.data.eval_resize
  if "instead_of" in described:
    yield (
      f"By the rule `{resize}` of `must_jax/input/preprocess.py`, with"
      f" {_size(facts.config)}. Exported files, whose images have one size,"
      f" take `{described['resize']}` instead:"
    )
  else:
    yield f"`{resize}` to {_size(facts.config)}:"
  yield ""
  for number, step in enumerate(described["steps"], 1):
    yield f"{number}. {step}"
  yield ""
  model = facts.config["model"]
  mean = ", ".join(f"{x:g}" for x in model["image_mean"])
  std = ", ".join(f"{x:g}" for x in model["image_std"])
  yield (
    f"RGB, uint8; the network divides by 255, subtracts ({mean}) and divides by"
    f" ({std}) itself."
  )


def _limits(facts: Facts) -> Iterator[str]:
  config = facts.config
  at = "about " if varies_size(config["data"]["eval_resize"]) else ""
  yield (
    f"- It sees a photo at {at}{_size(config)} pixels, whatever its size; what"
    " is smaller than a few of these pixels is lost."
  )
  if any(task.classes for task in facts.tasks.values()):
    yield (
      "- It knows the classes above and no others; what is none of them is"
      " missed, or taken for one."
    )
  for name, task in facts.tasks.items():
    options = {option: getattr(task, option) for option in task.post_processing}
    if any(options.values()):
      words = ", ".join(f"`{key}` {value}" for key, value in options.items())
      yield f"- Its predictions of {name} depend on {words}."
  taught = sorted({x.task for s in facts.model.sources for x in s.labels})
  if taught:
    yield (
      f"- For {_and(taught)} it learned from what other networks saw, and"
      " inherits their mistakes."
    )
  measured = {
    name
    for e in facts.evaluations
    if not e.problem
    for dataset in e.datasets
    for name in facts.tasks
    if any(e.numbers(dataset, name))
  }
  if unmeasured := [name for name in facts.tasks if name not in measured]:
    yield f"- How good it is at {_and(unmeasured)}: {_NOT_MEASURED}."
  yield (
    f"- {_NOT_MEASURED.capitalize()}: images of another kind than those above,"
    " differences between groups of people, attacks, speed, energy."
  )


def _citation() -> Iterator[str]:
  yield "```bibtex"
  yield "@inproceedings{ghiasi2021must,"
  yield (
    "  title={Multi-Task Self-Training for Learning General Representations},"
  )
  yield (
    "  author={Ghiasi, Golnaz and Zoph, Barret and Cubuk, Ekin D. and Le,"
    " Quoc V. and Lin, Tsung-Yi},"
  )
  yield "  booktitle={ICCV},"
  yield "  year={2021}"
  yield "}"
  yield "```"


# Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
  yield f"| {' | '.join(map(_cell, head))} |"
  yield f"|{'---|' * len(head)}"
  for row in rows:
    yield f"| {' | '.join(map(_cell, row))} |"


def _across(
  pairs: Sequence[tuple[str, str]],
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
  """Names and values as the head and the row of a table."""
  return [name for name, _ in pairs], [[value for _, value in pairs]]


def _cell(text: str) -> str:
  return " ".join(str(text).split()).replace("|", "\\|")


def _folded(title: str, lines: Sequence[str]) -> Iterator[str]:
  yield ""
  yield f"<details><summary>{title}</summary>"
  yield ""
  yield from lines
  yield ""
  yield "</details>"
  yield ""  # what follows without it is no Markdown


def _size(config: _Json) -> str:
  return "{} x {}".format(*config["data"]["image_size"])


def _digest(digest: str) -> str:
  return f"`{digest[:_SHORT]}`" if digest else f"(digest {_UNKNOWN})"


def _count(number: int | None) -> str:
  return _UNKNOWN if number is None else f"{number:,}"


def _number(value: float) -> str:
  return f"{value:.4g}"


def _and(names: Iterable[str]) -> str:
  *first, last = [*names] or [""]
  return f"{', '.join(first)} and {last}" if first else last
