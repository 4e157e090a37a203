# Every target sets up what it needs in .venv. PYTHON and VENV may be given: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench clean

demo: $(VENV)/.dev  ## the main job: a network trained on handwritten digits, three ways
	$(BIN)/python examples/train_digits.py

test: $(VENV)/.dev  ## all tests, on all cores
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.dev  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(VENV)/.bench  ## steps against torch.optim, inner loops against torchopt and higher
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/meta.py --threads 1 --write docs/inner-loops.md

clean:
	rm -rf $(VENV) build out *.egg-info

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@
