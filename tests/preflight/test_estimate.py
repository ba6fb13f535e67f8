import pytest

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.preflight import estimate
from must_jax.preflight.chips import CHIPS


@pytest.mark.parametrize(
  ("chip", "work", "expected"),
  [
    # (operations, bytes, bytes sent) -> seconds, by hand.
    ("v5e", (197e12, 819e9, 200e9), (1.0, 1.0, 1.0)),
    ("v4", (27.5e12, 2400e9, 0.0), (0.1, 2.0, 0.0)),
    ("v6e", (91.8e12, 163.8e9, 40e9), (0.1, 0.1, 0.1)),
    ("v5p", (459e12, 0.0, 600e9), (1.0, 0.0, 1.0)),
  ],
)
def test_bounds_are_work_over_speed(chip, work, expected):
  found = estimate.bounds(CHIPS[chip], *work)
  assert tuple(found) == ("operations", "memory", "links")
  assert tuple(found.values()) == pytest.approx(expected)


def test_hoped_time_is_that_of_a_part_of_the_peak_but_never_below_the_bound():
  chip = CHIPS["v5e"]
  one_second = 197e12
  slow, fast = estimate.hoped_seconds(chip, one_second, bound=0.0)
  assert (slow, fast) == pytest.approx((1 / 0.17, 1 / 0.35))
  slow, fast = estimate.hoped_seconds(chip, one_second, bound=4.0)
  assert (slow, fast) == pytest.approx((1 / 0.17, 4.0))


@pytest.mark.parametrize(
  ("size", "fields", "rate"),
  [
    # Images a core-second in docs/speed.md.
    ((224, 224), (ClassVector(10),), 957),
    ((640, 640), (ClassVector(10),), 370),
    ((640, 640), (Boxes(10),), 344),
    ((640, 640), (ClassMap(10),), 328),
    ((640, 640), (ValueMap(),), 305),
    ((640, 640), (VectorMap(),), 253),
  ],
)
def test_input_takes_what_was_measured(size, fields, rate):
  assert 1 / estimate.input_seconds(size, fields) == pytest.approx(rate)


def test_labels_of_four_kinds_agree_with_their_measurement_together():
  fields = (ClassVector(10), Boxes(10), ClassMap(10), ValueMap())
  rate = 1 / estimate.input_seconds((640, 640), fields)
  assert rate == pytest.approx(260, rel=0.05)  # docs/speed.md


@pytest.mark.parametrize(
  ("field", "num_bytes"),
  [
    (ClassVector(1000), 6000),
    (Boxes(365, max_boxes=100), 2360),
    (ClassMap(133), 0.63 * 19200),
    (ValueMap(), 1.33 * 19200),
    (VectorMap(), 4.6 * 19200),
  ],
)
def test_stored_bytes_grow_with_what_is_stored(field, num_bytes):
  assert estimate.stored(field, cells=160 * 120)[1] == pytest.approx(num_bytes)


@pytest.mark.parametrize("start", [1, 3, 8, 100])
@pytest.mark.parametrize("limit", [0, 1, 5, 8, 37])
def test_largest_finds_the_limit_wherever_it_starts(limit, start):
  asked = []

  def fits(size):
    asked.append(size)
    return size <= limit

  assert estimate.largest(fits, start) == limit
  assert len(asked) == len(set(asked)), "a compilation takes minutes"
