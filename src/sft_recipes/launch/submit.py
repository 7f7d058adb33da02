"""A recipe as a job on other machines: planned for all of them, written beside the run, and handed to their engine.

An engine places processes; accelerate and torchrun start them, and what is trained is the same run as anywhere else.
"""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.demo import bases
from sft_recipes.errors import InputError, did_you_mean, refuse
from sft_recipes.files import write_whole
from sft_recipes.launch import clients, kubernetes, launch, ray, seeds, skypilot, slurm
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan, traffic
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import clusters, conflicts, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs import checkpoints, lock
from sft_recipes.runs.run import Run, unfinished
from sft_recipes.terminal import count, outliving, print_lines, say

MARGIN, BEGINNING = 1.5, 900.0
"""A job asks for so many times what the plan says at most, and for so many seconds more to load and to evaluate."""
# Those that take a file; the commands of torchrun are for people.
SUBMITTED: dict[str, Any] = {"slurm": slurm, "kubernetes": kubernetes, "skypilot": skypilot, "ray": ray}
PLANNED = ("batch", "schedule", "memory", "time")


@outliving()
def submit(
    name: str | Path,
    engine: str,
    *,
    nodes: int = 1,
    site_name: str | None = None,
    dry: bool = False,
    run_name: str | None = None,
    **where: Unpack[Where],
) -> Run:
    """Plan a recipe for several machines, write its run and its job, and hand that to the engine.

    Args:
        where: As `job.resolve` takes it, but `processes` are those of one machine.

    Raises:
        InputError: With everything that is wrong, before anything is written; or the engine refuses the job, of which
            nothing is left then.
    """
    site = site_of(engine, site_name)
    if run_name is not None:
        Run.directory_of(run_name)
    job, each = placed(name, engine, nodes, site, dry=dry, **where)
    print_lines(job.decisions())
    warn(engine, site, dry=dry)
    jobs.lint_or_raise(job)
    figures = plan.figures_of(job)
    say_plan(job, figures, nodes, site)
    limit, starts = time_limit(figures, site)
    if not dry:
        bases.build_if_needed(job.recipe)
    run = launch.create(job, run_name)
    try:
        return _hand_over(run, job, engine, nodes, each, site, limit, starts, dry=dry)
    except BaseException:
        shutil.rmtree(run.directory, ignore_errors=True)
        raise


def submit_seeds(
    name: str | Path, engine: str, numbers: str, *, run_name: str | None = None, **asked: Any
) -> list[Run]:
    """A job for each seed, into runs NAME-seed42, NAME-seed43 and so on, which the engine runs as it has room.

    Raises:
        InputError: As `submit`; what was submitted before a refusal is named, and stays.
    """
    stem, words = run_name or Path(name).stem, recipes.as_words(asked.get("overrides", ()))
    found, problems = seeds.parse(numbers)
    refuse([*problems, *seeds.names_taken(stem, found), *seeds.set_twice(words)])
    runs: list[Run] = []
    try:
        for seed in found:
            asked["overrides"] = seeds.of_seed(words, seed)
            runs.append(submit(name, engine, run_name=f"{stem}-seed{seed}", **asked))
    except InputError as error:
        before = [f"before that {', '.join(run.name for run in runs)} got a job, which stays"] if runs else []
        raise InputError(*error.problems, *before) from None
    say("compare", f"when all have finished: make compare RUNS={shlex.quote(' '.join(run.name for run in runs))}")
    return runs


def site_of(engine: str, name: str | None) -> Site:
    """The site of that name for jobs of an engine.

    Raises:
        InputError: There is no such engine or site, or the site is not one of it.
    """
    if engine not in clusters.ENGINES:
        known = clusters.ENGINES
        raise InputError(f"ON={engine}: no such engine{did_you_mean(engine, known)}; there are {', '.join(known)}")
    return clusters.read(name, engine)


def placed(
    name: str | Path, engine: str, nodes: int, site: Site, *, dry: bool, **where: Unpack[Where]
) -> tuple[Job, int]:
    """A recipe as a job on machines of a site, with the processes of each.

    Raises:
        InputError: With all that keeps it from being submitted, but what its rows say.
    """
    job, each = _job(name, nodes, site, where)
    problems = [*_refused(job, nodes, each, site), *_needed(engine, site), *([] if dry else _missing(engine, site))]
    if engine == "ray" and nodes > 1:
        others = ", ".join(name for name in clusters.ENGINES if name != engine)
        problems.append(
            f"NODES={nodes}: on ray one machine trains a run; leave NODES out, or launch ON one of {others}"
        )
    _raise_all(job, problems)
    return job, each


def warn(engine: str, site: Site, *, dry: bool) -> None:
    """Say what a dry run does without, and a job does not."""
    for problem in _missing(engine, site) if dry else ():
        say("warning", f"here, where nothing is submitted: {problem}")


def _job(name: str | Path, nodes: int, site: Site, where: Where) -> tuple[Job, int]:
    """The job on all machines, and the processes of each: as asked, as many as a node has GPUs, or as configured."""
    recipe = recipes.load(name, where.get("overrides", ()))
    accel, asked = where.get("accel"), where.get("processes")
    if not accel and not recipe["accelerate_config"]:
        # What is visible here says nothing of where it runs.
        accel = "ddp" if nodes * (asked or site["gpus_per_node"] or 2) > 1 else "single_gpu"
    configured = topology.read(accel or recipe["accelerate_config"], "ACCEL")
    each = asked or (None if configured.use_cpu else site["gpus_per_node"]) or configured.processes
    return jobs.resolve(name, **Where(**{**where, "accel": accel, "processes": nodes * each})), each


def _refused(job: Job, nodes: int, each: int, site: Site) -> Iterator[str]:
    """What is refused of a job whatever its rows; what this machine lacks is none of it."""
    most = site["gpus_per_node"]
    if most and each > most and not job.topology.use_cpu:
        more = f"NODES={-(-nodes * each // most)} GPUS={most}"
        yield f"GPUS={each}: a node has {most} (clusters/{site.name}.yaml: gpus_per_node); write {more}"
    for conflict in job.conflicts():
        if conflict.phase != "machine" and conflict.rule != "batch-unreachable":
            yield str(conflict)
    yield from map(str, conflicts.unreachable(job.recipe, job.topology.processes, nodes))


def _needed(engine: str, site: Site) -> Iterator[str]:
    """What a site has to say for a job of the engine, and does not."""
    keys = [*SUBMITTED[engine].needed(site)] if engine in SUBMITTED else []
    if keys and site.name is None:
        yield f"ON={engine} needs SITE=NAME, a file of clusters/ like {engine}_example.yaml, with {', '.join(keys)}"
    elif keys:
        yield f"clusters/{site.name}.yaml: {', '.join(keys)}: missing, and a job of {engine} needs it"


def _missing(engine: str, site: Site) -> Iterator[str]:
    """What this machine lacks to submit a job of the site."""
    if engine in SUBMITTED:
        yield from clients.missing(*SUBMITTED[engine].CLIENT)
    if shared := site["shared"]:
        here, there = Path.cwd().resolve(), Path(shared).expanduser().resolve()
        if not there.is_dir():
            yield f"clusters/{site.name}.yaml: shared: there is no folder {shared} on this machine"
        elif not here.is_relative_to(there):
            yield f"{here} is not in {shared} (clusters/{site.name}.yaml: shared); move the project there"
    # Kubernetes has their values in a Secret.
    for variable in () if engine == "kubernetes" else site["environment"] or ():
        if variable not in os.environ:
            yield f"clusters/{site.name}.yaml: environment: {variable} is not set here; export it, or take it out"


def _raise_all(job: Job, problems: list[str]) -> None:
    try:
        jobs.raise_all(job, iter(()))
    except InputError as error:
        problems = [*problems, *error.problems]
    refuse(problems)


def say_plan(job: Job, figures: dict[str, Any], nodes: int, site: Site) -> None:
    """What the plan says of running there, and what goes over the wire."""
    subject = ""
    for label, text in plan.render(figures):
        subject = label or subject
        if subject in PLANNED:
            say(label, text)
    sent = traffic.of(job)
    if sent is None or job.topology.processes == 1:
        return
    low, high = sent.total
    span = plan.size(low) if low == high else f"{plan.size(low)} to {plan.size(high)}"
    text = f"each process sends {span} in a step"
    if nodes > 1 and (rate := site["network_gigabits"]):
        text += f", which takes at least {traffic.seconds(low, rate):.2g} s of a network of {rate:g} Gbit/s"
    say("traffic", text)


def time_limit(figures: dict[str, Any], site: Site) -> tuple[float | None, int]:
    """The seconds to ask for, None where nothing says how many, and in how many starts the run ends."""
    longest = site["max_hours"] and site["max_hours"] * 3600.0
    planned = figures["time"] and figures["time"]["seconds"]
    if not planned:
        return longest, 1
    needed = MARGIN * planned[1] + BEGINNING
    if longest and needed > longest:
        # Each start loads anew, and is told to stop before its end.
        useful = max(longest - BEGINNING - site["grace_seconds"], longest / 4)
        return longest, -int(-MARGIN * planned[1] // useful)
    return needed, 1


def _hand_over(
    run: Run, job: Job, engine: str, nodes: int, each: int, site: Site, limit: float | None, starts: int, *, dry: bool
) -> Run:
    facts: dict[str, Any] = {"engine": engine, "site": site.name, "nodes": nodes, "processes_per_node": each}
    say("run", str(run.directory))
    if engine == "torchrun":
        # It waits for the first machine to continue it.
        run.update(status="interrupted", job=facts | {"id": None})
        for host, command in commands(run, site, Path.cwd(), nodes):
            say("start", f"on {host}:")
            # As they are, to be copied.
            print_lines(command)
        say("stop", "Ctrl-C on any of them saves a checkpoint and stops all; the same commands go on")
        return run
    gpus, place = 0 if job.topology.use_cpu else each, SUBMITTED[engine]
    file = run.directory / place.FILE
    # SLURM alone asks for a time.
    limits = (limit,) if engine == "slurm" else ()
    write_whole(file, place.script(run, site, Path.cwd(), nodes, gpus, *limits))
    say("job", f"{file}:")
    print_lines(file.read_text(encoding="utf-8"))
    say("limit", place.explained(site, *limits))
    if limits and starts > 1:
        say("limit", f"planned to end in {starts} starts of the same job, each of which continues the run")
    number = None if dry else place.submit(file)
    run.update(status="interrupted", job=facts | {"id": number})
    if dry:
        say("dry run", f"nothing is submitted; {place.by_hand(file)} does it")
    else:
        say("submitted", f"job {number}")
        say("follow", f"make status NAME={run.name}, and make logs NAME={run.name}")
        say("stop", f"{place.stopping(number)} ends it; make resume NAME={run.name} goes on by hand")
    return run


def commands(run: Run, site: Site, project: Path, nodes: int) -> Iterator[tuple[str, str]]:
    """The command of each machine, as a shell takes it, with the machine that it is for."""
    hosts = (site["hosts"] or [socket.gethostname()])[:nodes]
    names = [*hosts, *(f"machine {number}" for number in range(len(hosts), nodes))]
    variables = [f"{name}={value}" for name, value in site.variables().items()]
    for number, name in enumerate(names):
        words = ["env", *variables] if variables else []
        words += [sys.executable, "-m", "sft_recipes", "resume", run.name]
        if nodes > 1:
            words += ["--machines", str(nodes), "--machine", str(number), "--head", f"{hosts[0]}:{site['port']}"]
        yield name, f"cd {shlex.quote(str(project))} && {shlex.join(words)}"


def status(name: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """How far a run is: what its directory says, and of one that was launched what its engine says.

    Raises:
        InputError: There is no such run.
    """
    run = Run.open(name)
    facts = run.facts()
    checkpoint, _ = checkpoints.newest_whole(run)
    entries = run.log_entries() if run.log.is_file() else []
    found: dict[str, Any] = {
        "status": facts["status"],
        "step": max((entry["step"] for entry in entries), default=0),
        "held": lock.held(run.directory),
        "checkpoint": checkpoint.name if checkpoint else None,
        "job": facts.get("job"),
        "state": None,
    }
    job, found["state"] = facts.get("job"), state_of(run)
    state = str(found["state"]).partition(" ")[0]
    said = unfinished(run) or f"{run.directory} is finished"
    if state == "pending":
        said = f"{run.directory} waits for its job"
    elif found["held"] or state == "running":
        # Another machine may hold it where that cannot be seen from here.
        said = f"{run.directory} is being trained"
    lines = [("run", said)]
    if job:
        engine, number = job["engine"], job["id"]
        told = f"{number} of {engine}: {found['state']}" if number else f"written for {engine}, and started by hand"
        lines.append(("job", told))
    lines.append(("step", f"{found['step']}, {found['checkpoint'] or 'no checkpoint yet'}"))
    if number := len(facts.get("resumed", [])):
        lines.append(("started", count(number, "time")))
    return found, lines


def state_of(run: Run) -> str | None:
    """What the engine says of the job of a run; None where none was submitted."""
    job = run.facts().get("job")
    place = SUBMITTED.get(job["engine"]) if job and job["id"] else None
    if place is None:
        return None
    return place.state(job) if shutil.which(place.ASKED) else f"not known here, {place.ASKED} is not in PATH"


def logs(name: str, lines: int) -> tuple[Path, str]:
    """The newest file that the jobs of a run have written to, and its last lines.

    Raises:
        InputError: There is no such run, or nothing was written yet.
    """
    run = Run.open(name)
    files = [path for path in [*run.directory.glob("*.out"), run.output] if path.is_file()]
    if not files:
        raise InputError(f"{run.directory}: no job has written anything yet; make status NAME={run.name} says why")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return newest, "\n".join(newest.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
