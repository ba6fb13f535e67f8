import argparse
import importlib.resources.abc
import io
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from must_jax.importers import tfds as importer

pytestmark = pytest.mark.filterwarnings(
  r"ignore:label\(\) is deprecated"  # TFDS reads its feature files by it
)

# fmt: off
VOC_CLASSES = [
  "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
  "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
  "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on


def pixels(number, height, width):
  rng = np.random.default_rng(number)
  return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def jpeg(number, height=20, width=40, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels(number, height, width)).save(buffer, "JPEG", **options)
  return buffer.getvalue()


def _prepare(data_dir, name, splits, names=None):
  """Prepares examples as if the real dataset held them."""
  import tensorflow_datasets as tfds

  builder = tfds.builder(name, data_dir=data_dir)
  builder._split_generators = lambda manager: {
    split: iter(enumerate(examples)) for split, examples in splits.items()
  }
  for (*path, last), values in (names or {}).items():
    feature = builder.info.features
    for part in path:
      feature = feature[part]
    feature[last].names = values
  # Several files, so that the order of reading them shows.
  num_files = min(3, *map(len, splits.values()))
  config = tfds.download.DownloadConfig(num_shards=num_files)
  builder.download_and_prepare(download_config=config)


def _coco(number, objects):
  import tensorflow_datasets as tfds

  return {
    "image": io.BytesIO(jpeg(number)),
    "image/filename": f"{number:012d}.jpg",
    "image/id": number,
    "objects": [
      {
        "id": i,
        "area": 1,
        "bbox": tfds.features.BBox(*box),
        "label": label,
        "is_crowd": crowd,
      }
      for i, (box, label, crowd) in enumerate(objects)
    ],
  }


def _voc(number, objects, image=None):
  """Objects as (ymin, xmin, ymax, xmax) of the XML, which counts from 1."""
  import tensorflow_datasets as tfds

  scale = np.array([20, 40, 20, 40])
  return {
    "image": io.BytesIO(image or jpeg(number)),
    "image/filename": f"{number:06d}.jpg",
    "objects": [
      {
        "bbox": tfds.features.BBox(*(np.array(box) / scale)),
        "label": label,
        "pose": "left",
        "is_truncated": False,
        "is_difficult": difficult,
      }
      for box, label, difficult in objects
    ],
    "labels": [],
    "labels_no_difficult": [],
  }


def _turned():
  exif = Image.Exif()
  exif[0x0112] = 3
  return jpeg(9, exif=exif)


def nyu_depth():
  """Metres with a zero, an infinity and a nan."""
  depth = np.linspace(0.5, 9.5, 480 * 640).reshape(480, 640)
  depth[0, :3] = 0, np.inf, np.nan
  return depth.astype(np.float16)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("tfds")
  with pytest.MonkeyPatch.context() as patch:
    # TFDS writes with this backport, which it does not declare.
    patch.setitem(sys.modules, "importlib_resources", importlib.resources)
    _prepare(
      directory,
      "cifar100",
      {
        "train": [
          {
            "id": f"train_{i:05d}",
            "image": pixels(i, 32, 32),
            "label": i,
            "coarse_label": i % 20,
          }
          for i in range(10)
        ]
      },
      {
        ("label",): [f"fine{i}" for i in range(100)],
        ("coarse_label",): [f"coarse{i}" for i in range(20)],
      },
    )
    _prepare(
      directory,
      "imagenet2012",
      {
        "train": [
          {
            "image": io.BytesIO(jpeg(0)),
            "label": 7,
            "file_name": "n0_1.JPEG",
          }
        ],
        "test": [
          {
            "image": io.BytesIO(jpeg(1)),
            "label": -1,
            "file_name": "test_1.JPEG",
          }
        ],
      },
    )
    _prepare(
      directory,
      "coco/2017",
      {
        "train": [
          _coco(
            1,
            [
              ((0.1, 0.2, 0.5, 1.0), "c3", False),
              ((0.0, 0.0, 1.0, 1.0), "c79", True),
              ((0.5, 0.25, 0.5, 0.75), "c1", False),
            ],
          ),
          _coco(2, []),
        ],
        "test": [_coco(3, [])],
      },
      {("objects", "label"): [f"c{i}" for i in range(80)]},
    )
    _prepare(
      directory,
      "voc/2007",
      {
        "train": [
          _voc(
            1,
            [((1, 1, 10, 20), "dog", False), ((3, 5, 20, 40), "person", True)],
          )
        ],
        "validation": [_voc(i, []) for i in (2, 3)],
        "test": [_voc(9, [((1, 1, 2, 2), "dog", False)], _turned())],
      },
    )
    _prepare(
      directory,
      "voc/2012",
      {
        "train": [_voc(5, [((1, 1, 20, 40), "cat", False)])],
        "test": [_voc(6, [])],
      },
    )
    _prepare(
      directory,
      "nyu_depth_v2",
      {
        "train": [{"image": pixels(0, 480, 640), "depth": nyu_depth()}],
        "validation": [
          {
            "image": pixels(0, 480, 640),
            "depth": np.zeros((480, 640), np.float16),
          }
        ],
      },
    )
    _prepare(
      directory,
      "open_images_v4/original",
      {
        "train": [
          {
            "image": io.BytesIO(jpeg(0)),
            "image/filename": "0.jpg",
            "objects": [],
            "objects_trainable": [],
            "bobjects": [],
          }
        ]
      },
    )
  return directory


@pytest.fixture
def read(data_dir):
  """Plans, and reads all items as another process would."""

  def run(*words, split="train", shards=None, records_per_shard=1024):
    parser = argparse.ArgumentParser()
    importer.add_arguments(parser)
    parser.set_defaults(
      split=split, shards=shards, records_per_shard=records_per_shard
    )
    args = parser.parse_args([*words, "--data-dir", str(data_dir)])
    plan = importer.plan(args)
    items, reader = pickle.loads(pickle.dumps((plan.items, plan.read)))
    assert plan.shard_per_item
    ranges = [list(reader(item)) for item in items]
    images = {image.key: image for images in ranges for image in images}
    assert plan.num_images == sum(map(len, ranges)) == len(images)
    return plan, images, list(map(len, ranges))

  return run


def test_cifar100_keeps_its_pixels_classes_and_ids(read):
  plan, images, _ = read("--dataset", "cifar100")
  assert plan.fields == {
    "label": {
      "kind": "ClassVector",
      "classes": [f"fine{i}" for i in range(100)],
    }
  }
  assert plan.notes == ["features left out: coarse_label"]
  assert sorted(images) == [f"train_{i:05d}" for i in range(10)]
  for i in range(10):
    image = images[f"train_{i:05d}"]
    assert image.labels.arrays == {"label": {"classes": [i]}}
    decoded = np.asarray(Image.open(io.BytesIO(image.picture.data)))
    np.testing.assert_array_equal(decoded, pixels(i, 32, 32))


def test_imagenet_keeps_its_jpegs_and_its_test_split_has_no_label(read):
  _, train, _ = read("--dataset", "imagenet2012")
  assert train["n0_1"].picture.data == jpeg(0)
  assert train["n0_1"].labels.arrays == {"label": {"classes": [7]}}
  plan, test, _ = read("--dataset", "imagenet2012:test")
  assert len(plan.fields["label"]["classes"]) == 1000
  assert test["test_1"].labels.arrays == {}


def test_coco_crowds_are_ignored_and_boxes_without_area_rejected(read):
  plan, images, _ = read("--dataset", "coco/2017")
  assert plan.fields == {
    "objects": {"kind": "Boxes", "classes": [f"c{i}" for i in range(80)]}
  }
  labels = images["000000000001"].labels
  boxes = labels.arrays["objects"]
  np.testing.assert_allclose(
    boxes["boxes"], [[0.1, 0.2, 0.5, 1.0], [0, 0, 1, 1]], rtol=1e-6
  )
  assert boxes["classes"].tolist() == [3, 79]
  assert boxes["ignore"].tolist() == [False, True]
  assert labels.rejected == [
    "object 2: bbox [0.5, 0.25, 0.5, 0.75] has no area"
  ]
  assert labels.counts == {"objects": 2, "ignored": 1}
  empty = images["000000000002"].labels.arrays["objects"]
  assert [len(v) for v in empty.values()] == [0, 0, 0]


@pytest.mark.parametrize("name", ["coco/2017:test", "voc/2012:test"])
def test_splits_published_without_objects_are_not_empty_scenes(read, name):
  plan, images, _ = read("--dataset", name)
  [image] = images.values()
  assert (image.labels.arrays, image.labels.rejected) == ({}, ())
  assert f"{name} was published without labels" in plan.notes


def test_voc_boxes_take_in_their_edge_pixels(read):
  plan, images, _ = read("--dataset", "voc/2007")
  assert plan.fields["objects"]["classes"] == VOC_CLASSES
  boxes = images["000001"].labels.arrays["objects"]
  np.testing.assert_allclose(
    boxes["boxes"],
    [[0, 0, 10 / 20, 20 / 40], [2 / 20, 4 / 40, 1, 1]],
    atol=1e-7,
  )
  assert boxes["classes"].tolist() == [11, 14]
  assert boxes["ignore"].tolist() == [False, True]


def test_boxes_of_a_turned_image_are_rejected(read):
  _, images, _ = read("--dataset", "voc/2007:test")
  assert images["000009"].picture is None
  assert "EXIF" in images["000009"].labels.rejected[0]
  _, images, _ = read("--dataset", "voc/2007:test", "--unlabelled")
  assert images["000009"].picture.turned


def test_nyu_depth_is_metres_where_it_is_valid(read):
  plan, images, _ = read("--dataset", "nyu_depth_v2")
  assert plan.fields == {"depth": {"kind": "ValueMap", "unit": "metres"}}
  [(key, image)] = images.items()
  assert key == "train/00000000"
  depth = image.labels.arrays["depth"]
  expected = nyu_depth().astype(np.float64)
  invalid = np.zeros((480, 640), bool)
  invalid[0, :3] = True
  np.testing.assert_array_equal(depth["valid"], ~invalid)
  np.testing.assert_array_equal(depth["values"][~invalid], expected[~invalid])
  assert np.isfinite(depth["values"]).all()
  mean = expected[~invalid].mean()
  assert plan.summarize(image.labels.counts) == [
    f"depth (metres): mean {mean:.4g}, 100.0% of the pixels are valid"
  ]


def test_depth_without_a_valid_pixel_is_rejected(read):
  _, images, _ = read("--dataset", "nyu_depth_v2:validation")
  [image] = images.values()
  assert image.picture is None
  assert "0 valid pixels" in image.labels.rejected[0]


def test_splits_and_datasets_join_under_prefixed_keys(read):
  _, images, _ = read("--dataset", "voc/2007:train+validation", "voc/2012")
  assert sorted(images) == [
    "voc/2007/000001",
    "voc/2007/000002",
    "voc/2007/000003",
    "voc/2012/000005",
  ]
  _, images, _ = read("--dataset", "voc/2007:5.0.0:validation")
  assert sorted(images) == ["000002", "000003"]


def test_datasets_with_other_labels_do_not_join(read):
  with pytest.raises(ValueError, match=r"nyu_depth_v2 has other labels"):
    read("--dataset", "voc/2007", "nyu_depth_v2")
  _, images, _ = read("--dataset", "voc/2007", "nyu_depth_v2", "--unlabelled")
  assert sorted(images) == ["nyu_depth_v2/train/00000000", "voc/2007/000001"]
  assert all(image.labels.arrays == {} for image in images.values())


@pytest.mark.parametrize(
  ("sizes", "lengths"),
  [
    ({"records_per_shard": 4}, [3, 3, 4]),
    ({"records_per_shard": 10}, [10]),
    ({"shards": 4}, [2, 3, 2, 3]),
  ],
)
def test_ranges_are_even_and_keep_the_order_of_tfds(read, sizes, lengths):
  _, whole, _ = read("--dataset", "cifar100")
  _, cut, found = read("--dataset", "cifar100", **sizes)
  assert found == lengths
  assert list(cut) == list(whole)


def test_a_range_may_reach_over_splits(read):
  words = ("--dataset", "voc/2007:validation+train", "voc/2012")
  _, images, lengths = read(*words, shards=2)
  assert lengths == [2, 2]
  assert list(images)[2:] == ["voc/2007/000001", "voc/2012/000005"]


def test_there_are_no_more_ranges_than_images(read):
  _, _, lengths = read("--dataset", "voc/2007:validation", shards=9)
  assert lengths == [1, 1]


def test_a_slice_of_a_split_can_be_taken(read):
  _, whole, _ = read("--dataset", "cifar100")
  _, part, _ = read("--dataset", "cifar100:train[2:5]")
  assert list(part) == list(whole)[2:5]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no_such_set", "cannot open 'no_such_set': Dataset no_such_set not found"),
    ("voc/1999", "cannot open 'voc/1999'"),
    ("voc/2007:nix", r"no split 'nix'.*\['test', 'train', 'validation'\]"),
    ("cifar100:train[5:99]", "has no split"),
    ("../voc", "expected NAME"),
    ("voc/../../etc", "expected NAME"),
    ("huggingface:mnist", "cannot open|no split|not prepared"),
    ("cifar10", r"not prepared in .*--data-dir .*--download"),
  ],
)
def test_what_is_not_there_is_an_error(read, name, message):
  with pytest.raises(ValueError, match=message):
    read("--dataset", name)


def test_manual_downloads_say_which_file_goes_where(tmp_path):
  args = argparse.Namespace(
    dataset=["imagenet2012"],
    data_dir=str(tmp_path),
    download=False,
    unlabelled=False,
    split="train",
  )
  with pytest.raises(ValueError) as error:
    importer.plan(args)
  message = str(error.value)
  assert f"put its files into {tmp_path / 'downloads' / 'manual'}" in message
  assert "ILSVRC2012_img_train.tar" in message
  assert "the same command with --download" in message
  assert not list(tmp_path.iterdir())


def test_a_dataset_without_a_known_label_is_a_pile_of_images(read):
  with pytest.raises(ValueError, match=r"open_images_v4/original.*'bobjects'"):
    read("--dataset", "open_images_v4/original")
  plan, images, _ = read("--dataset", "open_images_v4/original", "--unlabelled")
  assert plan.fields == {}
  assert images["0"].picture.data == jpeg(0)
  assert images["0"].labels.arrays == {}


def test_a_damaged_file_says_what_to_delete(read, data_dir, tmp_path):
  copy = tmp_path / "cifar100"
  shutil.copytree(data_dir / "cifar100", copy)
  path = min(copy.rglob("*.tfrecord*"))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  part = importer.ExampleRange("cifar100", str(path.parent), "train", 0, 10)
  reader = importer.ExampleReader(("label",), prefixed=False)
  with pytest.raises(ValueError, match=r"is damaged.*Delete that directory"):
    list(reader(importer.Range("00000", [part])))


def test_a_split_is_imported_into_even_shards(run_import, read_back, data_dir):
  words = ("tfds", "--dataset", "cifar100", "--data-dir", data_dir)
  status, out, err = run_import(*words, "--records-per-shard", "4")
  assert status == 0, err
  assert "features left out: coarse_label" in out
  records, image_set = read_back()
  assert [shard.num_records for shard in image_set.shards] == [3, 3, 4]
  for i in range(10):
    assert records[f"train_{i:05d}"]["label/classes"] == [i]


def test_a_dataset_that_is_prepared_again_has_new_files(read):
  plan, *_ = read("--dataset", "cifar100")
  (path,) = set(plan.items[0].files)
  assert path.name == "dataset_info.json"
  assert path.exists()


def test_an_unprepared_dataset_exits_with_two(run_import, data_dir):
  words = ("tfds", "--dataset", "cifar10", "--data-dir", data_dir)
  status, _, err = run_import(*words)
  assert status == 2
  assert err.startswith("error: cifar10 is not prepared in")
