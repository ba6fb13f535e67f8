"""Google Cloud Storage, as `path` uses it: gcsfs, and what it does not do.

Requests that fail for a moment are tried again with backoff and jitter, named
when that lasts, and given up after a time. Errors say which bucket or object
they are about and what to do.
"""

import asyncio
import contextlib
import errno
import io
import json
import logging as std_logging
import os
import random
import re
import time
import uuid
from typing import Any
from urllib.parse import quote, unquote

from absl import logging

# For zonal buckets gcsfs would ask another service about each bucket first.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
try:
  import aiohttp
  import google.auth.exceptions
  import requests.exceptions
  from gcsfs.core import GCSFileSystem
  from gcsfs.retry import (
    ChecksumError,
    HttpError,
    is_retriable,
    validate_response,
  )
except ModuleNotFoundError as error:
  raise OSError(
    f"gs:// needs {error.name}, which is not installed: pip install -c"
    " constraints.txt -e '.[gcs]'."
  ) from error

# They tell of every file that is opened.
for _logger in ("gcsfs", "fsspec"):
  std_logging.getLogger(_logger).setLevel(std_logging.WARNING)

_PATIENCE = 300.0  # seconds of trying before an error is one
_FIRST_PATIENCE = 20.0  # the same, of a service that has never answered
_WARN_AFTER = 10.0
_LONGEST_PAUSE = 32.0
# Without an answer for so long a request is tried again. Uploads get a second
# more for each 100 kB.
_TIMEOUT, _UPLOAD_BYTES_PER_SECOND = 60.0, 1e5
# Larger ones are sent in pieces.
_MAX_SIMPLE_UPLOAD = 256 << 20

_TRANSIENT = (
  TimeoutError,
  ChecksumError,
  aiohttp.ClientError,
  requests.exceptions.RequestException,
  google.auth.exceptions.TransportError,
)


class NoBucketError(OSError):
  """There is no such bucket; no file can be missing in it."""


class Gcs(GCSFileSystem):
  """`gcsfs.GCSFileSystem` with bounded patience and clear errors."""

  _has_answered = False  # of the service, to this process

  def __init__(self, *args: Any, **kwargs: Any):
    # Others write to the bucket, so what was listed is no news.
    super().__init__(*args, **kwargs | {"use_listings_cache": False})

  async def _request(
    self,
    method: str,
    path: str,
    *args: str,
    headers: Any = None,
    json: Any = None,
    data: Any = None,
    cache_type: Any = None,
    cache_source: Any = None,
    **kwargs: Any,
  ) -> tuple[int, Any, Any, bytes]:
    """One request of gcsfs, tried until it works or is known not to."""
    await self._set_session()
    url = self._format_path(path, args)
    if hasattr(data, "read"):
      data = data.read()
    elif isinstance(data, str):
      data = data.encode()
    place = _place(url, data)
    # A download may last as long as something comes; that an upload gets on
    # is not seen.
    timeout = aiohttp.ClientTimeout(
      total=_TIMEOUT + len(data) / _UPLOAD_BYTES_PER_SECOND if data else None,
      sock_connect=10,
      sock_read=None if data else _TIMEOUT,
    )
    begin, pause = time.monotonic(), 0.25
    while True:
      try:
        async with self.session.request(
          method=method,
          url=url,
          params=self._get_params(kwargs),
          json=json,
          headers=self._get_headers(
            headers, cache_type=cache_type, cache_source=cache_source
          ),
          # As a file it does not hold up other requests.
          data=None if data is None else io.BytesIO(data),
          timeout=timeout,
        ) as answer:
          contents = await answer.read()
          if answer.status == 404:
            _check_bucket(path, url, place, contents)
          validate_response(answer.status, contents, path, args)
          Gcs._has_answered = True
          return answer.status, answer.headers, answer.request_info, contents
      except FileNotFoundError as error:
        Gcs._has_answered = True
        raise FileNotFoundError(
          errno.ENOENT, "There is no such file", place
        ) from error
      except (FileExistsError, NoBucketError):
        Gcs._has_answered = True
        raise
      except Exception as error:
        if not (isinstance(error, _TRANSIENT) or is_retriable(error)):
          raise _named(error, place) from error
        lasted = time.monotonic() - begin
        patience = _PATIENCE if Gcs._has_answered else _FIRST_PATIENCE
        if lasted + pause > patience:
          raise OSError(
            f"{place}: {_reason(error)}, for {lasted:.0f} s now. Is"
            " there a network, and is the service up? The same command goes on"
            " where this one stopped."
          ) from error
        if lasted > _WARN_AFTER:
          logging.warning(
            "%s: %s, for %.0f s now; trying again.",
            place,
            _reason(error),
            lasted,
          )
      await asyncio.sleep(pause * random.uniform(0.5, 1))
      pause = min(2 * pause, _LONGEST_PAUSE)

  async def _exists(self, path: str, **kwargs: Any) -> bool:
    try:
      await self._info(path, **kwargs)
    except FileNotFoundError:
      return False
    return True

  async def check_bucket(self, path: str) -> None:
    """Reads what the bucket of a path is, as libraries do.

    Raises:
      PermissionError: that needs a right of its own.
    """
    bucket, _, _ = self.split_path(path)
    try:
      await self._call("GET", f"b/{quote(bucket)}")
    except PermissionError as error:
      raise PermissionError(
        f"gs://{bucket}: checkpoints need the right storage.buckets.get, which"
        " this machine's account lacks. Give it the role"
        " roles/storage.legacyBucketReader on the bucket, too."
      ) from error

  async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
    try:
      return await super()._cat_file(path, **kwargs)
    except OSError as error:
      if getattr(error.__cause__, "code", None) == 416:
        return b""  # the file ends before the range
      raise

  async def _cat_ranges(
    self,
    paths: list[str],
    starts: Any,
    ends: Any,
    max_gap: Any = None,
    batch_size: int | None = None,
    on_error: str = "return",
    **kwargs: Any,
  ) -> list[Any]:
    """Many ranges at a time; the first error but of a missing file ends all."""
    slots = asyncio.Semaphore(batch_size or 64)

    async def read(path: str, start: int | None, end: int | None) -> Any:
      async with slots:
        try:
          return await self._cat_file(path, start=start, end=end, **kwargs)
        except FileNotFoundError as error:
          if on_error == "raise":
            raise
          return error

    if not isinstance(starts, list):
      starts, ends = [starts] * len(paths), [ends] * len(paths)
    reads = [
      asyncio.ensure_future(read(*part))
      for part in zip(paths, starts, ends, strict=True)
    ]
    try:
      return await asyncio.gather(*reads)
    except BaseException:
      for one in reads:
        one.cancel()
      await asyncio.gather(*reads, return_exceptions=True)
      raise

  async def is_object(self, path: str) -> bool:
    """Whether there is an object; one request."""
    bucket, key, _ = self.split_path(path)
    try:
      await self._call("GET", "b/{}/o/{}", bucket, key, fields="name")
    except FileNotFoundError:
      return False
    return True

  async def read_with_generation(self, path: str) -> tuple[bytes, int]:
    """All of an object, and the number of its present version.

    Raises:
      FileNotFoundError: there is none.
    """
    headers, contents = await self._call("GET", self.url(path))
    return contents, int(headers["X-Goog-Generation"])

  async def write_if(self, path: str, data: bytes, generation: int) -> int:
    """Writes an object if its present version is the given one; 0: none.

    Returns:
      The number of its new version; 0 if it was not written.
    """
    bucket, key, _ = self.split_path(path)
    boundary = uuid.uuid4().hex
    head = (
      f"--{boundary}\nContent-Type: application/json\n\n"
      f"{json.dumps({'name': key})}\n"
      f"--{boundary}\nContent-Type: application/octet-stream\n\n"
    )
    try:
      written = await self._call(
        "POST",
        f"{self._location}/upload/storage/v1/b/{quote(bucket)}/o",
        uploadType="multipart",
        ifGenerationMatch=str(generation),
        headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
        data=head.encode() + data + f"\n--{boundary}--".encode(),
        json_out=True,
      )
      return int(written["generation"])
    except FileExistsError:
      # It may be our own, if the answer to an earlier try was lost.
      with contextlib.suppress(FileNotFoundError):
        found, number = await self.read_with_generation(path)
        if found == data:
          return number
      return 0

  async def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> Any:
    kwargs = {"chunksize": _MAX_SIMPLE_UPLOAD} | kwargs
    return await super()._pipe_file(path, value, **kwargs)


def _place(url: str, data: bytes | None) -> str:
  """The bucket or object that a request is about."""
  if "/b/" not in url:
    return "gs:// (several objects)"
  _, _, rest = url.partition("/b/")
  bucket, _, key = rest.partition("/o")
  key = unquote(key.partition("?")[0].strip("/"))
  if not key and data:  # an upload names its object in its head
    named = re.search(rb'"name": "([^"]*)"', data[:4096])
    key = named[1].decode(errors="replace") if named else ""
  return f"gs://{bucket.partition('?')[0]}/{key}".rstrip("/")


def _check_bucket(path: str, url: str, place: str, contents: bytes) -> None:
  """Tells an absent bucket from an absent object."""
  # A listing or an upload needs no object, but it does need its bucket.
  needs_bucket = path == "b/{}/o" or (
    "/upload/" in url and "upload_id" not in url
  )
  if needs_bucket or b"bucket does not exist" in contents:
    bucket = "/".join(place.split("/")[:3])
    raise NoBucketError(
      f"There is no bucket {bucket}. Check its name, or make it: gcloud storage"
      f" buckets create {bucket} --location=REGION."
    )


def _reason(error: Exception) -> str:
  if isinstance(error, HttpError):
    return f"the service answers {error.code} ({error.message})"
  if isinstance(error, TimeoutError):
    return "no answer"
  return f"{type(error).__name__}: {error}"


def _named(error: Exception, place: str) -> Exception:
  """An error that no patience mends, with what mends it."""
  code = error.code if isinstance(error, HttpError) else None
  # gcsfs tells by the first word that there is another way to ask.
  if str(error).startswith("Forbidden") or code in (401, 403):
    detail = str(error).partition("\n")[2] or str(error)
    return PermissionError(
      f"Forbidden: {place} may not be used by this machine's account"
      f" ({_short(detail)}). Give it a role such as roles/storage.objectAdmin"
      " on the bucket, or log in: gcloud auth application-default login."
    )
  if isinstance(error, OSError | ValueError):
    return error
  return OSError(f"{place}: {_reason(error)}")


def _short(text: str) -> str:
  with contextlib.suppress(ValueError, KeyError, TypeError):
    text = json.loads(text)["error"]["message"]
  return " ".join(text.split())[:200]
