# Everything happens in .venv; `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
WITH_TOOLS := .venv/.installed_with_tools
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test test-quick test-gpu lint format schema docs bench wheel clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(WITH_TOOLS)  ## Make .venv and install Imago with the tested versions (constraints.txt)

train: $(INSTALLED)  ## Train on the embedded digits and score the result; ARGS="trainer.max_epochs=3" adds overrides
	$(BIN)/python src/train.py experiment=digits $(ARGS)

test: $(WITH_TOOLS)  ## Run the tests; ARGS="-k data" selects some
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

test-quick: $(WITH_TOOLS)  ## Run a few tests of each part, in under three minutes
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m quick $(ARGS)

test-gpu: $(WITH_TOOLS)  ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(WITH_TOOLS)  ## Check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(WITH_TOOLS)  ## Format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

schema: $(WITH_TOOLS)  ## Write configs/schema/ from the signatures, for completion and validation of YAML files
	$(BIN)/python -m imago.config.signatures

docs: $(WITH_TOOLS)  ## Write docs/errors.md, callbacks.md and coming_from.md from what the commands do
	WRITE_DOCS=1 $(BIN)/python -m pytest tests/test_errors.py tests/test_callbacks.py tests/test_coming_from.py

bench: $(WITH_TOOLS)  ## Run the benchmarks, with ratios to other libraries (benchmarks/README.md)
	for script in benchmarks/train_*.py; do $(BIN)/python $$script || exit 1; done

wheel: $(WITH_TOOLS)  ## Build the package into dist/
	$(BIN)/uv build --out-dir dist

clean:  ## Remove caches and builds; data/, logs/ and .venv stay
	rm -rf .cache dist .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Imago needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": type make PYTHON=python3.12, for example")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) '.[weights]'
	@touch $@

# what only developing needs: the tests' tools, and all that the extras bring
$(WITH_TOOLS): $(INSTALLED)
	$(INSTALL) '.[dev]'
	@touch $@
