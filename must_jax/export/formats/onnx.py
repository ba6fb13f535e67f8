"""ONNX: one file that ONNX Runtime runs, converted by jax2onnx.

jax2onnx replaces functions of JAX and Flax while it traces, by others with
fewer arguments. So it gets a jaxpr that was made before, in which it finds
nothing but JAX's primitives.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from must_jax.export.program import ExportProgram
from must_jax.ops import convolution
from must_jax.storage.path import Path
from must_jax.types import Array

ARTEFACT = "model.onnx"
REQUIRES = ("jax2onnx", "onnx", "onnxruntime")
ANY_BATCH = False
# jax2onnx asks for an older orbax-checkpoint, which it never imports.
INSTALL = (
  "pip install 'must_jax[onnx]' && pip install --no-deps jax2onnx==0.17.1"
)

# The first with bitwise operations, which NMS needs. Older ones run in more
# places.
_OPSET = 18
# Of what is in one file; protobuf reads no more than 2 GiB.
_MOST_BYTES = 2**31 - 2**24


def write(program: ExportProgram, directory: Path) -> None:
  """See `formats.Format`.

  What is too large for one file has its weights beside it, in
  model.onnx.data.

  Raises:
    ValueError: a primitive has no translation; says which, and the task.
  """
  import onnx

  try:
    model = _convert_program(program)
  except Untranslatable:
    for task in program.tasks:
      try:
        _convert_program(dataclasses.replace(program, tasks=(task,)))
      except Untranslatable as error:
        raise ValueError(
          f"--format onnx cannot have the task {task!r}: {error}. --tasks names"
          " those to export."
        ) from None
    raise
  size = sum(len(constant.raw_data) for constant in model.graph.initializer)
  onnx.save_model(
    model,
    str(directory / ARTEFACT),
    save_as_external_data=size > _MOST_BYTES,
    location=f"{ARTEFACT}.data",
  )


def _convert_program(program: ExportProgram) -> Any:
  images, content_size = program.inputs()
  return convert(program, {"images": images, "content_size": content_size})


class Untranslatable(ValueError):
  """What jax2onnx cannot translate."""


def convert(
  function: Callable[..., dict[str, Array]],
  inputs: dict[str, jax.ShapeDtypeStruct],
) -> Any:
  """Converts a function of arrays.

  Args:
    function: its positional arguments are the inputs, in their order.
    inputs: by the name that they get in the model.

  Returns:
    `onnx.ModelProto` with the function's outputs by their names.

  Raises:
    Untranslatable: a primitive has no translation, or not for these shapes.
  """
  with convolution.plain():
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(
      *inputs.values()
    )
  with _jax2onnx() as library:
    try:
      model = library.to_onnx(
        functools.partial(_evaluate, closed),
        list(inputs.values()),
        opset=_OPSET,
        model_name="must_jax",
        input_names=list(inputs),
        # A dictionary is flattened in the order of its sorted keys.
        output_names=sorted(shapes),
      )
    except Exception as error:  # of any kind, from the plugin of a primitive
      raise Untranslatable(f"jax2onnx: {error}") from error
  _drop_unused(model.graph)
  return model


@contextlib.contextmanager
def _jax2onnx() -> Iterator[Any]:
  """The library; JAX is as it was before, afterwards."""
  cumsum = jnp.cumsum
  level = logging.root.manager.disable
  # It tells of every plugin for a library that is not installed.
  logging.disable(logging.ERROR)
  try:
    import jax2onnx

    yield jax2onnx
  finally:
    logging.disable(level)
    # Its plugin of cumsum replaces it for good.
    jnp.cumsum = cumsum


def _evaluate(closed: ClosedJaxpr, *args: jax.Array) -> list[jax.Array]:
  """Evaluates a jaxpr with primitives that end in ONNX Runtime alone."""
  values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
  values |= zip(closed.jaxpr.invars, args, strict=True)

  def read(variable: Any) -> Any:
    if isinstance(variable, Literal):
      return variable.val
    return values[variable]

  for equation in closed.jaxpr.eqns:
    params = equation.params
    outputs: list[Any]
    match equation.primitive.name:
      case "reduce_window_max":
        outputs = [_max_pool(read(equation.invars[0]), **params)]
      case "custom_vjp_call":  # no derivative is wanted
        inner = params["call_jaxpr"]
        outputs = _evaluate(inner, *map(read, equation.invars))
      case "platform_index":
        outputs = [None]  # read by the next case only
      case "cond" if params.get("branches_platforms"):
        default = params["branches_platforms"].index(None)
        branch = params["branches"][default]
        outputs = _evaluate(branch, *map(read, equation.invars[1:]))
      case _:
        inputs = [v for v in equation.invars if not isinstance(v, Literal)]
        inputs = list(dict.fromkeys(inputs))
        alone = closed.jaxpr.replace(
          constvars=[],
          invars=inputs,
          outvars=equation.outvars,
          eqns=[equation],
          effects=equation.effects,
        )
        outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(read, inputs))
    values |= zip(equation.outvars, outputs, strict=True)
  return [read(variable) for variable in closed.jaxpr.outvars]


def _max_pool(
  x: jax.Array,
  window_dimensions: Sequence[int],
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  base_dilation: Sequence[int],
  window_dilation: Sequence[int],
) -> jax.Array:
  """`reduce_window_max` as maxima of slices, one axis after the other.

  jax2onnx makes a pooling of all axes of it, and ONNX Runtime has none of more
  than three.
  """
  assert set(base_dilation) == set(window_dilation) == {1}
  x = jnp.pad(x, padding, constant_values=-jnp.inf)
  for axis, (window, stride) in enumerate(
    zip(window_dimensions, window_strides, strict=True)
  ):
    last = x.shape[axis] - window
    x = functools.reduce(
      jnp.maximum,
      [
        jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis)
        for i in range(window)
      ],
    )
  return x


def _drop_unused(graph: Any) -> set[str]:
  """Drops constants that nothing reads; ONNX Runtime warns of each.

  Args:
    graph: `onnx.GraphProto`, changed in place.

  Returns:
    Names of values that it reads.
  """
  read = {output.name for output in graph.output}
  for node in graph.node:
    read.update(node.input)
    for attribute in node.attribute:
      if attribute.HasField("g"):
        read |= _drop_unused(attribute.g)
  kept = [constant for constant in graph.initializer if constant.name in read]
  del graph.initializer[:]
  graph.initializer.extend(kept)
  return read
