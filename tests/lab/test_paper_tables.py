"""The published figures, against the differences that the paper prints."""

import dataclasses
import re

import pytest

from must_jax.lab import paper_tables
from must_jax.lab.paper_tables import TABLES

# (table, pre-training, compared with, printed differences). The first of the
# last row is printed as 0.5, of figures that differ by 0.7.
PRINTED = [
  ("table2", "must", "supervised", (0.9, 5.8, 10.0, 6.8, 3.7, 3.8)),
  ("table3", "must-depth", "supervised", (-1.0, 0.0, 0.4, 5.0, -0.3, 2.4)),
  ("table3", "must-depth-seg", "supervised", (-0.1, 2.3, 8.0, 6.2, 1.7, 3.5)),
  ("table3", "must", "supervised", (0.9, 5.8, 10.0, 6.8, 3.7, 3.8)),
  ("table5", "must-cross", "multitask", (1.1, 1.1, 0.2, 0.6, 1.5, 1.3)),
  (
    "table6",
    "must-jft-supervised",
    "must-jft",
    (0.7, 0.1, 0.7, -0.3, 0.2, 0.2),
  ),
]


@pytest.mark.parametrize(("table", "name", "other", "printed"), PRINTED)
def test_figures_differ_as_the_paper_prints(table, name, other, printed):
  (part,) = TABLES[table]
  paper = {row.pretraining.name: row.paper for row in part.rows}
  found = [a - b for a, b in zip(paper[name], paper[other], strict=True)]
  # The paper's differences are of numbers with more decimals.
  assert found == pytest.approx(printed, abs=0.11)


BOTH = ("mini", "paper")
SCALES_OF = {"photographs": ("photos",), "recipe": ("mini",)}


@pytest.mark.parametrize("scale", paper_tables.SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_rows_that_it_is_about(name, scale):
  for table in TABLES[name]:
    assert bool(table.at(scale)) == (scale in SCALES_OF.get(name, BOTH))
    if not table.at(scale):
      continue
    found = {row.pretraining.name for row in table.at(scale)}
    assert {table.baseline.name, table.highlight.name} <= found
    assert len({row.title for row in table.at(scale)}) == len(table.at(scale))
    for row in table.rows:
      assert len(row.paper) in (0, 6)


def test_pseudo_labels_fill_what_is_not_labelled():
  """Paper 3.2, cross dataset training."""
  sources = {
    images: {
      task: source if isinstance(source, str) else source.name
      for task, source in own.items()
    }
    for images, own in paper_tables.CROSS.labels.items()
  }
  assert sources == {
    "imagenet": {
      "classification": "supervised",
      "detection": "teacher-detection",
      "segmentation": "teacher-segmentation",
    },
    "objects365": {
      "classification": "teacher-classification",
      "detection": "supervised",
      "segmentation": "teacher-segmentation",
    },
    "coco_panoptic": {
      "classification": "teacher-classification",
      "detection": "teacher-detection",
      "segmentation": "supervised",
    },
  }
  assert paper_tables.CROSS.sampling == "uniform"
  assert paper_tables.MULTITASK.sampling == "equal"


def test_teachers_of_a_bootstrap_start_from_its_checkpoint():
  """Paper 4.3; the depth teacher comes from elsewhere."""
  (labels,) = paper_tables.MUST_CHECKPOINT.labels.values()
  starts = {task: teacher.start for task, teacher in labels.items()}
  assert paper_tables.MUST_CHECKPOINT.start is paper_tables.CHECKPOINT
  assert starts == {
    "classification": paper_tables.CHECKPOINT,
    "detection": paper_tables.CHECKPOINT,
    "segmentation": paper_tables.CHECKPOINT,
    "depth": None,
  }


def test_rows_about_the_recipe_change_one_thing():
  names = {field.name for field in dataclasses.fields(paper_tables.Pretraining)}
  changed = []
  for table in TABLES["recipe"]:
    rows = [row.pretraining for row in table.rows]
    assert rows.count(paper_tables.RECIPE) == 1
    assert re.fullmatch(r'Paper 3\.[12]: "[^"]+\."', table.quote)
    for made in rows:
      if made is not paper_tables.RECIPE:
        (name,) = [
          name
          for name in names - {"name"}
          if getattr(made, name) != getattr(paper_tables.RECIPE, name)
        ]
        changed.append(name)
  assert sorted(changed) == ["options"] * 5 + ["sampling"]
