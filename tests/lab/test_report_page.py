import base64
import dataclasses
import html.parser
import io
import json
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from must_jax.lab import report_page, result_table

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


TABLE = result_table.ResultTable(
  columns=(
    result_table.ResultColumn("CIFAR-100", "Classification top-1"),
    result_table.ResultColumn("Pascal", "Detection AP50"),
    result_table.ResultColumn("DIODE", "Normal"),
  ),
  rows=(
    result_table.ResultRow("SimCLR", ((0.871,), (0.751,), (0.528,))),
    result_table.ResultRow(
      "Supervised",
      ((0.850, 0.854, 0.858), (0.79, 0.80, 0.81), None),
      paper=(0.854, 0.793, 0.489),
    ),
    result_table.ResultRow(
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
  report_page.write(path, report_page.Page(**values))
  text = path.read_text(encoding="utf-8")
  return text, Page(text)


def _full(directory, word: str = "name") -> tuple[str, Page]:
  table = result_table.ResultTable(
    (result_table.ResultColumn(word, word),),
    (
      result_table.ResultRow(word, ((0.5, 0.6),)),
      result_table.ResultRow("b", ((0.7,),), (0.8,)),
    ),
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


def _drawings(page: Page) -> list[ElementTree.Element]:
  """The charts of a page."""
  prefix = "data:image/svg+xml;base64,"
  return [
    ElementTree.fromstring(base64.b64decode(a["src"].removeprefix(prefix)))
    for a in page.all("img")
    if a["src"].startswith(prefix)
  ]


def _words(drawing: ElementTree.Element) -> list[str]:
  return [
    "".join(element.itertext())
    for element in drawing.iter("{http://www.w3.org/2000/svg}text")
  ]


def test_page_is_well_formed_and_stands_alone(tmp_path):
  text, page = _full(tmp_path)
  assert text.startswith("<!DOCTYPE html>")
  # Base64 has none of these characters.
  assert not re.search(r"https?:|@import|url\(|<script|<link", text)
  for _, attrs in page.elements:
    assert attrs.get("src", "data:image/").startswith("data:image/")
    assert attrs.get("href", "#").startswith("#")
    assert not {"srcset", "data", "poster", "xlink:href"} & attrs.keys()
  for drawing in _drawings(page):
    for element in drawing.iter():
      for name, value in element.attrib.items():
        if name.endswith("href"):
          assert value.startswith("#")
        assert "url(" not in value.replace("url(#", "")
      assert "@import" not in (element.text or "")


def test_the_same_page_is_the_same_bytes(tmp_path):
  assert _full(tmp_path)[0] == _full(tmp_path)[0]


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(
    ValueError, match=rf"{name}: pip install 'must_jax\[lab\]"
  ):
    _write(tmp_path)


def test_a_floor_is_shown_and_drawn(tmp_path):
  table = dataclasses.replace(TABLE, floors=(0.1, 0.0, None))
  _, page = _write(tmp_path, results={"Results": table})
  (row,) = [row for row in page.rows if row and row[0].startswith("Floor")]
  assert [cell.strip() for cell in row] == [
    *("Floor: a constant", "10.0", "0.0", "not run")
  ]
  assert "dotted: the floor" in " ".join(page.text.split())
  _, plain = _write(tmp_path)
  assert "Floor" not in plain.text and "dotted" not in plain.text
  # A line in each panel that has a floor.
  (drawn,), (before,) = map(_drawings, (page, plain))
  paths = [
    len([*d.iter("{http://www.w3.org/2000/svg}path")]) for d in (drawn, before)
  ]
  assert paths[0] == paths[1] + 2


def test_gains_are_drawn_from_zero_to_either_side(tmp_path):
  table = result_table.ResultTable(
    (
      result_table.ResultColumn("a", "AP"),
      result_table.ResultColumn("b", "AP"),
    ),
    (
      result_table.ResultRow("first", ((0.5,), (0.5,))),
      result_table.ResultRow("worse", ((0.4,), None)),
      result_table.ResultRow("better", ((0.8,), (0.5,))),
    ),
    baseline="first",
    reference="first",
  )
  _, page = _write(tmp_path, results={"Results": table})
  assert "Above first, in percent of its figure" in page.text.replace("\n", " ")
  left, right = report_page._draw_gains(table).axes
  assert [bar.get_width() for bar in left.patches] == pytest.approx([-20, 60])
  assert [bar.get_width() for bar in right.patches] == [0, 0]
  for axes in (left, right):
    assert axes.get_xlim() == pytest.approx((-20, 60))
  _, gains = _drawings(page)
  assert {"−20.0 %", "+60.0 %", "+0.0 %", "not run"} <= set(_words(gains))


def test_nothing_that_was_run_is_no_error(tmp_path):
  table = result_table.ResultTable(
    (result_table.ResultColumn("a", "AP"),),
    (
      result_table.ResultRow("first", (None,)),
      result_table.ResultRow("second", (None,)),
    ),
    baseline="first",
    highlight="second",
    reference="first",
  )
  _, page = _write(tmp_path, results={"Results": table})
  assert "beats" not in page.text
  assert all("not run" in _words(drawing) for drawing in _drawings(page))


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
  for drawing in _drawings(page):
    assert not list(drawing.iter("{http://www.w3.org/2000/svg}script"))
    assert any(NASTY in word for word in _words(drawing))


def test_backticks_are_code(tmp_path):
  text, page = _write(tmp_path, intro="Run `a <b>`.\n\nThen wait.")
  assert "<p>Run <code>a &lt;b&gt;</code>.</p>" in text
  assert "<p>Then wait.</p>" in text
  assert len(page.all("code")) == 1


def test_dollars_are_dollars(tmp_path):
  chart = report_page.Chart("$x^2$", "x", "$y", {"a_1": ([0, 1], [1, 2])})
  _, page = _write(tmp_path, charts=(chart,))
  assert {"$x^2$", "$y"} <= set(_words(_drawings(page)[-1]))


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


def test_a_quote_stands_before_its_table(tmp_path):
  table = dataclasses.replace(TABLE, quote="Paper 1: a < b.")
  text, page = _write(tmp_path, results={"Results": table})
  assert len(page.all("blockquote")) == 1
  before, quote, after = text.partition("Paper 1: a &lt; b.")
  assert quote
  assert '<table class="results"' in after
  assert '<table class="results"' not in before
  _, page = _write(tmp_path)
  assert not page.all("blockquote")


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
    page.text.replace("\n", " ")
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


def test_bars_are_of_means_and_have_a_dot_per_seed(tmp_path):
  _, page = _write(tmp_path)
  figure = report_page._draw_bars(TABLE)
  means = [[87.1, 85.4, 85.2], [75.1, 80.0, 85.0], [52.8, 0, 0]]
  # Of the dots of each row that was run, and of the baseline's dashed line.
  points = [[1, 3, 3, 2], [1, 3, 3, 2], [1]]
  for axes, bars, numbers in zip(figure.axes, means, points, strict=True):
    found = [bar.get_width() for bar in axes.patches]
    assert found == pytest.approx(bars, abs=0.05)
    assert axes.get_xlim()[0] == 0
    assert [len(line.get_xdata()) for line in axes.get_lines()] == numbers
  for axes, base in zip(figure.axes, (85.4, 80.0), strict=False):
    assert axes.get_lines()[-1].get_xdata()[0] == pytest.approx(base)
  (drawing,) = _drawings(page)
  words = _words(drawing)
  assert words.count("MuST") == 3
  assert words.count("not run") == 2
  assert {"85.2", "Pascal  Detection AP50"} <= set(words)


def test_label_quality(tmp_path):
  rows = (
    report_page.LabelQuality(
      "detector", "Boxes", "AP50", 0.714, 0.6634, "9 boxes (50.0%)"
    ),
    report_page.LabelQuality("midas", "mix", "δ<1.25", 0.9, None),
  )
  _, page = _write(tmp_path, label_quality=rows)
  assert [[c.strip() for c in row] for row in page.rows[-2:]] == [
    ["detector", "Boxes", "AP50", "71.4", "66.3", "9 boxes (50.0%)"],
    ["midas", "mix", "δ<1.25", "90.0", "not known", ""],
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
  _, element = page.all("img")  # after the bars
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


def _draw(*charts):
  figure = report_page._draw_curves(charts)
  figure.canvas.draw()
  return figure.axes


def test_a_linear_chart():
  chart = report_page.Chart(
    "c", "step", "loss", {"a": ([0, 500, 1000], [0, 1, 5])}
  )
  (axes,) = _draw(chart)
  (line,) = axes.get_lines()
  assert line.get_xydata().tolist() == [[0, 0], [500, 1], [1000, 5]]
  assert axes.get_yscale() == "linear"
  assert axes.get_title() == "c"
  assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")
  assert axes.get_legend() is None


def test_a_logarithmic_chart_leaves_out_what_it_cannot_show():
  chart = report_page.Chart(
    "c", "step", "loss", {"a": ([0, 1, 2, 3], [1, 0.1, 0, 0.01])}, log_y=True
  )
  (axes,) = _draw(chart)
  (line,) = axes.get_lines()
  assert line.get_xydata().tolist() == [[0, 1], [1, 0.1], [3, 0.01]]
  assert axes.get_yscale() == "log"
  labels = {label.get_text() for label in axes.get_yticklabels()}
  assert {"0.01", "0.1", "1"} <= labels


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
  _, page = _write(tmp_path, charts=(chart,))
  drawable = [y for y in ys if np.isfinite(y) and (y > 0 or not log_y)]
  drawing = _drawings(page)[-1]
  assert ("No points." in _words(drawing)) == (not drawable)
  (axes,) = _draw(chart)
  lines = [line.get_ydata().tolist() for line in axes.get_lines()]
  assert lines == [drawable] * bool(drawable)


def test_long_curves_are_averaged(tmp_path):
  ys = [0.0, 2.0] * 50_000
  chart = report_page.Chart("c", "x", "y", {"a": (range(100_000), ys)})
  (axes,) = _draw(chart)
  (line,) = axes.get_lines()
  assert 100 < len(line.get_xdata()) <= 160
  np.testing.assert_allclose(line.get_ydata(), 1, atol=0.01)
  assert len(_write(tmp_path, charts=(chart,))[0]) < 100_000


def test_no_two_series_look_alike():
  series = {f"s{i}": ([0, 1], [i, i + 1]) for i in range(8)}
  (axes,) = _draw(report_page.Chart("c", "x", "y", series))
  looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
  assert len(set(looks)) == 8
  names = [text.get_text() for text in axes.get_legend().get_texts()]
  assert names == list(series)


def test_each_chart_has_a_panel(tmp_path):
  charts = tuple(
    report_page.Chart(name, "x", "y", {"a": ([0, 1], [1, 2])})
    for name in ("one", "two", "three")
  )
  assert len(_draw(*charts)) == 3
  _, page = _write(tmp_path, charts=charts)
  assert {"one", "two", "three"} <= set(_words(_drawings(page)[-1]))
  assert "three: y over x" in page.all("img")[-1]["alt"]


def test_stages(tmp_path):
  stages = (("teach", 75.0), ("label", 7.25), ("learn", 7500.0))
  text, page = _write(tmp_path, stages=stages)
  rows = [[cell.strip() for cell in row] for row in page.rows[-4:]]
  assert rows == [
    ["teach", "", "1 min 15 s"],
    ["label", "", "7.2 s"],
    ["learn", "", "2 h 05 min"],
    ["Sum of these", "", "2 h 06 min"],
  ]
  widths = re.findall(r"width: ([\d.]+)%\"></i>", text)
  assert widths == ["1.00", "0.10", "100.00"]


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
