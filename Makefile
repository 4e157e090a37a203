# Every target sets up what it needs in .venv. PYTHON and VENV may be given: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FORCED := tests/test_laws.py tests/compat/test_twin.py tests/execution/test_executors.py::test_forced
# torch's foreach form differs from its own loop in these
OWN_BITS := and not float16 and not complex and not mixed and not duplicate
SANITIZED := out/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
# its libraries come before all others, for C++ exceptions too; Python's small objects come from malloc
SANITIZERS = $(foreach x,libasan.so libubsan.so libstdc++.so.6,$(shell $(CC) -print-file-name=$(x)))
SANITIZED_PYTHON = LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONSAFEPATH=1 \
	PYTHONPATH=$(CURDIR)/$(SANITIZED)/lib $(BIN)/python
OF_C := $(wildcard tests/execution/test_native_*.py tests/compat/test_native_*.py) \
	$(addprefix tests/execution/test_program_,machine.py lower.py special.py whole.py) tests/test_all_or_nothing.py

.PHONY: demo test executors integrations versions sanitize check bench clean

demo: $(VENV)/.dev  ## the main job: a network trained on handwritten digits, three ways
	$(BIN)/python examples/train_digits.py

test: $(VENV)/.dev  ## all tests, on all cores
	$(BIN)/python -m pytest -n auto

executors: $(VENV)/.dev  ## laws and twins, with each executor forced on in turn
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor torch -k "not compile"
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor triton -k "not compile"
	$(BIN)/python -m pytest -q -n auto $(FORCED) --executor foreach -k "not compile $(OWN_BITS)"

integrations: $(VENV)/.integrations  ## the lines of docs/integrations.md, against torch.optim.Adamax
	$(BIN)/python -m pytest -n auto tests/integrations tests/compat/test_trainer.py

versions:  ## the suite on other versions of torch and Python, as docs/versions.md has them
	$(PYTHON) tests/versions.py

sanitize: $(VENV)/.dev  ## tests of the C code, built with gcc's address and undefined sanitizers
	rm -rf $(SANITIZED)
	CFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build -b $(SANITIZED) --build-lib $(SANITIZED)/lib
	$(SANITIZED_PYTHON) -c 'from functional_adamax._execution.native import _machine, _native'
	$(SANITIZED_PYTHON) -m pytest -q -n auto -o pythonpath=$(SANITIZED)/lib $(OF_C) \
		--capture=sys -p no:faulthandler -k "native or machine or program"

check: $(VENV)/.dev  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.bench  ## chains, methods, training and inner loops against the peers
	$(BIN)/python benchmarks/step.py --write docs/speed.md
	$(BIN)/python benchmarks/meta.py --threads 1 --write docs/inner-loops.md

clean:
	rm -rf $(VENV) build out *.egg-info functional_adamax/_execution/native/*.so

$(VENV)/.dev: pyproject.toml setup.py constraints.txt $(wildcard functional_adamax/_execution/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.integrations: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[integrations]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@
