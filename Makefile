# make demo    a real Label Studio with pre-annotations, on this machine
# make test    everything that CI runs, set-up included
# make quick   the tests that need no Label Studio and no browser, about a minute

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first that can make a virtual environment; constraints.txt was made with 3.11.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import ensurepip, venv' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Most of the tests' time is waiting: for servers that start, workers that are killed, pages that load. Those of a file
# stay together, for they share what was set up for them; the order is kept, so that long files are not left to the end.
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder

# Where wheels for OpenMMLab's runtime lie; without them mmcv would be built from source, for some twenty minutes.
MM_WHEELS ?= ../shared/openmmlab/wheels

.PHONY: help setup runtime openmmlab chromium postgres check quick test demo screenshot constraints clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

setup: $(INSTALLED)

# The marker is written last: an installation that was cut short is done again.
$(INSTALLED): pyproject.toml constraints.txt
	[ -n '$(PYTHON)' ] || { echo 'No Python with venv found (Debian, Ubuntu: apt install python3-venv), or: make PYTHON=...' >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "labelloop needs Python 3.11 or newer: make PYTHON=...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ocr,train,video,openvino,dev]'
	touch $@

runtime: $(INSTALLED)
	$(BIN)/labelloop runtimes create label-studio

openmmlab: $(INSTALLED)
	if [ -d '$(MM_WHEELS)' ]; then
		$(BIN)/labelloop runtimes create openmmlab --find-links '$(MM_WHEELS)'
	elif ! $(BIN)/labelloop runtimes check openmmlab; then
		echo 'No wheels in $(MM_WHEELS): the tests of OpenMMLab are skipped. To run them: $(BIN)/labelloop runtimes create openmmlab'
	fi

chromium:
	@scripts/install_chromium.sh

postgres:
	@scripts/install_postgres.sh

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# a test file that cannot be imported is told now, not after all the others
	found=$$($(BIN)/pytest --collect-only -q) || { echo "$$found" >&2; exit 1; }

quick: $(INSTALLED)
	$(BIN)/pytest $(BESIDE) -m 'not slow and not e2e and not browser'

test: setup runtime openmmlab chromium postgres check
	$(BIN)/pytest $(BESIDE) -rs --durations=40

demo: $(INSTALLED)
	$(BIN)/labelloop demo

screenshot: $(INSTALLED) runtime chromium
	$(BIN)/python scripts/screenshot.py

# After a change of the dependencies: what is installed now becomes what everybody gets.
constraints: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' > constraints.txt
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build
