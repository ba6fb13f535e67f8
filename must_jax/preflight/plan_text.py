"""A plan as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from must_jax.preflight import step_parts
from must_jax.preflight.estimate import HOPED_MFU

_LOW, _HIGH = (f"{100 * mfu:.0f} %" for mfu in HOPED_MFU)


def text(plan: Mapping[str, Any]) -> str:
  """Lines of a name and what it needs, for people.

  Args:
    plan: see `plan.run`.
  """
  step, batch = plan["step"], plan["batch_size"]
  per_chip = f"{plan['images_per_chip']:g} a chip"
  if plan["accumulate"] > 1:
    per_chip += f" in {plan['accumulate']} parts"
  rows = [
    ("config", " ".join([plan["config"], *plan["overrides"]])),
    (
      "slice",
      f"{plan['topology']}: {plan['chips']} chips, {plan['hosts']} hosts",
    ),
    ("parameters", f"{plan['parameters'] / 1e6:,.1f} M"),
    ("checkpoint", num_bytes(plan["checkpoint_bytes"])),
    (
      "batch",
      f"{batch} images, {per_chip}"
      + ("; each host has its own" if plan["stage"] == "label" else ""),
    ),
    ("model, an image", f"{plan['flops_per_image'] / 1e9:,.0f} GFLOP"),
  ]
  if assumed := plan["assumed_classes"]:
    counts = ", ".join(f"{name} {count}" for name, count in assumed.items())
    rows.append(
      (
        "classes",
        f"{counts}: the paper's, for no labels are there; --classes TASK=COUNT"
        " gives others",
      )
    )
  rows += _memory(plan) + _step(plan)
  rows += [
    ("step", _seconds(plan["step_seconds"])),
    ("images a second", _rates(plan["images_per_second"])),
    ("an epoch", _hours(plan["epoch_hours"], plan["chips"])),
    ("the run", _hours(plan["run_hours"], plan["chips"])),
  ]
  low, high, _ = plan["cores_per_host"]
  rows.append(
    (
      "input cores, a host",
      f"{math.ceil(low)} to {math.ceil(high)}, of about {plan['host_cores']}",
    )
  )
  low, high, _ = plan["bytes_per_second_per_host"]
  rows.append(("network, a host", f"{num_bytes(low)}/s to {num_bytes(high)}/s"))
  rows += _labels(plan)
  if plan["images"] is None:
    rows.append(("", "--images N gives an epoch and the size of label sets."))
  if step is None:
    rows.append(
      (
        "",
        "Without libtpu (pip install 'must_jax[tpu]') nothing is said of"
        " memory and of what chips send; operations are those of the model as"
        " written.",
      )
    )
  width = max(len(name) for name, _ in rows)
  lines = [f"{name:{width}}  {value}".rstrip() for name, value in rows]
  work = None if step is None else step["work"]
  if work:
    lines += ["", "The compiler's estimate of the step's work, by part:"]
    lines += step_parts.table([step_parts.Work(**w) for w in work])
  elif work is not None:
    lines += ["", "The compiler says nothing of a step that does not fit."]
  return "\n".join(lines)


def num_bytes(value: float) -> str:
  """In units of 1000: 1.2 kB."""
  power = 0
  while value >= 1000 and power < 5:
    value, power = value / 1000, power + 1
  return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def _memory(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
  step = plan["step"]
  if step is None:
    return [("HBM, a chip", "not known")]
  hbm = f"{step['hbm'] / 2**30:.1f} of {plan['hbm'] / 2**30:.1f} GiB"
  if not step["fits"]:
    hbm = f"at least {hbm}: DOES NOT FIT"
  rows = [("HBM, a chip", hbm)]
  if plan["largest_per_chip"] is not None:
    rows.append(
      ("largest batch, a chip", f"{plan['largest_per_chip']} images at a time")
    )
  return rows


def _step(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
  step = plan["step"]
  if step is None or not step["flops"]:
    return []
  rows = [
    ("compiled, a chip", f"{step['flops'] / 1e9:,.0f} GFLOP a step"),
    (
      "memory traffic, a chip",
      f"{num_bytes(step['least_bytes'])} at least;"
      f" {num_bytes(step['xla_bytes'])} by XLA's count, with what stays on the"
      " chip",
    ),
  ]
  if step["sent"]:
    rows.append(
      (
        "sent by a chip",
        f"at least {num_bytes(step['sent'])} of gradients and parameters",
      )
    )
  parts = ", ".join(
    f"{name} {1000 * seconds:.3g}" for name, seconds in plan["bounds"].items()
  )
  return [*rows, ("bounds, ms", f"{parts}; no step can be faster")]


def _labels(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
  rows = []
  for name, size in plan["label_bytes"].items():
    total = f", {num_bytes(size * plan['images'])}" if plan["images"] else ""
    rows.append(
      (f"labels, {name}", f"at most {num_bytes(size)} an image{total}")
    )
  return rows


def _seconds(seconds: Sequence[float]) -> str:
  low, high, bound = (f"{1000 * x:,.3g} ms" for x in seconds)
  return f"{low} at {_LOW} of peak, {high} at {_HIGH}; bound {bound}"


def _rates(rates: Sequence[float]) -> str:
  low, high, bound = (f"{x:,.0f}" for x in rates)
  return f"{low} at {_LOW} of peak, {high} at {_HIGH}; bound {bound}"


def _hours(hours: Sequence[float] | None, chips: int) -> str:
  if not hours:
    return "not known"
  low, high, bound = (f"{x:,.3g} h" for x in hours)
  chip_hours = f"{hours[1] * chips:,.0f} to {hours[0] * chips:,.0f} chip-hours"
  return f"{high} to {low} ({chip_hours}); bound {bound}"
