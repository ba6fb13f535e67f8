"""docs/results.md, against the numbers that it shows."""

import json
import pathlib

import pytest

from must_jax.lab.result_table import ResultColumn, ResultRow, ResultTable

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def read_tables(path):
  """The tables of a `results.json` as they were."""
  for table in json.loads(path.read_text())["tables"]:
    rows = []
    for row in table["rows"]:
      cells = row["cells"]
      values = [tuple(run["value"] for run in c["runs"]) for c in cells]
      paper = [c["paper"] for c in cells]
      rows.append(
        ResultRow(
          row["row"],
          tuple(values),
          tuple(p and p / 100 for p in paper) if any(paper) else (),
        )
      )
    columns = tuple(ResultColumn(c["column"], c["metric"]) for c in cells)
    yield (
      table["table"],
      ResultTable(columns, tuple(rows), baseline=table["baseline"]),
    )


@pytest.mark.parametrize("name", ["mini", "photographs", "recipe"])
def test_the_page_shows_the_numbers_that_lie_beside_it(name):
  page = (DOCS / "results.md").read_text().replace("**", "")
  for title, table in read_tables(DOCS / "results" / f"{name}.json"):
    _, found, section = page.partition(f"### {title}\n")
    assert found, title
    shown = section.partition("\n#")[0].splitlines()
    lines = table.to_markdown().replace("**", "").splitlines()
    rows = [line for line in lines[2:] if line.startswith("| ")]
    assert len(rows) == sum(1 + bool(row.paper) for row in table.rows) > 1
    for row in rows:
      assert row in shown, title
