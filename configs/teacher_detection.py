r"""Detection teacher, from scratch (paper 3.1: Objects365).

  must-jax train teacher_detection --workdir=runs/teacher_detection

Arguments:
  data              an imported image set, by default data/objects365
  train validation  its splits, by default as published
  root              where data lies, a directory or gs://...
  small smoke       a size for CPUs, ten steps

Cost: not measured at this size.
Result: paper: 26.1 AP (Table 4); ours: not run at this size.
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
    data="data/objects365",
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
  config.tasks.detection = task(
    "detection", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update({"schedule": "steps", "weight_decay": 8e-5})  # tfm
  config.optimizer.boundaries = (0.914, 0.971)  # tfm: 148160, 157420
  config.train.steps = 162_050  # tfm
  return sized(config, args)
