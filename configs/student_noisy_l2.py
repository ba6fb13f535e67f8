r"""MuST student that starts from Noisy Student's EfficientNet-L2.

  must-jax convert timm_efficientnet_l2 model.safetensors \
    --out checkpoints/noisy_l2
  must-jax train student_noisy_l2 --workdir=runs/student_noisy_l2

The paper's largest student starts from ALIGN's L2 (4.3, Table 7), which is not
public; `tf_efficientnet_l2.ns_jft_in1k` of timm is the nearest that is. Images
and labels are those of student_jft.py. Arguments as those of student.py;
another checkpoint: --config.init_from=DIR. With small and smoke an
EfficientNet-B0 from scratch takes the place of the checkpoint.

Cost: paper: 0.36 epochs of JFT-300M. Result: paper, with ALIGN's: Pascal
detection 88.2, segmentation 89.8, NYU depth 91.9, ADE 54.3; ours: not run.
"""

from ml_collections import ConfigDict

from must_jax.config import root_of, start_from, under
from must_jax.configs import student


def get_config(arg: str | None = None) -> ConfigDict:
  config = start_from(
    student.get_config(arg, images="data/jft"),
    under(root_of(arg), "checkpoints/noisy_l2"),
    backbone="efficientnet_l2",
    toy="efficientnet_b0",
  )
  config.optimizer.lr_factors.backbone = 0.1  # ours: it has learned already
  if not config.model.width:
    config.train.steps = 421_875  # paper 4.3: 0.36 epochs of 300M at 256
  return config
