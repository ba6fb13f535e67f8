r"""MuST student: one model on the labels of several teachers (paper 3.2).

  python main.py --workdir=runs/student --config=configs/student.py:\
images=DIR,classification=LABELS,detection=LABELS,segmentation=LABELS,depth=LABELS

Each kind of task takes a label set made by `configs/label.py`, or "supervised"
for the image set's own labels; a kind that is not named is not trained. With
labels=DIR, all of DIR/{classification,detection,segmentation,depth} that exist
are taken.

Arguments: images, split, the four kinds, depth_weight, small, smoke.

Cost: paper: 90 ImageNet epochs at batch 256 (450,000 steps).
Result: paper, ImageNet, ResNet, fine-tuned: CIFAR-100 86.3, Pascal detection
85.1, Pascal segmentation 80.6, NYU depth 87.8, ADE segmentation 43.5, DIODE
normals 52.7 (Table 2). Ours: not run at this size.
"""

import os

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, sized, task

KINDS = ("classification", "detection", "segmentation", "depth")


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg,
    images="data/imagenet",
    split="train",
    labels="",
    **dict.fromkeys(KINDS, ""),
    depth_weight=1.0,
    small=False,
    smoke=False,
  )
  config = base_config()
  config.datasets.images = dataset(args.images, args.split)
  config.train_on = ("images",)
  for kind in KINDS:
    source = args[kind]
    if not source and args.labels:
      directory = os.path.join(args.labels, kind)
      source = directory if os.path.isdir(directory) else ""
    if source:
      config.tasks[kind] = task(kind, labels={"images": source})
  if "depth" in config.tasks:
    # The paper sweeps this one (3.2); all others follow its rule.
    config.tasks.depth.weight = args.depth_weight
  config.data.batch_size = 256  # paper: derived from 4.2
  config.optimizer.lr = 0.32  # tfm; only its ratio to the teachers' counts
  config.train.steps = 450_000  # paper: 90 ImageNet epochs
  return sized(config, args)
