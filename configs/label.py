r"""Label an image set with a teacher (paper 3.1); any number of workers.

  must-jax label label:kind=detection,images=data/pile \
    --workdir=labels/pile/detection

Start the same command on as many machines as there are; each takes shards that
are not done. Start it again after a crash: finished shards are kept.

Arguments:
  kind          of the task that labels: needed of a teacher that has several
  teacher       a checkpoint or a run's workdir; by default
                runs/teacher_KIND, and runs/teacher_detection without a kind
  images split  an imported image set, by default data/imagenet
  batch_size    of a worker
  root          where teacher and images lie, a directory or gs://...

Cost: about a third of a training step per image. Result: a label set with a
manifest.
"""

from typing import Any

from ml_collections import ConfigDict

from must_jax.config import base_config, dataset, parse_arg, under

DEFAULTS = {
  "root": "",
  "kind": "",
  "teacher": "runs/teacher_{kind}",
  "images": "data/imagenet",
  "split": "train",
  "batch_size": 64,
}


def get_config(arg: str | None = None, **defaults: Any) -> ConfigDict:
  args = parse_arg(arg, **(DEFAULTS | defaults))
  teacher = args.teacher.replace("{kind}", args.kind or "detection")
  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset(under(args.root, args.images), args.split)
  config.label.teacher = under(args.root, teacher)
  config.label.task = args.kind
  config.label.dataset = "images"
  config.label.batch_size = args.batch_size
  return config
