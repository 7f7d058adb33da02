"""The trials of a sweep as jobs of an engine: all that are left at once, and gathered by the same command again.

Nothing waits for them. Each start of the command looks at the runs and asks the engine: it takes in what has finished,
names what failed, and submits what has neither finished nor is under way. So all trials have to be known beforehand.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from sft_recipes.files import write_whole
from sft_recipes.launch import clients, launch, submit
from sft_recipes.launch.clients import Trials
from sft_recipes.plan import lint, plan
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, print_lines, say

if TYPE_CHECKING:
    from sft_recipes.launch.sweep import Sweep

TOGETHER = ("slurm", "ray")
"""Engines that take all trials as one job: an array, or tasks. Of others each is a job."""
# The states of a job that has ended, as the engines name them.
_OVER = re.compile(
    "(complete|succeeded|fail|cancel|stopped|timeout|node_fail|out_of_memory|preempted|boot_fail|deadline|revoked)"
    "|.* does not know it any more"
)


def refused(engine: str, trials: int | None, jobs_at_a_time: int | None, ranges: list[str]) -> Iterator[str]:
    """Why a sweep cannot be jobs of an engine."""
    if engine == "torchrun":
        yield "ON=torchrun: its commands are started by hand, a run each; leave ON out, or write ON=slurm"
        return
    if trials is not None or ranges:
        what = f"OVER: {', '.join(ranges)} is a range" if trials is None else f"TRIALS={trials}"
        yield (
            f"{what}: Optuna chooses a trial by the results of others, and ON={engine} submits all at once; write "
            "values, whose every combination is a trial, or leave ON out"
        )
    if jobs_at_a_time is not None and engine not in TOGETHER:
        yield f"JOBS={jobs_at_a_time}: {engine} runs the trials as it has room; leave JOBS out"


def job_of(engine: str, site: Site, name: str | Path, *, dry: bool, **where: Unpack[Where]) -> Job:
    """The job of a recipe as one of an engine, on one machine, as `submit.placed` makes it."""
    return submit.placed(name, engine, 1, site, dry=dry, **where)[0]


def submit_left(sweep: "Sweep", job: Job, engine: str, site: Site, jobs_at_a_time: int | None, *, dry: bool) -> None:
    """Take in the trials that have ended, and submit those that neither have nor are under way.

    Raises:
        InputError: The engine refuses a job. Of the trials that were to be submitted no new run is left then, except
            those that got a job before.
    """
    left = [*_left(sweep, engine)]
    new = [run for trial in left if not (run := sweep.run_of(trial.number)).exists]
    asked = {"engine": engine, "site": site.name, "nodes": 1, "processes_per_node": job.topology.processes, "id": None}
    try:
        made = {trial.number: _begun(sweep, trial, job, asked) for trial in left}
        place, files = submit.SUBMITTED[engine], _written(sweep, made, engine, site, jobs_at_a_time) if made else {}
        for file, numbers in files.items():
            if dry:
                say("dry run", f"nothing is submitted; {place.by_hand(file)} does it")
                continue
            identifier = place.submit(file)
            for number in numbers:
                own = f"{identifier}_{number}" if engine == "slurm" else identifier
                run = sweep.run_of(number)
                run.update(job=run.facts()["job"] | {"id": own})
            say("submitted", f"job {identifier}, {count(len(numbers), 'trial')}; {place.stopping(identifier)} ends it")
    except BaseException:
        for run in new:
            if not run.exists or not (run.facts().get("job") or asked)["id"]:
                shutil.rmtree(run.directory, ignore_errors=True)
        raise


def _begun(sweep: "Sweep", trial: Any, job: Job, asked: dict[str, Any]) -> Job:
    """The job of a trial, as its run would be trained here; the run waits for what is asked of an engine."""
    words = [*sweep.asked["overrides"], *recipes.as_words(sweep.values(trial))]
    made, run = job.with_recipe(recipes.load(sweep.asked["recipe"], words)), sweep.run_of(trial.number)
    made.findings = tuple(lint.findings(made.case))
    if not run.exists:
        launch.create(made, run.name)
        run.update(status="interrupted")
    # What comes after these has come of this job.
    run.update(job=asked | {"events": len(run.facts()["journal"])})
    return made


def _written(
    sweep: "Sweep", made: dict[int, Job], engine: str, site: Site, jobs_at_a_time: int | None
) -> dict[Path, list[int]]:
    """The files to submit, with the numbers of the trials that each is for."""
    place, first = submit.SUBMITTED[engine], next(iter(made.values()))
    gpus = 0 if first.topology.use_cpu else first.topology.processes
    site, project, limits = _part(site, gpus), Path.cwd(), []
    # Of the first values, as it would be here.
    submit.say_plan(first, plan.figures_of(first), 1, site)
    if engine == "slurm":
        # It alone asks for a time, which has to do for the longest.
        times = [submit.time_limit(plan.figures_of(each), site)[0] for each in made.values()]
        limits = [max(known) if len(known := [each for each in times if each]) == len(times) else None]
    together = {"trials": Trials(sweep.stem, [*made], jobs_at_a_time)} if engine in TOGETHER else {}
    several = [(Run(sweep.directory), [*made])] if together else [(sweep.run_of(number), [number]) for number in made]
    files = {}
    for run, numbers in several:
        file = run.directory / place.FILE
        write_whole(file, place.script(run, site, project, 1, gpus, *limits, **together))
        files[file] = numbers
    one, *more = files
    say("job", f"{one}{', and one for each other trial' if more else ''}:")
    print_lines(one.read_text(encoding="utf-8"))
    say("limit", place.explained(site, *limits))
    return files


def _left(sweep: "Sweep", engine: str) -> Iterator[Any]:
    """The trials to submit; what is known of the others is said, and written down where they have ended."""
    for trial in [*sweep.left()]:
        run = sweep.run_of(trial.number)
        if not run.exists:
            yield trial
            continue
        facts, state = run.facts(), submit.state_of(run)
        status, evaluated = facts["status"], facts["own"].get("task") is None or run.metrics("test").is_file()
        if (status == "finished" and evaluated) or facts.get("diverged"):
            sweep.told(trial, run, launch.FINISHED)
        elif state is None:
            # Its job was written, and not submitted.
            yield trial
        elif _OVER.match(state) or (engine in TOGETHER and _failed_since(facts)):
            why = f": {facts['error']}" if status == "failed" else ""
            say("failed", f"{run.name} has not finished, its job {facts['job']['id']} is {state}{why}")
            yield trial
        else:
            say("trial", f"{run.name}: {state}")


def _failed_since(facts: dict[str, Any]) -> bool:
    """Whether a run has failed in its job, which goes on with others."""
    return facts["status"] == "failed" and len(facts["journal"]) > facts["job"]["events"]


def _part(site: Site, gpus: int) -> Site:
    """A site whose jobs ask for the cores and memory that belong to a trial's GPUs, so that others fit beside it."""
    taken = site["gpus_per_trial"] if gpus == 1 and site["gpus_per_trial"] else gpus
    share = taken / site["gpus_per_node"] if taken and site["gpus_per_node"] else 1.0
    values = dict(site.values)
    if cores := site["cpus_per_node"]:
        values["cpus_per_node"] = max(1, int(cores * share))
    if memory := site["memory_per_node"]:
        values["memory_per_node"] = f"{max(1, int(clients.size_in_bytes(memory) * share) >> 20)}M"
    return Site(site.name, values)
