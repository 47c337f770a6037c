# Every target installs into .venv first when pyproject.toml or constraints.txt has changed,
# and costs nothing when they have not.

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed

# `make run`: edit one clip, for example `make run PROMPT="add a blue disc"`.
CLIP   ?= data_samples/clouds.mkv
PROMPT ?= add a red ring at the top left moving right
OUT    ?= build/run

WORKERS   ?= 2
# xdist must keep a notebook's cells on one worker (loadscope): they share one kernel.
PYTEST    := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -m "not gpu" \
             -n $(WORKERS) --dist loadscope
NBVAL     := --nbval-lax --nbval-current-env --nbval-cell-timeout 120 \
             --nbval-sanitize-with notebooks/sanitize.cfg

# `make setup CPU=1`: PyTorch without CUDA, for a course on laptops (4 GB less on Linux).
CPU_WHEELS := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help setup run test notebooks book lab lint constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv and install everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(CPU_WHEELS) -c constraints.txt -e '.[notebooks,tests]'
	@touch $@

run: $(STAMP)  ## edit one sample clip into build/run
	$(BIN)/vera-lite edit $(CLIP) --prompt "$(PROMPT)" --out $(OUT)

# nbval cannot run under pytest-cov: checked cells first, then tests and papermill runs.
test: lint  ## lint, then tests and every notebook
	$(PYTEST) $(NBVAL) notebooks
	$(PYTEST) --cov --cov-report= tests

lint: $(STAMP)  ## ruff, types, import contracts, notebook hygiene
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/notebooks.py check

notebooks: $(STAMP)  ## execute every notebook into build/notebooks
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/notebooks.py run

book: $(STAMP)  ## build the website of notebooks, cards and API into build/book/html
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[book]'
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/book.py

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

constraints:  ## resolve the newest versions anew and pin them
	$(PYTHON) -m venv --clear build/constraints
	build/constraints/bin/python -m pip install -e '.[notebooks,tests,book]'
	build/constraints/bin/python -m pip freeze --exclude-editable > build/constraints.txt
	{ echo '# Exact versions for Linux. Made by `make constraints`, see CONTRIBUTING.md.'; \
	  cat build/constraints.txt; } > constraints.txt

clean:  ## remove everything built and cached, keep .venv
	rm -rf build dist .coverage .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -exec rm -rf {} +
