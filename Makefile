# Each target sets up .venv by itself; a fresh machine needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together, as they share servers; the order is that of tests/conftest.py.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all lint format bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?(.*)/  make \1\t\2/' | expand -t 20

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "setting up $(VENV) (once; a few minutes, mostly PyTorch)"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "the venv module is missing; on Debian or Ubuntu: apt-get install python3-venv"; exit 2; }

# One stamp per set of extras, made anew when the requirements change.
$(VENV)/.ready-%: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP_INSTALL) --editable ".[$*]"
	@touch $@

demo: $(VENV)/.ready-all ## one robot learns to weld a seam and three others take the skill over
	@$(BIN)/neuraverse demo

test: $(VENV)/.ready-all,dev ## all tests that CI runs
	@$(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-all: $(VENV)/.ready-all,dev ## and the heavier ones
	@$(BIN)/python -m pytest $(WORKERS)

lint: $(VENV)/.ready-all,dev ## format check, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.ready-all,dev ## format and fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.ready-bench,dev ## the benchmarks against peers, about an hour; results in benchmarks/results
	@for name in sim train policy registry search fleet; do $(BIN)/python -m benchmarks $$name --json benchmarks/results/$$name.json || exit 1; done

clean: ## remove .venv, caches and the demo's runs; your own runs stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo runs/demo-*
