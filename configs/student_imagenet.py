r"""MuST student on ImageNet (paper 4.2, Table 2).

  must-jax train student_imagenet --workdir=runs/student_imagenet

ImageNet's own classes, and pseudo labels of the other three kinds in
labels/imagenet. Arguments as those of student.py; classification is
"supervised" by default, and tasks=classification+depth is a row of Table 3.

Cost: see docs/scale.md. Result: paper: CIFAR-100 86.3, Pascal detection 85.1,
Pascal segmentation 80.6, NYU depth 87.8, ADE segmentation 43.5, DIODE normals
52.7 (Table 2); ours: not run.
"""

from ml_collections import ConfigDict

from must_jax.configs import student


def get_config(arg: str | None = None) -> ConfigDict:
  config = student.get_config(arg, classification="supervised")
  if not config.model.width:
    config.model.backbone = "resnet152"  # ours: the depth is not published
  return config
