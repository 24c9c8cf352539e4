# Verbs: demo, test, lower-bounds, matrix, lint, format, types, clean. Each makes what it needs, the virtual environment included.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
CORE := tests/backbone tests/peft tests/security tests/test_cli.py tests/test_config.py tests/test_files.py
.PHONY: demo test lower-bounds matrix lint format types clean

# The main job: three tasks, one backbone, one shared method.
demo: $(VENV)/.installed
	$(BIN)/mtpeft train --tasks cls,det,seg --method hydra-lora

# One thread for each worker: oversubscribed cores are slower than idle ones. Workers that are done take tests from others.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The suite's core with the oldest versions that pyproject.toml allows, which warn of much that is newer around them.
lower-bounds: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -o filterwarnings=default $(CORE)

# Every method on every family of the zoo: too long for every change. The result is benchmarks/results/conformance.md.
matrix: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/conformance.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	sed -n 's/^ *"\([A-Za-z0-9_-]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[test]'
	touch $@
