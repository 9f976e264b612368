# Two commands take a fresh machine to a result and to green tests: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Byte code is written when a module is first imported: compiling all of them takes half of an installation.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# It is kept in the environment, also where the shell forbids to write it beside the sources: a suite of many
# processes would else compile the same libraries in each.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode
# CAPTURE=1 also installs torch and transformers and runs the tests of trace capture.
CAPTURE ?=
TORCH ?= torch==2.13.0
OUT ?= reports/demo
# The machine at hand: its profile, and a Python with torch and transformers.
MACHINE ?= epyc_2core_vm
TORCH_PYTHON ?= $(BIN)/python
DEMO := $(CURDIR)/reports/calibrate_demo
DEMO_FOLDER := $(DEMO)/calibration/measurements/$(MACHINE)
DEMO_MODELS := tiny_olmoe=traces/tiny_olmoe/checkpoint \
	qwen3_moe_small=calibration/models/qwen3_moe_small \
	mixtral_small=calibration/models/mixtral_small

.PHONY: demo calibrate-demo test check format bench docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into $(VENV), simulate, and write $(OUT)/report.html"
	@echo "make calibrate-demo  measure this CPU, fit, predict whole models, compare (under 5 minutes)"
	@echo "make test    install into $(VENV) and run every test"
	@echo "make check   ruff and mypy"
	@echo "make bench   print the speed figures"
	@echo "make docs    write the generated pages of docs/"

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "moesim needs Python 3.11 or newer; set PYTHON="'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev,calibration]'
	touch $@

$(VENV)/.capture: $(VENV)/.dev
	$(PIP) $(TORCH) -e '.[capture]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/python -m moesim demo --out $(OUT)

calibrate-demo: $(VENV)/.dev $(if $(filter $(BIN)/python,$(TORCH_PYTHON)),$(VENV)/.capture)
	cd moesim/kernels && $(abspath $(TORCH_PYTHON)) -m harness --name $(MACHINE) --device cpu --dtype fp32 \
		--minutes 2 --out $(DEMO_FOLDER)
	cd moesim/kernels && $(abspath $(TORCH_PYTHON)) -W ignore -m harness --name $(MACHINE) --device cpu \
		--dtype fp32 --family step --out $(DEMO_FOLDER) \
		$(foreach pair,$(DEMO_MODELS),--model $(CURDIR)/$(lastword $(subst =, ,$(pair))))
	mkdir -p $(DEMO)/calibration/fits
	$(BIN)/python -m moesim calibrate fit $(MACHINE) --quick --from $(DEMO_FOLDER) \
		--out $(DEMO)/calibration/fits/$(MACHINE).yaml
	MOESIM_PATH=$(DEMO) $(BIN)/python -m moesim calibrate steps $(MACHINE)_x1 --measured $(DEMO_FOLDER) \
		$(addprefix --model ,$(DEMO_MODELS))

test: $(VENV)/.dev $(if $(CAPTURE),$(VENV)/.capture)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

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
