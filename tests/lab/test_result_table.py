import dataclasses

import pytest

from must_jax.lab.result_table import (
  ResultColumn,
  ResultRow,
  ResultTable,
  percent,
  signed,
)

# Three seeds with a mean and a sample deviation that can be done by hand.
TABLE = ResultTable(
  columns=(
    ResultColumn("CIFAR-100", "Classification top-1"),
    ResultColumn("Pascal", "Detection AP50"),
    ResultColumn("DIODE", "Normal"),
  ),
  rows=(
    ResultRow("SimCLR", ((0.871,), (0.751,), (0.528,))),
    ResultRow(
      "Supervised",
      ((0.850, 0.854, 0.858), (0.79, 0.80, 0.81), None),
      paper=(0.854, 0.793, 0.489),
    ),
    ResultRow(
      "MuST",
      ((0.852, 0.853, 0.854), (0.85, 0.85, 0.85), (0.52, 0.536)),
      paper=(0.863, 0.851, None),
    ),
  ),
  baseline="Supervised",
  highlight="MuST",
)

TEXT = """\
                 CIFAR-100       Pascal        DIODE
                 Classification  Detection     Normal
                 top-1           AP50
-----------------------------------------------------------
SimCLR            87.1 *          75.1          52.8 *
  vs Supervised   +1.7            -4.9
Supervised        85.4 ±0.4       80.0 ±1.0    not run
  paper           85.4            79.3          48.9
MuST              85.3 ±0.1       85.0 ±0.0 *   52.8 ±1.1 *
  vs Supervised   -0.1            +5.0
  paper           86.3 (+0.9)     85.1 (+5.8)

SimCLR beats Supervised in 1 of 2 columns.
MuST beats Supervised in 1 of 2 columns.
Percent; higher is better. Mean ± sample standard deviation over 1 to 3 seeds.\
 * best of its column.
"""

MARKDOWN = """\
|  | CIFAR-100<br>Classification top-1 | Pascal<br>Detection AP50\
 | DIODE<br>Normal |
| --- | ---: | ---: | ---: |
| SimCLR | **87.1** (+1.7) | 75.1 (-4.9) | **52.8** |
| Supervised | 85.4 ±0.4 | 80.0 ±1.0 | not run |
| *paper* | *85.4* | *79.3* | *48.9* |
| **MuST** | 85.3 ±0.1 (-0.1) | **85.0** ±0.0 (+5.0) | **52.8** ±1.1 |
| *paper* | *86.3 (+0.9)* | *85.1 (+5.8)* |  |

Percent; higher is better. Mean ± sample standard deviation over 1 to 3 seeds.\
 In brackets: minus Supervised.
"""


def test_text():
  assert TABLE.to_text() == TEXT


def test_markdown():
  assert TABLE.to_markdown() == MARKDOWN


def test_a_floor_is_the_last_row_and_no_method():
  table = dataclasses.replace(TABLE, floors=(0.9, 0.2, None))
  floor = "Floor: a constant   90.0             20.0         not run"
  plain = TEXT.splitlines()
  lines = [" ".join(line.split()) for line in table.to_text().splitlines()]
  expected = [" ".join(line.split()) for line in plain]
  place = expected.index("")
  assert lines[place] == " ".join(floor.split())
  # 90.0 is neither best nor compared with: all else stays as it was.
  others = lines[:place] + lines[place + 1 :]
  rule = next(i for i, line in enumerate(expected) if line.startswith("---"))
  assert others[rule].startswith("---")
  del others[rule], expected[rule]
  assert others[:-1] == expected[:-1]
  said = others[-1].split("Floor: ")
  assert " ".join([said[0], said[1].partition(". ")[2]]).split() == (
    expected[-1].split()
  )
  head, body = table.to_markdown().split("\n\n")
  assert head.splitlines() == [
    *MARKDOWN.split("\n\n")[0].splitlines(),
    "| Floor: a constant | 90.0 | 20.0 | not run |",
  ]
  assert "Floor: one prediction for all images" in body
  for row in TABLE.rows:
    for column in range(3):
      assert table.cell(row, column) == TABLE.cell(row, column)


def test_a_quote_stands_above_the_table():
  quote = 'Paper 1: "It works."'
  table = dataclasses.replace(TABLE, quote=quote)
  assert table.to_text() == f"{quote}\n\n{TEXT}"
  assert table.to_markdown() == f"> {quote}\n\n{MARKDOWN}"


def test_pipes_do_not_break_markdown():
  table = ResultTable(
    (ResultColumn("a|b", "m"),), (ResultRow("x|y", ((0.5,),)),), "x|y"
  )
  assert "| x\\|y | 50.0 |" in table.to_markdown()
  assert "a\\|b<br>m" in table.to_markdown()


def test_a_difference_within_the_deviations_is_not_clear():
  must, column = TABLE.row("MuST"), 1
  assert TABLE.cell(must, column).is_clear  # 5.0 against 1.0 and 0.0
  noisy = dataclasses.replace(must, values=(None, (0.7, 1.0), None))
  table = dataclasses.replace(TABLE, rows=(*TABLE.rows[:2], noisy))
  cell = table.cell(noisy, column)
  assert cell.delta == pytest.approx(5.0)
  assert cell.deviation == pytest.approx(21.2132, abs=1e-4)
  assert not cell.is_clear


def test_a_difference_of_one_seed_is_not_clear():
  cell = TABLE.cell(TABLE.row("SimCLR"), 1)
  assert cell.delta == pytest.approx(-4.9)
  assert not cell.is_clear


def test_wins():
  assert TABLE.wins("MuST", "Supervised") == (1, 2)
  assert TABLE.wins("Supervised", "MuST") == (1, 2)
  # Equal in the last column.
  assert TABLE.wins("MuST", "SimCLR") == (1, 3)
  assert TABLE.wins("SimCLR", "MuST") == (1, 3)


def test_the_only_row_of_a_column_is_not_the_best():
  table = ResultTable(
    (ResultColumn("a", "m"),), (ResultRow("x", ((0.5,),)),), "x"
  )
  assert not table.cell(table.rows[0], 0).is_best


@pytest.mark.parametrize(
  ("value", "text"), [(5.84, "+5.8"), (-0.04, "+0.0"), (-1.0, "-1.0")]
)
def test_signed(value, text):
  assert signed(value) == text


def test_percent():
  assert [percent(v) for v in (0.0, 7.26, 100.0)] == ["0.0", "7.3", "100.0"]


@pytest.mark.parametrize(
  ("rows", "baseline", "message"),
  [
    ((ResultRow("x", ((85.4,),)),), "x", "Divide percentages"),
    ((ResultRow("x", ((float("nan"),),)),), "x", "fractions"),
    ((ResultRow("x", ((0.5,),), paper=(79.3,)),), "x", "Divide percentages"),
    ((ResultRow("x", ((0.5,), None)),), "x", "2 values for 1 columns"),
    (
      (ResultRow("x", ((0.5,),), paper=(0.5, 0.5)),),
      "x",
      "2 paper for 1 columns",
    ),
    ((ResultRow("x", ((),)),), "x", "without seeds"),
    ((ResultRow("x", (None,)), ResultRow("x", (None,))), "x", "repeat"),
    ((ResultRow("x", (None,)),), "y", "no row 'y'"),
  ],
)
def test_bad_tables_are_refused(rows, baseline, message):
  with pytest.raises(ValueError, match=message):
    ResultTable((ResultColumn("a", "m"),), rows, baseline)


@pytest.mark.parametrize(
  ("floors", "message"),
  [((46.7,), "Divide percentages"), ((0.5, 0.5), "2 values for 1 columns")],
)
def test_bad_floors_are_refused(floors, message):
  with pytest.raises(ValueError, match=message):
    ResultTable(
      (ResultColumn("a", "m"),), (ResultRow("x", (None,)),), "x", floors=floors
    )


def test_agreement_counts_differences_of_the_published_direction():
  # Differences from the baseline in percent points, ours and the paper's.
  cases = [
    (2.0, 1.0, True),
    (-2.0, -9.0, True),
    (2.0, -0.1, False),
    (-0.1, 5.0, False),
    (0.0, 5.0, None),
    (5.0, 0.0, None),
    (0.04, 5.0, None),  # zero at the decimal that is shown
    (5.0, None, None),
    (None, 5.0, None),
  ]
  names = [str(index) for index in range(len(cases))]
  table = ResultTable(
    columns=tuple(ResultColumn(name, "AP") for name in names),
    rows=(
      ResultRow("base", ((0.5,),) * len(cases), (0.5,) * len(cases)),
      ResultRow(
        "new",
        tuple(None if a is None else (0.5 + a / 100,) for a, _, _ in cases),
        tuple(None if b is None else 0.5 + b / 100 for _, b, _ in cases),
      ),
    ),
    baseline="base",
  )
  new, base = table.row("new"), table.row("base")
  found = [table.cell(new, c).agrees for c in range(len(cases))]
  assert found == [expected for _, _, expected in cases]
  assert table.agreement("new") == (2, 4)
  assert table.agreement("base") == (0, 0)
  assert table.cell(base, 0).agrees is None


def test_clear_agreement_leaves_out_what_the_seeds_explain():
  # differences of 4 with deviations of 1.4, of 1 with 1.4, of -4 with 0
  new = ((0.53, 0.55), (0.50, 0.52), (0.46, 0.46))
  table = ResultTable(
    columns=(
      ResultColumn("a", "AP"),
      ResultColumn("b", "AP"),
      ResultColumn("c", "AP"),
    ),
    rows=(
      ResultRow("base", ((0.5, 0.5),) * 3, (0.5, 0.5, 0.5)),
      ResultRow("new", new, (0.6, 0.6, 0.6)),
    ),
    baseline="base",
  )
  assert table.agreement("new") == (2, 3)
  assert table.agreement("new", clear=True) == (1, 2)


def test_text_counts_no_wins_of_a_row_that_was_not_run():
  table = ResultTable(
    columns=(ResultColumn("a", "AP"),),
    rows=(ResultRow("base", ((0.5,),)), ResultRow("new", (None,))),
    baseline="base",
  )
  assert "new beats" not in table.to_text()


def test_gain_is_relative_to_the_reference():
  table = ResultTable(
    columns=(
      ResultColumn("a", "AP"),
      ResultColumn("b", "AP"),
      ResultColumn("c", "AP"),
    ),
    rows=(
      ResultRow("base", ((0.5,), (0.5,), (0.5,))),
      ResultRow("reference", ((0.4, 0.4), (0.0,), None)),
      ResultRow("new", ((0.4, 0.6), (0.5,), (0.5,))),
    ),
    baseline="base",
    reference="reference",
  )
  assert table.gain("new", 0) == pytest.approx(25)
  assert table.gain("reference", 0) == 0
  assert table.gain("new", 1) is None
  assert table.gain("new", 2) is None
