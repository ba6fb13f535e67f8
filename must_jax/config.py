"""The configuration of a run: every default, and what makes one valid.

A config file holds `get_config(arg)` and starts from `base_config()`; those of
`configs/` are shipped with the package, as `must_jax.configs.NAME`:

  must-jax train student:smoke --workdir=runs/x --config.optimizer.lr=0.1

Numbers are tagged with their origin: `paper` (section), `ref` (a reference of
the paper), `tfm` (TensorFlow Model Garden), `tpu` (TPU detection repository)
or `ours`. `ref CP` is Copy-Paste (Ghiasi et al., 2021).
"""

import copy
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import (
  ConfigDict,
  FieldReference,
  config_dict,
  config_flags,
)

from must_jax import ranges
from must_jax.models import fpn
from must_jax.models.must import BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from must_jax.ranges import (
  AT_LEAST_1,
  DECAY,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  POSITIVE_FRACTION,
  Interval,
)
from must_jax.tasks import TASKS, make_task, task_options
from must_jax.weighting import METHODS

# Exit status of a run that saved itself because it was told to end.
PREEMPTED = 42
OPTIMIZERS = ("sgd", "adamw", "lars", "rmsprop")
SCHEDULES = ("cosine", "polynomial", "steps")
STAGES = ("train", "evaluate", "label")
TENSORBOARD = "tensorboard"
TRACKERS = (TENSORBOARD, "wandb", "mlflow")
TRAIN_RESIZE = ("pad", "stretch", "center_crop", "inception_crop")
# All but the first three are of published networks, see input.preprocess.RULES.
EVAL_RESIZE = (
  *("pad", "stretch", "center_crop"),
  *("pillow_bilinear_crop", "pillow_bicubic_crop"),
  *("shortest_side", "midas_upper_bound", "midas_minimal"),
  *("bilinear_pad", "bicubic_stretch"),
)
# Names become directories and parameter names, so they stay harmless.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Files of the shipped configs; in a checkout, a link to `configs/`.
SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")
_TASK_KEYS = ("kind", "labels", "weight", "classes")
# Which numbers the options take; those of a kind of task are in its file.
RANGES: dict[str, Interval] = {
  "seed": ranges.ANY,
  "model.width": NOT_NEGATIVE,
  "model.image_mean": ranges.ANY,
  "model.image_std": POSITIVE,
  "model.channels": AT_LEAST_1,
  "model.min_level": AT_LEAST_1,
  "model.max_level": AT_LEAST_1,
  "model.norm_momentum": FRACTION,
  "model.norm_epsilon": POSITIVE,
  "data.image_size": AT_LEAST_1,
  "data.batch_size": AT_LEAST_1,
  "data.eval_batch_size": AT_LEAST_1,
  "data.label_stride": AT_LEAST_1,
  "data.scale_jitter": POSITIVE,
  "data.crop_fraction": POSITIVE_FRACTION,
  "data.crop_area": POSITIVE_FRACTION,
  "data.antialias_below": FRACTION,
  "data.color.num_ops": Interval(0, 4),
  "data.color.magnitude": Interval(0, 10),
  "data.color.brightness": FRACTION,
  "data.color.contrast": FRACTION,
  "data.color.saturation": FRACTION,
  "data.color.hue": Interval(0, 0.5),
  "data.color.jitter_probability": FRACTION,
  "data.color.grey_probability": FRACTION,
  "data.color.blur_probability": FRACTION,
  "data.block_size": AT_LEAST_1,
  "data.window_blocks": AT_LEAST_1,
  "data.max_bad": FRACTION,
  "data.num_threads": NOT_NEGATIVE,
  "optimizer.lr": NOT_NEGATIVE,
  "optimizer.betas": DECAY,
  "optimizer.momentum": DECAY,
  "optimizer.weight_decay": NOT_NEGATIVE,
  "optimizer.clip_norm": NOT_NEGATIVE,
  "optimizer.warmup_steps": NOT_NEGATIVE,
  "optimizer.warmup_lr": NOT_NEGATIVE,
  "optimizer.boundaries": FRACTION,
  "optimizer.decay": POSITIVE,
  "optimizer.lr_factors.backbone": NOT_NEGATIVE,
  "optimizer.lr_factors.fpn": NOT_NEGATIVE,
  "optimizer.lr_factors.heads": NOT_NEGATIVE,
  "optimizer.layer_decay": POSITIVE_FRACTION,
  "optimizer.ema_decay": DECAY,
  "balancing.lr": POSITIVE,
  "balancing.alpha": NOT_NEGATIVE,
  "balancing.bound": AT_LEAST_1,
  "balancing.leak": FRACTION,
  "train.steps": AT_LEAST_1,
  "train.log_every": NOT_NEGATIVE,
  "train.evaluate_every": NOT_NEGATIVE,
  "train.checkpoint_every": NOT_NEGATIVE,
  "train.keep_checkpoints": AT_LEAST_1,
  "train.patience": NOT_NEGATIVE,
  "train.pictures": NOT_NEGATIVE,
  "train.profile_steps": NOT_NEGATIVE,
  "train.accumulate": AT_LEAST_1,
  "train.spike_sigmas": NOT_NEGATIVE,
  "train.max_skipped": AT_LEAST_1,
  "train.max_rollbacks": NOT_NEGATIVE,
  "train.stuck_seconds": NOT_NEGATIVE,
  "mesh.data": Interval(-1),
  "mesh.fsdp": AT_LEAST_1,
  "label.batch_size": AT_LEAST_1,
  "label.map_stride": NOT_NEGATIVE,
  "label.lease_seconds": POSITIVE,
  "label.max_undecodable": FRACTION,
}
# Which words the options take, those that are tuples any of them.
CHOICES: dict[str, Collection[str]] = {
  "stage": STAGES,
  "init_parts": ("backbone", "fpn", "heads"),
  "freeze": ("backbone", "fpn"),
  "model.backbone": BACKBONES,
  "model.dtype": ("float32", "bfloat16"),
  "model.fpn_norm": fpn.NORMS,
  "model.fpn_top": fpn.TOPS,
  "sampling": ("uniform", "equal"),
  "trackers": TRACKERS,
  "data.train_resize": TRAIN_RESIZE,
  "data.eval_resize": EVAL_RESIZE,
  "optimizer.name": OPTIMIZERS,
  "optimizer.schedule": SCHEDULES,
  "balancing.method": METHODS,
}
# The lower number first.
_PAIRS = ("data.scale_jitter", "data.crop_area", "train.profile_steps")


def base_config() -> ConfigDict:
  """Every option with its default.

  The comment above an option says what it means, the one beside it where the
  number comes from; docs/reference/config.md is made of them.
  """
  return ConfigDict(
    {
      # What is done with the config; the verbs of `must-jax` set it.
      "stage": "train",
      # Seed of initial parameters, order of data, augmentation and dropout.
      "seed": 0,
      # Checkpoint or workdir whose weights training starts from; empty: random.
      "init_from": "",
      # What is taken from it. A head is taken where its task's name, classes
      # and shapes agree.
      "init_parts": ("backbone", "fpn", "heads"),
      # Parts that do not train.
      "freeze": (),
      # The network.
      "model": {
        # Name of the backbone.
        "backbone": "resnet50",  # paper: "ResNet", depth not published
        # Channels of the stem, for small models; 0: as published.
        "width": 0,
        # Mean of the RGB channels, in 0..1, that is subtracted from images.
        "image_mean": IMAGENET_MEAN,  # ref ImageNet
        # Standard deviation of the channels that images are divided by.
        "image_std": IMAGENET_STD,  # ref ImageNet
        # Channels of the feature pyramid and of the heads.
        "channels": 256,  # tpu
        # Finest level of the pyramid; level l has stride 2^l pixels.
        "min_level": 3,  # paper 3.2
        # Coarsest level of the pyramid.
        "max_level": 7,  # paper 3.2
        # BatchNorm of the pyramid: on each level, or in each convolution, as
        # imported detectors have it.
        "fpn_norm": "levels",  # tpu
        # Levels past the backbone: by a strided convolution, or by max pooling.
        "fpn_top": "conv",  # tpu
        # Levels of the backbone (2 to 5) that are computed again in the
        # backward pass, which saves memory.
        "remat": (),
        # Type of the activations; parameters and losses are float32.
        "dtype": "bfloat16",
        # Decay of BatchNorm's running statistics.
        "norm_momentum": 0.99,  # tfm r50fpn_640_coco_scratch
        # Added to the variance in BatchNorm.
        "norm_epsilon": 1e-3,  # tfm
      },
      # The tasks by name, each a task(...).
      "tasks": {},
      # The image sets by name, each a dataset(...).
      "datasets": {},
      # Names of the datasets to train on.
      "train_on": (),
      # How they are mixed: "uniform" over the union of their images, or
      # "equal", each dataset as likely (paper 4.4, Table 5); times each
      # dataset's share.
      "sampling": "uniform",  # paper 3.2
      # Names of the datasets to evaluate on.
      "evaluate_on": (),
      # Who gets metrics and pictures; metrics.jsonl is always written.
      "trackers": (TENSORBOARD,),
      # Checkpoint that the stage "evaluate" measures; empty: the latest of the
      # workdir.
      "evaluate_from": "",
      # How images and labels are read.
      "data": {
        # Height and width of the network input, in pixels.
        "image_size": (640, 640),  # ref CP, its tables at 640
        # Images of a training step, over all devices.
        "batch_size": 256,  # paper: derived from 4.2
        # Images of an evaluation step, over all devices.
        "eval_batch_size": 64,  # ours
        # Pixels of the network input for each of a label map in training.
        "label_stride": 4,  # ours: the stride of P2
        # How images reach the network in training, see `AugmentOptions`.
        "train_resize": "pad",
        # How they do in evaluation, prediction and labelling.
        "eval_resize": "pad",
        # Bounds of the random scale of "pad" in training.
        "scale_jitter": (0.5, 2.0),  # tfm
        # Side of a centre crop, relative to the image's shorter side.
        "crop_fraction": 0.875,  # ref SimCLR: 224 of 256
        # Bounds of the area of an "inception_crop", relative to the image.
        "crop_area": (0.08, 1.0),  # ref SimCLR
        # Scale below which images are averaged as they shrink, which looks
        # better and costs time; 0: never, 1: always.
        "antialias_below": 0.0,
        # Mirror half of the training images.
        "flip": True,
        # How colours vary in training, see `ColorOptions`; by default not.
        "color": {
          # Operations of RandAugment on an image.
          "num_ops": 0,
          # Their strength.
          "magnitude": 0.0,
          # The factor of the brightness is in 1 - s .. 1 + s.
          "brightness": 0.0,
          # The factor of the contrast is in 1 - s .. 1 + s.
          "contrast": 0.0,
          # The factor of the saturation is in 1 - s .. 1 + s.
          "saturation": 0.0,
          # Largest turn of the colour circle; 0.5 is all of it.
          "hue": 0.0,
          # Probability that the four before are applied.
          "jitter_probability": 1.0,
          # Probability of a grey image.
          "grey_probability": 0.0,
          # Probability of a blurred image.
          "blur_probability": 0.0,
        },
        # Neighbouring records that are read together.
        "block_size": 128,  # ours
        # Blocks whose records are shuffled together.
        "window_blocks": 16,  # ours
        # Part of the records that may be unusable; more ends the run.
        "max_bad": 0.01,  # ours
        # Threads that read and decode; 0: one per core.
        "num_threads": 0,
      },
      # How parameters are updated.
      "optimizer": {
        # The optimiser; "lars" is SimCLR's, "rmsprop" is EfficientNet's.
        "name": "sgd",  # tfm
        # The peak of the learning rate.
        "lr": 0.32,  # tfm r50fpn_640_coco_scratch
        # Decay of the two averages of "adamw".
        "betas": (0.9, 0.999),  # ref Adam
        # Momentum of "sgd", "lars" and "rmsprop".
        "momentum": 0.9,  # tfm
        # Nesterov's momentum, of "sgd" and "lars".
        "nesterov": False,
        # L2 of kernels alone: not of biases and norms.
        "weight_decay": 4e-5,  # ref CP
        # Largest global norm of the gradient; 0: any.
        "clip_norm": 0.0,
        # How the learning rate falls: "polynomial" has power 0.9, "steps" falls
        # at `boundaries`.
        "schedule": "cosine",
        # Steps in which the learning rate rises to its peak.
        "warmup_steps": 2000,  # tfm
        # Learning rate of the first step.
        "warmup_lr": 0.0067,  # tfm
        # Where "steps" falls, as fractions of all steps.
        "boundaries": (0.9, 0.95),  # ref CP, which has 0.975, too
        # Factor of the learning rate at each of them.
        "decay": 0.1,  # ref CP
        # Factors of the learning rate, by part of the network.
        "lr_factors": {
          # Of the backbone.
          "backbone": 1.0,
          # Of the feature pyramid.
          "fpn": 1.0,
          # Of all heads.
          "heads": 1.0,
        },
        # Factor from each layer of the backbone to the one before it.
        "layer_decay": 1.0,
        # Decay of averaged parameters, which are evaluated and loaded; 0: off.
        "ema_decay": 0.0,  # ref EfficientNet has 0.9999
      },
      # How the tasks' losses combine; each method takes the options it has.
      "balancing": {
        # The method. "fixed": the tasks' weights; "paper": its rule for tasks
        # that have none. The others learn weights, or change gradients.
        "method": "paper",  # paper 3.2
        # Learning rate of learned weights ("uncertainty", "gradnorm").
        "lr": 0.025,  # ref GradNorm
        # How strongly "gradnorm" favours slow tasks.
        "alpha": 1.5,  # ref GradNorm
        # Weights of "uncertainty" stay in 1/bound .. bound.
        "bound": 100.0,  # ours
        # Part of the gradients that "graddrop" never drops.
        "leak": 0.0,  # ref GradDrop
      },
      # The loop.
      "train": {
        # Steps of the run.
        "steps": 450_000,  # paper: 90 epochs of ImageNet at 256
        # Steps from one line of metrics to the next; 0: at the end only.
        "log_every": 100,  # ours
        # Steps from one evaluation to the next; 0: at the end only.
        "evaluate_every": 10_000,  # ours
        # Steps from one checkpoint to the next; 0: at the end only.
        "checkpoint_every": 5_000,  # ours
        # Latest checkpoints that are kept.
        "keep_checkpoints": 2,  # ours
        # "DATASET/TASK/METRIC" of the evaluations: the checkpoint at which it
        # is best is kept in WORKDIR/best. Empty: none is.
        "best_metric": "",
        # Images of each evaluated dataset that are drawn for the trackers, with
        # truth and prediction.
        "pictures": 4,  # ours
        # First and last step that are traced into WORKDIR/profile; 0, 0: none.
        "profile_steps": (0, 0),
        # Evaluations without a better `best_metric` that end the run; 0: never.
        "patience": 0,
        # Parts of a batch that are computed in turn, which saves memory.
        "accumulate": 1,
        # Standard deviations above the latest steps from which a loss or
        # gradient is a spike; its step is skipped. 0: only one that is not
        # finite is.
        "spike_sigmas": 0.0,  # OLMo has 6
        # Skipped steps in a row after which the run goes back to a checkpoint.
        "max_skipped": 10,  # ours
        # Times that it goes back before it ends.
        "max_rollbacks": 3,  # ours
        # Seconds without a step until a process is reported; 0: never.
        "stuck_seconds": 600.0,  # ours
      },
      # How devices share the work; data * fsdp is their number.
      "mesh": {
        # Groups of devices, each with all parameters; -1: as many as there are.
        "data": -1,
        # Devices of a group, over which parameters and optimiser are split.
        "fsdp": 1,
      },
      # A labelling job.
      "label": {
        # Checkpoint or workdir that labels.
        "teacher": "",
        # Name of its task; empty: its only one.
        "task": "",
        # Name of the dataset to label.
        "dataset": "",
        # Directory of the label set; empty: the workdir.
        "output": "",
        # Images that a worker labels at a time.
        "batch_size": 64,  # ours
        # Pixels of the network input for each of a stored map; 0: as the head
        # gives them, 4 but for published networks.
        "map_stride": 0,
        # Seconds after which a silent worker's shard is taken over.
        "lease_seconds": 600.0,  # ours
        # Part of the images that may be undecodable; more ends the job.
        "max_undecodable": 0.01,  # ours
      },
    }
  )


def task(
  kind: str,
  *,
  labels: Mapping[str, str | tuple[str, ...]],
  weight: float | None = None,
  classes: tuple[str, ...] = (),
  **options: Any,
) -> ConfigDict:
  """An entry of `config.tasks`.

  Args:
    kind: what the task does, a key of `must_jax.tasks.TASKS`.
    labels: where the task's labels come from, by name of dataset:
      "supervised" for the dataset's own, the directory of a label set, or
      several of these, best first: each image has the first that it is in.
    weight: factor of the task's loss; by default the paper's rule (3.2) where
      its labels come from a teacher, else 1.
    classes: class names; by default those of the labels' sources.
    **options: options of the kind, see its file in `must_jax/tasks`.

  Raises:
    ValueError: there is no such kind, or the kind has no such option.
  """
  unknown = sorted(set(options) - set(task_options(kind)))
  if unknown:
    raise ValueError(
      f"A {kind!r} task has no option {unknown}; it has"
      f" {sorted(task_options(kind))}."
    )
  entry = ConfigDict({"kind": kind, "classes": tuple(classes)})
  entry.labels = ConfigDict(convert_dict=False)
  for name, origins in labels.items():
    _set_any(entry.labels, name, origins)
  entry.weight = config_dict.placeholder(float)
  entry.weight = weight
  entry.update(task_options(kind) | options)
  for name in TASKS[kind].by_class:  # may be a number, or some by name
    _set_any(entry, name, task_kwargs(entry)[name])
  return entry


def _set_any(entry: ConfigDict, name: str, value: Any) -> None:
  """Sets an option that may get a value of another type."""
  if name in entry:
    del entry[name]
  entry[name] = FieldReference(None, field_type=object)
  entry[name] = value


def dataset(
  directory: str | os.PathLike[str], split: str, share: float = 1.0
) -> ConfigDict:
  """An entry of `config.datasets`: one split of an imported image set.

  Args:
    directory: where the image set is, local or in a bucket.
    split: name of the split, such as "train".
    share: how often its images are drawn in training, see `config.sampling`.
  """
  return ConfigDict({"dir": str(directory), "split": split, "share": share})


def task_kwargs(entry: ConfigDict) -> dict[str, Any]:
  """The options of the kind in an entry of `config.tasks`."""
  return {
    k: v.to_dict() if isinstance(v, ConfigDict) else v
    for k, v in entry.items()
    if k not in _TASK_KEYS
  }


class UnknownArgument(ValueError):
  """A config was given an argument that it does not have.

  Attributes:
    defaults: of the arguments that it has.
  """

  # `config_flags` makes another of the message alone.
  def __init__(self, message: str, defaults: Mapping[str, Any] | None = None):
    super().__init__(message)
    self.defaults = dict(defaults or {})


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses the part of `CONFIG:ARG` after the colon.

  `ARG` is `name=value,name2=value2`; a bare `name` means `name=True`. Values
  take the type of their default.

  Raises:
    UnknownArgument: a name without a default.
    ValueError: a value of another type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, _, text = item.partition("=")
    if name not in defaults:
      near = nearest(name, defaults)
      raise UnknownArgument(
        f"Config argument {name!r} is not known; expected some of"
        f" {sorted(defaults)}, as in CONFIG:{sorted(defaults)[0]}=..."
        + (f" Did you mean {near!r}?" if near else ""),
        defaults,
      )
    default = defaults[name]
    try:
      if isinstance(default, bool):
        values[name] = {"": True, "true": True, "false": False}[text.lower()]
      elif default is None:
        values[name] = text
      else:
        values[name] = type(default)(text)
    except (KeyError, ValueError):
      raise ValueError(
        f"Config argument {name}={text!r}: expected a"
        f" {type(default).__name__}, such as {default!r}."
      ) from None
  return ConfigDict(values)


def given(arg: str | None) -> dict[str, str]:
  """The arguments that were given, by name, see `parse_arg`."""
  items = (item.partition("=") for item in (arg or "").split(",") if item)
  return {name: text for name, _, text in items}


def root_of(arg: str | None) -> str:
  """The value of the argument `root`, which every config file takes."""
  return given(arg).get("root", "")


def under(root: str, path: str) -> str:
  """A place under a root, on a disk or in a bucket.

  Args:
    root: a directory or URL; empty for the current directory.
    path: stays as it is if it is empty, absolute or a URL.
  """
  if not root or not path or path.startswith("/") or "://" in path:
    return path
  return f"{root.rstrip('/')}/{path}"


def small(config: ConfigDict) -> ConfigDict:
  """The same run at a size that a CPU trains in minutes."""
  config = copy.deepcopy(config)  # the types of what is None, too
  config.model.update(
    {"backbone": "resnet18", "width": 16, "channels": 32, "dtype": "float32"}
  )
  # P3 of a small image has too few cells to draw with.
  config.model.update({"min_level": 2, "max_level": 4})
  # Short runs: statistics must not remember how they began.
  config.model.norm_momentum = 0.9
  config.data.update(
    {
      "image_size": (64, 64),
      "batch_size": 16,
      "eval_batch_size": 16,
      "label_stride": 2,
      "scale_jitter": (0.8, 1.25),
      "block_size": 16,
      "num_threads": 2,
    }
  )
  config.optimizer.update(
    {"lr": 0.02, "warmup_steps": 20, "warmup_lr": 0.002, "clip_norm": 10.0}
  )
  config.train.update(
    {"steps": 600, "log_every": 20, "evaluate_every": 0}
    | {"checkpoint_every": 200}
  )
  config.label.batch_size = 16
  detector = {
    "anchor_scale": 3.5,
    "fc_dims": 64,
    "num_rois": 16,
    "rpn_samples": 64,
    "rpn_pre_nms": 64,
    "rpn_post_nms": 32,
    "roi_canonical_size": 32.0,
    "max_boxes": 20,
    "max_detections": 30,
  }
  for entry in config.tasks.values():
    entry.update({k: v for k, v in detector.items() if k in entry})
  return config


def smoke(config: ConfigDict) -> ConfigDict:
  """`:smoke`: ten steps of the small run, to see that everything works."""
  config = small(config)
  config.model.update({"width": 8, "channels": 16})
  config.data.update({"batch_size": 8, "eval_batch_size": 8})
  config.optimizer.update({"warmup_steps": 2})
  config.train.update({"steps": 10, "log_every": 2, "checkpoint_every": 5})
  config.label.batch_size = 8
  for entry in config.tasks.values():
    if "min_score" in entry:  # what ten steps teach is sure of nothing
      entry.min_score = 0.0
  return config


def sized(config: ConfigDict, args: ConfigDict) -> ConfigDict:
  """Applies the arguments that every config file takes: `small`, `smoke`."""
  if args.smoke:
    return smoke(config)
  return small(config) if args.small else config


def start_from(
  config: ConfigDict, checkpoint: str, *, backbone: str, toy: str, **model: Any
) -> ConfigDict:
  """The same run, from a published backbone instead of from scratch.

  Args:
    config: of a run; if it is `small` or `smoke`, it gets `toy` for a backbone
      and stays from scratch, for the published one has other widths.
    checkpoint: made by `must-jax convert`.
    backbone: of the checkpoint.
    toy: a small backbone of the same family.
    **model: other options of the checkpoint's model.
  """
  config = copy.deepcopy(config)
  config.model.update({"backbone": toy if config.model.width else backbone})
  config.model.update(model)
  if not config.model.width:
    config.init_from, config.init_parts = checkpoint, ("backbone",)
  return config


def start_from_align_b7(config: ConfigDict, root: str) -> ConfigDict:
  """The same run, from ALIGN's EfficientNet-B7 (paper 4.3).

  Args:
    config: see `start_from`.
    root: of the checkpoint, see `under`.
  """
  config = start_from(
    config,
    under(root, "checkpoints/align_b7"),
    backbone="efficientnet_b7_align",
    toy="efficientnet_b0",
    image_mean=(0.5, 0.5, 0.5),  # ALIGN
    image_std=(0.5, 0.5, 0.5),  # ALIGN
  )
  config.optimizer.lr_factors.backbone = 0.1  # ours: it has learned already
  return config


def to_json(config: ConfigDict) -> str:
  """Canonical JSON of a config, for storing beside what it made."""
  return json.dumps(
    json.loads(config.to_json_best_effort()), indent=2, sort_keys=True
  )


def from_json(text: str) -> ConfigDict:
  """Reads `to_json`; unknown options are an error, missing ones default.

  Raises:
    ValueError: the text holds an option that this version does not have.
  """
  raw = json.loads(text)
  # Was an option of its own, for labelling.
  resize = raw.get("data", {}).pop("resize", "pad")
  if resize != "pad":
    raw["data"]["eval_resize"] = resize
  # Had the name of the classifier's backbone, which has one convolution more.
  if raw.get("model", {}).get("backbone") == "efficientnet_lite3" and any(
    entry.get("decoder") == "midas_v21_small"
    for entry in raw.get("tasks", {}).values()
  ):
    raw["model"]["backbone"] = "efficientnet_lite3_midas"
  config = base_config()
  tasks, datasets = raw.pop("tasks", {}), raw.pop("datasets", {})
  try:
    with config.lock().ignore_type():
      config.update(_tuples(raw))
  except KeyError as error:
    raise ValueError(
      "The stored config has an option this version does not know:"
      f" {str(error).partition(' and cannot')[0]}. It was written by another"
      " version of must_jax."
    ) from None
  with config.unlocked():
    for name, entry in tasks.items():
      config.tasks[name] = task(**_tuples(entry))
    for name, entry in datasets.items():
      config.datasets[name] = dataset(entry.pop("dir"), **entry)
  return config


def differences(old: Any, new: Any, name: str = "") -> list[str]:
  """Says for two JSON values where they differ, one line for each place."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    pairs = [
      (f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
      for key in sorted({*old, *new})
    ]
  elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    pairs = [
      (f"{name}[{i}]", a, b)
      for i, (a, b) in enumerate(zip(old, new, strict=True))
    ]
  else:
    return [] if old == new else [f"{name} was {old!r:.80}, is {new!r:.80}"]
  return [
    line for pair in pairs for line in differences(pair[1], pair[2], pair[0])
  ]


def options(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Every option of a config with its value, as "data.batch_size"."""
  found: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      found |= options(value, f"{prefix}{name}.")
    else:
      found[f"{prefix}{name}"] = value
  return found


def nearest(name: str, known: Iterable[str]) -> str:
  """The dotted name that was likely meant; "" if none is near."""

  def likeness(other: str) -> float:
    mine, its = name.rpartition(".")[2], other.rpartition(".")[2]
    last = difflib.SequenceMatcher(None, mine, its).ratio()
    if its in (mine, _initials(mine)):  # learning_rate is lr
      last = 1.0
    return last + difflib.SequenceMatcher(None, name, other).ratio()

  best = max(known, key=likeness, default="")
  return best if best and likeness(best) > _NEAR else ""


_NEAR = 1.25  # of 2; what is less alike is no slip of the keyboard


def _initials(name: str) -> str:
  return "".join(word[:1] for word in name.split("_"))


def shipped() -> list[str]:
  """Names of the configs that come with the package."""
  files = sorted(os.listdir(SHIPPED))
  return [name for name, ext in map(os.path.splitext, files) if ext == ".py"]


def find(config: str) -> str:
  """The file of a config.

  Args:
    config: a file, or the name of a shipped config.

  Raises:
    ValueError: there is neither.
  """
  if config in shipped():
    return os.path.join(SHIPPED, f"{config}.py")
  if os.path.isfile(config):
    return config
  name = os.path.basename(config).removesuffix(".py")
  near = nearest(name, shipped())
  raise ValueError(
    f"The config is {config!r}: there is no such file, and no shipped config of"
    " that name."
    + (f" Did you mean {near!r}?" if near else "")
    + " `must-jax configs` lists the shipped ones; a file is named with its"
    " directory."
  )


def _read_local(path: str) -> bytes:
  with open(path, "rb") as file:
    return file.read()


def load(
  path: str,
  overrides: Sequence[str] = (),
  read_file: Callable[[str], bytes] = _read_local,
) -> ConfigDict:
  """A config, with some options set.

  Args:
    path: CONFIG or CONFIG:ARG, where CONFIG is a file or the name of a shipped
      config, such as "student:images=data/pile"; or the `config.json` of a
      run, or of a folder for a hub.
    overrides: "--config.NAME=VALUE" each.
    read_file: reads the files that options name, which may lie in a bucket:
      `storage.path.read_file`, which this module may not import.

  Raises:
    ValueError: there is no such config or option, or an option does not take
      the value; one line.
  """
  name, colon, arg = path.partition(":")
  file = find(name)
  is_stored = file.endswith(".json")
  given = [] if is_stored else [f"--config={file}{colon}{arg}"]
  argv = ["config", *given, *overrides]
  values = flags.FlagValues()
  before = sys.path[:]
  directory = os.path.dirname(os.path.abspath(file))
  if directory != SHIPPED:
    # A config may import its neighbours, as `FOLDER.NAME` wherever it lies.
    sys.path[:0] = [os.getcwd(), os.path.dirname(directory)]
  try:
    if is_stored:
      config_flags.DEFINE_config_dict(
        "config", _stored(file), flag_values=values, sys_argv=argv
      )
    else:
      config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=argv
      )
    rest = values(argv)
  except (flags.Error, LookupError, AttributeError, TypeError) as error:
    if overrides:
      # Or it says what is wrong with the file.
      loaded = load(path, (), read_file)
      raise ValueError(_wrong_override(loaded, overrides, error)) from None
    if isinstance(error, flags.Error):
      raise ValueError(_without_traceback(error)) from None
    raise
  finally:
    sys.path[:] = before
  if rest[1:]:
    raise ValueError(
      f"Arguments not understood: {rest[1:]}; expected --config.NAME=VALUE."
    )
  return _with_thresholds(values.config, read_file)


def _with_thresholds(
  config: ConfigDict, read_file: Callable[[str], bytes]
) -> ConfigDict:
  """Reads the options by class that are given as a file.

  Raises:
    ValueError: it is no file of `must-jax thresholds`, or has none for the
      task's labels.
  """
  for name, entry in config.tasks.items():
    for option in TASKS[entry.kind].by_class:
      if not isinstance(path := entry[option], str):
        continue
      where = f"tasks.{name}.{option} is {path!r}"
      expected = (
        "expected a number, {class: number}, or a file of `must-jax thresholds`"
      )
      try:
        found = json.loads(read_file(path))
      except OSError:
        raise ValueError(
          f"{where}: there is no such file; {expected}."
        ) from None
      except ValueError as error:
        raise ValueError(f"{where}, which is no JSON: {error}.") from None
      fields = make_task(entry.kind, name, ("class",), {}).fields
      known = [
        found[f] for f in fields if isinstance(found, dict) and f in found
      ]
      if not known or not isinstance(known[0], dict):
        raise ValueError(
          f"{where}, which has no thresholds of {' or '.join(fields)};"
          f" {expected}."
        )
      entry[option] = known[0]
  return config


def _stored(path: str) -> ConfigDict:
  """The config of a run's `config.json`, or of that of a folder for a hub.

  Raises:
    ValueError: it is neither.
  """
  with open(path) as file:
    try:
      value = json.load(file)
      return from_json(json.dumps(value.get("config", value)))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path} is no config.json of a run or of a must_jax model: {error}"
      ) from None


def _without_traceback(error: Exception) -> str:
  """What is wrong in a config file that raised a ValueError.

  `config_flags` has the whole traceback in the message, and no cause.
  """
  return re.sub(
    r"Error whilst parsing config file:\s+Traceback.*?"
    r"\n(ValueError|must_jax\.config\.UnknownArgument): ",
    "",
    str(error),
    flags=re.DOTALL,
  ).strip()


def _wrong_override(
  config: ConfigDict, overrides: Sequence[str], error: Exception
) -> str:
  """Says which of the overrides a config does not take, and why.

  Args:
    config: without them.
    overrides: "--config.NAME=VALUE" each.
    error: of `config_flags`.
  """
  known = options(config)
  wrong = re.fullmatch(
    r"flag --config\.(\S+?)=(.*?): .*", str(error), re.DOTALL
  )
  if wrong and wrong[1] in known:
    group, _, last = wrong[1].rpartition(".")
    kind = _group(config, group).get_type(last).__name__
    value = known[wrong[1]]
    example = "" if value is None else f", such as {value!r}"
    return (
      f"{wrong[1]} is {wrong[2]!r}; expected {_KINDS.get(kind, kind)}{example}."
    )
  if wrong:
    members = ", ".join(_group(config, wrong[1]))
    return f"{wrong[1]} is a group of options; set one of them: {members}."
  for override in overrides:
    found = re.match(r"--?(?:no)?config\.([^=\[]+)", override)
    name = found[1] if found else ""
    if not name or any(f"{other}.".startswith(f"{name}.") for other in known):
      continue
    meant = [other for other in known if other.endswith(f".{name}")]
    meant = meant or [*filter(None, [nearest(name, known)])]
    if meant:
      names = " or ".join(f"--config.{other}" for other in meant)
      return f"There is no option {name}; did you mean {names}?"
    group = name
    while group and not any(other.startswith(f"{group}.") for other in known):
      group = group.rpartition(".")[0]
    members = ", ".join(_group(config, group))
    return f"There is no option {name}; {group or 'a config'} has {members}."
  return f"{' '.join(overrides)}: {error}"


def _group(config: ConfigDict, name: str) -> ConfigDict:
  for part in filter(None, name.split(".")):
    config = config[part]
  return config


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def validate(config: ConfigDict) -> None:
  """Checks what can be checked without reading data.

  Raises:
    ValueError: says what was given, what is expected and how to mend it.
  """
  _check_numbers(config)
  values, defaults = options(config), options(base_config())
  for name, allowed in CHOICES.items():
    is_word = isinstance(defaults[name], str)
    for word in (values[name],) if is_word else values[name]:
      _one_of(name, word, allowed)
  gradnorm = config.stage == "train" and config.balancing.method == "gradnorm"
  if gradnorm and config.model.max_level < 5:
    raise ValueError(
      "balancing.method is 'gradnorm', which compares the tasks' gradients at"
      " the last block of the backbone, C5; a pyramid with model.max_level"
      f" {config.model.max_level} does not read it. Set model.max_level to 5 or"
      " more, or choose another method."
    )
  if gradnorm and "backbone" in config.freeze:
    raise ValueError(
      "balancing.method is 'gradnorm', which compares the tasks' gradients in"
      " the backbone; with 'backbone' in freeze there are none. Choose another"
      " method, or train the backbone."
    )
  for name in (*config.tasks, *config.datasets):
    if not NAME_PATTERN.fullmatch(name):
      raise ValueError(
        f"{name!r} is no name for a task or dataset; expected letters, digits"
        " and '_.-', beginning with a letter or digit."
      )
  for key in ("train_on", "evaluate_on"):
    for name in config[key]:
      _one_of(key, name, tuple(config.datasets))
  for name in config.evaluate_on if config.stage != "label" else ():
    if not any(name in entry.labels for entry in config.tasks.values()):
      raise ValueError(
        f"evaluate_on names {name!r}, on which no task has labels. Leave it"
        f" out, or say where they are: config.tasks.TASK.labels.{name} ="
        " 'supervised'."
      )
  views: dict[int, str] = {}
  for name, entry in config.tasks.items():
    for source, origins in entry.labels.items():
      _one_of(f"tasks.{name}.labels", source, tuple(config.datasets))
      given = origins if isinstance(origins, list | tuple) else [origins or ""]
      if not all(isinstance(origin, str) for origin in given):
        raise ValueError(
          f"tasks.{name}.labels.{source} is {origins!r}; expected 'supervised',"
          " the directory of a label set, or a tuple of these, best first."
        )
    made = make_task(entry.kind, name, ("class",), task_kwargs(entry))
    views.setdefault(made.views, name)
  if len(views) > 1:
    raise ValueError(
      "Tasks compare different numbers of views of an image:"
      f" {dict(sorted(views.items()))}; train them in runs of their own."
    )
  if config.stage == "label":
    for key in ("teacher", "dataset"):
      if not config.label[key]:
        raise ValueError(
          f"label.{key} is empty; a labelling job needs it:"
          f" --config.label.{key}=..."
        )
    _one_of("label.dataset", config.label.dataset, tuple(config.datasets))
    return
  if not config.tasks:
    raise ValueError(
      "The config has no tasks; add some: config.tasks.NAME ="
      " task('classification', labels={'DATASET': 'supervised'})."
    )
  if config.stage == "train" and not config.train_on:
    raise ValueError(
      "train_on is empty; name datasets to train on, out of"
      f" {sorted(config.datasets)}."
    )
  stride = config.data.label_stride
  for size in config.data.image_size:
    if size % stride:
      raise ValueError(
        f"data.image_size is {tuple(config.data.image_size)}; expected"
        f" positive multiples of data.label_stride ({stride})."
      )
  if config.train.steps <= config.optimizer.warmup_steps:
    raise ValueError(
      f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be below"
      f" train.steps ({config.train.steps})."
    )


def _check_numbers(config: ConfigDict) -> None:
  """Every number is in its range, and tuples are as long as the default."""
  values, defaults = options(config), options(base_config())
  ranges.check({name: values[name] for name in RANGES}, RANGES)
  for name in RANGES:
    value, default = values[name], defaults[name]
    if isinstance(default, tuple):
      kind = int if isinstance(default[0], int) else float
      fits = len(value) == len(default) or name == "optimizer.boundaries"
      if not fits or any(kind(number) != number for number in value):
        numbers = "whole numbers" if kind is int else "numbers"
        raise ValueError(
          f"{name} is {value!r}; expected {len(default)} {numbers}, such as"
          f" {default}."
        )
  for name in _PAIRS:
    low, high = values[name]
    if low > high:
      raise ValueError(
        f"{name} is {values[name]}; expected the lower number first, such as"
        f" {defaults[name]}."
      )
  first, last = config.train.profile_steps
  if last and (first < 1 or last > config.train.steps):
    raise ValueError(
      f"train.profile_steps is {(first, last)}; expected the first and the last"
      f" step to trace, of 1 to {config.train.steps}, or (0, 0) for none."
    )
  levels = config.model.min_level, config.model.max_level
  if levels[0] > levels[1]:
    raise ValueError(
      f"model.min_level is {levels[0]} and model.max_level is {levels[1]};"
      " expected the finer, which is the lower one, first."
    )
  for name, entry in config.tasks.items():
    if entry.weight is not None:
      weight = {"weight": entry.weight}
      ranges.check(weight, {"weight": NOT_NEGATIVE}, f"tasks.{name}.")
  for name, entry in config.datasets.items():
    # Nothing is drawn of a dataset that is not in train_on.
    share = {"share": entry.share}
    ranges.check(share, {"share": POSITIVE}, f"datasets.{name}.")


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
  if value not in allowed:
    raise ValueError(f"{key} is {value!r}; expected one of {sorted(allowed)}.")


def _tuples(value: Any) -> Any:
  """JSON has no tuples; configs have no lists."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
