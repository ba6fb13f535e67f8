"""`signature.json`: what an exported model takes and gives, for strangers."""

from typing import Any

import numpy as np

import must_jax
from must_jax.export.program import ANY, ExportProgram
from must_jax.input.preprocess import RULES
from must_jax.input.sources import eval_geometry
from must_jax.train import checkpoint
from must_jax.types import MEAN_COLOR


def describe(program: ExportProgram) -> dict[str, Any]:
  """All that a program in another language needs to know of an export.

  Returns:
    "inputs" and "outputs" ([{"name", "shape", "dtype", "meaning"}], a size of
    null is any), "tasks" (kind, classes, thresholds), "preprocessing" (how a
    photo becomes the inputs), "postprocessing" (back to its pixels), and what
    it was made of.
  """
  batch = None if program.batch == ANY else program.batch
  height, width = program.image_size
  return {
    "made_by": f"must_jax {must_jax.__version__}",
    "checkpoint": {
      "name": program.loaded.path.name,
      "digest": checkpoint.fingerprint(program.loaded.path),
    },
    "inputs": [
      {
        "name": "images",
        "shape": [batch, height, width, 3],
        "dtype": "uint8",
        "meaning": "RGB, 0 to 255, rows from the top; see preprocessing",
      },
      {
        "name": "content_size",
        "shape": [batch, 2],
        "dtype": "float32",
        "meaning": "height and width in pixels of the photo in the image, at"
        " its upper left; the rest is padding",
      },
    ],
    "outputs": [
      {
        "name": name,
        "shape": [batch, *array.shape[1:]],
        "dtype": str(np.dtype(array.dtype)),
        "meaning": _meaning(program, *name.split("/")),
      }
      for name, array in sorted(program.outputs.items())
    ],
    "tasks": {
      name: {
        "kind": program.loaded.config.tasks[name].kind,
        "classes": list(task.classes),
        "fields": {
          key: field.describe(()) for key, field in task.fields.items()
        },
        "thresholds": {
          option: getattr(task, option)
          for option in (*task.post_processing, "min_score")
          if hasattr(task, option)
        },
      }
      for name, task in program.chosen.items()
    },
    "preprocessing": preprocessing(program),
    "postprocessing": [
      "x of the photo = window.x + x of the output * window.width /"
      " content.width, and y likewise; window and content are those of the"
      " preprocessing, and maps have a cell for each pixel of the image",
    ],
  }


def _meaning(program: ExportProgram, task: str, array: str) -> str:
  for field in program.loaded.tasks[task].fields.values():
    if array in field.predicted:
      return field.predicted[array]
  return ""


def preprocessing(program: ExportProgram) -> dict[str, Any]:
  """How a photo becomes the inputs; docs/examples/photos.py does it so."""
  config = program.config
  options = eval_geometry(config)
  resize = options.resize
  rule = RULES.get(resize)
  fits = {"pad": "contain", "stretch": "stretch", "center_crop": "center_crop"}
  fill = MEAN_COLOR if rule is None else [round(v) for v in options.fill]
  described: dict[str, Any] = {
    "resize": resize,
    "fit": fits[resize] if rule is None else rule.fit,
    "image_size": list(program.image_size),
    "crop_fraction": options.crop_fraction,
    # Of a rule of ours the window is reduced first where it shrinks much.
    "shrink_first": rule is None,
    "interpolation": "bilinear" if rule is None else rule.interpolation,
    "antialias_below": options.antialias_below if rule is None else 0.0,
    "fill": list(fill),
    "normalisation": {
      "inside_the_model": True,
      "mean": list(config.model.image_mean),
      "std": list(config.model.image_std),
    },
  }
  own = program.loaded.config.data.eval_resize
  if own != resize:
    described["instead_of"] = own
  return described | {"steps": _steps(described)}


def _steps(spec: dict[str, Any]) -> list[str]:
  """The same in words."""
  height, width = spec["image_size"]
  steps = [
    "turn the photo as its EXIF orientation says; RGB, grey repeated,"
    " transparent parts on white",
  ]
  match spec["fit"]:
    case "contain":
      steps.append(
        f"scale = min({height} / photo height, {width} / photo width); content"
        " = round(photo size * scale), at least 1; window = the whole photo"
      )
    case "stretch":
      steps.append(
        f"content = {height} x {width}; window = the whole photo, which is"
        " stretched"
      )
    case _ if spec["shrink_first"]:
      steps.append(
        f"window = {spec['crop_fraction']:g} of the largest part of the photo"
        f" with the proportions of {height} x {width}, in the middle, rounded"
        f" to pixels; content = {height} x {width}"
      )
    case _:
      steps.append(
        f"of photo height / {height} and photo width / {width} the smaller one"
        f" decides: that side is resized to floor({height} or {width} /"
        f" {spec['crop_fraction']:g}) pixels, the other in proportion, cut to"
        f" whole pixels; the {height} x {width} pixels in its middle are the"
        " content, from half of the rest on, rounded half to even"
      )
  if spec["shrink_first"]:
    steps.append(
      "if window / content is at least 2 (4, 8) along both sides: squares of 2"
      " (4, 8) pixels a side are averaged into one, rounded half up; the window"
      " is cut to whole squares before, a centred one to begin at one. A JPEG"
      " is decoded at that size instead, which differs by a few grey levels"
    )
  steps.append(
    {
      "bilinear": "bilinear, half-pixel centres, edges repeated, no averaging",
      "bicubic": "bicubic (a = -0.75), half-pixel centres, edges repeated, no"
      " averaging; clipped to 0 to 255",
      "pillow_bilinear": "Pillow's BILINEAR, which averages when it shrinks",
      "pillow_bicubic": "Pillow's BICUBIC, which averages when it shrinks",
    }[spec["interpolation"]]
    + "; rounded to whole numbers"
  )
  if spec["antialias_below"]:
    steps.append(
      f"instead, where the scale is below {spec['antialias_below']:g}, the mean"
      " under a triangle 2 / scale wide"
    )
  if spec["fit"] == "contain":
    steps.append(
      f"padded at the right and below to {height} x {width} with {spec['fill']}"
    )
  return steps
