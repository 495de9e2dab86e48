# Everything a contributor types. `make help` lists it.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The exact torch stands on the command line too: an open range resolves to a build with gigabytes of CUDA libraries.
TORCH  ?= torch==2.13.0
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(TORCH)
CODE   := topoopt tests examples benchmarks docs
# Tests run side by side, a file a worker; each worker keeps to one core.
WORKERS ?= 4
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
BENCH  := $(VENV)/bench/bin/python
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format typecheck test-fast test-slow test-gpu bench bench-full bench-check examples docs pictures readme build clean distclean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- environments: made once, made again when what they install has changed -------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "topoopt needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo,report]'
	@touch $@

$(VENV)/.stamp-dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.stamp-demo $@

# A layer over .venv, so that no peer can change what the tests see.
$(VENV)/.stamp-bench: $(VENV)/.stamp-dev benchmarks/requirements.txt
	$(BIN)/python -m venv $(VENV)/bench
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" \
	  > $$($(BENCH) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/layer.pth
	$(BENCH) -m pip --disable-pip-version-check install --quiet -c constraints.txt $(TORCH) -r benchmarks/requirements.txt
	@touch $@

setup: $(VENV)/.stamp-dev  ## make .venv with everything that development needs

# -- the main job -----------------------------------------------------------------------------------------------------

demo: $(VENV)/.stamp-demo  ## set up and run `topoopt demo` (ARGS="--quick" and the like are passed on)
	$(BIN)/topoopt demo $(ARGS)

# -- checks -----------------------------------------------------------------------------------------------------------

test: lint typecheck test-fast  ## set up, then ruff, pyright and pytest (the documentation and its code blocks among it): what CI runs

check: lint typecheck  ## ruff and pyright alone

lint: $(VENV)/.stamp-dev  ## ruff: lint and formatting
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: $(VENV)/.stamp-dev  ## ruff: mend what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

typecheck: $(VENV)/.stamp-dev  ## pyright
	$(BIN)/pyright

test-fast: $(VENV)/.stamp-dev  ## pytest without slow and gpu tests
	$(PYTEST) -n auto --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/.stamp-dev  ## the tests that take minutes
	$(PYTEST) -m 'slow and not gpu' $(ARGS)

test-gpu: $(VENV)/.stamp-dev  ## the tests that need an accelerator
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(VENV)/.stamp-bench  ## topoopt beside its peers, small sizes: results/*.json, RESULTS.md, the README's table
	$(BENCH) benchmarks/bench.py $(ARGS)

bench-full: $(VENV)/.stamp-bench  ## the same, all sizes (an hour)
	$(BENCH) benchmarks/bench.py --full $(ARGS)

bench-check: $(VENV)/.stamp-bench  ## the small sizes again: fails where a ratio of topoopt's got worse than committed
	$(BENCH) benchmarks/bench.py --check $(ARGS)

examples: $(VENV)/.stamp-dev  ## run the examples
	@for file in examples/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# -- robustness: each prints its account; `make test` runs small ones of the first three ------------------------------

.PHONY: faults soak fuzz mutants coverage
ALONE := OMP_NUM_THREADS=1 $(BIN)/python

faults: $(VENV)/.stamp-dev  ## inject every fault of docs/faults.md and print the table (ARGS=--write: into the page)
	$(ALONE) tests/faults/fault_table.py $(ARGS)

soak: $(VENV)/.stamp-dev  ## 10,000 steps under random faults, beside the bare run (ARGS=STEPS)
	PYTHONPATH=tests/faults $(ALONE) tests/faults/soak.py $(ARGS)

fuzz: $(VENV)/.stamp-dev  ## records, states, configs and policies of others: 5,000 each (ARGS="--atheris record" by atheris)
	PYTHONPATH=tests/faults $(ALONE) tests/faults/fuzz.py $(ARGS)

mutants: $(VENV)/.stamp-dev  ## mutation testing of the core's decisions (ARGS="--room control --count 40")
	$(ALONE) tests/mutants.py $(ARGS)

coverage: $(VENV)/.stamp-dev  ## branch coverage of the core by its own tests
	$(PYTEST) -n auto --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(CORE) $(ARGS)
CORE := $(addprefix tests/,config control curvature geometry homology neurons optimizer verdict faults)

# -- the rest ---------------------------------------------------------------------------------------------------------

docs: $(VENV)/.stamp-dev  ## the documentation in site/, any warning an error
	$(BIN)/python -m mkdocs build --strict --quiet

pictures: $(VENV)/.stamp-dev  ## make the documentation's pictures and its notebook anew (chromium is needed for those of the page)
	$(BIN)/python docs/images/concepts.py
	$(BIN)/python docs/images/report.py
	$(BIN)/python docs/notebook.py

readme: $(VENV)/.stamp-dev  ## follow the README from a fresh copy, as a newcomer does, and say the minutes it took
	$(BIN)/python tests/docs/follow.py --fresh

build: $(VENV)/.stamp-dev  ## wheel and sdist in dist/, their metadata checked
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove what runs leave behind
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis runs topoopt-demo
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## and the environment
	rm -rf $(VENV)
