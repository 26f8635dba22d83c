# Every target works on a fresh machine that has Python >= 3.11, make and a way for pip to fetch packages.
#   make demo     train a network on the digits that ship inside, with a progress bar and a profile
#   make test     format check, lint, types, tests
#   make conformance  every op against its reference: values, gradients, second derivatives, extremes, case by case
#   make bench    benchmarks, with the peers they compare against
#   make cuda-check  CUDA kernels and plans without a GPU: the simulator, the compile gate, the kernels' PTX run on the host
#   make gpu-test    the same tests on a GPU; make gpu-bench times it; both write bench/results/
# PYTHON=python3.12 chooses the interpreter, VENV=dir another environment, ARGS="..." goes to demo, test and bench.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

# The first interpreter that runs and is new enough: a name on PATH may be a shim that does not run.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$python"; break; }; \
	done)
endif

.PHONY: help demo test conformance bench cuda-check gpu-test gpu-bench lint types format clean distclean

help:
	@sed -n 's/^#  \( make .*\)/\1/p' Makefile

demo: $(VENV)/.installed-progress
	$(BIN)/tapeprop train digits $(ARGS)

# Files side by side, each in one process: much of the time goes into compiling kernels one after another.
TESTS := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

test: lint types
	$(TESTS) --dist loadfile -m "not conformance" $(ARGS)

conformance: $(VENV)/.installed-dev
	$(TESTS) -m conformance $(ARGS)

bench: $(VENV)/.installed-dev-peers
	$(BIN)/tapeprop bench $(ARGS)

# No GPU, no driver: every kernel in Numba's simulator, every kernel to machine code, captured plans against their rows; and on
# a driver that stands in for CUDA the PTX of every kernel, instruction by instruction.
DEVICE_TESTS := tests/on_device --device cuda

cuda-check: $(VENV)/.installed-dev-cuda
	NUMBA_ENABLE_CUDASIM=1 $(TESTS) $(DEVICE_TESTS) $(ARGS)
	$(BIN)/python -m pytest tests/runtime/test_dry_plans.py tests/runtime/test_cuda_cache.py tests/targets/test_cuda_*.py tests/ptx
	$(BIN)/python tests/compile_gate.py
	TAPEPROP_TEST_PTX=1 $(TESTS) $(DEVICE_TESTS) tests/test_semantics.py $(ARGS)

gpu-test: $(VENV)/.installed-dev-cuda
	TAPEPROP_TEST_GPU=1 $(BIN)/python -m pytest $(DEVICE_TESTS) tests/test_semantics.py $(ARGS)

gpu-bench: $(VENV)/.installed-dev-cuda
	$(BIN)/python bench/cuda.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tapeprop needs Python 3.11 or newer and found none; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) does not run or is older than Python 3.11; choose another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; echo "$(PYTHON) could not make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# One stamp for each set of extras: .installed-dev-peers holds for '.[dev,peers]'.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[$(subst -,$(comma),$*)]'
	@touch $@

comma := ,
