r"""Segmentation teacher, from scratch (paper 3.1: COCO, 133 classes).

  python main.py --config=configs/teacher_segmentation.py:data=DIR \
    --workdir=runs/teacher_segmentation

Arguments: data (an imported image set), train and validation (its splits),
small (a size for CPUs), smoke (ten steps).

Cost: not measured at this size.
Result: paper: 53.8 mIoU (Table 4); ours: not run at this size.
"""

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, sized, task


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    data="data/coco_panoptic",
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
  config.tasks.segmentation = task(
    "segmentation", labels={"train": "supervised", "validation": "supervised"}
  )
  config.optimizer.update(
    {"lr": 0.08, "weight_decay": 1e-5, "clip_norm": 10.0}  # tpu
    | {"warmup_steps": 500, "warmup_lr": 0.001}  # tpu
  )
  config.train.steps = 64_000  # ours: 140 epochs
  return sized(config, args)
