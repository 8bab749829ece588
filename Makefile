# Everything sets itself up: `make up` and `make test` work on a machine that has Python >= 3.11 and make, nothing else.
# `make PYTHON=python3.12 ...` chooses the Python; `make up ARGS="--listen 0.0.0.0:11435"` passes arguments on.

BIN := .venv/bin
JOBS ?= 2
ARGS ?=
TESTS ?=
# 7 days: a package that was taken over is mostly found within one.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --exclude-newer "7 days" --custom-compile-command "make lock"
RUN_SET := pyproject.toml --extra embedded --group build
CLIENTS := tests/contract/clients/requirements

.PHONY: help up test fast check format simulate mutants rude bench-core bench-proxy soak lock docs clean

help:
	@echo "make up          start bellmare with what this machine has (ARGS=... are passed on)"
	@echo "make test        everything CI runs"
	@echo "make fast        unit tests only, a few seconds"
	@echo "make check       format, lint, types, import contracts, house rules"
	@echo "make format      bring the code into format"
	@echo "make simulate    320,000 requests of random fleets past the oracle (ARGS=\"--seeds N\"; see docs/simulation-testing.md)"
	@echo "make mutants     plant bugs in the core; each must be caught"
	@echo "make rude        slow, idle and leaving clients in the numbers that docs/http.md promises, some minutes"
	@echo "make bench-core  measure the decision core"
	@echo "make bench-proxy measure the data plane beside nginx, HAProxy and Caddy, six minutes (ARGS=--quick for one)"
	@echo "make soak        half an hour of load and faults: does anything grow? (ARGS=\"--minutes N --output DIR\")"
	@echo "make docs        write the generated documents again"
	@echo "make lock        resolve the dependencies again (ARGS=--upgrade for newer ones)"
	@echo "make clean       remove what the others made"

# Stamps: a second run does nothing. Installing the dev set renews both.
.venv/.run: requirements.lock pyproject.toml
	@tools/setup.sh run

.venv/.dev: requirements-dev.lock pyproject.toml
	@tools/setup.sh dev

.venv-clients/.done: tests/contract/clients/requirements.lock
	@tools/setup.sh clients

up: .venv/.run
	@exec $(BIN)/bellmare up $(ARGS)

# One file stays on one worker: engines and servers are started once per module.
test: .venv/.dev .venv-clients/.done
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 10 $(ARGS) $(TESTS)

fast: .venv/.dev
	$(BIN)/python -m pytest -m "not slow and not engine and not node" $(ARGS) tests/unit

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/tidy.py

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# 320 seeds: with refused clients that come back, a little more than 320,000 requests.
simulate: .venv/.dev
	@$(BIN)/python -m bellmare.sim.swarm --seeds 320 --requests 1000 --jobs $(JOBS) $(ARGS)

mutants: .venv/.dev
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS) tests/property/test_core_mutants.py

# One process, since it measures; needs 20,000 file descriptors.
rude: .venv/.dev
	BELLMARE_RUDE=full $(BIN)/python -m pytest -s $(ARGS) tests/faults/test_rude_crowds.py

bench-core: .venv/.dev
	@$(BIN)/python -m bellmare.bench.core $(ARGS)

bench-proxy: .venv/.dev
	@$(BIN)/bellmare bench proxy $(ARGS)

soak: .venv/.dev
	@$(BIN)/python -m bellmare.bench.soak $(ARGS)

docs: .venv/.dev
	$(BIN)/python -m bellmare.settings.schema docs

# uv itself comes from the dev lock. The run set is fixed first and constrains the dev set, so that both agree.
lock: .venv/.dev
	$(LOCK) $(RUN_SET) $(ARGS) -o requirements.lock
	$(LOCK) $(RUN_SET) $(ARGS) --extra traces --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) $(CLIENTS).in $(ARGS) -o $(CLIENTS).lock

clean:
	rm -rf .venv .venv-clients build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
