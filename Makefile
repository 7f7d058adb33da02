# Variables are handed to the program as data: make does not expand them, and the shell sees them only quoted.
override RECIPE := $(value RECIPE)
override ACCEL := $(value ACCEL)
override GPUS := $(value GPUS)
override NAME := $(value NAME)
override SET := $(value SET)
override RESUME := $(value RESUME)
override OUT := $(value OUT)
override DATA := $(value DATA)
override GPU := $(value GPU)
override VRAM := $(value VRAM)
override TRACE := $(value TRACE)
override FETCH := $(value FETCH)
override ROWS := $(value ROWS)
override HTML := $(value HTML)
override A := $(value A)
override B := $(value B)
override FILE := $(value FILE)
override RUN := $(value RUN)
override RUNS := $(value RUNS)
override SPLIT := $(value SPLIT)
override BASE := $(value BASE)
override SEEDS := $(value SEEDS)
override INPUT := $(value INPUT)
override REPO := $(value REPO)
override MERGED := $(value MERGED)
override PUBLIC := $(value PUBLIC)
override MODEL := $(value MODEL)
override KEY := $(value KEY)
override FROM := $(value FROM)
override WHY := $(value WHY)
override OVER := $(value OVER)
override TRIALS := $(value TRIALS)
override JOBS := $(value JOBS)
export RECIPE ACCEL GPUS NAME SET RESUME OUT DATA GPU VRAM TRACE FETCH ROWS HTML A B FILE
export RUN RUNS SPLIT BASE SEEDS INPUT REPO MERGED PUBLIC MODEL KEY FROM WHY OVER TRIALS JOBS

PYTHON ?= python3
# An active environment is used as it is; otherwise one of our own is made.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PROGRAM := $(BIN)/sft-recipes
INSTALLED := $(VENV)/.sft-recipes
INSTALLED_TEST := $(VENV)/.sft-recipes-test
OPTIONS = $${ACCEL:+--accel="$$ACCEL"} $${GPUS:+--gpus="$$GPUS"} $${MODEL:+--model="$$MODEL"} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"}
PLAN_OPTIONS = $(OPTIONS) $${GPU:+--gpu="$$GPU"}
RUN_OPTIONS = $(OPTIONS) $${NAME:+--name="$$NAME"} $${RESUME:+--resume} $${SEEDS:+--seeds="$$SEEDS"}

.PHONY: help install list models plan preview fit diff rules rehearse audit train sweep resume evaluate report compare leaderboard merge predict chat push show export pin lint types test test-fast check benchmark benchmark-scoring docs
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z%_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables        RECIPE=default ACCEL=zero2 GPUS=2 NAME=my_run SET='learning_rate=1e-4 lora_r=16' DATA=my.jsonl"

install: $(INSTALLED) ## the environment and the pinned packages; other targets do it when needed

list: $(INSTALLED) ## the recipes and the one idea of each
	@$(PROGRAM) list

models: $(INSTALLED) ## the models that any recipe can be trained on by MODEL=
	@$(PROGRAM) models

plan: $(INSTALLED) ## what RECIPE will do: rows, steps, memory, time, findings (DATA=, GPU=a100-80gb, TRACE=1, FETCH=1)
	@$(PROGRAM) plan $(PLAN_OPTIONS) $${TRACE:+--trace} $${FETCH:+--fetch} -- "$${RECIPE:?name a recipe: make plan RECIPE=default}"

preview: $(INSTALLED) ## rows of RECIPE as the trainer sees them (ROWS=5, HTML=page.html, DATA=)
	@$(PROGRAM) preview $${MODEL:+--model="$$MODEL"} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"} $${ROWS:+--rows="$$ROWS"} $${HTML:+--html="$$HTML"} -- "$${RECIPE:?name a recipe: make preview RECIPE=demo}"

fit: $(INSTALLED) ## the largest micro-batch of RECIPE that fits, at the same global batch (GPUS=1 VRAM=24)
	@$(PROGRAM) fit $${GPUS:+--gpus="$$GPUS"} $${MODEL:+--model="$$MODEL"} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"} --vram="$${VRAM:?name the memory of a GPU in GiB: VRAM=24}" -- "$${RECIPE:?name a recipe: make fit RECIPE=default GPUS=1 VRAM=24}"

diff: $(INSTALLED) ## what recipes A and B do differently, why, and what follows (DATA=)
	@$(PROGRAM) diff $(PLAN_OPTIONS) -- "$${A:?name two recipes: make diff A=default B=high_capacity}" "$${B:?name the other recipe: B=}"

rules: $(INSTALLED) ## every rule that plan and train apply
	@$(PROGRAM) rules

rehearse: $(INSTALLED) ## run RECIPE for a few steps with a tiny model on CPU processes, to see that nothing breaks
	@$(PROGRAM) rehearse $(OPTIONS) $${NAME:+--name="$$NAME"} -- "$${RECIPE:?name a recipe: make rehearse RECIPE=default}"

audit: $(INSTALLED) ## check another tool's SFT configuration FILE, and translate it into the recipe OUT
	@$(PROGRAM) audit $${OUT:+--out="$$OUT"} -- "$${FILE:?name a file: make audit FILE=config_qlora.yaml}"

train: $(INSTALLED) ## fine-tune RECIPE into runs/NAME (MODEL=, DATA=, ACCEL=, GPUS=, SET=, NAME=, RESUME=1, SEEDS="42 43")
	@$(PROGRAM) train $(RUN_OPTIONS) -- "$${RECIPE:?name a recipe: make train RECIPE=demo; make list shows them}"

train-%: override RECIPE = $*
train-%: $(INSTALLED) ## the same, as make train-high_capacity
	@$(PROGRAM) train $(RUN_OPTIONS) -- "$$RECIPE"

sweep: $(INSTALLED) ## RECIPE with every value of OVER="learning_rate=1e-4,2e-4 lora_r=16,32", compared (TRIALS=20 by Optuna, JOBS=, OUT=)
	@$(PROGRAM) sweep --over="$${OVER:?name what to vary: OVER=\"learning_rate=1e-4,2e-4\"}" $${TRIALS:+--trials="$$TRIALS"} $${JOBS:+--jobs="$$JOBS"} $${OUT:+--out="$$OUT"} $${NAME:+--name="$$NAME"} $(OPTIONS) -- "$${RECIPE:?name a recipe: make sweep RECIPE=default}"

resume: $(INSTALLED) ## continue the interrupted run NAME from its newest whole checkpoint
	@$(PROGRAM) resume -- "$${NAME:?name a run: make resume NAME=my_run}"

evaluate: $(INSTALLED) ## RUN on rows it has not seen, with intervals and a verdict (SPLIT=validation, BASE=1, DATA=, SET=)
	@$(PROGRAM) evaluate $${SPLIT:+--split="$$SPLIT"} $${BASE:+--base} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"} -- "$${RUN:?name a run: make evaluate RUN=my_run}"

report: $(INSTALLED) ## write RUN's report.html anew
	@$(PROGRAM) report -- "$${RUN:?name a run: make report RUN=my_run}"

compare: $(INSTALLED) ## what RUNS changed, what came of it, and which differences are real (OUT=page.html, .md or .csv)
	@set -f; $(PROGRAM) compare $${SPLIT:+--split="$$SPLIT"} $${OUT:+--out="$$OUT"} -- $${RUNS:?name two runs or more: make compare RUNS="a b"}

leaderboard: $(INSTALLED) ## every evaluated run, by the rows it was evaluated on (OUT=table.md or .csv)
	@$(PROGRAM) leaderboard $${SPLIT:+--split="$$SPLIT"} $${OUT:+--out="$$OUT"}

merge: $(INSTALLED) ## RUN's adapter into unquantised base weights, proven equal (OUT=folder)
	@$(PROGRAM) merge $${OUT:+--out="$$OUT"} -- "$${RUN:?name a run: make merge RUN=my_run}"

predict: $(INSTALLED) ## what RUN answers to the rows of INPUT (OUT=file.jsonl)
	@$(PROGRAM) predict --input="$${INPUT:?name a file: INPUT=rows.jsonl}" $${OUT:+--out="$$OUT"} -- "$${RUN:?name a run: make predict RUN=my_run INPUT=rows.jsonl}"

chat: $(INSTALLED) ## talk to RUN in the terminal (BASE=1 begins with the base model)
	@$(PROGRAM) chat $${BASE:+--base} -- "$${RUN:?name a run: make chat RUN=my_run}"

push: $(INSTALLED) ## upload RUN's adapter to REPO on the Hub by HF_TOKEN, private (MERGED=1 the merged model, PUBLIC=1)
	@$(PROGRAM) push --repo="$${REPO:?name a repository: REPO=org/name}" $${MERGED:+--merged} $${PUBLIC:+--public} -- "$${RUN:?name a run: make push RUN=my_run REPO=org/name}"

new: $(INSTALLED) ## write the recipe NAME, three lines that extend FROM=default
	@$(PROGRAM) new $${FROM:+--from="$$FROM"} -- "$${NAME:?name the new recipe: make new NAME=my_experiment}"

why: $(INSTALLED) ## why KEY has its value, in RECIPE (KEY=lora_alpha RECIPE=default)
	@$(PROGRAM) why -- "$${KEY:?name a key: make why KEY=lora_alpha}" $${RECIPE:+"$$RECIPE"}

show: $(INSTALLED) ## RECIPE as it resolves, with the origin of every value (WHY=1: a reason instead)
	@$(PROGRAM) show $${WHY:+--why} $${WHY:---origin} $(OPTIONS) -- "$${RECIPE:?name a recipe: make show RECIPE=default}"

export: $(INSTALLED) ## RECIPE as a plain file OUT for stock trl sft --config
	@$(PROGRAM) export --out="$${OUT:?name a file: OUT=plain.yaml}" $(OPTIONS) -- "$${RECIPE:?name a recipe}"

pin: $(INSTALLED) ## write the Hub's current commit of the base model into RECIPE (or into MODEL)
	@$(PROGRAM) pin $${MODEL:+--model="$$MODEL"} -- "$${RECIPE:?name a recipe: make pin RECIPE=default}"

lint: $(INSTALLED_TEST) ## ruff, lint and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED_TEST) ## mypy
	@$(BIN)/mypy

# Each worker imports torch, so more than two gain little. The groups of loadgroup have no effect in pytest 9.2.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(INSTALLED_TEST) ## all tests, and which ten took longest
	@$(PYTEST) --durations=10

test-fast: $(INSTALLED_TEST) ## the tests that train nothing and start neither a browser nor a process that imports torch, in about a minute
	@$(PYTEST) -m 'not slow'

check: lint types test ## what CI runs

benchmark: $(INSTALLED) ## the demo through us and through stock trl sft, side by side
	@$(BIN)/python scripts/benchmark_overhead.py

benchmark-scoring: $(INSTALLED) ## the demo run RUN scored by likelihood and by generation, in rows a second
	@$(BIN)/python scripts/benchmark_scoring.py "$${RUN:?name a demo run: make benchmark-scoring RUN=my_demo}"

docs: $(INSTALLED) ## regenerate the tables and the picture of README.md from the recipes and a demo run
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
