# Two commands do everything on a fresh machine with Python >= 3.10, a C++17 compiler and make:
#   make demo    a real distillation, from fetching teacher and text to a table and a plot
#   make test    the whole test suite
# Both make .venv on first use and reuse it after that.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
# Here a compiler is required: without it the package would install, slower, and half of the tests would be skipped.
export BERTXFER_REQUIRE_EXT = 1
export BERTXFER_REQUIRE_COMPILED = 1
PY := $(VENV)/bin/python
# torch is named by exact version everywhere: a range may pull in gigabytes of another build.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EMULATOR := $(wildcard tests/cuda_emulator/*.cpp tests/cuda_emulator/*.h tests/cuda_emulator/*.cu tests/host_gpu/*.cpp tests/host_gpu/*.h)
ENVIRONMENT := $(VENV)/.environment-torch-$(TORCH)
BUILT := $(VENV)/.built-torch-$(TORCH)

.PHONY: help test slow sanitize mutants demo bench quality gpu gpu-plan gpu-sweep gpu-variants choices lint format build clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# Two/,/^$$/s/^# //p' Makefile
	@echo "also: make slow | sanitize | mutants | lint | format | build | clean"
	@echo "      make bench    the operators against plain and compiled PyTorch; NAMES='attention_map step' for some"
	@echo "      make quality  what distillation keeps, on real text: hours, row by row; NAMES='half_depth ner' for some"
	@echo "      make gpu      checks and measures on this machine's NVIDIA GPU, in MINUTES=7; PART=attention_map for one operator,"
	@echo "                    PART=profile for what ncu says, RESULTS=dir to write there, PEERS=dir with others' packages,"
	@echo "                    NO_BUILD=1, NO_TESTS=1; make gpu-plan shows what it would do"
	@echo "      make gpu-sweep    tries configurations of the hot kernels; gpu-variants builds some beforehand"
	@echo "      make choices FILE=results.json or facts.jsonl    what was faster becomes the default"

$(ENVIRONMENT): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bertxfer_fast needs Python >= 3.10")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$(TORCH)
	$(PIP) setuptools wheel ninja
	@touch $@

$(BUILT): $(ENVIRONMENT) setup.py build_kernels.py $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[test]' torch==$(TORCH)
	@touch $@

build: $(BUILT)

test: $(BUILT)
	$(PY) -m pytest

slow: $(BUILT)
	$(PY) -m pytest -m slow

# Kernels built with AddressSanitizer and UBSan, in build/sanitize, on every instruction set that runs here.
sanitize: $(BUILT)
	$(PY) tests/sanitize.py

# Plants the faults of tests/mutants/catalogue.py one at a time, NAMES='data_seed_ignored ...' some of them; each has to
# fail the tests that it names. Minutes; those in C++ compile the kernels anew.
mutants: $(BUILT)
	$(PY) -m tests.mutants $(NAMES)

# glibc hands large tensors back to the kernel after every step and has their pages cleared again; these keep them.
demo: export MALLOC_MMAP_THRESHOLD_ = 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ = 2147483648
demo: $(BUILT)
	$(PY) examples/sentiment/demo.py --output demo

# Goes on where a killed run stopped: text, teachers and what is measured are kept in build/quality.
quality: export MALLOC_MMAP_THRESHOLD_ = 1073741824
quality: export MALLOC_TRIM_THRESHOLD_ = 2147483648
quality: $(BUILT)
	$(PY) -m benchmarks.quality $(NAMES)

bench: $(BUILT)
	$(PY) -m bertxfer_fast bench $(NAMES)

# Need no .venv and fetch nothing: a python3 with torch, transformers, ninja, pytest and its plug-ins, and nvcc. With
# binaries built beforehand (BERTXFER_CUDA_ARCHS=90 python3 build_kernels.py) and NO_BUILD=1 no nvcc either.
GPU := $(PYTHON) -m benchmarks.gpu $(if $(RESULTS),--results $(RESULTS)) $(if $(MINUTES),--minutes $(MINUTES)) \
  $(if $(PEERS),--peers $(PEERS)) $(if $(NO_BUILD),--no-build) $(if $(NO_TESTS),--no-tests)

gpu:
	$(GPU) $(PART)

gpu-plan:
	$(GPU) --plan $(PART)

gpu-sweep:
	$(GPU) sweep

gpu-variants:
	$(PYTHON) -m benchmarks.gpu.variants $(NAMES)

choices:
	$(PYTHON) -m benchmarks.choices $(FILE) --write

lint: $(BUILT)
	$(PIP) --no-build-isolation --editable '.[dev]' torch==$(TORCH)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES) $(EMULATOR)

format: $(BUILT)
	$(PIP) --no-build-isolation --editable '.[dev]' torch==$(TORCH)
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES) $(EMULATOR)

clean:
	rm -rf build demo bertxfer_fast/*.so *.egg-info
