"""docs/reference/configs.md, from the files of configs/."""

import inspect
import re

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
  _, _, after = after.partition("\n\n")
  told = meanings(name)
  rows = [
    [
      markdown.code(argument),
      markdown.code(_default(default)) if default != "" else "",
      markdown.text(told.get(argument, "")),
    ]
    for argument, default in configs_command.arguments(
      configs_command.load(name)
    ).items()
  ]
  parts = [f"### {name}", markdown.text(title), markdown.paragraphs(before)]
  parts.append(markdown.table(["Argument", "Default", "Meaning"], rows))
  parts.append(markdown.paragraphs(_items(after)))
  return "\n\n".join(filter(None, parts))


def _items(text: str) -> str:
  """What it costs and what came of it, a paragraph each."""
  return re.sub(r"\s(?=Result: )", "\n\n", text)


def _default(value: object) -> object:
  return "off" if value is False else value


def meanings(name: str) -> dict[str, str]:
  """What a config's arguments mean, from its docstring.

  One that has those of another config says "those of NAME.py".
  """
  doc = inspect.getdoc(configs_command.load(name)) or ""
  other = re.search(r"those of\s+(\w+)\.py", doc)
  found = meanings(other[1]) if other else {}
  block = doc.partition(_ARGUMENTS)[2].partition("\n\n")[0]
  names: list[str] = []
  ends = True  # whether the names of an argument are complete
  for line in filter(None, block.splitlines()):
    line = line.removeprefix("  ")
    if not line.startswith(" "):
      names = names * (not ends)
      words, _, text = line.partition("  ")
      names += words.split()
      ends = bool(text.strip())
    else:
      text, ends = line, True
    for argument in names:
      before = found.get(argument, "") if line.startswith(" ") else ""
      found[argument] = f"{before} {text.strip()}".strip()
  return found
