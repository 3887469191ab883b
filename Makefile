# Targets are explained in README.md. Everything is installed into .venv; nothing outside this folder is touched.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
QUICK ?=
RECIPE ?= archiver/recipes/default.yaml
SET ?=
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
STAMP := $(VENV)/.installed

.PHONY: setup archive serve stop test test-clients lint check-lock dashboard bench bench-compression bench-generation \
	bench-generation-load bench-generation-adapters bench-architectures bench-language bench-speech bench-recommendation \
	bench-peers clean
.DELETE_ON_ERROR:

# 3.11 is what the tests run on: 3.12 and 3.13 get a warning, any other Python is refused.
define PYTHON_CHECK
import sys
found = "%d.%d" % sys.version_info[:2]
if found not in ("3.11", "3.12", "3.13"):
    sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, {sys.executable} is {found}: make setup PYTHON=/path/to/python3.11")
if found != "3.11":
    print(f"warning: the tests are run on Python 3.11; for {found} only the locked dependencies are known to resolve", file=sys.stderr)
endef
export PYTHON_CHECK

setup: $(STAMP)

$(STAMP): requirements.lock requirements-no-deps.lock setup.cfg pyproject.toml
	@$(PYTHON) -c "$$PYTHON_CHECK"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-no-deps.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

archive: setup
	$(BIN)/python -m archiver build $(RECIPE) $(foreach item,$(SET),--set $(item))

serve: setup
	@$(BIN)/python -m archiver.torchserve.serve start

stop: setup
	@$(BIN)/python -m archiver.torchserve.serve stop

test: setup
	$(BIN)/python -m pytest $(TESTS)

# Real clients from PyPI against live servers, in an environment of their own.
test-clients: setup $(CLIENTS)/.installed
	MARPRESS_CLIENTS=$(CURDIR)/$(CLIENTS)/bin/python $(BIN)/python -m pytest -n 0 tests/clients

$(CLIENTS)/.installed: requirements-clients.txt
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@echo "installing other people's clients into $(CLIENTS) (some minutes the first time)"
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-clients.txt
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The Grafana dashboard, from the table of what workers measure.
dashboard: setup
	$(BIN)/python -m archiver.torchserve.dashboard > docs/grafana.json

check-lock: setup
	$(BIN)/python tools/check_lock.py

bench: setup
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.table

bench-compression: setup
	$(BIN)/python -m benchmarks.compression $(RECIPES)

bench-generation: setup
	$(BIN)/python -m benchmarks.generation

# ARCHIVE: of a language model whose max_length is 2048 or more
bench-generation-load: setup
	$(BIN)/python -m benchmarks.generation_load $(ARCHIVE) $(PART)

# ARCHIVE: of a language model with adapters
bench-generation-adapters: setup
	$(BIN)/python -m benchmarks.generation_adapters $(ARCHIVE)

bench-language: setup
	$(BIN)/python -m benchmarks.language $(PART)

bench-architectures: setup
	$(BIN)/python -m benchmarks.architectures --table docs/models.md

# MODEL: a folder with openai/whisper-base; LIST: sound files and transcripts.
bench-speech: setup
	$(BIN)/python -m benchmarks.speech $(MODEL) $(LIST)

bench-peers: setup
	$(BIN)/python -m benchmarks.peers $(PART)

# DATA: a folder with interactions.tsv (user, item, timestamp) and items.tsv (item, title)
bench-recommendation: setup
	$(BIN)/python -m benchmarks.recommendation $(DATA)

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find archiver handlers tests -name __pycache__ -type d -prune -exec rm -rf {} +
