"""The one way to files: a path may be on a disk or in a bucket.

A file appears whole or not at all, and what must be made by one only is made
exclusively. No caller rests on renaming, appending or cheap listings.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import IO, Any, TypeAlias

from etils import epath

Path: TypeAlias = epath.Path
PathLike: TypeAlias = epath.PathLike


def is_local(path: PathLike) -> bool:
  """Whether a path is on a file system, not on an object store."""
  return "://" not in os.fspath(path)


def read_range(path: PathLike, begin: int, end: int) -> bytes:
  """Bytes of a file from `begin` until `end`, fewer where it is shorter."""
  # Opening anew each time keeps no limit on files and no lock.
  if not is_local(path):
    with Path(path).open("rb") as file:
      file.seek(begin)
      return file.read(end - begin)
  descriptor = os.open(path, os.O_RDONLY)
  try:
    return os.pread(descriptor, end - begin, begin)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def publish(path: PathLike) -> Iterator[IO[bytes]]:
  """Opens a file that appears under its name only once it is complete.

  On a disk it has a temporary name until it is synced. The name is unique, so
  that several processes may write the same path; the last one to finish wins.
  """
  path = Path(path)
  temp = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
  local = is_local(path)
  try:
    with temp.open("wb") as file:
      yield file
      file.flush()
      if local:
        os.fsync(file.fileno())
    temp.replace(path)
  except BaseException:
    temp.unlink(missing_ok=True)
    raise
  if local:  # a rename lasts once its directory is synced
    directory = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(directory)
    finally:
      os.close(directory)


def json_text(value: Any) -> str:
  """JSON text; equal values give equal text."""
  return json.dumps(value, indent=1, sort_keys=True) + "\n"


def publish_json(path: PathLike, value: Any) -> None:
  """Writes `json_text` whole."""
  with publish(path) as file:
    file.write(json_text(value).encode())


def create_json(path: PathLike, value: Any) -> bool:
  """Writes JSON unless the file exists; it appears with all its contents.

  Exclusive where the file system has hard links. Elsewhere, as on object
  stores, two callers at the same moment may both be told that they made it.

  Returns:
    Whether it was made.
  """
  path = Path(path)
  if path.exists():
    return False
  temp = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    publish_json(temp, value)
    try:
      os.link(temp, path)
    except FileExistsError:
      return False
    except OSError:  # no hard links here
      temp.replace(path)
  finally:
    temp.unlink(missing_ok=True)
  return True


def move(source: PathLike, target: PathLike) -> None:
  """Gives a complete file another name; an object store copies it."""
  Path(source).replace(target)


def list_names(directory: PathLike) -> set[str]:
  """Names in a directory; one call for thousands of files."""
  return {path.name for path in Path(directory).iterdir()}


def list_sizes(directory: PathLike) -> dict[str, int | None]:
  """Sizes of the files of a directory by name; None where asking takes long.

  Object stores list thousands of files in one call, but without sizes.
  """
  if not is_local(directory):
    return dict.fromkeys(list_names(directory))
  with os.scandir(directory) as entries:
    return {e.name: e.stat().st_size for e in entries if e.is_file()}


def remove(path: PathLike) -> None:
  """Deletes a file, if it is there."""
  Path(path).unlink(missing_ok=True)


def remove_tree(directory: PathLike) -> None:
  """Deletes a directory and all that is in it."""
  Path(directory).rmtree()
