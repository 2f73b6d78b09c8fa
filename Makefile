# make install   .venv with everything; a second time does nothing
# make demo      three hospitals, end to end, on this machine
# make test      what CI runs: style, types, import rules, tests
# make faults    real processes that are killed, cut off, filled up; a quarter of an hour
# make fuzz      the parsers, coverage-guided, for MINUTES=10; stops by itself
# make bench     the organ beside its peers, quick

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The build that is tested. On a machine without an NVIDIA card tools/install.py sees to it that no CUDA is fetched.
TORCH  ?= torch==2.13.0
# Another age implementation, for the interoperability tests: exact versions by digest, from the machine's npm registry.
NODE_MODULES := tests/interop/node_modules/.installed
MINUTES ?= 10

# Threads that wait must not spin: two programs on two cores would stall each other.
export OMP_WAIT_POLICY := PASSIVE
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: install demo test coverage lint debian faults breaks bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --torch "$(TORCH)"
	touch $@

demo: install
	$(BIN)/not-fed demo --out demo $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A PKCS#11 token and another clock for the tests: installed for root on Debian, otherwise the command is printed.
debian:
	$(PYTHON) tools/debian.py

$(NODE_MODULES): tests/interop/package-lock.json $(VENV)/.installed
	cd tests/interop && $(CURDIR)/$(BIN)/npm ci --silent
	touch $@

test: lint debian $(NODE_MODULES)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not deployment and not faults and not breaks" $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m deployment $(ARGS)
	$(BIN)/pytest -m slow $(ARGS)

# Lines that no test reaches; a quarter slower than the tests alone.
coverage: install debian $(NODE_MODULES)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not deployment and not faults and not breaks" --cov --cov-report=term $(ARGS)

# Real processes, and everything of docs/faults.md that takes minutes: not with every change, before every release.
faults: install debian
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults $(ARGS)

# Every guarantee broken on purpose, one after the other, to see its test go red.
breaks: install debian
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m breaks $(ARGS)

fuzz: install
	$(BIN)/pip --quiet --disable-pip-version-check install --editable ".[fuzz]"
	$(BIN)/python -m tools.fuzz --minutes $(MINUTES) $(ARGS)

bench: install
	$(BIN)/not-fed bench organ --quick $(ARGS)

clean:
	rm -rf $(VENV) tests/interop/node_modules dist build .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
