"""Side-by-side measurements: `python -m benchmarks`, all in one run."""
