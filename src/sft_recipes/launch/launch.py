"""From a checked recipe to a finished run: data, run directory, `accelerate launch`, and what is said at the end.

This process never imports torch, so that whatever is wrong with the input is said in a second.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Unpack

import psutil
import yaml

from sft_recipes.data import preparation
from sft_recipes.demo import demo_base
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate
from sft_recipes.launch.rewind import rewind
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import conflicts, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology
from sft_recipes.runs import checkpoints, outcome, provenance
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration, say

FINISHED, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 3


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
    job = jobs.check(name, **where)
    for label, text in job.decisions():
        say(label, text)
    if resume:
        run = open_for_resume(run_name or "")
        check_same_config(run, job)
        return finish(run, continue_run(run)), run
    demo_base.build_if_needed(job.recipe)
    code, run = start(jobs.lint_or_raise(job), run_name)
    return finish(run, code), run


def start(job: Job, run_name: str | None) -> tuple[int, Run]:
    """Train a job into a new run; gives the exit code of its processes.

    Raises:
        InputError: The name is taken, or the processes refuse the recipe.
    """
    run = create(job, run_name)
    say("run", str(run.directory))
    with run.locked() as lock:
        return launch(run, lock), run


def finish(run: Run, code: int) -> int:
    """What follows a training that has ended well: the evaluation its recipe asks for, the report, the model card."""
    if code == FINISHED and run.facts()["own"].get("task") is not None:
        code, _ = evaluate.evaluate(str(run.directory), base=True)
    if code == FINISHED:
        # Not before it is needed: what draws and compares takes a second to import.
        from sft_recipes.report import pages

        pages.write(run)
    return code


def create(job: Job, run_name: str | None) -> Run:
    """A new run directory that holds all that the training processes need to know.

    Raises:
        InputError: The name is taken, or is no name.
    """
    facts = {
        "recipe": job.recipe.name,
        # Whoever reads a run as a result asks this first.
        "rehearsal": job.rehearses is not None,
        "rehearses": job.rehearses,
        "status": "running",
        "command": provenance.command(),
        "extends": job.recipe.base.name if job.recipe.base else None,
        "differences": plan.differences(job.recipe),
        "overrides": {key: item.value for key, item in job.recipe.values.items() if item.origin == "SET"},
        "origins": {key: item.origin for key, item in job.resolved.values.items()},
        "own": job.resolved.own(),
        "topology": job.topology.facts(),
        "data": {
            "source": preparation.source_of(job.recipe),
            "fingerprint": job.prepared.fingerprint,
            "format": job.prepared.format,
            "kind": job.prepared.kind,
            "conversational": job.prepared.conversational,
            "splits": job.prepared.splits,
        },
        "findings": [dataclasses.asdict(finding) for finding in job.findings],
        "git": provenance.git_state(),
        "versions": provenance.versions(),
        "python": sys.version.split()[0],
        "gpus": [f"{gpu.name}, {gpu.memory_mib} MiB" for gpu in job.gpus],
        "cpus": os.cpu_count(),
        "started": provenance.now(),
    }
    run = Run.create(run_name, f"rehearsal-{job.recipe.name}" if job.rehearses else job.recipe.name)
    resolved = job.resolved.derive(output_dir=(str(run.directory), "the run"), run_name=(run.name, "the run"))
    run.recipe.write_text(recipes.dump(resolved.upstream()), encoding="utf-8")
    run.accelerate.write_text(recipes.dump(accelerate_config(resolved, job.topology)), encoding="utf-8")
    run.write({"name": run.name, **facts})
    return run


def resume(name: str | Path, *, forget_best: bool = False) -> tuple[int, Run]:
    """Continue a run from its newest whole checkpoint, exactly as it was started.

    Args:
        name: The run's, or its directory's path.
        forget_best: Have the best checkpoint sought from there on, where the one so far is damaged.

    Raises:
        InputError: There is no such run, it is finished, or its data or processes are not there any more.
    """
    run = open_for_resume(name)
    facts = run.facts()
    config = yaml.safe_load(run.accelerate.read_text(encoding="utf-8"))
    chosen = Topology(facts["topology"]["name"], config, "as the run was started")
    recipe = Recipe(facts["recipe"], {key: recipes.Value(value, run.name) for key, value in facts["own"].items()})
    missing = [*conflicts.missing_gpus(recipe, chosen, len(topology.visible_gpus()))]
    prepared = preparation.prepare(**facts["data"]["source"], cache=preparation.CACHE)
    if missing:
        raise InputError(*map(str, missing))
    if prepared.fingerprint != facts["data"]["fingerprint"]:
        raise InputError(
            f"the data of {run.directory} have changed since it was started; put them back, or start a new run"
        )
    say("topology", chosen.describe())
    return finish(run, continue_run(run, forget_best=forget_best)), run


def open_for_resume(name: str | Path) -> Run:
    """The run of that name, to be continued.

    Raises:
        InputError: There is none, or it is a rehearsal.
    """
    run = Run.open(name)
    if run.facts().get("rehearsal"):
        raise InputError(f"{run.directory} is a rehearsal, which is never continued; start another, it takes a minute")
    return run


def continue_run(run: Run, *, forget_best: bool = False) -> int:
    """Launch an existing run again from its newest whole checkpoint."""
    with run.locked() as lock:
        rewind(run, forget_best=forget_best)
        return launch(run, lock)


def check_same_config(run: Run, job: Job) -> None:
    """A resumed run must be the same run.

    Raises:
        InputError: Naming every key, the data or the processes that changed. Upstream would accept most of it in
            silence and ignore some of it.
    """
    facts = run.facts()
    before = yaml.safe_load(run.recipe.read_text(encoding="utf-8")) | facts["own"]
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


def launch(run: Run, lock: int) -> int:
    """Start the processes, pass a stop on to them, and say how it ended.

    Args:
        run: The run, with all its files written.
        lock: The descriptor of its lock, which the processes keep even if this one is killed.
    """
    began = time.time()
    run.stop.unlink(missing_ok=True)
    try:
        process = subprocess.Popen(
            command(run), env=environment(run), start_new_session=True, pass_fds=(lock,), **output_streams()
        )
    except OSError as error:
        run.update(status="failed", error=f"the processes cannot be started: {error}")
        return conclude(run, run.facts())
    asked = 0

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            run.stop.touch()
            print(
                "\nstopping: the run saves a checkpoint at the end of this step; once more to stop at once", flush=True
            )
        else:
            # torchrun puts its workers into sessions of their own, where a signal to our group does not reach them.
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()

    # Python lets no other thread handle signals.
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, ask) for number in signals}
    try:
        if process.stdout:
            for line in process.stdout:
                print(line, end="", flush=True)
        process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        run.stop.unlink(missing_ok=True)
    facts = run.facts()
    if facts["status"] == "running":
        facts |= {
            "status": "interrupted" if asked else "failed",
            "error": f"the processes ended with code {process.returncode}",
        }
    if facts.get("problems") and not facts.get("resumed"):
        # Nothing was trained, so the name stays free for the corrected recipe.
        shutil.rmtree(run.directory)
        raise InputError(*facts["problems"])
    facts |= {"ended": provenance.now(), "seconds": round(time.time() - began + facts.get("seconds", 0.0), 2)}
    run.write(facts)
    if facts.get("problems"):
        raise InputError(*facts["problems"])
    return conclude(run, facts)


def output_streams() -> dict[str, Any]:
    """Where a child process writes: where this one does, or to us who pass it on, if that is no file of the system's.

    A notebook, for one, puts an object of its own in the place of sys.stdout.
    """
    with contextlib.suppress(OSError, ValueError):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.fileno()
            return {"stdout": sys.stdout}
    return {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}


def conclude(run: Run, facts: dict[str, Any]) -> int:
    """Say how the run ended and where its files are; the exit code says the same."""
    rehearsal, status = facts.get("rehearsal"), facts["status"]
    checkpoint, _ = checkpoints.newest_whole(run)
    if status == "interrupted" and rehearsal:
        say("stopped", "a rehearsal is not continued; start it again")
    elif status == "interrupted":
        kept = f"kept {checkpoint.name}" if checkpoint else "no checkpoint yet"
        say("stopped", f"{kept}; continue with: make resume NAME={run.name}")
    elif status != "finished":
        what = f"the rehearsal of {facts['recipe']} failed: " if rehearsal else ""
        print(f"error: {what}{facts.get('error', 'failed')}", file=sys.stderr)
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
    """Say how long a finished training took, and what became of the held-out loss."""
    text = f"{count(measured['step'], 'step')} in {duration(measured['training_seconds'])}"
    if measured["tokens_per_second"]:
        text += f", {measured['tokens_per_second']:,.0f} tokens/s"
    say("finished", f"{text}, peak memory {measured['peak_memory_bytes'] / 2**30:.2f} GiB per process")
    if said := outcome.held_out(measured):
        say("held out", "\n".join(said))


def _trained(facts: dict[str, Any]) -> str:
    """What a run leaves: an adapter, or the model where all weights were trained."""
    return "adapter" if "adapter" in facts["measured"] else "model"


def command(run: Run) -> list[str]:
    """The `accelerate launch` of a run, as an argument list."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(run.accelerate)]
    if run.facts()["topology"]["backend"] != "single":
        # A free port, so that two runs on the GPUs of one machine do not meet.
        launcher += ["--main_process_port", "0"]
    return [*launcher, "-m", "sft_recipes.train.process", str(run.directory)]


def environment(run: Run) -> dict[str, str]:
    """The environment of the training processes: nothing phones home or chatters, and one process sees one GPU."""
    chosen = run.facts()["topology"]
    variables = quiet_environment(on_cpu=chosen["use_cpu"], one_gpu=chosen["backend"] == "single")
    variables["TENSORBOARD_LOGGING_DIR"] = str(run.directory / "tensorboard")
    config = yaml.safe_load(run.accelerate.read_text(encoding="utf-8"))
    if Topology(chosen["name"], config, "").computes_on_cpu:
        # Each process takes its share of the cores; torchrun's own default is one.
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // chosen["processes"])))
    return variables


def accelerate_config(resolved: Recipe, chosen: Topology) -> dict[str, Any]:
    """The accelerate config to launch with: the chosen one, in the recipe's precision."""
    precision = "bf16" if resolved["bf16"] else "fp16" if resolved["fp16"] else "no"
    return chosen.config | {"mixed_precision": precision}
