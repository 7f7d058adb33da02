"""From a checked recipe to a finished run: data, run directory, `accelerate launch`, and what is said at the end.

This process never imports torch, so that whatever is wrong with the input is said in a second.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.children import Spare
from sft_recipes.data import preparation, survey, tokens
from sft_recipes.demo import bases
from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate
from sft_recipes.launch import out_of_memory
from sft_recipes.launch.processes import ALONE, Place, Processes
from sft_recipes.launch.rewind import rewind
from sft_recipes.plan import execution, plan, speed
from sft_recipes.plan import job as jobs
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import conflicts, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology
from sft_recipes.runs import checkpoints, identity, outcome, provenance
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration, outliving, say, say_error, share

FINISHED, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 3
STARTS = 5
"""So many starts of a job without a step are the last, so that none is requeued for ever."""


@outliving()
def train(
    name: str | Path, *, run_name: str | None = None, resume: bool = False, **where: Unpack[Where]
) -> tuple[int, Run]:
    """Train a recipe into a new run, or continue one that was trained with exactly the same recipe.

    Returns:
        The exit code (0 finished, 1 failed while running, 3 interrupted and resumable) and the run.

    Raises:
        InputError: With every problem found before a process was started; nothing is left behind.
    """
    if resume and not run_name:
        raise InputError("RESUME=1 needs NAME=, the run to continue")
    if run_name is not None and not resume:
        Run.directory_of(run_name)
    if resume:
        run = open_for_resume(run_name or "")
        where["keeps"] = execution.chosen_before(run.facts().get("origins", {}), run.values() | run.facts()["own"])
    job = jobs.check(name, **where)
    for label, text in job.decisions():
        say(label, text)
    if resume:
        check_same_config(run, job)
        identity.check(run, training=True)
        return finish(run, continue_run(run)), run
    bases.build_if_needed(job.recipe)
    code, run = start(jobs.lint_or_raise(job), run_name)
    return finish(run, code), run


def start(job: Job, run_name: str | None) -> tuple[int, Run]:
    """Train a job into a new run; gives the exit code of its processes.

    Raises:
        InputError: The name is taken, or the processes refuse the recipe.
    """
    run = create(job, run_name)
    return begin(run), run


def begin(run: Run) -> int:
    """Launch a new run for the first time; gives the exit code of its processes."""
    say("run", str(run.directory))
    with run.locked():
        code = launch(run)
        identity.know_base(run)
    return code


def finish(run: Run, code: int) -> int:
    """What follows a training that has ended well: the evaluation its recipe asks for, the report, the model card."""
    with outliving(run.output):
        try:
            if code == FINISHED and run.facts()["own"].get("task") is not None:
                code, _ = evaluate.evaluate(str(run.directory), base=True)
        finally:
            Spare.dismiss(run.directory)
        if code == FINISHED:
            # Not before it is needed: what draws and compares takes a second to import.
            from sft_recipes.report import pages

            pages.write(run)
    return code


def create(job: Job, run_name: str | None) -> Run:
    """A new run directory that holds all that the training processes need to know.

    Raises:
        InputError: The name is taken, or is no name; or it cannot be written.
    """
    facts = {
        "recipe": job.recipe.name,
        # Whoever reads a run as a result asks this first.
        "rehearsal": job.rehearses is not None,
        "rehearses": job.rehearses,
        "extends": job.recipe.base.name if job.recipe.base else None,
        "differences": plan.differences(job.written),
        "overrides": {key: item.value for key, item in job.recipe.values.items() if item.origin in recipes.GIVEN},
        "origins": {key: item.origin for key, item in job.resolved.values.items()},
        "own": job.resolved.own(),
        "topology": job.topology.facts(),
        "data": {
            "source": preparation.source_of(job.recipe),
            "fingerprint": job.prepared.fingerprint,
            "format": job.prepared.format,
            "kind": job.prepared.kind,
            "conversational": job.prepared.conversational,
            "holds": job.prepared.holds,
            "variables": job.prepared.variables,
            "columns": job.prepared.columns,
            "splits": {name: _with_tokens(job, name, split) for name, split in job.prepared.splits.items()},
            # Of a rehearsal they are a few, which TRL tokenises in no time.
            **({} if job.rehearses else survey.for_training(job.prepared, tokens.find_tokenizer(job.recipe))),
        },
        "findings": [dataclasses.asdict(finding) for finding in job.findings],
        "memory": out_of_memory.planned(job),
        **surroundings(job.gpus),
    }
    name = f"rehearsal-{job.recipe.name}" if job.rehearses else job.recipe.name
    values, config = job.resolved.upstream(), accelerate_config(job.resolved, job.topology)
    return Run.create(run_name, name, lambda directory: identity.first_files(directory, facts, values, config))


def _with_tokens(job: Job, name: str, split: dict[str, Any]) -> dict[str, Any]:
    """The facts of a split, with the tokens of each of its sources where there are several."""
    if job.rehearses or "sources" not in split:
        return split
    counted = (
        {key: each[key] for key in ("tokens", "supervised_tokens", "tokens_are")} for each in job.rows[name]["sources"]
    )
    return split | {"sources": [each | found for each, found in zip(split["sources"], counted, strict=True)]}


def surroundings(gpus: list[topology.Gpu]) -> dict[str, Any]:
    """What a run that starts now depends on beside what it was asked for, as run.json holds it."""
    return {
        "command": provenance.command(),
        "git": provenance.git_state(),
        "versions": provenance.versions(),
        "python": sys.version.split()[0],
        "gpus": [f"{gpu.name}, {gpu.memory_mib} MiB" for gpu in gpus],
        "cpus": os.cpu_count(),
        "started": provenance.now(),
    }


@outliving()
def resume(name: str | Path, *, forget_best: bool = False, place: Place = ALONE) -> tuple[int, Run]:
    """Continue a run from its newest whole checkpoint, exactly as it was started.

    Args:
        name: The run's, or its directory's path.
        forget_best: Have the best checkpoint sought from there on, where the one so far is damaged.
        place: Which of several machines this is. Machine 0 does all that one alone would do, and the others train.

    Raises:
        InputError: There is no such run, it is finished, it is not as it was, or its processes cannot be had any more.
    """
    run = open_for_resume(name)
    facts = run.facts()
    if facts.get("job"):
        # What a scheduler sends while nothing is trained stops the evaluation as Ctrl-C does.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with contextlib.suppress(ValueError):
                # Another thread than the main one can take no signals.
                signal.signal(number, signal.default_int_handler)
        if facts["status"] == "finished":
            # The job was ended after the last step, and started again.
            say("resume", f"{run.directory} is trained; what follows it is done")
            return (finish(run, FINISHED) if not place.machine else FINISHED), run
    if place.machine:
        return assist(run, place), run
    if facts.get("job") and _took_no_step(facts.get("launches", [])[-STARTS:]):
        raise InputError(
            f"{run.directory}: {STARTS} starts of its job in a row took no step, and another would not; ask for more "
            "time (max_hours of the site), and launch it anew"
        )
    identity.check(run, training=True)
    say("topology", runnable(run, place).describe())
    return finish(run, continue_run(run, forget_best=forget_best, place=place)), run


def _took_no_step(launches: list[dict[str, Any]]) -> bool:
    return len(launches) == STARTS and all((each["to_step"] or 0) <= each["from_step"] for each in launches)


def assist(run: Run, place: Place) -> int:
    """Train as a further machine of a run that machine 0 continues, and says and writes what comes of it.

    Returns:
        0, also where the run was stopped, or 1 where the processes of this machine failed.

    Raises:
        InputError: The run asks for what no recipe may, or this machine lacks GPUs for it.
    """
    identity.may_ask(run)
    say("topology", f"machine {place.machine} of {place.machines}: {runnable(run, place).describe()}")
    with run.locked(place.machine), outliving(run.output):
        code = Processes(run, place).work()
    if code:
        say_error(f"machine {place.machine}: {run.facts().get('error') or f'the processes ended with code {code}'}")
    return FAILED if code else FINISHED


def runnable(run: Run, place: Place = ALONE) -> Topology:
    """The topology of a run that is launched by its directory alone.

    Raises:
        InputError: This machine lacks GPUs for it, or it would run code that no recipe of this project asks for.
    """
    facts, values = run.facts(), run.values()
    if (values.get("model_init_kwargs") or {}).get("trust_remote_code"):
        raise InputError(
            f"{run.recipe} asks for trust_remote_code, which a recipe must: continue the run with make train "
            f"RECIPE={facts['recipe']} NAME={run.name} RESUME=1"
        )
    chosen = identity.launched_with(run, facts)
    if place.machines > 1:
        here, rest = divmod(chosen.processes, place.machines)
        if rest:
            many = count(chosen.processes, "process")
            raise InputError(f"MACHINES={place.machines}: {many} cannot be as many on each")
        if not chosen.use_cpu and here > (visible := len(topology.visible_gpus())):
            raise InputError(
                f"machine {place.machine} ({socket.gethostname()}) has {count(visible, 'visible GPU')}, and "
                f"{chosen.name} on {place.machines} machines needs {here} on each"
            )
        return chosen
    recipe = Recipe(facts["recipe"], {key: recipes.Value(value, run.name) for key, value in facts["own"].items()})
    if missing := [*conflicts.missing_gpus(recipe, chosen, len(topology.visible_gpus()))]:
        raise InputError(*map(str, missing))
    return chosen


def open_for_resume(name: str | Path) -> Run:
    """The run of that name, to be continued.

    Raises:
        InputError: There is none, or it is a rehearsal.
    """
    run = Run.open(name)
    if run.facts().get("rehearsal"):
        raise InputError(f"{run.directory} is a rehearsal, which is never continued; start another, it takes a minute")
    return run


def continue_run(run: Run, *, forget_best: bool = False, place: Place = ALONE) -> int:
    """Launch an existing run again from its newest whole checkpoint."""
    with run.locked():
        data = data_again(run)
        rewind(run, forget_best=forget_best)
        run.update(data=data)
        return launch(run, place)


def data_again(run: Run) -> dict[str, Any]:
    """What run.json holds of the run's rows, which are prepared and tokenised anew where that is gone.

    Raises:
        InputError: The rows are not there or wrong, or the chat template refuses one.
    """
    facts = run.facts()
    own = {key: recipes.Value(value, run.name) for key, value in (run.values() | facts["own"]).items()}
    prepared = preparation.prepare(**facts["data"]["source"], cache=preparation.CACHE)
    return with_tokens(facts["data"], prepared, Recipe(facts["recipe"], own))


def with_tokens(data: dict[str, Any], prepared: preparation.Prepared, recipe: Recipe) -> dict[str, Any]:
    """What run.json holds of its rows, with where their tokens are now.

    Raises:
        InputError: The chat template refuses a row.
    """
    before = {key: value for key, value in data.items() if key not in ("tokens", "not_tokenised")}
    return before | survey.for_training(prepared, tokens.find_tokenizer(recipe))


def check_same_config(run: Run, job: Job) -> None:
    """A resumed run must be the same run.

    Raises:
        InputError: Naming every key, the data or the processes that changed. Upstream would accept most of it in
            silence and ignore some of it.
    """
    facts = run.facts()
    # A run of before a key existed was as the key's default is.
    before = {key: entry["default"] for key, entry in recipes.schema.own().items()} | run.values() | facts["own"]
    after = job.resolved.upstream() | job.resolved.own() | {key: before[key] for key in ("output_dir", "run_name")}
    changed = [
        f"{key}: {recipes.schema.as_yaml(before.get(key))} -> {recipes.schema.as_yaml(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in ("extends", "description", "accelerate_config")
    ]
    if job.topology.facts() != facts["topology"]:
        changed.append(f"topology: {facts['topology']['name']} -> {job.topology.name}, or its number of processes")
    if job.prepared.fingerprint != facts["data"]["fingerprint"]:
        changed.append("the data files")
    if changed:
        raise InputError(
            f"{run.directory} cannot be continued with another recipe, because its optimizer and data order belong to "
            "the old one. Changed:\n  "
            + "\n  ".join(changed)
            + f"\nUse make resume NAME={run.name} to continue as it was, or start a new run"
        )


def launch(run: Run, place: Place = ALONE) -> int:
    """Start the processes of a run that is held, and say how it ended, in its own file where nobody reads any more."""
    with outliving(run.output):
        return _launched(run, place)


def _launched(run: Run, place: Place) -> int:
    began = time.monotonic()
    processes = Processes(run, place)
    try:
        code = processes.work(meanwhile=functools.partial(_import_what_follows, run))
    except OSError as error:
        run.fail(f"the processes cannot be started: {error}")
        return conclude(run, run.facts())
    facts = run.facts()
    if facts["status"] == "running":
        facts |= {
            # A run that is refused when it is continued is what it was before.
            "status": "interrupted" if processes.asked or facts.get("problems") else "failed",
            "error": f"the processes ended with code {code}",
        }
    if facts["status"] != "finished":
        Spare.dismiss(run.directory)
    if facts.get("problems") and not facts.get("resumed"):
        # Nothing was trained, so the name stays free for the corrected recipe.
        shutil.rmtree(run.directory)
        raise InputError(*facts["problems"])
    if facts["status"] == "finished":
        facts["measured"]["mfu"] = speed.utilisation(run)
    facts |= {"ended": provenance.now(), "seconds": round(time.monotonic() - began + facts.get("seconds", 0.0), 2)}
    run.write(facts)
    if facts.get("problems"):
        raise InputError(*facts["problems"])
    code = conclude(run, facts)
    if code == FINISHED and processes.asked:
        # It had ended when it was asked, and what follows a training can be had later.
        later = "evaluate" if facts["own"].get("task") is not None else "report"
        say("stopped", f"after the last step; go on with: make {later} RUN={run.name}")
        return INTERRUPTED
    return code


def _import_what_follows(run: Run) -> None:
    # Whoever needs it says what is wrong with it.
    with contextlib.suppress(Exception):
        facts = run.facts()
        if not facts.get("rehearsal"):
            from sft_recipes.report import pages

            pages.ready(run)
            if facts["own"].get("task") is not None:
                evaluate.measuring()


def conclude(run: Run, facts: dict[str, Any]) -> int:
    """Say how the run ended and where its files are; the exit code says the same."""
    rehearsal, status = facts.get("rehearsal"), facts["status"]
    checkpoint, _ = checkpoints.newest_whole(run)
    if status == "interrupted" and rehearsal:
        say("stopped", "a rehearsal is not continued; start it again")
    elif status == "interrupted":
        kept = f"kept {checkpoint.name}" if checkpoint else "no checkpoint yet"
        job = "its job goes on when it is started again; or " if facts.get("job") else ""
        say("stopped", f"{kept}; {job}continue with: make resume NAME={run.name}")
    elif status != "finished":
        what = f"the rehearsal of {facts['recipe']} failed: " if rehearsal else ""
        say_error(f"{what}{facts.get('error', 'failed')}")
        if run.output.is_file():
            say("details", str(run.output))
        if facts.get("out_of_memory") is not None:
            for label, text in out_of_memory.advice(facts):
                say(label, text)
        if checkpoint and not rehearsal and not facts.get("diverged"):
            again = f"continue with: make resume NAME={run.name}"
            left = checkpoints.best_damage(run, checkpoint) or f"{checkpoint.name} is whole; {again}"
            if left != facts.get("error"):
                say("failed", left)
    elif rehearsal:
        steps, evaluations = facts["measured"]["step"], len(facts["measured"]["eval_loss"])
        done = f"{count(steps, 'step')}, {count(evaluations, 'evaluation')}, "
        done += f"{checkpoint.name if checkpoint else 'no checkpoint'} and the {_trained(facts)}"
        say(
            "rehearsed",
            f"{facts['recipe']} in {duration(facts['seconds'])} without an error: {done}\n"
            "no result: the model was tiny and random, so its losses, speed and weights say nothing",
        )
    else:
        say_measured(facts["measured"])
        say(_trained(facts), str(run.adapter))
        from sft_recipes.report import pages

        pages.draw_curve(run)
    return {"finished": FINISHED, "interrupted": INTERRUPTED}.get(status, FAILED)


def say_measured(measured: dict[str, Any]) -> None:
    """Say how long a finished training took, and what became of the eval loss."""
    text = f"{count(measured['step'], 'step')} in {duration(measured['training_seconds'])}"
    if measured["tokens_per_second"]:
        text += f", {measured['tokens_per_second']:,.0f} tokens/s, {measured['samples_per_second']:,.1f} rows/s"
    if measured.get("mfu"):
        text += f", MFU {measured['mfu']:.0%}"
    if waited := measured.get("waiting_share"):
        text += f", {share(waited, 1)} of it waiting for rows"
    say("finished", f"{text}, peak memory {measured['peak_memory_bytes'] / 2**30:.2f} GiB per process")
    if said := outcome.held_out(measured):
        say("eval loss", "\n".join(said))


def _trained(facts: dict[str, Any]) -> str:
    """What a run leaves: an adapter, or the model where all weights were trained."""
    return "adapter" if "adapter" in facts["measured"] else "model"


def accelerate_config(resolved: Recipe, chosen: Topology) -> dict[str, Any]:
    """The accelerate config to launch with: the chosen one, in the recipe's precision."""
    precision = "bf16" if resolved["bf16"] else "fp16" if resolved["fp16"] else "no"
    return chosen.config | {"mixed_precision": precision}
