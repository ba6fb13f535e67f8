"""How often the tables have the paper's directions, and how often they could.

  python -m benchmarks.directions docs/results/mini.json

Reads the `results.json` of `must-jax tables`. For each table: in how many cells
the difference from the baseline has the direction of the paper's; how many are
to be expected if the true differences were the paper's, in points, and only the
seeds made them uncertain; and the same of the differences that the seeds'
deviations do not explain. Then the cells that disagree. A table that compares
only what others compare is left out.

The noise of a cell is that of its column: the deviations over the seeds of all
rows, pooled. Rows that are compared several times get one draw.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_DRAWS = 20_000
_SIZES = (0, 0.5, 1, 2, 4, math.inf)  # of the paper's differences, points


class Comparison(NamedTuple):
  """A cell against its baseline's; numbers in percent."""

  table: str
  row: str
  column: str
  cells: tuple[dict[str, Any], dict[str, Any]]
  keys: tuple[tuple[str, str], tuple[str, str]]

  @property
  def deltas(self) -> tuple[float, float]:
    """Ours and the paper's."""
    return self.cells[0]["delta"], self.cells[0]["paper_delta"]

  @property
  def noise(self) -> float:
    """Of ours, as the seeds have it; infinite where one row has one."""
    deviations = [cell["deviation"] for cell in self.cells]
    return math.inf if None in deviations else math.hypot(*deviations)


def comparisons(results: Mapping[str, Any]) -> Iterator[Comparison]:
  """The cells of all tables whose direction can be compared."""
  for table in results["tables"]:
    rows = {row["row"]: row for row in table["rows"]}
    base = rows[table["baseline"]]
    for row in rows.values():
      for cells in zip(row["cells"], base["cells"], strict=True):
        if cells[0]["agrees"] is not None:
          column = cells[0]["column"]
          keys = (row["recipe"], column), (base["recipe"], column)
          yield Comparison(table["table"], row["row"], column, cells, keys)


def without_repeats(
  compared: list[Comparison],
) -> tuple[list[Comparison], np.ndarray]:
  """Leaves out the tables that compare what earlier tables compare.

  Returns:
    The others' cells [N], and which of them no earlier one repeats, bool [N].
  """
  seen: set[frozenset[tuple[str, str]]] = set()
  first = []
  for comparison in compared:
    first.append(frozenset(comparison.keys) not in seen)
    seen.add(frozenset(comparison.keys))
  pairs = list(zip(compared, first, strict=True))
  new = {comparison.table for comparison, is_first in pairs if is_first}
  kept = [pair for pair in pairs if pair[0].table in new]
  return [c for c, _ in kept], np.array([is_first for _, is_first in kept])


def pooled_deviations(results: Mapping[str, Any]) -> dict[str, float]:
  """By column: of the seeds of all pre-trainings, each counted once."""
  found: dict[str, dict[str, float]] = {}
  for table in results["tables"]:
    for row in table["rows"]:
      for cell in row["cells"]:
        if cell["deviation"] is not None:
          of_column = found.setdefault(cell["column"], {})
          of_column[row["recipe"]] = cell["deviation"] ** 2
  return {
    column: math.sqrt(np.mean(list(variances.values())))
    for column, variances in found.items()
  }


def simulate(
  compared: list[Comparison],
  deviations: Mapping[str, float],
  seeds: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """What would be found if the paper's figures were the true means here.

  Args:
    compared: the cells [N].
    deviations: of the seeds, by column.
    seeds: of what has several; by default as many as there are.

  Returns:
    Whether each has the paper's direction, and whether the seeds' deviations
    leave it clear: bool [N, draws].
  """
  rng = np.random.default_rng(0)
  drawn: dict[tuple[str, str], np.ndarray] = {}
  agrees, clear = [], []
  for comparison in compared:
    for key, cell in zip(comparison.keys, comparison.cells, strict=True):
      if key not in drawn:
        count = len(cell["runs"])
        shape = _DRAWS, seeds if seeds and count > 1 else count
        noise = deviations[comparison.column] * rng.standard_normal(shape)
        drawn[key] = cell["paper"] + noise
    ours, base = (drawn[key] for key in comparison.keys)
    delta = ours.mean(1) - base.mean(1)
    agrees.append(np.sign(delta) == np.sign(comparison.deltas[1]))
    variance = sum(
      x.var(1, ddof=1) if x.shape[1] > 1 else np.inf for x in (ours, base)
    )
    clear.append(np.abs(delta) > np.sqrt(variance))
  return np.array(agrees), np.array(clear)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("results")
  parser.add_argument("--seeds", type=int, help="expected with so many")
  args = parser.parse_args()
  with open(args.results) as file:
    results = json.load(file)
  compared, first = without_repeats(list(comparisons(results)))
  tables = dict.fromkeys(c.table for c in compared)
  deviations = pooled_deviations(results)
  could, could_clearly = simulate(compared, deviations, args.seeds)
  agrees = np.array([c.cells[0]["agrees"] for c in compared])
  clear = np.array([abs(c.deltas[0]) > max(c.noise, 0.05) for c in compared])
  sizes = np.array([round(abs(c.deltas[1]), 1) for c in compared])
  print("| | agree | expected | beyond the seeds | expected |")
  print("|---|---|---|---|---|")
  for title, chosen in {
    **{t: np.array([c.table == t for c in compared]) for t in tables},
    "all": np.ones_like(agrees),
    "all, each pair of rows once": first,
    **{
      f"all, paper's difference {low:g} to {high:g}": (low <= sizes)
      & (sizes < high)
      for low, high in itertools.pairwise(_SIZES)
    },
  }.items():
    counts, beyond = could[chosen].sum(0), could_clearly[chosen]
    right = (could[chosen] & beyond).sum() / beyond.sum()
    print(
      f"| {title} | {agrees[chosen].sum()} of {chosen.sum()}"
      f" | {counts.mean():.1f} ±{counts.std():.1f}"
      f" | {(agrees & clear)[chosen].sum()} of {clear[chosen].sum()}"
      f" | {right:.0%} of {beyond.sum(0).mean():.1f} |"
    )
  print("\nDeviations over the seeds, by column:")
  print("  " + ", ".join(f"{c} {d:.1f}" for c, d in deviations.items()))
  print("\n| table | row | column | here | paper | would agree |")
  print("|---|---|---|---|---|---|")
  for i in np.flatnonzero(~agrees):
    ours, paper = compared[i].deltas
    noise = "" if np.isinf(compared[i].noise) else f" ±{compared[i].noise:.1f}"
    print(
      f"| {compared[i].table} | {compared[i].row} | {compared[i].column}"
      f" | {ours:+.1f}{noise}{', beyond' if clear[i] else ''} | {paper:+.1f}"
      f" | {could[i].mean():.0%} |"
    )


if __name__ == "__main__":
  main()
