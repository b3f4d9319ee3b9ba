# Two commands do everything: `make demo` and `make test`. Python 3.11+, git and make are all that is needed.
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .uv/bin/uv
RUN := .venv/bin
SOURCES := packages/online-patching/src packages/ssl-train/src packages/fm-eval/src
# Own slides and evaluation data: make demo SLIDES="folder or URL" EVAL=folder [MPP="0.25 or ID=0.25 ..."] [SEEDS=3]
SLIDES ?=
EVAL ?=
MPP ?=
SEEDS ?= 1
CONFIG ?= configs/ssl/demo.yaml
OUTPUT ?= demo

.DEFAULT_GOAL := help
.PHONY: help setup servers demo test test-fast lint format bench wheels clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.synced ## install the three packages and all tools into .venv

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: $(UV) uv.lock pyproject.toml $(wildcard packages/*/pyproject.toml)
	$(UV) sync --locked --group dev --compile-bytecode
	@$(RUN)/python -m compileall -q $(SOURCES)
	@touch $@

demo: setup ## the main job: slides in a bucket -> catalog -> DINO -> evaluation -> demo/report.html
	$(RUN)/python tools/demo.py --config $(CONFIG) --seeds $(SEEDS) --output $(OUTPUT) \
		$(if $(SLIDES),--slides $(SLIDES)) $(if $(EVAL),--eval $(EVAL)) $(foreach m,$(MPP),--mpp $(m))

servers: setup ## install the object stores and the web server that the tests read from (what cannot be had is skipped)
	$(RUN)/python tools/install_servers.py

test: setup servers ## all tests
	$(RUN)/pytest

test-fast: setup ## all tests but the slow ones
	$(RUN)/pytest -m "not slow"

lint: setup ## style, types, and the rules of the architecture
	$(UV) lock --check
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy $(SOURCES)
	MYPYPATH=tools $(RUN)/mypy tools
	$(RUN)/lint-imports

format: setup ## mend the style where a program can
	$(RUN)/ruff check --fix
	$(RUN)/ruff format

bench: setup ## reading and indexing against their peers, memory, and a catalog of a million slides (results: build/bench)
	$(UV) sync --locked --group bench
	$(RUN)/python packages/online-patching/benchmarks/indexing.py
	$(RUN)/python packages/online-patching/benchmarks/catalog_scale.py
	$(RUN)/python packages/online-patching/benchmarks/reading.py
	$(RUN)/python packages/online-patching/benchmarks/remote.py
	$(RUN)/python packages/online-patching/benchmarks/memory.py

wheels: setup ## build each wheel and import it alone in a fresh environment
	$(RUN)/python tools/check_wheels.py

clean: ## remove what the commands made (not .uv and .venv)
	rm -rf dist build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
