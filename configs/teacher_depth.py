r"""Depth teacher. The paper imports MiDaS; this trains one on your own depth.

  python main.py --config=configs/teacher_depth.py:data=DIR \
    --workdir=runs/teacher_depth

Arguments: data (an imported image set), train and validation (its splits),
small (a size for CPUs), smoke (ten steps).

Cost: not measured at this size.
Result: no figure in the paper; ours: not run at this size.
"""

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, sized, task


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    data="data/depth",
    train="train",
    validation="validation",
    small=False,
    smoke=False,
  )
  config = base_config()
  config.datasets.train = dataset(args.data, args.train)
  config.datasets.validation = dataset(args.data, args.validation)
  config.train_on = ("train",)
  config.evaluate_on = ("validation",)
  config.tasks.depth = task(
    "depth", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update({"lr": 0.08, "weight_decay": 1e-5})  # ours
  config.optimizer.clip_norm = 10.0  # ours
  config.train.steps = 64_000  # ours
  return sized(config, args)
