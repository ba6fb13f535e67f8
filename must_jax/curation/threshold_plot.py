"""Small charts of curves over scores, as an SVG that needs no library."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_COLUMNS = 4
_SIDE, _GAP, _TOP, _LEFT = 180, 56, 52, 40  # pixels of a panel and around it
# Apart for those who do not see all colours, too (Okabe & Ito 2008).
_COLORS = ("#0072b2", "#d55e00", "#888888")
_MAX_POINTS = 300  # of a curve


class ClassChart(NamedTuple):
  """Curves of one class.

  Attributes:
    title: above them.
    note: below the title.
    curves: by name, x and y [n] within 0 and 1; all panels have the same names.
    mark: the score that is marked.
  """

  title: str
  note: str
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
  mark: float


def draw(panels: Sequence[ClassChart]) -> str:
  """The panels in rows, with a legend above them.

  Args:
    panels: at least one.
  """
  columns = min(_COLUMNS, len(panels))
  width = max(_LEFT + columns * (_SIDE + _GAP), 620)
  height = _TOP + -(-len(panels) // columns) * (_SIDE + _GAP) + 10
  parts = []
  for i, name in enumerate(panels[0].curves):
    parts.append(
      f'<path d="M{_LEFT + 130 * i} 14h22" stroke="{_COLORS[i]}"'
      ' stroke-width="2"/>' + _text(name, _LEFT + 130 * i + 28, 18)
    )
  parts.append(_text("by score; dashed: the threshold", _LEFT + 390, 18))
  for i, panel in enumerate(panels):
    row, column = divmod(i, columns)
    x, y = _LEFT + column * (_SIDE + _GAP), _TOP + row * (_SIDE + _GAP)
    parts.append(f'<g transform="translate({x} {y})">{_draw(panel)}</g>')
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    f' width="{width}" height="{height}" font-family="sans-serif"'
    f' font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>'
    f"{''.join(parts)}</svg>\n"
  )


def _draw(panel: ClassChart) -> str:
  parts = [
    f'<rect width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#ccc"/>',
    _text(panel.title, 0, -16, weight="bold"),
    _text(panel.note, 0, -4, fill="#666"),
  ]
  for tick in (0, 0.25, 0.5, 0.75, 1):
    place = _SIDE * tick
    parts += [
      f'<path d="M{place:g} 0v{_SIDE}M0 {place:g}h{_SIDE}" stroke="#eee"/>',
      _text(f"{tick:g}", place, _SIDE + 14, anchor="middle", fill="#666"),
      _text(f"{1 - tick:.0%}", -5, place + 4, anchor="end", fill="#666"),
    ]
  for (x, y), color in zip(panel.curves.values(), _COLORS, strict=False):
    some = slice(None, None, max(1, len(x) // _MAX_POINTS))
    points = " ".join(
      f"{_SIDE * a:.1f},{_SIDE * (1 - b):.1f}"
      for a, b in zip(x[some], y[some], strict=True)
    )
    parts.append(
      f'<polyline points="{points}" fill="none" stroke="{color}"'
      ' stroke-width="1.6"/>'
    )
  mark = _SIDE * panel.mark
  parts.append(
    f'<path d="M{mark:.1f} 0V{_SIDE}" stroke="#000" stroke-dasharray="4 3"/>'
  )
  return "".join(parts)


def _text(
  text: str,
  x: float,
  y: float,
  *,
  anchor: str = "start",
  weight: str = "normal",
  fill: str = "#222",
) -> str:
  return (
    f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}"'
    f' fill="{fill}">{html.escape(text)}</text>'
  )
