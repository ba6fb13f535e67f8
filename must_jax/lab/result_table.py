"""Tables of results: methods in rows, downstream datasets in columns.

A `ResultTable` holds the raw numbers, all seeds of them. Its `cell` says what
is to be shown of one cell; the terminal, Markdown and the HTML page
(`must_jax.lab.report_page`) only lay it out.
"""

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Sequence

NOT_RUN = "not run"
FLOOR = "Floor: a constant"


@dataclasses.dataclass(frozen=True)
class ResultColumn:
  """One downstream dataset: its name and the metric, "Detection AP50"."""

  name: str
  metric: str


@dataclasses.dataclass(frozen=True)
class ResultRow:
  """One method.

  Attributes:
    name: name of the method.
    values: by column, one value in 0..1 per seed, None where it was not run.
    paper: by column, the published value in 0..1, None where there is none;
      empty without any.
  """

  name: str
  values: tuple[tuple[float, ...] | None, ...]
  paper: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class ResultCell:
  """What is shown of one cell; numbers in percent.

  Attributes:
    mean: over the seeds, None if it was not run.
    deviation: sample standard deviation over the seeds, None for one seed.
    delta: mean minus the baseline's mean, None in the baseline itself.
    is_clear: the delta is larger than the seeds' deviations explain, those of
      both rows added in quadrature; never where a row has one seed.
    is_best: no other row shows a larger mean in this column.
    paper: the published value.
    paper_delta: published value minus the baseline's published value.
    agrees: both deltas, at the one decimal that is shown, have the same
      direction; None where one is missing or zero.
  """

  mean: float | None
  deviation: float | None
  delta: float | None
  is_clear: bool
  is_best: bool
  paper: float | None
  paper_delta: float | None
  agrees: bool | None


@dataclasses.dataclass(frozen=True)
class ResultTable:
  """Results of methods on datasets; larger values are better.

  Attributes:
    columns: the datasets.
    rows: the methods.
    baseline: name of the row that deltas refer to.
    highlight: name of the row that the table is about, if there is one.
    reference: name of the row that relative gains refer to, if they matter.
    floors: by column, what a prediction reaches that ignores the image, None
      where it was not run; empty without any. It is no method: neither best nor
      compared with.
    remarks: what a reader must know besides, as sentences.
    quote: what is put to the test, in somebody's words, with their place.

  Raises:
    ValueError: rows do not fit the columns, names are not unique or unknown, a
      cell has no values, or a value is outside 0..1.
  """

  columns: tuple[ResultColumn, ...]
  rows: tuple[ResultRow, ...]
  baseline: str
  highlight: str | None = None
  reference: str | None = None
  floors: tuple[float | None, ...] = ()
  remarks: tuple[str, ...] = ()
  quote: str = ""

  def __post_init__(self):
    names = [row.name for row in self.rows]
    if len(set(names)) < len(names):
      raise ValueError(f"Row names {names} repeat; give each row its own name.")
    for name in (self.baseline, self.highlight, self.reference):
      if name is not None and name not in names:
        raise ValueError(
          f"There is no row {name!r}; expected one of {names} as baseline,"
          " highlight and reference."
        )
    floor = ResultRow(
      FLOOR, tuple(v if v is None else (v,) for v in self.floors)
    )
    for row in (*self.rows, *([floor] if self.floors else [])):
      for kind, cells in (("values", row.values), ("paper", row.paper)):
        if len(cells) != len(self.columns) and (kind == "values" or cells):
          raise ValueError(
            f"Row {row.name!r} has {len(cells)} {kind} for"
            f" {len(self.columns)} columns; use None for a cell without any."
          )
      if () in row.values:
        raise ValueError(
          f"Row {row.name!r} has a cell without seeds; use None for a cell that"
          " was not run."
        )
      seeds = [v for values in row.values if values for v in values]
      for value in seeds + [v for v in row.paper if v is not None]:
        if not 0 <= value <= 1:
          raise ValueError(
            f"Row {row.name!r} holds {value}; expected fractions in 0..1."
            " Divide percentages by 100."
          )

  def row(self, name: str) -> ResultRow:
    """The row of that name."""
    return next(row for row in self.rows if row.name == name)

  def cell(self, row: ResultRow, column: int) -> ResultCell:
    """What to show of `row` in the column of that index."""
    base = self.row(self.baseline)
    mean, base_mean = _mean(row, column), _mean(base, column)
    delta = None
    if row is not base and mean is not None and base_mean is not None:
      delta = mean - base_mean
    deviation, base_deviation = (
      _deviation(row, column),
      _deviation(base, column),
    )
    noise = math.inf
    if deviation is not None and base_deviation is not None:
      noise = math.hypot(deviation, base_deviation)
    paper, base_paper = _paper(row, column), _paper(base, column)
    paper_delta = None
    if row is not base and paper is not None and base_paper is not None:
      paper_delta = paper - base_paper
    shown = [
      round(m, 1) for r in self.rows if (m := _mean(r, column)) is not None
    ]
    return ResultCell(
      mean=mean,
      deviation=deviation,
      delta=delta,
      is_clear=delta is not None and abs(delta) > max(noise, 0.05),
      # The only row that was run is no winner.
      is_best=mean is not None
      and len(shown) > 1
      and round(mean, 1) == max(shown),
      paper=paper,
      paper_delta=paper_delta,
      agrees=_agree(delta, paper_delta),
    )

  def gain(self, name: str, column: int) -> float | None:
    """How much a row is above `reference`, in percent of that.

    Returns:
      None if one of the two was not run, or the reference is 0.
    """
    assert self.reference
    mean = _mean(self.row(name), column)
    base = _mean(self.row(self.reference), column)
    return 100 * (mean / base - 1) if mean is not None and base else None

  def mean_delta(self, name: str) -> float:
    """The mean of a row's differences from the baseline, where both were run.

    Raises:
      ValueError: there is no such column.
    """
    row = self.row(name)
    cells = [self.cell(row, column) for column in range(len(self.columns))]
    deltas = [cell.delta for cell in cells if cell.delta is not None]
    if not deltas:
      raise ValueError(f"{name!r} and {self.baseline!r} have no common column.")
    return statistics.fmean(deltas)

  def agreement(self, name: str, clear: bool = False) -> tuple[int, int]:
    """Counts the columns in which a row differs from the baseline as published.

    Args:
      name: name of the row.
      clear: count differences only that the seeds' deviations do not explain.

    Returns:
      (columns in which both differences have the same direction; columns in
      which both are known, and neither is zero at the decimal that is shown).
    """
    row = self.row(name)
    cells = [self.cell(row, column) for column in range(len(self.columns))]
    known = [
      cell.agrees
      for cell in cells
      if cell.agrees is not None and (cell.is_clear or not clear)
    ]
    return sum(known), len(known)

  def wins(self, name: str, over: str) -> tuple[int, int]:
    """Counts the columns in which one row beats another.

    Args:
      name: name of the row.
      over: name of the row to compare with.

    Returns:
      (columns in which the difference of the means, at the one decimal that is
      shown, is positive; columns in which both were run).
    """
    row, other = self.row(name), self.row(over)
    differences = [
      round(a - b, 1)
      for column in range(len(self.columns))
      if (a := _mean(row, column)) is not None
      and (b := _mean(other, column)) is not None
    ]
    return sum(d > 0 for d in differences), len(differences)

  def notes(self) -> list[str]:
    """What a reader must know about the numbers, as sentences."""
    counts = {len(v) for row in self.rows for v in row.values if v}
    notes = ["Percent; higher is better."]
    if counts and max(counts) > 1:
      spread = f"{min(counts)} to " if len(counts) > 1 else ""
      notes.append(
        f"Mean ± sample standard deviation over {spread}{max(counts)} seeds."
      )
    elif counts:
      notes.append("One seed: small differences say nothing.")
    if self.floors:
      notes.append(
        "Floor: one prediction for all images, the most usual one of the"
        " training labels, measured as the others."
      )
    return [*notes, *self.remarks]

  def floor(self, column: int) -> float | None:
    """The floor of the column of that index in percent, if there is one."""
    value = self.floors[column] if self.floors else None
    return None if value is None else 100 * value

  def to_text(self) -> str:
    """Lays the table out for a terminal."""
    body: list[list[str]] = []
    for row in self.rows:
      cells = [self.cell(row, c) for c in range(len(self.columns))]
      body.append([row.name, *map(_text_value, cells)])
      if any(cell.delta is not None for cell in cells):
        body.append([f"  vs {self.baseline}"] + [_text_delta(c) for c in cells])
      if any(cell.paper is not None for cell in cells):
        body.append(["  paper"] + [_text_paper(c) for c in cells])
    if self.floors:
      body.append([FLOOR, *map("{:>5}".format, self._floor_texts())])
    blocks = [[""]]
    for index, column in enumerate(self.columns):
      words = f"{column.name} {column.metric}".split()
      width = max(map(len, words + [line[index + 1] for line in body]))
      blocks.append(
        textwrap.wrap(column.name, width) + textwrap.wrap(column.metric, width)
      )
    depth = max(map(len, blocks))
    head = [
      [block[i] if i < len(block) else "" for block in blocks]
      for i in range(depth)
    ]
    lines = _align(head + body)
    lines.insert(depth, "-" * max(map(len, lines)))
    beats = []
    for row in self.rows:
      won, compared = self.wins(row.name, self.baseline)
      if row.name != self.baseline and compared:
        beats.append(
          f"{row.name} beats {self.baseline} in {won} of {compared} columns."
        )
    notes = " ".join([*self.notes(), "* best of its column."])
    quoted = [self.quote, ""] if self.quote else []
    return "\n".join([*quoted, *lines, "", *beats, notes]) + "\n"

  def to_markdown(self) -> str:
    """Lays the table out as GitHub-flavoured Markdown."""
    lines = [f"> {self.quote}", ""] if self.quote else []
    lines += [
      _markdown_line(
        ["", *(f"{c.name}<br>{c.metric}".strip() for c in self.columns)]
      ),
      _markdown_line(["---", *["---:"] * len(self.columns)]),
    ]
    for row in self.rows:
      cells = [self.cell(row, c) for c in range(len(self.columns))]
      name = f"**{row.name}**" if row.name == self.highlight else row.name
      lines.append(_markdown_line([name, *map(_markdown_value, cells)]))
      if any(cell.paper is not None for cell in cells):
        papers = [_text_paper(cell).strip() for cell in cells]
        lines.append(
          _markdown_line(["*paper*", *(p and f"*{p}*" for p in papers)])
        )
    if self.floors:
      lines.append(_markdown_line([FLOOR, *self._floor_texts()]))
    notes = [*self.notes(), f"In brackets: minus {self.baseline}."]
    return "\n".join([*lines, "", " ".join(notes)]) + "\n"

  def _floor_texts(self) -> list[str]:
    found = map(self.floor, range(len(self.columns)))
    return [NOT_RUN if value is None else percent(value) for value in found]


def percent(value: float) -> str:
  """A number in percent, with the one decimal that all tables show."""
  return f"{value:.1f}"


def signed(value: float) -> str:
  """A difference in percent points with its sign; zero is "+0.0"."""
  return f"{round(value, 1) + 0.0:+.1f}"  # adding zero drops zero's sign


def _mean(row: ResultRow, column: int) -> float | None:
  values = row.values[column]
  return None if values is None else 100 * statistics.fmean(values)


def _deviation(row: ResultRow, column: int) -> float | None:
  values = row.values[column]
  if values is None or len(values) < 2:
    return None
  return 100 * statistics.stdev(values)


def _paper(row: ResultRow, column: int) -> float | None:
  value = row.paper[column] if row.paper else None
  return None if value is None else 100 * value


def _agree(delta: float | None, paper_delta: float | None) -> bool | None:
  if delta is None or paper_delta is None:
    return None
  ours, theirs = round(delta, 1), round(paper_delta, 1)
  return (ours > 0) == (theirs > 0) if ours and theirs else None


def _text_value(cell: ResultCell) -> str:
  if cell.mean is None:
    return NOT_RUN
  text = f"{percent(cell.mean):>5}"
  if cell.deviation is not None:
    text += f" ±{percent(cell.deviation)}"
  return text + (" *" if cell.is_best else "")


def _text_delta(cell: ResultCell) -> str:
  return "" if cell.delta is None else f"{signed(cell.delta):>5}"


def _text_paper(cell: ResultCell) -> str:
  if cell.paper is None:
    return ""
  text = f"{percent(cell.paper):>5}"
  if cell.paper_delta is not None:
    text += f" ({signed(cell.paper_delta)})"
  return text


def _align(lines: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    "  ".join(
      text.ljust(width) for text, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  ]


def _markdown_value(cell: ResultCell) -> str:
  if cell.mean is None:
    return NOT_RUN
  text = percent(cell.mean)
  if cell.is_best:
    text = f"**{text}**"
  if cell.deviation is not None:
    text += f" ±{percent(cell.deviation)}"
  return text + ("" if cell.delta is None else f" ({signed(cell.delta)})")


def _markdown_line(cells: Sequence[str]) -> str:
  return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
