"""TPU chips and slices: what they can do, and devices to compile for."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator

import jax

CHIPS_PER_HOST = 4  # of slices of more than one host, all generations


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, by the page "TPU NAME" of cloud.google.com/tpu/docs.

  Attributes:
    name: generation, the page's name.
    hbm: bytes that programs can have, by libtpu; the pages' 32, 16, 95 and 32
      GB are a little more.
    flops: peak bfloat16 operations a second.
    hbm_bandwidth: bytes a second.
    ici_bandwidth: bytes a second that it sends to its neighbours, over all of
      its links: half of the page's bidirectional figure, or the page's
      all-reduce bandwidth of a pod by its chips.
    cores: of a chip, as names of slices count them; else names count chips.
    host_cores: virtual cores (vCPU) of a machine with four chips (Compute
      Engine, machine types ct4p, ct5lp, ct5p and ct6e).
    shapes: those of named slices, by number of chips.
  """

  name: str
  hbm: float
  flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  cores: int
  host_cores: int
  shapes: tuple[str, ...]


_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = (
  "2x2x1",
  "2x2x2",
  "2x2x4",
  "2x4x4",
  "4x4x4",
  "4x4x8",
  "4x8x8",
  "8x8x8",
  "8x8x16",
  "8x16x16",
)
# fmt: off
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4",  30.75 * 2**30, 275e12, 1200e9, 1.1e15 / 4096, 2, 240, _3D),
    Chip("v5e", 15.75 * 2**30, 197e12,  819e9, 400e9 / 2,     1, 112, _2D),
    Chip("v5p", 95.74 * 2**30, 459e12, 2765e9, 1200e9 / 2,    2, 208, _3D),
    Chip("v6e", 31.25 * 2**30, 918e12, 1638e9, 800e9 / 2,     1, 180, _2D),
  )
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that are connected.

  Attributes:
    chip: each of them.
    shape: chips along each axis, "16x16".
  """

  chip: Chip
  shape: str

  @classmethod
  def parse(cls, name: str) -> "Slice":
    """Of "v5e:16x16" (a shape in chips) or a product's name, "v4-128".

    Google counts v4 and v5p in cores, two a chip: v4-128 has 64 chips. v5e-256
    and v6e-256 have 256.

    Raises:
      ValueError: no such slice; the message lists those with names.
    """
    if name in _named():
      return _named()[name]
    generation, _, shape = name.partition(":")
    if generation in CHIPS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
      return cls(CHIPS[generation], shape)
    raise ValueError(
      f"Topology is {name!r}; expected one of\n{list_slices()}\nor a shape in"
      " chips, such as v5e:16x16 or v4:4x4x4."
    )

  @property
  def name(self) -> str:
    """As JAX names it."""
    return f"{self.chip.name}:{self.shape}"

  @property
  def num_chips(self) -> int:
    """Chips, each one device of JAX."""
    return _product(self.shape)

  @property
  def num_hosts(self) -> int:
    """Machines, each one process."""
    return max(1, self.num_chips // CHIPS_PER_HOST)

  @property
  def host(self) -> "Slice":
    """The chips of one machine, by themselves."""
    return (
      self if self.num_hosts == 1 else Slice(self.chip, self.chip.shapes[0])
    )

  def devices(self) -> list[jax.Device]:
    """Devices that programs can be compiled for, not run on.

    Raises:
      ValueError: the shape cannot be had.
    """
    # libtpu looks for the machine's metadata unless it is told not to.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # It keeps other processes out, as if it had chips, and writes log files.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if self.chip.cores == 2 else {}
    try:
      with _quiet():
        description = topologies.get_topology_desc(
          self.name, platform="tpu", **options
        )
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(
        f"Topology {self.name} cannot be had: {error}. Expected a shape such as"
        f" {', '.join(self.chip.shapes)}."
      ) from None
    return list(description.devices)


def list_slices() -> str:
  """The named slices, a line for each generation."""
  names = list(_named())
  return "\n".join(
    f"  {chip}: {', '.join(x for x in names if x.startswith(f'{chip}-'))}"
    for chip in CHIPS
  )


def _named() -> dict[str, Slice]:
  return {
    f"{chip.name}-{_product(shape) * chip.cores}": Slice(chip, shape)
    for chip in CHIPS.values()
    for shape in chip.shapes
  }


def has_compiler() -> bool:
  """Whether libtpu, which compiles for TPUs, is installed."""
  return importlib.util.find_spec("libtpu") is not None


def _product(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps what libtpu says of a machine without TPUs off the screen.

  It writes to the file descriptor, past Python.
  """
  sys.stderr.flush()
  saved = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
