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
export RECIPE ACCEL GPUS NAME SET RESUME OUT DATA GPU VRAM TRACE FETCH ROWS HTML A B FILE

PYTHON ?= python3
# An active environment is used as it is; otherwise one of our own is made.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
RUN := $(BIN)/sft-recipes
INSTALLED := $(VENV)/.sft-recipes
INSTALLED_TEST := $(VENV)/.sft-recipes-test
OPTIONS = $${ACCEL:+--accel="$$ACCEL"} $${GPUS:+--gpus="$$GPUS"} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"}
PLAN_OPTIONS = $(OPTIONS) $${GPU:+--gpu="$$GPU"}
RUN_OPTIONS = $(OPTIONS) $${NAME:+--name="$$NAME"} $${RESUME:+--resume}

.PHONY: help install list plan preview fit diff rules rehearse audit train resume show export pin lint types test check benchmark docs
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z%_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables        RECIPE=default ACCEL=zero2 GPUS=2 NAME=my_run SET='learning_rate=1e-4 lora_r=16' DATA=my.jsonl"

install: $(INSTALLED) ## the environment and the pinned packages; other targets do it when needed

list: $(INSTALLED) ## the recipes and the one idea of each
	@$(RUN) list

plan: $(INSTALLED) ## what RECIPE will do: rows, steps, memory, time, findings (DATA=, GPU=a100-80gb, TRACE=1, FETCH=1)
	@$(RUN) plan $(PLAN_OPTIONS) $${TRACE:+--trace} $${FETCH:+--fetch} -- "$${RECIPE:?name a recipe: make plan RECIPE=default}"

preview: $(INSTALLED) ## rows of RECIPE as the trainer sees them (ROWS=5, HTML=page.html, DATA=)
	@$(RUN) preview $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"} $${ROWS:+--rows="$$ROWS"} $${HTML:+--html="$$HTML"} -- "$${RECIPE:?name a recipe: make preview RECIPE=demo}"

fit: $(INSTALLED) ## the largest micro-batch of RECIPE that fits, at the same global batch (GPUS=1 VRAM=24)
	@$(RUN) fit $${GPUS:+--gpus="$$GPUS"} $${SET:+--set="$$SET"} $${DATA:+--data="$$DATA"} --vram="$${VRAM:?name the memory of a GPU in GiB: VRAM=24}" -- "$${RECIPE:?name a recipe: make fit RECIPE=default GPUS=1 VRAM=24}"

diff: $(INSTALLED) ## what recipes A and B do differently, why, and what follows (DATA=)
	@$(RUN) diff $(PLAN_OPTIONS) -- "$${A:?name two recipes: make diff A=default B=high_capacity}" "$${B:?name the other recipe: B=}"

rules: $(INSTALLED) ## every rule that plan and train apply
	@$(RUN) rules

rehearse: $(INSTALLED) ## run RECIPE for a few steps with a tiny model on CPU processes, to see that nothing breaks
	@$(RUN) rehearse $(OPTIONS) $${NAME:+--name="$$NAME"} -- "$${RECIPE:?name a recipe: make rehearse RECIPE=default}"

audit: $(INSTALLED) ## check another tool's SFT configuration FILE, and translate it into the recipe OUT
	@$(RUN) audit $${OUT:+--out="$$OUT"} -- "$${FILE:?name a file: make audit FILE=config_qlora.yaml}"

train: $(INSTALLED) ## fine-tune RECIPE into runs/NAME (DATA=, ACCEL=, GPUS=, SET=, NAME=, RESUME=1)
	@$(RUN) train $(RUN_OPTIONS) -- "$${RECIPE:?name a recipe: make train RECIPE=demo; make list shows them}"

train-%: override RECIPE = $*
train-%: $(INSTALLED) ## the same, as make train-high_capacity
	@$(RUN) train $(RUN_OPTIONS) -- "$$RECIPE"

resume: $(INSTALLED) ## continue the interrupted run NAME from its newest whole checkpoint
	@$(RUN) resume -- "$${NAME:?name a run: make resume NAME=my_run}"

show: $(INSTALLED) ## RECIPE as it resolves, with the origin of every value
	@$(RUN) show --origin $(OPTIONS) -- "$${RECIPE:?name a recipe: make show RECIPE=default}"

export: $(INSTALLED) ## RECIPE as a plain file OUT for stock trl sft --config
	@$(RUN) export --out="$${OUT:?name a file: OUT=plain.yaml}" $(OPTIONS) -- "$${RECIPE:?name a recipe}"

pin: $(INSTALLED) ## write the Hub's current commit of the base model into RECIPE
	@$(RUN) pin -- "$${RECIPE:?name a recipe: make pin RECIPE=default}"

lint: $(INSTALLED_TEST) ## ruff, lint and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED_TEST) ## mypy
	@$(BIN)/mypy

test: $(INSTALLED_TEST) ## all tests
	@$(BIN)/python -m pytest

check: lint types test ## what CI runs

benchmark: $(INSTALLED) ## the demo through us and through stock trl sft, side by side
	@$(BIN)/python scripts/benchmark_overhead.py

docs: $(INSTALLED) ## regenerate the tables and the picture of README.md from the recipes and a demo run
	@$(BIN)/python scripts/update_readme.py

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
