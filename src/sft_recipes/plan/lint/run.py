"""Rules about batch, processes, devices and steps, and about where models, data and results come from and go to."""

import math
import os
import re
from pathlib import Path

from sft_recipes.models.base_model import Asked
from sft_recipes.plan.lint import Case, Found
from sft_recipes.plan.lint.adapters import MANY_EPOCHS
from sft_recipes.recipes import conflicts, places
from sft_recipes.recipes.recipe import MODELS
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import GIB, count, share

# A run of fewer steps is nobody's plan.
FEW_STEPS = 100
COMMIT = re.compile(r"[0-9a-f]{40}")


def devices_idle(case: Case) -> Found:
    if case.topology.backend == "single" and not case.topology.use_cpu and len(case.gpus) > 1:
        yield {"number": len(case.gpus)}


def zero_saves_nothing(case: Case) -> Found:
    recipe, stage, processes = case.recipe, case.topology.zero_stage, case.topology.processes
    if case.model is None or not recipe["use_peft"] or stage not in (1, 2) or processes < 2:
        return
    adapters = case.model.adapters(Asked.of(recipe)).parameters(recipe["lora_r"])
    # DeepSpeed's float32 master weights and two moments, and at stage 2 the gradients in bfloat16.
    saved = adapters * (12 + (2 if stage == 2 else 0)) * (processes - 1) // processes
    if saved < GIB:
        yield {"saved": saved / GIB, "adapters": adapters}


def warmup_share(case: Case) -> Found:
    plan, rate = case.schedule, case.recipe["learning_rate"]
    if plan is None or plan.warmup_share < 0.2:
        return
    effect = f", which leaves {plan.steps - plan.warmup_steps} for the decay from {rate:g}"
    if plan.warmup_steps >= plan.steps:
        effect = f": the learning rate ends at {plan.peak_learning_rate:.2g} on its way to {rate:g} and never decays"
    severity = "info" if plan.warmup_share < 0.5 else "warning"
    yield {"share": share(plan.warmup_steps, plan.steps), "effect": effect, "severity": severity}


def warmup_ignored(case: Case) -> Found:
    if case.schedule is not None and case.recipe["warmup_steps"] and not case.schedule.warmup_steps:
        yield {"asked": as_yaml(case.recipe["warmup_steps"])}


def batch_exceeds_rows(case: Case) -> Found:
    if case.schedule is not None and case.schedule.rows < case.recipe["global_batch_size"]:
        yield {"rows": count(case.schedule.rows, "training row")}


def few_steps(case: Case) -> Found:
    plan, recipe = case.schedule, case.recipe
    if plan is None or plan.steps >= FEW_STEPS:
        return
    remedies = []
    if recipe["max_steps"] > 0:
        remedies.append(f"max_steps: {FEW_STEPS}")
    elif smaller := largest_batch(case, recipe["global_batch_size"] * plan.steps // FEW_STEPS):
        remedies.append(f"global_batch_size: {smaller}")
    epochs = math.ceil(FEW_STEPS / plan.steps_per_epoch)
    if recipe["max_steps"] <= 0 and epochs <= MANY_EPOCHS:
        remedies.append(f"num_train_epochs: {epochs}")
    steps = count(plan.steps, "optimizer step")
    yield {"steps": steps, "remedy": " or ".join(remedies) or "more rows; so few need no schedule to be learnt"}


def largest_batch(case: Case, at_most: int) -> int:
    """The largest global batch up to a number that the processes reach with the recipe's micro-batch; 0 for none."""
    return at_most - at_most % (case.recipe["per_device_train_batch_size"] * case.topology.processes)


def early_stopping_idle(case: Case) -> Found:
    plan, patience = case.schedule, case.recipe["early_stopping_patience"]
    # The first evaluation is always the best so far; the next `patience` without improvement stop the run.
    if plan and patience and plan.evaluations is not None and patience + 1 >= plan.evaluations:
        yield {"patience": patience, "needed": patience + 1, "evaluations": count(plan.evaluations, "evaluation")}


def evaluation_never_runs(case: Case) -> Found:
    plan, best = case.schedule, case.recipe["load_best_model_at_end"]
    if plan is not None and plan.evaluations == 0:
        yield {
            "steps": count(plan.steps, "step"),
            "best": " and has no best model to load" if best else "",
            "severity": "blocking" if best else "warning",
        }


def evaluation_once(case: Case) -> Found:
    plan = case.schedule
    if plan is not None and plan.evaluations == 1 and case.recipe["load_best_model_at_end"]:
        yield {"steps": count(plan.steps, "step")}


def rows_dropped(case: Case) -> Found:
    plan = case.schedule
    if plan is not None and case.recipe["dataloader_drop_last"]:
        taken = plan.batches_per_epoch * case.recipe["per_device_train_batch_size"] * case.topology.processes
        if taken < plan.rows:
            yield {"left": count(plan.rows - taken, "row")}


def partial_epoch(case: Case) -> Found:
    plan = case.schedule
    if plan is not None and plan.steps % plan.steps_per_epoch:
        epochs = plan.steps / plan.steps_per_epoch
        whole = max(round(epochs), 1)
        yield {"epochs": epochs, "whole": whole, "whole_steps": whole * plan.steps_per_epoch}


def model_unpinned(case: Case) -> Found:
    name, revision = case.recipe["model_name_or_path"], str(case.recipe["model_revision"])
    where = Path(case.recipe.values["model_name_or_path"].origin.rpartition(":")[0])
    if not places.is_local(name) and not COMMIT.fullmatch(revision):
        yield {"family": f" MODEL={where.stem}" if where.parent == MODELS else ""}


def data_unpinned(case: Case) -> Found:
    if case.recipe["dataset_name"] and not Path(case.recipe["dataset_name"]).exists():
        yield {}


def remote_code(case: Case) -> Found:
    if (case.recipe["model_init_kwargs"] or {}).get("trust_remote_code"):
        yield {}


def tracker_credentials(case: Case) -> Found:
    for tracker, about in conflicts.trackers(case.recipe):
        needed = about.get("needs", ())
        if needed and not any(os.environ.get(name) for name in needed):
            yield {"tracker": tracker, "needed": needed[0]}
