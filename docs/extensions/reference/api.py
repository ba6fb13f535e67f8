"""docs/reference/api.md, and a page for each part of the package."""

import importlib
import inspect
import pathlib
import re
import sys
from typing import Any, TypeVar

from docutils import nodes
from sphinx.domains.python import PyXRefRole
from sphinx.util.nodes import make_refnode

import must_jax
from reference import markdown

PACKAGE = pathlib.Path(must_jax.__file__).parent
_HEAD = """\
# Python API

First what users call, then [every part of the package](#all-parts). Arrays have
their shapes in brackets: `[B, H, W, 3]` is a batch of images. Every path may be
local or in a bucket.
"""
# What users call, by what they want.
USED: dict[str, tuple[str, ...]] = {
  "Load a checkpoint and predict": (
    "must_jax.load",
    "must_jax.train.load.LoadedModel",
    "must_jax.train.predictions.PhotoPrediction",
    "must_jax.train.predictions.TaskPrediction",
  ),
  "Write a config": (
    "must_jax.config.base_config",
    "must_jax.config.dataset",
    "must_jax.config.task",
    "must_jax.config.parse_arg",
    "must_jax.config.load",
    "must_jax.config.validate",
  ),
  "Label with a program of your own": (
    "must_jax.pseudo_label.teacher.Teacher",
  ),
  "Add a task": (
    "must_jax.tasks.task.Task",
    "must_jax.tasks.task.HeadOptions",
    "must_jax.tasks.classification.Classification",
    "must_jax.tasks.detection.Detection",
    "must_jax.tasks.segmentation.Segmentation",
    "must_jax.tasks.depth.Depth",
    "must_jax.tasks.normals.Normals",
    "must_jax.tasks.contrastive.Contrastive",
  ),
  "Add a kind of label field": (
    "must_jax.fields.field.Field",
    "must_jax.fields.boxes.Boxes",
    "must_jax.fields.class_map.ClassMap",
    "must_jax.fields.class_vector.ClassVector",
    "must_jax.fields.value_map.ValueMap",
    "must_jax.fields.vector_map.VectorMap",
  ),
  "Add a way to balance tasks": (
    "must_jax.weighting.balancer.Balancer",
    "must_jax.weighting.balancer.Trunk",
  ),
  "Add an importer": (
    "must_jax.importers.items.Plan",
    "must_jax.importers.items.Item",
    "must_jax.importers.items.Imported",
    "must_jax.importers.items.Labels",
    "must_jax.importers.items.ReadFiles",
  ),
}
# Parts that are of use without the rest.
_ALONE = ("ops", "losses", "metrics", "models")


def pages(architecture: str) -> dict[str, str]:
  """The pages, by path.

  Args:
    architecture: of docs/architecture.md, which has the parts in order.
  """
  parts = rooms(architecture)
  made = {f"api/{name}.md": _part(name, modules) for name, modules in parts}
  return {"api.md": _front(parts), **made}


def rooms(architecture: str) -> list[tuple[str, list[str]]]:
  """The parts of the package with their modules, all of them, in order."""
  named = re.findall(r"^  (\w+)(?:/|\.py)\s", architecture, re.MULTILINE)
  there = {
    ".".join(
      path.relative_to(PACKAGE.parent).with_suffix("").parts
    ).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "configs" not in path.relative_to(PACKAGE).parts
  }
  parts: dict[str, list[str]] = {"must_jax": ["must_jax"]}
  for name in dict.fromkeys(named):
    package = f"must_jax.{name}"
    inside = sorted(m for m in there if f"{m}.".startswith(f"{package}."))
    if inside:
      parts[name if (PACKAGE / name).is_dir() else "must_jax"] = [
        *parts.get(name if (PACKAGE / name).is_dir() else "must_jax", ()),
        *inside,
      ]
  told = {module for modules in parts.values() for module in modules}
  if missing := sorted(there - told):
    raise ValueError(f"docs/architecture.md does not name {missing}.")
  return list(parts.items())


def _front(parts: list[tuple[str, list[str]]]) -> str:
  lines = [_HEAD]
  for title, names in USED.items():
    lines.append(f"## {title}\n")
    lines += [f"- {{py:obj}}`{name}`: {_first(find(name))}" for name in names]
    lines.append("")
  lines.append("## Use parts alone\n")
  lines += [_line(name) for name in _ALONE]
  lines.append("\n## All parts\n")
  lines += [_line(name) for name, _ in parts]
  entries = "\n".join(f"api/{name}" for name, _ in parts)
  lines.append(f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```")
  return "\n".join(lines) + "\n"


def _line(name: str) -> str:
  title = _title(name)
  about = (
    "Loading a checkpoint, and modules that stand alone."
    if name == "must_jax"
    else _first(importlib.import_module(title))
  )
  return f"- [{title}](api/{name}.md): {about}"


def _title(name: str) -> str:
  return name if name == "must_jax" else f"must_jax.{name}"


def _part(name: str, modules: list[str]) -> str:
  sections = [f"# {_title(name)}"]
  for module in modules:
    if module != _title(name):
      sections.append(f"## {module}")
    sections.append(
      f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n"
      "   :special-members: __call__\n   :ignore-module-all:\n```"
    )
  return "\n\n".join(sections) + "\n"


def find(name: str) -> Any:
  """The object of a dotted name."""
  module, _, last = name.rpartition(".")
  return getattr(importlib.import_module(module), last)


def _first(thing: Any) -> str:
  doc = inspect.getdoc(thing) or ""
  return markdown.text(markdown.sentence(doc.partition("\n\n")[0]))


def setup(app: Any) -> None:
  """Makes docstrings fit for Sphinx."""
  app.add_role_to_domain("py", "name", PyXRefRole())
  app.connect("missing-reference", _leave)
  # Before napoleon reads the sections.
  app.connect("autodoc-process-docstring", _process_docstring, priority=1)
  app.connect("autodoc-process-signature", _process_signature)


def _leave(app: Any, env: Any, node: nodes.Element, content: nodes.Element):
  """Links names that are not whole; type variables and others are code."""
  target = str(node.get("reftarget"))
  if node.get("reftype") == "name":
    objects = env.domains.python_domain.objects
    found = [name for name in objects if name.endswith(f".{target}")]
    if len(found) != 1 or not ("." in target or target[:1].isupper()):
      return content
    there = objects[found[0]]
    from_doc = node.get("refdoc", env.docname)
    return make_refnode(
      app.builder, from_doc, there.docname, there.node_id, content, found[0]
    )
  module, _, last = target.rpartition(".")
  if module.startswith("must_jax") and module in sys.modules:
    is_variable = isinstance(getattr(sys.modules[module], last, 0), TypeVar)
    return content if is_variable else None
  return None


def _process_docstring(
  app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
  # Or the words before a colon would be a type.
  text = re.sub(r"(?m)^((?:Returns|Yields):\n +)", r"\1: ", "\n".join(lines))
  lines[:] = _literal_blocks(text).splitlines() + [""]


def _names(text: str) -> str:
  """Names in `...` link to what they name; the rest of it is code."""

  def role(inner: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*", inner):
      return f":py:name:`{inner}`"
    return f"``{' '.join(inner.split())}``"

  parts = re.split(r"(?<![:`\w])(`[^`]+`)(?!`)", text)
  for i, part in enumerate(parts):
    # Marks of reStructuredText that are none here.
    parts[i] = (
      role(part[1:-1])
      if i % 2
      else re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
    )
  return "".join(parts)


def _literal_blocks(text: str) -> str:
  """Code (paragraphs that are indented, outside of sections) and tables."""
  parts = re.split(r"(\n\s*\n)", text)
  for i in range(0, len(parts), 2):
    body = parts[i]
    is_code = i and body.startswith("  ") and not _in_section(parts, i)
    if is_code or body.startswith("|"):
      lines = [f"  {line}" for line in body.splitlines()]
      parts[i] = "\n".join([".. code-block:: text", "", *lines])
    else:
      parts[i] = _names(body)
  return "".join(parts)


def _in_section(parts: list[str], i: int) -> bool:
  """Whether it belongs to a section: see the paragraph that is not indented."""
  before = next(p for p in reversed(parts[:i:2]) if not p.startswith("  "))
  return re.match(r"(\w+):\n  ", before) is not None


def _process_signature(
  app: Any,
  what: str,
  name: str,
  thing: Any,
  options: Any,
  signature: str | None,
  returns: str | None,
):
  """Leaves out what Flax adds to every module."""
  if signature:
    signature = re.sub(r", parent=<[^>]*>, name=None", "", signature)
  return signature, returns
