r"""Depth teacher. The paper imports MiDaS; this trains one on your own depth.

  must-jax train teacher_depth --workdir=runs/teacher_depth

Arguments:
  data              an imported image set, by default data/depth
  train validation  its splits
  root              where data lies, a directory or gs://...
  small smoke       a size for CPUs, ten steps

Cost: not measured at this size.
Result: no figure in the paper; ours: not run at this size.
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
    data="data/depth",
    train="train",
    validation="validation",
    small=False,
    smoke=False,
  )
  config = base_config()
  data = under(args.root, args.data)
  config.datasets.train = dataset(data, args.train)
  config.datasets.validation = dataset(data, args.validation)
  config.train_on = ("train",)
  config.evaluate_on = ("validation",)
  config.tasks.depth = task(
    "depth", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update({"lr": 0.08, "weight_decay": 1e-5})  # ours
  config.optimizer.clip_norm = 10.0  # ours
  config.train.steps = 64_000  # ours
  return sized(config, args)
