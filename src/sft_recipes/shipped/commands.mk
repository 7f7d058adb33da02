# A command of the program is the target of its name, and its options are variables of make's command line, in capitals.
# They are handed over as data: make does not expand them, and no shell sees them. PROGRAM is the program; INSTALLED may
# be a file that has to be made before it can run.
override GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(GIVEN),$(eval override $$(name) := $$(value $$(name))))
# What make itself reads.
override GIVEN := $(strip $(filter-out PYTHON VENV VIRTUAL_ENV PROGRAM,$(GIVEN)))
override GOALS := $(or $(MAKECMDGOALS),help)
export GIVEN GOALS $(GIVEN)

COMMANDS := list models recommend plan preview fit diff gpu tune rules rehearse audit train sweep resume launch status logs watch \
	reproduce evaluate forgetting report compare leaderboard merge predict chat serve gguf push new why show export pin init keys schema

override LISTED := $(lastword $(MAKEFILE_LIST))
.PHONY: help $(COMMANDS)
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z%_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(LISTED) $(filter-out $(LISTED),$(MAKEFILE_LIST))
	@echo "  variables        RECIPE=default ACCEL=zero2 GPUS=2 NAME=my_run SET='learning_rate=1e-4 lora_r=16' DATA=my.jsonl"

list: ## the recipes and the one idea of each
models: ## the models that any recipe can be trained on by MODEL=
recommend: ## a recipe for the rows of DATA on this machine, each value with its reason (GPU=rtx-4090, GPUS=1, NAME=x writes it)
plan: ## what RECIPE will do: rows, steps, memory, time, findings (DATA=, GPU=a100-80gb, TRACE=1, FETCH=1, WHY=1)
preview: ## rows of RECIPE as the trainer sees them (ROWS=5, HTML=page.html, DATA=)
fit: ## the largest micro-batch of RECIPE that fits, at the same global batch (GPUS=1 VRAM=24)
diff: ## what recipes A and B do differently, why, and what follows (DATA=)
gpu: ## measure this machine into benchmarks/ (BUDGET=400 seconds, OUT=folder, ONLY="memory speed")
tune: ## a few real steps of RECIPE in the ways that are worth a try here; execution: auto takes the fastest (DATA=, SET=)
rules: ## every rule that plan and train apply
rehearse: ## run RECIPE for a few steps with a tiny model on CPU processes, to see that nothing breaks
audit: ## check another tool's SFT configuration FILE, and translate it into the recipe OUT (TOOL=axolotl, GPUS=8)
train: ## fine-tune RECIPE into runs/NAME (MODEL=, DATA=, ACCEL=, GPUS=, SET=, NAME=, RESUME=1, SEEDS="42 43")
sweep: ## RECIPE with every value of OVER="learning_rate=1e-4,2e-4 lora_r=16,32", compared (TRIALS=20 by Optuna, JOBS=, OUT=; ON=slurm SITE= as jobs)
resume: ## continue the interrupted run NAME from its newest whole checkpoint (FORGET_BEST=1 where its best is lost)
launch: ## RECIPE elsewhere: a job ON=slurm, kubernetes, skypilot or ray, or ON=torchrun the commands (NODES=2, GPUS= of each, SITE=, SEEDS=, DRY=1)
status: ## how far the run NAME is, and what the engine says of its job
logs: ## the last lines of what the job of the run NAME has written (LINES=40)
watch: ## the curves of the run NAME while it trains, in a browser on this machine (PORT=6006; all runs without NAME)
reproduce: ## train the finished RUN again from its directory alone, and say what differs (NAME=)
evaluate: ## RUN on rows it has not seen, with intervals and a verdict (SPLIT=validation, BASE=1, DATA=, SET=)
forgetting: ## what RUN lost on TASKS="hellaswag arc_easy" of lm-evaluation-harness, base against tuned (LIMIT=, INCLUDE=folder)
report: ## write RUN's report.html anew
compare: ## what RUNS changed, what came of it, and which differences are real (OUT=page.html, .md or .csv)
leaderboard: ## every evaluated run, by the rows it was evaluated on (OUT=table.md or .csv)
merge: ## RUN's adapter into unquantised base weights, proven equal (OUT=folder)
predict: ## what RUN answers to the rows of INPUT (OUT=file.jsonl)
chat: ## talk to RUN in the terminal (BASE=1 begins with the base model)
serve: ## RUN by vLLM on this machine, or the command for it in runs/RUN/serve.md (MERGED=1, PORT=8000)
gguf: ## RUN's merged model as GGUF by llama.cpp, read back, with Ollama's Modelfile (QUANT=q4_k_m, LLAMA_CPP=folder, OUT=)
push: ## upload RUN's adapter to REPO on the Hub, private, by HF_TOKEN or hf auth login (MERGED=1 the merged model, PUBLIC=1)
init: ## a project of one's own in FOLDER: a Makefile, a first recipe, the accelerate configs
new: ## write the recipe NAME, four lines that extend FROM=default, or what is seen in the rows of DATA=
why: ## why KEY has its value, in RECIPE (KEY=lora_alpha RECIPE=default)
keys: ## every key that a recipe may set, with its type and default
schema: ## the JSON Schema of a KIND of file (recipe, model, accelerate, cluster), for editors
show: ## RECIPE as it resolves, with the origin of every value (WHY=1: with a reason too)
export: ## RECIPE as a plain file OUT for stock trl sft --config (RUN= FOR=dpo DATA=: the RUN's model for trl dpo)
pin: ## write the Hub's current commit of the base model into RECIPE (or into MODEL)

show: export override ORIGIN := 1
train-%: export override RECIPE = $*
train-%: $(INSTALLED) ## fine-tune a recipe by its name, as make train-high_capacity
	@$(PROGRAM) --make train

$(COMMANDS): $(INSTALLED)
	@$(PROGRAM) --make $@
