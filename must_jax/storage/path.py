"""The one way to files: a path may be on a disk or in a bucket.

A file appears whole or not at all, and what must be made by one only is made
exclusively. No caller rests on renaming, appending, directories or cheap
listings, which buckets do not have.

`gs://` is what is tested (the extra `gcs`); other stores of fsspec that
`etils.epath` knows, `s3://` with s3fs and `az://` with adlfs, go the same way,
for sets, but not for checkpoints, and are not tested.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from typing import IO, Any, TypeAlias

import fsspec

# TensorFlow's own way to buckets has no preconditions, and reads 64 MB where
# a record is asked for. Orbax, too, takes this switch.
os.environ["EPATH_USE_TF"] = "false"
from etils import epath
from etils.epath import gpath

gpath._is_tf_installed.cache_clear()  # whoever was here before

for _protocol in ("gs", "gcs"):  # etils asks for the latter
  fsspec.register_implementation(
    _protocol, "must_jax.storage.gcs.Gcs", clobber=True
  )

Path: TypeAlias = epath.Path
PathLike: TypeAlias = epath.PathLike
Range: TypeAlias = tuple[PathLike, int, int]  # of a file, from begin to end

_SCHEMES = ("gs", "s3", "az")
_NO_SCHEMES = ("gcs", "GS", "file", "http", "https", "hdfs", "abfs")
_THREADS = 16  # that read from a disk at a time
# Of a bucket, so much may be read in vain to spare a request, and one request
# asks for so much at most.
_MAX_GAP, _MAX_REQUEST = 128 << 10, 16 << 20
_CONCURRENT = 64  # requests of one call
_MAX_IN_MEMORY = 4 << 20  # of a file that is not sent yet
_PAGE = 5000  # expected names beyond which a listing is cut in parts
_VERSIONS = ("generation", "ETag", "etag")  # of an object: Google's, others'


def is_local(path: PathLike) -> bool:
  """Whether a path is on a file system, not on an object store.

  Raises:
    ValueError: it is a URL of another kind.
  """
  scheme, colon, rest = os.fspath(path).partition(":/")
  if not colon or "/" in scheme:
    return True
  if scheme in _SCHEMES and rest.startswith("/"):
    return False
  raise ValueError(
    f"{os.fspath(path)} is no path that can be used; expected a local path, or"
    f" gs://{rest.lstrip('/')} of a bucket."
  )


@epath.register_path_cls([f"{scheme}://" for scheme in _NO_SCHEMES])
class _NoPath:
  """Makes `Path` of such a URL an error that says what is expected."""

  def __new__(cls, path: str) -> "_NoPath":
    assert not is_local(path)  # or says it
    return super().__new__(cls)


def absolute(path: PathLike) -> Path:
  """The same path, whatever the working directory will be."""
  return Path(path).absolute() if is_local(path) else Path(path)


def is_same(a: PathLike, b: PathLike) -> bool:
  """Whether two paths are one place, however they are written."""
  return _place(a) == _place(b)


def _place(path: PathLike) -> str:
  if is_local(path):
    return os.path.realpath(path)
  return os.fspath(path).rstrip("/")


def _store(path: PathLike) -> Any:
  """The file system of fsspec behind a path of an object store."""
  return epath.backend.fsspec_backend.fs(path)


def check_reachable(path: PathLike) -> None:
  """Asks the store of a path for something, whatever it is.

  Raises:
    OSError: there is no such bucket, no right to use it, or no answer; the
      message says what to do.
  """
  if not is_local(path):
    # Whether there is such a file doesn't matter.
    _store(path).exists(os.fspath(path))


def check_bucket(path: PathLike) -> None:
  """Checks the right to know what a bucket is, which orbax wants.

  Raises:
    OSError: it is missing, or as of `check_reachable`.
  """
  if not is_local(path):
    store = _store(path)
    if hasattr(store, "check_bucket"):
      fsspec.asyn.sync(store.loop, store.check_bucket, os.fspath(path))


# Reading


def read_range(path: PathLike, begin: int, end: int) -> bytes:
  """Bytes of a file from `begin` until `end`, fewer where it is shorter."""
  return read_ranges([(path, begin, end)])[0]


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
  """Bytes of many parts of files; of a bucket many at a time.

  Args:
    ranges: (path, begin, end) each.

  Raises:
    OSError: one cannot be read.
  """
  found = [b""] * len(ranges)
  files: dict[str, list[int]] = {}
  for i, (path, _, _) in enumerate(ranges):
    files.setdefault(os.fspath(path), []).append(i)
  remote: dict[str, list[int]] = {}
  for file, members in files.items():
    if is_local(file):
      _read_local(file, ranges, members, found)
    else:
      remote.setdefault(file.partition("://")[0], []).extend(members)
  for members in remote.values():
    merged = _merge(ranges, members)
    blocks = _store(ranges[members[0]][0]).cat_ranges(
      [block.path for block in merged],
      [block.begin for block in merged],
      [block.end for block in merged],
      batch_size=_CONCURRENT,
      on_error="raise",
    )
    for block, data in zip(merged, blocks, strict=True):
      for i in block.members:
        _, begin, end = ranges[i]
        found[i] = data[begin - block.begin : end - block.begin]
  return found


def _read_local(
  file: str, ranges: Sequence[Range], members: Sequence[int], found: list[bytes]
) -> None:
  # Opening anew each time keeps no limit on files and no lock.
  descriptor = os.open(file, os.O_RDONLY)
  try:
    for i in members:
      _, begin, end = ranges[i]
      found[i] = os.pread(descriptor, end - begin, begin)
  finally:
    os.close(descriptor)


@dataclasses.dataclass
class _Block:
  """A range that is read at once, and the ranges in it by number."""

  path: str
  begin: int
  end: int
  members: list[int]


def _merge(ranges: Sequence[Range], members: Sequence[int]) -> list[_Block]:
  """Joins some of the ranges that lie close to each other."""
  order = sorted(members, key=lambda i: (os.fspath(ranges[i][0]), ranges[i][1]))
  blocks: list[_Block] = []
  for i in order:
    path, begin, end = os.fspath(ranges[i][0]), *ranges[i][1:]
    last = blocks[-1] if blocks else None
    if (
      last is not None
      and last.path == path
      and begin - last.end <= _MAX_GAP
      and max(end, last.end) - last.begin <= _MAX_REQUEST
    ):
      last.end = max(end, last.end)
      last.members.append(i)
    else:
      blocks.append(_Block(path, begin, end, [i]))
  return blocks


def read_files(paths: Sequence[PathLike]) -> list[bytes | None]:
  """Contents of many files, many at a time; None of those not there.

  Args:
    paths: all on a disk or all in one store.

  Raises:
    OSError: a file that is there cannot be read, or a bucket does not answer.
  """
  if not paths:
    return []
  if is_local(paths[0]):

    def read(path: PathLike) -> bytes | None:
      try:
        return read_file(path)
      except FileNotFoundError:
        return None

    with futures.ThreadPoolExecutor(_THREADS) as pool:
      return list(pool.map(read, paths))
  found = _store(paths[0]).cat_ranges(
    list(map(os.fspath, paths)), None, None, batch_size=_CONCURRENT
  )
  for contents in found:
    if isinstance(contents, Exception) and not isinstance(
      contents, FileNotFoundError
    ):
      raise contents
  return [None if isinstance(data, Exception) else data for data in found]


def read_file(path: PathLike) -> bytes:
  """Contents of a file; one request of a bucket.

  Raises:
    OSError: there is none, or it cannot be read.
  """
  if is_local(path):
    return Path(path).read_bytes()
  return _store(path).cat_file(os.fspath(path))


def is_file(path: PathLike) -> bool:
  """Whether there is a file; one request of a bucket."""
  if is_local(path):
    return os.path.isfile(path)
  store = _store(path)
  if hasattr(store, "is_object"):
    return fsspec.asyn.sync(store.loop, store.is_object, os.fspath(path))
  return store.isfile(os.fspath(path))


def list_names(directory: PathLike, expected: Collection[str] = ()) -> set[str]:
  """Names in a directory; one request of a bucket for thousands of files.

  A bucket has no empty directories: there are no names in one that was made.

  Args:
    directory: where.
    expected: see `list_sizes`.
  """
  if is_local(directory):
    return set(os.listdir(directory))
  return set(list_sizes(directory, expected))


def list_sizes(
  directory: PathLike, expected: Collection[str] = ()
) -> dict[str, int | None]:
  """Sizes of the files of a directory by name; None of directories.

  Args:
    directory: where.
    expected: names. A bucket's directory that should hold very many of them is
      listed in parts, at the same time, which leaves out names that begin
      otherwise than all of these.
  """
  if is_local(directory):
    sizes: dict[str, int | None] = {}
    with os.scandir(directory) as entries:
      for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # gone by now
          sizes[entry.name] = entry.stat().st_size if entry.is_file() else None
    return sizes
  return {
    name: entry["size"] if entry["type"] == "file" else None
    for name, entry in _list_store(directory, expected).items()
  }


def _list_store(
  directory: PathLike, expected: Collection[str] = ()
) -> dict[str, Mapping[str, Any]]:
  """What a store tells of the files of a directory, by name."""
  prefixes = {""}
  if len(expected) > _PAGE:
    # Two more characters than all have in common: up to a hundred parts, if
    # they are numbered.
    shared = os.path.commonprefix(list(expected))  # noqa: RUF071 # characters
    prefixes = {name[: len(shared) + 2] for name in expected}
  with futures.ThreadPoolExecutor(min(len(prefixes), _CONCURRENT)) as pool:
    listed = pool.map(lambda p: _list_prefix(directory, p), sorted(prefixes))
    return dict(itertools.chain.from_iterable(part.items() for part in listed))


def _list_prefix(
  directory: PathLike, prefix: str
) -> dict[str, Mapping[str, Any]]:
  try:
    listed = _store(directory).ls(
      os.fspath(directory),
      detail=True,
      **({"prefix": prefix} if prefix else {}),
    )
  except FileNotFoundError:
    return {}
  return {
    posixpath.basename(entry["name"].rstrip("/")): entry for entry in listed
  }


def fingerprints(paths: Sequence[PathLike]) -> list[str | None]:
  """What changes when the contents of files do; None of those not there.

  On a disk that is the size and the time of the last change. In a store it is
  the size and the generation, or what else tells versions apart, from a listing
  of the files' directories.
  """
  found: list[str | None] = [None] * len(paths)
  by_directory: dict[Path, dict[str, list[int]]] = {}
  local = []
  for i, path in enumerate(paths):
    if is_local(path):
      local.append(i)
    else:
      names = by_directory.setdefault(Path(path).parent, {})
      names.setdefault(Path(path).name, []).append(i)

  def look(members: Sequence[int]) -> None:
    for i in members:
      with contextlib.suppress(OSError):
        stat = os.stat(paths[i])
        found[i] = f"{stat.st_size} {stat.st_mtime_ns}"

  def look_in(directory: Path) -> None:
    names = by_directory[directory]
    listed = _list_store(directory, names)
    for name in names.keys() & listed.keys():
      entry = listed[name]
      version = next((entry[key] for key in _VERSIONS if key in entry), "")
      for i in names[name]:
        found[i] = f"{entry['size']} {version}"

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    chunks = [local[i : i + _PAGE] for i in range(0, len(local), _PAGE)]
    list(pool.map(look, chunks))
    list(pool.map(look_in, by_directory))
  return found


def list_tree(directory: PathLike, hidden: bool = False) -> list[str]:
  """Files in and below a directory, relative, with "/".

  Links are followed, but not back to a folder that is being listed.

  Args:
    directory: where to look.
    hidden: whether to list the hidden files too, and the hidden folders
      themselves, not what is in them.

  Raises:
    OSError: a directory cannot be read.
  """
  if not is_local(directory):
    store = _store(directory)
    root = store._strip_protocol(os.fspath(directory)).rstrip("/") + "/"
    names = [name.removeprefix(root) for name in store.find(root)]
    shown = [n for n in names if n and "/." not in f"/{n}"]
    # A name up to its first part that is hidden.
    found_hidden = (re.match(r"((?:[^./][^/]*/)*\.[^/]*)", n) for n in names)
    return shown + sorted({m[1] for m in found_hidden if m} if hidden else ())

  def fail(error: OSError) -> None:
    raise error

  found = []
  # Real paths of the folders on the way to one, for links that lead back.
  ways = {os.fspath(directory): [os.path.realpath(directory)]}
  for folder, folders, names in os.walk(
    directory, onerror=fail, followlinks=True
  ):
    way = ways.pop(folder)
    if hidden:
      names += [name for name in folders if name.startswith(".")]
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in [*folders]:
      path = os.path.join(folder, name)
      real = os.path.join(way[-1], name)
      if os.path.islink(path):
        real = os.path.realpath(path)
        if any(f"{there}/".startswith(f"{real.rstrip('/')}/") for there in way):
          folders.remove(name)
          continue
      ways[path] = [*way, real]
    below = Path(os.path.relpath(folder, directory)).as_posix()
    prefix = "" if below == "." else f"{below}/"
    found += [
      prefix + name for name in names if hidden or not name.startswith(".")
    ]
  return found


def modified(path: PathLike) -> float:
  """When a file was written, in seconds, by the clock of where it lies."""
  if is_local(path):
    return os.stat(path).st_mtime
  when = _store(path).info(os.fspath(path))["mtime"]
  return when if isinstance(when, int | float) else when.timestamp()


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[Path]:
  """A file on a disk, for libraries that read no other; it goes afterwards."""
  if is_local(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as directory:
    copy = Path(directory) / Path(path).name
    copy.write_bytes(read_file(path))
    yield copy


# Writing


@contextlib.contextmanager
def publish(
  path: PathLike, final: Callable[[], PathLike] | None = None
) -> Iterator[IO[bytes]]:
  """Opens a file that appears under its name only once it is complete.

  On a disk it has a temporary name until it is synced; the name is unique, so
  that several processes may write the same path, and the last one to finish
  wins. For a bucket it is kept here, and sent at the end.

  Args:
    path: of the file; its directory is there.
    final: asked at the end for the name to appear under, in the same
      directory, instead of `path`.
  """
  if not is_local(path):
    with tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY) as buffer:
      yield buffer
      target = os.fspath(final() if final else path)
      buffer.seek(0)
      _store(path).pipe_file(target, buffer.read())
    return
  path = Path(path)
  temp = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
  try:
    with temp.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    temp.replace(final() if final else path)
  except BaseException as error:
    temp.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.filename is None:
      error.filename = os.fspath(path)  # else a full disk has no name
    raise
  # A rename lasts once its directory is synced.
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

  Exclusive in buckets, and where the file system has hard links. Elsewhere two
  callers at the same moment may both be told that they made it.

  Returns:
    Whether it was made. In a bucket also if it is there with the same contents:
    the answer to an earlier try may have been lost.
  """
  path = Path(path)
  if not is_local(path):
    return replace_json(path, None, value) is not None
  if path.exists():
    return False
  temp = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    publish_json(temp, value)
    try:
      os.link(temp, path)
    except FileExistsError:
      # A server's answer to an earlier try may have been lost.
      return os.stat(temp).st_nlink == 2
    except OSError:  # no hard links here
      temp.replace(path)
  finally:
    temp.unlink(missing_ok=True)
  return True


def is_exclusive(path: PathLike) -> bool:
  """Whether a second one cannot make a file that is there.

  Args:
    path: of a file.
  """
  if not is_local(path):
    return not create_json(path, uuid.uuid4().hex)
  link = f"{os.fspath(path)}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    os.link(path, link)
  except OSError:  # no hard links here
    return False
  os.unlink(link)
  return True


@dataclasses.dataclass(frozen=True)
class Version:
  """What a file held when it was read.

  Attributes:
    value: its JSON.
    generation: of an object; 0 on a disk.
  """

  value: Any
  generation: int


def read_version(path: PathLike) -> Version | None:
  """The JSON of a file and its version; None if there is no file.

  Raises:
    ValueError: it is no JSON.
  """
  try:
    store: Any = None if is_local(path) else _store(path)
    if hasattr(store, "read_with_generation"):
      contents, generation = fsspec.asyn.sync(
        store.loop, store.read_with_generation, os.fspath(path)
      )
    else:
      contents, generation = read_file(path), 0
  except FileNotFoundError:
    return None
  try:
    return Version(json.loads(contents), generation)
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON ({error}).") from None


def replace_json(
  path: PathLike, before: Version | None, value: Any
) -> Version | None:
  """Writes JSON if a file is still what it was; atomic in buckets.

  Args:
    path: of the file.
    before: what it was, None for no file.
    value: to write.

  Returns:
    What the file is now; None if it was not written.
  """
  written = Version(json.loads(json.dumps(value)), 0)
  if is_local(path):
    if before is None:
      return written if create_json(path, value) else None
  else:
    data, generation = json_text(value).encode(), before and before.generation
    if before is None or generation:
      generation = _write_if(path, data, generation or 0)
      return Version(written.value, generation) if generation else None
  if read_version(path) != before:
    return None
  publish_json(path, value)
  return written


def _write_if(path: PathLike, data: bytes, generation: int) -> int:
  """Writes an object of a store if its generation is still this; 0: none.

  Returns:
    Its new generation, -1 where a store has no such numbers; 0 if it was not
    written.
  """
  store = _store(path)
  if hasattr(store, "write_if"):
    return fsspec.asyn.sync(
      store.loop, store.write_if, os.fspath(path), data, generation
    )
  try:
    mode = "overwrite" if generation else "create"
    store.pipe_file(os.fspath(path), data, mode=mode)
  except FileExistsError:
    return 0
  return -1


def copy(source: PathLike, target: PathLike) -> None:
  """Copies a file; within a store nothing travels."""
  if is_local(source) or is_local(target):
    with publish(target) as file:
      file.write(read_file(source))
  else:
    _store(source).cp_file(os.fspath(source), os.fspath(target))


def move(source: PathLike, target: PathLike) -> None:
  """Gives a complete file another name; a store copies it."""
  if is_local(source) and is_local(target):
    Path(source).replace(target)
  else:
    copy(source, target)
    remove(source)


def make_directory(directory: PathLike) -> None:
  """Makes a directory with its parents; buckets have none and need none."""
  if is_local(directory):
    os.makedirs(directory, exist_ok=True)


def remove(path: PathLike) -> None:
  """Deletes a file, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    if is_local(path):
      os.unlink(path)
    else:
      _store(path).rm_file(os.fspath(path))


def remove_all(paths: Sequence[PathLike]) -> None:
  """Deletes files, those that are there."""
  if paths and is_local(paths[0]):
    for path in paths:
      remove(path)
  elif paths:
    with contextlib.suppress(FileNotFoundError):
      _store(paths[0]).rm(list(map(os.fspath, paths)))


def remove_tree(directory: PathLike) -> None:
  """Deletes a directory and all that is in it."""
  Path(directory).rmtree()


class Appender:
  """A file of lines that grows; they are there when `write` returns.

  On a disk a last line that a kill or a full disk left half is cut off. A
  bucket's files cannot grow. There `NAME.EXT` becomes `NAME.00000.EXT`,
  `NAME.00001.EXT`, ...: pieces that are begun at each start and when one has
  `piece_bytes`, so that a line costs no more than sending its piece again. A
  piece has one writer. `read_appended` reads them as one.

  Args:
    path: of the file; its directory is there.
    piece_bytes: of a bucket's pieces, about.
  """

  def __init__(self, path: PathLike, piece_bytes: int = 32 << 10):
    self._path, self._piece_bytes = Path(path), piece_bytes
    if is_local(path):
      _cut_torn_line(self._path)
      self._file = open(path, "ab")  # noqa: SIM115 # `close` closes it
    else:
      self._number = 1 + max(_pieces(path), default=-1)
      self._piece, self._generation = b"", 0

  def write(self, data: bytes) -> None:
    """Appends.

    Raises:
      OSError: it cannot be written.
    """
    if is_local(self._path):
      self._file.write(data)
      self._file.flush()
      return
    if len(self._piece) > self._piece_bytes:
      self._begin_piece()
    while not self._send(self._piece + data):
      self._begin_piece()  # another process has this one
    self._piece += data

  def _begin_piece(self) -> None:
    self._piece, self._generation = b"", 0
    self._number += 1

  def _send(self, piece: bytes) -> bool:
    target = _piece_path(self._path, self._number)
    generation = _write_if(target, piece, self._generation)
    self._generation = generation or self._generation
    return bool(generation)

  def close(self) -> None:
    """Closes the file."""
    if is_local(self._path):
      self._file.close()


def drop_lines(path: PathLike, unwanted: Callable[[bytes], bool]) -> None:
  """Takes lines out of what `Appender` wrote; nobody may be writing.

  Args:
    path: as given to `Appender`; there need not be anything.
    unwanted: line, without its end -> whether to drop it.
  """
  paths = [Path(path)]
  if not is_local(path):
    paths = [_piece_path(path, number) for number in _pieces(path)]
  for piece, data in zip(paths, read_files(paths), strict=True):
    lines = (data or b"").splitlines(keepends=True)
    kept = [line for line in lines if not unwanted(line.rstrip(b"\n"))]
    if len(kept) < len(lines):
      with publish(piece) as file:
        file.write(b"".join(kept))


def _cut_torn_line(path: Path) -> None:
  text = path.read_bytes() if path.exists() else b""
  if text and not text.endswith(b"\n"):
    path.write_bytes(text[: text.rfind(b"\n") + 1])


def read_appended(path: PathLike) -> bytes:
  """What `Appender` wrote, of all starts; nothing if there is no file."""
  paths = [path]
  if not is_local(path):
    paths = [_piece_path(path, number) for number in _pieces(path)]
  return b"".join(data or b"" for data in read_files(paths))


def _piece_path(path: PathLike, number: int) -> Path:
  path = Path(path)
  return path.with_name(f"{path.stem}.{number:05d}{path.suffix}")


def _pieces(path: PathLike) -> list[int]:
  """Numbers of the pieces that are there."""
  path = Path(path)
  form = re.compile(
    rf"{re.escape(path.stem)}\.(\d{{5,}}){re.escape(path.suffix)}"
  )
  names = _list_prefix(path.parent, f"{path.stem}.")
  return sorted(int(m[1]) for m in map(form.fullmatch, names) if m)
