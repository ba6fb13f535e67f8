r"""Classification teacher, from scratch (paper 3.1: ImageNet).

  python main.py --config=configs/teacher_classification.py:data=DIR \
    --workdir=runs/teacher_classification

Arguments: data (an imported image set), train and validation (its splits),
small (a size for CPUs), smoke (ten steps).

Cost: not measured at this size.
Result: not run at this size; the paper gives no figure for this teacher.
"""

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, sized, task


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    data="data/imagenet",
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
  config.tasks.classification = task(
    "classification", labels={"train": "supervised", "validation": "supervised"}
  )
  config.data.update({"image_size": (224, 224), "batch_size": 1024})  # tpu
  config.data.scale_jitter = (1.0, 2.0)  # ours
  config.optimizer.update(
    {"lr": 0.4, "weight_decay": 1e-4}  # tpu
    | {"warmup_steps": 6_255, "warmup_lr": 0.0}  # tpu
  )
  config.train.steps = 112_603  # tpu: 90 epochs
  return sized(config, args)
