# make demo    run the main job: three tenants, their limits, real paging, a picture
# make test    pass all tests (style, types and import order among them)
# make fuzz    a million fuzzed inputs against the machine (JOBS=2 RUNS=1000000; goes on where it stopped)
# make soak    ten minutes of random tenants, limits and kills, then a thousand kills of supervisors
# make check   style, types and import order alone
# make bench   measure, each figure as a ratio against a named peer
# make venv    the virtual environment alone, with everything Python in it
# make lock    compile requirements/*.txt anew (see CONTRIBUTING.md)
# make clean   remove .venv and caches
#
# Each target sets up what it needs first; nothing is done twice.

PYTHON ?= python3
JOBS ?= $(shell nproc)
RUNS ?= 1000000
BIN := .venv/bin
SETUP := $(PYTHON) tools/setup.py

.PHONY: help demo test fuzz soak check bench venv lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@$(SETUP) demo
	$(BIN)/epcgroup demo $(ARGS)

test:
	@$(SETUP) test
	$(BIN)/python -m pytest $(ARGS)

fuzz:
	@$(SETUP) venv
	$(BIN)/python -m tests.fuzz.run --jobs $(JOBS) --runs $(RUNS) $(ARGS)

soak:
	@$(SETUP) test
	$(BIN)/python -m tests.soak.soak $(ARGS)
	$(BIN)/python -m tests.soak.kills

check:
	@$(SETUP) venv
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench:
	@$(SETUP) bench
	$(BIN)/python bench/run.py $(ARGS)

venv:
	@$(SETUP) venv

lock:
	$(PYTHON) tools/lock.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
