import argparse
import gzip
import pickle
import struct

import numpy as np
import pytest
import tensorflow as tf

from must_jax.importers import tfrecords

CLASSES = ["cat", "dog", "fish", "bird"]


@pytest.fixture
def jpeg(tmp_path, picture):
  def encode(number):
    path = tmp_path / f"{number}.jpg"
    picture(path)
    return path.read_bytes()

  return encode


@pytest.fixture
def save(tmp_path):
  """Writes a TFRecord file with TensorFlow's own writer."""

  def write(name, examples, options=None):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), options) as writer:
      for features in examples:
        writer.write(example(**features))
    return path

  return write


def example(**features):
  kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
  example = tf.train.Example()
  for name, values in features.items():
    values = values if isinstance(values, list) else [values]
    feature = example.features.feature[name.replace("__", "/")]
    if values:
      getattr(feature, kinds[type(values[0])]).value.extend(values)
  return example.SerializeToString()


def jft(image, classes, **more):
  more = {k: v for k, v in more.items() if v is not None}
  return {"image__encoded": image, "image__class__label": classes, **more}


@pytest.fixture
def read(tmp_path):
  """Plans, and reads all items as another process would."""
  names = tmp_path / "classes.txt"
  names.write_text("\n".join(CLASSES))

  def run(*words, labels=("--classes", names)):
    parser = argparse.ArgumentParser()
    tfrecords.add_arguments(parser)
    plan = tfrecords.plan(parser.parse_args([str(w) for w in words + labels]))
    items, reader = pickle.loads(pickle.dumps((plan.items, plan.read)))
    assert plan.shard_per_item
    return plan, {im.key: im for item in items for im in reader(item)}

  return run


def labels(images):
  return {k: im.labels.arrays["label"]["classes"] for k, im in images.items()}


def test_ids_and_names_give_the_same_classes(read, save, jpeg, tmp_path):
  save("ids-0.tfrecord", [jft(jpeg(0), [3, 1]), jft(jpeg(1), [0])])
  save("names-0.tfrecord", [jft(jpeg(0), [b"bird", b"dog"])])
  plan, images = read("--records", tmp_path / "*.tfrecord")
  assert plan.fields == {"label": {"kind": "ClassVector", "classes": CLASSES}}
  assert labels(images) == {
    "ids-0/00000000": [3, 1],
    "ids-0/00000001": [0],
    "names-0/00000000": [3, 1],
  }
  assert images["ids-0/00000000"].picture.data == jpeg(0)


def test_scores_become_probabilities_and_the_highest_of_a_class_counts(
  read, save, jpeg
):
  path = save("a", [jft(jpeg(0), [2, 1, 2], score=[0.25, 1.0, 0.5])])
  _, images = read("--records", path, "--score-feature", "score")
  [image] = images.values()
  assert image.labels.arrays["label"] == {
    "classes": [2, 1],
    "probs": [0.5, 1.0],
  }


@pytest.mark.parametrize("scores", [[0.5], [], None])
def test_too_few_scores_reject_the_image(read, save, jpeg, scores):
  path = save("a", [jft(jpeg(0), [2, 1], score=scores)])
  _, images = read("--records", path, "--score-feature", "score")
  assert images["a/00000000"].picture is None
  assert "for 2 classes" in images["a/00000000"].labels.rejected[0]


@pytest.mark.parametrize(
  ("label", "score", "reason"),
  [
    (4, 1.0, "class 4 is none of the 4"),
    (-1, 1.0, "class -1 is none"),
    (b"cow", 1.0, "class b'cow' is none"),
    (b"\xff", 1.0, "is none"),
    (0.5, 1.0, "class 0.5 is none"),
    (1, 1.5, "expected a probability"),
    (1, -0.1, "expected a probability"),
    (1, float("nan"), "expected a probability"),
  ],
)
def test_a_class_that_does_not_fit_is_dropped_with_a_reason(
  read, save, jpeg, label, score, reason
):
  other = {bytes: b"cat", int: 0, float: 1.0}[type(label)]
  path = save("a", [jft(jpeg(0), [other, label], score=[0.75, score])])
  _, images = read("--records", path, "--score-feature", "score")
  [image] = images.values()
  assert image.picture is not None
  assert any(reason in text for text in image.labels.rejected)
  if not isinstance(label, float):  # of a list of floats nothing fits
    assert image.labels.arrays["label"]["classes"] == [0]
    assert len(image.labels.rejected) == 1


def test_an_image_without_classes_has_no_label(read, save, jpeg):
  path = save("a", [jft(jpeg(0), []), {"image__encoded": jpeg(1)}])
  plan, images = read("--records", path)
  assert [dict(im.labels.arrays) for im in images.values()] == [{}, {}]
  assert all(im.picture and not im.labels.rejected for im in images.values())
  assert plan.summarize({"labelled": 0, "classes": 0, "without": 2}) == [
    "images with classes: 0, with 0 each on average; without: 2"
  ]


def test_unlabelled_takes_the_images_alone(read, save, jpeg):
  path = save("a", [jft(jpeg(0), [99])])
  plan, images = read("--records", path, labels=("--unlabelled",))
  assert (plan.fields, plan.summarize({})) == ({}, [])
  assert images["a/00000000"].labels.arrays == {}


@pytest.mark.parametrize(
  ("given", "key"), [(b"x/y 1", "x/y 1"), (7, "7"), (b"\xc3\xa9", "é")]
)
def test_a_feature_can_be_the_key(read, save, jpeg, given, key):
  path = save("a", [jft(jpeg(0), [1], id=given)])
  assert list(read("--records", path, "--key-feature", "id")[1]) == [key]


@pytest.mark.parametrize("given", [[], [b"a", b"b"], 0.5, b"\xff"])
def test_a_record_without_a_usable_key_is_rejected(read, save, jpeg, given):
  path = save("a", [jft(jpeg(0), [1], id=b"0"), jft(jpeg(1), [1], id=given)])
  _, images = read("--records", path, "--key-feature", "id")
  assert images["0"].picture
  assert "'id'" in images["a/00000001"].labels.rejected[0]


def test_what_is_no_image_or_no_example_is_rejected_alone(read, tmp_path, jpeg):
  path = tmp_path / "a.tfrecord"
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(example(**jft(jpeg(0), [1])))
    writer.write(b"\xff\xff no proto")
    writer.write(example(**jft(b"GIF89a", [1])))
    writer.write(example(**jft(jpeg(1)[:-30], [1])))
    writer.write(example(**jft([jpeg(1), jpeg(2)], [1])))
    writer.write(example(**jft(jpeg(2), [1])))
  _, images = read("--records", path)
  reasons = [" ".join(im.labels.rejected) for im in images.values()]
  fine = [im.picture is not None for im in images.values()]
  assert fine == [True, False, False, False, False, True]
  assert reasons[1] == "is no tf.train.Example"
  assert "neither JPEG nor PNG" in reasons[2]
  assert "cannot be decoded" in reasons[3]
  assert "holds 2 values" in reasons[4]


def frames(path):
  """Start of each record, by TFRecord's published format."""
  data, starts, place = path.read_bytes(), [], 0
  while place < len(data):
    starts.append(place)
    place += 16 + struct.unpack_from("<Q", data, place)[0]
  return bytearray(data), starts


def test_a_corrupt_record_costs_one(read, save, jpeg):
  path = save("a", [jft(jpeg(i), [1]) for i in range(4)])
  data, starts = frames(path)
  data[starts[1] + 40] ^= 1
  path.write_bytes(data)
  _, images = read("--records", path)
  assert [im.picture is not None for im in images.values()] == [1, 0, 1, 1]
  assert images["a/00000001"].labels.rejected == ["its checksum does not match"]
  assert list(images) == [f"a/{i:08d}" for i in range(4)]


@pytest.mark.parametrize("place", [0, 7, 8, 11])
def test_a_broken_length_costs_the_rest_of_its_file_alone(
  read, save, jpeg, tmp_path, place
):
  path = save("a", [jft(jpeg(i), [1]) for i in range(4)])
  save("b", [jft(jpeg(9), [1])])
  data, starts = frames(path)
  data[starts[2] + place] ^= 0x40
  path.write_bytes(data)
  _, images = read("--records", tmp_path / "[ab]")
  assert list(images) == [
    *("a/00000000", "a/00000001", "a/00000002", "b/00000000")
  ]
  lost = len(data) - starts[2]
  [reason] = images["a/00000002"].labels.rejected
  assert f"at byte {starts[2]} " in reason
  assert f"the last {lost} of {len(data)} bytes were not read" in reason


@pytest.mark.parametrize("cut", [1, 4, 20, -12, -5])
def test_a_file_that_ends_early_tells_what_is_lost(read, save, jpeg, cut):
  path = save("a", [jft(jpeg(i), [1]) for i in range(2)])
  data, starts = frames(path)
  end = len(data) - cut if cut > 0 else starts[1] - cut
  path.write_bytes(data[:end])
  _, images = read("--records", path)
  assert [im.picture is not None for im in images.values()] == [True, False]
  [reason] = images["a/00000001"].labels.rejected
  assert f"the last {end - starts[1]} of {end} bytes" in reason


def test_a_record_above_the_cap_is_passed_over(read, save, jpeg, monkeypatch):
  path = save(
    "a", [jft(jpeg(0), [1]), jft(bytes(5000), [1]), jft(jpeg(1), [1])]
  )
  monkeypatch.setattr(tfrecords.tfrecord, "MAX_RECORD_BYTES", 4000)
  _, images = read("--records", path)
  assert [im.picture is not None for im in images.values()] == [1, 0, 1]
  assert "at most 4000 are" in images["a/00000001"].labels.rejected[0]


def test_compressed_files_are_refused_by_name(read, save, jpeg, tmp_path):
  path = save("a", [jft(jpeg(0), [1])], tf.io.TFRecordOptions("GZIP"))
  assert gzip.decompress(path.read_bytes())
  with pytest.raises(ValueError, match="compressed with GZIP: unpack it"):
    read("--records", path)
  save("Z", [jft(jpeg(0), [1])])  # comes first
  _, images = read("--records", tmp_path / "[aZ]")
  assert "GZIP" in images["a/00000000"].labels.rejected[0]


@pytest.mark.parametrize(
  ("content", "message"),
  [(b"", "it is empty"), (b"no records at all", "broken length")],
)
def test_a_first_file_that_is_none_is_an_error(
  read, tmp_path, content, message
):
  (tmp_path / "a").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read("--records", tmp_path / "a")


def test_a_missing_feature_is_an_error_that_lists_those_there(read, save, jpeg):
  path = save("a", [{"jpg": jpeg(0), "image__id": b"1"}])
  with pytest.raises(ValueError, match=r"\['image/id', 'jpg'\].*--image-"):
    read("--records", path)
  with pytest.raises(ValueError, match=r"no feature 'key'.*--key-feature"):
    words = ("--image-feature", "jpg", "--key-feature", "key")
    read("--records", path, *words)


def test_the_name_without_its_extension_begins_the_keys(read, save, jpeg):
  one = [jft(jpeg(0), [1])]
  paths = [
    save("x/a.tfrecord", one),
    save("x/b.tfrecord-00001-of-00002", one),
    save("x/b.tfrecord-00000-of-00002", one),
  ]
  assert list(read("--records", *paths)[1]) == [
    "a/00000000",
    "b.tfrecord-00000-of-00002/00000000",
    "b.tfrecord-00001-of-00002/00000000",
  ]
  other = save("y/a.tfrecords", one)
  with pytest.raises(ValueError, match="have the same name"):
    read("--records", *paths, other)


def test_a_glob_without_files_is_an_error(read, tmp_path):
  with pytest.raises(ValueError, match="matches no file"):
    read("--records", tmp_path / "none-*")


def test_a_set_is_imported_in_the_order_of_its_files(
  run_import, read_back, save, jpeg, tmp_path
):
  for i in range(3):
    numbers = range(4 * i, 4 * i + 4)
    save(f"in/t-{i}", [jft(jpeg(n), [n % 4, (n + 1) % 4]) for n in numbers])
  (tmp_path / "names").write_text("\n".join(CLASSES))
  status, out, err = run_import(
    *("tfrecords", "--records", tmp_path / "in/*"),
    *("--classes", tmp_path / "names", "--workers", 1),
  )
  assert status == 0, err
  assert "images with classes: 12, with 2 each on average; without: 0" in out
  records, image_set = read_back()
  assert [shard.num_records for shard in image_set.shards] == [4, 4, 4]
  keys = [f"t-{i}/{j:08d}" for i in range(3) for j in range(4)]
  assert list(records) == keys
  for n, key in enumerate(keys):
    assert records[key]["image"] == [jpeg(n)]
    np.testing.assert_array_equal(
      records[key]["label/classes"], [n % 4, (n + 1) % 4]
    )


def test_changed_files_are_read_again(
  run_import, read_back, save, jpeg, tmp_path
):
  (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
  words = ("tfrecords", "--records", tmp_path / "*.tfrecord")
  words += ("--classes", tmp_path / "classes.txt")
  save("a-0.tfrecord", [jft(jpeg(0), [9])])
  save("a-1.tfrecord", [jft(jpeg(1), [1])])
  assert run_import(*words)[0] == 1
  save("a-0.tfrecord", [jft(jpeg(0), [0])])
  save("a-1.tfrecord", [jft(jpeg(1), [2])])
  status, out, _ = run_import(*words)
  assert status == 0
  assert "labels or files of 2 of 2 parts have changed" in out
  values, _ = read_back()
  assert [v["label/classes"] for v in values.values()] == [[0], [2]]


def test_ids_that_begin_with_1(read, save, jpeg):
  path = save("a", [jft(jpeg(i), [1 + i]) for i in range(4)])
  _, images = read("--records", path)
  (reason,) = images["a/00000003"].labels.rejected
  assert reason == (
    "class 4 is none of the 4 of --classes, ids 0 to 3; do ids begin with 1?"
    " Then give --first-id 1"
  )
  _, images = read("--records", path, "--first-id", 1)
  assert labels(images) == {f"a/{i:08d}": [i] for i in range(4)}
  path = save("b", [jft(jpeg(0), [0])])
  _, images = read("--records", path, "--first-id", 1)
  assert (
    (images["b/00000000"].labels.rejected[0])
    == "class 0 is none of the 4 of --classes, ids 1 to 4"
  )


def test_ids_are_compared_with_names_where_records_have_both(read, save, jpeg):
  def one(label, *names):
    return jft(jpeg(0), [label], image__class__text=list(names))

  path = save(
    "a",
    [one(1, b"cat"), one(1, b"dog"), one(1, b"a dog"), one(1), one(9, b"x")],
  )
  _, images = read("--records", path)
  assert labels({k: im for k, im in images.items() if im.labels.arrays}) == {
    f"a/{i:08d}": [1] for i in (1, 2, 3)
  }
  assert images["a/00000000"].labels.rejected == [
    "class 1 is 'dog' by --classes, 'cat' by image/class/text; give --first-id,"
    " or --label-feature image/class/text"
  ]
  words = ("--label-feature", "image/class/text")
  _, images = read("--records", path, *words)
  assert images["a/00000000"].labels.arrays["label"]["classes"] == [0]


def test_classes_that_never_occur_are_told(run_import, save, jpeg, tmp_path):
  path = save("in/a", [jft(jpeg(i), [2, 1 + i]) for i in range(2)])
  (tmp_path / "names").write_text("\n".join(CLASSES))
  status, out, _ = run_import(
    *("tfrecords", "--records", path, "--classes", tmp_path / "names")
  )
  assert status == 0
  assert "warning: label: 2 of the 4 classes never occur: 'cat' (0)" in out
  assert "'bird' (3)\n" in out
