# Two commands take a fresh machine to a result and to green tests: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CAPTURE=1 also installs torch and transformers and runs the tests of trace capture.
CAPTURE ?=
TORCH ?= torch==2.13.0
OUT ?= reports/demo

.PHONY: demo test check format bench docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into $(VENV), simulate, and write $(OUT)/report.html"
	@echo "make test    install into $(VENV) and run every test"
	@echo "make check   ruff and mypy"
	@echo "make bench   print the speed figures"
	@echo "make docs    write the generated pages of docs/"

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "moesim needs Python 3.11 or newer; set PYTHON="'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,calibration]'
	touch $@

$(VENV)/.capture: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) -e '.[capture]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/python -m moesim demo --out $(OUT)

test: $(VENV)/.dev $(if $(CAPTURE),$(VENV)/.capture)
	$(BIN)/python -m pytest -n 2 tests

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist
