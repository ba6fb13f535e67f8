r"""Label an image set with boxes by torchvision's Faster R-CNN of COCO.

  must-jax convert torchvision_fasterrcnn_resnet50_fpn_v2 \
    fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --out checkpoints/faster_rcnn
  must-jax label label_faster_rcnn --workdir=labels/imagenet/detection

Arguments as those of label.py; teacher is checkpoints/faster_rcnn by default.

Cost: not measured on an accelerator. Result: a label set of boxes of 80 classes
(46.7 AP on COCO's validation set by torchvision; ours: not run).
"""

from ml_collections import ConfigDict

from must_jax.configs import label


def get_config(arg: str | None = None) -> ConfigDict:
  return label.get_config(
    arg,
    teacher="checkpoints/faster_rcnn",
    batch_size=16,  # 800 pixels
  )
