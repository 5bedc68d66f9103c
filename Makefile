# make demo   watch three claims being tested on real input, and write the report
# make test   the whole test suite          make lint   ruff and mypy
# make bench  our hot paths beside peers     make docs   the documentation site
#
# PIP_ARGS passes your own index options to pip, for example a mirror, or PyTorch's CPU builds (see the README).
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install --quiet $(PIP_ARGS) -c constraints.txt

.PHONY: demo test lint bench docs records clean

demo: $(VENV)/.user
	-$(BIN)/probatum check generalized_convolution:text carn:quality mezo:memory -j 3
	$(BIN)/probatum report --out site/report

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -r s $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy

bench: $(VENV)/.dev
	set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict --site-dir site/docs

# The evidence that README and cards quote: run from a clean tree, then commit records/.
records: $(VENV)/.dev
	-$(BIN)/probatum check --all --budget quick --keep records
	$(BIN)/python scripts/evidence_tables.py

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "probatum needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) torch
	$(INSTALL) -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(INSTALL) -e '.[all,dev]'
	touch $@
