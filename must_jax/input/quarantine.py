"""Records that cannot be used: written down, counted, and bounded."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable

from absl import logging

from must_jax.storage.path import (
  Appender,
  Path,
  PathLike,
  make_directory,
  read_appended,
)


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that cannot be used.

  Attributes:
    shard: path of the shard of its image.
    index: place in the shard.
    key: of the example; empty if it cannot be read.
    reason: what is wrong with it or with its labels.
  """

  shard: str
  index: int
  key: bytes
  reason: str

  def __str__(self) -> str:
    key = self.key.decode(errors="replace") or "unknown"
    return f"record {self.index} of {self.shard} (key {key}): {self.reason}"


class TooManyBad(RuntimeError):
  """More records cannot be used than the run accepts."""


class BadRecords:
  """The unusable records that a reader has met, and how many it accepts.

  Args:
    max_bad: greatest part of the records read; None for any number.
    free: so many are accepted in any case, as the first records tell little.
    on_bad: called once with each of them, from any thread.
  """

  def __init__(
    self,
    max_bad: float | None,
    free: int,
    on_bad: Callable[[BadRecord], None],
  ):
    self._max_bad, self._free, self._on_bad = max_bad, free, on_bad
    self._found: dict[int, BadRecord] = {}
    self._lock = threading.Lock()

  def get(self, number: int) -> BadRecord | None:
    """The record of this number, if it is known to be bad."""
    return self._found.get(number)

  def add(self, number: int, bad: BadRecord) -> None:
    """Notes a record, once."""
    with self._lock:
      if number in self._found:
        return
      self._found[number] = bad
    self._on_bad(bad)

  def check(self, num_read: int) -> None:
    """Checks that there are not too many.

    Args:
      num_read: records read, good or bad.

    Raises:
      TooManyBad: there are; lists some.
    """
    count = len(self._found)
    if self._max_bad is None or count <= self._free:
      return
    if count > self._max_bad * num_read:
      shown = "\n".join(f"  {bad}" for bad in list(self._found.values())[:20])
      raise TooManyBad(
        f"{count} of {num_read} records read cannot be used; at most"
        f" {self._max_bad:.2%} are allowed (data.max_bad). Mend the data, or"
        f" allow more.\n{shown}"
      )


class Quarantine:
  """A file of unusable records, one JSON object a line, each record once.

  Args:
    path: of the file; entries of earlier runs stay.
  """

  def __init__(self, path: PathLike):
    self._path, self._lock = Path(path), threading.Lock()
    self._file: Appender | None = None
    self._seen = set()
    for line in read_appended(path).splitlines():
      with contextlib.suppress(ValueError):  # a kill may tear the last line
        self._seen.add(_identity(json.loads(line)))

  def __call__(self, bad: BadRecord) -> None:
    """Appends a record, if it is new, and warns."""
    entry = dataclasses.asdict(bad) | {"key": bad.key.decode(errors="replace")}
    with self._lock:
      if _identity(entry) in self._seen:
        return
      self._seen.add(_identity(entry))
      logging.warning("Left out %s", bad)
      if self._file is None:  # most runs meet none
        make_directory(self._path.parent)
        self._file = Appender(self._path)
      self._file.write(json.dumps(entry).encode() + b"\n")


def _identity(entry: dict[str, str | int]) -> tuple[str | int, ...]:
  return entry["shard"], entry["index"]
