"""One stand-alone HTML page that shows an experiment.

Styles, images and charts are inside the file: it can be mailed, archived and
printed, and it opens without a network. All text is escaped; text between
`backticks` is set as code.
"""

import base64
import dataclasses
import html
import io
import json
import math
import os
import pathlib
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

import must_jax
from must_jax.lab import tables
from must_jax.lab.stages import Stage

Rgb = tuple[int, int, int]
Curve = tuple[Sequence[float], Sequence[float]]

# Pixels of the longer side: what is smaller is enlarged, what is larger is
# reduced. Shown at up to half of it, sharp on dense screens and on paper.
_MIN_IMAGE_SIDE = 256
_MAX_IMAGE_SIDE = 640

# Longer curves are averaged down to this many points.
_MAX_POINTS = 160
_CHART_WIDTH, _CHART_HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 24, 38
_NUM_COLOURS = 6  # --s0 .. --s5 in the style sheet


@dataclasses.dataclass(frozen=True)
class LabelQuality:
  """How good one teacher and its pseudo labels are; values in 0..1.

  Attributes:
    teacher: name of the teacher.
    dataset: what it was trained on.
    metric: what is measured, "Detection AP50".
    validation: the metric on the teacher's own validation split.
    pile: the metric of its pseudo labels against the hidden truth of the pile,
      None if nobody knows the truth.
  """

  teacher: str
  dataset: str
  metric: str
  validation: float
  pile: float | None


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Rows of pictures (paper, figures 2 and 4).

  Attributes:
    title: heading.
    caption: what is to be seen.
    columns: headings, "image", "detection", ...
    rows: for each example one uint8 [H, W, 3] per column.
    legends: colour of each class name, by what the colours stand for.

  Raises:
    ValueError: a row does not fit the headings or a picture is not uint8 RGB.
  """

  title: str
  caption: str
  columns: tuple[str, ...]
  rows: tuple[tuple[np.ndarray, ...], ...]
  legends: Mapping[str, Mapping[str, Rgb]] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    for index, row in enumerate(self.rows):
      if len(row) != len(self.columns):
        raise ValueError(
          f"Row {index} of gallery {self.title!r} has {len(row)} pictures;"
          f" expected one for each of {self.columns}."
        )
      for image in row:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
          raise ValueError(
            f"Gallery {self.title!r} holds {image.dtype} {image.shape};"
            " expected uint8 [H, W, 3]."
          )


@dataclasses.dataclass(frozen=True)
class Chart:
  """Curves over a common axis.

  Attributes:
    title: heading.
    x_label: what runs along the horizontal axis.
    y_label: what the curves are.
    series: (xs, ys) by name; points that are not finite are left out.
    log_y: logarithmic vertical axis; points at or below 0 are left out.
  """

  title: str
  x_label: str
  y_label: str
  series: Mapping[str, Curve]
  log_y: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything a page says; what is empty is left out.

  Attributes:
    title: heading of the page.
    intro: paragraphs, with empty lines between them.
    facts: machine, time, commands, seeds, ... by name.
    results: methods on downstream datasets, by heading.
    label_quality: by teacher.
    galleries: pictures, in order.
    charts: training curves.
    stages: (name, seconds) of the work that was done, in order.
  """

  title: str
  intro: str
  facts: Mapping[str, str]
  results: Mapping[str, tables.Table]
  label_quality: tuple[LabelQuality, ...] = ()
  galleries: tuple[Gallery, ...] = ()
  charts: tuple[Chart, ...] = ()
  stages: tuple[tuple[str, float], ...] = ()


def write(path: str | os.PathLike[str], report: Report) -> None:
  """Writes the page as one HTML file."""
  pathlib.Path(path).write_text(_page(report), encoding="utf-8")


def read_curve(
  metrics_jsonl_path: str | os.PathLike[str], key: str
) -> tuple[list[int], list[float]]:
  """Reads one metric of a training run.

  Args:
    metrics_jsonl_path: lines {"step": n, "det/loss": x, ...}.
    key: the metric's name.

  Returns:
    Steps in rising order and the values. Where a run went back to a checkpoint
    and wrote a step again, the last value holds.

  Raises:
    ValueError: the file has no such metric.
  """
  values: dict[int, float] = {}
  keys: set[str] = set()
  with open(metrics_jsonl_path, encoding="utf-8") as lines:
    for line in lines:
      try:
        record = json.loads(line)
      except json.JSONDecodeError:
        continue  # a run that was killed may leave a torn line
      keys |= record.keys()
      if key in record:
        values[record["step"]] = record[key]
  if not values:
    raise ValueError(
      f"{metrics_jsonl_path} has no {key!r}; it has {sorted(keys)}."
    )
  steps = sorted(values)
  return steps, [values[step] for step in steps]


def longest(
  stages: Iterable[Stage], count: int = 15
) -> tuple[tuple[str, float], ...]:
  """(name, seconds) of the longest finished stages, and the others as one."""
  done = sorted(
    ((stage.name, stage.seconds) for stage in stages if stage.is_done),
    key=lambda item: -item[1],
  )
  rest = done[count:]
  if not rest:
    return tuple(done)
  total = sum(seconds for _, seconds in rest)
  return (*done[:count], (f"{len(rest)} more stages", total))


def machine() -> str:
  """The cores, devices and versions that this process computes with."""
  import jax

  device = jax.devices()[0]
  return (
    f"{os.cpu_count()} cores {platform.machine()}, {jax.device_count()} x"
    f" {device.device_kind}, Python {platform.python_version()}, jax"
    f" {jax.__version__}"
  )


# --- The page -----------------------------------------------------------------


def _page(report: Report) -> str:
  sections = [
    (title, f"results-{index}", _results(table))
    for index, (title, table) in enumerate(report.results.items())
  ]
  if report.label_quality:
    sections.append(
      ("Teachers", "teachers", _label_quality(report.label_quality))
    )
  sections += [
    (gallery.title, f"gallery-{index}", _gallery(gallery))
    for index, gallery in enumerate(report.galleries)
  ]
  if report.charts:
    charts = "".join(map(_chart, report.charts))
    sections.append(
      ("Training", "training", f'<div class="charts">{charts}</div>')
    )
  if report.stages:
    sections.append(("Where the time went", "time", _stages(report.stages)))
  links = "".join(
    f'<a href="#{anchor}">{_text(title)}</a>' for title, anchor, _ in sections
  )
  body = "".join(
    f'<section id="{anchor}"><h2>{_text(title)}</h2>{content}</section>'
    for title, anchor, content in sections
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_text(report.title)}</h1>
<div class="intro">{_paragraphs(report.intro)}</div>
<nav>{links}</nav>
{_facts(report.facts)}
</header>
<main>{body}</main>
<footer>must_jax {must_jax.__version__}. The method: Ghiasi et al.,
Multi-Task Self-Training for Learning General Representations,
ICCV 2021.</footer>
</body>
</html>
"""


def _text(text: str) -> str:
  escaped = html.escape(text)
  return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def _unbroken(text: str) -> str:
  """Text whose words do not break at their hyphens, as "top-1" would."""
  return " ".join(f"<span>{_text(word)}</span>" for word in text.split())


def _paragraphs(text: str) -> str:
  parts = re.split(r"\n\s*\n", text.strip())
  return "".join(f"<p>{_text(part)}</p>" for part in parts if part)


def _facts(facts: Mapping[str, str]) -> str:
  if not facts:
    return ""
  items = []
  for name, value in facts.items():
    kind = ' class="wide"' if len(value) > 44 else ""
    items.append(
      f"<div{kind}><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
    )
  return f"<dl>{''.join(items)}</dl>"


# --- Tables -------------------------------------------------------------------


def _results(table: tables.Table) -> str:
  heads = "".join(
    f'<th scope="col" class="left">{_text(c.name)}'
    f"<small>{_unbroken(c.metric)}</small></th>"
    for c in table.columns
  )
  body = "".join(_result_row(table, row) for row in table.rows)
  notes = [*table.notes(), "Bold: best of its column."]
  if len(table.rows) > 1:
    notes.append(
      f"Below it the difference from {table.baseline}, grey where the seeds'"
      " deviations alone may explain it, or there is one seed."
    )
  if any(row.paper for row in table.rows):
    notes.append("“paper”: the published number.")
  return (
    f"{_verdict(table)}"
    '<div class="scroll"><table class="results"><thead><tr>'
    f'<th scope="col">Method</th>{heads}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
    f'<p class="note">{_text(" ".join(notes))}</p>'
    f"{_bars(table)}{_gains(table)}{_wins(table)}"
  )


def _verdict(table: tables.Table) -> str:
  """The result in a sentence: the highlighted row against the baseline."""
  if table.highlight in (None, table.baseline):
    return ""
  row = table.row(table.highlight)
  won, compared = table.wins(row.name, table.baseline)
  deltas = [
    delta
    for column in range(len(table.columns))
    if (delta := table.cell(row, column).delta) is not None
  ]
  if not compared:
    return ""
  mean = _minus(tables.signed(sum(deltas) / len(deltas)))
  return (
    f'<p class="verdict"><strong>{_text(row.name)}</strong> beats'
    f" {_text(table.baseline)} on <strong>{won} of {compared}</strong>"
    f" downstream tasks; <strong>{mean}</strong> points on average.</p>"
  )


def _result_row(table: tables.Table, row: tables.Row) -> str:
  cells = "".join(
    f'<td class="left">{_result_cell(table.cell(row, column))}</td>'
    for column in range(len(table.columns))
  )
  if row.name == table.baseline:
    remark = "<small>baseline</small>"
  else:
    won, compared = table.wins(row.name, table.baseline)
    remark = f"<small>ahead in {won} of {compared}</small>" if compared else ""
  mark = ' class="highlight"' if row.name == table.highlight else ""
  return f'<tr{mark}><th scope="row">{_text(row.name)}{remark}</th>{cells}</tr>'


def _result_cell(cell: tables.Cell) -> str:
  lines = []
  if cell.mean is None:
    lines.append(f'<span class="missing">{tables.NOT_RUN}</span>')
  else:
    mean = tables.percent(cell.mean)
    mean = f"<strong>{mean}</strong>" if cell.is_best else mean
    if cell.deviation is not None:
      mean += f' <span class="dev">±{tables.percent(cell.deviation)}</span>'
    lines.append(f'<span class="mean">{mean}</span>')
  if cell.delta is not None:
    kind = "flat"
    if cell.is_clear:
      kind = "up" if cell.delta > 0 else "down"
    text = _minus(tables.signed(cell.delta))
    lines.append(f'<span class="delta {kind}">{text}</span>')
  if cell.paper is not None:
    text = f"paper {tables.percent(cell.paper)}"
    if cell.paper_delta is not None:
      text += f" ({_minus(tables.signed(cell.paper_delta))})"
    lines.append(f'<span class="paper">{text}</span>')
  return "".join(lines)


def _minus(text: str) -> str:
  return text.replace("-", "−")


def _bars(table: tables.Table) -> str:
  """For each column one bar per row, with a dot for each seed."""
  return f"""<h3>By downstream task</h3>
<div class="panels">{
    "".join(_bar_panel(table, c) for c in range(len(table.columns)))
  }</div>
<p class="note">Bars: mean, from zero; dots: seeds; dashed: {
    _text(table.baseline)
  }.</p>"""


def _bar_panel(table: tables.Table, column: int) -> str:
  cells = [table.cell(row, column) for row in table.rows]
  values = [100 * v for row in table.rows for v in row.values[column] or ()]
  # A little air at the right, so that the outermost dot is whole.
  full = max([*values, 1.0]) * 1.03
  base = table.cell(table.row(table.baseline), column).mean
  line = ""
  if base is not None:
    x = f"{100 * base / full:.2f}%"
    line = f'<line class="base" x1="{x}" x2="{x}" y1="0" y2="100%"></line>'
  rows = []
  for row, cell in zip(table.rows, cells, strict=True):
    if cell.mean is None:
      shape, text = "", f'<span class="missing">{tables.NOT_RUN}</span>'
    else:
      dots = "".join(
        f'<circle cx="{10000 * v / full:.2f}%" cy="50%" r="2.5">'
        f"<title>{tables.percent(100 * v)}</title></circle>"
        for v in row.values[column] or ()
      )
      width = f"{100 * cell.mean / full:.2f}%"
      shape = (
        f'<rect width="{width}" height="12" y="6" rx="1"></rect>{line}{dots}'
      )
      text = tables.percent(cell.mean)
      text = f"<strong>{text}</strong>" if cell.is_best else text
    rows.append(_bar(row.name, row.name == table.highlight, shape, text))
  return _panel(table.columns[column], rows)


def _gains(table: tables.Table) -> str:
  """For each column how much the rows are above one of them, in percent."""
  if table.reference is None:
    return ""
  names = [row.name for row in table.rows if row.name != table.reference]
  columns = range(len(table.columns))
  gains = {(n, c): table.gain(n, c) for n in names for c in columns}
  known = [gain for gain in gains.values() if gain is not None]
  if not known:
    return ""
  low, high = min(*known, 0.0), max(*known, 0.0)
  width = 100 / (high - low or 1)
  zero = f"{-low * width:.2f}%"
  line = f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="100%"></line>'
  panels = []
  for column in columns:
    bars = []
    for name in names:
      gain = gains[name, column]
      shape, text = "", f'<span class="missing">{tables.NOT_RUN}</span>'
      if gain is not None:
        text = f"{_minus(tables.signed(gain))} %"
        shape = (
          f'<rect x="{(min(gain, 0) - low) * width:.2f}%" y="6" rx="1"'
          f' width="{abs(gain) * width:.2f}%" height="12"></rect>{line}'
        )
      bars.append(_bar(name, name == table.highlight, shape, text))
    panels.append(_panel(table.columns[column], bars))
  return f"""<h3>Relative gains</h3>
<div class="panels">{"".join(panels)}</div>
<p class="note">Above {_text(table.reference)}, in percent of its figure (paper,
Figure 5).</p>"""


def _bar(name: str, highlight: bool, shape: str, text: str) -> str:
  """A line with a name, shapes to scale, and a figure."""
  return (
    f'<div class="bar{" highlight" if highlight else ""}">'
    f'<span class="name">{_text(name)}</span>'
    f'<svg aria-hidden="true">{shape}</svg>'
    f'<span class="value">{text}</span></div>'
  )


def _panel(head: tables.Column, bars: Iterable[str]) -> str:
  return (
    f'<figure class="panel"><figcaption>{_text(head.name)}'
    f"<small>{_text(head.metric)}</small></figcaption>{''.join(bars)}</figure>"
  )


def _wins(table: tables.Table) -> str:
  """Who beats whom: a matrix of counts, where there are three rows or more."""
  if len(table.rows) < 3:
    return ""
  names = [row.name for row in table.rows]
  heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
  body = []
  for name in names:
    cells = []
    for over in names:
      won, compared = table.wins(name, over)
      if name == over or not compared:
        cells.append('<td class="missing">–</td>')
      else:
        text = f"{won}<small> / {compared}</small>"
        text = f"<strong>{text}</strong>" if won > compared / 2 else text
        cells.append(f"<td>{text}</td>")
    mark = ' class="highlight"' if name == table.highlight else ""
    body.append(
      f'<tr{mark}><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>'
    )
  return (
    '<h3>Who beats whom</h3><div class="scroll"><table class="wins"><thead>'
    f"<tr><td></td>{heads}</tr></thead>"
    f"<tbody>{''.join(body)}</tbody></table></div>"
    '<p class="note">Columns in which the method at the left has a larger mean'
    " than the one at the top; bold: in more than half.</p>"
  )


def _label_quality(rows: Iterable[LabelQuality]) -> str:
  body = "".join(
    f'<tr><th scope="row">{_text(row.teacher)}</th>'
    f'<td class="left">{_text(row.dataset)}</td>'
    f'<td class="left">{_text(row.metric)}</td>'
    f"<td>{tables.percent(100 * row.validation)}</td>"
    + (
      '<td class="missing">not known</td></tr>'
      if row.pile is None
      else f"<td>{tables.percent(100 * row.pile)}</td></tr>"
    )
    for row in rows
  )
  return (
    '<div class="scroll"><table><thead><tr><th scope="col">Teacher</th>'
    '<th scope="col" class="left">Trained on</th>'
    '<th scope="col" class="left">Metric</th>'
    '<th scope="col">Own validation</th>'
    '<th scope="col">Pseudo labels</th></tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
    '<p class="note">Percent; higher is better. Pseudo labels: what the teacher'
    " wrote on the unlabelled images, against their true labels, which no"
    " training has seen.</p>"
  )


def _stages(stages: Sequence[tuple[str, float]]) -> str:
  total = sum(seconds for _, seconds in stages)
  longest = max([seconds for _, seconds in stages] + [1e-9])
  bars = "".join(
    _bar(
      name,
      False,
      f'<rect width="{100 * seconds / longest:.2f}%" height="12" y="6" rx="1">'
      "</rect>",
      _duration(seconds),
    )
    for name, seconds in stages
  )
  return (
    f'<div class="stages">{bars}<div class="bar total">'
    '<span class="name">Sum of these</span><span></span>'
    f'<span class="value">{_duration(total)}</span></div></div>'
  )


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes = round(seconds / 60)
  if seconds < 600:
    return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
  return (
    f"{minutes} min"
    if minutes < 60
    else (f"{minutes // 60} h {minutes % 60:02} min")
  )


# --- Pictures -----------------------------------------------------------------


def _gallery(gallery: Gallery) -> str:
  heads = "".join(f"<div>{_text(name)}</div>" for name in gallery.columns)
  rows = "".join(
    '<div class="pictures">'
    + "".join(
      f'<img src="{_image_url(image)}" alt="{html.escape(alt)}">'
      for image, alt in zip(
        row,
        [f"{name}, example {index}" for name in gallery.columns],
        strict=True,
      )
    )
    + "</div>"
    for index, row in enumerate(gallery.rows, 1)
  )
  legends = "".join(
    f'<div class="legend"><span class="of">{_text(title)}</span>'
    + "".join(
      f'<span><i style="--c:rgb({red},{green},{blue})"></i>{_text(name)}</span>'
      for name, (red, green, blue) in colours.items()
    )
    + "</div>"
    for title, colours in gallery.legends.items()
  )
  return (
    f"{_paragraphs(gallery.caption)}"
    f'<div class="scroll"><div class="gallery"'
    f' style="--columns:{len(gallery.columns)}">'
    f'<div class="pictures heads">{heads}</div>{rows}</div></div>{legends}'
  )


def _image_url(array: np.ndarray) -> str:
  """A data URL of the picture at a size to be looked at.

  Args:
    array: uint8 [H, W, 3].
  """
  image = Image.fromarray(array)
  longer = max(image.size)
  if longer < _MIN_IMAGE_SIDE:
    # Browsers enlarge bilinearly, which looks washed out.
    scale = math.ceil(_MIN_IMAGE_SIDE / longer)
    size = (image.width * scale, image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)
  elif longer > _MAX_IMAGE_SIDE:
    image.thumbnail(
      (_MAX_IMAGE_SIDE, _MAX_IMAGE_SIDE), Image.Resampling.LANCZOS
    )
  # Photographs are smaller as JPEG, class maps as PNG.
  files = []
  for kind, options in (
    ("png", {"optimize": True}),
    ("jpeg", {"quality": 90, "subsampling": 0}),
  ):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    files.append((len(buffer.getvalue()), kind, buffer.getvalue()))
  _, kind, data = min(files)
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# --- Charts -------------------------------------------------------------------


def _chart(chart: Chart) -> str:
  curves = {
    name: _drawable(curve, chart.log_y) for name, curve in chart.series.items()
  }
  legend = "".join(
    f"<span><i {_series_style(index)}></i>{_text(name)}</span>"
    for index, name in enumerate(curves)
  )
  legend = f'<div class="legend">{legend}</div>' if len(curves) > 1 else ""
  return (
    f'<figure class="chart"><h3>{_text(chart.title)}</h3>{legend}'
    + (_plot(chart, curves) if any(curves.values()) else "<p>No points.</p>")
    + "</figure>"
  )


def _plot(chart: Chart, curves: Mapping[str, list[tuple[float, float]]]) -> str:
  xs = [x for curve in curves.values() for x, _ in curve]
  if 0 < min(xs) < max(xs) / 4:
    xs.append(0)  # steps, most often, of which the first were not written
  curves = {name: _thin(curve) for name, curve in curves.items()}
  ys = [y for curve in curves.values() for _, y in curve]
  x_ticks, to_x = _linear_axis(xs, _LEFT, _CHART_WIDTH - _RIGHT, tight=True)
  make_axis = _log_axis if chart.log_y else _linear_axis
  y_ticks, to_y = make_axis(ys, _CHART_HEIGHT - _BOTTOM, _TOP)
  bottom, right = _CHART_HEIGHT - _BOTTOM, _CHART_WIDTH - _RIGHT
  parts = []
  for tick in y_ticks:
    y = f"{to_y(tick):.1f}"
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"></line>'
      f'<text class="tick end" x="{_LEFT - 8}" y="{y}" dy="4">{_short(tick)}'
      "</text>"
    )
  for tick in x_ticks:
    x = f"{to_x(tick):.1f}"
    parts.append(
      f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}">'
      "</line>"
      f'<text class="tick mid" x="{x}" y="{bottom + 18}">{_short(tick)}</text>'
    )
  parts.append(
    f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}"'
    f' y2="{bottom}"></line>'
    f'<text class="label" x="0" y="11">{html.escape(chart.y_label)}</text>'
    f'<text class="label end" x="{right}" y="{_CHART_HEIGHT - 4}">'
    f"{html.escape(chart.x_label)}</text>"
  )
  for index, (name, curve) in enumerate(curves.items()):
    places = [f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in curve]
    # Few points are measurements to be seen, many are a line.
    radius = 2.5 if len(curve) <= 12 else 0
    dots = "".join(
      f'<g class="point"><circle class="hit" cx="{px}" cy="{py}" r="7">'
      f"<title>{html.escape(name)}, {html.escape(chart.x_label)} {x:g}: {y:.4g}"
      f'</title></circle><circle class="dot" cx="{px}" cy="{py}" r="{radius}">'
      "</circle></g>"
      for (x, y), (px, py) in zip(
        curve, (place.split(",") for place in places), strict=True
      )
    )
    parts.append(
      f'<g {_series_style(index)}><polyline class="curve"'
      f' points="{" ".join(places)}"></polyline>{dots}</g>'
    )
  label = f"{chart.title}: {chart.y_label} over {chart.x_label}"
  return (
    f'<svg class="plot" viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}"'
    f' role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )


def _series_style(index: int) -> str:
  """Attributes of a series: its colour; dashed once all colours are taken."""
  dashed = ' class="dashed"' if index >= _NUM_COLOURS else ""
  return f'style="--c:var(--s{index % _NUM_COLOURS})"{dashed}'


def _drawable(curve: Curve, log_y: bool) -> list[tuple[float, float]]:
  return [
    (float(x), float(y))
    for x, y in zip(*curve, strict=True)
    if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)
  ]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Averages neighbours, so that at most `_MAX_POINTS` are left."""
  size = math.ceil(len(points) / _MAX_POINTS)
  if size <= 1:
    return points
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [
    (statistics.fmean(x for x, _ in g), statistics.fmean(y for _, y in g))
    for g in groups
  ]


Axis = tuple[list[float], Callable[[float], float]]


def _linear_axis(
  values: Sequence[float], start: float, end: float, tight: bool = False
) -> Axis:
  """Ticks at round numbers, and the map from a value to its place.

  Args:
    values: what is to be shown.
    start: place of the smallest value.
    end: place of the largest value.
    tight: the axis ends at the values, else at the ticks around them.
  """
  low, high = min(values), max(values)
  if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
    pad = abs(low) / 2 or 0.5
    low, high = low - pad, high + pad
  step = _round_step((high - low) / 5)
  first, last = math.floor(low / step), math.ceil(high / step)
  ticks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
  if tight:
    ticks = [t for t in ticks if low <= t <= high]
  else:
    low, high = ticks[0], ticks[-1]
  scale = (end - start) / (high - low)
  return ticks, lambda value: start + (value - low) * scale


def _round_step(step: float) -> float:
  """The next of 1, 2, 5, 10, 20, ... that is not smaller."""
  power = 10.0 ** math.floor(math.log10(step))
  return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _log_axis(values: Sequence[float], start: float, end: float) -> Axis:
  """As `_linear_axis`, with ticks at decades or between them."""
  low, high = math.log10(min(values)), math.log10(max(values))
  if high - low < 1e-9:
    low, high = low - 0.5, high + 0.5
  ticks: list[float] = []
  for mantissas in ((1,), (1, 2, 5), range(1, 10)):
    ticks = [
      float(f"{m}e{power}")
      for power in range(math.floor(low), math.ceil(high) + 1)
      for m in mantissas
      if low - 1e-9 <= math.log10(m) + power <= high + 1e-9
    ]
    if len(ticks) >= 3:
      break
  scale = (end - start) / (high - low)
  return ticks, lambda value: start + (math.log10(value) - low) * scale


def _short(value: float) -> str:
  """A tick's label: 5000 as "5k"."""
  if abs(value) >= 1e6:
    return _minus(f"{value / 1e6:g}M")
  if abs(value) >= 1e3:
    return _minus(f"{value / 1e3:g}k")
  return _minus(f"{value:g}")


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fdfdfc; --ink: #1c2024; --soft: #5f676f; --faint: #7f878e;
  --rule: #e3e4e2; --wash: #f4f5f3;
  --accent: #0f766e; --tint: #eaf4f2; --bar: #c3c8cb; --down: #b0532c;
  --s0: #0f766e; --s1: #c0703a; --s2: #5567c9; --s3: #9b4a83; --s4: #7d8330;
  --s5: #59636e;
  --text: Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", Arial, sans-serif;
  --code: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
    monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --ink: #e6e8ea; --soft: #a0a8b0; --faint: #838b93;
    --rule: #2a2f34; --wash: #1c2024;
    --accent: #56c4b6; --tint: #17292a; --bar: #4a5259; --down: #e59a72;
    --s0: #56c4b6; --s1: #e6a06c; --s2: #93a2ff; --s3: #d98dc1; --s4: #c0c56c;
    --s5: #a0a8b0;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 4.5rem 2rem 3rem; max-width: 70rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.6 var(--text); -webkit-font-smoothing: antialiased;
}
h1, h2, h3, p, figure, dl, dd { margin: 0; }
h1 {
  max-width: 22em; font-size: 2.5rem; font-weight: 650; line-height: 1.15;
  letter-spacing: -0.022em; text-wrap: balance;
}
h2 {
  margin-bottom: 1.5rem; font-size: 1.5rem; font-weight: 620;
  line-height: 1.25; letter-spacing: -0.014em;
}
h3 { margin: 3rem 0 1rem; font-size: 1rem; font-weight: 620; }
section { margin-top: 5rem; scroll-margin-top: 2rem; }
section > p { max-width: 44em; margin-bottom: 1.25rem; }
code {
  padding: 0.1em 0.3em; border-radius: 3px; background: var(--wash);
  font: 0.86em/1.5 var(--code); overflow-wrap: anywhere;
}
small span { white-space: nowrap; }
small { font-size: 0.8125rem; font-weight: 400; color: var(--soft); }
.intro { max-width: 42em; margin-top: 1.5rem; font-size: 1.0625rem; }
.intro p + p { margin-top: 0.9em; }
nav {
  display: flex; flex-wrap: wrap; gap: 0.35rem 1.75rem; margin-top: 2.25rem;
  font-size: 0.9375rem;
}
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; text-underline-offset: 0.25em; }
dl {
  display: grid; grid-auto-flow: dense;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: 1.25rem 2.5rem; margin-top: 2.5rem; padding: 1.5rem 0;
  border-block: 1px solid var(--rule);
}
dl .wide { grid-column: 1 / -1; }
dt { font-size: 0.8125rem; color: var(--soft); }
dd { font-size: 0.9375rem; white-space: pre-line; overflow-wrap: anywhere; }
section > .note {
  max-width: 60em; margin: 0.9rem 0 0; font-size: 0.8125rem; color: var(--soft);
}
section > .verdict {
  max-width: none; font-size: 1.1875rem; line-height: 1.5; text-wrap: balance;
}
.verdict strong { font-weight: 620; color: var(--accent); }

.scroll { overflow-x: auto; }
table {
  width: 100%; border-collapse: collapse; font-size: 0.9375rem;
  line-height: 1.4; font-variant-numeric: tabular-nums;
}
th, td {
  padding: 0.7rem 0.9rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--rule);
}
thead th, thead td {
  font-weight: 620; border-bottom: 1px solid var(--faint);
}
th:first-child { padding-left: 0.75rem; text-align: left; }
tbody th { min-width: 11rem; font-weight: 500; }
th small, td .delta, td .paper { display: block; }
td .delta, td .paper { font-size: 0.8125rem; white-space: nowrap; }
td .mean { white-space: nowrap; }
td strong { font-weight: 680; }
.left { text-align: left; }
.dev { font-size: 0.8125rem; color: var(--soft); }
.paper, .missing, .flat { color: var(--faint); }
.up { color: var(--accent); }
.down { color: var(--down); }
tbody th, thead > tr > :first-child {
  position: sticky; left: 0; background: var(--page);
}
tr.highlight > * { background: var(--tint); }
tr.highlight th { font-weight: 650; }
table.wins { width: auto; }
.wins thead th { max-width: 10rem; vertical-align: bottom;
  font-weight: 400; font-size: 0.8125rem; }

.panels {
  display: grid; gap: 2.25rem 3.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
}
figcaption { margin-bottom: 0.4rem; font-size: 0.9375rem; font-weight: 620; }
figcaption small { margin-left: 0.6em; }
.bar {
  display: grid; grid-template-columns: 11rem 1fr 3.6rem; align-items: center;
  column-gap: 0.9rem; padding: 0.1rem 0; font-size: 0.8125rem;
  line-height: 1.25;
}
.bar svg { width: 100%; height: 24px; overflow: visible; }
.bar rect { fill: var(--bar); }
.bar circle { fill: var(--page); stroke: var(--ink); stroke-width: 1.2; }
.bar .zero { stroke: var(--ink); }
.bar .base { stroke: var(--soft); stroke-dasharray: 2 2; }
.bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.bar .value { white-space: nowrap; }
.bar.highlight rect { fill: var(--accent); }
.bar.highlight .name { font-weight: 620; }
.stages { max-width: 46rem; }
.stages .bar { grid-template-columns: 15rem 1fr 6rem; }
.stages rect { fill: var(--accent); }
.stages .total {
  margin-top: 0.5rem; padding-top: 0.6rem; font-weight: 620;
  border-top: 1px solid var(--rule);
}

.gallery { min-width: calc(var(--columns) * 7rem); }
.pictures {
  display: grid; gap: 0.6rem; margin-bottom: 0.6rem;
  grid-template-columns: repeat(var(--columns), minmax(0, 20rem));
  break-inside: avoid;
}
.heads { font-size: 0.8125rem; color: var(--soft); break-after: avoid; }
.pictures img { display: block; width: 100%; border-radius: 3px; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; margin-top: 0.6rem;
  font-size: 0.8125rem; color: var(--soft);
}
.legend .of { min-width: 6.5rem; color: var(--ink); }
.legend i {
  display: inline-block; width: 0.7em; height: 0.7em; margin-right: 0.45em;
  border-radius: 2px; background: var(--c);
}
.legend .dashed {
  width: 1.3em; border-radius: 0;
  background: linear-gradient(90deg, var(--c) 38%, #0000 38% 62%, var(--c) 62%);
}

.charts {
  display: grid; gap: 3rem 3.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
}
.chart h3 { margin: 0; }
.chart .legend { margin: 0.15rem 0 0; }
.plot {
  display: block; width: 100%; height: auto; margin-top: 0.6rem;
  overflow: visible; font: 12px var(--text);
  font-variant-numeric: tabular-nums;
}
.plot text { fill: var(--soft); }
.plot .end { text-anchor: end; }
.plot .mid { text-anchor: middle; }
.plot .grid { stroke: var(--rule); }
.plot .axis { stroke: var(--faint); }
.curve {
  fill: none; stroke: var(--c); stroke-width: 1.75; stroke-linejoin: round;
  stroke-linecap: round;
}
.dashed .curve { stroke-dasharray: 5 4; }
.point circle { fill: var(--c); }
.point .hit { fill-opacity: 0; }
.point:hover .dot { r: 4px; }

footer {
  margin-top: 6rem; padding-top: 1.25rem; border-top: 1px solid var(--rule);
  font-size: 0.8125rem; color: var(--soft);
}
@media (max-width: 40rem) {
  body { padding: 2.5rem 1.1rem 2rem; }
  h1 { font-size: 1.9rem; }
  section { margin-top: 3.5rem; }
  .bar, .stages .bar { grid-template-columns: 7.5rem 1fr 4.4rem; }
  th, td { padding: 0.6rem; }
  tbody th { min-width: 7.5rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  :root { --page: #fff; }
  body { padding: 0; max-width: none; font-size: 9.5pt; }
  nav { display: none; }
  section { margin-top: 2.5rem; }
  h1, h2, h3, figcaption, h2 ~ p:not(.note) { break-after: avoid; }
  figure, p, tr, .bar { break-inside: avoid; }
  .panels, .charts {
    grid-template-columns: 1fr 1fr; column-gap: 2rem;
  }
  .scroll { overflow: visible; }
  .bar { grid-template-columns: 8rem 1fr 3rem; }
  th, td { padding: 0.4rem 0.5rem; }
}
"""
