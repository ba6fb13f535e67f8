"""Which numbers an option takes."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Interval:
  """Numbers between two bounds, which are among them unless `open_*` is set.

  Infinity and NaN are in none.
  """

  low: float
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def __contains__(self, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below and math.isfinite(value)

  def __str__(self) -> str:
    low = f"more than {self.low:g}" if self.open_low else f"{self.low:g}"
    if self.high == math.inf:
      return low if self.open_low else f"{low} or more"
    if self.open_high:
      return f"{low} or more, below {self.high:g}"
    if self.open_low:
      return f"{low}, at most {self.high:g}"
    return f"{low} to {self.high:g}"


ANY = Interval(-math.inf)
NOT_NEGATIVE = Interval(0)
POSITIVE = Interval(0, open_low=True)
AT_LEAST_1 = Interval(1)
FRACTION = Interval(0, 1)
POSITIVE_FRACTION = Interval(0, 1, open_low=True)
DECAY = Interval(0, 1, open_high=True)  # of what is averaged over time


def check(
  values: Mapping[str, Any],
  ranges: Mapping[str, Interval],
  prefix: str = "",
) -> None:
  """Checks the numbers, and those in tuples and mappings, among some values.

  Args:
    values: by name.
    ranges: by name; where there is none, a number need only be finite.
    prefix: of the names in messages.

  Raises:
    ValueError: one is out of its range.
  """
  for name, value in values.items():
    numbers: Collection[Any] = (value,)
    if isinstance(value, Mapping):
      numbers = value.values()
    elif isinstance(value, tuple | list):
      numbers = value
    allowed = ranges.get(name, ANY)
    for number in numbers:
      if (name in ranges or isinstance(number, float)) and (
        number not in allowed
      ):
        expected = "a number" if allowed is ANY else f"{allowed}"
        each = "" if numbers == (value,) else " each"
        raise ValueError(
          f"{prefix}{name} is {value!r}; expected {expected}{each}."
        )
