"""docs/reference/configs.md, from the files of configs/."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from must_jax import config as config_lib
from must_jax.preflight import configs_command
from reference import markdown

_HEAD = """\
# Shipped configs

A run is a config with its arguments, which follow a colon:

```sh
must-jax train student:images=data/pile,tasks=detection --workdir=runs/student
```

An argument that is a switch is given by its name alone: `student:small`.
`must-jax configs` lists these configs, `must-jax configs NAME` prints one.
[Every option](config.md) can also be set on the command line; to change more,
copy a file out of `configs/`.
"""
_TITLES = {"train": "To train", "label": "To label"}
_ARGUMENTS = "Arguments:\n"


def page() -> str:
  """The page."""
  parts: dict[str, list[str]] = {stage: [] for stage in _TITLES}
  for name in config_lib.shipped():
    module = configs_command.load(name)
    parts[module.get_config().stage].append(_config(name))
  sections = [
    "\n\n".join([f"## {title}", *parts[stage]])
    for stage, title in _TITLES.items()
  ]
  return "\n\n".join([_HEAD.strip(), *sections]) + "\n"


def _config(name: str) -> str:
  doc = inspect.getdoc(configs_command.load(name)) or ""
  title, _, rest = doc.partition("\n")
  before, _, after = rest.partition(_ARGUMENTS)
  after = after.partition("\n\n")[2]
  parts = [
    f"### {name}",
    markdown.text(title),
    markdown.paragraphs(_items(before)),
    "\n".join(_arguments(name)),
    markdown.paragraphs(_items(after)),
  ]
  return "\n\n".join(filter(None, parts))


def _items(text: str) -> str:
  """What it costs and what came of it, a paragraph each."""
  return re.sub(r"\s(?=Result: )", "\n\n", text)


def _arguments(name: str) -> Iterator[str]:
  """A list of the arguments; of another config's, those that differ."""
  own, other = _defaults(name), base(name)
  if other:
    theirs = _defaults(other)
    own = {k: v for k, v in own.items() if (k, v) not in theirs.items()}
    shown = ", ".join(_setting(*item) for item in own.items())
    differ = f" Other defaults: {shown}." if shown else ""
    yield f"Arguments are those of [{other}](#{other}).{differ}"
    return
  yield "Arguments, with their defaults:\n"
  told = meanings(name)
  for meaning in dict.fromkeys(told[argument] for argument in own):
    alike = [_setting(k, v) for k, v in own.items() if told[k] == meaning]
    yield f"- {', '.join(alike)}: {markdown.text(meaning)}"


def _defaults(name: str) -> Mapping[str, Any]:
  return configs_command.arguments(configs_command.load(name))


def _setting(argument: str, default: object) -> str:
  """An argument as it is given, with its default."""
  if default is False:
    return markdown.code(argument)
  return markdown.code(f"{argument}={default}")


def base(name: str) -> str:
  """The config whose arguments a config has, by its docstring; "" for none."""
  doc = inspect.getdoc(configs_command.load(name)) or ""
  found = re.search(r"[Aa]rguments\s+as\s+those\s+of\s+(\w+)\.py", doc)
  return found[1] if found else ""


def meanings(name: str) -> dict[str, str]:
  """What a config's arguments mean, by its docstring."""
  doc = inspect.getdoc(configs_command.load(name)) or ""
  block = doc.partition(_ARGUMENTS)[2].partition("\n\n")[0]
  found: dict[str, str] = {}
  names: list[str] = []
  complete = True  # whether the names that share a meaning are
  for line in block.splitlines():
    line = line.removeprefix("  ")
    text = line
    if not line.startswith(" "):
      words, _, text = line.partition("  ")
      names = [*(() if complete else names), *words.split()]
    complete = bool(text.strip())
    for argument in names:
      found[argument] = f"{found.get(argument, '')} {text.strip()}".strip()
  return found
