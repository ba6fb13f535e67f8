# An image for one kind of machine:
#
#   docker build --build-arg EXTRA=cuda -t must_jax:cuda .   # or tpu, cpu
#   docker run --gpus all -v DATA:/data must_jax:cuda \
#     --config=configs/student.py:root=/data --workdir=/data/run
#   docker run --rm --entrypoint must-jax must_jax:cpu doctor
#
# 3.11 is what constraints.txt is tested with. Nothing needs shared memory:
# the input pipeline has threads, no processes.
FROM python:3.11-slim

ARG EXTRA=cuda
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# A volume that it writes to must belong to this user (or run with --user).
RUN useradd --create-home --uid 1000 must_jax
WORKDIR /app

# Packages first: they change less often than the code.
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY must_jax/__init__.py must_jax/
RUN case "$EXTRA" in \
      cuda | tpu) pip install -c constraints.txt ".[gcs,$EXTRA]" ;; \
      cpu) pip install -c constraints.txt ".[gcs]" ;; \
      *) echo "EXTRA is $EXTRA; expected cuda, tpu or cpu" >&2; exit 2 ;; \
    esac

COPY . .
RUN pip install --no-deps .

USER must_jax
# No shell in between: SIGTERM must reach Python, which saves and ends with 42.
ENTRYPOINT ["python", "main.py"]
