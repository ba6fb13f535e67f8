r"""MuST student: one model on the labels of several teachers (paper 3.2).

  must-jax train student --workdir=runs/student
  must-jax train student:images=data/pile,tasks=detection+depth \
    --workdir=runs/student

The labels of a kind of task are the label set labels/NAME/KIND that
`configs/label.py` makes of the images data/NAME.

Arguments:
  tasks         kinds that are trained, by default all four:
                classification+detection+segmentation+depth
  images split  an imported image set, by default data/imagenet
  labels        directory of label sets, by default labels/NAME
  classification detection segmentation depth
                another place for the labels of a kind: the directory of a label
                set, or "supervised" for the image set's own labels; or several,
                best first, joined by "+", as in
                detection=corrections/pile+labels/pile/detection
  classification_validation detection_validation segmentation_validation
  depth_validation
                an imported image set with true labels of a kind, which the
                student is measured on as it learns
  validation    their split
  depth_weight  of the loss, which the paper sweeps
  root          where all these places lie, a directory or gs://...
  small smoke   a size for CPUs, ten steps

Cost: paper: 90 ImageNet epochs at batch 256 (450,000 steps).
Result: paper, ImageNet, ResNet, fine-tuned: CIFAR-100 86.3, Pascal detection
85.1, Pascal segmentation 80.6, NYU depth 87.8, ADE segmentation 43.5, DIODE
normals 52.7 (Table 2). Ours: not run at this size.
"""

import difflib
from typing import Any

from ml_collections import ConfigDict

from must_jax.config import (
  base_config,
  dataset,
  given,
  parse_arg,
  sized,
  task,
  under,
)

KINDS = ("classification", "detection", "segmentation", "depth")


DEFAULTS = {
  "root": "",
  "images": "data/imagenet",
  "split": "train",
  "tasks": "+".join(KINDS),
  "labels": "labels/{images}",  # the last part of images
  **dict.fromkeys(KINDS, ""),
  **dict.fromkeys((f"{kind}_validation" for kind in KINDS), ""),
  "validation": "validation",
  "depth_weight": 1.0,
  "small": False,
  "smoke": False,
}


def get_config(arg: str | None = None, **defaults: Any) -> ConfigDict:
  defaults = DEFAULTS | defaults
  args = parse_arg(arg, **defaults)
  kinds = parse_kinds(args.tasks)
  if not args.labels.strip("/"):
    raise ValueError(
      f"Config argument labels={args.labels!r}: expected a directory that has"
      f" label sets by kind, as by default {defaults['labels']!r}."
    )
  name = args.images.rstrip("/").rpartition("/")[2]
  labels = args.labels.replace("{images}", name).rstrip("/")
  config = base_config()
  config.datasets.images = dataset(under(args.root, args.images), args.split)
  config.train_on = ("images",)
  for kind in KINDS:
    if kind in kinds:
      origins = tuple(
        origin if origin == "supervised" else under(args.root, origin)
        for origin in (args[kind] or f"{labels}/{kind}").split("+")
      )
      origin = origins if len(origins) > 1 else origins[0]
      config.tasks[kind] = task(kind, labels={"images": origin})
      if measured := args[f"{kind}_validation"]:
        name = f"{kind}_validation"
        config.datasets[name] = dataset(
          under(args.root, measured), args.validation
        )
        config.tasks[kind].labels[name] = "supervised"
        config.evaluate_on += (name,)
      continue
    for name in (kind, f"{kind}_validation"):
      if name in given(arg):
        raise ValueError(
          f"Config argument {name}={args[name]!r} names labels of a task that"
          f" tasks={args.tasks!r} leaves out; expected"
          f" tasks={args.tasks}+{kind}, or no {name}=."
        )
  if "validation" in given(arg) and not config.evaluate_on:
    raise ValueError(
      f"Config argument validation={args.validation!r} is the split of image"
      f" sets with true labels; expected one, such as {kinds[0]}_validation=..."
    )
  if "depth_weight" in given(arg) and "depth" not in kinds:
    raise ValueError(
      f"Config argument depth_weight={args.depth_weight} weighs a task that"
      f" tasks={args.tasks!r} leaves out."
    )
  if "depth" in config.tasks:
    # The paper sweeps this one (3.2); all others follow its rule.
    config.tasks.depth.weight = args.depth_weight
  config.data.batch_size = 256  # paper: derived from 4.2
  config.optimizer.lr = 0.32  # tfm; only its ratio to the teachers' counts
  config.train.steps = 450_000  # paper: 90 ImageNet epochs
  return sized(config, args)


def parse_kinds(text: str) -> list[str]:
  """Splits kinds of task that are joined by "+".

  Raises:
    ValueError: one is not in `KINDS`.
  """
  kinds = text.split("+")
  for kind in kinds:
    if kind not in KINDS:
      near = difflib.get_close_matches(kind, KINDS, 1)
      raise ValueError(
        f"Config argument tasks={text!r}: {kind!r} is no kind of task; expected"
        f" some of {', '.join(KINDS)}, joined by '+'."
        + (f" Did you mean {near[0]!r}?" if near else "")
      )
  return kinds
