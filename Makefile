# `make` explains itself. Everything runs in .venv, which `make setup` builds from pyproject.toml and constraints.txt.

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
endif
EXTRAS ?= dev,log
WORKERS ?= 2
EXPERIMENT ?=
ARGS ?=
SMALL := --games Boxing Krull KungFuMaster CrazyClimber RoadRunner --preset small --train-ratio 32 --envs 2 --seeds 2 --episodes 20
SMOKE := --games Asterix Frostbite --preset nano --train-ratio 16 --seeds 2 --steps 600 --episodes 2

comma := ,
BIN := .venv/bin
STAMP := .venv/.installed-$(subst $(comma),-,$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help setup train studio notebook test test-slow lint docs bench bench-gpu sweep atari100k atari100k-small atari100k-smoke clean

help:  ## Show this list
	@echo "jaxwm: world-model reinforcement learning in JAX"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r name text; do printf '%-22s %s\n' "$$name" "$$text"; done
	@echo
	@echo "Arguments go through ARGS, for example: make train ARGS='--help', make test ARGS='tests/unit/test_replay.py -x'."
	@echo "On an NVIDIA GPU: make setup EXTRAS=dev,log,cuda (or cuda13). Another Python (3.11 or newer): PYTHON=python3.12."

setup: $(STAMP)  ## Build .venv with every dependency at its tested version

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "jaxwm needs Python 3.11 or newer; name one with: make setup PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up .venv (the first time downloads about 1 GB) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=23.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

train: setup  ## Train Dreamer V3 (on Catch; ARGS='--env ...' for more)
	$(BIN)/jaxwm train dreamer-v3 $(ARGS)

notebook: setup  ## Open the notebooks of experiments/ in Jupyter Lab (installs it into .venv the first time)
	@test -x $(BIN)/jupyter-lab || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	$(BIN)/jupyter lab --notebook-dir=experiments $(ARGS)

studio: setup  ## Open the studio: play in a dream, watch a maze being learned (ARGS='RUN ...' for your runs)
	@$(BIN)/python -c 'import fastapi, uvicorn, websockets' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[studio]'
	$(BIN)/jaxwm studio $(ARGS)

# Tests and benchmarks keep their compiled programs here; commands share the cache of `jaxwm` itself.
test test-slow bench bench-gpu: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

test: setup  ## Run the tests, about twelve minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup  ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup  ## Measure speed, memory and compile times, under ten minutes (ARGS='--help' for more)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-gpu: setup  ## Check every system on an NVIDIA GPU and measure there, ten minutes (benchmarks/gpu_checklist.md)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

sweep: setup  ## Run EXPERIMENT=experiments/NAME.py on every device, with a report (the same command goes on)
	$(BIN)/jaxwm sweep $(EXPERIMENT) $(ARGS)

atari100k: setup  ## Reproduce the Atari-100k table: 26 games, 5 seeds (ARGS='--games Pong Boxing --seeds 3' cuts it)
	$(BIN)/jaxwm sweep experiments/atari100k.py $(ARGS)

atari100k-smoke: setup  ## The same on two games with a tiny model: minutes on a CPU, scores of no worth
	$(BIN)/jaxwm sweep experiments/atari100k.py --root runs/atari100k-smoke $(SMOKE) $(ARGS)

atari100k-small: setup  ## The same on five games with a model for two CPU cores: hours a game (the same command goes on)
	$(BIN)/jaxwm sweep experiments/atari100k.py --root runs/atari100k-small $(SMALL) $(ARGS)

docs: setup  ## Build the site of the documentation into site/ (installs mkdocs into .venv the first time)
	@test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m docs.tables --check
	$(BIN)/mkdocs build --strict $(ARGS)

clean:  ## Remove caches and builds (keeps runs/ and .venv)
	rm -rf .cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
