"""Published weights to checkpoints of ours: `must-jax convert`.

A kind of weights is a `conversion.Kind`, in `KINDS` of its publisher's module.
To add a module, name it here.
"""

import importlib

from must_jax.convert.conversion import ConversionError, Kind

_MODULES = ("torchvision", "torchvision_detection", "timm", "align", "midas")


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
