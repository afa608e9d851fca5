# `make demo` and `make test` do all the set-up themselves. PYTHON=... chooses the interpreter.
# Where Detectron2 can't be installed these two go on without it: a shipped ONNX model instead of a
# training, the tests that need no Detectron2. The other targets stop.
PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=
# Of data/bccd's classes, for a `make demo` without Detectron2.
DEMO_MODEL ?= models/bccd.onnx

# Prints the interpreter that has everything; installs what is missing first.
SETUP = $(PYTHON) requirements/setup_env.py

.NOTPARALLEL:
.PHONY: help setup demo test stress lint clean

help:
	@echo "make demo    train on embedded data, evaluate, draw pictures (DEMO_ARGS=... for more)"
	@echo "make test    run the tests (PYTEST_ARGS='-k name' for some of them)"
	@echo "make stress  long tests of faults, kills and leaks, tens of minutes (PYTEST_ARGS as above)"
	@echo "make lint    check format, lint, types, and that tables of docs are those of their runs"
	@echo "make setup   only install what is missing"
	@echo "make clean   remove caches and build products; .venv and output/ stay"
	@echo "PYTHON=...   the interpreter to set up from (default: python3)"

setup:
	@$(SETUP)

demo:
	@python="$$($(SETUP) --fallback)" && \
		if "$$python" -c "import torch, detectron2._C" 2>/dev/null; then \
			"$$python" tools/quickstart.py $(DEMO_ARGS); \
		else \
			"$$python" -m mimicdet_runtime.evaluation $(DEMO_MODEL) \
				data/bccd/annotations/instances_test.json data/bccd/images \
				--output output/runtime_demo $(DEMO_ARGS); \
		fi

test:
	@python="$$($(SETUP) --fallback)" && "$$python" -m pytest tests -n auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

stress:
	@python="$$($(SETUP))" && "$$python" -m pytest tests/stress -rP $(PYTEST_ARGS)

lint:
	@python="$$($(SETUP) --extra dev)" && set -x && \
		"$$python" -m ruff format --check . && \
		"$$python" -m ruff check . && \
		"$$python" -m mypy && \
		"$$python" tools/compare_runs.py --update README.md MODEL_ZOO.md docs/evidence.md --check

clean:
	rm -rf build dist
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name '.*_cache' -o -name '*.egg-info' \) \
		-prune -exec rm -rf {} +
