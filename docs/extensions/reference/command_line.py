"""docs/reference/command-line.md, from the parsers of `must-jax`."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from must_jax import cli
from must_jax import main as runs
from must_jax.importers import IMPORTERS, arguments
from must_jax.importers.datasets import DATASETS
from reference import markdown

_HEAD = """\
# Command line

Every command of `must-jax`, with all its options. `must-jax COMMAND --help`
prints the same. Every path may be local or in a bucket (`gs://...`).

"""
_RUNS = """\
## Runs

The verbs `train`, `label` and `evaluate` take a config: the name of a
[shipped one](configs.md) with its arguments, or a file.
[Every option of a config](config.md) can be set after it, as in
`--config.optimizer.lr=0.1`. In a checkout `python main.py --config=CONFIG`
takes the same flags. They may be written with `-` or `_`; `--flagfile=FILE`
reads them from a file.

"""
# Their defaults depend on the machine; the help says how.
_OF_THE_MACHINE = ("workers", "compilation_cache")


def page() -> str:
  """The page."""
  parser = cli.make_parser()
  parts = [_HEAD + _RUNS + "\n\n".join(_verbs()), "## Commands"]
  for program, command, text in walk(parser):
    if program.split()[1] not in cli.VERBS:
      parts.append(_command(program, command, text))
  return "\n\n".join(parts) + "\n"


def walk(
  parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
  """Every command below a parser: its name, parser, and what it is for."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      helps = {a.dest: a.help or "" for a in action._choices_actions}
      for name, command in action.choices.items():
        yield command.prog, command, helps.get(name, "")
        yield from walk(command)


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
  """What a command takes, but for other commands and --help."""
  others = (argparse._SubParsersAction, argparse._HelpAction)
  return [a for a in parser._actions if not isinstance(a, others)]


def run_flags() -> list[flags.Flag]:
  """The flags of a run."""
  return flags.FLAGS.get_flags_for_module(runs.__name__)


def _verbs() -> Iterator[str]:
  for verb, text in cli.VERBS.items():
    about = markdown.text(markdown.sentence(text.partition(":")[0]))
    yield f"### must-jax {verb}\n\n{about}"
    yield _code(
      f"must-jax {verb} CONFIG[:ARGUMENT=VALUE,...] --workdir=DIR \\\n"
      "  [--config.NAME=VALUE ...] [FLAG ...]"
    )
  yield "### Flags of a run"
  yield "```{program} must-jax\n```"
  for flag in run_flags():
    default = "" if flag.name in _OF_THE_MACHINE else flag.default
    name = f"--{flag.name}={_kind(flag)}"
    yield _option(name, flag.help, default)


def _kind(flag: flags.Flag) -> str:
  return {"int": "N", "bool": "BOOL"}.get(flag.flag_type(), "TEXT")


def _command(program: str, command: argparse.ArgumentParser, text: str) -> str:
  name = program.rpartition(" ")[2]
  level = "#" * (1 + len(program.split()))
  parts = [f"{level} {program}"]
  own = options(command)
  if program.startswith("must-jax import "):
    shared = _shared()
    if name in DATASETS:
      return "\n\n".join([*parts, *_dataset(program, text, command)])
    own = [a for a in own if _key(a) not in shared]
  parts.append(
    markdown.paragraphs(command.description or markdown.sentence(text))
  )
  groups = [a for a in command._actions if isinstance(a, _SUBPARSERS)]
  if groups:
    parts.append(_code(f"{program} COMMAND ..."))
  else:
    parts.append(_code(usage(command)))
  parts.append(f"```{{program}} {program}\n```")
  parts += _options(command, own)
  if program == "must-jax import":
    parts.append(_imports())
  elif program.startswith("must-jax import "):
    parts.append("And the [options of every import](#options-of-every-import).")
  return "\n\n".join(parts)


_SUBPARSERS = argparse._SubParsersAction


def _imports() -> str:
  """What all importers take, told once."""
  parser = _output_parser()
  return "\n\n".join(
    [
      "#### Options of every import",
      "```{program} must-jax import\n```",
      *_options(parser, options(parser)),
    ]
  )


def _output_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser("must-jax import", add_help=False)
  arguments.add_output_arguments(parser)
  return parser


def _shared() -> set[tuple[str, ...]]:
  return {_key(action) for action in options(_output_parser())}


def _key(action: argparse.Action) -> tuple[str, ...]:
  return (*action.option_strings, str(action.help))


def _dataset(
  program: str, text: str, command: argparse.ArgumentParser
) -> Iterator[str]:
  """A dataset that has a name: its importer, with options filled in."""
  dataset = DATASETS[program.rpartition(" ")[2]]
  yield markdown.text(f"{markdown.sentence(text)} {command.description}")
  splits = ",".join(dataset.splits)
  words = [program, f"--split {{{splits}}}", "--out DIR"]
  yield _code(_wrap([*words, *re.split(r" (?=--)", dataset.options)]))
  yield f"```{{program}} {program}\n```"
  every = "[every import](#options-of-every-import)"
  known = [n for n, m in IMPORTERS.items() if m is dataset.importer]
  if known:
    link = f"[{known[0]}](#must-jax-import-{known[0]})"
    yield f"The options of {link} and of {every}; some are filled in."
    return
  shared = {name for names in _shared() for name in names}
  own = [a for a in options(command) if not shared & {*a.option_strings}]
  yield from _options(command, own)
  yield f"And those of {every}; some are filled in."


def _options(
  parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]
) -> Iterator[str]:
  formatter = parser._get_formatter()
  for action in actions:
    names = action.option_strings or [action.dest]
    values = _values(action)
    head = ", ".join(f"{name} {values}".strip() for name in names)
    if not action.option_strings:
      head = values
    text = formatter._expand_help(action) if action.help else ""
    default = action.default
    hidden = (None, False, "", (), argparse.SUPPRESS)
    if default in hidden or "default" in text or action.dest in _OF_THE_MACHINE:
      default = ""
    yield _option(head, text, default, needed=action.required)


def _values(action: argparse.Action) -> str:
  """How the values of an option are written."""
  if action.nargs == 0:
    return ""
  name: str | Sequence[str] = action.metavar or (
    f"{{{','.join(map(str, action.choices))}}}"
    if action.choices
    else action.dest.upper()
    if action.option_strings
    else action.dest
  )
  if isinstance(name, tuple):
    return " ".join(name)
  return {
    "?": f"[{name}]",
    "*": f"[{name} ...]",
    "+": f"{name} [{name} ...]",
  }.get(str(action.nargs), str(name))


def usage(parser: argparse.ArgumentParser) -> str:
  """A line with what a command needs."""
  words = [parser.prog]
  chosen: set[argparse.Action] = set()
  given = options(parser)
  for group in parser._mutually_exclusive_groups:
    if group.required:
      members = [
        f"{a.option_strings[0]} {_values(a)}".strip()
        for a in given
        if a in group._group_actions
      ]
      words.append(f"({' | '.join(members)})")
      chosen |= {*group._group_actions}
  for action in given:
    if action.option_strings and action.required and action not in chosen:
      words.append(f"{action.option_strings[0]} {_values(action)}")
  words[1:1] = [_values(a) for a in given if not a.option_strings]
  if any(
    a.option_strings and not a.required and a not in chosen for a in given
  ):
    words.append("[OPTION ...]")
  return _wrap(words)


def _wrap(words: Sequence[str], width: int = 80) -> str:
  lines = [words[0]]
  for word in words[1:]:
    if len(lines[-1]) + len(word) + 3 > width:
      lines[-1] += " \\"
      lines.append(f"  {word}")
    else:
      lines[-1] += f" {word}"
  return "\n".join(lines)


def _option(
  head: str, text: str, default: object = "", needed: bool = False
) -> str:
  body = markdown.text(markdown.sentence(text))
  if default not in ("", None):
    body += f" Default: {markdown.code(default)}."
  if needed and head.startswith("-"):
    body += " Required."
  return markdown.block("option", head, body.strip())


def _code(text: str) -> str:
  return f"```sh\n{text}\n```"
