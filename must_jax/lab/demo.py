"""`must-jax demo`: the paper's chain on the embedded world.

Four teachers, each on a dataset with one kind of label; pseudo labels of all
four on an unlabelled pile, and of three on the classification dataset, which
has labels of the fourth kind; three pre-trainings (none, supervised
classification, MuST on all these images); each fine-tuned on six small datasets
(paper's Table 2).
"""

import pathlib
import sys
import time

from must_jax.lab import mini, recipes, report_page
from must_jax.lab.graph import Graph
from must_jax.lab.mini import SOURCES, Mini
from must_jax.lab.recipes import TEACHERS, Recipe, Row, Spec
from must_jax.lab.stages import Pipeline, StageError

REPORT = "report.html"
_PILE = {"train": 2400}
QUICK = Mini(
  counts=mini.COUNTS | {"pile": _PILE, "pile_truth": _PILE},
  steps={TEACHERS[k].name: n for k, n in mini.TEACHER_STEPS.items()},
  student_steps=1000,
)
FULL = Mini(
  counts=QUICK.counts,
  steps={name: 2 * steps for name, steps in QUICK.steps.items()},
  student_steps=2500,
)
MUST = Recipe(
  "must",
  {
    # Supervised labels where there are some, else a teacher's (paper 3.2).
    "imagenet": TEACHERS | {"classification": recipes.SUPERVISED},
    "pile": TEACHERS,
  },
)
# The paper's figures are for the eye only: other data, other sizes.
SPEC = Spec(
  "Results",
  (
    Row(recipes.NONE, "No pre-training"),
    Row(recipes.IMAGENET, "Supervised classification", recipes.IMAGENET_PAPER),
    Row(MUST, "MuST", recipes.MUST_PAPER),
  ),
  baseline=recipes.IMAGENET,
  highlight=MUST,
)


def run(workdir: pathlib.Path, *, full: bool = False, jobs: int = 2) -> int:
  """Runs what is not done yet, prints the table and names the report.

  Args:
    workdir: keeps everything; the same call continues an interrupted one.
    full: longer training and three seeds.
    jobs: stages that run at a time.

  Returns:
    The exit status.
  """
  start = time.monotonic()
  workdir = pathlib.Path(workdir).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  pipeline = Pipeline(workdir, jobs)
  graph = build(pipeline, full)
  pipeline.add(
    "report",
    write_report,
    str(workdir),
    full,
    after=tuple(pipeline.stages),
  )
  try:
    pipeline.run()
  except StageError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print("\nTeachers: validation on their own set, pseudo labels on the pile")
  for q in label_quality(graph):
    print(f"  {q.teacher:<16}{q.metric:<16}{q.validation:.3f}  {q.pile:.3f}")
  print(f"\n{graph.table(SPEC).to_text()}\n")
  minutes = (time.monotonic() - start) / 60
  print(f"Report: {workdir / REPORT}  ({minutes:.1f} minutes)")
  return 0


def build(pipeline: Pipeline, full: bool) -> Graph:
  """Adds all stages of the chain to a pipeline."""
  scale, seeds = (FULL, (0, 1, 2)) if full else (QUICK, (0,))
  graph = Graph(pipeline, scale, seeds)
  graph.add(SPEC)
  return graph


def write_report(directory: pathlib.Path, workdir: str, full: bool) -> None:
  """Stage: writes the report from what the others left."""
  from must_jax.lab import showcase

  graph = build(Pipeline(pathlib.Path(workdir), jobs=1), full)
  showcase.write(
    pathlib.Path(workdir) / REPORT,
    graph,
    SPEC,
    facts={
      "Command": f"must-jax demo{' --full' if full else ''}",
      "Seeds": ", ".join(map(str, graph.seeds)),
    },
    quality=label_quality(graph),
  )


def label_quality(graph: Graph) -> tuple[report_page.LabelQuality, ...]:
  """How good the teachers are at home, and their labels on the pile."""
  stages = graph.pipeline.stages
  found = []
  for source in SOURCES:
    teacher = TEACHERS[source.kind]
    (made,) = graph.own_stages(teacher)
    found.append(
      report_page.LabelQuality(
        teacher=source.kind,
        dataset=f"{source.set_name} (in the role of {source.role})",
        metric=source.metric,
        validation=stages[made].result[
          f"validation/{source.kind}/{source.metric}"
        ],
        pile=stages[graph.labels(teacher, "pile")].result[source.metric],
      )
    )
  return tuple(found)
