"""What the parts of the model take of a compiled step, as its compiler sees it.

The text of a program for TPUs says of each operation where it comes from, by
the names of modules, and how many cycles the compiler expects of it.
"""

import collections
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

# Cycles, bytes, and bytes without cycles, by part and kind.
_Values: TypeAlias = dict[tuple[str, str], np.ndarray]

# Kinds of work.
PRODUCTS, ARITHMETIC, MOVES, SENT = "products", "arithmetic", "moves", "sent"
LOSSES, UPDATE = "losses", "update and the rest"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_PATH = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{|_computation=)([^},]*)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_METHOD = re.compile(r"Model\.(\w+)")
# Arrays are fetched ahead while others are worked on, and count where they are
# used.
_FETCH = re.compile(
  r"^(?:copy|slice|dynamic-slice)-(?:start|done) |\"ConcatBitcast\""
)
_LEAST_SHARE = 0.01  # of the cycles, for a row of its own

_IS_PRODUCT = {"convolution", "dot"}
_IS_SENT = {
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
}
_IS_MOVE = {
  "broadcast",
  "concatenate",
  "copy",
  "dynamic-slice",
  "dynamic-update-slice",
  "gather",
  "pad",
  "reshape",
  "reverse",
  "scatter",
  "slice",
  "sort",
  "transpose",
}
# What takes no time.
_IS_FREE = {
  "after-all",
  "bitcast",
  "constant",
  "get-tuple-element",
  "iota",
  "parameter",
  "partition-id",
  "tuple",
}


@dataclasses.dataclass(frozen=True)
class Work:
  """What some of a step's operations take.

  Attributes:
    part: of the model, or what else they are for.
    kind: `PRODUCTS`, `ARITHMETIC`, `MOVES` or `SENT`.
    cycles: that the compiler expects.
    num_bytes: of their operands and results.
    unknown_bytes: of those operations of which it expects nothing: sorts, and
      what is sent.
  """

  part: str
  kind: str
  cycles: int
  num_bytes: int
  unknown_bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  result: str  # its type
  opcode: str
  rest: str  # operands and attributes


def split_work(text: str, modules: Collection[str]) -> tuple[Work, ...]:
  """The work of a compiled step by part and kind.

  Parts are modules of the model and what is in them ("head_detection: pool"),
  its methods ("neck"), `LOSSES` and `UPDATE`; what takes less than a hundredth
  goes to its module. Kinds are `PRODUCTS` (convolutions and matrix products,
  with what is fused to them), `MOVES` (copies, transposes, padding, gathers,
  sorts), `SENT` (between chips) and `ARITHMETIC`. A loop counts as often as it
  says that it runs, and once where that depends on the data; of branches the
  last one counts.

  Args:
    text: of a program for TPUs, `jax.stages.Compiled.as_text`.
    modules: of the model, as its parameters have them.
  """
  computations, entry = _read(text.splitlines())
  by_part: _Values = collections.defaultdict(lambda: np.zeros(3, int))
  cycles: Counter[str] = collections.Counter()
  for path, kind, values in _operations(computations, entry):
    part = _part(path, modules)
    by_part[part, kind] += values
    cycles[part] += int(values[0])
  merged: _Values = collections.defaultdict(lambda: np.zeros(3, int))
  for (part, kind), values in by_part.items():
    is_small = cycles[part] < _LEAST_SHARE * cycles.total()
    merged[part.partition(":")[0] if is_small else part, kind] += values
  return tuple(
    Work(part, kind, *values.tolist())
    for (part, kind), values in merged.items()
  )


def table(work: Sequence[Work]) -> list[str]:
  """Lines that show each part's share of the work, for people.

  Args:
    work: see `split_work`.
  """
  shown = (PRODUCTS, ARITHMETIC, MOVES)
  cycles = max(1, sum(w.cycles for w in work))
  moved = max(1, sum(w.num_bytes for w in work))
  by_part: dict[str, list[Work]] = {}
  for w in work:
    by_part.setdefault(w.part, []).append(w)
  parts = sorted(by_part, key=lambda p: -sum(w.cycles for w in by_part[p]))
  rows: list[tuple[str, ...]] = [
    ("part", "cycles", *shown, "bytes", "not estimated")
  ]
  for part, those in [*((p, by_part[p]) for p in parts), ("all", work)]:
    by_kind = [sum(w.cycles for w in those if w.kind == kind) for kind in shown]
    rows.append(
      (
        part,
        f"{sum(w.cycles for w in those) / cycles:.1%}",
        *(f"{count / cycles:.1%}" for count in by_kind),
        f"{sum(w.num_bytes for w in those) / moved:.1%}",
        f"{sum(w.unknown_bytes for w in those) / moved:.1%}",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      [row[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    )
    for row in rows
  ]


def _read(
  lines: Iterable[str],
) -> tuple[dict[str, dict[str, _Instruction]], str]:
  """{computation: {name: instruction}}, and the one that is the program."""
  found: dict[str, dict[str, _Instruction]] = {}
  entry, current = "", None
  for line in lines:
    if match := _COMPUTATION.match(line):
      current = found[match[2]] = {}
      if match[1]:
        entry = match[2]
    elif current is not None and (match := _INSTRUCTION.match(line)):
      name, result, opcode, rest = match.groups()
      current[name] = _Instruction(result, opcode, rest)
  return found, entry


def _operations(
  computations: Mapping[str, Mapping[str, _Instruction]],
  name: str,
  times: int = 1,
) -> Iterator[tuple[str, str, np.ndarray]]:
  """Name, kind and work of what a computation does that runs so many times."""
  here = computations[name]
  for it in here.values():
    called = _CALLED.search(it.rest)
    if it.opcode == "while":
      condition = _CONDITION.search(it.rest)
      assert condition is not None and called is not None, it.rest
      loops = _trips(computations[condition[1]])
      yield from _operations(computations, called[1], times * loops)
    elif it.opcode == "call" and called:
      yield from _operations(computations, called[1], times)
    elif it.opcode == "conditional":
      branches = _BRANCHES.findall(it.rest)[-1].split(",")
      yield from _operations(computations, branches[-1].strip(" %"), times)
    elif it.opcode not in _IS_FREE and not _FETCH.search(
      f"{it.opcode} {it.rest}"
    ):
      path, cycles = _PATH.search(it.rest), _CYCLES.search(it.rest)
      operands = re.findall(r"%([\w.-]+)", it.rest.partition(")")[0])
      arrays = [it.result, *(here[x].result for x in operands if x in here)]
      num_bytes = sum(map(_num_bytes, arrays))
      yield (
        path[1] if path else "",
        _kind(it, computations),
        times
        * np.array(
          (int(cycles[1]), num_bytes, 0)
          if cycles
          else (0, num_bytes, num_bytes)
        ),
      )


def _trips(condition: Mapping[str, _Instruction]) -> int:
  """How often a loop runs that counts up to a constant; else 1."""
  those = condition.values()
  limits = [it.rest for it in those if it.opcode == "constant"]
  is_count = any("direction=LT" in it.rest for it in those) and all(
    it.opcode in _IS_FREE | {"compare"} for it in those
  )
  return (
    int(limits[0].partition(")")[0]) if is_count and len(limits) == 1 else 1
  )


def _kind(
  it: _Instruction,
  computations: Mapping[str, Mapping[str, _Instruction]],
) -> str:
  opcodes = {it.opcode}
  if it.opcode == "fusion" and (called := _CALLED.search(it.rest)):
    opcodes = _opcodes(called[1], computations) - _IS_FREE
  opcodes = {re.sub("-(start|done)$", "", opcode) for opcode in opcodes}
  if opcodes & _IS_PRODUCT:
    return PRODUCTS
  if opcodes & _IS_SENT:
    return SENT
  return MOVES if opcodes <= _IS_MOVE else ARITHMETIC


def _opcodes(
  name: str, computations: Mapping[str, Mapping[str, _Instruction]]
) -> set[str]:
  """Of a fused computation and those fused into it."""
  found = set()
  for it in computations.get(name, {}).values():
    if it.opcode == "fusion" and (called := _CALLED.search(it.rest)):
      found |= _opcodes(called[1], computations)
    else:
      found.add(it.opcode)
  return found


def _part(path: str, modules: Collection[str]) -> str:
  """Of "jit(step)/jvp(MustModel.head)/head_depth/conv1/add": head_depth: conv1.

  Args:
    path: an operation's name.
    modules: see `split_work`.
  """
  names = path.split("/")
  for place, name in enumerate(names):
    if name in modules:
      inner = "".join(names[place + 1 : place + 2]).removeprefix(f"{name}.")
      return f"{name}: {inner}" if inner.isidentifier() else name
  if method := _METHOD.search(path):  # by itself, such as to resize
    return method[1]
  return LOSSES if "jvp(" in path else UPDATE


def _num_bytes(result: str) -> int:
  """Of an array's or a tuple's type."""
  total = 0
  for kind, shape in _ARRAY.findall(result):
    bits = re.search(r"\d+", kind)
    size = max(1, int(bits[0]) // 8) if bits else 1  # pred
    total += size * math.prod(int(n) for n in shape.split(",") if n)
  return total
