# `make demo` and `make test` do all the set-up themselves. PYTHON=... chooses the interpreter.
PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=

# Prints the interpreter that has everything; installs what is missing first.
SETUP = $(PYTHON) requirements/setup_env.py

.NOTPARALLEL:
.PHONY: help setup demo test stress lint clean

help:
	@echo "make demo    train on embedded data, evaluate, draw pictures (DEMO_ARGS=... for more)"
	@echo "make test    run the tests (PYTEST_ARGS='-k name' for some of them)"
	@echo "make stress  long tests of faults, kills and leaks, tens of minutes (PYTEST_ARGS as above)"
	@echo "make lint    check format, lint and types"
	@echo "make setup   only install what is missing"
	@echo "make clean   remove caches and build products; .venv and output/ stay"
	@echo "PYTHON=...   the interpreter to set up from (default: python3)"

setup:
	@$(SETUP)

demo:
	@python="$$($(SETUP))" && "$$python" tools/quickstart.py $(DEMO_ARGS)

test:
	@python="$$($(SETUP))" && "$$python" -m pytest tests $(PYTEST_ARGS)

stress:
	@python="$$($(SETUP))" && "$$python" -m pytest tests/stress -rP $(PYTEST_ARGS)

lint:
	@python="$$($(SETUP) --extra dev)" && set -x && \
		"$$python" -m ruff format --check . && \
		"$$python" -m ruff check . && \
		"$$python" -m mypy

clean:
	rm -rf build dist
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name '.*_cache' -o -name '*.egg-info' \) \
		-prune -exec rm -rf {} +
