# `make demo` and `make test` set up all they need: a private .venv from hash-locked requirements.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo serve lint check test test-full compose-test lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP)  ## the private environment, from requirements.lock

demo: setup  ## a whole sweep on real images in a few minutes
	$(BIN)/care-sweep demo

serve: setup  ## the service, a runner and a local Ray with its dashboard
	$(BIN)/care-sweep serve

lint: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## the same, and fast unit tests
	$(BIN)/pytest -q -m "not (ray or slow or gpu or containers or full)"

test: setup  ## every test but those of test-full, in two processes
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not (gpu or containers or full)"

test-full: setup  ## fuzzing, scale, containers, long README commands
	$(BIN)/pytest -q -m "full or containers" --timeout 3600

compose-test: setup  ## build the images, run a sweep in containers and disturb it
	$(BIN)/pytest -q -s tests/docker/test_containers.py --timeout 3600

LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links

lock: setup  ## resolve requirements.lock again, and from it the locks of the images
	$(LOCK) --upgrade --group dev pyproject.toml --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --group service --output-file docker/api.lock
	$(LOCK) --constraint requirements.lock --extra postgresql --extra s3 pyproject.toml --output-file docker/worker.lock
	$(LOCK) --constraint requirements.lock --group build --output-file docker/build.lock

clean:  ## the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
