# Every target sets up what it needs in .venv. PYTHON and VENV may be given: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FORCED := tests/test_laws.py tests/compat/test_twin.py tests/execution/test_executors.py::test_forced
# torch's foreach form differs from its own loop in these
OWN_BITS := and not float16 and not complex and not mixed and not duplicate

.PHONY: demo test executors check bench clean

demo: $(VENV)/.dev  ## the main job: a network trained on handwritten digits, three ways
	$(BIN)/python examples/train_digits.py

test: $(VENV)/.dev  ## all tests, on all cores
	$(BIN)/python -m pytest -n auto

executors: $(VENV)/.dev  ## laws and twins, with each executor forced on in turn
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor torch -k "not compile"
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor triton -k "not compile"
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor foreach -k "not compile $(OWN_BITS)"

check: $(VENV)/.dev  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.bench  ## steps, training and inner loops against the peers
	$(BIN)/python benchmarks/step.py --write docs/speed.md
	$(BIN)/python benchmarks/meta.py --threads 1 --write docs/inner-loops.md

clean:
	rm -rf $(VENV) build out *.egg-info functional_adamax/_execution/native/*.so

$(VENV)/.dev: pyproject.toml setup.py constraints.txt $(wildcard functional_adamax/_execution/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@
