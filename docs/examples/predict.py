r"""Predicts photos with an exported model, without must_jax.

  python predict.py EXPORT photo.jpg ...

EXPORT is a folder that `must-jax export` made: of StableHLO (this needs jax,
flatbuffers, numpy and pillow), a SavedModel (tensorflow, numpy and pillow) or
ONNX (onnxruntime, numpy and pillow).
It prints what is seen, in the photos' own pixels.
"""

import json
import pathlib
import sys

import numpy as np
import photos


def load(folder, signature):
  """The model as a function of images and content_size."""
  artefact = str(folder / signature["artefact"])
  if signature["format"] == "stablehlo":
    import jax
    from jax import export

    data = bytearray(pathlib.Path(artefact).read_bytes())
    call = jax.jit(export.deserialize(data).call)
    return lambda *inputs: jax.device_get(call(*inputs))
  if signature["format"] == "savedmodel":
    import tensorflow as tf

    model = tf.saved_model.load(artefact)
    return lambda images, content_size: {
      name: array.numpy()
      for name, array in model.signatures["serving_default"](
        images=tf.constant(images), content_size=tf.constant(content_size)
      ).items()
    }
  if signature["format"] == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(
      artefact, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda images, content_size: dict(
      zip(
        names,
        session.run(None, {"images": images, "content_size": content_size}),
        strict=True,
      )
    )
  sys.exit(f"{folder} is of the format {signature['format']}.")


def describe(outputs, task, classes, content, window):
  """What a task sees, in a line each."""
  if f"{task}/probs" in outputs:
    probs = outputs[f"{task}/probs"]
    for i in np.argsort(-probs)[:3]:
      yield f"{classes[i]} {probs[i]:.3f}"
  elif f"{task}/boxes" in outputs:
    keep = outputs[f"{task}/valid"]
    boxes = photos.boxes_in_photo(
      outputs[f"{task}/boxes"][keep], content, window
    )
    ids, scores = (outputs[f"{task}/{k}"][keep] for k in ("classes", "scores"))
    for box, i, score in zip(boxes, ids, scores, strict=True):
      yield f"{classes[i]} {score:.3f} at {np.round(box, 1).tolist()}"
  elif f"{task}/classes" in outputs:
    seen = outputs[f"{task}/classes"][: content[0], : content[1]]
    for i, count in zip(*np.unique(seen, return_counts=True), strict=True):
      yield f"{classes[i]} {count / seen.size:.1%}"
  else:
    (name,) = (n for n in outputs if n.startswith(f"{task}/"))
    seen = outputs[name][: content[0], : content[1]]
    yield f"{name} from {seen.min():.3f} to {seen.max():.3f}"


def main():
  """See the head of the file."""
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  folder = pathlib.Path(sys.argv[1])
  signature = json.loads((folder / "signature.json").read_text())
  model = load(folder, signature)
  batch = signature["inputs"][0]["shape"][0] or 1
  for path in sys.argv[2:]:
    image, content, window = photos.prepare(
      photos.read(path), signature["preprocessing"]
    )
    images = np.stack([image] * batch)
    sizes = np.float32([content] * batch)
    outputs = {k: v[0] for k, v in model(images, sizes).items()}
    print(path)
    for task, meaning in signature["tasks"].items():
      lines = describe(outputs, task, meaning["classes"], content, window)
      for line in lines:
        print(f"  {task}: {line}")


if __name__ == "__main__":
  main()
