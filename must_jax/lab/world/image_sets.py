"""The image sets of the world, in the roles of the paper's data sets (Table 1).

Four source sets with one kind of label each, a pile without labels, and six
downstream sets with other objects, patterns and cameras, and few labels. The
pile mixes the scenes of all sources with scenes of its own; its twin
`pile_truth` has the same pictures with all labels, to measure pseudo labels.
"""

import dataclasses
from typing import Any

from must_jax.lab.world.styles import Style

SOURCE_KINDS = (
  "ball",
  "box",
  "barrel",
  "cone",
  "table",
  "mushroom",
  "arch",
  "house",
)
_FINE_KINDS = (
  "pyramid",
  "gem",
  "dumbbell",
  "tower",
  "tree",
  "snowman",
  "rocket",
  "bottle",
  "sign",
  "stairs",
  "hourglass",
  "nut",
)
_PASCAL_KINDS = ("chair", "bottle", "tree", "lamp", "rocket", "sign")
_FURNITURE = ("chair", "table", "sofa", "shelf", "stool", "lamp")
_ADE_KINDS = (
  "chair",
  "sofa",
  "shelf",
  "stool",
  "lamp",
  "column",
  "tree",
  "tower",
  "house",
)
_ADE_STUFF = (
  "floor",
  "wall",
  "ceiling",
  "rug",
  "window",
  "door",
  "picture",
  "ground",
  "path",
  "hill",
  "sky",
)
# Coarse classes of what is no object.
_COARSE = {
  "floor": "floor",
  "rug": "floor",
  "ground": "floor",
  "path": "floor",
  "hill": "floor",
  "wall": "wall",
  "ceiling": "wall",
  "window": "wall",
  "door": "wall",
  "picture": "wall",
  "sky": "sky",
}
_COARSE_CLASSES = (*SOURCE_KINDS, "floor", "wall", "sky")


@dataclasses.dataclass(frozen=True)
class SetSpec:
  """An image set.

  Attributes:
    role: the data set of the paper in whose place it stands.
    fields: of "label", "objects", "mask", "depth", "normals", those stored.
    styles: scenes are of one of these, each as often as the others.
    kinds: classes of images and boxes.
    mask_classes: classes of pixels.
    merge: (surface or kind, pixel class) where the two names differ; what has
      no class is `IGNORE_LABEL`.
    depth_unit: "inverse" (0 in the sky) or "metres" (the sky is invalid).
    counts: (split, number of examples) by default.
    scenes_of: name of the set whose scenes and keys these are, if another's.
  """

  role: str
  fields: tuple[str, ...]
  styles: tuple[Style, ...]
  kinds: tuple[str, ...]
  counts: tuple[tuple[str, int], ...]
  mask_classes: tuple[str, ...] = ()
  merge: tuple[tuple[str, str], ...] = ()
  depth_unit: str = "inverse"
  scenes_of: str | None = None

  def field_specs(self) -> dict[str, dict[str, Any]]:
    """The description of the fields in the index of the image set."""
    specs: dict[str, dict[str, Any]] = {
      "label": {"kind": "ClassVector", "classes": list(self.kinds)},
      "objects": {"kind": "Boxes", "classes": list(self.kinds)},
      "mask": {"kind": "ClassMap", "classes": list(self.mask_classes)},
      "depth": {"kind": "ValueMap", "unit": self.depth_unit},
      "normals": {"kind": "VectorMap"},
    }
    return {name: specs[name] for name in self.fields}


_CLS_STYLE = Style(
  kinds=SOURCE_KINDS,
  dominant=True,
  num_objects=(1, 3),
  view=(0.35, 0.5),
)
_DET_STYLE = Style(
  kinds=SOURCE_KINDS,
  num_objects=(1, 3),
  indoor=0.4,
  distance=(1.5, 3.0),
  camera_height=(0.8, 2.0),
  view=(0.4, 0.55),
  saturation=(0.3, 0.8),
)
_SEG_STYLE = Style(
  kinds=SOURCE_KINDS,
  num_objects=(1, 3),
  indoor=0.75,
  distance=(1.4, 2.6),
  camera_height=(0.6, 1.5),
  view=(0.35, 0.5),
  saturation=(0.25, 0.7),
  value=(0.55, 0.95),
  patches=True,
)
_DEPTH_STYLE = Style(
  kinds=SOURCE_KINDS,
  num_objects=(1, 4),
  distance=(1.5, 5.0),
  camera_height=(0.6, 2.0),
  view=(0.4, 0.65),
  size=(0.5, 1.5),
  patches=True,
)
_WILD_STYLE = Style(
  kinds=SOURCE_KINDS,
  strangers=tuple(sorted({*_FINE_KINDS, *_PASCAL_KINDS, *_ADE_KINDS})),
  stranger_share=0.4,
  num_objects=(1, 4),
  distance=(1.5, 4.0),
  camera_height=(0.6, 2.0),
  view=(0.35, 0.6),
  size=(0.6, 1.4),
  patterns=("plain", "checker", "stripes", "dots", "rings", "brick", "marble"),
  saturation=(0.2, 0.95),
  patches=True,
)
_NEW_PATTERNS = ("plain", "brick", "planks", "zigzag", "marble", "rings")
_NEW_FLOORS = ("plain", "brick", "marble", "zigzag", "clouds")
_PASCAL_STYLE = Style(
  kinds=_PASCAL_KINDS,
  num_objects=(1, 3),
  distance=(1.3, 2.6),
  camera_height=(0.5, 1.4),
  view=(0.35, 0.5),
  patterns=_NEW_PATTERNS,
  floors=_NEW_FLOORS,
  saturation=(0.3, 0.85),
  fill=(0.3, 0.5),
  patches=True,
)

_PILE_STYLES = (_CLS_STYLE, _DET_STYLE, _SEG_STYLE, _DEPTH_STYLE, _WILD_STYLE)
_SOURCE_COUNTS = (("train", 1200), ("validation", 200))

SETS: dict[str, SetSpec] = {
  "src_cls": SetSpec(
    role="ImageNet classification",
    fields=("label",),
    styles=(_CLS_STYLE,),
    kinds=SOURCE_KINDS,
    counts=_SOURCE_COUNTS,
  ),
  "src_det": SetSpec(
    role="Objects365 detection",
    fields=("objects",),
    styles=(_DET_STYLE,),
    kinds=SOURCE_KINDS,
    counts=_SOURCE_COUNTS,
  ),
  "src_seg": SetSpec(
    role="COCO segmentation",
    fields=("mask",),
    styles=(_SEG_STYLE,),
    kinds=SOURCE_KINDS,
    counts=_SOURCE_COUNTS,
    mask_classes=_COARSE_CLASSES,
    merge=tuple(_COARSE.items()),
  ),
  "src_depth": SetSpec(
    role="MiDaS depth",
    fields=("depth",),
    styles=(_DEPTH_STYLE,),
    kinds=SOURCE_KINDS,
    counts=_SOURCE_COUNTS,
  ),
  "pile": SetSpec(
    role="JFT without labels",
    fields=(),
    styles=_PILE_STYLES,
    kinds=SOURCE_KINDS,
    counts=(("train", 3000),),
  ),
  "pile_truth": SetSpec(
    role="what teachers should have said about the pile",
    fields=("label", "objects", "mask", "depth", "normals"),
    styles=_PILE_STYLES,
    kinds=SOURCE_KINDS,
    counts=(("train", 3000),),
    mask_classes=_COARSE_CLASSES,
    merge=tuple(_COARSE.items()),
    scenes_of="pile",
  ),
  "down_cls": SetSpec(
    role="CIFAR-100 classification",
    fields=("label",),
    styles=(
      Style(
        kinds=_FINE_KINDS,
        dominant=True,
        num_objects=(1, 3),
        indoor=0.4,
        view=(0.5, 0.7),
        patterns=_NEW_PATTERNS,
        floors=_NEW_FLOORS,
        fill=(0.3, 0.5),
      ),
    ),
    kinds=_FINE_KINDS,
    counts=(("train", 192), ("validation", 240)),
  ),
  "down_det": SetSpec(
    role="Pascal detection",
    fields=("objects",),
    styles=(_PASCAL_STYLE,),
    kinds=_PASCAL_KINDS,
    counts=(("train", 128), ("validation", 200)),
  ),
  "down_seg": SetSpec(
    role="Pascal segmentation",
    fields=("mask",),
    styles=(_PASCAL_STYLE,),
    kinds=_PASCAL_KINDS,
    counts=(("train", 96), ("validation", 200)),
    mask_classes=("background", *_PASCAL_KINDS),
    merge=tuple((name, "background") for name in _ADE_STUFF),
  ),
  "down_depth": SetSpec(
    role="NYU depth",
    fields=("depth",),
    styles=(
      Style(
        kinds=_FURNITURE,
        num_objects=(2, 6),
        indoor=1.0,
        distance=(1.6, 4.5),
        camera_height=(1.2, 1.6),
        view=(0.6, 0.6),
        patterns=_NEW_PATTERNS,
        floors=_NEW_FLOORS,
        saturation=(0.2, 0.7),
        patches=True,
      ),
    ),
    kinds=_FURNITURE,
    counts=(("train", 96), ("validation", 200)),
    depth_unit="metres",
  ),
  "down_ade": SetSpec(
    role="ADE segmentation",
    fields=("mask",),
    styles=(
      Style(
        kinds=_ADE_KINDS,
        num_objects=(2, 5),
        indoor=0.6,
        distance=(1.6, 3.6),
        camera_height=(0.8, 1.6),
        view=(0.45, 0.65),
        size=(0.9, 1.8),
        patterns=_NEW_PATTERNS,
        floors=_NEW_FLOORS,
        saturation=(0.2, 0.8),
        patches=True,
        hills=0.8,
      ),
    ),
    kinds=_ADE_KINDS,
    counts=(("train", 128), ("validation", 200)),
    mask_classes=(*_ADE_STUFF, *_ADE_KINDS),
    merge=tuple((name, name) for name in _ADE_STUFF),
  ),
  "down_normals": SetSpec(
    role="DIODE surface normals",
    fields=("normals",),
    styles=(
      Style(
        kinds=("pyramid", "gem", "column", "stairs", "tower", "house", "nut"),
        num_objects=(2, 5),
        indoor=0.0,
        distance=(1.8, 4.0),
        camera_height=(0.8, 1.8),
        view=(0.45, 0.65),
        size=(0.8, 2.0),
        patterns=_NEW_PATTERNS,
        floors=_NEW_FLOORS,
        saturation=(0.1, 0.6),
        sun=(0.4, 0.8),
        patches=True,
      ),
    ),
    kinds=("pyramid", "gem", "column", "stairs", "tower", "house", "nut"),
    counts=(("train", 96), ("validation", 200)),
  ),
}


def get_spec(name: str) -> SetSpec:
  """The set of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in SETS:
    raise ValueError(
      f"The synthetic world has no set {name!r}; expected one of"
      f" {sorted(SETS)}."
    )
  return SETS[name]
