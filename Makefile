# Everything lives in .venv; a stamp file keeps a second `make` quick.
#
#   make run     set up, then run a first workload        make bench   how fast it is on this host
#   make test    set up, then layers and all tests        make clean   remove what the others made
#   make docs    the pages as a web site, in site/
#   make pages   tables, examples and pictures of the pages, made anew from the source and from real runs
#   make conform play all cases recorded on Linux, and write the page of their results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.test-ready
DOCS_READY := $(VENV)/.docs-ready
INSTALL := $(PYTHON) numaemu/tools/bootstrap.py $(VENV)
PYTEST := $(BIN)/python -m pytest -q

# Tests marked `interpreted` also run with the JIT off, those marked `concurrent` also compiled with the checks of the debug build.

COMPILE := $(BIN)/python -c "from numaemu.compiler.link import compile_everything; compile_everything()"

.PHONY: run test bench conform docs pages setup compilers layers first-functions clean

run: $(READY)
	@$(BIN)/python -m numaemu run workloads/first_touch.py

# Tests start hundreds of processes, which are to find the package's bytecode.
test: export PYTHONDONTWRITEBYTECODE =
test: compilers layers
	$(PYTEST) -n auto
	NUMBA_DISABLE_JIT=1 NUMAEMU_DEBUG=1 $(PYTEST) -m interpreted -n auto
	NUMAEMU_DEBUG=1 $(PYTEST) -m concurrent -n auto

# Compilers begin while what the tests need is installed and the lint runs, which keep one core busy. Behind everything else they go on
# with the debug build, while tests wait for something. What goes wrong here the tests say, which complete what is missing.
compilers: $(READY)
	@(nice -n 5 $(COMPILE); NUMAEMU_DEBUG=1 nice -n 19 $(COMPILE)) >/dev/null 2>&1 &

bench: $(READY)
	$(BIN)/python -m numaemu bench

conform: $(READY)
	$(BIN)/python -m numaemu conform --all --markdown docs/fidelity-results.md

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo "site/index.html"

# What the pages have from the source and from real runs; the gallery runs every workload, which takes some minutes.
pages: $(READY)
	$(BIN)/python -m docs.tools.tables
	$(BIN)/python -m docs.tools.examples --write
	$(BIN)/python -m docs.tools.gallery
	$(BIN)/python -m docs.tools.gallery --outputs

setup: $(READY)

# The floors of the package (a file imports only from floors below its own), where they are written down.
layers: $(TEST_READY)
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff check --quiet numaemu tests benchmarks workloads docs/tools
	$(BIN)/ruff format --quiet --check numaemu tests benchmarks workloads docs/tools
	$(BIN)/mypy --no-error-summary

$(READY): pyproject.toml
	@$(INSTALL) .
	@touch $@

$(TEST_READY): $(READY)
	@$(INSTALL) '.[test]'
	@touch $@

$(DOCS_READY): $(READY)
	@$(INSTALL) '.[docs]'
	@touch $@

# Record anew what a first run compiles (numaemu/compiler/foreman.py): worth while when many functions are new or have moved.
first-functions: $(READY)
	rm -rf build/first && mkdir -p build/first
	sed '/^LOCKSTEP/d' workloads/first_touch.py > build/first/free.py
	NUMBA_CACHE_DIR=build/first NUMAEMU_RECORD=build/first/needed $(BIN)/python -m numaemu run --quiet build/first/free.py
	NUMBA_CACHE_DIR=build/first NUMAEMU_RECORD=build/first/needed $(BIN)/python -m numaemu run --quiet workloads/first_touch.py
	awk '!seen[$$0]++' build/first/needed > numaemu/compiler/first.txt
	rm -rf build/first

clean:
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
