"""One stand-alone HTML page that shows an experiment.

Styles, images and charts are inside the file: it can be mailed, archived and
printed, and it opens without a network. Its layout is `report_page.html`
(jinja2); charts are drawn by matplotlib. The same page is the same bytes.
"""

import base64
import dataclasses
import functools
import importlib
import io
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import must_jax
from must_jax.lab import result_table
from must_jax.lab.result_table import ResultTable
from must_jax.lab.stages import Stage
from must_jax.storage.path import publish, read_appended

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Rgb = tuple[int, int, int]
Curve = tuple[Sequence[float], Sequence[float]]

# Pixels of the longer side: what is smaller is enlarged, what is larger is
# reduced. Shown at up to half of it, sharp on dense screens and on paper.
_MIN_IMAGE_SIDE = 256
_MAX_IMAGE_SIDE = 640
# Longer curves are averaged down to this many points.
_MAX_POINTS = 160
_INK, _GREY, _ACCENT = "#1c2024", "#c3c8cb", "#0f766e"  # as in the style sheet
_COLORS = (_ACCENT, "#c0703a", "#5567c9", "#9b4a83", "#7d8330", "#59636e")
_CHART_STYLE: Any = {
  "axes.edgecolor": "#7f878e",
  "axes.labelcolor": "#5f676f",
  "axes.labelsize": 9,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 10,
  "figure.constrained_layout.h_pad": 0.14,  # inches
  "figure.constrained_layout.w_pad": 0.14,
  "font.family": ["DejaVu Sans"],
  "font.size": 9,
  "legend.fontsize": 9,
  "legend.frameon": False,
  "svg.fonttype": "none",
  "svg.hashsalt": "must_jax",  # else identifiers are random
  "text.parse_math": False,
  "xtick.color": "#5f676f",
  "ytick.color": "#5f676f",
}


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
    left: what of the labels the student reads.
  """

  teacher: str
  dataset: str
  metric: str
  validation: float
  pile: float | None
  left: str = ""


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
class Page:
  """Everything a page says; what is empty is left out.

  In all texts `backticks` are set as code.

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
  results: Mapping[str, ResultTable]
  label_quality: tuple[LabelQuality, ...] = ()
  galleries: tuple[Gallery, ...] = ()
  charts: tuple[Chart, ...] = ()
  stages: tuple[tuple[str, float], ...] = ()


def check_libraries() -> None:
  """Checks that the page can be drawn, before what it shows is computed.

  Raises:
    ValueError: matplotlib or jinja2 is not installed.
  """
  for name in ("matplotlib", "jinja2"):
    try:
      importlib.import_module(name)
    except ImportError:
      raise ValueError(
        f"The page of results needs {name}: pip install 'must_jax[lab]'"
      ) from None


def write(path: str | os.PathLike[str], page: Page) -> None:
  """Writes the page as one HTML file.

  Raises:
    ValueError: matplotlib or jinja2 is not installed.
  """
  check_libraries()
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("must_jax.lab", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    "prose": _prose,
    "paragraphs": lambda text: re.split(r"\n\s*\n", text.strip()),
    "percent": result_table.percent,
    "signed": lambda value: result_table.signed(value).replace("-", "−"),
    "duration": _duration,
    "picture": _picture,
    "bars": functools.partial(_svg, _draw_bars),
    "gains": functools.partial(_svg, _draw_gains),
    "curves": functools.partial(_svg, _draw_curves),
  }
  html = environment.get_template("report_page.html").render(
    page=page,
    version=must_jax.__version__,
    NOT_RUN=result_table.NOT_RUN,
    FLOOR=result_table.FLOOR,
  )
  with publish(path) as file:
    file.write(html.encode())


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
  for line in read_appended(metrics_jsonl_path).splitlines():
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


# --- Text and pictures --------------------------------------------------------


def _prose(text: str) -> Any:
  """HTML of a text, with `backticks` as code."""
  import markupsafe

  escaped = str(markupsafe.escape(text))
  return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  if seconds < 600:
    return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
  minutes = round(seconds / 60)
  if minutes < 60:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60:02} min"


def _picture(array: np.ndarray) -> str:
  """A data URL of a picture uint8 [H, W, 3], at a size to be looked at."""
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
  png, jpeg = io.BytesIO(), io.BytesIO()
  image.save(png, "png")
  image.save(jpeg, "jpeg", quality=90, subsampling=0)
  if len(png.getvalue()) <= len(jpeg.getvalue()):
    return _data_url("image/png", png)
  return _data_url("image/jpeg", jpeg)


def _data_url(kind: str, file: io.BytesIO) -> str:
  return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# --- Charts -------------------------------------------------------------------


def _svg(draw: Callable[[Any], "Figure"], data: Any) -> str:
  """A data URL of what a function draws of data."""
  import matplotlib

  file = io.BytesIO()
  with matplotlib.rc_context(_CHART_STYLE):
    draw(data).savefig(
      file,
      format="svg",
      transparent=True,
      metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
  return _data_url("image/svg+xml", file)


def _panels(count: int, height: float) -> tuple["Figure", list["Axes"]]:
  """A figure with axes in two columns, each so many inches high."""
  from matplotlib.figure import Figure

  lines = math.ceil(count / 2)
  figure = Figure(figsize=(10.5, height * lines), layout="constrained")
  axes = figure.subplots(lines, 2, squeeze=False).flatten().tolist()
  for empty in axes[count:]:
    empty.remove()
  return figure, axes[:count]


def _draw_bars(table: ResultTable) -> "Figure":
  """For each column a bar a row, from zero, with a dot for each seed."""
  names = [row.name for row in table.rows]
  height = 0.8 + 0.27 * len(names)
  figure, panels = _panels(len(table.columns), height)
  for index, axes in enumerate(panels):
    cells = [table.cell(row, index) for row in table.rows]
    _label_bars(
      axes,
      f"{table.columns[index].name}  {table.columns[index].metric}",
      names,
      [cell.mean for cell in cells],
      [
        result_table.NOT_RUN
        if cell.mean is None
        else result_table.percent(cell.mean)
        for cell in cells
      ],
      table.highlight,
    )
    for y, row in enumerate(table.rows):
      if seeds := [100 * value for value in row.values[index] or ()]:
        axes.plot(
          *(seeds, [y] * len(seeds), "o"),
          markersize=3.5,
          clip_on=False,
          markerfacecolor="white",
          markeredgecolor=_INK,
        )
    base = table.cell(table.row(table.baseline), index).mean
    if base is not None:
      axes.axvline(base, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)))
    if (floor := table.floor(index)) is not None:
      axes.axvline(floor, color=_INK, linewidth=0.8, linestyle=":")
  return figure


def _draw_gains(table: ResultTable) -> "Figure":
  """For each column how much rows are above one of them, in percent of it."""
  names = [row.name for row in table.rows if row.name != table.reference]
  columns = range(len(table.columns))
  gains = {(n, c): table.gain(n, c) for n in names for c in columns}
  known = [gain for gain in gains.values() if gain is not None]
  low, high = min([0.0, *known]), max([0.0, *known])
  figure, panels = _panels(len(table.columns), 0.8 + 0.27 * len(names))
  for index, axes in enumerate(panels):
    values = [gains[name, index] for name in names]
    _label_bars(
      axes,
      f"{table.columns[index].name}  {table.columns[index].metric}",
      names,
      values,
      [
        result_table.NOT_RUN
        if value is None
        else f"{result_table.signed(value).replace('-', '−')} %"
        for value in values
      ],
      table.highlight,
    )
    # One axis for all, as the paper's Figure 5.
    axes.set_xlim(low, high or 1)
    axes.axvline(0, color=_INK, linewidth=0.8)
  return figure


def _label_bars(
  axes: "Axes",
  title: str,
  names: Sequence[str],
  values: Sequence[float | None],
  texts: Sequence[str],
  highlight: str | None,
) -> None:
  """Draws bars from the top, with their names before and texts behind them."""
  colors = [_ACCENT if name == highlight else _GREY for name in names]
  places = range(len(names))
  axes.barh(places, [v or 0 for v in values], height=0.55, color=colors)
  axes.set_title(title, color=_INK, fontweight="bold")
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_yticks(places, names)
  axes.set_xticks([])
  for side in axes.spines.values():
    side.set_visible(False)
  axes.tick_params(length=0)
  for y, text in enumerate(texts):
    axes.annotate(
      text,
      (1, y),
      xycoords=("axes fraction", "data"),
      xytext=(10, 0),
      textcoords="offset points",
      verticalalignment="center",
      annotation_clip=False,
    )


def _draw_curves(charts: Sequence[Chart]) -> "Figure":
  """A panel for each chart."""
  from matplotlib import ticker

  figure, panels = _panels(len(charts), 3.2)
  for chart, axes in zip(charts, panels, strict=True):
    axes.set_title(chart.title, color=_INK, fontweight="bold")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="y", color="#e3e4e2", linewidth=0.8)
    curves = {
      name: _drawable(curve, chart.log_y)
      for name, curve in chart.series.items()
    }
    if not any(xs.size for xs, _ in curves.values()):
      axes.text(0.5, 0.5, "No points.", transform=axes.transAxes, ha="center")
      continue
    if chart.log_y:
      axes.set_yscale("log")
      axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_major_formatter("{x:g}")
      axes.yaxis.set_minor_locator(ticker.NullLocator())
    for index, (name, (xs, ys)) in enumerate(curves.items()):
      axes.plot(
        *(xs, ys),
        label=name,
        color=_COLORS[index % len(_COLORS)],
        linestyle="--" if index >= len(_COLORS) else "-",
        linewidth=1.5,
        # Few points are measurements to be seen, many are a line.
        marker="o" if xs.size <= 12 else "",
        markersize=3.5,
      )
    if len(curves) > 1:
      axes.legend()
  return figure


def _drawable(curve: Curve, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
  """The points that an axis has, neighbours averaged to `_MAX_POINTS`."""
  xs, ys = (np.asarray(values, float) for values in curve)
  kept = np.isfinite(xs) & np.isfinite(ys) & ((ys > 0) | (not log_y))
  xs, ys = xs[kept], ys[kept]
  starts = np.arange(0, xs.size, math.ceil(xs.size / _MAX_POINTS) or 1)
  if xs.size == starts.size:
    return xs, ys
  counts = np.diff([*starts, xs.size])
  return np.add.reduceat(xs, starts) / counts, (
    np.add.reduceat(ys, starts) / counts
  )
