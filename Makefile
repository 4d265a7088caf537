# Every target makes .venv and installs what it needs; a change of pyproject.toml installs again.
#
#   PYTHON       the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX  package index to take torch from (CPU-only or another CUDA); empty: pip's own
#   TORCH        what to install from it
#   ARGS         further arguments of quickstart or pytest

PYTHON ?= python3
TORCH_INDEX ?=
# Pinned without an index: with an open range, pip takes the newest release with several GB of CUDA packages.
TORCH ?= $(if $(TORCH_INDEX),torch>=2.11$(comma)<2.14,torch==2.13.0)
ARGS ?=

comma := ,
VENV := .venv
BIN := $(VENV)/bin
TESTS := not data and not gpu and not browser

.PHONY: help quickstart test lint check bench clean

help:
	@echo "make quickstart   tokenizer, data, pre-training and a report on the built-in texts, in minutes"
	@echo "make test         all tests that need no GPU, browser or large data"
	@echo "make lint         ruff and mypy"
	@echo "make check        lint and test: what CI runs"
	@echo "make bench        the comparisons in benchmarks/"
	@echo "make clean        remove .venv, caches and builds; runs stay"

quickstart: $(VENV)/.installed
	$(BIN)/stemformer quickstart $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "$(TESTS)" -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.installed-dev
	@set -e; for file in benchmarks/*.py; do \
		if [ -e "$$file" ]; then echo "== $$file"; $(BIN)/python "$$file"; fi; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch
	$(BIN)/python -m pip install --editable ".[dev]"
	@touch $@ $(VENV)/.installed
