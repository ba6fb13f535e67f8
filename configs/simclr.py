r"""SimCLR: contrastive pre-training without labels (paper 4.1, Table 2).

  must-jax train simclr --workdir=runs/simclr

Two views of each image, a projection head, NT-Xent over the whole batch and
LARS, after the second version of SimCLR's code. The checkpoint is a start for
fine-tuning like any other: --config.init_from=runs/simclr.

Arguments:
  images split  an imported image set, by default data/imagenet
  epochs        paper: 800 of ImageNet; 1, 2 and 5 of JFT-300M
  num_images    of the set
  root          where images lie, a directory or gs://...
  small smoke   a size for CPUs, ten steps

Cost: not measured at this size. Result: paper, 800 epochs of ImageNet:
CIFAR-100 87.1, Pascal detection 83.3, Pascal segmentation 72.2, NYU depth 83.7,
ADE segmentation 41.0, DIODE normals 52.8. Ours: not run at this size.
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
    images="data/imagenet",
    split="train",
    epochs=800.0,  # paper 4.1
    num_images=1_281_167,
    small=False,
    smoke=False,
  )
  config = base_config()
  config.datasets.images = dataset(under(args.root, args.images), args.split)
  config.train_on = ("images",)
  config.tasks.contrastive = task("contrastive", labels={})
  config.data.update(
    {
      "image_size": (224, 224),  # ref SimCLR
      "batch_size": 4096,  # ref SimCLR
      "train_resize": "inception_crop",  # ref SimCLR: area 0.08 to 1
    }
  )
  config.data.color.update(  # ref SimCLR, strength 1
    {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    | {"jitter_probability": 0.8, "grey_probability": 0.2}
    | {"blur_probability": 0.5}
  )
  steps_per_epoch = args.num_images / config.data.batch_size
  config.model.norm_momentum = 0.9  # ref SimCLR
  config.optimizer.update(
    {"name": "lars", "lr": 4.8, "weight_decay": 1e-6}  # ref SimCLR: 0.3 per 256
    | {"warmup_steps": round(10 * steps_per_epoch), "warmup_lr": 0.0}
  )
  config.train.steps = round(args.epochs * steps_per_epoch)
  # Of few epochs, a part is enough to warm up in.
  config.optimizer.warmup_steps = min(
    config.optimizer.warmup_steps, config.train.steps // 10
  )
  return sized(config, args)
