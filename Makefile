# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test lint check bench clean

demo: $(INSTALLED)  ## run the whole pipeline on embedded data and print where to look
	$(BIN)/tl run digits

test: $(INSTALLED)  ## every test
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test  ## all that must be green

bench: $(INSTALLED)  ## measure; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/cached_run.py
	$(BIN)/python benchmarks/ingest.py

clean:  ## forget the environment, not the store
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
ifdef UV
	uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
endif
	@touch $(INSTALLED)
