"""What README and the pages of documentation tell to type is understood."""

import pathlib
import re
import shlex

import pytest

from must_jax import cli, main
from must_jax import config as config_lib
from must_jax.importers.datasets import DATASETS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md"] + sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))
# Configs of the reader's own, and what stands for one.
_OWN = re.compile(r"[A-Z]\w*|\w+\.py(:.*)?")
# Of the shell, in loops.
_VARIABLES = {"split": "train", "kind": "depth", "init": "runs/student"}


def text_of(page):
  """A page with its commands on one line each, and loops of them once."""
  text = re.sub(r" *\\\n\s*", " ", (ROOT / page).read_text())
  for name, value in _VARIABLES.items():
    text = text.replace(f"${name}", value)
  return text


def runs_of(page):
  """What a page runs: verb or None, config, options that are set."""
  text = text_of(page)
  found = re.findall(r"(?:--config=|`)(configs/\w+\.py(?::[\w=,./:+]+)?)", text)
  runs = [(None, config, []) for config in found]
  for verb, config, rest in re.findall(
    r"must-jax (train|label|evaluate) (\w[\w=,./:+-]*)([^`\n#]*)", text
  ):
    words = shlex.split(rest) if rest.strip() else []
    options = [
      word
      for word in words
      # That of a file reads it.
      if word.startswith("--config.") and not word.endswith(".json")
    ]
    runs.append((verb, config, options))
  return [run for run in runs if not _OWN.fullmatch(run[1])]


def commands_of(page):
  """Other commands of must-jax in a page's blocks of shell, as words."""
  blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
  lines = re.sub(">.*", "", "\n".join(blocks)).splitlines()
  return [
    shlex.split(line, comments=True)[1:]
    for line in map(str.strip, lines)
    if line.startswith("must-jax ") and "NAME[" not in line
  ]


def test_commands_are_found():
  assert sum(len(runs_of(page)) for page in PAGES) > 50
  assert sum(len(commands_of(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", [p for p in PAGES if runs_of(p)])
def test_runs_load(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  for verb, config, options in runs_of(page):
    loaded = config_lib.load(config, options)
    config_lib.validate(loaded)
    assert verb is None or loaded.stage in main._TAKES[verb]


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p)])
def test_commands_are_understood(page):
  parser = cli.make_parser()
  for words in commands_of(page):
    if words[0] in (*main._TAKES, "--version"):
      continue
    if words[0] == "import" and words[1] in DATASETS:  # a loop over splits
      splits = DATASETS[words[1]].splits
      words = [next(iter(splits)) if w == "train" else w for w in words]
    args, rest = parser.parse_known_args(words)
    assert not rest or hasattr(args, "overrides"), words


def test_config_of_several_datasets_is_valid(code_of):
  names = {}
  exec(code_of("docs/your-own-data.md", "several datasets"), names)
  config_lib.validate(names["get_config"]())
