# A command of the program is the target of its name, and its options are variables of make's command line, in capitals.
# They are handed over as data: make does not expand them, and no shell sees them.
override GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(GIVEN),$(eval override $$(name) := $$(value $$(name))))
# What make itself reads.
override GIVEN := $(strip $(filter-out PYTHON VENV VIRTUAL_ENV,$(GIVEN)))
override GOALS := $(or $(MAKECMDGOALS),help)
export GIVEN GOALS $(GIVEN)

COMMANDS := list models plan preview fit diff gpu rules rehearse audit train sweep resume reproduce evaluate report \
	compare leaderboard merge predict chat push new why show export pin
ifeq ($(filter $(COMMANDS) train-%,$(GOALS)),)
  override READ := $(if $(filter benchmark-scoring,$(GOALS)),RUN) $(if $(filter soak,$(GOALS)),KILLS SEED)
  override UNREAD := $(filter-out $(READ),$(GIVEN))
  $(if $(UNREAD),$(error make $(GOALS) does not read $(UNREAD)))
endif

PYTHON ?= python3
# An active environment is used as it is; otherwise one of our own is made.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PROGRAM := $(BIN)/sft-recipes
INSTALLED := $(VENV)/.sft-recipes
INSTALLED_TEST := $(VENV)/.sft-recipes-test

.PHONY: help install $(COMMANDS) lint types test test-fast faults soak check benchmark benchmark-scoring docs compat audit-dependencies sbom
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z%_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables        RECIPE=default ACCEL=zero2 GPUS=2 NAME=my_run SET='learning_rate=1e-4 lora_r=16' DATA=my.jsonl"

install: $(INSTALLED) ## the environment and the pinned packages; other targets do it when needed

list: ## the recipes and the one idea of each
models: ## the models that any recipe can be trained on by MODEL=
plan: ## what RECIPE will do: rows, steps, memory, time, findings (DATA=, GPU=a100-80gb, TRACE=1, FETCH=1, WHY=1)
preview: ## rows of RECIPE as the trainer sees them (ROWS=5, HTML=page.html, DATA=)
fit: ## the largest micro-batch of RECIPE that fits, at the same global batch (GPUS=1 VRAM=24)
diff: ## what recipes A and B do differently, why, and what follows (DATA=)
gpu: ## measure this machine into benchmarks/ (BUDGET=400 seconds, OUT=folder, ONLY="memory speed")
rules: ## every rule that plan and train apply
rehearse: ## run RECIPE for a few steps with a tiny model on CPU processes, to see that nothing breaks
audit: ## check another tool's SFT configuration FILE, and translate it into the recipe OUT (TOOL=axolotl, GPUS=8)
train: ## fine-tune RECIPE into runs/NAME (MODEL=, DATA=, ACCEL=, GPUS=, SET=, NAME=, RESUME=1, SEEDS="42 43")
sweep: ## RECIPE with every value of OVER="learning_rate=1e-4,2e-4 lora_r=16,32", compared (TRIALS=20 by Optuna, JOBS=, OUT=)
resume: ## continue the interrupted run NAME from its newest whole checkpoint (FORGET_BEST=1 where its best is lost)
reproduce: ## train the finished RUN again from its directory alone, and say what differs (NAME=)
evaluate: ## RUN on rows it has not seen, with intervals and a verdict (SPLIT=validation, BASE=1, DATA=, SET=)
report: ## write RUN's report.html anew
compare: ## what RUNS changed, what came of it, and which differences are real (OUT=page.html, .md or .csv)
leaderboard: ## every evaluated run, by the rows it was evaluated on (OUT=table.md or .csv)
merge: ## RUN's adapter into unquantised base weights, proven equal (OUT=folder)
predict: ## what RUN answers to the rows of INPUT (OUT=file.jsonl)
chat: ## talk to RUN in the terminal (BASE=1 begins with the base model)
push: ## upload RUN's adapter to REPO on the Hub by HF_TOKEN, private (MERGED=1 the merged model, PUBLIC=1)
new: ## write the recipe NAME, three lines that extend FROM=default
why: ## why KEY has its value, in RECIPE (KEY=lora_alpha RECIPE=default)
show: ## RECIPE as it resolves, with the origin of every value (WHY=1: with a reason too)
export: ## RECIPE as a plain file OUT for stock trl sft --config
pin: ## write the Hub's current commit of the base model into RECIPE (or into MODEL)

show: export override ORIGIN := 1
train-%: export override RECIPE = $*
train-%: $(INSTALLED) ## fine-tune a recipe by its name, as make train-high_capacity
	@$(PROGRAM) --make train

$(COMMANDS): $(INSTALLED)
	@$(PROGRAM) --make $@

lint: $(INSTALLED_TEST) ## ruff, lint and format, and which module may import which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo

types: $(INSTALLED_TEST) ## mypy
	@$(BIN)/mypy

# Each worker imports torch, so more than two gain little. The groups of loadgroup have no effect in pytest 9.2.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(INSTALLED_TEST) ## all tests, and which ten took longest
	@$(PYTEST) --durations=10

test-fast: $(INSTALLED_TEST) ## the tests that train nothing and start neither a browser nor a process that imports torch, in about a minute
	@$(PYTEST) -m 'not slow'

faults: $(INSTALLED_TEST) ## the tests that break something on purpose, and what became of each promise (docs/reliability.md)
	@$(BIN)/python scripts/reliability.py

soak: $(INSTALLED_TEST) ## kill -9 a run at random moments (KILLS=30 SEED=0) and continue it, until it is shown to be the same
	@$(BIN)/python scripts/soak.py $(if $(filter KILLS,$(GIVEN)),--kills "$$KILLS") $(if $(filter SEED,$(GIVEN)),--seed "$$SEED")

check: lint types test ## what CI runs

benchmark: $(INSTALLED) ## the demo through us and through stock trl sft, side by side
	@$(BIN)/python scripts/benchmark_overhead.py

benchmark-scoring: $(INSTALLED) ## the demo run RUN scored by likelihood and by generation, in rows a second
	@$(BIN)/python scripts/benchmark_scoring.py "$${RUN:?name a demo run: make benchmark-scoring RUN=my_demo}"

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
