# Every target sets up what it needs in .venv and does nothing twice. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL: # one build at a time: ninja uses all cores
.PHONY: help setup demo demo-one demo-ready extension-for-demo jax test test-quick test-all test-cpp test-races mutate-synchronisations test-emulated test-torch test-frameworks sanitizers soak lint format docs sdist wheel bench bench-ready bench-compare bench-peer study gpu-check gpu-check-sanitizers gpu-check-dry peer-test clean

# The default interpreter if torch and we support it, else the first other one; `make PYTHON=...` overrides.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10; do \
  "$$p" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
STAMP := .venv/stamps
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
NATIVE := CMakeLists.txt pyproject.toml $(shell find cmake cpp cuda -type f 2>/dev/null)
CPP := $(shell find cpp cuda examples/cpp tests/cpp tests/emulation bench/cpp tools \( -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

# Two workers keep two cores busy: ranks of a test wait for each other. PARALLEL= runs one test after the other.
PARALLEL ?= -n auto --maxprocesses 4 --dist worksteal

# TorchJD's test files that have to do with the methods we have.
TORCHJD_TESTS := values mean mgda cagrad pcgrad gradvac upgrad dualproj imtl_g aligned_mtl nash_mtl fairgrad config krum
TORCHJD_DTYPE ?= float64

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP)/venv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found on the PATH; install one or run make PYTHON=/path/to/python"; exit 1; }
	@echo "== creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv && mkdir -p $(STAMP) && touch $@

$(STAMP)/build: requirements/build.txt $(STAMP)/venv
	@echo "== installing the pinned build requirements (torch among them)"
	@$(PIP) install -r $< && touch $@

$(STAMP)/dev: requirements/dev.txt $(STAMP)/build
	@echo "== installing the pinned test and lint requirements"
	@$(PIP) install -r $< && touch $@

$(STAMP)/demo: requirements/demo.txt $(STAMP)/build
	@echo "== installing the pinned requirements of the demo"
	@$(PIP) install -r $< && touch $@

$(STAMP)/study: requirements/study.txt requirements/demo.txt $(STAMP)/build
	@echo "== installing the pinned requirements of the study"
	@$(PIP) install -r $< && touch $@

$(STAMP)/docs: requirements/docs.txt $(STAMP)/build
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: the site needs Python 3.11 or newer (Sphinx does); run make PYTHON=/path/to/python after rm -rf .venv")'
	@echo "== installing the pinned requirements of the site"
	@$(PIP) install -r $< && touch $@

$(STAMP)/peer: requirements/peer.txt $(STAMP)/dev
	@echo "== installing TorchJD and the solvers it calls"
	@$(PIP) install -r $< && touch $@

# One CMake tree holds the extension, the extension with emulated CUDA kernels and the C++ tests: what they have in common
# is compiled once. ninja shows how far it is. $(call build,TARGETS,OPTIONS)
TREE := build/tree
build = export PATH="$(CURDIR)/$(BIN):$$PATH"; \
  cmake -S . -B $(TREE) -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DBUCKET_MOO_TESTS=ON \
    -DBUCKET_MOO_PTXAS_REPORT=ON $(2) > /dev/null && cmake --build $(TREE) --target $(1)
# pip finds everything compiled in that tree. $(call install,OPTIONS)
install = PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) $(1) --no-build-isolation --no-deps --editable . -C build-dir=$(TREE)

PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(STAMP)/extension: $(NATIVE) $(STAMP)/build
	@echo "== building the extension"
	@rm -f $(STAMP)/extension_without_cuda
	@$(call build,_C,-DBUCKET_MOO_CUDA=AUTO) && $(call install,install) && touch $@

$(STAMP)/extension_without_cuda: $(NATIVE) $(STAMP)/build
	@echo "== building the extension without CUDA kernels, for there is no GPU driver here; make setup builds them too"
	@$(call build,_C,-DBUCKET_MOO_CUDA=OFF) && $(call install,install) && touch $@

# The extension must be there. Nothing that is compiled is compiled again. Without jaxlib there is no target bucket_moo_jax,
# and the tests that want it are skipped.
$(STAMP)/jax: requirements/jax.txt $(NATIVE) $(STAMP)/build
	@echo "== installing the pinned JAX and building what it calls"
	@$(PIP) install -r $<
	@if $(BIN)/python -c 'import jaxlib' 2> /dev/null; \
	  then { $(call build,bucket_moo_jax,); } && cmake --install $(TREE) --component jax --prefix "$$($(BIN)/python $(PURELIB))" > /dev/null; \
	  else echo "== no JAX for this Python: 3.11 or newer"; fi
	@touch $@

jax: extension-for-demo $(STAMP)/jax ## Install JAX, build the handlers that it calls

# The kernels take minutes to compile, and a machine without a GPU driver cannot run them. libcuda.so.1 is what the CUDA
# runtime looks for itself. What is there already is kept.
extension-for-demo: $(STAMP)/build
	@if [ -e $(STAMP)/extension ] || $(BIN)/python -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2> /dev/null; \
	  then $(MAKE) -s --no-print-directory $(STAMP)/extension; \
	  else $(MAKE) -s --no-print-directory $(STAMP)/extension_without_cuda; fi

setup: $(STAMP)/extension $(STAMP)/dev ## Create .venv, install what is pinned, build the extension
	@echo "== set up: $$($(BIN)/python -c 'import bucket_moo_ext as m; print(m.build_info())')"

demo-ready: extension-for-demo $(STAMP)/demo
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: the demo needs Python 3.11 or newer (transformers does); run make PYTHON=/path/to/python after rm -rf .venv")'
	@echo "== demo"
	@$(BIN)/python examples/multilingual/corpus.py

demo: demo-ready ## Fine-tune a language model on four languages, plain DDP beside three ways (ARGS=...)
	@OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 4 \
	  examples/multilingual/train.py $(ARGS)

# Two hours on two cores; goes on where it was interrupted.
STUDY ?= studies/multilingual/small.toml
study: demo-ready $(STAMP)/study ## Run a registered study of methods beside fair means (STUDY=file.toml ARGS=...)
	@OMP_NUM_THREADS=1 $(BIN)/python studies/multilingual/study.py $(STUDY) $(ARGS)

demo-one: demo-ready ## The same in one process, a pass for each language (ARGS=...)
	@$(BIN)/python examples/multilingual/train.py --layout passes --name one $(ARGS)

test-cpp: $(STAMP)/build ## Build and run the torch-free C++ tests
	@echo "== C++ core and kernels: build, test"
	@$(call build,tests/cpp/all tests/emulation/all examples/cpp/all bench/cpp/all) && \
	  ctest --test-dir $(TREE) --output-on-failure

test-races: $(STAMP)/build ## Run the kernels' C++ tests under the race detector
	@echo "== kernels under the race detector"
	@$(call build,races) && ctest --test-dir $(TREE) -C races -L races --output-on-failure -j $$(nproc)

mutate-synchronisations: $(STAMP)/build ## Take each synchronisation of the kernels out in turn; what finds it goes into docs/races.md
	@$(call build,races) && $(BIN)/python tests/emulation/mutate_synchronisations.py $(ARGS)

# The device path needs no GPU to be tested: its kernels are compiled for the CPU, and the extension reduces CPU tensors
# with them. Installed apart from .venv, whose packages it uses.
EMULATED := build/emulated
$(STAMP)/emulated: $(NATIVE) $(shell find tests/emulation -type f) $(STAMP)/dev
	@echo "== building the extension with emulated CUDA kernels"
	@$(call build,_C_emulated)
	@$(BIN)/python -m venv --without-pip $(EMULATED)
	@$(BIN)/python $(PURELIB) > "$$($(EMULATED)/bin/python $(PURELIB))/shared.pth"
	@$(call install,--python $(EMULATED)/bin/python install --ignore-installed) \
	  -C build.targets=_C_emulated -C install.components=emulated -C install.strip=false && touch $@

test-emulated: $(STAMP)/emulated ## Run the tests whose path differs on a device, over emulated CUDA kernels
	@echo "== Python tests of the device path, over emulated CUDA kernels"
	@$(EMULATED)/bin/python -m pytest $(PARALLEL) -m "device and not host" $(ARGS)

test: $(STAMP)/extension $(STAMP)/dev $(STAMP)/study $(STAMP)/jax test-cpp test-races test-emulated ## Run all tests
	@echo "== Python tests"
	@$(BIN)/python -m pytest $(PARALLEL)

test-quick: $(STAMP)/extension $(STAMP)/dev ## Run what a change in Python is tested with, in under two minutes (ARGS=tests/...)
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not build and not slow" $(ARGS)

test-all: test sanitizers test-frameworks ## Run all tests, with the trainers too, and what has a nightly size at that size
	@echo "== nightly sizes"
	@$(TREE)/tests/cpp/test_methods 12 && $(TREE)/tests/cpp/sweep_certificates 100000 20260601
	@BUCKET_MOO_NIGHTLY=1 $(BIN)/python -m pytest -m nightly

sanitizers: $(STAMP)/dev ## Run the C++ tests under the address, undefined-behaviour and thread sanitizers
	@for preset in asan tsan; do \
	  echo "== C++ tests, preset $$preset"; \
	  PATH="$(CURDIR)/$(BIN):$$PATH"; \
	  { cmake --preset $$preset && cmake --build --preset $$preset; } > build/$$preset.log 2>&1 || { tail -30 build/$$preset.log; exit 1; }; \
	  ctest --preset $$preset || exit 1; \
	done

# Trainers are big and want versions of their own: an environment beside .venv, which sees what that has.
FRAMEWORKS := build/frameworks
$(STAMP)/frameworks: requirements/frameworks.txt $(STAMP)/demo $(STAMP)/dev
	@echo "== installing the pinned trainers in $(FRAMEWORKS)"
	@$(BIN)/python -m venv --without-pip --clear $(FRAMEWORKS)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(FRAMEWORKS)/bin/python $(PURELIB))/shared.pth"
	@$(PIP) --python $(FRAMEWORKS)/bin/python install -r $< && touch $@

test-frameworks: $(STAMP)/extension $(STAMP)/frameworks ## Run the tests that need the trainers: transformers, TRL, Accelerate, Lightning, DeepSpeed (ARGS=...)
	@echo "== Python tests with the trainers"
	@BUCKET_MOO_FRAMEWORKS=1 OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest $(PARALLEL) tests/frameworks $(ARGS)

# Another torch than the pinned one, in an environment of its own. A CPU build is taken where pip's indexes have one;
# otherwise the default wheel, which brings its CUDA packages (5 GB: `import torch` fails without them).
TORCH ?= 2.15.0
OTHER := build/torch-$(TORCH)
OTHER_PIP := $(OTHER)/venv/bin/python -m pip --quiet --disable-pip-version-check
$(OTHER)/stamp: $(NATIVE) requirements/dev.txt $(STAMP)/venv
	@echo "== installing torch $(TORCH) and building the extension against it, without CUDA kernels, in $(OTHER)"
	@$(BIN)/python -m venv $(OTHER)/venv
	@grep -hvE '^(-r|torch==)' requirements/build.txt requirements/dev.txt > $(OTHER)/requirements.txt
	@$(OTHER_PIP) install torch==$(TORCH) -r $(OTHER)/requirements.txt
	@PATH="$(CURDIR)/$(OTHER)/venv/bin:$$PATH" $(OTHER_PIP) install --no-build-isolation --no-deps \
	  -C build-dir=$(OTHER)/tree -C cmake.define.BUCKET_MOO_CUDA=OFF . && touch $@

test-torch: $(OTHER)/stamp ## Build against another torch (TORCH=2.15.0) and run the tests that meet it: hooks, collectives, functions
	@echo "== Python tests against torch $(TORCH)"
	@$(OTHER)/venv/bin/python -m pytest $(addprefix tests/,hooks/test_ddp.py hooks/test_ddp_new_options.py collectives/test_collectives.py \
	  functional/test_functional.py functional/test_operators.py) $(PARALLEL) $(ARGS)

ROUNDS ?= 10
soak: $(STAMP)/extension $(STAMP)/dev $(STAMP)/study ## Repeat the tests with fresh seeds, ROUNDS times (ARGS=tests/...); prints the seed of each round
	@for round in $$(seq $(ROUNDS)); do \
	  export BUCKET_MOO_TEST_SEED=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	  echo "== round $$round of $(ROUNDS): BUCKET_MOO_TEST_SEED=$$BUCKET_MOO_TEST_SEED"; \
	  $(BIN)/python -m pytest -q -m "not build" $(ARGS); \
	done

lint: $(STAMP)/extension $(STAMP)/dev ## Check format, style and types
	@echo "== ruff, mypy, clang-format, typos"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CPP)
	@! LC_ALL=C.UTF-8 grep -nE '^.{121,}$$' $(CPP) # comments too, which clang-format leaves as they are
	@$(BIN)/typos

format: $(STAMP)/dev ## Format all sources
	@$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format . ; $(BIN)/clang-format -i $(CPP)

sdist: $(STAMP)/build ## Write a source distribution into dist
	@mkdir -p dist && $(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("dist")' > /dev/null && ls dist/*.tar.gz

wheel: $(STAMP)/extension $(STAMP)/dev ## Write a wheel for this torch (and CUDA, if kernels are built) into dist, checked
	@echo "== wheel"
	@rm -rf build/wheel && PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel \
	  -C build-dir=$(TREE) .
	@$(BIN)/python tools/name_wheel.py build/wheel/*.whl dist

# No network: what the pages show is here.
docs: $(STAMP)/extension $(STAMP)/docs ## Build the site into build/docs/html; warnings and dead links are errors
	@echo "== docs"
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -d build/docs/doctrees $(ARGS) docs build/docs/html
	@echo "build/docs/html/index.html"

# Ratios to what is measured beside, and counts of instructions; the times are a CPU's, and need no kernels for GPUs.
BENCH := OMP_NUM_THREADS=1 PYTHONPATH=bench $(BIN)/python -m pytest -q -c bench/pytest.ini bench
INSTRUCTIONS := $(TREE)/bench/cpp/instructions
bench-ready: extension-for-demo $(STAMP)/dev
	@$(call build,instructions)

bench: bench-ready ## Measure kernels, solvers, reductions, steps and memory beside their references (ARGS="-k kernels")
	@mkdir -p build/bench
	@$(BENCH) --instructions $(INSTRUCTIONS) --bench-markdown build/bench/last.md $(ARGS)
	@echo "== build/bench/last.json, build/bench/last.md; make bench-compare BASE=<file or git revision> compares"

bench-compare: bench-ready ## Say what got worse since BASE, a file of make bench or a git revision, which is built (ARGS=...)
	@test -n "$(BASE)" || { echo "error: make bench-compare BASE=<file of make bench, or git revision>"; exit 2; }
	@$(BIN)/python bench/compare.py $(BASE) $(ARGS)

bench-peer: bench-ready $(STAMP)/peer ## Measure solves and steps of one process beside TorchJD's (ARGS=...)
	@mkdir -p build/bench
	@$(BENCH)/peer.py --bench-json build/bench/peer.json --bench-markdown build/bench/peer.md $(ARGS)

gpu-check: ## On a machine with a GPU: build, tests and benchmarks, results into bench/results; PYTHON's own packages
gpu-check-sanitizers: ## The same, with every kernel under compute-sanitizer in place of tests and benchmarks
gpu-check-sanitizers: GPU_CHECK := --sanitizers
gpu-check gpu-check-sanitizers:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found on the PATH; run make gpu-check PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) tools/gpu_check.py $(GPU_CHECK) $(ARGS)

gpu-check-dry: $(STAMP)/emulated ## Run all that gpu-check and gpu-check-sanitizers do over emulated CUDA kernels, and keep no result
	@$(EMULATED)/bin/python tools/gpu_check.py --dry-run

peer-test: $(STAMP)/extension $(STAMP)/peer ## Compare with TorchJD; TORCHJD=/path/to/its/checkout runs its own tests too
	@echo "== our tests against TorchJD"
	@$(BIN)/python -m pytest tests/peer
ifdef TORCHJD
	@echo "== TorchJD's own tests of its aggregators, unmodified, on our solvers, in $(TORCHJD_DTYPE)"
	@cd "$(TORCHJD)" && OMP_NUM_THREADS=1 PYTEST_TORCH_DTYPE=$(TORCHJD_DTYPE) PYTHONPATH="$(CURDIR)/tests/peer:tests" PYTHONDONTWRITEBYTECODE=1 \
	  "$(abspath $(BIN))/python" -m pytest -p torchjd_plugin -p no:cacheprovider -c pyproject.toml -q -rfE \
	  $(foreach name,$(TORCHJD_TESTS),$(wildcard $(TORCHJD)/tests/unit/aggregation/test_$(name).py)) $(ARGS)
else
	@echo "TorchJD's source distribution holds no tests. To run its own, give a checkout: make peer-test TORCHJD=..."
endif

clean: ## Remove what was built, keep .venv
	rm -rf build .mypy_cache .ruff_cache .pytest_cache
	rm -f $(addprefix $(STAMP)/,extension extension_without_cuda emulated frameworks jax)
