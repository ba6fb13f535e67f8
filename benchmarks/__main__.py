"""Runs the benchmarks and prints a table: `python -m benchmarks [NAME ...]`.

Each figure stands beside the one that was committed last, in `figures.json`.
Seconds of other machines differ; ratios compare within one run. `--update`
makes the figures those that are committed, here and in `docs/speed.md`.
"""

import argparse
import datetime
import importlib
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Benchmarks of the data pipeline share the cores with nothing else.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# What `run()` of a module measures.
MODULES = {
  "pipeline": "Input: read, decode, augment, batch",
  "resume": "Resume",
  "importing": "Import",
  "labelling": "Labelling",
  "bucket": "Requests to a bucket",
  "fleet": "A fleet of labelling workers, simulated",
  "ops": "Operations on boxes",
  "convolutions": "Convolutions on a CPU",
  "train_step": "The training step",
}
COMMITTED = pathlib.Path(__file__).with_name("figures.json")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "speed.md"
# What follows on the page is written by `--update`.
HEADING = "\n## All figures\n"

Figures = list[tuple[str, float, str]]


def read_committed() -> dict[str, Any]:
  """Module -> {"commit", "machine", "date", "seconds", "figures"}."""
  return json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}


def to_number(value: float) -> str:
  """Four digits, as many as a benchmark can be trusted with."""
  return f"{float(f'{value:.4g}'):,.10g}"


def to_markdown(committed: Mapping[str, Any]) -> str:
  """The tables of the page."""
  lines: list[str] = []
  for name in filter(committed.__contains__, MODULES):
    of = committed[name]
    lines += [
      f"\n### {MODULES[name]}\n",
      f"`python -m benchmarks {name}`, {of['seconds']:.0f} s, commit"
      f" {of['commit']}, {of['date']}, {of['machine']}\n",
      "| figure | | unit |",
      "|---|--:|---|",
      *(
        f"| {what} | {to_number(value)} | {unit} |"
        for what, value, unit in of["figures"]
      ),
    ]
  return "\n".join(lines) + "\n"


def describe_machine() -> str:
  """Processor, cores, and what made the programs."""
  import jax

  model = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        model = line.partition(":")[2].strip()
        break
  device = jax.devices()[0]
  where = "" if device.platform == "cpu" else f", {device.device_kind}"
  return f"{len(os.sched_getaffinity(0))} cores of {model}{where}"


def describe_commit() -> str:
  """Of the checkout; "+" where it differs, but for what `--update` writes."""
  root = pathlib.Path(__file__).parent

  def git(*words: str) -> str:
    return subprocess.run(
      ["git", *words], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()

  written = ":!/benchmarks/figures.json", ":!/docs/speed.md"
  changed = git("status", "--porcelain", "-uno", "--", ":/", *written)
  return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def print_table(
  figures: Figures, before: Iterable[tuple[str, float, str]]
) -> None:
  """Each figure, its unit, and its last committed value."""
  old = {what: value for what, value, _ in before}
  for what, value, unit in figures:
    last = to_number(old[what]) if what in old else "-"
    print(f"  {what:<58} {to_number(value):>10} {last:>10}  {unit}", flush=True)


def measure(name: str) -> Figures:
  """What a module measures."""
  found = importlib.import_module(f"benchmarks.{name}").run()
  return [(what, float(value), unit) for what, value, unit in found]


def main(argv: Sequence[str] | None = None) -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description=__doc__.partition("\n")[0]
  )
  parser.add_argument(
    "names",
    nargs="*",
    metavar="NAME",
    help=f"some of {', '.join(MODULES)}; by default all",
  )
  parser.add_argument(
    "--update",
    action="store_true",
    help="write them to benchmarks/figures.json and docs/speed.md",
  )
  args = parser.parse_args(argv)
  if unknown := [name for name in args.names if name not in MODULES]:
    parser.error(f"{unknown[0]!r} is none of {', '.join(MODULES)}.")
  committed = read_committed()
  for name in args.names or MODULES:
    print(f"{MODULES[name]} (benchmarks.{name})")
    print(f"  {'figure':<58} {'now':>10} {'committed':>10}  unit", flush=True)
    start = time.perf_counter()
    figures = measure(name)
    seconds = time.perf_counter() - start
    print_table(figures, committed.get(name, {}).get("figures", ()))
    print(f"  {seconds:.0f} s\n", flush=True)
    if args.update and figures:
      committed[name] = {
        "commit": describe_commit(),
        "date": f"{datetime.date.today()}",
        "machine": describe_machine(),
        "seconds": round(seconds),
        "figures": figures,
      }
      COMMITTED.write_text(json.dumps(committed, indent=1) + "\n")
      head = PAGE.read_text().partition(HEADING)[0]
      PAGE.write_text(head + HEADING + to_markdown(committed))


if __name__ == "__main__":
  main()
