r"""Detection teacher, from scratch (paper 3.1: Objects365).

  python main.py --config=configs/teacher_detection.py:data=DIR \
    --workdir=runs/teacher_detection

Arguments: data (an imported image set), train and validation (its splits),
small (a size for CPUs), smoke (ten steps).

Cost: not measured at this size.
Result: paper: 26.1 AP (Table 4); ours: not run at this size.
"""

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, sized, task


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    data="data/objects365",
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
  config.tasks.detection = task(
    "detection", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update({"schedule": "steps", "weight_decay": 8e-5})  # tfm
  config.optimizer.boundaries = (0.914, 0.971)  # tfm: 148160, 157420
  config.train.steps = 162_050  # tfm
  return sized(config, args)
