# Everything runs in .venv, made by the first target that needs it. `make` alone lists the targets.
# Variables: PYTHON (interpreter for the environment), TORCH_INDEX (see CONTRIBUTING.md), DEMO_WORKERS, DEMO_EPOCHS, PEER, DATASET.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CODE := $(wildcard gnnmr_dist cluster tune tests benchmarks)

CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14
USABLE := 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c $(USABLE) >/dev/null 2>&1 && echo $(p))))
TORCH_INDEX ?=

DEMO_WORKERS ?= 3
DEMO_EPOCHS ?= 30
# Few interactions per user, so that features matter; small steps for a small set.
PLANTED := --users 1000 --items 600 --interactions-per-user 8 --noise 0.25
PLANTED_TRAINING := --global-batch-size 256

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-fast bench lint types format check constraints requirements clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install the package with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found: install one, or say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c $(USABLE) || { echo "error: $(PYTHON) is not Python 3.11 or newer with venv" >&2; exit 2; }
	@echo "Setting up $(VENV) with $(PYTHON) (one to three minutes, once)..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@test -z "$(TORCH_INDEX)" || $(PY) -m pip install -q --disable-pip-version-check --no-deps --index-url "$(TORCH_INDEX)" -c constraints.txt torch
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt setuptools
	@$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

demo: export RAY_USAGE_STATS_ENABLED = 0
demo: $(STAMP) ## planted data set, one Ray Train worker per modality, evaluation, recommendations
	@rm -rf demo
	$(PY) -m gnnmr_dist.prepare --synthetic $(PLANTED) --output demo/data
	$(PY) -m gnnmr_dist.train --dataset demo/data --output demo/run --num-workers $(DEMO_WORKERS) --epochs $(DEMO_EPOCHS) $(PLANTED_TRAINING)
	$(PY) -m gnnmr_dist.evaluate --run demo/run --split test
	$(PY) -m gnnmr_dist.recommend --run demo/run --users u10 u11 u12 --k 5
	@echo
	@echo "Where to look next"
	@echo "  demo/data   the planted data set (manifest.json says what is in it)"
	@echo "  demo/run    settings, metrics and checkpoints of this run"
	@echo "  README.md   the same on a table of your own"
	@echo "  docs/       how it works, the data format, every error message"

test: $(STAMP) ## all tests
	@$(PY) -m pytest

test-slow: $(STAMP) ## all tests and those that take minutes each (lost nodes, Slurm, sweeps)
	@$(PY) -m pytest --slow

test-fast: $(STAMP) ## the tests that start neither Ray nor several processes
	@$(PY) -m pytest -m 'not ray and not multiprocess'

BENCHES := attention sampler step exchange scaling tables inference ranking prepare

bench: $(STAMP) ## every benchmark in a small size, under 10 minutes; PEER=DIR DATASET=DIR adds bench_peer
	@for name in $(BENCHES); do echo "== $$name"; $(PY) benchmarks/bench_$$name.py --quick || exit 1; done
	@if [ -n "$(PEER)" ]; then echo "== peer"; $(PY) benchmarks/bench_peer.py --quick --peer "$(PEER)" --dataset "$(DATASET)"; \
	 else echo "== peer: left out, it needs PEER=DIR (an MMRec checkout) and DATASET=DIR"; fi

lint: $(STAMP) ## ruff: rules and format
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)

types: $(STAMP) ## mypy --strict on the package
	@$(PY) -m mypy

format: $(STAMP) ## mend what ruff can mend
	@$(PY) -m ruff check --fix-only $(CODE)
	@$(PY) -m ruff format $(CODE)

check: ## lint, types, then all tests, in this order
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory test

# A fresh environment with the newest releases that pyproject.toml allows; torch stays at the version pinned now.
constraints: ## write constraints.txt anew from a fresh environment
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found" >&2; exit 2; }
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@build/constraints/bin/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") "$$(grep '^torch==' constraints.txt)" setuptools '.[dev]'
	@grep '^#' constraints.txt > build/constraints.txt
	@build/constraints/bin/python -m pip freeze --all | sed -E 's/\+(cpu|cu[0-9]+)$$//' \
	  | grep -vE '^(pip==|gnnmr-dist|nvidia-|cuda-|triton==)' | LC_ALL=C sort -f >> build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/constraints

requirements: $(STAMP) ## write the container's lists with hashes anew from constraints.txt (Python 3.11, Linux x86_64)
	@$(PY) cluster/container/requirements.py $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")

clean: ## remove .venv, demo/ and caches
	@rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
