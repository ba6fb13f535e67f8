"""How well the order "likely wrong first" finds what is wrong in label sets.

  python -m benchmarks.label_ranking labels/pile/detection labels/pile/mask \
    --images data/pile --truth data/pile_truth

For each field: the rank correlation (Spearman) of each image's number of wrong
elements with its uncertainty and with its place in the order, and how many of
them are in the first 5 % of the images. Counted is what does not agree
(`Field.agreement`) at the thresholds at which labels are read: boxes that are
wrong or missing, classes likewise, and of each class of a map the pixels of
union less intersection.
"""

import argparse

import numpy as np

from must_jax.curation import agreement, ranking
from must_jax.curation.read_sets import open_sets, read_sets
from must_jax.storage.path import Path

_FIRST = 0.05  # of the images


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Rank correlation of two numbers of each image; equal ones share ranks."""

  def ranks(values: np.ndarray) -> np.ndarray:
    places = np.sort(values)
    low = np.searchsorted(places, values, "left")
    return low + np.searchsorted(places, values, "right")

  return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("labels", type=Path, nargs="+")
  parser.add_argument("--images", type=Path, required=True)
  parser.add_argument("--truth", type=Path, required=True)
  args = parser.parse_args()
  images, sets = open_sets(args.labels, args.images)
  fields = [agreement.fields_as_read(labels) for labels in sets]
  unsure = [
    ranking.uncertainties(image, fields) for image in read_sets(images, sets)
  ]
  place = {
    key: i for i, key in enumerate(ranking.rank(args.labels, args.images))
  }
  for number, labels in enumerate(args.labels):
    wrong: dict[str, list[int]] = {}
    keys: dict[str, list[str]] = {}
    sure: dict[str, list[float]] = {}
    compared = agreement.compare(labels, args.truth)
    for (key, pairs), values in zip(compared, unsure, strict=True):
      for (field, _), counts in pairs.items():
        if (number, field) not in values:
          continue
        wrong.setdefault(field, []).append(
          sum(of - agreeing for agreeing, of in counts.values())
        )
        keys.setdefault(field, []).append(key)
        sure.setdefault(field, []).append(values[number, field])
    for field, numbers in wrong.items():
      errors = np.array(numbers)
      order = np.array([place[key] for key in keys[field]])
      first = np.argsort(order)[: round(_FIRST * len(order))]
      print(
        f"{field}: {errors.sum():,} wrong in {len(errors):,} images;"
        f" correlation with uncertainty"
        f" {spearman(errors, np.array(sure[field])):.2f}, with the order"
        f" {spearman(errors, -order):.2f}; in the first {_FIRST:.0%} of the"
        f" images {errors[first].mean():.2f} each, {errors.mean():.2f} in all"
      )


if __name__ == "__main__":
  main()
