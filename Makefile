# `make` shows what there is. Everything is installed into .venv; PYTHON names the Python to make it with.

PYTHON ?= python3
BIN := .venv/bin
# A virtual environment knows its own path, so a copied or moved project makes a new one.
HERE := $(shell pwd | cksum | cut -d' ' -f1)
VENV := .venv/.made-$(HERE)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.DEFAULT_GOAL := help
.PHONY: help demo up test lint lock openai bench screenshots chaos
# A version that the tests ran with. Where only PyTorch's own index has a build without GPU libraries, install it first.
TORCH ?= torch==2.13.0
MAKEFLAGS += --no-print-directory

help:
	@echo "make demo         watch real speech become transcripts (AUDIO=folder: your own recordings)"
	@echo "make up           run everything on this machine until Ctrl-C; the data stays in .toban/"
	@echo "make test         lint, types and tests; missing servers skip theirs (PYTEST_ARGS=…); .ci/run skips none"
	@echo "make lint         lint and types"
	@echo "make lock         bring deploy/*.lock, which images are made from, up to pyproject.toml (UPGRADE=1: all newest)"
	@echo "make openai       the second speech engine too: openai-whisper with PyTorch"
	@echo "make bench        how fast it is, beside what else there is: docs/performance.md, docs/scale.md (an hour)"
	@echo "make screenshots  pictures of every page, into docs/images/"
	@echo "make chaos        kill real processes for a long time; nothing may be lost"

demo: .venv/.demo
	@$(BIN)/toban demo

up: .venv/.demo
	@$(BIN)/toban up

# Most tests wait for processes, so they run side by side; -n0 in PYTEST_ARGS runs them one by one.
test: lint
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: .venv/.dev
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary

# What is locked stays as it is, unless it no longer fits or UPGRADE is set. hatchling and setuptools build what has no wheel.
LOCK = printf 'hatchling\nsetuptools\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --extra otel $(if $(UPGRADE),--upgrade) pyproject.toml -

lock: .venv/.dev
	@$(PIP) uv
	@$(LOCK) --output-file deploy/requirements.lock >/dev/null
	@$(LOCK) --output-file deploy/requirements-openai-whisper.lock --extra openai-whisper \
	  --constraint deploy/requirements.lock --no-emit-package torch --no-emit-package triton >/dev/null

bench: .venv/.dev
	@$(BIN)/python -m bench.ledger
	@$(BIN)/python -m bench.wake
	@$(BIN)/python -m bench.analysis
	@$(BIN)/python -m bench.scale
	@$(BIN)/python -m bench.overlap
	@$(BIN)/python -m bench.speech
	@$(BIN)/python -m bench.report

screenshots: .venv/.dev
	@$(BIN)/python -m bench.screenshots

openai: .venv/.openai

chaos: .venv/.dev
	@TOBAN_CHAOS=long $(BIN)/python -m pytest tests/chaos $(PYTEST_ARGS)

.venv/.demo: $(VENV) pyproject.toml
	@echo "Installing Toban with its embedded stack (some minutes the first time) …"
	@$(PIP) -e '.[demo]'
	@touch $@

.venv/.dev: $(VENV) pyproject.toml
	@echo "Installing Toban with its embedded stack and its tests (some minutes the first time) …"
	@$(PIP) -e '.[demo,dev]'
	@touch $@ .venv/.demo

.venv/.openai: .venv/.dev
	@echo "Installing openai-whisper and PyTorch (some minutes the first time) …"
	@$(PIP) '$(TORCH)'
	@$(PIP) -e '.[openai-whisper]'
	@touch $@

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Toban needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@rm -rf .venv
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@
