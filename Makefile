# The environment is .venv. It is made when a target first needs it, and brought up
# to date when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=

PY := .venv/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread per test worker: more would only compete for the same cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help run test lint format docs experiments clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

run: .venv/.installed ## train dense and expanded classifiers on digits, print and plot
	$(PY) examples/quickstart.py

test: .venv/.installed ## run the tests and the doctests (PYTEST_ARGS="-k name")
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: .venv/.installed ## check style, formatting and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: .venv/.installed ## repair style and formatting
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: .venv/.installed-docs ## build the documentation into docs/_build/html
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

experiments: .venv/.installed ## reproduce the paper's claims (DATA=embeddings.npz)
	$(PY) -m benchmarks.experiments $(if $(DATA),--data $(DATA))

clean: ## remove the environment and everything else that was made
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf docs/_build docs/auto_examples docs/generated docs/sg_execution_times.rst
	find sklearn_fpe tests examples benchmarks docs -name __pycache__ -prune \
		-exec rm -rf {} + 2>/dev/null || true

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python >= 3.11 is needed, $(PYTHON) is {v}: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) pip
	$(PIP_INSTALL) --build-constraint constraints.txt -e '.[all]' --group test --group lint
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP_INSTALL) --group docs
	@touch $@
