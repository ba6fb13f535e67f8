r"""Asks TensorFlow Serving what is in a photo: NumPy and Pillow, nothing else.

  tensorflow_model_server --rest_api_port=8501 \
    --model_name=student --model_base_path=$PWD/EXPORT/savedmodel
  python serving_client.py http://localhost:8501/v1/models/student \
    EXPORT/signature.json photo.jpg

EXPORT is a folder of `must-jax export --format savedmodel --batch any`.
"""

import json
import pathlib
import sys
import urllib.request

import numpy as np
import photos
import predict


def ask(url, image, content):
  """Outputs by name for one image, in Serving's columnar REST format."""
  inputs = {"images": [image.tolist()], "content_size": [list(content)]}
  request = urllib.request.Request(
    f"{url}:predict",
    json.dumps(
      {"signature_name": "serving_default", "inputs": inputs}
    ).encode(),
    {"Content-Type": "application/json"},
  )
  with urllib.request.urlopen(request) as answer:
    outputs = json.load(answer)["outputs"]
  return {name: np.array(value[0]) for name, value in outputs.items()}


def main():
  """See the head of the file."""
  if len(sys.argv) != 4:
    sys.exit(__doc__)
  url, signature, path = sys.argv[1:]
  signature = json.loads(pathlib.Path(signature).read_text())
  image, content, window = photos.prepare(
    photos.read(path), signature["preprocessing"]
  )
  outputs = ask(url, image, content)
  for task, meaning in signature["tasks"].items():
    for line in predict.describe(
      outputs, task, meaning["classes"], content, window
    ):
      print(f"{task}: {line}")


if __name__ == "__main__":
  main()
