import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from must_jax.lab import report_page, tables

VOID = {"meta", "img", "br", "link", "hr", "input"}
NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(html.parser.HTMLParser):
  """Parses a page, checks that its tags balance, keeps elements and text."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.elements: list[tuple[str, dict[str, str | None]]] = []
    self.rows: list[list[str]] = []  # text of each table row's cells
    self.text = ""
    self.feed(text)
    self.close()
    assert not self.open, f"not closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.text += data
    if "td" in self.open or "th" in self.open:
      self.rows[-1][-1] += f"{data.strip()} "

  def all(self, tag: str, **attrs: str) -> list[dict[str, str | None]]:
    return [
      found
      for name, found in self.elements
      if name == tag and all(found.get(k) == v for k, v in attrs.items())
    ]


TABLE = tables.Table(
  columns=(
    tables.Column("CIFAR-100", "Classification top-1"),
    tables.Column("Pascal", "Detection AP50"),
    tables.Column("DIODE", "Normal"),
  ),
  rows=(
    tables.Row("SimCLR", ((0.871,), (0.751,), (0.528,))),
    tables.Row(
      "Supervised",
      ((0.850, 0.854, 0.858), (0.79, 0.80, 0.81), None),
      paper=(0.854, 0.793, 0.489),
    ),
    tables.Row(
      "MuST",
      ((0.851, 0.852, 0.853), (0.85, 0.85, 0.85), None),
      paper=(0.863, 0.851, 0.527),
    ),
  ),
  baseline="Supervised",
  highlight="MuST",
)


def _image(height: int, width: int) -> np.ndarray:
  ys, xs = np.mgrid[:height, :width]
  return np.stack(
    [255 * ys / height, 255 * xs / width, np.full_like(ys, 99)], -1
  ).astype(np.uint8)


def _write(directory, **parts) -> tuple[str, Page]:
  values = {
    "title": "T",
    "intro": "",
    "facts": {},
    "results": {"Results": TABLE},
  } | parts
  path = directory / "report.html"
  report_page.write(path, report_page.Report(**values))
  text = path.read_text(encoding="utf-8")
  return text, Page(text)


def _full(directory, word: str = "name") -> tuple[str, Page]:
  table = tables.Table(
    (tables.Column(word, word),),
    (tables.Row(word, ((0.5, 0.6),)), tables.Row("b", ((0.7,),), (0.8,))),
    baseline=word,
    highlight="b",
  )
  gallery = report_page.Gallery(
    word, word, (word,), ((_image(8, 8),),), {word: {word: (1, 2, 3)}}
  )
  chart = report_page.Chart(word, word, word, {word: ([1, 2], [3, 4])})
  return _write(
    directory,
    title=word,
    intro=word,
    facts={word: word},
    results={"Results": table},
    label_quality=(report_page.LabelQuality(word, word, word, 0.5, 0.25),),
    galleries=(gallery,),
    charts=(chart,),
    stages=((word, 61.0),),
  )


def test_page_is_well_formed_and_stands_alone(tmp_path):
  text, page = _full(tmp_path)
  assert text.startswith("<!DOCTYPE html>")
  # Base64 has none of these characters.
  assert not re.search(r"https?:|@import|url\(|<script|<link", text)
  for _, attrs in page.elements:
    assert attrs.get("src", "data:image/").startswith("data:image/")
    assert attrs.get("href", "#").startswith("#")
    assert not {"srcset", "data", "poster", "xlink:href"} & attrs.keys()


def test_gains_are_drawn_from_zero_to_either_side(tmp_path):
  table = tables.Table(
    (tables.Column("a", "AP"), tables.Column("b", "AP")),
    (
      tables.Row("first", ((0.5,), (0.5,))),
      tables.Row("worse", ((0.4,), None)),
      tables.Row("better", ((0.8,), (0.5,))),
    ),
    baseline="first",
    reference="first",
  )
  text, page = _write(tmp_path, results={"Results": table})
  assert "Above first, in percent of its figure" in page.text
  drawn = text[text.index("Relative gains") : text.index("Who beats whom")]
  # From -20 % to 60 %: zero lies at a quarter.
  bars = re.findall(r'<rect x="([\d.]+)%".*? width="([\d.]+)%"', drawn)
  assert bars == [("0.00", "25.00"), ("25.00", "75.00"), ("25.00", "0.00")]
  values = re.findall(r'class="value">(.*?)</span>', drawn)
  assert values[0] == "−20.0 %"
  assert "not run" in values[2]
  assert values[1::2] == ["+60.0 %", "+0.0 %"]


def test_links_lead_to_sections(tmp_path):
  _, page = _full(tmp_path)
  anchors = [attrs["id"] for attrs in page.all("section")]
  assert [a["href"] for a in page.all("a")] == [f"#{a}" for a in anchors]
  assert anchors == ["results-0", "teachers", "gallery-0", "training", "time"]


def test_empty_parts_are_left_out(tmp_path):
  _, page = _write(tmp_path)
  assert [attrs["id"] for attrs in page.all("section")] == ["results-0"]
  assert not page.all("dl")


def test_text_is_escaped(tmp_path):
  text, page = _full(tmp_path, NASTY)
  assert not page.all("script")
  assert "<script" not in text
  assert NASTY in page.text


def test_backticks_are_code(tmp_path):
  text, _ = _write(tmp_path, intro="Run `a <b>`.\n\nThen wait.")
  assert "<p>Run <code>a &lt;b&gt;</code>.</p><p>Then wait.</p>" in text


def test_results_table(tmp_path):
  _, page = _write(tmp_path)
  rows = [[cell.split() for cell in row] for row in page.rows[1:4]]
  assert rows == [
    [
      ["SimCLR", "ahead", "in", "1", "of", "2"],
      ["87.1", "+1.7"],
      ["75.1", "−4.9"],
      ["52.8"],
    ],
    [
      ["Supervised", "baseline"],
      ["85.4", "±0.4", "paper", "85.4"],
      ["80.0", "±1.0", "paper", "79.3"],
      ["not", "run", "paper", "48.9"],
    ],
    [
      ["MuST", "ahead", "in", "1", "of", "2"],
      ["85.2", "±0.1", "−0.2", "paper", "86.3", "(+0.9)"],
      ["85.0", "±0.0", "+5.0", "paper", "85.1", "(+5.8)"],
      ["not", "run", "paper", "52.7", "(+3.8)"],
    ],
  ]


def _deltas(text: str) -> list[tuple[str, str]]:
  return re.findall(r'class="delta (\w+)">(.*?)<', text)


def test_marks_of_deltas_and_best(tmp_path):
  text, page = _write(tmp_path)
  body = text.split('<table class="results">')[1].split("</table>")[0]
  assert re.findall(r"<strong>(.*?)</strong>", body) == ["87.1", "85.0"]
  # One seed of SimCLR; deviations of 0.4 and 1.0 of Supervised.
  assert _deltas(body) == [
    *(("flat", "+1.7"), ("flat", "−4.9")),
    *(("flat", "−0.2"), ("up", "+5.0")),
  ]
  assert "MuST beats Supervised on 1 of 2 downstream tasks; +2.4 points" in (
    page.text
  )
  other = dataclasses.replace(TABLE, baseline="MuST")
  text, _ = _write(tmp_path, results={"Results": other})
  assert ("down", "−5.0") in _deltas(text)


def test_who_beats_whom(tmp_path):
  _, page = _write(tmp_path)
  rows = [[cell.replace(" ", "") for cell in row] for row in page.rows[5:8]]
  assert rows == [
    ["SimCLR", "–", "1/2", "1/2"],
    ["Supervised", "1/2", "–", "1/2"],
    ["MuST", "1/2", "1/2", "–"],
  ]


def test_bars_are_proportional_and_have_a_dot_per_seed(tmp_path):
  _, page = _write(tmp_path)
  bars = [float(a["width"].rstrip("%")) for a in page.all("rect")]
  means = [87.1, 85.4, 85.2, 75.1, 80.0, 85.0, 52.8]
  assert len(bars) == len(means)
  for bar, mean, top in zip(
    bars, means, [87.1] * 3 + [85.0] * 3 + [52.8], strict=True
  ):
    assert bar == pytest.approx(bars[0] * mean / top, abs=0.02)
  assert len(page.all("circle")) == 1 + 3 + 3 + 1 + 3 + 3 + 1


def test_label_quality(tmp_path):
  rows = (
    report_page.LabelQuality("detector", "Boxes", "AP50", 0.714, 0.6634),
    report_page.LabelQuality("midas", "mix", "δ<1.25", 0.9, None),
  )
  _, page = _write(tmp_path, label_quality=rows)
  assert [[c.strip() for c in row] for row in page.rows[-2:]] == [
    ["detector", "Boxes", "AP50", "71.4", "66.3"],
    ["midas", "mix", "δ<1.25", "90.0", "not known"],
  ]


@pytest.mark.parametrize(
  ("shape", "shown"),
  [
    ((64, 64), (256, 256)),
    ((50, 100), (150, 300)),
    ((300, 400), (300, 400)),
    ((800, 1280), (400, 640)),
  ],
)
def test_pictures_are_embedded_at_a_size_to_look_at(tmp_path, shape, shown):
  image = _image(*shape)
  gallery = report_page.Gallery("g", "c", ("image",), ((image,),))
  _, page = _write(tmp_path, galleries=(gallery,))
  (element,) = page.all("img")
  data = element["src"].split(";base64,")[1]
  decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  assert decoded.shape == (*shown, 3)
  ys = (np.arange(shown[0]) * shape[0]) // shown[0]
  xs = (np.arange(shown[1]) * shape[1]) // shown[1]
  error = np.abs(decoded.astype(float) - image[ys][:, xs])
  assert error.max() < 12


@pytest.mark.parametrize(
  "row",
  [
    (np.zeros((4, 4, 3), np.uint8),) * 2,
    (np.zeros((4, 4, 3), np.float32),),
    (np.zeros((4, 4), np.uint8),),
  ],
)
def test_bad_galleries_are_refused(row):
  with pytest.raises(ValueError, match=r"expected"):
    report_page.Gallery("g", "", ("image",), (row,))


def _curves(page: Page) -> list[list[tuple[float, float]]]:
  return [
    [tuple(map(float, p.split(","))) for p in a["points"].split()]
    for a in page.all("polyline")
  ]


def _ticks(text: str) -> list[str]:
  return re.findall(r'<text class="tick \w+"[^>]*>(.*?)</text>', text)


def test_linear_chart(tmp_path):
  chart = report_page.Chart(
    "c", "step", "loss", {"a": ([0, 500, 1000], [0, 1, 5])}
  )
  text, page = _write(tmp_path, charts=(chart,))
  ys = ["0", "1", "2", "3", "4", "5"]
  xs = ["0", "200", "400", "600", "800", "1k"]
  assert _ticks(text) == ys + xs
  ((start, middle, end),) = _curves(page)
  assert middle[0] - start[0] == pytest.approx(end[0] - middle[0], abs=0.2)
  assert start[0] < end[0]
  rise = start[1] - end[1]  # y points down
  assert rise > 0
  assert start[1] - middle[1] == pytest.approx(rise / 5, abs=0.2)
  assert "a, step 500: 1" in page.text


def test_log_chart(tmp_path):
  chart = report_page.Chart(
    "c", "step", "loss", {"a": ([0, 1, 2, 3], [1, 0.1, 0, 0.01])}, log_y=True
  )
  text, page = _write(tmp_path, charts=(chart,))
  assert _ticks(text)[:3] == ["0.01", "0.1", "1"]
  ((first, second, third),) = _curves(page)  # the zero is left out
  assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)
  assert first[1] < third[1]


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
  "ys",
  [
    [2.0],
    [0.3, 0.3],
    [0.31, 0.312],
    [1e-9, 1e9],
    [float("nan"), 1.0, float("inf")],
    [float("nan")],
    [-5.0, 0.0],
    [],
  ],
)
def test_any_curve_can_be_drawn(tmp_path, ys, log_y):
  chart = report_page.Chart("c", "x", "y", {"a": (range(len(ys)), ys)}, log_y)
  text, page = _write(tmp_path, charts=(chart,))
  drawable = [y for y in ys if np.isfinite(y) and (y > 0 or not log_y)]
  assert [len(curve) for curve in _curves(page)] == [len(drawable)] * bool(
    drawable
  )
  assert ("No points." in text) == (not drawable)
  if drawable:
    assert len(_ticks(text)) >= 3
  for curve in _curves(page):
    assert all(0 <= x <= 480 and 0 <= y <= 280 for x, y in curve)


def test_long_curves_are_averaged(tmp_path):
  ys = [0.0, 2.0] * 50_000
  chart = report_page.Chart("c", "x", "y", {"a": (range(100_000), ys)})
  text, page = _write(tmp_path, charts=(chart,))
  (curve,) = _curves(page)
  assert 100 < len(curve) <= 200
  assert len({y for _, y in curve}) < 3
  assert len(text) < 100_000


def test_no_two_series_look_alike(tmp_path):
  series = {f"s{i}": ([0, 1], [i, i + 1]) for i in range(8)}
  chart = report_page.Chart("c", "x", "y", series)
  _, page = _write(tmp_path, charts=(chart,))
  looks = [(a.get("class"), a["style"]) for a in page.all("i")]
  assert len(set(looks)) == 8
  drawn = [(a.get("class"), a.get("style")) for a in page.all("g")]
  assert [look for look in drawn if look[1]] == looks


def test_stages(tmp_path):
  stages = (("teach", 75.0), ("label", 7.25), ("learn", 7500.0))
  _, page = _write(tmp_path, stages=stages)
  text = page.text[page.text.index("Where the time went", 200) :]
  assert "teach1 min 15 slabel7.2 slearn2 h 05 min" in text
  assert "Sum of these2 h 06 min" in text
  bars = [float(a["width"].rstrip("%")) for a in page.all("rect")][-3:]
  assert bars == [1.0, 0.1, 100.0]


def test_read_curve(tmp_path):
  path = tmp_path / "metrics.jsonl"
  records = [
    {"step": 10, "det/loss": 3.0, "loss": 5.0},
    {"step": 20, "det/loss": 2.0},
    {"step": 20, "val/AP50": 0.5},
    {"step": 30, "det/loss": 1.0},
  ]
  lines = [json.dumps(record) for record in records]
  # Killed in the middle of a line, resumed from step 10.
  again = json.dumps({"step": 20, "det/loss": 2.5})
  path.write_text("\n".join([*lines, '{"step": 4', again]) + "\n")
  assert report_page.read_curve(path, "det/loss") == (
    [10, 20, 30],
    [3.0, 2.5, 1.0],
  )
  assert report_page.read_curve(path, "val/AP50") == ([20], [0.5])
  with pytest.raises(ValueError, match=r"no 'depth/loss'.*'det/loss'"):
    report_page.read_curve(path, "depth/loss")
