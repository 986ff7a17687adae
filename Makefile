# Everything from a fresh clone with Python >= 3.11 and make alone.
#   make demo     set up, then do the main job on this machine
#   make test     set up, then run the tests
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null)
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(max(2, (os.cpu_count() or 2)))' 2>/dev/null)

.PHONY: help demo test test-fast test-nightly lint format man completions proto check-generated lock lock-check pocket bench bench-startup bench-chain bench-memory bench-planner bench-published bench-forecast clean

help:
	@sed -n 's/^#   //p' Makefile; echo 'also: lint format man completions proto lock pocket bench bench-startup bench-chain bench-memory bench-planner bench-published bench-forecast test-fast test-nightly clean'

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'exo needs Python 3.11 or newer; install it or say make PYTHON=/path/to/python'; exit 1; }
ifdef UV
	@test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $(READY)

# Two nodes on this machine, with a state directory of their own, and the embedded model over both;
# nothing is left behind but compiled kernels, in the virtual environment.
demo: $(READY)
	@set -e; dir=$$(mktemp -d); PATH="$(CURDIR)/$(BIN):$$PATH"; \
	export PATH XDG_STATE_HOME="$$dir/state" XDG_CONFIG_HOME="$$dir/config" XDG_CACHE_HOME="$(CURDIR)/$(VENV)/demo-cache"; \
	exo serve-shard --name left & left=$$!; \
	exo serve-shard --name right & right=$$!; \
	trap 'kill $$left $$right 2>/dev/null || true; wait; rm -rf "$$dir"' EXIT; \
	say() { echo; echo "\$$ $$*"; }; \
	say 'exo discover --wait nodes=2'; \
	exo discover -q --wait nodes=2 --timeout 60s --format table; \
	say "exo run pocket '$(QUESTION)' --nodes 2 --stats"; \
	exo run pocket '$(QUESTION)' --nodes 2 --stats 2>"$$dir/said" || { cat "$$dir/said"; exit 1; }; \
	echo; cat "$$dir/said"; \
	say 'exo ps'; \
	exo ps; \
	say 'exo unload'; \
	exo unload

QUESTION := How do I use two machines together?

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not nightly and not net'
	$(BIN)/python -m pytest -m 'net and not nightly'

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not nightly and not net and not process'

test-nightly: $(READY) lock-check
	$(BIN)/python -m pytest -n $(WORKERS) -m nightly

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: $(READY)
	$(BIN)/python man/generate.py

completions: $(READY)
	$(BIN)/python completions/generate.py

proto: $(READY)
	$(BIN)/python proto/generate.py

check-generated: $(READY)
	$(BIN)/python proto/generate.py --check
	$(BIN)/python man/generate.py --check
	$(BIN)/python completions/generate.py --check

# The lock holds versions and hashes for every platform, no addresses. It needs uv to be made anew.
LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header --python-version 3.11 --extra cpu --group dev pyproject.toml

lock: $(READY)
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv'; exit 1; }
	$(LOCK) --upgrade -o requirements.lock

# What a fresh resolution would change; run on a schedule with the nightly tests.
lock-check:
	@command -v uv >/dev/null || { echo 'make lock-check needs uv: pip install uv'; exit 1; }
	@$(LOCK) --upgrade -o build-lock.txt >/dev/null && diff requirements.lock build-lock.txt > build-lock.diff; \
	  status=$$?; grep -E '^[<>] [a-z]' build-lock.diff; rm -f build-lock.txt build-lock.diff; \
	  if [ $$status -ne 0 ]; then echo 'requirements.lock is behind; run make lock'; else echo 'requirements.lock is current'; fi

# The embedded model anew, with an environment of its own for the training.
POCKET := build/pocket
pocket: $(READY)
	@test -x build/pocket-venv/bin/python || $(PYTHON) -m venv build/pocket-venv
	build/pocket-venv/bin/python -m pip install --quiet --disable-pip-version-check -r pocket/requirements.txt
	build/pocket-venv/bin/python -m pocket.train --out $(POCKET)
	$(BIN)/python -m pocket.export --weights $(POCKET)
	$(BIN)/python -m pocket.evaluate

# Ours beside llama.cpp and stock mlx-lm: a table of ratios. About an hour on a machine with nothing else to
# do; needs a C++ compiler (llama.cpp is built once) and 20 GB in the user's cache directory.
# BENCH=--quick takes minutes, BENCH=--help shows what else there is.
bench: $(READY)
	$(BIN)/python -m benchmarks.peers $(BENCH)

bench-startup bench-chain bench-memory bench-planner bench-published bench-forecast: $(READY)
	$(BIN)/python -m benchmarks.$(@:bench-%=%)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
