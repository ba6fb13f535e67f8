r"""MuST student that starts from ALIGN's EfficientNet-B7 (paper 4.3, figure 5).

  must-jax convert align_efficientnet_b7 model.safetensors \
    --out checkpoints/align_b7
  must-jax train student_align_b7 --workdir=runs/student_align_b7

Images are those of student_jft.py. The labels, in labels/jft_align_b7, are of
teachers that started from the same checkpoint (teacher_*_align_b7.py), but for
depth. Arguments as those of student.py; another checkpoint:
--config.init_from=DIR. With small and smoke an EfficientNet-B0 from scratch
takes the place of the checkpoint.

Cost: paper: one epoch of JFT-300M. Result: paper: better than ALIGN on 4 of 6
tasks (figure 5); ours: not run. Google's own ALIGN checkpoint is not public;
kakaobrain/align-base was trained on COYO-700M.
"""

from ml_collections import ConfigDict

from must_jax.config import root_of, start_from_align_b7
from must_jax.configs import student


def get_config(arg: str | None = None) -> ConfigDict:
  config = student.get_config(
    arg, images="data/jft", labels="labels/{images}_align_b7"
  )
  config = start_from_align_b7(config, root_of(arg))
  if not config.model.width:
    config.train.steps = 1_171_875  # paper 4.3: an epoch of 300M at 256
  return config
