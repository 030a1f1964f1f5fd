# `make` lists the verbs. Variables:
#   PYTHON          interpreter that makes the environment, 3.11 or newer
#   TORCH           version of torch to install, or `system`: keep the one PYTHON already has, 2.6 or newer
#   TORCH_PIP_ARGS  more arguments of the pip call that installs torch, such as the index of a CPU or CUDA
#                   build; a build with a local version (2.13.0+cpu) is preferred to the plain one
#   ARGS            arguments of `hrsam quickstart`, or of pytest
# TORCH and TORCH_PIP_ARGS are remembered with the environment.
VENV := .venv
-include $(VENV)/settings.mk
PYTHON ?= python3
TORCH ?= 2.13.0
TORCH_PIP_ARGS ?=
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_ALBUMENTATIONS_UPDATE := 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
SYSTEM := $(if $(filter system,$(TORCH)),true,false)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
MODERN := import sys; sys.exit(sys.version_info < (3, 11))
TORCH_FITS := import sys, torch; found = torch.__version__; \
    sys.exit(f"it is {found}" if tuple(map(int, found.split(".")[:2])) < (2, 6) else 0)

# The stamp's name is the content it stands for; it is touched last, so that a broken install leaves none.
KEY := $(shell (cat requirements.lock pyproject.toml; echo '$(TORCH) $(TORCH_PIP_ARGS)') | cksum | tr ' ' -)
STAMP := $(VENV)/installed-$(KEY)

ifneq ($(origin PYTHON),file)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)'))
$(error PYTHON=$(PYTHON) is not the version that $(VENV) was made with; remove $(VENV), or leave PYTHON out)
endif
endif
endif

.PHONY: help venv quickstart test test-slow lint types wheel lock ci

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP)  ## .venv with everything locked, and this checkout in it

$(STAMP):
	@$(PYTHON) -c '$(MODERN)' \
	    || { echo 'PYTHON=$(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@if ! grep -qs '^include-system-site-packages = $(SYSTEM)' $(VENV)/pyvenv.cfg \
	    || ! $(BIN)/python -c 'import pip; $(MODERN)'; then \
	    $(PYTHON) -m venv --clear $(if $(filter true,$(SYSTEM)),--system-site-packages) $(VENV); \
	fi
	@rm -f $(VENV)/installed-*
ifeq ($(TORCH),system)
	@reason=$$($(BIN)/python -c '$(TORCH_FITS)' 2>&1 | tail -n 1) \
	    || { echo "TORCH=system needs torch 2.6 or newer in $(PYTHON) ($$reason); install it there, or leave TORCH out" >&2; exit 1; }
endif
	$(PIP) install --quiet --require-hashes --no-deps -r requirements.lock
ifneq ($(TORCH),system)
	$(PIP) install $(TORCH_PIP_ARGS) torch==$(TORCH)
endif
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@printf '%s ?= %s\n' TORCH '$(TORCH)' TORCH_PIP_ARGS '$(TORCH_PIP_ARGS)' > $(VENV)/settings.mk
	@touch $@

quickstart: $(STAMP)  ## train and judge a small student from photos that come with the packages
	$(BIN)/hrsam quickstart $(ARGS)

test: $(STAMP)  ## all tests but the slow ones
	$(BIN)/pytest -m 'not slow and not gpu' $(ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/pytest -m 'slow and not gpu' $(ARGS)

lint: $(STAMP)  ## ruff, and the contracts on imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo

types: $(STAMP)  ## mypy
	$(BIN)/mypy

wheel: $(STAMP)  ## dist/*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

lock: $(BIN)/python  ## requirements.lock anew, at the versions installed in .venv
	$(BIN)/python .ci/lock.py

$(BIN)/python:
	@echo 'the lock is made of what $(VENV) holds: make venv, upgrade there what should change, test, lock' >&2; exit 1

ci:  ## everything above that can fail
	.ci/run
