"""Convolutions of batches of images, in the form that a platform is fast at.

XLA's convolutions on a CPU are slow where a group has one channel (depthwise),
where a kernel is one pixel, and where the map is smaller than the kernel; so
are gradients of kernels with many channels. There, and only in programs for a
CPU, the same sums are written with operations that it is fast at. `python -m
benchmarks.convolutions` measures each form beside XLA's. In programs for a TPU
it is the stem, whose three channels leave most of the matrix unit idle.

A convolution relates three arrays, and each of its two gradients is a sum of
products of the same kind: of any two, the one primitive here computes the
third. So it is closed under differentiation, forward and reverse.

Legend: B images, [H, W] input and [h, w] output pixels, C and D channels,
k, l rows and columns of the kernel.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Arrays of the relation; a program computes one of them of the other two.
OUTPUT, INPUT, KERNEL = "output", "input", "kernel"
_ARGUMENTS = {
  OUTPUT: (INPUT, KERNEL),
  INPUT: (OUTPUT, KERNEL),
  KERNEL: (INPUT, OUTPUT),
}
# Rows of the output that are added up before a matrix product adds the rest.
_MOST_ROWS = 16
# Of an image: a matrix unit of 128 columns would multiply zeros.
_FEW_CHANNELS = 4

_plain = contextvars.ContextVar("plain", default=False)


class Geometry(NamedTuple):
  """What a convolution is besides its arrays; all of it by rows and columns.

  Attributes:
    input_size: (H, W).
    kernel_size: (k, l).
    strides: input pixels from one output pixel to the next.
    padding: (before, after) zeros around the input, or pixels cut off.
    dilation: input pixels from one kernel pixel to the next.
    groups: of channels, each with a convolution of its own.
    precision: of the products (`jax.lax.Precision`).
  """

  input_size: tuple[int, ...]
  kernel_size: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  groups: int
  precision: Any

  @property
  def output_size(self) -> tuple[int, int]:
    """(h, w)."""
    h, w = (
      (n + sum(pad) - (k - 1) * d - 1) // s + 1
      for n, k, s, pad, d in zip(*self[:5], strict=True)
    )
    return h, w


@contextlib.contextmanager
def plain() -> Iterator[None]:
  """What is traced within it has XLA's convolutions on every platform."""
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, for `nn.Conv`; see there.

  Maps [B, H, W, C] and a kernel [k, l, C / groups, D] to [B, h, w, D] where
  `dimension_numbers` say so. Everything else is left to XLA.
  """
  numbers = jax.lax.conv_dimension_numbers(
    lhs.shape, rhs.shape, dimension_numbers
  )
  images = jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _DIMENSIONS)
  if (
    _plain.get()
    or numbers != images
    or any(n != 1 for n in (*(lhs_dilation or ()), batch_group_count))
    or lhs.dtype != rhs.dtype
    or not jnp.issubdtype(lhs.dtype, jnp.floating)
    or 0 in (*lhs.shape, *rhs.shape)
  ):
    return jax.lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation,
      rhs_dilation,
      dimension_numbers,
      feature_group_count,
      batch_group_count,
      precision,
    )
  input_size, kernel_size = lhs.shape[1:3], rhs.shape[:2]
  dilation = tuple(rhs_dilation or (1, 1))
  if isinstance(padding, str):
    window = [
      (k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)
    ]
    padding = jax.lax.padtype_to_pads(
      input_size, window, window_strides, padding
    )
  geometry = Geometry(
    input_size,
    kernel_size,
    tuple(window_strides),
    tuple((int(before), int(after)) for before, after in padding),
    dilation,
    feature_group_count,
    precision,
  )
  return _convolve(lhs, rhs, OUTPUT, geometry)


# --- The forms. All of them: (first, second, geometry) -> the third array.


def _xla(
  first: jax.Array, second: jax.Array, wanted: str, geometry: Geometry
) -> jax.Array:
  """XLA's convolution, or the gradient that JAX makes of it."""
  padding = geometry.padding
  # XLA's padding is wrong on a CPU where one side of it is negative.
  ends = [(min(before, 0), min(after, 0), 0) for before, after in padding]
  is_cut = any(map(any, ends))

  def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if is_cut:
      zero = jnp.zeros((), x.dtype)
      x = jax.lax.pad(x, zero, [(0, 0, 0), *ends, (0, 0, 0)])
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      geometry.strides,
      [(max(before, 0), max(after, 0)) for before, after in padding],
      rhs_dilation=geometry.dilation,
      dimension_numbers=_DIMENSIONS,
      feature_group_count=geometry.groups,
      precision=geometry.precision,
    )

  if wanted == OUTPUT:
    return forward(first, second)
  if wanted == INPUT:
    shape = (
      first.shape[0],
      *geometry.input_size,
      second.shape[2] * geometry.groups,
    )
    function = functools.partial(_swapped, forward, second)
  else:
    shape = (
      *geometry.kernel_size,
      first.shape[3] // geometry.groups,
      second.shape[3],
    )
    function, first = functools.partial(forward, first), second
  like = jax.ShapeDtypeStruct(shape, first.dtype)
  return jax.linear_transpose(function, like)(first)[0]


def _swapped(function: Callable[..., Any], b: Any, a: Any) -> Any:
  return function(a, b)


# --- Slices.


class _Window(NamedTuple):
  """How a kernel moves over an array, along rows or columns.

  Attributes:
    kernel: its pixels.
    dilation: from one of them to the next.
    stride: from a place to the next.
    places: number of them.
    before: zeros before the array, or pixels cut off.
    interior: zeros between its pixels.
  """

  kernel: int
  dilation: int
  stride: int
  places: int
  before: int
  interior: int

  def pad(self, old: int) -> tuple[int, int, int]:
    """For `jax.lax.pad`, so that there is a pixel wherever the kernel is."""
    last = (self.places - 1) * self.stride + (self.kernel - 1) * self.dilation
    given = (old - 1) * (self.interior + 1)
    return self.before, last - self.before - given, self.interior

  def slices(self) -> list[slice]:
    """Of the padded array, one for each pixel of the kernel."""
    length = (self.places - 1) * self.stride + 1
    return [
      slice(start, start + length, self.stride)
      for start in range(0, self.kernel * self.dilation, self.dilation)
    ]


def _over_input(geometry: Geometry) -> tuple[_Window, ...]:
  """Places are pixels of the output."""
  _, kernel, strides, padding, dilation, *_ = geometry
  return tuple(
    _Window(k, d, s, n, before, 0)
    for k, d, s, n, (before, _) in zip(
      kernel, dilation, strides, geometry.output_size, padding, strict=True
    )
  )


def _over_output(geometry: Geometry) -> tuple[_Window, ...]:
  """Places are pixels of the input; the kernel is turned around."""
  size, kernel, strides, padding, dilation, *_ = geometry
  return tuple(
    _Window(k, d, 1, n, (k - 1) * d - before, s - 1)
    for k, d, s, n, (before, _) in zip(
      kernel, dilation, strides, size, padding, strict=True
    )
  )


def _pad(
  x: jax.Array, windows: Sequence[_Window], fill: float = 0
) -> jax.Array:
  pads = [
    window.pad(n) for window, n in zip(windows, x.shape[1:3], strict=True)
  ]
  value = jnp.full((), fill, x.dtype)
  return jax.lax.pad(x, value, ((0, 0, 0), *pads, (0, 0, 0)))


def input_slices(
  x: jax.Array, geometry: Geometry, fill: float = 0
) -> list[jax.Array]:
  """What each pixel of the kernel meets of x [B, H, W, C], [B, h, w, C] each.

  Args:
    x: the input.
    geometry: of the kernel.
    fill: of the padding.
  """
  windows = _over_input(geometry)
  x = _pad(x, windows, fill)
  return [
    x[:, rows, columns]
    for rows, columns in itertools.product(*(w.slices() for w in windows))
  ]


def output_slices(
  g: jax.Array, geometry: Geometry, fill: float = 0
) -> list[jax.Array]:
  """What each pixel of the kernel adds to, [B, H, W, D] each.

  Args:
    g: the output, [B, h, w, D].
    geometry: of the kernel.
    fill: where no pixel of the output is.
  """
  windows = _over_output(geometry)
  g = _pad(g, windows, fill)
  return [
    g[:, rows, columns]
    for rows, columns in itertools.product(*(w.slices()[::-1] for w in windows))
  ]


# --- Depthwise: one channel in a group.


def _depthwise_output(
  x: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  return _scaled_sum(input_slices(x, geometry), kernel)


def _depthwise_input(
  g: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  return _scaled_sum(output_slices(g, geometry), kernel)


def _scaled_sum(slices: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
  """One loop over the pixels, in which XLA has all slices at hand."""
  dtype = _sum_dtype(kernel)
  scales = kernel.astype(dtype).reshape(-1, kernel.shape[-1])
  total = sum(
    x.astype(dtype) * scale for x, scale in zip(slices, scales, strict=True)
  )
  return jnp.asarray(total).astype(kernel.dtype)


def _depthwise_kernel(
  x: jax.Array, g: jax.Array, geometry: Geometry
) -> jax.Array:
  """Sums over some rows in one loop, then over the rest as a matrix product.

  XLA's own sums over the pixels of a slice are several times slower.
  """
  out, dtype = g.dtype, _sum_dtype(g)
  rows, columns = _over_input(geometry)
  parts = -(-rows.places // _MOST_ROWS)
  count = -(-rows.places // parts)  # rows of a part
  missing = parts * count - rows.places
  g = jnp.pad(g, ((0, 0), (0, missing), (0, 0), (0, 0))).astype(dtype)
  x = _pad(x, (rows._replace(places=parts * count), columns)).astype(dtype)
  # A place in each part, all of them one row further in the next turn.
  starts = rows._replace(places=parts, stride=count * rows.stride).slices()

  def some(start: slice, column: slice) -> jax.Array:
    total: Any = 0
    for i in range(count):
      skip = i * rows.stride
      row = slice(start.start + skip, start.stop + skip, start.step)
      total += x[:, row, column] * g[:, i::count]
    return total

  partial = jnp.concatenate(
    [some(*place) for place in itertools.product(starts, columns.slices())], -1
  )
  kernel = jnp.einsum(
    "bhw,bhwc->c",
    jnp.ones(partial.shape[:3], dtype),
    partial,
    precision=jax.lax.Precision.HIGHEST,
  )
  return kernel.reshape(*geometry.kernel_size, 1, -1).astype(out)


def _sum_dtype(x: jax.Array) -> Any:
  return jnp.promote_types(x.dtype, jnp.float32)


# --- Kernels of one pixel, without padding: matrix products.


def _pixel_output(
  x: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  (x,) = input_slices(x, geometry)
  return jnp.einsum(
    "bhwc,cd->bhwd", x, kernel[0, 0], precision=geometry.precision
  )


def _pixel_input(
  g: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  x = jnp.einsum("bhwd,cd->bhwc", g, kernel[0, 0], precision=geometry.precision)
  return output_slices(x, geometry)[0]


# --- Kernels of several pixels, as matrix products.


def _patch_output(
  x: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  """One product with all pixels of the kernel."""
  patches = jnp.concatenate(input_slices(x, geometry), -1)
  return jnp.einsum(
    "bhwp,pd->bhwd",
    patches,
    kernel.reshape(-1, kernel.shape[3]),
    precision=geometry.precision,
  )


def _patch_input(
  g: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  patches = jnp.concatenate(output_slices(g, geometry), -1)
  matrix = kernel.swapaxes(2, 3).reshape(-1, kernel.shape[2])
  return jnp.einsum(
    "bhwp,pc->bhwc", patches, matrix, precision=geometry.precision
  )


def _products_kernel(
  x: jax.Array, g: jax.Array, geometry: Geometry
) -> jax.Array:
  """A product for each pixel of the kernel."""
  kernel = jnp.stack(
    [
      jnp.einsum("bhwc,bhwd->cd", x, g, precision=geometry.precision)
      for x in input_slices(x, geometry)
    ]
  )
  return kernel.reshape(*geometry.kernel_size, *kernel.shape[1:])


# --- Few channels and a stride: blocks of pixels as channels (space to depth).


def _block_output(
  x: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
  """A convolution of stride 1, whose pixels are blocks of the input's.

  After Ying et al. 2018, "Image classification at supercomputer scale".
  """
  x, blocks, begin = _in_blocks(x, geometry)
  ends = [
    (first, count * stride - first - size)
    for first, count, stride, size in zip(
      begin,
      blocks.kernel_size,
      geometry.strides,
      geometry.kernel_size,
      strict=True,
    )
  ]
  kernel = jnp.pad(kernel, (*ends, (0, 0), (0, 0))).transpose(3, 0, 1, 2)
  kernel = _to_blocks(kernel, geometry.strides).transpose(1, 2, 3, 0)
  return _xla(x, kernel, OUTPUT, blocks)


def _block_kernel(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
  """One product of all pixels of the kernel with the output."""
  channels, strides = x.shape[3], geometry.strides
  x, blocks, begin = _in_blocks(x, geometry)
  patches = jnp.concatenate(input_slices(x, blocks), -1)
  kernel = jnp.einsum("bhwp,bhwd->dp", patches, g, precision=geometry.precision)
  kernel = kernel.reshape(-1, *blocks.kernel_size, *strides, channels)
  kernel = kernel.transpose(1, 3, 2, 4, 5, 0)
  rows, columns = (
    count * stride
    for count, stride in zip(blocks.kernel_size, strides, strict=True)
  )
  kernel = kernel.reshape(rows, columns, channels, -1)
  height, width = (
    slice(first, first + size)
    for first, size in zip(begin, geometry.kernel_size, strict=True)
  )
  return kernel[height, width]


def _in_blocks(
  x: jax.Array, geometry: Geometry
) -> tuple[jax.Array, Geometry, tuple[int, ...]]:
  """The input in blocks of as many pixels as a stride has.

  Blocks begin with the input, whose padding is of blocks, too.

  Returns:
    The input, the geometry of blocks, and where the kernel begins in its first
    block, by rows and columns.
  """
  sizes, begin, counts, padding, ends = [], [], [], [], []
  for n, window in zip(x.shape[1:3], _over_input(geometry), strict=True):
    size = -(-n // window.stride)
    before = -(-window.before // window.stride)
    first = before * window.stride - window.before
    count = -(-(first + window.kernel) // window.stride)
    sizes.append(size)
    begin.append(first)
    counts.append(count)
    padding.append((before, window.places - 1 + count - before - size))
    ends.append((0, size * window.stride - n))
  x = _to_blocks(jnp.pad(x, ((0, 0), *ends, (0, 0))), geometry.strides)
  blocks = Geometry(
    tuple(sizes),
    tuple(counts),
    (1, 1),
    tuple(padding),
    (1, 1),
    1,
    geometry.precision,
  )
  return x, blocks, tuple(begin)


def _to_blocks(x: jax.Array, block: Sequence[int]) -> jax.Array:
  """[B, H, W, C] as [B, H / rows, W / columns, rows * columns * C].

  By slices: a TPU takes three times as long to transpose (docs/scale.md).
  """
  rows, columns = block
  return jnp.concatenate(
    [
      x[:, i::rows, j::columns]
      for i, j in itertools.product(range(rows), range(columns))
    ],
    -1,
  )


# --- Which form, and the primitive.

Form = Callable[[jax.Array, jax.Array, Geometry], jax.Array]


def cpu_form(
  wanted: str, geometry: Geometry, channels: int, features: int
) -> Form | None:
  """The form that a CPU is fastest at; None for XLA's.

  Args:
    wanted: "output", "input" or "kernel": which of the arrays is computed.
    geometry: of the convolution.
    channels: C, of the input.
    features: D, of the output.
  """
  if 1 < geometry.groups == channels == features:
    return {
      OUTPUT: _depthwise_output,
      INPUT: _depthwise_input,
      KERNEL: _depthwise_kernel,
    }[wanted]
  if geometry.groups > 1:
    return None
  if geometry.kernel_size == (1, 1):
    if geometry.padding != ((0, 0), (0, 0)):
      return None
    return {
      OUTPUT: _pixel_output,
      INPUT: _pixel_input,
      KERNEL: _products_kernel,
    }[wanted]
  # Where XLA's library has no such convolution.
  size, form = {
    OUTPUT: (geometry.input_size, _patch_output),
    INPUT: (geometry.output_size, _patch_input),
    KERNEL: ((1, 1), None),
  }[wanted]
  if any(k > n for k, n in zip(geometry.kernel_size, size, strict=True)):
    return form
  return None


def tpu_form(
  wanted: str, geometry: Geometry, channels: int, features: int
) -> Form | None:
  """The form that a TPU is fastest at; None for XLA's. See `cpu_form`."""
  del features
  is_stem = channels <= _FEW_CHANNELS and all(
    1 < s < k
    for s, k in zip(geometry.strides, geometry.kernel_size, strict=True)
  )
  if not is_stem or geometry.groups > 1 or geometry.dilation != (1, 1):
    return None
  return {OUTPUT: _block_output, INPUT: None, KERNEL: _block_kernel}[wanted]


_FORMS = {"cpu": cpu_form, "tpu": tpu_form}


def _form(
  first: Any, second: Any, wanted: str, geometry: Geometry, platform: str
) -> Form | None:
  """The platform's form for the wanted array of the other two."""
  if wanted == INPUT:
    channels, features = second.shape[2] * geometry.groups, first.shape[3]
  else:
    channels, features = first.shape[3], second.shape[3]
  return _FORMS[platform](wanted, geometry, channels, features)


def _convolve(
  first: jax.Array, second: jax.Array, wanted: str, geometry: Geometry
) -> jax.Array:
  """The wanted array of the other two, as the platform computes it."""
  forms = [_form(first, second, wanted, geometry, name) for name in _FORMS]
  primitive = _by_platform_p if any(forms) else _convolution_p
  return primitive.bind(first, second, wanted=wanted, geometry=geometry)


def _on(
  platform: str,
  first: jax.Array,
  second: jax.Array,
  *,
  wanted: str,
  geometry: Geometry,
) -> jax.Array:
  form = _form(first, second, wanted, geometry, platform)
  if form is None:
    return _xla(first, second, wanted, geometry)
  return form(first, second, geometry)


def _shape(first: Any, second: Any, *, wanted: str, geometry: Geometry) -> Any:
  function = functools.partial(_xla, wanted=wanted, geometry=geometry)
  return jax.make_jaxpr(function)(first, second).out_avals[0]


def _batch(
  args: Sequence[jax.Array],
  axes: Sequence[int | None],
  *,
  wanted: str,
  geometry: Geometry,
) -> tuple[jax.Array, int]:
  """`jax.vmap`: more images, where one kernel is for all of them."""
  if wanted == KERNEL or axes[1] is not None:
    function = functools.partial(_xla, wanted=wanted, geometry=geometry)
    return jax.vmap(function, axes)(*args), 0
  assert axes[0] is not None
  x = jnp.moveaxis(args[0], axes[0], 0)
  y = _convolve(x.reshape(-1, *x.shape[2:]), args[1], wanted, geometry)
  return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _transpose(
  cotangent: jax.Array,
  other: jax.Array,
  asked: str,
  *,
  wanted: str,
  geometry: Geometry,
) -> jax.Array:
  """An argument's cotangent: the third of that of the result and the other."""
  (of_other,) = {OUTPUT, INPUT, KERNEL} - {asked, wanted}
  arrays = {wanted: cotangent, of_other: other}
  first, second = (arrays[name] for name in _ARGUMENTS[asked])
  return _convolve(first, second, asked, geometry)


def _transpose_first(
  cotangent: jax.Array, _: Any, second: jax.Array, **params: Any
) -> jax.Array:
  asked, _ = _ARGUMENTS[params["wanted"]]
  return _transpose(cotangent, second, asked, **params)


def _transpose_second(
  cotangent: jax.Array, first: jax.Array, _: Any, **params: Any
) -> jax.Array:
  _, asked = _ARGUMENTS[params["wanted"]]
  return _transpose(cotangent, first, asked, **params)


def _make_primitive(name: str) -> Primitive:
  primitive = Primitive(name)
  primitive.def_impl(
    jax.jit(primitive.bind, static_argnames=("wanted", "geometry"))
  )
  primitive.def_abstract_eval(_shape)
  ad.defbilinear(primitive, _transpose_first, _transpose_second)
  batching.primitive_batchers[primitive] = _batch
  mlir.register_lowering(
    primitive, mlir.lower_fun(_xla, multiple_results=False)
  )
  return primitive


# Two, so that a program for several platforms asks for its platform only where
# that matters.
_convolution_p = _make_primitive("convolution")
_by_platform_p = _make_primitive("convolution_by_platform")
for _name in _FORMS:
  mlir.register_lowering(
    _by_platform_p,
    mlir.lower_fun(functools.partial(_on, _name), multiple_results=False),
    _name,
  )
