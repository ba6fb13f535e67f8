r"""Label an image set with a teacher (paper 3.1); any number of workers.

  python main.py --config=configs/label.py:teacher=CKPT,images=DIR \
    --workdir=runs/labels/NAME

Start the same command on as many machines as there are; each takes shards that
are not done. Start it again after a crash: finished shards are kept.

Arguments: teacher (a checkpoint or a run's workdir), images (an imported image
set), split, batch_size.

Cost: about a third of a training step per image. Result: a label set with a
manifest.
"""

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(
    arg, teacher="", images="data/imagenet", split="train", batch_size=64
  )
  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset(args.images, args.split)
  config.label.teacher = args.teacher
  config.label.dataset = "images"
  config.label.batch_size = args.batch_size
  return config
