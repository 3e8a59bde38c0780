# Everything this project does, by name: `make help`. Each target makes .venv first if it is missing.
# What is stale is decided here, from file times; which files a notebook depends on is read from its
# imports by lib/engine/plan.py, and lib/engine/run.py executes one notebook.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help

PYTHON    ?= python3
VENV      ?= .venv
PROFILE   ?= quick
DEVICE    ?= auto
SEED      ?= 0
ONLY      ?=
P         ?=
DATA_ROOT ?=
CACHE_DIR ?= build/cache

absolute = $(if $(filter /% ~%,$(1)),$(1),$(CURDIR)/$(1))
override CACHE_DIR := $(call absolute,$(CACHE_DIR))
ifneq ($(DATA_ROOT),)
override DATA_ROOT := $(call absolute,$(DATA_ROOT))
endif
export PROFILE DEVICE SEED ONLY P DATA_ROOT CACHE_DIR
unexport PYTHONDONTWRITEBYTECODE  # without bytecode every notebook starts 25 s later (measured)

# A notebook computes with two threads. Where two run at once, a thread that waits by spinning takes
# the core from one that works: what should take as long took fifteen times as long (measured).
AT_ONCE = export OMP_WAIT_POLICY="$${OMP_WAIT_POLICY:-passive}";

PY   := $(VENV)/bin/python
# The last parts first: they take longest.
TEST_PARTS := $(addprefix test-part-,$(shell ls notebooks | grep '\.ipynb$$' | cut -c1 | sort -ru))
PAGE := $(or $(FIGURES_DIR),figures)/index.html

.PHONY: help figures test test-code $(TEST_PARTS) lab claims gallery bench refresh lint data clean \
    clean-cache setup page
help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo "variables, with what they are now:"
	@echo "  PROFILE=$(PROFILE) (quick, full, paper)   DEVICE=$(DEVICE) (auto, cpu, cuda, cuda:1)   SEED=$(SEED)"
	@echo "  ONLY=$(ONLY) (a notebook, 51, or a part, 5)   P=\"$(P)\" (its parameters: P=\"LAYER=layer2 K=8\")"
	@echo "  DATA_ROOT=$(DATA_ROOT) (real data; empty: a cache folder of yours)"
	@echo "  CACHE_DIR=$(CACHE_DIR) (trained models)   PYTHON=$(PYTHON)"

figures: setup  ## run every notebook that is stale; write figures, tables and the gallery
	+@$(if $(filter -j%,$(MAKEFLAGS)),$(AT_ONCE)) plan=$$($(PY) -m lib.engine.plan) || exit 1; status=0; \
	$(MAKE) --no-print-directory -k PLAN="$$plan" notebooks || status=1; \
	$(MAKE) --no-print-directory PLAN="$$plan" page || status=1; \
	$(PY) -m lib.engine.report "$$plan" || status=1; exit $$status

test: setup  ## run all tests, and beside them the stored notebooks
	+@$(AT_ONCE) $(MAKE) --no-print-directory -k -j2 test-code $(TEST_PARTS)

test-code: setup
	@$(PY) -m pytest tests

# Two cores: the tests on one, on the other the notebooks of a part, and whatever ends first is
# followed by the next part. A part's report comes in one piece.
$(TEST_PARTS): test-part-%: setup
	@mkdir -p build; status=0; $(PY) -m pytest --nbval-lax notebooks/$*[0-9]_*.ipynb \
		--nbval-current-env --nbval-cell-timeout 1800 --nbval-sanitize-with tests/nbval.cfg \
		> build/$@.log 2>&1 || status=$$?; cat build/$@.log; exit $$status

lab: setup  ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

claims: setup  ## print every claim: the document's number, ours, the verdict
	@$(PY) -m lib.claims

gallery: setup  ## write figures/index.html
	@$(PY) -m lib.engine.gallery

bench: setup  ## measure our speed against other implementations
	@$(PYTHON) lib/engine/setup.py .venv-bench tests/benchmarks/requirements.txt
	@.venv-bench/bin/python -m tests.benchmarks.run

refresh: setup  ## rerun at quick on the CPU and store the outputs in the notebooks
	@$(PY) -m lib.engine.refresh

lint: setup  ## check style, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy lib

data: setup  ## download the public data sets into DATA_ROOT
	@$(PY) -m lib.data

clean:  ## delete what runs left in build/, but keep the cache and figures/
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name 'cache*' -exec rm -rf {} +; fi

clean-cache:  ## delete the cache of trained models (asks)
	@read -r -p "delete the trained models in $(CACHE_DIR)? [y/N] " answer || true; \
	if [ "$${answer:-n}" = y ]; then rm -f "$(CACHE_DIR).log"; \
	[ ! -d "$(CACHE_DIR)" ] || find "$(CACHE_DIR)" -maxdepth 1 -type f \( -name '*.safetensors' \
	    -o -name '*.lock' -o -name '*.pid' -o -name '*.part' -o -name '*.bad' \) -delete; \
	else echo "kept"; fi

setup:
	@command -v $(PYTHON) > /dev/null || { echo "setup: there is no $(PYTHON);" \
	    "install Python 3.11 or newer, or name one: make figures PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) lib/engine/setup.py $(VENV)

# Inside `make figures`: PLAN sets RUN, NOTEBOOKS and PAGE, and gives each notebook its prerequisites.
ifdef PLAN
include $(PLAN)
.PHONY: notebooks outputs-missing
notebooks: $(NOTEBOOKS:%=$(RUN)/%.ipynb)
	@:
$(NOTEBOOKS:%=$(RUN)/%.ipynb): $(RUN)/%.ipynb:
	@$(PY) -m lib.engine.run $* $?
page: $(PAGE)
	@:
$(PAGE): $(wildcard $(dir $(PAGE))*/* $(dir $(PAGE))*/*/* $(RUN)/*/run.json notebooks/*.ipynb \
    lib/ledger/*.toml lib/engine/gallery*)
	@$(PY) -m lib.engine.gallery
endif
