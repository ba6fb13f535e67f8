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
class Pretraining:
  """How a network is pre-trained.

  Attributes:
    name: of its stages.
    labels: {image set: {task: where its labels come from}}, which is
      `SUPERVISED`, `NO_LABELS` or the pre-training of a teacher. Without any,
      the network stays as it was initialised, or comes from elsewhere.
    sampling: see `config.sampling`.
    balancing: see `config.balancing`; empty for that of the scale.
    options: {task: {option of `config.task`: value}}, other than default.
    start: what it starts from.
    measured_on: image set whose validation split it is measured on.
    once: one network serves all seeds, as a published checkpoint would.
  """

  name: str
  labels: Mapping[str, Mapping[str, Union[str, "Pretraining"]]]
  sampling: str = "uniform"
  balancing: str = ""
  options: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  start: Union["Pretraining", None] = None
  measured_on: str = ""
  once: bool = False

  @property
  def tasks(self) -> tuple[str, ...]:
    """Names of all tasks, in order of their first labels."""
    return tuple(dict.fromkeys(t for by in self.labels.values() for t in by))

  @property
  def teachers(self) -> dict[str, "Pretraining"]:
    """By task, those whose labels it learns from."""
    return {
      t: r for name in self.labels for t, r in self.teachers_on(name).items()
    }

  def teachers_on(self, images: str) -> dict[str, "Pretraining"]:
    """By task, the teachers whose labels of an image set it learns from."""
    return {
      task: source
      for task, source in self.labels[images].items()
      if isinstance(source, Pretraining)
    }


@dataclasses.dataclass(frozen=True)
class Setting:
  """A point of a transfer's sweep (paper 3.3)."""

  lr: float
  steps: int


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Fine-tuning on a downstream image set; a column of all tables.

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
class PretrainingMetric:
  """A column about the pre-trained network itself, before any transfer.

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
    pretraining: what the row is about.
    title: heading.
    paper: published figures in percent, in the order of the scale's transfers;
      empty if there are none.
    paper_before: the published figure before any transfer, if there is one.
    scales: at which it is run.
  """

  pretraining: Pretraining
  title: str
  paper: tuple[float | None, ...] = ()
  paper_before: float | None = None
  scales: tuple[str, ...] = ("mini", "paper")


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, or the part of one that has a common baseline.

  Attributes:
    title: heading.
    rows: those of all scales.
    baseline: what the others are compared with.
    highlight: what the table is about.
    before_transfer: a column in front of the transfers.
    relative: whether gains relative to the first row are drawn, too.
    remarks: what a reader must know, as sentences.
    quote: the paper's sentence that it is about, with its section.
  """

  title: str
  rows: tuple[Row, ...]
  baseline: Pretraining
  highlight: Pretraining
  before_transfer: PretrainingMetric | None = None
  relative: bool = False
  remarks: tuple[str, ...] = ()
  quote: str = ""

  def at(self, scale: str) -> tuple[Row, ...]:
    """The rows of a scale."""
    return tuple(row for row in self.rows if scale in row.scales)


def _teachers(
  prefix: str, start: Pretraining | None = None
) -> dict[str, Pretraining]:
  return {
    task: Pretraining(
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
  labels: Mapping[str, str | Pretraining],
  start: Pretraining | None = None,
) -> Pretraining:
  # paper 3.2: learned weights on JFT
  return Pretraining(
    name, {images: labels}, balancing="uncertainty", start=start
  )


TEACHERS = _teachers("teacher")
_CLS, _DET, _SEG, _DEPTH = TEACHERS.values()
_LABELLED = {"classification": SUPERVISED}

NONE = Pretraining("none", {})
IMAGENET = Pretraining("supervised", {"imagenet": _LABELLED})
SIMCLR = Pretraining("simclr", {"imagenet": {"contrastive": NO_LABELS}})
DEPTH = Pretraining("must-depth", {"imagenet": {**_LABELLED, "depth": _DEPTH}})
DEPTH_SEG = Pretraining(
  "must-depth-seg",
  {"imagenet": {**_LABELLED, "depth": _DEPTH, "segmentation": _SEG}},
)
MUST = Pretraining(
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
MUST_AGAIN = Pretraining(
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
MULTITASK = Pretraining(
  "multitask",
  {
    "imagenet": _LABELLED,
    "objects365": {"detection": SUPERVISED},
    "coco_panoptic": {"segmentation": SUPERVISED},
  },
  sampling="equal",  # paper 4.2
)
CROSS = Pretraining(
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


def _single(task: str, images: str) -> Pretraining:
  teacher = TEACHERS[task]
  return Pretraining(
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
  Pretraining(f"simclr-jft{n}", {"jft": {"contrastive": NO_LABELS}})
  for n in ("-1", "-2", "")
)
JFT_3, JFT_5, JFT = (
  Pretraining(f"supervised-jft{n}", {"jft": {"jft": SUPERVISED}})
  for n in ("-3", "-5", "")
)
MUST_JFT_X1, MUST_JFT_X4, MUST_JFT = (
  _jft(f"must-{images}", images, TEACHERS)
  for images in ("jft_x1", "jft_x4", "jft")
)
JFT_AND_MUST = _jft(
  "must-jft-supervised", "jft", {"jft": SUPERVISED, **TEACHERS}
)

CHECKPOINT = Pretraining("checkpoint", {"jft": {"jft": SUPERVISED}}, once=True)
IMAGENET_B7 = Pretraining("checkpoint-imagenet", {}, once=True)
MUST_CHECKPOINT = _jft(
  "must-checkpoint",
  "jft",
  # paper 4.3: teachers and student start from the same checkpoint, but for
  # the depth teacher, which is not trained there.
  _teachers("checkpoint-teacher", CHECKPOINT) | {"depth": _DEPTH},
  start=CHECKPOINT,
)

# Photographs: a published backbone is the checkpoint, and every set has images
# that its own people labelled, and that the other sets' teachers label.
PUBLISHED = Pretraining("published", {}, once=True)
PUBLISHED_SUPERVISED = Pretraining(
  "published-supervised", {"imagenet": _LABELLED}, start=PUBLISHED
)
_PUBLISHED_TEACHERS = _teachers("published-teacher", PUBLISHED)
MUST_PUBLISHED = Pretraining(
  "must-published",
  {
    teacher.measured_on: _PUBLISHED_TEACHERS | {task: SUPERVISED}
    for task, teacher in _PUBLISHED_TEACHERS.items()
  },
  sampling="equal",  # the sets' sizes differ by a factor of 40
  start=PUBLISHED,
)

RECIPE = Pretraining(
  "recipe",
  {"imagenet": {**TEACHERS, **_LABELLED}, "jft": TEACHERS},
)


def _recipe_but(name: str, **changes: Any) -> Pretraining:
  """The recipe with something else than the paper chose."""
  return dataclasses.replace(RECIPE, name=f"recipe-{name}", **changes)


def _weighing_depth(name: str, weight: float) -> Pretraining:
  # The paper's rule gives 1: depth's teacher and student train alike.
  return _recipe_but(f"depth-{name}", options={"depth": {"weight": weight}})


def _reading_from(score: float) -> Pretraining:
  tasks = ("detection", "segmentation")
  return _recipe_but(
    f"score-{score:g}", options={t: {"min_score": score} for t in tasks}
  )


DEPTH_QUARTER = _weighing_depth("quarter", 0.25)
DEPTH_FOURFOLD = _weighing_depth("fourfold", 4.0)
SCORE_3, SCORE_7 = (_reading_from(score) for score in (0.3, 0.7))
HARD_CLASSES = _recipe_but(
  "hard-classes", options={"classification": {"soft_labels": False}}
)
EQUAL_SETS = _recipe_but("equal-sets", sampling="equal")

IMAGENET_PAPER = (85.4, 79.3, 70.6, 81.0, 39.8, 48.9)
_SUPERVISED_ROW = Row(IMAGENET, "ImageNet supervised", IMAGENET_PAPER)
MUST_PAPER = (86.3, 85.1, 80.6, 87.8, 43.5, 52.7)


def _recipe(
  title: str, quote: str, rows: Mapping[str, Pretraining], *remarks: str
) -> Table:
  """What a choice of the paper's is worth, beside the paper's sentence."""
  return Table(
    f"Recipe: {title}",
    tuple(Row(made, name, scales=("mini",)) for name, made in rows.items()),
    baseline=RECIPE,
    highlight=RECIPE,
    remarks=remarks,
    quote=quote,
  )


# Other names of tables.
ALIASES = {"table7": "figure5"}
TABLES: dict[str, tuple[Table, ...]] = {
  "table2": (
    Table(
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
    Table(
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
    Table(
      "Table 4: detection, teacher and students",
      (
        Row(
          _DET,
          "Teacher on Objects365",
          (84.0, 87.6, 78.8, 90.1, 46.0, 55.6),
          paper_before=26.1,
        ),
        Row(
          DET_IMAGENET,
          "Student on ImageNet",
          (83.2, 86.0, 78.5, 88.5, 44.7, 55.2),
          paper_before=20.6,
        ),
        Row(
          DET_JFT,
          "Student on JFT",
          (85.2, 87.7, 79.5, 89.6, 45.4, 55.0),
          paper_before=20.7,
        ),
      ),
      baseline=_DET,
      highlight=DET_JFT,
      before_transfer=PretrainingMetric("detection", "Objects365", "AP"),
      remarks=("Students see pseudo labels only, for the same steps.",),
    ),
    Table(
      "Table 4: segmentation, teacher and students",
      (
        Row(
          _SEG,
          "Teacher on COCO",
          (80.8, 82.2, 80.2, 86.6, 42.8, 51.0),
          paper_before=53.8,
        ),
        Row(
          SEG_IMAGENET,
          "Student on ImageNet",
          (82.3, 80.5, 79.2, 86.3, 41.8, 51.2),
          paper_before=55.5,
        ),
        Row(
          SEG_JFT,
          "Student on JFT",
          (83.1, 82.8, 78.2, 86.6, 41.9, 51.6),
          paper_before=49.0,
        ),
      ),
      baseline=_SEG,
      highlight=SEG_JFT,
      before_transfer=PretrainingMetric("segmentation", "COCO", "mIoU"),
      remarks=("Students see pseudo labels only, for the same steps.",),
    ),
  ),
  "table5": (
    Table(
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
    Table(
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
    Table(
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
    Table(
      "Photographs: MuST from a published backbone, as in Figure 5",
      (
        Row(NONE, "No pre-training", scales=("photos",)),
        Row(PUBLISHED, "Published backbone", scales=("photos",)),
        Row(
          PUBLISHED_SUPERVISED,
          "+ supervised classification",
          scales=("photos",),
        ),
        Row(
          MUST_PUBLISHED,
          "MuST from the published backbone",
          scales=("photos",),
        ),
      ),
      baseline=PUBLISHED,
      highlight=MUST_PUBLISHED,
      relative=True,
      remarks=(
        "Teachers, supervised network and student start from EfficientNet-Lite0"
        " with ImageNet's weights. No teacher knows blood cells or normals."
        " Clothing and fashion are fine-tuned on images that nobody has learned"
        " from; raccoons and the office's frames on those of their teachers.",
      ),
    ),
  ),
  "figure5": (
    Table(
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
  "recipe": (
    _recipe(
      "weight of the depth loss",
      'Paper 3.2: "The only exception is the depth loss, of which we choose its'
      ' weight by a parameter sweep."',
      {
        "Weight 0.25": DEPTH_QUARTER,
        "Weight 1": RECIPE,
        "Weight 4": DEPTH_FOURFOLD,
      },
      "The rule of the other losses gives depth a weight of 1.",
    ),
    _recipe(
      "score from which boxes and pixels are read",
      'Paper 3.1: "For detection, we use a hard score threshold of 0.5 to'
      " generate pseudo box labels. For segmentation, we use a hard score"
      " threshold of 0.5 to generate semantic segmentation masks whereas pixels"
      ' with a smaller prediction score are set to the ignore label."',
      {"Score 0.3": SCORE_3, "Score 0.5": RECIPE, "Score 0.7": SCORE_7},
    ),
    _recipe(
      "soft or hard classes",
      'Paper 3.1: "For classification, we use soft labels, which contain the'
      " probability distribution of all classes, because we find the"
      ' performance is better than hard labels."',
      {"Soft classes": RECIPE, "Hard classes": HARD_CLASSES},
    ),
    _recipe(
      "how image sets are mixed",
      'Paper 3.2: "Instead of designing sampling heuristics [9], we uniformly'
      " sample from the union of datasets. This works because every task is"
      " labeled on every image in MuST, thus we do not need to worry about"
      ' under/over-sampling a task due to the imbalanced dataset size."',
      {"Uniform sampling": RECIPE, "Equal sampling": EQUAL_SETS},
    ),
  ),
}
