"""The pages of docs/reference, made of parsers, defaults and docstrings."""

import pathlib
from typing import Any

from reference import api, command_line, config, shipped_configs

DOCS = pathlib.Path(__file__).parents[2]


def pages() -> dict[str, str]:
  """Every page, by its path below docs/reference."""
  return {
    "command-line.md": command_line.page(),
    "config.md": config.page(),
    "configs.md": shipped_configs.page(),
    **api.pages((DOCS / "architecture.md").read_text()),
  }


def write(directory: pathlib.Path) -> None:
  """Writes the pages that changed, and removes those that are no more."""
  made = {directory / path: text for path, text in pages().items()}
  for path, text in made.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
      path.write_text(text)
  for path in directory.rglob("*.md"):
    if path not in made:
      path.unlink()


def setup(app: Any) -> dict[str, Any]:
  """Called by Sphinx."""
  app.connect("builder-inited", lambda app: write(DOCS / "reference"))
  api.setup(app)
  return {"parallel_read_safe": True}
