r"""MuST student on 300 million images (paper 4.2, Table 6).

  must-jax train student_jft --workdir=runs/student_jft

JFT-300M is not public: any set of images takes its place, as imported by
`must-jax import folder --unlabelled` (images=DIR, by default data/jft). Labels
of all four kinds come from teachers; their weights are learned (paper 3.2).
Arguments as those of student.py.

Cost: see docs/scale.md. Result: paper: CIFAR-100 87.6, Pascal detection 87.8,
Pascal segmentation 82.2, NYU depth 89.8, ADE segmentation 47.0, DIODE normals
56.2 (Table 6); ours: not run.
"""

from ml_collections import ConfigDict

from must_jax.configs import student


def get_config(arg: str | None = None) -> ConfigDict:
  config = student.get_config(arg, images="data/jft")
  config.balancing.method = "uncertainty"  # paper 3.2
  if not config.model.width:
    config.model.backbone = "resnet152"  # ours: the depth is not published
    config.train.steps = 2_929_688  # paper, Table 6: 2.5 epochs of 300M at 256
  return config
