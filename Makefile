# make demo | test | lint | bench: each sets up its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-full test test-slow lint docs docs-links notebooks bench clean

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

# Warnings are errors: a link that leads nowhere, an option that is not told.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -b html -W --keep-going -n docs docs/_build/html
	@echo docs/_build/html/index.html

# Pages of others; needs the network, so CI does not run it.
docs-links: $(INSTALLED)
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

# Runs the tutorials for their outputs, which are committed.
notebooks: $(INSTALLED)
	$(BIN)/python docs/tutorials/execute.py docs/tutorials/*.md

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build docs/_build docs/reference *.egg-info

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "must_jax needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt --no-deps jax2onnx
	@touch $@
