"""docs/reference/config.md, from the defaults and the comments beside them."""

import ast
import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.ranges import POSITIVE, Interval
from must_jax.tasks import TASKS, Task
from reference import markdown

_HEAD = """\
# Config options

Every option has a default. Set it on the command line,

```sh
must-jax train student --workdir=runs/student --config.optimizer.lr=0.1 \\
  --config.data.image_size="(512,512)"
```

or in a config file of your own, which starts from `base_config()`:

```python
from must_jax.config import base_config, dataset, task


def get_config(arg=None):
  config = base_config()
  config.datasets.boxes = dataset("data/boxes", "train")
  config.tasks.detection = task("detection", labels={"boxes": "supervised"})
  config.train_on = ("boxes",)
  config.optimizer.lr = 0.1
  return config
```

What is wrong in a config is said before anything runs.

## Where defaults come from

| Origin | Meaning |
| --- | --- |
| paper | The paper, with its section: \
[Ghiasi et al., ICCV 2021](https://arxiv.org/abs/2108.11353) |
| ref NAME | A publication that the paper refers to; CP is \
[Copy-Paste](https://arxiv.org/abs/2012.07177) |
| tfm | The code of the TensorFlow Model Garden |
| tpu | The detection code of the TensorFlow TPU repository |
| ours | Chosen here |
"""


class Told(NamedTuple):
  """What is written of an option beside its default."""

  meaning: str
  origin: str = ""


def page() -> str:
  """The page."""
  told = comments(inspect.getsource(config_lib.base_config))
  config = config_lib.base_config()
  parts = [_HEAD.strip(), "## The run"]
  parts += _group(config, "", told)
  parts += _datasets()
  parts += _tasks()
  return "\n\n".join(parts) + "\n"


def _group(
  config: ConfigDict, prefix: str, told: dict[str, Told]
) -> Iterator[str]:
  """The options of a group, then the groups in it."""
  groups = []
  for key in _keys(prefix, told):
    value = config[key]
    name = f"{prefix}{key}"
    if isinstance(value, ConfigDict):
      groups += [(name, value)] if value else []
      continue
    allowed = config_lib.RANGES.get(name)
    words = config_lib.CHOICES.get(name, ())
    yield _option(name, value, told[name], allowed, words)
  for name, value in groups:
    yield f"{'#' * (2 + name.count('.'))} {name}"
    yield markdown.text(told[name].meaning)
    yield from _group(value, f"{name}.", told)


def _keys(prefix: str, told: dict[str, Told]) -> list[str]:
  """The keys of a group, in the order in which they are written."""
  below = [n.removeprefix(prefix) for n in told if n.startswith(prefix)]
  return [key for key in below if "." not in key]


def _datasets() -> Iterator[str]:
  yield "## datasets"
  yield (
    "Each entry is made by `dataset(directory, split, share=1.0)`: one split of"
    " an imported image set."
  )
  meanings = sections(inspect.getdoc(config_lib.dataset), "Args:")
  yield _option("datasets.NAME.dir", None, Told(meanings["directory"]))
  yield _option("datasets.NAME.split", None, Told(meanings["split"]))
  share = config_lib.dataset("", "").share
  yield _option("datasets.NAME.share", share, Told(meanings["share"]), POSITIVE)


def _tasks() -> Iterator[str]:
  yield "## tasks"
  yield (
    "Each entry is made by `task(kind, labels={...}, weight=None, classes=(),"
    " **options)`. The options depend on the kind."
  )
  meanings = sections(inspect.getdoc(config_lib.task), "Args:")
  kinds = {
    "kind": f"one of {_words(TASKS)}",
    "labels": "text, or several in a tuple, by name of dataset",
    "weight": "a number, 0 or more",
    "classes": "names in a tuple",
  }
  for key, kind in kinds.items():
    yield _option(f"tasks.NAME.{key}", None, Told(meanings[key]), kind=kind)
  for kind, task in TASKS.items():
    yield f"### {kind}"
    about = re.split(r"\n\s*Attributes:", inspect.getdoc(task) or "")[0]
    yield markdown.paragraphs(about)
    told = task_comments(task)
    for field in dataclasses.fields(task):
      if field.name in told:
        allowed = task.ranges.get(field.name)
        words = task.choices.get(field.name, ())
        by_class = field.name in task.by_class
        yield _option(
          f"tasks.NAME.{field.name}",
          field.default,
          told[field.name],
          allowed,
          words,
          after=", or {class: number}" if by_class else "",
          label=f"{kind}.{field.name}",
        )


def _option(
  name: str,
  default: Any,
  told: Told,
  allowed: Interval | None = None,
  words: Collection[str] = (),
  *,
  kind: str = "",
  after: str = "",
  label: str = "",
) -> str:
  """An option; without a default where that is None."""
  kind = kind or takes(default, allowed, words)
  parts = [markdown.text(markdown.sentence(told.meaning))]
  line = [f"Takes {kind}{markdown.text(after)}."]
  if default is not None:
    shown = markdown.code(literal(default)) if default != "" else "empty"
    line.insert(0, f"Default: {shown}.")
  if told.origin:
    line.append(f"Origin: {markdown.text(told.origin)}.")
  parts.append(" ".join(line))
  # Options of different kinds of task may have one name.
  return markdown.block("confval", label or name, "\n\n".join(parts))


def literal(value: Any) -> str:
  """A default as it is typed on the command line."""
  if isinstance(value, int) and abs(value) >= 10_000:
    return f"{value:_}"
  return value if isinstance(value, str) else repr(value)


def takes(
  default: Any, allowed: Interval | None, words: Collection[str]
) -> str:
  """Which values an option takes."""
  if words:
    shown = _words(word for word in words if word)
    empty = ", or empty" if "" in words else ""
    if isinstance(default, tuple):
      return f"a tuple of {shown}"
    return f"one of {shown}{empty}"
  if isinstance(default, bool):
    return "true or false"
  if isinstance(default, tuple) and default and not isinstance(default[0], str):
    kind = "whole numbers" if isinstance(default[0], int) else "numbers"
    count = {2: "two ", 3: "three "}.get(len(default), "")
    return f"{count}{kind}{_range(allowed, ' each')}"
  if isinstance(default, tuple):
    return "a tuple"
  if isinstance(default, int):
    return f"a whole number{_range(allowed)}"
  if isinstance(default, float):
    return f"a number{_range(allowed)}"
  return "text"


def _range(allowed: Interval | None, each: str = "") -> str:
  if allowed is None or allowed.low == float("-inf"):
    return ""
  return f", {allowed}{each}"


def _words(words: Collection[str] | Iterator[str]) -> str:
  return ", ".join(markdown.code(word) for word in words)


def comments(source: str) -> dict[str, Told]:
  """What is written of each option in the source of `base_config`.

  The comment above an option or group is its meaning, the one beside its value
  the origin.
  """
  tree = ast.parse(source)
  values = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict))
  above, beside = _comments(source)
  found: dict[str, Told] = {}

  def walk(node: ast.Dict, prefix: str) -> None:
    for key, value in zip(node.keys, node.values, strict=True):
      assert isinstance(key, ast.Constant)
      name = f"{prefix}{key.value}"
      lines: list[str] = []
      line = key.lineno - 1
      while line in above:
        lines.insert(0, above[line])
        line -= 1
      is_group = isinstance(value, ast.Dict)
      origin = "" if is_group else beside.get(value.end_lineno or 0, "")
      found[name] = Told(" ".join(lines), origin)
      if isinstance(value, ast.Dict):
        walk(value, f"{name}.")

  walk(values, "")
  return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """By line: comments that stand alone, and those beside code."""
  alone, beside = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      stands = not token.line[: token.start[1]].strip()
      text = token.string.removeprefix("#").strip()
      (alone if stands else beside)[token.start[0]] = text
  return alone, beside


def task_comments(task: type[Task]) -> dict[str, Told]:
  """What is written of the options of a kind of task, and of its bases.

  The meaning is in the docstring of the class, the origin beside the default.
  """
  found: dict[str, Told] = {}
  for cls in reversed(task.__mro__):
    own = vars(cls).get("__annotations__", {})
    if cls is Task or not dataclasses.is_dataclass(cls):
      continue
    source = inspect.getsource(cls)
    (node,) = ast.parse(inspect.cleandoc(source)).body
    assert isinstance(node, ast.ClassDef)
    beside = _comments(inspect.cleandoc(source))[1]
    meanings = sections(inspect.getdoc(cls), "Attributes:")
    for line in node.body:
      if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) in own:
        name = ast.unparse(line.target)
        if "ClassVar" not in ast.unparse(line.annotation):
          origin = beside.get(line.end_lineno or 0, "")
          found[name] = Told(meanings.get(name, ""), origin)
  return found


def sections(doc: str | None, heading: str) -> dict[str, str]:
  """The entries of a section of a docstring in Google's style."""
  lines = (doc or "").partition(f"{heading}\n")[2].splitlines()
  found: dict[str, str] = {}
  name = ""
  for line in lines:
    if not line.startswith("  "):
      break
    if not line.startswith("    "):
      name, _, line = line.partition(":")
      name = name.strip()
    found[name] = f"{found.get(name, '')} {line.strip()}".strip()
  return found
