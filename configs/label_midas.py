r"""Label an image set with depth by a published MiDaS (paper 3.1).

  must-jax convert midas_v21_large midas_v21_384.pt --out checkpoints/midas
  must-jax label label_midas --workdir=labels/imagenet/depth

Arguments as those of label.py; teacher is checkpoints/midas by default. The
v2.1 kinds have not seen NYU or KITTI; v3.1, which has, is not offered.

Cost: not measured on an accelerator. Result: a label set of inverse depth.
"""

from ml_collections import ConfigDict

from must_jax.configs import label


def get_config(arg: str | None = None) -> ConfigDict:
  config = label.get_config(arg, teacher="checkpoints/midas")
  # ours: about what students read; whole maps are 136 kB an image
  config.label.map_stride = 2
  return config
