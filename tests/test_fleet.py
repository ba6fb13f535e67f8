import dataclasses

import pytest

from benchmarks.fleet import Fleet, Simulation

FLEET = Fleet(shards=1500, workers=12)


@pytest.mark.parametrize("options", [{}, {"told": False}, {"resumed": True}])
def test_all_shards_are_labelled_once_with_few_requests(options):
  fleet = dataclasses.replace(FLEET, **options)
  simulation = Simulation(fleet)
  result = simulation.run()
  assert len(simulation.store.committed) == fleet.shards
  assert not simulation.store.names("gs://fleet/labels/leases")
  assert result.twice == 0
  assert result.counts["records"] <= 2.02 * result.shards
  assert result.hours[1] < 1.2 * result.ideal_hours
  # What is asked of each done shard at the end comes twice as often where half
  # was done before.
  assert result.total / result.shards < (14 if fleet.resumed else 10)


def test_counting_by_sums_is_counting_by_names():
  fleet = Fleet(shards=5200, workers=3, seconds=600.0, dying=0.4)
  exact = dataclasses.replace(fleet, exact=True)
  assert Simulation(fleet).run() == Simulation(exact).run()


@pytest.mark.slow
def test_requests_grow_with_shards_not_with_workers():
  few, many = (
    Simulation(Fleet(shards=40_000, workers=workers)).run()
    for workers in (32, 256)
  )
  assert many.total < 1.3 * few.total
