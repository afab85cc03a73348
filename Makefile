# The environment is .venv. It is made when a target first needs it, and brought up
# to date when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=

# The folder of an environment's programs: bin, but on Windows Scripts.
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := .venv/$(BIN)/python
PIP := -m pip install --quiet --disable-pip-version-check
PIP_INSTALL := $(PY) $(PIP) -c constraints.txt
# One thread per test worker: more would only compete for the same cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help run test test-min test-new coverage lint format docs package experiments clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

run: .venv/.installed ## train dense and expanded classifiers on digits, print and plot
	$(PY) examples/quickstart.py

test: .venv/.installed ## run the tests and the doctests (PYTEST_ARGS="-k name")
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-min: .venv-min/.installed ## run the tests with the lowest versions that are allowed
	$(ONE_THREAD) .venv-min/$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-new: .venv-new/.installed ## run the tests with the newest versions there are
	$(ONE_THREAD) .venv-new/$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

coverage: .venv/.installed ## run the tests and list the lines that none of them runs
	$(PIP_INSTALL) --group coverage
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS) \
		--cov --cov-report term-missing:skip-covered --cov-report json:build/coverage.json

lint: .venv/.installed ## check style, formatting and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: .venv/.installed ## repair style and formatting
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: .venv/.installed-docs ## build the documentation into docs/_build/html
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html
	$(PY) docs/_ext/check_links.py docs/_build/html

package: .venv/.installed ## build wheel and sdist, install them and run the README's code
	rm -rf dist build/package
	$(PIP_INSTALL) --group package
	$(PY) -m build --quiet
	$(PY) -m twine check --strict dist/*
	$(PYTHON) -m venv build/package
	build/package/$(BIN)/python $(PIP) -c constraints.txt dist/*.tar.gz
	build/package/$(BIN)/python $(PIP) --no-deps --force-reinstall dist/*.whl
	cd build/package && $(BIN)/python ../../.ci/run_readme.py ../../README.md

experiments: .venv/.installed ## reproduce the paper's claims (DATA=embeddings.npz)
	$(PY) -m benchmarks.experiments $(if $(DATA),--data $(DATA))

clean: ## remove the environment and everything else that was made
	rm -rf .venv .venv-min .venv-new .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf docs/_build docs/auto_examples docs/generated docs/sg_execution_times.rst
	find sklearn_fpe tests examples benchmarks docs -name __pycache__ -prune \
		-exec rm -rf {} + 2>/dev/null || true

CHECK_PYTHON = @$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python >= 3.11 is needed, $(PYTHON) is {v}: make PYTHON=/path/to/python")'

.venv/.installed: pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@echo "Installing the library and its tools into .venv, once: minutes, 1 to 2 GB."
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) pip
	$(PIP_INSTALL) --build-constraint constraints.txt -e '.[all]' --group test --group lint
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP_INSTALL) --group docs
	@touch $@

.venv-min/.installed: pyproject.toml constraints-min.txt
	$(CHECK_PYTHON)
	@echo "Installing the lowest versions into .venv-min, once: minutes, some gigabytes."
	$(PYTHON) -m venv .venv-min
	.venv-min/$(BIN)/python $(PIP) --upgrade pip
	.venv-min/$(BIN)/python $(PIP) -c constraints-min.txt -e '.[all]' --group test
	@touch $@

.venv-new/.installed: pyproject.toml
	$(CHECK_PYTHON)
	@echo "Installing the newest versions into .venv-new, once: minutes, some gigabytes."
	$(PYTHON) -m venv .venv-new
	.venv-new/$(BIN)/python $(PIP) --upgrade pip
	.venv-new/$(BIN)/python $(PIP) -e '.[all]' --group test
	@touch $@
