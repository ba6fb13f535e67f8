"""Imports by Apache Beam give what a local import gives."""

import dataclasses
import sys

import pytest

from must_jax.importers.items import Imported, Labels, Plan

beam = pytest.importorskip("apache_beam")


@pytest.fixture
def pile(tmp_path, picture):
  for i in range(12):
    picture(tmp_path / f"pile/{i:02d}.jpg")
  (tmp_path / "pile/05.jpg").write_bytes(b"broken")
  return tmp_path / "pile"


def contents(directory):
  return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


@pytest.mark.parametrize(
  "options",
  [
    "",
    "--direct_num_workers=2 --direct_running_mode=multi_threading",
    pytest.param(
      "--direct_num_workers=2 --direct_running_mode=multi_processing",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_bytes_do_not_depend_on_the_runner(run_import, pile, tmp_path, options):
  words = ("folder", "--images", pile, "--unlabelled", "--max-rejected", 0.1)
  words += ("--records-per-shard", 5)
  assert run_import(*words, out="here")[0] == 0
  words += ("--runner", "DirectRunner", f"--beam-options={options}")
  status, out, err = run_import(*words, out="beam")
  assert status == 0
  assert "11 of 12 images in 3 shards" in out
  assert "  05: cannot be decoded" in err
  assert contents(tmp_path / "beam") == contents(tmp_path / "here")


def test_finished_parts_are_not_read_again(run_import, pile, tmp_path, reads):
  words = ("folder", "--images", pile, "--unlabelled", "--records-per-shard", 5)
  words += ("--runner", "DirectRunner")
  assert run_import(*words)[0] == 1
  reads.clear()
  status, out, _ = run_import(*words)
  assert status == 1
  assert "2 of 3 parts are read already" in out
  assert "05.jpg" in reads
  assert len(reads) < 6


@dataclasses.dataclass(frozen=True)
class Source:
  key: str
  files = ()


def fail(source):
  yield Imported(source.key, None, Labels({}, ["broken"]))
  raise ValueError(f"{source.key} is damaged")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--runner", "Bogus"], "Unexpected pipeline runner: Bogus"),
    (["--runner", "DirectRunner"], "source is damaged"),
  ],
)
def test_errors(run_plan, words, message):
  plan = Plan({}, [Source("source")], fail, shard_per_item=True)
  status, _, err = run_plan(plan, *words)
  assert status == 2
  assert message in err


def test_beam_may_be_missing(run_import, pile, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  words = (
    "folder",
    "--images",
    pile,
    "--unlabelled",
    "--runner",
    "FlinkRunner",
  )
  status, _, err = run_import(*words)
  assert status == 2
  assert "FlinkRunner needs Apache Beam: pip install 'must_jax[beam]'" in err
