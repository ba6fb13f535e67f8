"""Lists of classes and of ids: read where that is certain, else refused."""

import unicodedata

import pytest

from must_jax.importers import lists

NAMES = ["cat", "big dog"]


def written(path, text):
  if text is not None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("c.txt", "cat\nbig dog\n"),
    ("c.names", "cat\nbig dog"),
    ("c.txt", "cat\r\nbig dog\r\n\n\n"),
    ("c.txt", "\ufeffcat\nbig dog\n"),
    ("c.txt", "\ufeffcat\n\ufeffbig dog\n"),
    ("c.txt", "cat\nbig dog\n".encode("utf-16")),
    ("c.txt", "# animals\n\ncat\n# larger ones\nbig dog\n"),
    ("c.txt", "# ours\n#\n#\tMIT\n\ncat\nbig dog\n"),
    ("c.txt", "0 cat\n1 big dog\n"),
    ("c.txt", "0: cat\n1: big dog\n"),
    ("c.txt", "0,cat\n1,big dog\n"),
    ("c.txt", "# label:color_rgb:parts:actions\ncat:0,0,9::\nbig dog:::\n"),
    ("c.json", '["cat", "big dog"]'),
    ("c.json", '\ufeff["cat", "big dog"]'),
    ("c.json", '{"1": "big dog", "0": "cat"}'),
    ("c.json", '{"big dog": 1, "cat": 0}'),
    ("c.json", '{"names": ["cat", "big dog"]}'),
    ("c.json:a", '{"a": ["cat", "big dog"], "b": 1}'),
    (
      "c.json:a",
      '{"a": [{"id": 1, "name": "big dog"}, {"id": 0, "name": "cat"}]}',
    ),
    ("c.yaml", "# ours\n- cat\n- big dog\n"),
    ("c.yml", "path: ../data\nnc: 2\nnames: ['cat', \"big dog\"]\n"),
    ("c.yaml", "names:\n  0: cat\n  1: big dog\n"),
    ("c.yaml:labels", "labels: [cat, big dog]\nnames: [a]\n"),
    ("c.csv", "cat\nbig dog\n"),
    ("c.csv", 'Name\ncat\n"big dog"\n'),
    ("c.csv", "0,cat\n1,big dog\n"),
    ("c.csv", "\ufeffid;name;note\r\n1;big dog;x\r\n0;cat;y\r\n"),
    ("c.csv", "class,name\n1,big dog\n0,cat\n"),
    ("c.tsv", "name\tid\nbig dog\t1\ncat\t0\n"),
  ],
)
def test_classes(tmp_path, name, text):
  written(tmp_path / name.partition(":")[0], text)
  assert lists.load_classes(f"{tmp_path / name}") == NAMES


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("c.txt", "#\n$\n,\n-\n", ["#", "$", ",", "-"]),  # characters
    ("c.txt", "0\n1\n2\n", ["0", "1", "2"]),
    ("c.txt", "building, edifice\nsky\n", ["building, edifice", "sky"]),
    ("c.txt", "3 wheeler\ncar\n", ["3 wheeler", "car"]),
    ("c.yaml", "[no, yes, 1.0]", ["no", "yes", "1.0"]),
    ("c.csv", "name\n0\n1\n", ["0", "1"]),
    ("c.txt", unicodedata.normalize("NFD", "caf\u00e9"), ["caf\u00e9"]),
  ],
)
def test_names_stay_what_they_are(tmp_path, name, text, expected):
  assert lists.load_classes(f"{written(tmp_path / name, text)}") == expected


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("c.txt", "cat\n\ndog\n", "line 2, '', is empty"),
    ("c.txt", "\ncat\n", "line 1, '', is empty"),
    ("c.txt", "cat\ncat\n", "'cat' comes twice"),
    ("c.txt", "cat\ncat \n", "'cat' comes twice"),
    ("c.txt", "", "it is empty"),
    ("c.txt", "# only a comment\n", "it is empty"),
    ("c.txt", "cat\n#dog\n", "line 2, '#dog', has a comment or begins so"),
    (
      "c.txt",
      "# ok\ncat\ndog # barks\n",
      "line 3, 'dog # barks', has a comment",
    ),
    ("c.txt", "# chars\n#\n$\n", "line 2, '#', has a comment or begins so"),
    ("c.txt", "# dogs\n\nrex\n\nmax\n", "line 4, '', is empty"),
    ("c.txt", "// animals\ncat\n", "line 1, '// animals', has a comment"),
    ("c.txt", "cat, dog, bird\n", "has several columns"),
    ("c.txt", "Idx\tName\n1\tcat\n", "has several columns"),
    ("c.txt", "1 cat\n2 dog\n", "numbered 1, ... 2, not from 0 up"),
    ("c.txt", "0: cat\n5: dog\n", "numbered 0, ... 5, not from 0 up"),
    ("c.txt", "names:\n- cat\n", "looks like YAML"),
    ("c.txt", "- cat\n- dog\n", "looks like YAML"),
    ("c.txt", "['cat', 'dog']\n", "is no plain text"),
    ("c.txt", '"cat",\n"dog"\n', "is no plain text"),
    ("c.pbtxt", "item {\n id: 1\n}\n", "is no plain text"),
    ("c.txt", "<annotation/>\n", "is no plain text"),
    ("c.json", "[1, 2]", "[1, 2] is no list of names"),
    ("c.json", '{"a": ["cat"]}', "'a'"),
    (
      "c.json",
      '{"1": "cat", "2": "dog"}',
      "ids are 1, 2 and so on, not 0 to 1",
    ),
    ("c.json", '[{"id": 1, "name": "cat"}]', "ids are 1 and so on, not 0 to 0"),
    ("c.json:labels", '{"names": ["cat"]}', "has no key 'labels'"),
    ("c.json", "[", "not valid JSON"),
    ("c.yaml:labels", "names: [cat]", "has no key 'labels'; it has ['names']"),
    ("c.yaml", "names: [cat", "not valid YAML"),
    ("c.yaml", "just text", "is no list of names"),
    ("c.csv", "/m/011k07,Tortoise\n", "without a column 'name'"),
    ("c.csv", "a,b,c\n1,2,3\n", "without a column 'name'"),
    ("c.csv", "0,cat\n1,dog,big\n", "different numbers of columns"),
    ("c.csv", "id,name\n1,cat\n2,dog\n", "ids are 1, 2 and so on"),
    ("c.csv", "id,name\n0,cat\n0,dog\n", "ids are 0, 0 and so on"),
    ("c.csv", "", "it is empty"),
    ("c.csv", "# ours\ncat\n", "its row ['# ours'] looks like a comment"),
    ("c.csv", "# id,name\n0,cat\n", "looks like a comment"),
    ("c.txt", "cat\n".encode("utf-16-le"), "it has zero bytes"),
    ("c.txt", b"\xe9\n", "is no UTF-8 text"),
    ("c.txt", None, "cannot be read"),
  ],
)
def test_what_may_be_no_name_is_refused(tmp_path, name, text, message):
  written(tmp_path / name.partition(":")[0], text)
  with pytest.raises(ValueError) as error:
    lists.load_classes(f"{tmp_path / name}")
  assert message in str(error.value)
  assert str(tmp_path / name.partition(":")[0]) in str(error.value)


KNOWN = {
  "photo",
  "photo 1",
  "photo 0",
  "a/1",
  "b",
  "img.v2.jpg.rf.1",
  "caf\u00e9",
}


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("b\nphoto\n\n", ["b", "photo"]),
    ("\ufeffb\r\nphoto\r\n", ["b", "photo"]),
    ("b\n".encode("utf-16"), ["b"]),
    # A number at the end of some lines belongs to the id,
    ("photo\nphoto 1\nphoto 0\nb\n", ["photo", "photo 1", "photo 0", "b"]),
    # at the end of all it may be a flag, if the ids are there without.
    ("b -1\nphoto  1\na/1  0\n", ["photo", "a/1"]),
    ("photo -1\nphoto 1\nb 0\n", ["photo", "b"]),
    ("gone 1\nb 1\n", ["gone", "b"]),
    ("photo 1.jpg\n", ["photo 1"]),
    ("photo.jpg\nb.PNG\nphoto 1.xml\n", ["photo", "b", "photo 1"]),
    ("img.v2.jpg.rf.1\nimg.v2.jpg.rf.1.jpg", ["img.v2.jpg.rf.1"]),
    (
      "JPEGImages/photo.jpg\n/data/a/1.jpg\nC:\\data\\b.jpg",
      ["photo", "a/1", "b"],
    ),
    ("b\nb\nb.jpg\n", ["b"]),
    ("cafe\u0301\nb", ["caf\u00e9", "b"]),
    ("b\nmissing\nb.v1\n", ["b", "missing", "b.v1"]),
  ],
)
def test_ids(tmp_path, text, expected):
  assert lists.read_ids(written(tmp_path / "l.txt", text), KNOWN) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "photo 1\n",
      "may mean two things: there is 'photo 1', and there is 'photo'",
    ),
    ("photo 1\nphoto 0\n", "may mean two things"),
    ("photo,b\n", "has 'photo,b'; expected one image on each line"),
    (
      "train/b.jpg\nval/b.jpg\n",
      "has 'train/b' and 'val/b', but there is only 'b'",
    ),
    ("x\ny\n", "None of the 2 ids of"),
    ("b -1\n", "names no image"),
    ("", "names no image"),
    ("../b\n", "has id '../b'"),
    ("/etc/passwd\n", "has id '/etc/passwd'"),
    (b"caf\xe9\n", "is no UTF-8 text"),
    (None, "cannot be read"),
  ],
)
def test_bad_ids(tmp_path, text, message):
  path = written(tmp_path / "l.txt", text)
  with pytest.raises(ValueError) as error:
    lists.read_ids(path, KNOWN)
  assert message in str(error.value)
  assert str(path) in str(error.value)
