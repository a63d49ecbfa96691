# Two commands do all: `make quickstart` and `make test`. Each builds .venv first where it is missing or stale.
#   PYTHON=...  the Python 3.11 or 3.12 to build .venv with     EXTRA=cpu|gpu  which engines (default: cpu)

PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
EXTRA ?=
BIN := .venv/bin

.PHONY: setup quickstart test unit lint clean

setup:
	@test -n "$(PYTHON)" || { echo "setup: found no Python 3.11 or 3.12; give one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) tools/setup_env.py $(if $(EXTRA),--extra $(EXTRA))

quickstart: setup
	$(BIN)/rlvr quickstart

test: setup
	$(BIN)/python -m pytest

unit: setup
	$(BIN)/python -m pytest tests/unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
