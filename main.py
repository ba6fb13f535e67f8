"""`python main.py --config=configs/x.py --workdir=...`."""

from must_jax.main import run

if __name__ == "__main__":
  run()
