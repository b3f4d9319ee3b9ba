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
# One of `tools/experiment.py list`, or all
EXPERIMENT ?= all
# Each has servers of its own.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup servers demo experiments test test-fast lint format bench bench-ci wheels clean

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

experiments: setup ## the paper's experiments at pocket scale -> experiments/pocket/results (EXPERIMENT=table2, SEEDS=3)
	$(RUN)/python tools/experiment.py run $(EXPERIMENT) --seeds $(SEEDS) --output experiments

servers: setup ## install the object stores and the web server that the tests read from (what cannot be had is skipped)
	$(RUN)/python tools/install_servers.py

test: setup servers ## all tests
	$(RUN)/pytest -n $(TEST_PROCESSES) --dist loadfile

test-fast: setup ## all tests but the slow ones
	$(RUN)/pytest -n $(TEST_PROCESSES) --dist loadfile -m "not slow"

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

bench: setup ## reading, indexing, sampling and streaming against their peers, memory, foreground, a million slides (results: build/bench)
	$(UV) sync --locked --group bench
	$(RUN)/python packages/online-patching/benchmarks/indexing.py
	$(RUN)/python packages/online-patching/benchmarks/catalog_scale.py
	$(RUN)/python packages/online-patching/benchmarks/reading.py
	$(RUN)/python packages/online-patching/benchmarks/remote.py
	$(RUN)/python packages/online-patching/benchmarks/memory.py
	$(RUN)/python packages/online-patching/benchmarks/sampling.py
	$(RUN)/python packages/online-patching/benchmarks/foreground_cost.py
	$(RUN)/python packages/online-patching/benchmarks/streaming.py

bench-ci: setup ## has a model become worse? the gate of fm-eval on a tiny model and tiny data, the same everywhere
	$(RUN)/python tools/bench_ci.py

wheels: setup ## build each wheel and import it alone in a fresh environment
	$(RUN)/python tools/check_wheels.py

clean: ## remove what the commands made (not .uv and .venv)
	rm -rf dist build demo experiments .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
