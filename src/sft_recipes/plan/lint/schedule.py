"""Rules about steps, warm-up, evaluation and stopping."""

from collections.abc import Iterator

from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.terminal import count, share

ORIGIN = "https://github.com/rramchan12/HateSpeechDetection_ver2"
# A smaller share of an epoch than this is nobody's plan.
FEW_STEPS = 100


@rule("warmup-share", "warning", f"{ORIGIN} warmed up for 100 of 126 steps, and its quick_test for 50 of 42")
def warmup_share(case: Case) -> Iterator[Said]:
    """Warm-up takes a fifth of the run or more; at all of it, the learning rate never reaches its peak."""
    plan = case.schedule
    if plan is None or plan.warmup_share < 0.2:
        return
    text = f"warm-up takes {plan.warmup_steps} of {plan.steps} steps ({share(plan.warmup_steps, plan.steps)})"
    rate = case.recipe["learning_rate"]
    if plan.warmup_steps >= plan.steps:
        text += f": the learning rate ends at {plan.peak_learning_rate:.2g} on its way to {rate:g} and never decays"
    else:
        text += f", which leaves {plan.steps - plan.warmup_steps} for the decay from {rate:g}"
    yield Said(
        text,
        "write a share, which fits every length of run: warmup_steps: 0.03",
        "info" if plan.warmup_share < 0.5 else "warning",
    )


@rule("few-steps", "warning", "https://github.com/thinking-machines-lab/tinker-cookbook advises 100 steps at least")
def few_steps(case: Case) -> Iterator[Said]:
    """The run takes fewer than 100 optimizer steps, too few for schedule and Adam's averages to mean much."""
    plan = case.schedule
    if plan is not None and plan.steps < FEW_STEPS:
        total = case.recipe["global_batch_size"]
        yield Said(
            f"{count(plan.steps, 'optimizer step')} in all: {plan.rows:,} rows in batches of {total}",
            f"a smaller global_batch_size ({max(total * plan.steps // FEW_STEPS, 1)} gives about {FEW_STEPS} steps), "
            "or more epochs",
        )


@rule("early-stopping-idle", "info", "transformers EarlyStoppingCallback; replayed on the origin's evaluation losses")
def early_stopping_idle(case: Case) -> Iterator[Said]:
    """Early stopping cannot stop before the run ends by itself."""
    plan, patience = case.schedule, case.recipe["early_stopping_patience"]
    if plan is None or not patience or plan.evaluations is None:
        return
    # The first evaluation is always the best so far; the next `patience` without improvement stop the run.
    if patience + 1 >= plan.evaluations:
        yield Said(
            f"early_stopping_patience {patience} needs {patience + 1} evaluations before it can stop, and the run has "
            f"{count(plan.evaluations, 'evaluation')}, the last at its end",
            "evaluate more often (eval_strategy: steps, eval_steps: 0.1, the same for saving), or set "
            "early_stopping_patience: 0",
        )


@rule("evaluation-never-runs", "warning", "transformers' DefaultFlowCallback asks eval_delay before it evaluates")
def evaluation_never_runs(case: Case) -> Iterator[Said]:
    """The run ends before its first evaluation, so nothing is measured and no best checkpoint can be chosen."""
    plan = case.schedule
    if plan is not None and plan.evaluations == 0:
        best = case.recipe["load_best_model_at_end"]
        yield Said(
            f"eval_delay {case.recipe['eval_delay']:g} is longer than the run of {count(plan.steps, 'step')}, so it "
            "never evaluates" + (" and has no best model to load" if best else ""),
            "eval_delay: 0",
            "blocking" if best else None,
        )


@rule("evaluation-once", "info", "transformers' DefaultFlowCallback evaluates at eval_steps and at the end")
def evaluation_once(case: Case) -> Iterator[Said]:
    """The best checkpoint of a single evaluation is the last one."""
    plan = case.schedule
    if plan is not None and plan.evaluations == 1 and case.recipe["load_best_model_at_end"]:
        yield Said(
            f"load_best_model_at_end chooses among one evaluation, at the end of {count(plan.steps, 'step')}",
            "eval_strategy: steps and eval_steps: 0.1, the same for saving; or load_best_model_at_end: false",
        )


@rule("rows-dropped", "warning", "transformers' dataloader_drop_last; the rows at the end of every epoch are not seen")
def rows_dropped(case: Case) -> Iterator[Said]:
    """The last, smaller batch of every epoch is dropped, and its rows with it."""
    plan = case.schedule
    if plan is None or not case.recipe["dataloader_drop_last"]:
        return
    taken = plan.batches_per_epoch * case.recipe["per_device_train_batch_size"] * case.topology.processes
    if taken < plan.rows:
        yield Said(
            f"dataloader_drop_last leaves {count(plan.rows - taken, 'row')} of {plan.rows:,} out of every epoch",
            "dataloader_drop_last: false",
        )


@rule("partial-epoch", "info", "transformers' Trainer stops at max_steps wherever it is in the data")
def partial_epoch(case: Case) -> Iterator[Said]:
    """The run ends within an epoch, so some rows are seen once more than others."""
    plan = case.schedule
    if plan is not None and plan.steps % plan.steps_per_epoch:
        whole = max(round(plan.steps / plan.steps_per_epoch), 1)
        yield Said(
            f"{plan.steps} steps are {plan.steps / plan.steps_per_epoch:.2f} epochs of {plan.steps_per_epoch} steps",
            f"max_steps: {whole * plan.steps_per_epoch}, or num_train_epochs: {whole}",
        )
