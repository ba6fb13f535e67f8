"""What a compiled program sends between chips, from its text (HLO)."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations={([^}]*)}")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a kind in one run of a program.

  Attributes:
    kind: "all-reduce" and the like.
    count: how often one is done.
    payload: bytes of the whole arrays, on the side where they are whole.
    sent: bytes that each chip sends at least, whatever the algorithm.
  """

  kind: str
  count: int
  payload: float
  sent: float


def collectives(text: str, num_devices: int) -> list[Collective]:
  """The collectives of a compiled program.

  Those in a loop count as often as it runs, if it counts to a constant; a loop
  whose end depends on data counts once. What is sent while something else is
  computed appears in several places with one channel, and counts once.

  Args:
    text: of `jax.stages.Compiled.as_text`.
    num_devices: that the program runs on.
  """
  bodies = _computations(text)
  runs = _runs(bodies)
  found: dict[str, tuple[str, int, float, float]] = {}
  for name, lines in bodies.items():
    for line in lines:
      match = _COLLECTIVE.search(line)
      if not match or not runs[name]:
        continue
      kind, parts = match[2], _group_size(line, num_devices)
      payload = _whole(kind, _num_bytes(match[1]), parts, bool(match[3]))
      # XLA's name of an all-reduce of which each chip keeps its part.
      if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      sent = payload * _SENT[kind](parts)
      channel = re.search(r"channel_id=(\d+)", line)
      key = channel[1] if channel else line
      found[key] = kind, runs[name], payload, sent
  totals: dict[str, Collective] = {}
  for kind, count, payload, sent in found.values():
    old = totals.get(kind, Collective(kind, 0, 0, 0))
    totals[kind] = Collective(
      kind,
      old.count + count,
      old.payload + count * payload,
      old.sent + count * sent,
    )
  return sorted(totals.values(), key=lambda x: -x.sent)


# By kind: bytes that one of n chips sends, as a part of the whole array.
_SENT = {
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-gather": lambda n: (n - 1) / n,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}


def _computations(text: str) -> dict[str, list[str]]:
  """Lines of each computation, by name; the entry is the last."""
  bodies: dict[str, list[str]] = {}
  current: list[str] = []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = bodies.setdefault(match[1], [])
    elif line.startswith("  "):
      current.append(line)
  return bodies


def _runs(bodies: dict[str, list[str]]) -> collections.Counter[str]:
  """How often each computation runs."""
  runs: collections.Counter[str] = collections.Counter()

  def visit(name: str, times: int) -> None:
    if times <= runs[name]:
      return
    runs[name] = times
    for line in bodies.get(name, ()):
      trips = _trips(line, bodies)
      for called in _called(line):
        visit(called, times * trips)

  visit(list(bodies)[-1], 1)
  return runs


def _called(line: str) -> Iterator[str]:
  yield from _CALLED.findall(line)
  for names in _BRANCHES.findall(line):
    yield from re.findall(r"[\w.-]+", names)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
  """How often a line runs what it calls: 1, but for loops that count."""
  loop = _WHILE.search(line)
  if not loop:
    return 1
  if known := re.search(r'known_trip_count\\?":{\\?"n\\?":\\?"(\d+)', line):
    return int(known[1])
  condition = "\n".join(bodies.get(loop[1], ()))
  limits = re.findall(r"= s32\[\]\S* constant\((\d+)\)", condition)
  counts = re.search(r"ROOT .* compare\(.*direction=LT", condition)
  return int(limits[0]) if counts and len(limits) == 1 else 1


def _num_bytes(types: str) -> float:
  """Bytes of "f32[8,4]{1,0}" or a tuple of such; scalars of a handle do not
  count.
  """
  total = 0.0
  for name, bits, shape in _ARRAY.findall(types):
    if name == "u32" and not shape:
      continue
    sizes = map(int, filter(None, shape.split(",")))
    total += math.prod(sizes) * (8 if name == "pred" else int(bits)) / 8
  return total


def _whole(kind: str, num_bytes: float, parts: int, is_start: bool) -> float:
  """Bytes of the whole array, from those that the line shows.

  What is started shows operands and results, else there are only results.
  """
  if kind == "all-reduce":
    return num_bytes
  if kind in ("all-gather", "reduce-scatter"):
    if is_start:
      return num_bytes * parts / (parts + 1)
    return num_bytes * (parts if kind == "reduce-scatter" else 1)
  return num_bytes / 2 if is_start else num_bytes


def _group_size(line: str, num_devices: int) -> int:
  """Devices that take part in one collective together."""
  if match := re.search(r"replica_groups={{([\d,]+)}", line):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
    return int(match[1])
  if match := re.search(r"replica_groups=mesh\[(.*?)\].*? {('[^}]*)}", line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    # Of an axis, or of a part of it: 'x' or 'x':(2)4.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  return num_devices
