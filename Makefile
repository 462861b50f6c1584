# `make help` lists the targets. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=
# PyTorch without CUDA, a gigabyte in place of five: taken where there is no NVIDIA driver and pip's index has it.
CPU_TORCH := $(shell sed -nE 's/^(torch|torchvision)==[0-9.]+$$/&+cpu/p' constraints.txt)
# What the tests and the benchmark compare with. Without their dependencies, which are old and not needed for it.
PEERS := cityscapesscripts mmsegmentation mmengine mmcv-lite addict yapf termcolor prettytable ftfy wcwidth

# Run by $(PYTHON) before it makes .venv, so it must be understood by any Python. The bounds are those of pyproject.toml.
define CHECK_PYTHON
import sys
found = "%d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit("$(PYTHON) is Python " + found + "; this needs 3.11 to 3.14. Name another: make $(MAKECMDGOALS) PYTHON=python3.12")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) cannot make environments. On Debian and Ubuntu: apt install python" + found + "-venv")
endef
export CHECK_PYTHON

.PHONY: help setup dev train test test-all test-faults test-gpu bench bench-gpu docs lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: .venv/.ready  ## create .venv with the tested versions of what training needs

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found. Install Python 3.11 to 3.14," \
		"or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; } >&2
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch and what else training needs: a few minutes, up to 7 GB"
	@command -v nvidia-smi >/dev/null || $(PIP) $(CPU_TORCH) 2>/dev/null || true
	$(PIP) -e '.[all]'
	@touch $@

dev: .venv/.dev  ## what `make test`, `make bench` and `make docs` need besides

.venv/.dev: .venv/.ready
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(PEERS)
	@touch $@

train: setup  ## train the default DANet on the built-in data (ARGS="key=value ..." overrides)
	$(BIN)/python src/train.py $(ARGS)

lint: dev  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

test: lint  ## lint and the tests that fit in a few minutes
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: lint  ## every test, the slow ones included
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-faults: dev  ## the faults of docs/reliability.md, injected: kills, full disks, damage, signals
	$(BIN)/python -m pytest -n 2 -m faults $(ARGS)

test-gpu: dev  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: dev  ## time and memory beside the peers on this processor, about ten minutes
	$(BIN)/python src/benchmark.py $(ARGS)

bench-gpu: dev  ## the same on a CUDA device, with larger work
	$(BIN)/python src/benchmark.py device=cuda $(ARGS)

docs: dev  ## the pages of docs/ as a website in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: dev  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches (run folders in outputs/ stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
