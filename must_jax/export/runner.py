"""Runs an exported model in its own runtime: a program that stands alone.

  python runner.py FORMAT ARTEFACT

It imports NumPy and one runtime, and nothing of must_jax. Each line on its
standard input, "INPUTS OUTPUTS REPEATS", names an .npz of the model's inputs
and one to make of its outputs, and is answered by a line of JSON: seconds of
the fastest of so many calls after the first. Paths have no spaces.
"""

import json
import sys
import time

import numpy as np


def stablehlo(artefact):
  """The model as a function of `jax.export`."""
  import jax
  from jax import export

  with open(artefact, "rb") as file:
    call = jax.jit(export.deserialize(bytearray(file.read())).call)
  return lambda images, content_size: jax.device_get(call(images, content_size))


def savedmodel(artefact):
  """The model as a function of TensorFlow."""
  import tensorflow as tf

  loaded = tf.saved_model.load(artefact)  # without it its variables go

  def run(images, content_size):
    outputs = loaded.signatures["serving_default"](
      images=tf.constant(images), content_size=tf.constant(content_size)
    )
    return {name: array.numpy() for name, array in outputs.items()}

  return run


def onnx(artefact):
  """The model as a function of ONNX Runtime."""
  import onnxruntime

  session = onnxruntime.InferenceSession(
    artefact, providers=["CPUExecutionProvider"]
  )
  names = [output.name for output in session.get_outputs()]
  return lambda **inputs: dict(
    zip(names, session.run(None, inputs), strict=True)
  )


LOADERS = {"stablehlo": stablehlo, "savedmodel": savedmodel, "onnx": onnx}


def main():
  """See the head of the file."""
  name, artefact = sys.argv[1:]
  # It cannot be imported, wherever it is.
  sys.modules["must_jax"] = None  # type: ignore[assignment]
  run = LOADERS[name](artefact)
  for line in sys.stdin:
    inputs, outputs, repeats = line.split()
    with np.load(inputs) as file:
      arrays = dict(file)
    found = run(**arrays)
    seconds = []
    for _ in range(int(repeats)):
      start = time.perf_counter()
      run(**arrays)
      seconds.append(time.perf_counter() - start)
    np.savez(outputs, **found)
    print(json.dumps({"seconds": min(seconds, default=None)}), flush=True)


if __name__ == "__main__":
  main()
