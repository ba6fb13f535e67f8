"""Annotations with any part replaced by something else never crash a plan."""

import argparse
import copy
import json
import random

import pytest

from must_jax.importers import cvat, files, label_studio, yolo
from must_jax.storage import image_files

STRANGE = (
  *(None, True, -1, 0, 1.5, 10**400, float("nan"), "", "x", "1e400", "é"),
  *([], {}, [None], {"a": 1}, [[1]], "../a.jpg", "-1", "1,1;2", "a" * 500),
)
CVAT = """<annotations><meta><task><labels>
<label><name>cat</name><type>any</type></label></labels></task></meta>
<image id="0" name="a.jpg" width="100" height="40">
<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" rotation="3" z_order="1"/>
<polygon label="cat" points="1,1;9,1;5,9"/><tag label="cat"/>
<mask label="cat" rle="1,3" left="1" top="1" width="2" height="2"/>
<ellipse label="cat" cx="5" cy="5" rx="2" ry="2"/></image></annotations>"""
COMMON = {
  "id": "r",
  "from_name": "tool",
  "original_width": 100,
  "original_height": 40,
  "image_rotation": 0,
}
LABEL_STUDIO = [
  {
    "id": 1,
    "data": {"image": "a.jpg"},
    "predictions": [],
    "annotations": [
      {
        "was_cancelled": False,
        "updated_at": "2024",
        "result": [
          {
            **COMMON,
            "type": "rectanglelabels",
            "value": {
              "x": 1,
              "y": 1,
              "width": 9,
              "height": 9,
              "rotation": 1,
              "rectanglelabels": ["cat"],
            },
          },
          {
            **COMMON,
            "type": "polygonlabels",
            "value": {
              "points": [[1, 1], [9, 1], [5, 9]],
              "polygonlabels": ["cat"],
            },
          },
          {
            **COMMON,
            "type": "brushlabels",
            "value": {
              "format": "rle",
              "rle": [0, 0, 62, 128, 57, 0, 0, 0],
              "brushlabels": ["cat"],
            },
          },
          {**COMMON, "type": "choices", "value": {"choices": ["sunny"]}},
        ],
      }
    ],
  }
]


@pytest.fixture
def read(tmp_path, picture):
  """Plans and reads one image; errors of users are fine."""
  picture(tmp_path / "images/a.jpg", height=40, width=100)

  def run(module, text, *words):
    path = tmp_path / "annotations"
    path.write_text(text)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    words = [*words, "--images", tmp_path / "images"]
    if module is not yolo:
      words += ["--annotations", path]
    args = parser.parse_args([str(word) for word in words])
    try:
      plan = module.plan(args)
    except ValueError:
      return
    for item in plan.items:
      for image in plan.read(item):
        assert image.picture is not None or image.labels.rejected

  return run


def places(value, path=()):
  yield path
  if isinstance(value, (dict, list)):
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in pairs:
      yield from places(part, (*path, key))


def replaced(value, path, new):
  if not path:
    return new
  value = copy.deepcopy(value)
  part = value
  for key in path[:-1]:
    part = part[key]
  part[path[-1]] = new
  return value


def test_label_studio(read):
  read(label_studio, json.dumps(LABEL_STUDIO))
  for path in places(LABEL_STUDIO):
    for strange in STRANGE:
      read(label_studio, json.dumps(replaced(LABEL_STUDIO, path, strange)))


def test_cvat(read):
  words = [f'"{w}"' for w in ("", "x", "-1", "1e400", "nan", "1,1;2", "../a")]
  parts = CVAT.split('"')
  for i in range(1, len(parts), 2):
    for word in words:
      changed = ['"'.join(parts[:i]), word[1:-1], '"'.join(parts[i + 1 :])]
      read(cvat, '"'.join(changed))


def test_yolo(read, tmp_path):
  rng = random.Random(0)
  (tmp_path / "classes.txt").write_text("cat\n")
  label = tmp_path / "labels/a.txt"
  label.parent.mkdir()
  words = ("0", "1", "-1", "0.5", "1e400", "nan", "inf", "x", "\n", "\x00", "é")
  for _ in range(300):
    label.write_text(" ".join(rng.choices(words, k=rng.randint(0, 30))))
    read(yolo, "", "--classes", tmp_path / "classes.txt")


def test_names_never_lead_out_of_images(tmp_path):
  for name in ("../a.jpg", "/a.jpg", "a/../../b.jpg", "..\\a.jpg"):
    with pytest.raises(image_files.Rejected):
      files.inside(tmp_path, name)
    for found in label_studio.possible_names(name):
      files.inside(tmp_path, found)
