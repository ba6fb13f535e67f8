import itertools
import math

import pytest

from must_jax.preflight.chips import CHIPS, Slice


@pytest.mark.parametrize(
  ("name", "expected", "chips", "hosts"),
  [
    # Cloud TPU's names count cores of v4 and v5p, and chips of v5e and v6e.
    ("v4-8", "v4:2x2x1", 4, 1),
    ("v4-128", "v4:4x4x4", 64, 16),
    ("v5p-256", "v5p:4x4x8", 128, 32),
    ("v5e-4", "v5e:2x2", 4, 1),
    ("v5e-256", "v5e:16x16", 256, 64),
    ("v6e-64", "v6e:8x8", 64, 16),
    ("v5e:4x8", "v5e:4x8", 32, 8),
    ("v4:2x2x4", "v4:2x2x4", 16, 4),
  ],
)
def test_names_of_slices(name, expected, chips, hosts):
  tpu = Slice.parse(name)
  assert (tpu.name, tpu.num_chips, tpu.num_hosts) == (expected, chips, hosts)


@pytest.mark.parametrize(
  "name", ["v5e-3", "v7-8", "v5e", "", "v5e:", "v5e:x4", "v5e:4", "v5e-16x16"]
)
def test_a_name_that_is_none_is_answered_with_the_list(name):
  with pytest.raises(ValueError, match="v4: v4-8, v4-16") as error:
    Slice.parse(name)
  assert repr(name) in str(error.value)


def test_a_shape_that_no_slice_has_is_refused():
  pytest.importorskip("libtpu")
  with pytest.raises(ValueError, match="v5e:3x5 cannot be had"):
    Slice.parse("v5e:3x5").devices()


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_named_shapes_double_in_size(chip):
  sizes = [math.prod(map(int, shape.split("x"))) for shape in chip.shapes]
  assert all(b == 2 * a for a, b in itertools.pairwise(sizes))
