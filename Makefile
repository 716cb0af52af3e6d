# make demo   install into .venv and run the quickstart job to its end
# make test   install into .venv and run every check: ruff, mypy, vulture, pytest
# make nightly  train, export and load again every causal family of the installed transformers, small; writes docs/models.md
# make gpu    on a machine with GPUs: install what it needs, run tests/gpu and bench/gpu.py, write bench/gpu.md (GPU_ARGS="--budget-minutes 50")
# make cloud  rehearse a cloud on this machine: launch, reclaim, stop, down over a pretend AWS; root and Debian, most of an hour
# make lint   ruff, mypy and vulture alone
# make venv   install alone
# make wheel  build dist/*.whl, install it alone into build/wheel and try every command
#
# PYTHON=python3.12       another Python, 3.11 or newer
# VENV=/some/where        another place for the virtual environment
# TORCH_INDEX=URL         take torch from this index, for example PyTorch's index of CPU builds (200 MB instead of gigabytes)
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT and so on) hold as everywhere.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,lora,quantised,gguf,eval,serve,docker,track,report,watch,dev
TORCH_INDEX ?=
GPU_ARGS ?=
TESTS ?= tests/unit tests/contract tests/process tests/lab tests/gpu
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# An installation is up to date while neither of these files changed.
INSTALLED := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
QUICKSTART := examples/quickstart
export PYTHONWARNINGS ?= ignore::FutureWarning

.PHONY: help demo test nightly gpu cloud lint venv wheel constraints clean tools

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

demo: venv
	@$(BIN)/python $(QUICKSTART)/build.py
	@$(BIN)/dolphin launch $(QUICKSTART)/job.yaml --on local -y

test: lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)

nightly: venv
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/nightly

# Every extra but SkyPilot's, as far as each can be installed here; TRL beside the inputs, without a torch of its own. Tests that fail do not
# keep the measurements from being taken. DOLPHIN_REQUIRE=gpu: a test that skips for want of a GPU has failed.
gpu: venv
	@nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || { echo "make: nvidia-smi shows no GPU here: install NVIDIA's driver" >&2; exit 1; }
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "make: torch cannot use the GPU: reinstall without TORCH_INDEX, or update the driver" >&2; exit 1; }
	@for extra in $$($(BIN)/python -c 'import tomllib; print(*(set(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]) - {"sky"}))'); do \
	  $(PIP) install --quiet -c constraints.txt -e ".[$$extra]" || echo "make: [$$extra] cannot be installed here; going on without it"; done
	@test -d build/bench/trl || $(PIP) install --quiet --no-deps --target build/bench/trl trl accelerate || echo "make: no TRL; its cell says so"
	@mkdir -p build/bench
	@DOLPHIN_REQUIRE=gpu $(BIN)/python -m pytest $(PYTEST_ARGS) --junitxml=build/bench/tests.xml tests/gpu; tests=$$?; \
	  $(BIN)/python -m bench.gpu --tests build/bench/tests.xml $(GPU_ARGS) && exit $$tests

cloud: venv
	@DOLPHIN_REQUIRE=cloud $(BIN)/python -m pytest $(PYTEST_ARGS) tests/lab/cloud

lint: venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/vulture

venv: tools $(INSTALLED)

# torch first and alone: resolved together with the rest, a newer one may be pulled with gigabytes of CUDA.
$(INSTALLED):
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-*
	@touch $@

# DOLPHIN_RELEASE_IMAGES states the images of a release (setup.py); without it the wheel has none, as a checkout.
wheel: tools
	@rm -rf build/wheel build/lib build/bdist.* dist
	@$(PYTHON) -m venv build/wheel
	@build/wheel/bin/python -m pip --disable-pip-version-check --no-input wheel --quiet --no-deps -w dist .
	@build/wheel/bin/python -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt dist/*.whl
	@build/wheel/bin/python tests/support/try_installed.py

# One line for each thing that is missing, naming Debian's package.
tools:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON): apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11: apt-get install python3.11-venv, then make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv: apt-get install python3-venv" >&2; exit 1; }

# Writes constraints.txt anew from an unconstrained installation. Run `make test` with it before it is committed.
constraints: tools
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch>=2.13,<2.14'
	build/constraints/bin/python -m pip install --quiet '.[$(EXTRAS),gpu,fp8]'
	{ sed -n '/^#/p' constraints.txt; build/constraints/bin/python -m pip freeze --exclude dolphin-launcher | sed 's/+[a-z0-9.]*$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache $(QUICKSTART)/data $(QUICKSTART)/model
