"""Names and ids that mean the same."""

import itertools

import pytest

from must_jax.importers import names


@pytest.mark.parametrize(
  ("ids", "same"),
  [
    ([1, 2], [(1, "1"), (1, 1.0), (1, "01"), (1, " 1 ")]),
    (["000001", "000002"], [("000001", 1), ("000001", "1")]),
    (["a1", "b"], [("a1", "a1 ")]),
    (["caf\u00e9"], [("caf\u00e9", "cafe\u0301")]),
    # Where zeros in front tell ids apart, they count.
    (["1", "01"], [("1", 1), ("01", "01")]),
  ],
)
def test_forms_of_ids(ids, same):
  form = names.id_form(ids)
  for a, b in same:
    assert form(a) == form(b)
  for a, b in itertools.combinations(ids, 2):
    assert form(a) != form(b)


def test_what_is_an_id():
  assert all(map(names.is_id, (0, -3, 7.0, "7", "x")))
  assert not any(map(names.is_id, (None, True, 7.5, [], {}, float("nan"))))


def test_references():
  def check(given, allowed=0.0):
    ids = [1, 2]
    form = names.id_form(ids)
    return names.check_references("boxes", given, ids, form, allowed)

  assert check(["1", 2, 2]) == []
  assert check([]) == []
  with pytest.raises(ValueError, match=r"1 of 4 boxes .* such as image_id 3; "):
    check([1, 1, 2, 3], 0.2)
  with pytest.raises(
    ValueError, match=r"such as 1, 2\. .*--max-rejected 0\.25"
  ):
    check([1, 1, 2, 3], 0.2)
  (warning,) = check([1, 1, 2, 3], 0.25)
  assert warning.startswith("1 of 4 boxes refer to no image")


def clean(*classes):
  fields = {"label": {"classes": list(classes)}, "d": {"kind": "x"}}
  cleaned = names.clean_classes(fields)
  assert cleaned["d"] == {"kind": "x"}
  return cleaned["label"]["classes"]


def test_class_names_are_composed():
  assert clean("b ", "cafe\u0301", "a  b") == ["b", "caf\u00e9", "a  b"]
  assert clean("Cat", "cat", "ca-t") == ["Cat", "cat", "ca-t"]


@pytest.mark.parametrize(
  ("a", "b"),
  [
    ("cat", "cat "),
    ("a b", "a  b"),
    ("caf\u00e9", "cafe\u0301"),
    ("a\u00a0b", "a b"),
    ("a\u200bb", "ab"),
  ],
)
def test_names_that_look_the_same(a, b):
  with pytest.raises(ValueError) as error:
    clean("dog", a, b)
  assert f"{a!r} and {b!r}" in str(error.value)
