"""The paper's tables as data: rows are pre-trainings, columns are transfers.

Image sets go by the names of the paper's (`must-jax import --list`); a scale
(`mini`, `photos`, `paper`) says what stands for them and how long all trains.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Union

SUPERVISED = "supervised"
NO_LABELS = "none"
SCALES = ("mini", "photos", "paper")
# Tasks whose names are not their kind.
KINDS = {"jft": "classification"}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a network is pre-trained.

  Attributes:
    name: of its stages.
    labels: {image set: {task: where its labels come from}}, which is
      `SUPERVISED`, `NO_LABELS` or the recipe of a teacher. Without any, the
      network stays as it was initialised, or comes from elsewhere.
    sampling: see `config.sampling`.
    balancing: see `config.balancing`; empty for that of the scale.
    start: what it starts from.
    measured_on: image set whose validation split it is measured on.
    once: one network serves all seeds, as a published checkpoint would.
  """

  name: str
  labels: Mapping[str, Mapping[str, Union[str, "Recipe"]]]
  sampling: str = "uniform"
  balancing: str = ""
  start: Union["Recipe", None] = None
  measured_on: str = ""
  once: bool = False

  @property
  def tasks(self) -> tuple[str, ...]:
    """Names of all tasks, in order of their first labels."""
    return tuple(dict.fromkeys(t for own in self.labels.values() for t in own))

  @property
  def teachers(self) -> dict[str, "Recipe"]:
    """By task, those whose labels it learns from."""
    return {
      t: r for name in self.labels for t, r in self.teachers_on(name).items()
    }

  def teachers_on(self, images: str) -> dict[str, "Recipe"]:
    """By task, the teachers whose labels of an image set it learns from."""
    return {
      task: source
      for task, source in self.labels[images].items()
      if isinstance(source, Recipe)
    }


@dataclasses.dataclass(frozen=True)
class Setting:
  """A point of a transfer's sweep (paper 3.3)."""

  lr: float
  steps: int


@dataclasses.dataclass(frozen=True)
class Column:
  """A transfer: an image set to fine-tune on.

  Attributes:
    name: of the task and the stages.
    kind: of the task.
    images: the image set.
    title: heading.
    metric: key of the task's metrics.
    sweep: settings to choose from; the first where nothing is swept.
    options: of the task.
  """

  name: str
  kind: str
  images: str
  title: str
  metric: str
  sweep: tuple[Setting, ...]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> str:
    """Of the metric, after the name of the split."""
    return f"{self.name}/{self.metric}"


@dataclasses.dataclass(frozen=True)
class Own:
  """A column that measures the pre-trained network itself.

  Attributes:
    task: of the network, on the validation split of its `measured_on`.
    title: heading.
    metric: key of the task's metrics.
  """

  task: str
  title: str
  metric: str

  @property
  def key(self) -> str:
    """Of the metric, in a stage's result."""
    return f"validation/{self.task}/{self.metric}"


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    recipe: how it is pre-trained.
    title: heading.
    paper: published figures in percent, in the order of the scale's columns;
      empty if there are none.
    own: the published figure in the table's own column.
    scales: at which it is run.
  """

  recipe: Recipe
  title: str
  paper: tuple[float | None, ...] = ()
  own: float | None = None
  scales: tuple[str, ...] = ("mini", "paper")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A table, or the part of one that has a common baseline.

  Attributes:
    title: heading.
    rows: those of all scales.
    baseline: recipe that the others are compared with.
    highlight: recipe that it is about.
    own: a column in front of the transfers.
    relative: whether gains relative to the first row are drawn, too.
    remarks: what a reader must know, as sentences.
  """

  title: str
  rows: tuple[Row, ...]
  baseline: Recipe
  highlight: Recipe
  own: Own | None = None
  relative: bool = False
  remarks: tuple[str, ...] = ()

  def at(self, scale: str) -> tuple[Row, ...]:
    """The rows of a scale."""
    return tuple(row for row in self.rows if scale in row.scales)


def _teachers(prefix: str, start: Recipe | None = None) -> dict[str, Recipe]:
  return {
    task: Recipe(
      f"{prefix}-{task}",
      {images: {task: SUPERVISED}},
      start=start,
      measured_on=images,
      once=True,
    )
    for task, images in (
      ("classification", "imagenet"),
      ("detection", "objects365"),
      ("segmentation", "coco_panoptic"),
      ("depth", "midas"),
    )
  }


def _jft(
  name: str,
  images: str,
  labels: Mapping[str, str | Recipe],
  start: Recipe | None = None,
) -> Recipe:
  # paper 3.2: learned weights on JFT
  return Recipe(name, {images: labels}, balancing="uncertainty", start=start)


TEACHERS = _teachers("teacher")
_CLS, _DET, _SEG, _DEPTH = TEACHERS.values()
_LABELLED = {"classification": SUPERVISED}

NONE = Recipe("none", {})
IMAGENET = Recipe("supervised", {"imagenet": _LABELLED})
SIMCLR = Recipe("simclr", {"imagenet": {"contrastive": NO_LABELS}})
DEPTH = Recipe("must-depth", {"imagenet": {**_LABELLED, "depth": _DEPTH}})
DEPTH_SEG = Recipe(
  "must-depth-seg",
  {"imagenet": {**_LABELLED, "depth": _DEPTH, "segmentation": _SEG}},
)
MUST = Recipe(
  "must",
  {
    "imagenet": {
      **_LABELLED,
      "depth": _DEPTH,
      "segmentation": _SEG,
      "detection": _DET,
    }
  },
)
MUST_AGAIN = Recipe(
  "must-again",
  {
    "imagenet": {
      **_LABELLED,
      "depth": MUST,
      "segmentation": MUST,
      "detection": MUST,
    }
  },
)
MULTITASK = Recipe(
  "multitask",
  {
    "imagenet": _LABELLED,
    "objects365": {"detection": SUPERVISED},
    "coco_panoptic": {"segmentation": SUPERVISED},
  },
  sampling="equal",  # paper 4.2
)
CROSS = Recipe(
  "must-cross",
  {
    images: {
      teacher_task: (SUPERVISED if teacher.measured_on == images else teacher)
      for teacher_task, teacher in TEACHERS.items()
      if teacher is not _DEPTH
    }
    for images in ("imagenet", "objects365", "coco_panoptic")
  },
)


def _single(task: str, images: str) -> Recipe:
  teacher = TEACHERS[task]
  return Recipe(
    f"{task}-{images}",
    {images: {task: teacher}},
    measured_on=teacher.measured_on,
  )


DET_IMAGENET, DET_JFT = (_single("detection", i) for i in ("imagenet", "jft"))
SEG_IMAGENET, SEG_JFT = (
  _single("segmentation", i) for i in ("imagenet", "jft")
)

# Numbers are epochs, where the paper has several.
SIMCLR_JFT_1, SIMCLR_JFT_2, SIMCLR_JFT = (
  Recipe(f"simclr-jft{n}", {"jft": {"contrastive": NO_LABELS}})
  for n in ("-1", "-2", "")
)
JFT_3, JFT_5, JFT = (
  Recipe(f"supervised-jft{n}", {"jft": {"jft": SUPERVISED}})
  for n in ("-3", "-5", "")
)
MUST_JFT_X1, MUST_JFT_X4, MUST_JFT = (
  _jft(f"must-{images}", images, TEACHERS)
  for images in ("jft_x1", "jft_x4", "jft")
)
JFT_AND_MUST = _jft(
  "must-jft-supervised", "jft", {"jft": SUPERVISED, **TEACHERS}
)

CHECKPOINT = Recipe("checkpoint", {"jft": {"jft": SUPERVISED}}, once=True)
IMAGENET_B7 = Recipe("checkpoint-imagenet", {}, once=True)
MUST_CHECKPOINT = _jft(
  "must-checkpoint",
  "jft",
  # paper 4.3: teachers and student start from the same checkpoint, but for
  # the depth teacher, which is not trained there.
  _teachers("checkpoint-teacher", CHECKPOINT) | {"depth": _DEPTH},
  start=CHECKPOINT,
)

IMAGENET_PAPER = (85.4, 79.3, 70.6, 81.0, 39.8, 48.9)
_SUPERVISED_ROW = Row(IMAGENET, "ImageNet supervised", IMAGENET_PAPER)
MUST_PAPER = (86.3, 85.1, 80.6, 87.8, 43.5, 52.7)

TABLES: dict[str, tuple[Spec, ...]] = {
  "table2": (
    Spec(
      "Table 2: pre-training on ImageNet",
      (
        Row(NONE, "No pre-training", scales=("mini",)),
        Row(
          SIMCLR,
          "Self-supervised (SimCLR)",
          (87.1, 83.3, 72.2, 83.7, 41.0, 52.8),
        ),
        _SUPERVISED_ROW,
        Row(MUST, "+ multi-task pseudo labels (MuST)", MUST_PAPER),
      ),
      baseline=IMAGENET,
      highlight=MUST,
    ),
  ),
  "table3": (
    Spec(
      "Table 3: more kinds of pseudo labels",
      (
        _SUPERVISED_ROW,
        Row(DEPTH, "+ depth", (84.4, 79.3, 71.0, 86.0, 39.5, 51.3)),
        Row(
          DEPTH_SEG,
          "+ depth, segmentation",
          (85.3, 81.6, 78.6, 87.2, 41.5, 52.4),
        ),
        Row(MUST, "+ depth, segmentation, detection", MUST_PAPER),
      ),
      baseline=IMAGENET,
      highlight=MUST,
    ),
  ),
  "table4": (
    Spec(
      "Table 4: detection, teacher and students",
      (
        Row(
          _DET,
          "Teacher on Objects365",
          (84.0, 87.6, 78.8, 90.1, 46.0, 55.6),
          own=26.1,
        ),
        Row(
          DET_IMAGENET,
          "Student on ImageNet",
          (83.2, 86.0, 78.5, 88.5, 44.7, 55.2),
          own=20.6,
        ),
        Row(
          DET_JFT,
          "Student on JFT",
          (85.2, 87.7, 79.5, 89.6, 45.4, 55.0),
          own=20.7,
        ),
      ),
      baseline=_DET,
      highlight=DET_JFT,
      own=Own("detection", "Objects365", "AP"),
      remarks=("Students see pseudo labels only, for the same steps.",),
    ),
    Spec(
      "Table 4: segmentation, teacher and students",
      (
        Row(
          _SEG,
          "Teacher on COCO",
          (80.8, 82.2, 80.2, 86.6, 42.8, 51.0),
          own=53.8,
        ),
        Row(
          SEG_IMAGENET,
          "Student on ImageNet",
          (82.3, 80.5, 79.2, 86.3, 41.8, 51.2),
          own=55.5,
        ),
        Row(
          SEG_JFT,
          "Student on JFT",
          (83.1, 82.8, 78.2, 86.6, 41.9, 51.6),
          own=49.0,
        ),
      ),
      baseline=_SEG,
      highlight=SEG_JFT,
      own=Own("segmentation", "COCO", "mIoU"),
      remarks=("Students see pseudo labels only, for the same steps.",),
    ),
  ),
  "table5": (
    Spec(
      "Table 5: multi-task training and multi-task self-training",
      (
        Row(
          MULTITASK,
          "Supervised multi-task",
          (85.3, 85.1, 82.1, 87.6, 43.9, 53.4),
        ),
        Row(
          CROSS,
          "+ pseudo labels (MuST)",
          (86.3, 86.2, 82.3, 88.2, 45.4, 54.7),
        ),
      ),
      baseline=MULTITASK,
      highlight=CROSS,
      remarks=(
        "ImageNet, Objects365 and COCO, three tasks. Supervised: the sets are"
        " drawn with equal probability, and a task has no loss on images"
        " without its labels.",
      ),
    ),
  ),
  "table6": (
    Spec(
      "Table 6: pre-training on JFT",
      (
        Row(
          SIMCLR_JFT_1,
          "SimCLR, 1 epoch",
          (85.6, 82.4, 71.0, 83.7, 41.4, 54.4),
          scales=("paper",),
        ),
        Row(
          SIMCLR_JFT_2,
          "SimCLR, 2 epochs",
          (85.8, 83.7, 73.3, 84.3, 42.2, 55.3),
          scales=("paper",),
        ),
        Row(
          SIMCLR_JFT,
          "SimCLR, 5 epochs",
          (86.1, 84.1, 74.9, 84.8, 43.0, 56.0),
        ),
        Row(
          JFT_3,
          "JFT supervised, 3 epochs",
          (87.7, 84.6, 78.2, 86.0, 43.4, 50.7),
          scales=("paper",),
        ),
        Row(
          JFT_5,
          "JFT supervised, 5 epochs",
          (88.6, 84.9, 79.7, 86.1, 44.3, 51.1),
          scales=("paper",),
        ),
        Row(
          JFT,
          "JFT supervised, 10 epochs",
          (89.6, 85.2, 80.4, 86.5, 45.7, 53.1),
        ),
        Row(MUST_JFT_X1, "MuST, a 16th of the images", scales=("mini",)),
        Row(MUST_JFT_X4, "MuST, a quarter", scales=("mini",)),
        Row(
          MUST_JFT,
          "MuST, 2.5 epochs",
          (87.6, 87.8, 82.2, 89.8, 47.0, 56.2),
        ),
        Row(
          JFT_AND_MUST,
          "JFT supervised + MuST, 2 epochs",
          (88.3, 87.9, 82.9, 89.5, 47.2, 56.4),
        ),
      ),
      baseline=JFT,
      highlight=MUST_JFT,
      remarks=(
        "Epochs are the paper's; at the scale `mini` all rows train for the"
        " same steps.",
      ),
    ),
  ),
  "rounds": (
    Spec(
      "Rounds: the student labels the images again",
      (
        _SUPERVISED_ROW,
        Row(MUST, "MuST", MUST_PAPER),
        Row(MUST_AGAIN, "MuST, labels of that student"),
      ),
      baseline=MUST,
      highlight=MUST_AGAIN,
      remarks=(
        "Not in the paper; as in Noisy Student, whose student is the next"
        " round's teacher.",
      ),
    ),
  ),
  "photographs": (
    Spec(
      "Photographs: small public sets instead of the paper's",
      (
        Row(NONE, "No pre-training", scales=("photos",)),
        Row(IMAGENET, "Supervised classification", scales=("photos",)),
        Row(
          DEPTH_SEG,
          "+ depth, segmentation (MuST)",
          scales=("photos",),
        ),
      ),
      baseline=IMAGENET,
      highlight=DEPTH_SEG,
      remarks=(
        "The teachers of depth and segmentation learned from the pictures of"
        " three of the sets that are fine-tuned on.",
      ),
    ),
  ),
  "figure5": (
    Spec(
      "Figure 5, Table 7: MuST from a pre-trained checkpoint",
      (
        Row(IMAGENET, "ImageNet supervised", scales=("mini",)),
        Row(IMAGENET_B7, "ImageNet checkpoint", scales=("paper",)),
        Row(CHECKPOINT, "Checkpoint", (None, 86.2, 86.6, 91.1, 54.0, None)),
        Row(
          MUST_CHECKPOINT,
          "MuST from the checkpoint",
          (None, 88.2, 89.8, 91.9, 54.3, None),
        ),
      ),
      baseline=CHECKPOINT,
      highlight=MUST_CHECKPOINT,
      relative=True,
      remarks=(
        "The paper's figures are those of its larger network (Table 7);"
        " Figure 5 has none, and shows the same four tasks improved, the other"
        " two slightly worse. Checkpoint: ALIGN's; at the scale `mini`,"
        " classification of the JFT set with true labels.",
      ),
    ),
  ),
}
