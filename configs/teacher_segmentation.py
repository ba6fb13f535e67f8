r"""Segmentation teacher, from scratch (paper 3.1: COCO, 133 classes).

  must-jax train teacher_segmentation --workdir=runs/teacher_segmentation

Arguments:
  data              an imported image set, by default data/coco_panoptic
  train validation  its splits, by default as published
  root              where data lies, a directory or gs://...
  small smoke       a size for CPUs, ten steps

Cost: not measured at this size.
Result: paper: 53.8 mIoU (Table 4); ours: not run at this size.
"""

from ml_collections import ConfigDict

from must_jax.config import (
  base_config,
  dataset,
  parse_arg,
  sized,
  task,
  under,
)


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    root="",
    data="data/coco_panoptic",
    train="train",
    validation="val",
    small=False,
    smoke=False,
  )
  config = base_config()
  data = under(args.root, args.data)
  config.datasets.train = dataset(data, args.train)
  config.datasets.validation = dataset(data, args.validation)
  config.train_on = ("train",)
  config.evaluate_on = ("validation",)
  config.tasks.segmentation = task(
    "segmentation", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update(
    {"lr": 0.08, "weight_decay": 1e-5, "clip_norm": 10.0}  # tpu
    | {"warmup_steps": 500, "warmup_lr": 0.001}  # tpu
  )
  config.train.steps = 64_000  # ours: 140 epochs
  return sized(config, args)
