"""Published weights to checkpoints of ours: `must-jax convert`.

A kind of weights is a `base.Kind` in the module of its publisher. To add one,
write its module and add it to `_MODULES`.
"""

import importlib

from must_jax.convert.kinds import ConversionError, Kind

_MODULES = ("torchvision", "torchvision_detection", "timm", "align", "midas")

__all__ = ["ConversionError", "Kind", "get_kind", "kinds"]


def kinds() -> dict[str, Kind]:
  """All kinds by name."""
  modules = (
    importlib.import_module(f"must_jax.convert.{name}") for name in _MODULES
  )
  return {kind.name: kind for module in modules for kind in module.KINDS}


def get_kind(name: str) -> Kind:
  """The kind of that name.

  Raises:
    ConversionError: there is none.
  """
  known = kinds()
  if name not in known:
    raise ConversionError(
      f"Kind of weights is {name!r}; expected one of"
      f" {', '.join(['must_jax', *sorted(known)])}. `must-jax convert --list`"
      " says what they are."
    )
  return known[name]
