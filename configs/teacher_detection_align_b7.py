r"""Detection teacher that starts from ALIGN's EfficientNet-B7 (paper 4.3).

  must-jax convert align_efficientnet_b7 model.safetensors \
    --out checkpoints/align_b7
  python main.py --config=configs/teacher_detection_align_b7.py:data=DIR \
    --workdir=runs/teacher_detection

In bootstrapping, teachers and student start from the same checkpoint. Arguments
as those of teacher_detection.py; another checkpoint:
--config.init_from=DIR. With small and smoke an EfficientNet-B0 from scratch
takes the place of the checkpoint.

Cost: not measured. Result: not published; ours: not run.
"""

from ml_collections import ConfigDict

from configs import teacher_detection
from must_jax.config import start_from


def get_config(arg: str | None = None) -> ConfigDict:
  config = start_from(
    teacher_detection.get_config(arg),
    "checkpoints/align_b7",
    backbone="efficientnet_b7_align",
    toy="efficientnet_b0",
    image_mean=(0.5, 0.5, 0.5),  # ALIGN
    image_std=(0.5, 0.5, 0.5),  # ALIGN
  )
  config.optimizer.lr_factors.backbone = 0.1  # ours: it has learned already
  return config
