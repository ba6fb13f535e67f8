"""Cards of lineages that are made of small sets: what they say is on disk."""

import json
import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
import yaml

import must_jax
from must_jax import cli
from must_jax.cli import main
from must_jax.config import base_config, dataset, task, to_json
from must_jax.export import card, licences, lineage
from must_jax.fields import ClassVector, make_field
from must_jax.pseudo_label.teacher import describe_teacher
from must_jax.storage import label_sets
from must_jax.storage.label_sets import LabelCommit
from must_jax.storage.path import publish_json
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import Shard, content_digest, read_index
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

PAGES = ("README.md", "docs/sharing.md", "docs/export.md")
CLASSES = ("cat", "dog")
FIELDS = {"label": {"kind": "ClassVector", "classes": list(CLASSES)}}
BOX_FIELDS = {"objects": {"kind": "Boxes", "classes": list(CLASSES)}}
# An image of each label set's, with these probabilities.
PROBS = ((0.9, 0.1), (0.2, 0.8), (0.6, 0.4))
PNG = bytes.fromhex(
  "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
  "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Makes:
  """Image sets, label sets and checkpoints below a directory."""

  def __init__(self, root):
    self.root = str(root)

  def images(self, name, licence, count=3):
    def examples():
      for i in range(count):
        label = {"label": {"classes": [i % 2], "probs": [1.0]}}
        yield {
          "key": f"{name}-{i}",
          "image": PNG,
          "height": 1,
          "width": 1,
          "labels": label,
        }

    place = f"{self.root}/data/{name}"
    return write_image_set(place, name, "train", examples(), FIELDS, licence)

  def labels(self, name, images, teacher, boxes=None):
    """A label set as the labelling job describes it, with boxes or without."""
    described = FIELDS | (BOX_FIELDS if boxes else {})
    job = label_sets.describe_job(images, described, teacher, {})
    field = ClassVector(len(CLASSES))
    sums = {}
    for probs in PROBS:
      label = {"classes": np.arange(2), "probs": np.array(probs, np.float32)}
      label_sets.accumulate(sums, {"label": field.sums(label)})
    if boxes:
      label = {
        "boxes": np.tile(np.float32([0, 0, 1, 1]), (len(boxes), 1)),
        "classes": np.array([k for k, _ in boxes]),
        "scores": np.array([score for _, score in boxes], np.float32),
      }
      boxes_field = make_field(BOX_FIELDS["objects"])
      label_sets.accumulate(sums, {"objects": boxes_field.sums(label)})
    shard = Shard(f"{name}.tfrecord", len(PROBS), 9, f"of {name}", "keys")
    commit = LabelCommit(shard, "job", teacher["digest"], (), sums)
    place = f"{self.root}/labels/{name}"
    pathlib.Path(place).mkdir(parents=True)
    publish_json(
      f"{place}/manifest.json", label_sets.make_manifest(job, [commit])
    )
    return place

  def config(self, images, labels="supervised", **options):
    config = base_config()
    config.model.update(
      {"backbone": "resnet18", "width": 8, "channels": 8, "dtype": "float32"}
    )
    config.model.update({"min_level": 2, "max_level": 4})
    config.data.image_size = (64, 64)
    with config.unlocked():
      config.datasets[images.name] = dataset(str(images.directory), "train")
      config.tasks.kind = task(
        "classification", labels={images.name: labels}, classes=CLASSES
      )
    config.train_on = (images.name,)
    config.update(options)
    return config

  def model(self, name, config, origin=None, seed=0):
    """A checkpoint of step 0, and what a run writes beside it."""
    model = build_model(config, build_tasks(config))
    shapes = jax.eval_shape(
      lambda: init_variables(model, (64, 64), jax.random.key(0))
    )
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
      lambda x: rng.random(x.shape, np.float32) / 8, dict(shapes)
    )
    place = f"{self.root}/runs/{name}"
    checkpoint.write_variables(place, config, variables, origin or {})
    return place

  def teacher(self, place):
    """What a manifest says of a checkpoint, see `describe_teacher`."""
    config = checkpoint.read_config(place)
    origin = checkpoint.read_origin(place)
    return {
      "digest": checkpoint.fingerprint(place),
      "task": "kind",
      "config": json.loads(to_json(config)),
    } | ({"origin": origin} if origin else {})


@pytest.fixture
def makes(tmp_path):
  return Makes(tmp_path)


@pytest.fixture
def student(makes):
  """A student of two images sets' labels by a teacher two levels up.

  photos (CC0) <- labels <- middle <- labels <- first (images: CC BY-NC)
  """
  first = makes.model(
    "first", makes.config(makes.images("private", "CC BY-NC 4.0")), seed=1
  )
  pile = makes.images("pile", "MIT")
  labels = makes.labels("pile", pile, makes.teacher(first))
  middle = makes.model("middle", makes.config(pile, labels), seed=2)
  photos = makes.images("photos", "CC0-1.0", count=5)
  labels = makes.labels("photos", photos, makes.teacher(middle))
  return makes.model("student", makes.config(photos, labels), seed=3)


def read(place, *words):
  """The YAML and the text of a card that the command writes."""
  out = pathlib.Path(place) / "card.md"
  assert main(["card", str(place), "--out", str(out), *words]) == 0
  empty, metadata, text = out.read_text().split("---\n", 2)
  assert not empty
  return yaml.safe_load(metadata), text


def section(text, title):
  return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def write_folder(place, folder, form="hub"):
  words = ("export", str(place), "--format", form, "--out", str(folder))
  assert main(words) == 0


def before_title_two(text):
  return text.partition("\n## ")[0]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_checkpoints_of_earlier_versions_have_cards(version, tmp_path):
  golden = pathlib.Path(__file__).parents[1] / "train" / "golden"
  run = tmp_path / "run"
  shutil.unpack_archive(golden / f"checkpoint_{version}.zip", run)
  metadata, text = read(run)
  assert metadata["library_name"] == "must_jax"
  # It does not say what it was trained on.
  assert "weights run: nothing is known of its licence" in (
    before_title_two(text)
  )
  write_folder(run, tmp_path / "hub")
  assert checkpoint.fingerprint(tmp_path / "hub") == checkpoint.fingerprint(run)


def test_a_permissive_lineage_warns_of_nothing(makes):
  place = makes.model("plain", makes.config(makes.images("own", "CC0-1.0")))
  metadata, text = read(place, "--name", "Plain", "--licence", "Apache 2.0")
  assert "WARNING" not in text
  assert text.startswith("\n# Plain\n")
  assert metadata["license"] == "apache-2.0"
  assert metadata["library_name"] == "must_jax"
  assert metadata["pipeline_tag"] == "image-classification"
  assert metadata["datasets"] == ["own"]
  assert "multi-task" not in metadata["tags"]
  assert "model-index" not in metadata  # nothing was measured
  assert "kind: not measured" in section(text, "Evaluation")
  assert checkpoint.fingerprint(place) in text
  steps = section(text, "Preprocessing")
  assert "`pad` to 64 x 64" in steps and "(0.485, 0.456, 0.406)" in steps


def test_non_commercial_images_two_levels_up_are_at_the_top(student, capsys):
  metadata, text = read(student)
  head = before_title_two(text)
  assert "non-commercial" in head
  # By name, licence and path.
  assert (
    'images private (train): "CC BY-NC 4.0" (this model ← labels of kind on'
    " photos ← teacher of kind ← labels of kind on pile ← teacher of kind)"
  ) in head
  assert "CC BY-NC 4.0" in capsys.readouterr().err
  assert "photos" not in head.replace("on photos", "")
  assert metadata["license"] == "unknown"
  assert sorted(metadata["datasets"]) == ["photos", "pile", "private"]


def test_what_has_no_licence_is_named(makes):
  place = makes.model("run", makes.config(makes.images("scraped", "")))
  head = before_title_two(read(place)[1])
  assert "licence that is not known" in head
  assert "images scraped (train): no licence is recorded" in head


def test_supervised_and_pseudo_labels_in_one_student(makes):
  teacher = makes.model("teacher", makes.config(makes.images("own", "MIT")))
  pile = makes.images("pile", "MIT")
  labels = makes.labels("pile", pile, makes.teacher(teacher))
  config = makes.config(pile, ("supervised", labels))
  place = makes.model("both", config, seed=1)
  _, text = read(place)
  learned = section(text, "What it learned from")
  assert "| pile (train) | 3 | unknown | kind | kind |" in learned
  assert "images own (train): 3, licence MIT" in learned
  assert "WARNING" not in text


def test_published_weights_bring_their_licence(makes):
  images = makes.images("photos", "MIT")
  origin = {
    "kind": "net",
    "title": "Net, trained on much",
    "source": "https://huggingface.co/someone/net",
    "licence": "BSD-3-Clause; trained on ImageNet",
    "file": "net.safetensors",
    "sha256": "ab" * 32,
  }
  config = makes.config(images)
  config.train_on = ()
  config.data.eval_resize = "midas_upper_bound"
  published = makes.model("published", config, origin)
  metadata, text = read(published)
  assert metadata["license"] == "other"
  assert metadata["license_name"] == "bsd-3-clause--trained-on-imagenet"
  assert metadata["license_link"] == origin["source"]
  assert origin["title"] in before_title_two(text)
  assert "ab" * 32 in section(text, "Training")
  assert "By the rule `midas_upper_bound`" in section(text, "Preprocessing")
  assert "at about 64 x 64 pixels" in section(text, "Limits")
  labels = makes.labels("photos", images, makes.teacher(published))
  student = makes.model("student", makes.config(images, labels), seed=1)
  metadata, text = read(student)
  # More than a licence's name is left to people to read.
  assert (
    'weights net: "BSD-3-Clause; trained on ImageNet" (this model ← labels of'
    " kind on photos ← net)"
  ) in before_title_two(text)
  assert metadata["base_model"] == ["someone/net"]
  assert origin["source"] in section(text, "Teachers")


def test_where_a_run_started_belongs_to_its_lineage(makes):
  images = makes.images("own", "MIT")
  origin = {"kind": "net", "licence": "research only"}
  start = makes.model("start", makes.config(images), origin)
  place = makes.model("run", makes.config(images, init_from=start), seed=1)
  head = before_title_two(read(place)[1])
  assert 'weights start: "research only" (this model ← start from start)' in (
    head
  )
  # What is there now may not be what the run began from.
  publish_json(f"{place}/run.json", {"init_from": "0" * 32, "sources": {}})
  text = read(place)[1]
  assert "is not what was learned from" in text
  assert "research only" not in text
  assert "nothing is known of its licence" in before_title_two(text)


def test_teachers_that_are_no_checkpoints(makes):
  images = makes.images("photos", "MIT")
  teacher = {"digest": "abc", "name": "their API", "licence": "CC BY-NC-SA 4.0"}
  labels = makes.labels("photos", images, teacher)
  place = makes.model("student", makes.config(images, labels))
  _, text = read(place)
  assert 'their API: "CC BY-NC-SA 4.0"' in before_title_two(text)
  corrections = {"digest": "def", "importer": "coco"}
  labels = makes.labels("corrected", images, corrections)
  place = makes.model("other", makes.config(images, labels))
  assert "coco: nothing is known of its licence" in read(place)[1]


def test_missing_and_changed_data_are_said(student, makes):
  index = read_index(f"{makes.root}/data/photos")
  good = content_digest(index["splits"]["train"]["shards"])
  record = {"sources": {"datasets.photos": good}, "init_from": ""}
  publish_json(f"{student}/run.json", record)
  assert "is not what was learned from" not in read(student)[1]
  record["sources"]["datasets.photos"] = "0" * 32
  publish_json(f"{student}/run.json", record)
  text = read(student)[1]
  assert "is not what was learned from" in text
  # The label set still says whose images it labelled.
  assert "images photos (train): 5, licence CC0-1.0" in text

  shutil.rmtree(f"{makes.root}/data/private")
  text = read(student)[1]
  assert "images private (train): nothing is known" in before_title_two(text)
  assert "private is no directory" in section(text, "What it learned from")

  shutil.rmtree(f"{makes.root}/labels/photos")
  text = read(student)[1]
  assert "labels of kind by unknown" in section(text, "What it learned from")
  assert "labels photos: nothing is known" in before_title_two(text)
  assert "photos" in section(text, "Quality of the labels")


def test_a_model_that_is_its_own_ancestor_ends(makes):
  images = makes.images("own", "MIT")
  place = f"{makes.root}/runs/self"
  makes.model("self", makes.config(images, init_from=place))
  assert "its own ancestor" in read(place)[1]


def test_numbers_are_those_on_disk(student):
  run = pathlib.Path(student)
  result = {
    "val/kind/top1": 0.71875,
    "val/kind/top1/cat": 0.5,
    "val/kind/top1/dog": 0.9375,
  }
  lines = [
    {"step": 0, "loss": 2.5, "examples/photos": 64, "kind/weight": 0.4},
    {"step": 0, **result},
  ]
  (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (run / "result.json").write_text(json.dumps(result))
  metadata, text = read(student)
  (entry,) = metadata["model-index"][0]["results"]
  assert entry["task"]["type"] == "image-classification"
  assert entry["metrics"] == [
    {"type": "top1", "name": "top1", "value": result["val/kind/top1"]}
  ]
  evaluation = section(text, "Evaluation")
  assert "0.7188" in evaluation and "| dog (top1) | 0.9375 |" in evaluation
  assert "seed 0" in evaluation
  assert "| photos (train) | 5 | 64 | - | kind |" in text
  assert "kind 0.4" in section(text, "Training")
  quality = section(text, "Quality of the labels")
  assert (
    "| kind on photos | none | 3 classes | 3 (100.0%) | 3 | not measured |"
    in (quality)
  )
  # Two of the three labels are likeliest a cat.
  assert "| cat | 2 | 2 |" in quality

  # A measured label set says how good it is.
  manifest = run.parents[1] / "labels" / "photos" / "manifest.json"
  value = json.loads(manifest.read_text())
  metrics = {"top1": 0.625, "top1/cat": 0.25}
  value["quality"] = {"truth": "/somewhere/truth", "metrics": metrics}
  manifest.write_text(json.dumps(value))
  quality = section(read(student)[1], "Quality of the labels")
  assert "top1 0.625 (truth)" in quality
  assert "| cat | 2 | 2 | 0.25 |" in quality
  assert "| dog | 1 | 1 | not measured |" in quality


def test_what_is_read_follows_the_students_own_threshold(makes):
  images = makes.images("photos", "MIT")
  teacher = {"digest": "abc", "importer": "coco", "licence": "MIT"}
  boxes = [(0, 0.3), (0, 0.6), (1, 0.65), (0, 0.95)]
  labels = makes.labels("photos", images, teacher, boxes)
  manifest = pathlib.Path(labels) / "manifest.json"
  value = json.loads(manifest.read_text())
  metrics = {"label/top1": 0.5, "objects/AP": 0.25, "objects/AP/cat": 0.125}
  value["quality"] = {"truth": "gs://b/truth", "metrics": metrics}
  manifest.write_text(json.dumps(value))
  config = makes.config(images, labels)
  with config.unlocked():
    config.tasks.found = task(
      "detection", labels={"photos": labels}, classes=CLASSES, min_score=0.7
    )
    del config.tasks["kind"]
  quality = section(
    read(makes.model("student", config))[1], "Quality of the labels"
  )
  assert (
    "| found on photos | 0.7 | 4 boxes | 1 (25.0%) | 1 | AP 0.25 (truth) |"
    in quality
  )
  assert "| cat | 3 | 1 | 0.125 |" in quality
  assert "nothing is left of dog." in quality
  # What follows the end of HTML is Markdown after an empty line only.
  assert "</details>\n" in quality
  assert quality.split("</details>")[1][:2] == "\n\n"
  assert "top1" not in quality  # of a field that the task does not read
  config.tasks.found.min_score = {"cat": 0.7, "dog": 0.5}
  quality = section(
    read(makes.model("by_class", config))[1], "Quality of the labels"
  )
  assert "| found on photos | 0.5 to 0.7 (by class) | 4 boxes |" in quality


def test_metrics_of_other_weights_are_not_its_own(student):
  run = pathlib.Path(student)
  result = {"val/kind/top1": 0.5}
  (run / "result.json").write_text(json.dumps(result))
  metadata, text = read(student)
  assert "model-index" not in metadata
  assert "of which checkpoint was not recorded" in text
  line = {"step": 7, **result}
  (run / "metrics.jsonl").write_text(json.dumps(line))
  metadata, text = read(student)
  assert "model-index" not in metadata
  assert "measured at step 7; these weights are of 0" in text
  assert "kind: not measured" in text


def test_the_best_checkpoint_is_one_of_its_run(student):
  run = pathlib.Path(student)
  shutil.copytree(run / "checkpoints", run / "best" / "checkpoints")
  publish_json(run / "best.json", {"metric": "val/kind/top1"})
  publish_json(run / "result.json", {"val/kind/top1": 0.25})
  lines = [
    {"step": 0, "loss": 3.0},
    {"step": 0, "val/kind/top1": 0.5},
    {"step": 7, "loss": 2.0},
    {"step": 7, "val/kind/top1": 0.25},
  ]
  (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  facts = card.collect(run / "best")
  assert facts.model.name == run.name and facts.last == lines[0]
  (evaluation,) = facts.evaluations
  assert evaluation.metrics == {"val/kind/top1": 0.5}
  assert not evaluation.problem


def test_an_evaluation_of_its_own_is_taken_by_its_digest(student, tmp_path):
  described = {"name": "val", "split": "test", "licence": "", "num_records": 9}
  record = {
    "checkpoint": student,
    "digest": checkpoint.fingerprint(student),
    "datasets": {"d": described},
    "metrics": {"d/kind/top1": 0.25},
  }
  place = tmp_path / "evaluation"
  place.mkdir()
  publish_json(place / "evaluation.json", record)
  publish_json(place / "result.json", record["metrics"])
  metadata, text = read(student, "--evaluation", str(place))
  (entry,) = metadata["model-index"][0]["results"]
  assert entry["dataset"] == {"type": "val", "name": "val", "split": "test"}
  assert entry["metrics"][0]["value"] == 0.25
  assert "on val test (9 images)" in text
  publish_json(place / "evaluation.json", {**record, "digest": "0" * 32})
  with pytest.raises(ValueError, match=f"{student}, digest 0000"):
    card.collect(student, [place])
  publish_json(place / "result.json", {"d/kind/top1": 0.75})
  with pytest.raises(ValueError, match="of the same metrics"):
    card.collect(student, [place])


def test_commands_of_the_pages_are_understood():
  root = pathlib.Path(__file__).parents[2]
  text = "".join((root / page).read_text() for page in PAGES)
  blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
  found = re.findall(
    r"must-jax ((?:card|export) .*)", blocks.replace("\\\n", "")
  )
  assert len(found) > 2
  for words in map(shlex.split, found):
    args = cli.make_parser().parse_args(words)
    assert args.run


def test_bad_arguments(tmp_path, capsys):
  assert main(["card", str(tmp_path)]) == 2
  assert "No checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize(
  "text, kind, hub_id",
  [
    ("MIT", "permissive", "mit"),
    ("Apache License, Version 2.0", "permissive", "apache-2.0"),
    ("BSD 3-Clause License", "permissive", "bsd-3-clause"),
    ("CC0-1.0 (generated)", "permissive", "cc0-1.0"),
    ("cc by 4.0", "permissive", "cc-by-4.0"),
    ("Public Domain", "permissive", ""),
    ("https://creativecommons.org/licenses/by/4.0/", "permissive", "cc-by-4.0"),
    ("https://creativecommons.org/publicdomain/zero/1.0/", "permissive", None),
    ("GPL-3.0-or-later", "share alike", "gpl-3.0"),
    ("CC BY-SA 4.0", "share alike", "cc-by-sa-4.0"),
    ("ODbL-1.0", "share alike", "odbl"),
    ("CC-BY-ND-4.0", "no derivatives", "cc-by-nd-4.0"),
    ("CC BY-NC-SA 2.5", "non-commercial", ""),
    ("CreativeML-OpenRAIL-M", "use restrictions", "creativeml-openrail-m"),
    ("CC-BY-NC-4.0", "non-commercial", "cc-by-nc-4.0"),
    ("CC BY-NC-ND 4.0", "non-commercial", "cc-by-nc-nd-4.0"),
    ("cc_by_nc", "non-commercial", ""),
    ("PolyForm-Noncommercial-1.0.0", "non-commercial", ""),
    ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "non-commercial", 0),
    ("annotations CC BY-NC 4.0, photos by Flickr", "non-commercial", ""),
    ("For research purposes only.", "non-commercial", ""),
    ("free for academic use", "non-commercial", ""),
    ("Non-Commercial Government Licence", "non-commercial", ""),
    ("MIT AND CC-BY-NC-4.0", "non-commercial", ""),
    ("MIT OR CC-BY-NC-4.0", "permissive", ""),
    ("(MIT OR Apache-2.0) AND GPL-3.0", "share alike", ""),
    ("MIT AND custom", "unknown", ""),
    ("MIT; trained on ImageNet", "unknown", ""),
    ("MIT (code)", "unknown", ""),
    ("see https://image-net.org/download", "unknown", ""),
    ("proprietary", "unknown", ""),
    ("none", "unknown", ""),
    ("", "unknown", ""),
    (None, "unknown", ""),
  ],
)
def test_licences_are_read_with_care(text, kind, hub_id):
  found = licences.read(text)
  assert found.kind == kind
  if isinstance(hub_id, str):
    assert found.hub_id == hub_id


def test_licences_of_what_can_be_converted_and_imported_are_not_free():
  """Nobody has made up their mind about what ImageNet and COCO allow."""
  from must_jax import convert
  from must_jax.importers.datasets import DATASETS

  for dataset_ in DATASETS.values():
    assert licences.read(dataset_.licence).kind == "unknown"
  kinds = {k.name: licences.read(k.licence) for k in convert.kinds().values()}
  assert kinds["midas_v21_small"].hub_id == "mit"
  assert kinds["torchvision_resnet50"].kind == "unknown"


def test_lineage_survives_json(student):
  model = lineage.trace(student)
  assert lineage.Model.from_json(model.to_json()) == model


def test_a_folder_for_a_hub_is_the_checkpoint(make_checkpoint, tmp_path):
  tasks = {
    "kind": task("classification", labels={}, classes=CLASSES),
    "distance": task("depth", labels={}),
  }
  place = make_checkpoint(tasks)
  folder = tmp_path / "hub"
  write_folder(place, folder)
  ours, theirs = must_jax.load(place), must_jax.load(str(folder))
  assert checkpoint.fingerprint(folder) == checkpoint.fingerprint(place)
  assert theirs.path == folder
  photos = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
  for a, b in zip(
    ours.predict([*photos]), theirs.predict([*photos]), strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  assert checkpoint.read_origin(folder) == checkpoint.read_origin(place)
  # And again: what a folder is made into is the same folder.
  write_folder(folder, tmp_path / "again")
  for name in ("README.md", "config.json", "check.json"):
    assert (tmp_path / "again" / name).read_text() == (
      (folder / name).read_text()
    )


@pytest.mark.parametrize(
  "words", [("--tasks", "kind"), ("--image-size", "64", "64"), ("--batch", "2")]
)
def test_a_folder_has_the_whole_checkpoint(student, tmp_path, words, capsys):
  out = tmp_path / "hub"
  export = ("export", student, "--format", "safetensors", "--out", str(out))
  assert main((*export, *words)) == 2
  assert f"expected no {words[0]}" in capsys.readouterr().err
  assert not out.exists()


def test_safetensors_alone_is_a_checkpoint_too(student, tmp_path):
  folder = tmp_path / "weights"
  write_folder(student, folder, "safetensors")
  assert {p.name for p in folder.iterdir()} == {
    *("model.safetensors", "config.json", "signature.json", "check.json")
  }
  result = json.loads((folder / "check.json").read_text())
  assert result["passed"]
  assert result["digest"] == checkpoint.fingerprint(student)
  assert must_jax.load(str(folder)).path == folder
  # The file alone becomes a checkpoint again.
  back = tmp_path / "back"
  words = ("convert", "must_jax", str(folder / "model.safetensors"))
  assert main((*words, "--out", str(back))) == 0
  assert checkpoint.fingerprint(back) == checkpoint.fingerprint(student)


def test_a_folder_that_is_not_what_was_written_is_refused(student, tmp_path):
  folder = tmp_path / "hub"
  write_folder(student, folder)
  weights = folder / "model.safetensors"
  data = bytearray(weights.read_bytes())
  data[-100] ^= 1
  weights.write_bytes(data)
  with pytest.raises(checkpoint.CorruptCheckpointError, match="not what was s"):
    must_jax.load(str(folder))
  weights.write_bytes(data[:-100])
  with pytest.raises(checkpoint.CorruptCheckpointError, match="truncated"):
    must_jax.load(str(folder))
  config = folder / "config.json"
  config.write_text(config.read_text().replace("resnet18", "resnet34"))
  with pytest.raises(checkpoint.CorruptCheckpointError, match="meta is not"):
    must_jax.load(str(folder))
  config.write_text('{"model_type": "vit"}')
  with pytest.raises(
    checkpoint.OtherFormatError, match="must-jax convert KIND"
  ):
    must_jax.load(str(folder))
  config.unlink()
  with pytest.raises(checkpoint.CorruptCheckpointError, match=r"config\.json"):
    must_jax.load(str(folder))


def test_a_folder_keeps_card_and_lineage_where_nothing_else_is(
  student, makes, tmp_path
):
  run = pathlib.Path(student)
  result = {"val/kind/top1": 0.71875}
  (run / "metrics.jsonl").write_text(json.dumps({"step": 0, **result}))
  (run / "result.json").write_text(json.dumps(result))
  folder = tmp_path / "hub"
  write_folder(student, folder)
  images = makes.images("new", "MIT")
  shutil.rmtree(f"{makes.root}/runs")
  shutil.rmtree(f"{makes.root}/labels")
  assert read(folder)[1] == (folder / "README.md").read_text().split("---\n")[2]
  # A student of its labels inherits what it knows.
  model = must_jax.load(str(folder))
  teacher = describe_teacher(model, model.tasks["kind"])
  labels = makes.labels("new", images, teacher)
  later = makes.model("later", makes.config(images, labels), seed=9)
  assert "CC BY-NC 4.0" in before_title_two(read(later)[1])


def test_a_folder_and_its_checkpoint_are_one_teacher(student, makes, tmp_path):
  """Whichever of them labels, the others' work counts."""
  folder = tmp_path / "hub"
  write_folder(student, folder)
  images = makes.images("new", "MIT")
  one, other = (
    label_sets.describe_job(
      images, FIELDS, describe_teacher(model, model.tasks["kind"]), {}
    )
    for model in map(must_jax.load, (student, str(folder)))
  )
  assert one != other
  place = tmp_path / "labels"
  _, _, is_new = label_sets.claim_directory(place, one)
  assert is_new
  _, job, is_new = label_sets.claim_directory(place, other)
  assert (job, is_new) == (one, False)


def test_a_bucket_has_folders_and_cards_too(student, bucket):
  folder = f"{bucket.root}/hub"
  write_folder(student, folder)
  assert checkpoint.fingerprint(folder) == checkpoint.fingerprint(student)
  there, here = (
    checkpoint.load_variables(folder),
    (checkpoint.load_variables(student)),
  )
  jax.tree.map(np.testing.assert_array_equal, there, here)
  out = f"{bucket.root}/card.md"
  assert main(["card", folder, "--out", out]) == 0
  from must_jax.storage.path import read_file

  assert read_file(out) == read_file(f"{folder}/README.md")
