"""Writes golden/person.png: what MediaPipe's own program sees.

It takes an environment of its own, as MediaPipe asks for an older NumPy:

  python3.11 -m venv /tmp/oracle
  /tmp/oracle/bin/pip install mediapipe==0.10.21
  /tmp/oracle/bin/python tests/pseudo_label/make_golden_person.py

The photo is the one of Grace Hopper (public domain) that matplotlib ships,
which MediaPipe installs. Pixels are round(255 p) of a person.
"""

import pathlib

import mediapipe
import numpy as np
from matplotlib import cbook
from PIL import Image

GOLDEN = pathlib.Path(__file__).parent / "golden" / "person.png"

if __name__ == "__main__":
  with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as photo:
    pixels = np.asarray(photo.convert("RGB"))
  segmenter = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(
    model_selection=0
  )
  person = segmenter.process(pixels).segmentation_mask
  GOLDEN.parent.mkdir(exist_ok=True)
  codes = np.rint(255 * np.clip(person, 0, 1)).astype(np.uint8)
  Image.fromarray(codes).save(GOLDEN, optimize=True)
