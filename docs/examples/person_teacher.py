r"""Labels photos with what is a person: MediaPipe's selfie segmentation.

  pip install ai-edge-litert
  pip install --no-deps --target weights --only-binary :all: \
    --python-version 3.12 mediapipe==0.10.21
  python docs/examples/person_teacher.py data/photos train labels/photos/person

Start it again, or on more machines: they share the work. The network
(Apache-2.0, 250 kB) is a file in mediapipe's package, of which nothing runs:
Python may be newer than the package, and what that needs need not be there. It
was made for people near a camera, and looks for them whatever the photo shows.
"""

import argparse
import hashlib
from typing import ClassVar

import numpy as np
import tensorflow as tf
from scipy import ndimage

from must_jax.pseudo_label.worker import label_images
from must_jax.storage.path import Path

WEIGHTS = (
  "weights/mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
)
LARGEST = 512  # of a map's sides; the network's own are 256 x 256


class PersonTeacher:
  """uint8 images of any size in, class maps of background and person out.

  Args:
    weights: the network's .tflite file.

  Raises:
    ValueError: there is no such file.
  """

  fields: ClassVar = {
    "mask": {"kind": "ClassMap", "classes": ["background", "person"]}
  }

  def __init__(self, weights=WEIGHTS):
    if not Path(weights).exists():
      raise ValueError(
        f"{weights} is missing; the head of docs/examples/person_teacher.py"
        " says how to get it."
      )
    # TensorFlow's own interpreter is deprecated in favour of this one.
    from ai_edge_litert.interpreter import Interpreter

    network = Path(weights).read_bytes()
    self.description = {
      "name": "MediaPipe selfie segmentation",
      "digest": hashlib.sha256(network).hexdigest(),
      "source": "mediapipe 0.10.21, Google",
      "licence": "Apache-2.0",
    }
    self._interpreter = Interpreter(model_content=network)
    self._interpreter.allocate_tensors()
    (self._input,) = self._interpreter.get_input_details()
    (self._output,) = self._interpreter.get_output_details()

  def __call__(self, images):
    """See `must_jax.pseudo_label.teacher.Teacher`."""
    return [{"mask": self._label(image)} for image in images]

  def _label(self, image):
    size = np.array(image.shape[:2])
    shrink = min(1, LARGEST / size.max())
    person = self.probability(image, np.maximum(1, np.rint(size * shrink)))
    return {
      "classes": (person > 0.5).astype(np.int32),
      "confidence": np.maximum(person, 1 - person),
    }

  def probability(self, image, size):
    """Of each place to be a person.

    Args:
      image: uint8 [H, W, 3].
      size: h, w of the map.

    Returns:
      float32 [h, w], in 0..1.
    """
    cells = self._input["shape"][1:3]
    # As MediaPipe does: stretched, pixel i of the input at i * step.
    steps = np.divide(image.shape[:2], cells)
    pixels = ndimage.affine_transform(
      image.astype(np.float32),
      (*steps, 1),
      output_shape=(*cells, 3),
      order=1,
      mode="nearest",
    )
    self._interpreter.set_tensor(self._input["index"], pixels[None] / 255)
    self._interpreter.invoke()
    person = self._interpreter.get_tensor(self._output["index"])[0]
    person = tf.image.resize(person, np.asarray(size, np.int32))[..., 0]
    return np.clip(person, 0, 1)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("images", help="an image set")
  parser.add_argument("split", help="of it, such as train")
  parser.add_argument("output", help="the label set to make")
  parser.add_argument("--weights", default=WEIGHTS, help="the .tflite file")
  args = parser.parse_args()
  label_images(
    PersonTeacher(args.weights),
    args.images,
    args.split,
    args.output,
    settings={"largest": LARGEST},
  )
