# Everything runs inside .venv, which is made on the first call and renewed when the dependencies change.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt $(wildcard setup.py) $(shell find src/quire/ops/cpu -name '*.cpp' -o -name '*.h' -o -name '*.inl')

.PHONY: help demo serve test lint format types bench docs clean

help:
	@echo "make demo    install, fetch the default model, serve it, ask it 8 questions at once"
	@echo "make serve   install and leave the server running on port 8000 (ARGS='--port 9000' adds flags)"
	@echo "make test    run the tests (JOBS=4 in four processes, each of up to 7 GB; ARGS='tests/kv' some of them)"
	@echo "make lint    style, types and layers"
	@echo "make bench   run Quire beside llama.cpp on this machine's CPU"
	@echo "make docs    write the generated pages of docs/ anew, build the documentation into site/"

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

serve: $(VENV)/.installed
	$(BIN)/quire serve $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/compare_cpu.py $(ARGS)

docs: $(VENV)/.installed-dev
	$(PIP) install -q -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	@echo "Making $(VENV) with $(PYTHON)"
	@test -n "$(PYTHON)" || { echo "Quire needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv failed; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	@echo "Installing; compiling the CPU kernels takes a minute or four, once"
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build site .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info src/quire/ops/cpu/_kernels.*.so
