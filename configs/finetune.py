r"""Fine-tune a checkpoint on a dataset of your own (paper 3.3), end to end.

  must-jax train finetune:kind=segmentation,data=DIR,init=CKPT \
    --workdir=runs/finetune

Arguments:
  kind              classification, detection, segmentation, depth (in metres),
                    normals
  data              an imported image set, by default data/mine
  train validation  its splits
  init              a checkpoint or a run's workdir; none: from scratch
  root              where data and init lie, a directory or gs://...
  small smoke       a size for CPUs, ten steps

The paper sweeps the learning rate and the number of steps:
--config.optimizer.lr=... --config.train.steps=...

Cost: not measured at this size. Result: see the tables of the paper; ours: not
run at this size.
"""

from typing import Any

from ml_collections import ConfigDict

from must_jax.config import (
  base_config,
  dataset,
  parse_arg,
  sized,
  task,
  under,
)

OPTIONS: dict[str, dict[str, Any]] = {
  "depth": {"unit": "metres", "objective": "berhu"}
}  # ref BYOL D.6


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    root="",
    kind="classification",
    data="data/mine",
    train="train",
    validation="validation",
    init="",
    small=False,
    smoke=False,
  )
  config = base_config()
  config.init_from = under(args.root, args.init)
  config.init_parts = ("backbone", "fpn")  # paper 3.3: fresh heads
  data = under(args.root, args.data)
  config.datasets.train = dataset(data, args.train)
  config.datasets.validation = dataset(data, args.validation)
  config.train_on = ("train",)
  config.evaluate_on = ("validation",)
  config.tasks[args.kind] = task(
    args.kind,
    labels={"train": "supervised", "validation": "supervised"},
    **OPTIONS.get(args.kind, {}),
  )
  if args.kind == "classification":  # ref SimCLR B.8.1, BYOL D.3
    config.data.update({"image_size": (224, 224), "batch_size": 256})
    config.data.train_resize = "inception_crop"
    config.data.eval_resize = "center_crop"
  else:
    config.data.batch_size = 64  # ours
  config.optimizer.update(
    {"lr": 0.02, "warmup_steps": 500, "warmup_lr": 0.0, "clip_norm": 10.0}
  )  # ours
  config.train.steps = 10_000  # ours
  return sized(config, args)
