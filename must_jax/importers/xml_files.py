"""XML files of annotations, read with suspicion."""

from xml.etree import ElementTree

from must_jax.storage.image_files import Rejected
from must_jax.storage.path import Path, read_range


def parse(path: Path, root: str, max_bytes: int) -> ElementTree.Element:
  """Reads an XML file.

  Entities of a few bytes can stand for gigabytes, so declarations of them are
  refused. They are spelled in ASCII unless zero bytes tell of UTF-16.

  Args:
    path: of the file.
    root: name of its outermost element.
    max_bytes: that it may have.

  Raises:
    Rejected: the message names the file and says what is wrong.
  """
  try:
    data = read_range(path, 0, max_bytes + 1)
  except OSError as error:
    raise Rejected(f"{path.name} cannot be read: {error}") from None
  if len(data) > max_bytes:
    raise Rejected(f"{path.name} has more than {max_bytes} bytes")
  if b"\0" in data:
    raise Rejected(f"{path.name} is no UTF-8, but UTF-16 or no text at all")
  if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
    raise Rejected(
      f"{path.name} declares a document type; expected a plain annotation"
    )
  try:
    element = ElementTree.fromstring(data)
  except (ElementTree.ParseError, ValueError, LookupError) as error:
    raise Rejected(f"{path.name} is not valid XML: {error}") from None
  if element.tag != root:
    raise Rejected(f"{path.name} is <{element.tag}>; expected <{root}>")
  return element
