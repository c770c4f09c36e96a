# demo and test start from nothing: they make the virtual environment themselves.
#   make test PYTHON=python3.12     another interpreter
#   make demo VENV=~/.venvs/thorad  another place for the environment

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo-results

INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: demo test lint bench clean help

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "thorad needs Python 3.11 or newer, \
	this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## anomaly maps of the bundled head, written to demo-results/
	$(BIN)/thorad demo --out $(DEMO)

# One thread an operator: the images of the tests are so small that more threads only wait for each other. A process a
# core instead; the tests of a file stay together, because they share what is costly to make.
test: $(INSTALLED)  ## all tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)  ## style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## speed of detection and training on this machine
	$(BIN)/thorad bench

clean:  ## remove the environment and all that was made
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8
