# make demo | test | lint | bench: each sets up its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-full test test-slow lint bench clean

demo: $(INSTALLED)
	$(BIN)/must-jax demo --workdir runs/demo

demo-full: $(INSTALLED)
	$(BIN)/must-jax demo --full --workdir runs/demo-full

# The core must work where TensorFlow is not installed: its tests run without.
CORE := $(addprefix tests/,ops models losses weighting metrics tasks)
test: $(INSTALLED)
	BLOCK_TENSORFLOW=1 $(BIN)/python -m pytest -n 2 --durations 5 $(CORE)
	$(BIN)/python -m pytest -n 2 --durations 5 $(CORE:%=--ignore=%)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy must_jax benchmarks

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build *.egg-info

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "must_jax needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt --no-deps jax2onnx
	@touch $@
