"""`must-jax demo`: the paper's chain on the embedded world.

Four teachers, each on a dataset with one kind of label; pseudo labels of all
four on an unlabelled pile, and of three on the classification dataset, which
has labels of the fourth kind; three pre-trainings (none, supervised
classification, MuST on all these images); each fine-tuned on six small datasets
(paper's Table 2).
"""

import shutil
import sys
import time

import numpy as np

from must_jax.lab import paper_tables, report_page, scale_mini
from must_jax.lab.experiment import Experiment
from must_jax.lab.paper_tables import TEACHERS, Pretraining, Row, Table
from must_jax.lab.scale_mini import TEACHER_SETS, MiniScale
from must_jax.lab.stages import StageError, Stages
from must_jax.storage import label_sets
from must_jax.storage.path import Path, absolute
from must_jax.storage.sets import read_manifest

REPORT = "report.html"
_PILE = {"train": 2400}
QUICK = MiniScale(
  counts=scale_mini.COUNTS | {"pile": _PILE, "pile_truth": _PILE},
  steps={TEACHERS[k].name: n for k, n in scale_mini.TEACHER_STEPS.items()},
  student_steps=1000,
)
FULL = MiniScale(
  counts=QUICK.counts,
  steps={name: 2 * steps for name, steps in QUICK.steps.items()},
  student_steps=2500,
)
MUST = Pretraining(
  "must",
  {
    # Supervised labels where there are some, else a teacher's (paper 3.2).
    "imagenet": TEACHERS | {"classification": paper_tables.SUPERVISED},
    "pile": TEACHERS,
  },
)
# The paper's figures are for the eye only: other data, other sizes.
TABLE = Table(
  "Results",
  (
    Row(paper_tables.NONE, "No pre-training"),
    Row(
      paper_tables.IMAGENET,
      "Supervised classification",
      paper_tables.IMAGENET_PAPER,
    ),
    Row(MUST, "MuST", paper_tables.MUST_PAPER),
  ),
  baseline=paper_tables.IMAGENET,
  highlight=MUST,
)
_INTRO = """\
Four teachers are trained, each on a dataset with one kind of label. Each then \
labels a pile of images that has no labels, and the images of the \
classification dataset for the tasks it has no labels of. One student learns \
all four tasks at once from these images (multi-task self-training, MuST; \
Ghiasi et al., ICCV 2021). What it has learned is judged by fine-tuning: on \
six small datasets with other objects, patterns and cameras, against a network \
that was not pre-trained and one that was pre-trained by supervised \
classification.

All images are rendered scenes, so that every label is exact and the pseudo \
labels can be measured. Surface normals are never taught before fine-tuning."""


def run(workdir: Path, *, full: bool = False, jobs: int = 2) -> int:
  """Runs what is not done yet, prints the table and names the report.

  Args:
    workdir: keeps everything; the same call continues an interrupted one.
    full: longer training and three seeds.
    jobs: stages that run at a time.

  Returns:
    The exit status.

  Raises:
    ValueError: what the report is drawn with is not installed.
  """
  report_page.check_libraries()
  start = time.monotonic()
  workdir = absolute(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  stages = Stages(workdir, jobs)
  experiment = build(stages, full)
  report = stages.add(
    "report", write_report, str(workdir), full, after=tuple(stages)
  )
  try:
    stages.run()
  except StageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  shutil.copyfile(report / REPORT, workdir / REPORT)
  print("\nTeachers: validation on their own set, pseudo labels on the pile")
  for q in label_quality(experiment):
    print(f"  {q.teacher:<16}{q.metric:<16}{q.validation:.3f}  {q.pile:.3f}")
    print(f"    {q.left}")
  print(f"\n{experiment.results(TABLE).to_text()}\n")
  minutes = (time.monotonic() - start) / 60
  print(f"Report: {workdir / REPORT}  ({minutes:.1f} minutes)")
  return 0


def build(stages: Stages, full: bool) -> Experiment:
  """Adds all stages of the chain."""
  scale, seeds = (FULL, (0, 1, 2)) if full else (QUICK, (0,))
  experiment = Experiment(stages, scale, seeds)
  experiment.add(TABLE)
  return experiment


def write_report(directory: Path, workdir: str, full: bool) -> None:
  """Stage: writes the report from what the others left."""
  # These import TensorFlow, which has no place in the process that waits.
  from must_jax.lab import galleries
  from must_jax.train.load import load

  experiment = build(Stages(Path(workdir), jobs=1), full)
  (made,) = experiment.network(MUST, experiment.seeds[0]).after
  student = load(str(made))
  report_page.write(
    directory / REPORT,
    report_page.Page(
      title="MuST on the embedded world",
      intro=_INTRO,
      facts={
        "Command": f"must-jax demo{' --full' if full else ''}",
        "Seeds": ", ".join(map(str, experiment.seeds)),
        "Machine": report_page.machine(),
      },
      results={"Results": experiment.results(TABLE)},
      label_quality=label_quality(experiment),
      galleries=(
        galleries.pseudo_labels(experiment, MUST, "pile", student),
        galleries.predictions(
          student, _unseen(galleries.ROWS, student.image_size[0])
        ),
      ),
      charts=_charts(experiment),
      stages=report_page.longest(experiment.stages.values()),
    ),
  )


def label_quality(
  experiment: Experiment,
) -> tuple[report_page.LabelQuality, ...]:
  """How good the teachers are at home, and their labels on the pile."""
  stages = experiment.stages
  found = []
  for entry in TEACHER_SETS:
    teacher = TEACHERS[entry.kind]
    (made,) = experiment.pretraining_stages(teacher)
    labels = experiment.labels(teacher, "pile")
    found.append(
      report_page.LabelQuality(
        teacher=entry.kind,
        dataset=f"{entry.set_name} (in the role of {entry.role})",
        metric=entry.metric,
        validation=stages[made].result[
          f"validation/{entry.kind}/{entry.metric}"
        ],
        pile=stages[labels].result[entry.metric],
        left="; ".join(label_sets.summary(read_manifest(labels)).values()),
      )
    )
  return tuple(found)


def _unseen(count: int, size: int) -> np.ndarray:
  """Scenes uint8 [N, S, S, 3] of a split of the pile that was never written."""
  from must_jax.lab import world

  return np.stack(
    [
      world.render_example("pile", "unseen", i, size)["image"]
      for i in range(count)
    ]
  )


def _charts(experiment: Experiment) -> tuple[report_page.Chart, ...]:
  """Training curves of teachers and student, and of the transfers."""
  seed = experiment.seeds[0]
  (student,) = experiment.network(MUST, seed).after
  teachers = {
    kind: experiment.pretraining_stages(t)[0] for kind, t in TEACHERS.items()
  }
  curves: dict[str, dict[str, report_page.Curve]] = {
    title: {
      kind: report_page.read_curve(directory / "metrics.jsonl", f"{kind}/loss")
      for kind, directory in directories.items()
    }
    for title, directories in (
      ("Teachers", teachers),
      ("Student", dict.fromkeys(teachers, student)),
    )
  }
  for transfer in experiment.scale.transfers:
    curves[f"Fine-tuning: {transfer.name}"] = {
      row.pretraining.name: report_page.read_curve(
        experiment.fine_tune(row.pretraining, transfer, transfer.sweep[0], seed)
        / "metrics.jsonl",
        f"{transfer.name}/loss",
      )
      for row in TABLE.rows
    }
  return tuple(
    report_page.Chart(
      title=title,
      x_label="step",
      y_label="loss of the task",
      series=series,
      log_y=True,
    )
    for title, series in curves.items()
  )
