"""`must-jax configs`: the shipped configs, and what they can be told."""

import importlib
import inspect
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from must_jax import config as config_lib
from must_jax.config import UnknownArgument

_HEADINGS = {
  "train": "must-jax train NAME:ARGUMENT=VALUE,... --workdir=DIR",
  "label": "must-jax label NAME:ARGUMENT=VALUE,... --workdir=DIR",
}


def run(name: str | None) -> int:
  """Prints all shipped configs, or all that is known of one.

  Raises:
    ValueError: there is none of the name.
  """
  if name is None:
    print("\n".join(_all()))
    return 0
  config_lib.find(name)  # or it says which ones there are
  module = load(name)
  print(inspect.getdoc(module))
  print("\nDefaults:")
  for argument, default in arguments(module).items():
    print(f"  {_setting(argument, default)}")
  return 0


def load(name: str) -> ModuleType:
  """The module of a shipped config."""
  return importlib.import_module(f"must_jax.configs.{name}")


def arguments(module: ModuleType) -> Mapping[str, Any]:
  """The arguments that a config takes, with their defaults."""
  try:
    module.get_config("?")  # no argument's name
  except UnknownArgument as error:
    return error.defaults
  raise AssertionError(f"{module.__name__} takes any argument")


def _all() -> list[str]:
  """A paragraph a config, below the command that runs it."""
  lines: dict[str, list[str]] = {stage: [] for stage in _HEADINGS}
  for name in config_lib.shipped():
    module = load(name)
    title = (inspect.getdoc(module) or "").partition("\n")[0]
    settings = [_setting(*item) for item in arguments(module).items()]
    lines[module.get_config().stage] += [
      f"  {name}",
      f"    {title}",
      *textwrap.wrap(
        " ".join(settings),
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
        width=80,
      ),
    ]
  text = [
    line
    for stage, heading in _HEADINGS.items()
    for line in (heading, *lines[stage], "")
  ]
  return [*text, "All of one: must-jax configs NAME. A name alone is a switch."]


def _setting(argument: str, default: Any) -> str:
  """As it is written; a switch that is off, by its name alone."""
  return argument if default is False else f"{argument}={default}"
