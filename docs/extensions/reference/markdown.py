"""Plain text of help and docstrings as Markdown."""

import re

# What Markdown would take for its own; a line may begin with more.
_MARKS = re.compile(r"([\\*_<>\[\]{}$|#~^])")
# Written as code: what is quoted by `...`, options, and names of options.
_CODE = re.compile(
  r"(`[^`]+`|(?<![\w-])--[a-z][\w.-]*\w(?:=[\w./(*-]*\w)?"
  r"|\bconfig\.[a-z_.]*[a-z_])"
)


def text(plain: str) -> str:
  """One paragraph, with names in it as code."""
  parts = _CODE.split(" ".join(plain.split()))
  return "".join(
    code(part.strip("`")) if i % 2 else _MARKS.sub(r"\\\1", part)
    for i, part in enumerate(parts)
  )


def code(value: object) -> str:
  """Words as they are typed."""
  quotes = "``" if "`" in str(value) else "`"
  return f"{quotes}{value}{quotes}"


def sentence(plain: str) -> str:
  """The same, from a capital to a full stop."""
  words = " ".join(plain.split())
  if not words:
    return ""
  is_word = words.partition(" ")[0].rstrip(":,").isalpha()
  return (words[:1].upper() if is_word else words[:1]) + (
    words[1:] if words.endswith((".", "!", "?", ":")) else f"{words[1:]}."
  )


def block(name: str, head: str, body: str, **options: str) -> str:
  """A directive."""
  given = [f":{key}: {value}" for key, value in options.items() if value]
  # Of as many backticks as nothing in it has.
  fence = "`" * (3 + ("```" in body))
  lines = [f"{fence}{{{name}}} {head}", *given, *[""] * bool(given), body]
  return "\n".join([*lines, fence])


def paragraphs(plain: str, language: str = "sh") -> str:
  """Paragraphs; indented ones are code."""
  parts = []
  for part in re.split(r"\n\s*\n", plain.strip("\n")):
    if part.startswith("  "):
      lines = [line.removeprefix("  ") for line in part.splitlines()]
      parts.append("\n".join([f"```{language}", *lines, "```"]))
    else:
      parts.append(text(part))
  return "\n\n".join(parts)
