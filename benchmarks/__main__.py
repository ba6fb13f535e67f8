"""Runs every benchmark and prints one line a figure."""

import os

# Benchmarks of the data pipeline share the cores with nothing else.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from benchmarks import (
  bucket,
  convolutions,
  fleet,
  importing,
  labelling,
  ops,
  pipeline,
  resume,
  train_step,
)


def main() -> None:
  """Prints name, value and unit; ratios compare within this run."""
  modules = (
    *(pipeline, resume, importing, labelling, bucket, fleet, ops),
    convolutions,
  )
  for module in (*modules, train_step):
    for name, value, unit in module.run():
      print(f"{name:<60} {value:>10.2f}  {unit}", flush=True)


if __name__ == "__main__":
  main()
