# Two commands matter: `make wheel` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH ?= 2.13.0

# What a container sets for its users' pip and Python, as NVIDIA's does, is not for the pinned tools.
ifdef PIP_CONSTRAINT
export PIP_CONSTRAINT := /dev/null
endif
export PIP_USER := 0
unexport PYTHONSAFEPATH

# Empty: the default, which flash_attn3_sm121/builds.py names.
PROFILE ?=
MODELS ?=
ARCHS ?=
JOBS ?=
PLATFORM ?=
PROXY ?=
PIN ?=
LOCK ?=
OUT ?= wheels
SAMPLE ?= 4
HARNESS_FLAGS = $(if $(PROFILE),--profile $(PROFILE)) $(if $(MODELS),--models "$(MODELS)") $(if $(ARCHS),--archs "$(ARCHS)") $(if $(JOBS),--jobs $(JOBS)) $(if $(PLATFORM),--platform $(PLATFORM)) \
  $(if $(PROXY),--proxy $(PROXY)) $(if $(PIN),--pin "$(PIN)") $(if $(LOCK),--lock "$(LOCK)")

.PHONY: help venv wheel wheel-fa2 plan verify reproducible measure prove tiles sentry test test-quick test-torch test-gpu fresh test-aarch64 lint lint-ci ci-local format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  What is built: PROFILE= or MODELS=, ARCHS=, PIN= or LOCK=, PLATFORM=, PROXY='
	@echo '  with JOBS= compilers at once; docs/building.md says what each may be.'

# An environment with the packages of a list. Where two makes want it at once, the second waits and finds it made.
# One without pip was cut short, or made before python3-venv was installed: it is made again.
define environment
@mkdir -p $(@D)
@flock $(@D) $(SHELL) -ec 'test ! $@ -nt $< || exit 0; test -x $(@D)/bin/python -a -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D); \
  $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<; touch $@'
endef

$(VENV)/.stamp-%: requirements-%.txt
	$(environment)

# The harness needs no torch: torch's headers are fetched and pinned by themselves. Another TORCH is another stamp.
$(VENV)/.stamp-torch-$(TORCH): | $(VENV)/.stamp-dev
	flock $(VENV) $(PY) -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@rm -f $(VENV)/.stamp-torch*
	@touch $@

venv: $(VENV)/.stamp-dev $(VENV)/.stamp-torch-$(TORCH)  ## the virtual environment of the tests (.venv)

lint: venv  ## ruff, mypy, import-linter, clang-format, shellcheck
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/clang-format --dry-run -Werror --style=file:csrc/.clang-format csrc/*.h ci/prove/gb10/*.cpp ci/prove/gb10/*.h
	$(VENV)/bin/shellcheck .ci/*

format: venv  ## rewrite the sources in house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i --style=file:csrc/.clang-format csrc/*.h ci/prove/gb10/*.cpp ci/prove/gb10/*.h

CI_VENV ?= .venv-ci
CI_BIN := $(CI_VENV)/bin

$(CI_VENV)/.stamp: requirements-ci.txt
	$(environment)

lint-ci: $(CI_VENV)/.stamp  ## the workflows, and cibuildwheel's configuration
	$(CI_BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(CI_BIN)/zizmor --offline --strict-collection --no-progress --quiet .github/workflows
	$(CI_BIN)/cibuildwheel --platform linux --archs x86_64,aarch64 --print-build-identifiers

# Building needs no torch and no CUDA toolkit: a small environment of its own, made once.
BUILD_VENV ?= .venv-build
BUILD_PY := $(BUILD_VENV)/bin/python

$(BUILD_VENV)/.stamp: requirements-build.txt
	$(environment)

# What the jobs of .github/workflows/wheels.yml run, in their order. A run's inputs reach these recipes as environment
# variables that only the shell expands, never make: text that somebody typed into a form does not become code.
CI_PROFILE = "$${PROFILE:-smoke}"
CI_ARTIFACTS = "$${ARTIFACTS:-build/artifacts}"
CI_DIST = "$${DIST:-dist}"
CI_INDEX = "$${INDEX:-build/index}"
USER_VENV ?= .venv-user
KERNELS ?= 0.17.2

.PHONY: ci-plan ci-launcher ci-fetch ci-build ci-launcher-stats ci-assemble ci-verify ci-install ci-native ci-emulate \
  ci-index ci-manylinux

ci-local:  ## the jobs of wheels.yml here (PROFILE=smoke)
	@.ci/local

ci-plan: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m ci matrix --profile $(CI_PROFILE) --archs "$$ARCHS"
	if [ -n "$$GITHUB_OUTPUT" ]; then \
	  $(BUILD_PY) -m ci matrix --profile $(CI_PROFILE) --archs "$$ARCHS" --github >> "$$GITHUB_OUTPUT"; fi

ci-launcher: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m pip install --quiet --disable-pip-version-check -r requirements-launcher.txt

ci-fetch: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m ci fetch $${PLATFORM:+--platform "$$PLATFORM"}

ci-build: $(BUILD_VENV)/.stamp
	PATH="$(abspath $(BUILD_VENV))/bin:$$PATH" $(BUILD_PY) -m ci build --profile $(CI_PROFILE) \
	  $${ARCHS:+--archs "$$ARCHS"} $${FAMILY:+--family "$$FAMILY"} $${PLATFORM:+--platform "$$PLATFORM"} \
	  $${SHARD:+--shard "$$SHARD"} $${JOBS:+--jobs "$$JOBS"} $${LAUNCHER:+--launcher "$$LAUNCHER"} --output $(CI_ARTIFACTS)

ci-launcher-stats:
	$(BUILD_VENV)/bin/sccache --show-stats
	$(BUILD_VENV)/bin/sccache --stop-server

ci-assemble: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m ci assemble $(CI_ARTIFACTS)/* --output $(CI_DIST) --no-publish

ci-verify: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m ci verify --quiet $(CI_DIST)/*.whl

# An environment like a user's own: the wheel from a file, torch and kernels from the index.
ci-install:
	$(PYTHON) -m venv --clear $(USER_VENV)
	$(USER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  "torch==$(TORCH)" "kernels==$(KERNELS)" $(CI_DIST)/*.whl

# The selftest runs in another folder, where Python finds the installed package and not this checkout.
ci-native: $(BUILD_VENV)/.stamp
	$(BUILD_PY) -m ci emulate --native --python $(USER_VENV)/bin/python
	cd $(CI_DIST) && "$(abspath $(USER_VENV))/bin/flash-attn3" selftest --device cpu --dtype fp32

ci-emulate: $(BUILD_VENV)/.stamp
	set -e; for wheel in $(CI_DIST)/*.whl; do .ci/as-root $(BUILD_PY) -m ci emulate "$$wheel"; done

# get_kernel serves a platform's last wheel: the fat one, where there is one. The kernel repositories share their files
# by hard links, which an archive keeps and an upload would multiply: pages get the pip index, an archive the whole hub.
ci-index: $(VENV)/.stamp-dev
	rm -rf $(CI_INDEX)
	shopt -s nullglob; $(PY) -m flash_attn3_sm121 hub publish --hub $(CI_INDEX)/hub \
	  $(CI_DIST)/wheel-sm*/*.whl $(CI_DIST)/wheel-fat-*/*.whl
	$(PY) -m flash_attn3_sm121 hub export --hub $(CI_INDEX)/hub $(CI_INDEX)/site
	mkdir $(CI_INDEX)/pages
	cp -r $(CI_INDEX)/site/www/simple $(CI_INDEX)/site/www/files $(CI_INDEX)/pages/
	tar -cf $(CI_INDEX)/hub-site.tar -C $(CI_INDEX)/site .

ci-manylinux: $(CI_VENV)/.stamp
	$(CI_BIN)/cibuildwheel --platform linux --archs native --output-dir $(CI_DIST)

plan: $(BUILD_VENV)/.stamp  ## what `make wheel` would build, without doing it
	@$(BUILD_PY) -m ci plan $(HARNESS_FLAGS)

wheel: $(BUILD_VENV)/.stamp  ## sources to a checked wheel, published to the local hub
	@$(BUILD_PY) -m ci wheel $(HARNESS_FLAGS) --output $(OUT)

wheel-fa2: $(BUILD_VENV)/.stamp  ## FlashAttention-2's names as a small wheel over the other
	@$(BUILD_PY) -m ci wheel-fa2 --output $(OUT)/fa2

verify: $(BUILD_VENV)/.stamp  ## check the wheels in wheels/ again
	@$(BUILD_PY) -m ci verify $(wildcard $(OUT)/*.whl)

reproducible: $(BUILD_VENV)/.stamp  ## build twice with cold caches: the same bytes?
	@$(BUILD_PY) -m ci reproduce $(HARNESS_FLAGS)

measure: $(BUILD_VENV)/.stamp  ## CPU seconds and memory beside upstream's files (SAMPLE=)
	@$(BUILD_PY) -m ci measure --profile full $(if $(ARCHS),--archs "$(ARCHS)",--archs 12.1) --sample $(SAMPLE)

prove: venv  ## execute 12.1's kernels in software (WRITE=FILE)
	@$(PY) -m ci prove $(HARNESS_FLAGS) $(if $(WRITE),--write "$(WRITE)")

tiles: $(BUILD_VENV)/.stamp  ## search 12.1's tiles by counted work (WRITE=FILE)
	@$(BUILD_PY) -m ci tiles --profile full $(if $(JOBS),--jobs $(JOBS)) $(if $(WRITE),--write "$(WRITE)")

sentry: venv  ## optional: sentryward's opinion of races (SENTRYWARD=)
	@$(PY) -m ci prove $(HARNESS_FLAGS) --sentryward "$(or $(SENTRYWARD),sentryward)" $(if $(WRITE),--write "$(WRITE)")

test-quick: venv  ## what needs no GPU, compiler or network: a few minutes
	$(PY) -m pytest -q -m "not nvcc and not gpu and not network and not emulated and not slow and not browser and not fresh"

test-torch: venv  ## what depends on torch, with TORCH=2.9.1 or another
	$(PY) -m pytest -q -m "not nvcc and not gpu and not network and not emulated and not slow and not browser and not fresh" \
	  tests/api tests/call tests/core tests/dispatch tests/flex tests/fallback tests/native

test-aarch64: venv  ## an aarch64 wheel under emulation (qemu-user, root)
	$(PY) -m pytest -q -m emulated

# No environment of its own: it runs with the Python that has the device's torch. MINUTES=, OUT_GPU=, PROXY=1
GPU_PYTHON ?= python3
MINUTES ?= 8
OUT_GPU ?= gpu-test
test-gpu:  ## try WHEEL= on this machine's GPU, building nothing
	$(GPU_PYTHON) -m ci gpu-test --wheel "$(WHEEL)" --out "$(OUT_GPU)" --minutes $(MINUTES) $(if $(PROXY),--proxy)

# `fresh` runs this very target on a bare Debian: it has one of its own.
# A process for each core, four at most, which take whole files (tests/workers.py). They compute with one thread each.
test: venv  ## everything that this machine can run
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not fresh" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# FRESH="--only wheel" and the like; as root.
fresh: $(BUILD_VENV)/.stamp  ## README.md's two commands on a bare Debian (root)
	@$(BUILD_PY) -m ci fresh $(FRESH)

clean:  ## products of this folder (the content cache stays)
	rm -rf build $(VENV) $(BUILD_VENV) $(CI_VENV) $(USER_VENV) .pytest_cache .mypy_cache .ruff_cache
