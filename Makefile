# Everything here sets itself up: all it asks for is Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := build/peers

# Tests start some hundred processes, each of which would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help serve test slow shaken lint types format contract browser limits check torture mutants bench profile purge loop workers scale wheel constraints clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(READY) ## Run the server on keysmith.db (KEYSMITH_DATABASE_URL names another)
	$(BIN)/keysmith serve $(ARGS)

test: $(READY) ## Run the tests, with the branch coverage gate
	$(BIN)/coverage erase
	$(BIN)/pytest -n 4 --dist worksteal --cov --cov-report=term

slow: $(READY) ## Run the tests that take long: odd terminals, backups, benchmarks, counting at full length
	$(BIN)/pytest -n 4 --dist worksteal -m slow

shaken: $(READY) ## Run the tests with delays at random, which those that go by luck do not stand
	$(BIN)/python -m pytest -p tests.delays -n 6 --dist worksteal $(ARGS)

lint: $(READY) ## Check style, and that imports keep to the layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY) ## Check types, strictly
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

contract: $(READY) build/contract/.ready ## Try the server with Schemathesis and a generated client
	$(BIN)/python -m tests.contract build/contract $(ARGS)

build/contract/.ready:
	$(PYTHON) -m venv build/contract
	build/contract/bin/pip install --quiet schemathesis openapi-python-client
	@touch $@

browser: $(READY) build/browser/.ready ## Use the OpenAPI pages as a person does, in a headless Chromium
	$(BIN)/python -m tests.browser build/browser

build/browser/.ready:
	@command -v chromium > /dev/null && command -v npm > /dev/null || { echo "This needs a browser and npm: apt-get install chromium npm"; exit 1; }
	$(PYTHON) -m venv build/browser
	build/browser/bin/pip install --quiet playwright
	cd build/browser && npm pack --silent swagger-ui-dist@5 && tar -xzf swagger-ui-dist-5*.tgz
	@touch $@

limits: $(READY) ## Count at full length: 50,000 keys, and processes that race for a rate limit
	$(BIN)/pytest -m slow tests/test_counters.py tests/test_shared_counting.py

check: lint types test ## Style, types and tests: what every change must pass

torture: $(READY) ## Hold Keysmith to its promises by force, and print a figure for each (ARGS="--only crash")
	$(BIN)/python -m proofs.torture $(ARGS)

mutants: $(READY) ## Try every small mistake in the engine and the stores: hours (ARGS="--sample 200")
	$(BIN)/python -m proofs.mutants $(ARGS)

bench: $(READY) $(PEERS)/.ready ## Measure, beside bare SQLite and FastAPI and beside peers (ARGS="--quick --only NAME")
	$(BIN)/python -m benchmarks $(ARGS)

profile: $(READY) ## Show where the microseconds of a validation go
	$(BIN)/python -m benchmarks.stages $(ARGS)

purge: $(READY) ## Prove that others get their turn to write while usage is purged or recorded
	$(BIN)/python -m proofs.purge

loop: $(READY) ## Prove that an event loop is not held up while another process writes
	$(BIN)/python -m proofs.loop

workers: $(READY) ## Prove that processes that serve one file grant a quota exactly, and lose nothing
	$(BIN)/python -m proofs.workers $(ARGS)

scale: $(READY) ## Prove that five million records are read as fast as five thousand (ARGS=100000)
	$(BIN)/python -m proofs.scale $(ARGS)

wheel: $(READY) ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build

constraints: ## Renew constraints.txt with the newest versions that pyproject.toml allows
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet -e '.[dev]'
	build/constraints/bin/pip freeze --exclude-editable > constraints.txt

clean: ## Remove what was made, except databases
	rm -rf $(VENV) build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Keysmith needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Other packages, for comparison only, in an environment of their own.
$(PEERS)/.ready: benchmarks/peers-constraints.txt
	rm -rf $(PEERS)
	$(PYTHON) -m venv $(PEERS)
	-$(PEERS)/bin/pip install --quiet --requirement $< && touch $@
