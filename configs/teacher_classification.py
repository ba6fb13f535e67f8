r"""Classification teacher, from scratch (paper 3.1: ImageNet).

  must-jax train teacher_classification --workdir=runs/teacher_classification

Arguments:
  data              an imported image set, by default data/imagenet
  train validation  its splits, by default as published
  root              where data lies, a directory or gs://...
  small smoke       a size for CPUs, ten steps

Cost: not measured at this size.
Result: not run at this size; the paper gives no figure for this teacher.
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
    data="data/imagenet",
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
