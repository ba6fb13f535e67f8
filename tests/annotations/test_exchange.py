"""Names of files, and what formats share."""

import pathlib
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from must_jax.annotations import exchange
from must_jax.importers import files


@given(st.text(min_size=1, max_size=20).filter(lambda key: "\0" not in key))
def test_names_of_files_are_safe_and_lead_back(key):
  name = exchange.file_name(key)
  assert exchange.key_of_name(name) == key
  path = pathlib.PurePosixPath(name)
  assert not path.is_absolute() and str(path) == name
  for part in path.parts:
    assert part not in ("..", "images", "labels")
    assert part.strip(". ") == part and part
    assert not set(part) & set('\\:*?"<>|#\n')
  assert files.inside(pathlib.Path("folder"), name)  # as importers check it
  # Label Studio and browsers unquote what is quoted, once.
  assert urllib.parse.unquote(urllib.parse.quote(name)) == name


def test_plain_keys_stay_readable():
  assert exchange.file_name("2024/Zoë (2)_a-b.c") == "2024/Zoë (2)_a-b.c.jpg"
  assert exchange.file_name("a", b"\x89PNG\r\n") == "a.png"


@pytest.mark.parametrize("start", ["", "images/", "data/images/"])
def test_folders_that_tools_put_before_names_are_left_out(start):
  names = [f"{start}a/b.jpg", f"{start}c.jpg"]
  assert exchange.keys_of(names, ["a/b", "c"]) == dict(
    zip(names, ["a/b", "c"], strict=True)
  )


def test_one_unknown_name_takes_no_other_image():
  assert exchange.keys_of(["a.jpg", "x/a.jpg"], ["a"]) == {
    "a.jpg": "a",
    "x/a.jpg": "x/a",
  }
