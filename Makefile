# Everything runs in .venv; nothing is installed outside this folder.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# Small matrices: one thread per process is fastest, and processes share the cores.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-kernels check dashboard bench bench-kernels bench-cost fit-cost-model kernels-compile clean

demo: $(STAMP)  ## main job: a search, its front, an exported config
	$(BIN)/python -P -m archfront.examples.demo

test: test-kernels  ## the whole suite
	$(BIN)/pytest -q -n 2 --dist loadfile --ignore tests/kernels/interpreted --ignore tests/kernels/compiled tests

# Which compilations run, as pytest's -k takes it.
COMPILED ?=

test-kernels: $(STAMP)  ## kernels in the interpreter, and compiled for every GPU architecture
	TRITON_INTERPRET=1 $(BIN)/pytest -q -n 2 tests/kernels/interpreted
	$(BIN)/pytest -q -n 2 -k "$(COMPILED)" tests/kernels/compiled

check: $(STAMP)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

dashboard: $(STAMP)  ## browse the demo's store
	$(BIN)/archfront dashboard --store sqlite:///demo/archfront.db

bench: $(STAMP)  ## overhead of the search beside a bare Ray Tune run
	$(BIN)/python -P benchmarks/overhead.py

bench-kernels: $(STAMP)  ## each kernel beside its peer; needs a GPU
	$(BIN)/python -P benchmarks/kernels.py

# Public operator timings of eight GPUs, one parquet table per operator; not part of this project.
TABLES ?= ../shared/measured_ops

fit-cost-model: $(STAMP)  ## fit constants and residuals on the tables
	$(BIN)/python -P -m archfront.profilers.cost --tables $(TABLES) --processes 2

bench-cost: $(STAMP)  ## errors and coverage on timings that were not fitted
	$(BIN)/python -P benchmarks/cost.py --tables $(TABLES)

kernels-compile: $(STAMP)  ## registers, stack and shared memory of each kernel on each architecture
	$(BIN)/python -m archfront.kernels.compiled

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

clean:  ## remove the environment, builds and the demo's results
	rm -rf .venv demo build *.egg-info
