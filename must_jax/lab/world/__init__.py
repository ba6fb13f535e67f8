"""The embedded world: small scenes with exact labels, made from integers.

It stands in for the paper's data sets in the demo, the tutorials and tests.
`SETS` lists the image sets, `render_example` gives one example with all that is
known about it, `build` writes the sets to disk.
"""

from must_jax.lab.world.image_sets import SETS, SetSpec
from must_jax.lab.world.rendered import render_example, stored_labels
from must_jax.lab.world.write_sets import build, default_counts

__all__ = [
  "SETS",
  "SetSpec",
  "build",
  "default_counts",
  "render_example",
  "stored_labels",
]
