# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Without compiled modules every process of a test compiles the project again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
INSTALL := PYTHON=$(PYTHON) scripts/install.sh
EXTRAS := dask,export,http,huggingface,onnx,ray,s3,text,timm
FOUND_BY := pyproject.toml constraints.txt scripts/install.sh
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

FLOOR := .venv-floor
FLOOR_TESTS := tests/config tests/contracts tests/embedding tests/inputs tests/store/test_tables.py \
	tests/journeys/test_flow.py tests/journeys/test_incremental.py tests/journeys/test_registry_and_query.py

.PHONY: demo test test-all test-exhaustive test-floor snapshots reference lint check bench faults clean

demo: $(VENV)/demo  ## run the whole pipeline on embedded data and print where to look
	$(BIN)/tl run digits

test: $(VENV)/dev  ## every test but those marked exhaustive
	$(PYTEST)

test-exhaustive: $(VENV)/dev  ## the tests that `make test` leaves out
	$(PYTEST) -m exhaustive

test-all: $(VENV)/dev  ## every test
	$(PYTEST) -m ""

test-floor:  ## some tests on the oldest versions that pyproject.toml allows; needs uv
	$(INSTALL) $(FLOOR) --resolution lowest-direct --editable '.[$(EXTRAS)]'
	$(INSTALL) $(FLOOR) --group test
	$(FLOOR)/bin/pytest -W default $(FLOOR_TESTS)

snapshots: $(VENV)/dev  ## write anew what `tl` prints, to be read in `git diff`
	$(BIN)/pytest -q tests/journeys/test_snapshots.py --update-snapshots

reference: $(VENV)/dev  ## write docs/reference.md anew from the code
	$(BIN)/python scripts/reference.py

lint: $(VENV)/dev  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test  ## all that must be green

bench: $(VENV)/dev  ## measure; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/cached_run.py
	$(BIN)/python benchmarks/ingest.py

faults: $(VENV)/dev  ## disturb 200 nights, and kill servers and workers of Prefect
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/faults.py --deployed --number 25
	$(BIN)/pytest -q -n 0 -m exhaustive tests/journeys/test_deployment.py

clean:  ## forget the environments, not the store
	rm -rf $(VENV) $(FLOOR) .uv

$(VENV)/demo: $(FOUND_BY)
	$(INSTALL) $(VENV) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(FOUND_BY)
	$(INSTALL) $(VENV) --constraint constraints.txt --editable '.[$(EXTRAS)]' --group dev
	@touch $@ $(VENV)/demo
