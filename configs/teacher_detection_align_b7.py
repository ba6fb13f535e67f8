r"""Detection teacher that starts from ALIGN's EfficientNet-B7 (paper 4.3).

  must-jax convert align_efficientnet_b7 model.safetensors \
    --out checkpoints/align_b7
  must-jax train teacher_detection_align_b7 \
    --workdir=runs/teacher_detection_align_b7

In bootstrapping, teachers and student start from the same checkpoint. Arguments
as those of teacher_detection.py; another checkpoint:
--config.init_from=DIR. With small and smoke an EfficientNet-B0 from scratch
takes the place of the checkpoint.

Cost: not measured. Result: not published; ours: not run.
"""

from ml_collections import ConfigDict

from must_jax.config import root_of, start_from_align_b7
from must_jax.configs import teacher_detection


def get_config(arg: str | None = None) -> ConfigDict:
  config = teacher_detection.get_config(arg)
  return start_from_align_b7(config, root_of(arg))
