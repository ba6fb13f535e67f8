import concurrent.futures
import http.client
import json
import os
import subprocess
import sys
import time
import types
import urllib.parse

import pytest

gcsfs = pytest.importorskip("gcsfs")


@pytest.fixture
def fs(bucket):
  return gcsfs.GCSFileSystem(token="anon")


class _Connection:
  """Asks as the service's clients do, without trying again."""

  def __init__(self, bucket):
    port = urllib.parse.urlsplit(bucket.address).port
    self._bucket = bucket
    self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

  def ask(self, method, path, body=None, headers=None, **query):
    """The status and the body of the answer."""
    path = path.removeprefix(self._bucket.address)
    if not path.startswith("/"):
      path = f"/storage/v1/b/{self._bucket.name}/{path}"
    if query:
      path += "?" + urllib.parse.urlencode(query)
    self._connection.request(method, path, body, headers or {})
    answer = self._connection.getresponse()
    self.headers = answer.headers
    return answer.status, answer.read()

  def upload(self, name, body, kind="media", **query):
    path = f"/upload/storage/v1/b/{self._bucket.name}/o"
    query = {"uploadType": kind, **query}
    if kind == "media":
      return self.ask("POST", path, body, None, name=name, **query)
    description = json.dumps({"name": name}).encode()
    if kind == "multipart":
      part = b"--x\r\ncontent-type: application/json\r\n\r\n"
      body = part + description + b"\r\n" + part + body + b"\r\n--x--"
      headers = {"content-type": "multipart/related; boundary=x"}
      return self.ask("POST", path, body, headers, **query)
    status, _ = self.ask("POST", path, description, None, **query)
    assert status == 200
    return self.ask("PUT", self.headers["location"], body)

  def generation(self, name):
    return json.loads(self.ask("GET", f"o/{name}")[1])["generation"]


@pytest.fixture
def connection(bucket):
  made = _Connection(bucket)
  yield made
  made._connection.close()


def test_one_of_many_creates(bucket, fs):
  def create(i):
    try:
      fs.pipe_file(f"{bucket.root}/a", b"%d" % i, mode="create")
    except FileExistsError:
      return None
    return i

  with concurrent.futures.ThreadPoolExecutor(20) as pool:
    created = [i for i in pool.map(create, range(20)) if i is not None]
  assert len(created) == 1
  assert fs.cat_file(f"{bucket.root}/a") == b"%d" % created[0]
  assert bucket.counts()["upload"] == 20


@pytest.mark.parametrize("kind", ["media", "multipart", "resumable"])
def test_preconditions_hold_for_every_kind_of_upload(connection, kind):
  def upload(generation):
    body = str(generation).encode()
    return connection.upload("a", body, kind, ifGenerationMatch=generation)[0]

  assert upload(5) == 412
  assert upload(0) == 200
  assert upload(0) == 412
  generation = connection.generation("a")
  assert upload(generation) == 200
  assert upload(generation) == 412
  content = connection.ask("GET", "o/a", alt="media")[1]
  assert content.endswith(generation.encode())


def test_preconditions_hold_for_other_requests(connection):
  connection.upload("a", b"x")
  current, other = connection.generation("a"), 5

  def ask(method, path, body=None, **query):
    return connection.ask(method, path, body, **query)[0]

  assert ask("GET", "o/a", alt="media", ifGenerationMatch=other) == 412
  assert ask("GET", "o/a", alt="media", ifGenerationNotMatch=current) == 304
  assert ask("GET", "o/a", alt="media", ifGenerationMatch=current) == 200
  parts = (
    b'{"sourceObjects": [{"name": "a"}, {"name": "a"}], "destination": {}}'
  )
  for path, body in [("o/b/compose", parts), ("o/b/compose", parts)]:
    assert ask("POST", path, body, ifGenerationMatch=other) == 412
  assert ask("POST", "o/b/compose", parts, ifGenerationMatch=0) == 200
  assert ask("POST", "o/b/compose", parts, ifGenerationMatch=0) == 412
  assert connection.ask("GET", "o/b", alt="media")[1] == b"xx"
  assert ask("DELETE", "o/a", ifGenerationMatch=other) == 412
  assert ask("DELETE", "o/a", ifGenerationMatch=current) == 204
  assert ask("DELETE", "o/a", ifGenerationMatch=current) == 404


def test_an_interrupted_upload_goes_on(bucket, connection):
  path = f"/upload/storage/v1/b/{bucket.name}/o"
  connection.ask("POST", path, b"{}", name="a", uploadType="resumable")
  address = connection.headers["location"]
  assert address.startswith(bucket.address)

  def put(body, content_range):
    headers = {"content-range": content_range}
    return connection.ask("PUT", address, body, headers)[0]

  assert put(b"", "bytes */*") == 308
  assert "range" not in connection.headers
  assert put(b"abc", "bytes 0-2/*") == 308
  assert put(b"", "bytes */*") == 308
  assert connection.headers["range"] == "bytes=0-2"
  assert connection.ask("GET", "o/a")[0] == 404
  assert put(b"xyz", "bytes 9-11/12") == 400
  for _ in range(2):  # The answer may get lost.
    assert put(b"cde", "bytes 2-4/5") == 200
  assert connection.ask("GET", "o/a", alt="media")[1] == b"abcde"


def test_files_in_gcsfs(bucket, fs):
  content = bytes(range(256)) * 4096
  with fs.open(f"{bucket.root}/d/large", "wb", block_size=2**18) as file:
    file.write(content)
  fs.pipe_file(f"{bucket.root}/d/e/small", b"0123456789")
  assert fs.cat_file(f"{bucket.root}/d/large") == content
  bucket.reset()
  assert fs.cat_file(f"{bucket.root}/d/e/small", 3, 6) == b"345"
  assert bucket.counts() == {"get_range": 1}
  path = f"/download/storage/v1/b/{bucket.name}/o/d%2Fe%2Fsmall?alt=media"
  assert bucket.requests() == [("GET", path)]
  assert fs.ls(f"{bucket.root}/d", detail=False) == [
    f"{bucket.name}/d/e",
    f"{bucket.name}/d/large",
  ]
  fs.rm(f"{bucket.root}/d", recursive=True)
  assert not fs.exists(f"{bucket.root}/d")
  with pytest.raises(FileNotFoundError):
    fs.rm_file(f"{bucket.root}/d/large")


def test_a_refused_range_is_no_trouble_to_the_next(connection):
  connection.upload("a", b"0123456789")
  for _ in range(2):
    headers = {"range": "bytes=10-"}
    assert connection.ask("GET", "o/a", None, headers, alt="media")[0] == 416
    headers = {"range": "bytes=-3"}
    answer = connection.ask("GET", "o/a", None, headers, alt="media")
    assert answer == (206, b"789")


def test_listings_come_in_pages(connection):
  for i in range(1005):
    connection.upload(f"a/{i:04d}", b"")
  connection.upload("b", b"")
  page = json.loads(connection.ask("GET", "o", maxResults=5000)[1])
  assert len(page["items"]) == 1000
  token = page["nextPageToken"]
  page = json.loads(connection.ask("GET", "o", pageToken=token)[1])
  names = [item["name"] for item in page["items"]]
  assert names == [f"a/{i}" for i in range(1000, 1005)] + ["b"]
  page = json.loads(connection.ask("GET", "o", delimiter="/")[1])
  assert page["prefixes"] == ["a/"]
  assert [item["name"] for item in page["items"]] == ["b"]


def test_requests_are_counted_by_kind(bucket, connection):
  assert bucket.counts() == {} and bucket.requests() == []
  connection.upload("a", b"", "multipart")
  connection.upload("a", b"", "resumable")
  connection.ask("GET", "o/a")
  connection.ask("GET", "o/a", alt="media")
  connection.ask("GET", "o", prefix="a")
  connection.ask("GET", f"/storage/v1/b/{bucket.name}")
  layout = json.loads(connection.ask("GET", "storageLayout")[1])
  assert layout["hierarchicalNamespace"] == {"enabled": False}
  connection.ask("PATCH", "o/a", b"{}")
  connection.ask("POST", f"o/a/rewriteTo/b/{bucket.name}/o/b", b"{}")
  connection.ask("DELETE", "o/b")
  kinds = "upload resumable resumable_part metadata get list bucket layout "
  kinds += "update copy delete"
  assert bucket.counts() == dict.fromkeys(kinds.split(), 1)
  method, address = bucket.requests()[0]
  assert method == "POST" and address.endswith("&name=a")
  bucket.reset()
  assert bucket.counts() == {}


def test_faults(bucket, connection):
  connection.upload("a", b"0123456789")
  for status in (503, 429):
    bucket.set(rate=1.0, kinds=[str(status)])
    assert connection.ask("GET", "o/a")[0] == status
  bucket.set(rate=1.0, kinds=["cut"])
  with pytest.raises((http.client.HTTPException, ConnectionError)):
    connection.upload("b", b"")
  connection._connection.close()
  bucket.set()
  assert connection.ask("GET", "o/b")[0] == 404
  bucket.set(rate=1.0, kinds=["cut_after"])
  with pytest.raises((http.client.HTTPException, ConnectionError)):
    connection.upload("b", b"")
  connection._connection.close()
  with pytest.raises(http.client.IncompleteRead) as error:
    connection.ask("GET", "o/a", alt="media")
  assert error.value.partial == b"01234"
  connection._connection.close()
  bucket.set()
  assert connection.ask("GET", "o/b")[0] == 200
  for settings in [{"latency": 0.2}, {"rate": 1.0, "kinds": ["slow"]}]:
    bucket.set(**settings)
    begin = time.monotonic()
    assert connection.ask("GET", "o/a")[0] == 200
    assert time.monotonic() - begin >= settings.get("latency", 2.0)
  with pytest.raises(ValueError, match="unknown faults"):
    bucket.set(kinds=["404"])


def test_faults_are_drawn_from_the_seed(bucket, connection):
  def statuses(seed):
    bucket.set(rate=0.5, kinds=["503", "429"], seed=seed)
    return [connection.ask("GET", "o")[0] for _ in range(30)]

  assert statuses(1) == statuses(1) != statuses(2)
  assert set(statuses(1)) == {200, 429, 503}


def test_a_client_that_tries_again_gets_through(bucket, fs, monkeypatch):
  async def no_sleep(_):
    pass

  fake = types.SimpleNamespace(sleep=no_sleep)
  monkeypatch.setattr("gcsfs.retry.asyncio", fake)
  bucket.set(rate=0.3, kinds=["503", "429", "cut", "cut_after"])
  for i in range(30):
    fs.pipe_file(f"{bucket.root}/{i}", b"%d" % i)
    assert fs.cat_file(f"{bucket.root}/{i}") == b"%d" % i
  assert sum(bucket.counts().values()) > 70


def test_no_rights(bucket, fs, bucket_module):
  fs.pipe_file(f"{bucket.root}/a", b"x")
  bucket.set(forbidden=True)
  with pytest.raises(OSError, match="Forbidden"):
    fs.cat_file(f"{bucket.root}/a")
  with pytest.raises(OSError, match="Forbidden"):
    fs.pipe_file(f"{bucket.root}/a", b"y")
  with bucket_module.make_bucket(bucket.address) as other:
    fs.pipe_file(f"{other.root}/a", b"y")
  bucket.set()
  assert fs.cat_file(f"{bucket.root}/a") == b"x"


def test_other_clients(bucket, connection):
  storage = pytest.importorskip("google.cloud.storage")
  tensorstore = pytest.importorskip("tensorstore")
  connection.upload("a", b"x")
  spec = {"driver": "gcs", "bucket": bucket.name}
  store = tensorstore.KvStore.open(spec).result()
  bucket.reset()
  store["b"] = b"y" * 2_000_000
  assert len(store["b"]) == 2_000_000
  assert bucket.counts() == {"upload": 1, "get": 1}
  client = storage.Client()
  assert not client.get_bucket(bucket.name).hierarchical_namespace_enabled
  assert client.bucket(bucket.name).blob("a").download_as_bytes() == b"x"
  client.close()


def test_another_process_finds_the_bucket(bucket, connection):
  connection.upload("a", b"x")
  code = "import sys, fsspec; sys.stdout.write(fsspec.open(sys.argv[1]).open()"
  code += ".read().decode())"
  result = subprocess.run(
    [sys.executable, "-c", code, f"{bucket.root}/a"],
    env=os.environ | bucket.environ,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout == "x"


def test_starting_needs_an_emulator(bucket_module, tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_GCS", str(tmp_path / "none"))
  with (
    pytest.raises(FileNotFoundError, match="is no file"),
    bucket_module.start_bucket(tmp_path),
  ):
    pass
