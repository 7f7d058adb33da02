"""A recipe with several values: each trial an ordinary run, the best by the eval loss, compared and written down.

Without a number of trials every combination is trained, in order. With one, Optuna chooses them, and stops those whose
eval loss is above the median of the others'. What was tried lies in an SQLite study beside the runs, so that the
same command goes on where it stopped.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Unpack

from sft_recipes.demo import bases
from sft_recipes.errors import InputError, refuse
from sft_recipes.files import write_whole
from sft_recipes.launch import launch, seeds, space, submit
from sft_recipes.launch import trials as trials_on
from sft_recipes.launch.clients import trial_name
from sft_recipes.launch.processes import signals_taken
from sft_recipes.launch.space import Choices, Space
from sft_recipes.plan import plan
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.report import pages
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import count, duration, outliving, say, say_error

# The version of sweep.json; it grows when a reader of today would misread it.
SCHEMA = 1
# Trials that have to be finished before another is stopped for being worse than their median.
BEFORE_PRUNING = 4
# The share of its steps that every trial is given: warm-up, and the slow start of a small learning rate.
CHANCE = 0.25
# With another length of training the same evaluation comes at another learning rate, which is no reason to stop.
LENGTHS = ("num_train_epochs", "max_steps", "global_batch_size", "per_device_train_batch_size")
# The best that are compared on test rows: corrected for all pairs of many, no difference would show.
COMPARED = 5
# A key of a smaller share of the differences in eval loss is not worth going on with.
MATTERS = 0.05
SECONDS = 0.5
# Optuna's states as sweep.json names them, the best first.
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "interrupted", "FAIL": "failed"}


@dataclasses.dataclass
class Active:
    """A trial that is being trained."""

    trial: Any
    run: Run
    process: subprocess.Popen
    device: int
    output: IO | None
    evaluations: int  # how many Optuna has been told
    pruned: bool = False


class Sweep:
    """One sweep: what it goes over, its study, and the trials that are under way."""

    def __init__(self, directory: Path, asked: dict[str, Any], trials: int | None, jobs: int) -> None:
        self.directory, self.asked, self.trials, self.jobs = directory, asked, trials, jobs
        self.space: Space = space.parse(asked["over"])[0]
        self.stem = directory.name.removesuffix(".sweep")
        # What a command that goes on names of an engine.
        self.placed: dict[str, Any] = {}
        self.check = space.check
        self.active: list[Active] = []
        self.stopping = 0
        self.broken = False

    @functools.cached_property
    def study(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # That proposing beside unfinished trials (constant_liar) is experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.directory.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.directory / 'study.db'}")
        done = sum(each.n_trials for each in optuna.get_all_study_summaries(storage))
        study = optuna.create_study(
            study_name=self.stem,
            storage=storage,
            load_if_exists=True,
            # A sampler that starts anew with the same seed would propose the same trials again.
            sampler=optuna.samplers.TPESampler(
                seed=self.asked["seed"] + done,
                n_startup_trials=max((self.trials or 0) // 3, 3),
                constant_liar=self.jobs > 1,
            ),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=0),
        )
        if self.trials is None:
            for values in space.grid(self.space):
                stored = {key: each.stored(values[key]) for key, each in self.space.items()}
                study.enqueue_trial(stored, skip_if_exists=True)
        return study

    @property
    def prunes(self) -> bool:
        """Whether a trial may be stopped for its eval loss."""
        return self.trials is not None and not any(key in LENGTHS for key in self.space)

    @property
    def number(self) -> int:
        """How many trials there are to be."""
        return self.trials or space.size(self.space)

    def run_of(self, number: int) -> Run:
        """The run of a trial."""
        return Run(RUNS / trial_name(self.stem, number))

    def values(self, trial: Any) -> dict[str, Any]:
        """What a trial sets."""
        return {key: each.read(trial.params[key]) for key, each in self.space.items()}

    def run(self) -> int:
        """Train what is left: 0 when it has ended, 3 if it was stopped, 1 if the first trial failed."""
        with signals_taken(self._ask):
            left = self.left()
            while True:
                while not self.stopping and len(self.active) < self.jobs and (trial := next(left, None)):
                    self._start(trial)
                if not self.active:
                    return launch.FAILED if self.broken else launch.INTERRUPTED if self.stopping else launch.FINISHED
                time.sleep(SECONDS)
                for each in [*self.active]:
                    self._watch(each)

    def _ask(self, number: int, frame: object) -> None:
        if self.stopping and number == signal.SIGHUP:
            # A terminal that closes hangs up more than once.
            return
        self.stopping += 1
        for each in self.active:
            # The first time it saves and stops, the second time it stops at once; a scoring process keeps what it has.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGINT)

    def left(self) -> Iterator[Any]:
        """The trials to train: first those that were interrupted, then new ones."""
        import optuna

        for frozen in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            yield optuna.trial.Trial(self.study, frozen._trial_id)
        distributions = {key: each.distribution() for key, each in self.space.items()}
        waiting = optuna.trial.TrialState.WAITING
        while sum(each.state != waiting for each in self.study.trials) < self.number:
            trial = self.study.ask(distributions)
            before = self.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
            same = next((each for each in before if each.params == trial.params), None)
            if same is not None:
                # The same values and the same seed are the same run.
                trial.set_user_attr("same_as", same.number)
                self.study.tell(trial, same.value)
                continue
            yield trial

    def _start(self, trial: Any) -> None:
        values, run = self.values(trial), self.run_of(trial.number)
        say("trial", f"{trial.number + 1} of {self.number}: {space.said(values)}, in {run.directory}")
        free = next(n for n in range(self.jobs) if n not in {each.device for each in self.active})
        if run.exists:
            command = ["resume", "--", run.name]
            if (facts := run.facts())["status"] == "finished":
                if facts["own"].get("task") is None or run.metrics("test").is_file():
                    # It had ended when this program was stopped.
                    self.told(trial, run, launch.FINISHED)
                    return
                command = ["evaluate", "--base", "--", run.name]
        else:
            command = ["train", "--name", run.name]
            for option, value in (("--accel", self.asked["accel"]), ("--gpus", self.asked["processes"])):
                command += [option, str(value)] if value else []
            for word in [*self.asked["overrides"], *recipes.as_words(values)]:
                command += ["--set", word]
            command += ["--", self.asked["recipe"]]
        output = (self.directory / f"{run.name}.txt").open("a", encoding="utf-8") if self.jobs > 1 else None
        process = subprocess.Popen(
            [sys.executable, "-m", "sft_recipes", *command],
            env=os.environ | _device(free, self.jobs, on_cpu=self.asked["on_cpu"]),
            stdout=output or sys.stdout,
            stderr=subprocess.STDOUT if output else None,
            # Ctrl-C reaches it once, through us.
            start_new_session=True,
        )
        reported = len(self.study.trials[trial.number].intermediate_values)
        self.active.append(Active(trial, run, process, free, output, reported))

    def _watch(self, each: Active) -> None:
        """Tell Optuna the new evaluations of a trial, stop it if it is not worth more, conclude it if it has ended."""
        ended = each.process.poll() is not None
        losses = held_out(each.run)
        new = losses[each.evaluations :]
        for _, loss in new:
            each.evaluations += 1
            each.trial.report(loss, each.evaluations)
            if self.jobs > 1:
                say("evaluation", f"{each.run.name}: eval loss {loss:.4f} at evaluation {each.evaluations}")
        if new and self.prunes and not ended and not each.pruned and self._worse(each, step=new[-1][0]):
            each.pruned = True
            say("pruned", f"{each.run.name}: eval loss {new[-1][1]:.4f} is above the median at this point")
            each.run.stop.touch()
        if ended:
            self.active.remove(each)
            if each.output:
                each.output.close()
            self.told(each.trial, each.run, each.process.returncode, pruned=each.pruned)

    def _worse(self, each: Active, step: int) -> bool:
        """Whether a trial has been given its chance, and is above the median of the others."""
        steps = each.run.facts()["in_effect"]["run"]["max_steps"]
        return step >= CHANCE * steps and each.trial.should_prune()

    def told(self, trial: Any, run: Run, code: int, *, pruned: bool = False) -> None:
        """Write down how a trial ended; one that was interrupted stays open."""
        from optuna.trial import TrialState

        status = run.facts()["status"] if run.exists else "refused"
        if status == "finished" and code == launch.INTERRUPTED:
            # In its evaluation, which goes on with what it has.
            self.stopping = max(self.stopping, 1)
        elif status == "finished" and (losses := [loss for _, loss in held_out(run)]):
            self.study.tell(trial, kept(run, losses))
            if code != launch.FINISHED:
                say("trial", f"{run.name} was trained; what follows a training ended with code {code}")
        elif status == "interrupted" and pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif status == "interrupted" or self.stopping:
            self.stopping = max(self.stopping, 1)
        else:
            self.study.tell(trial, state=TrialState.FAIL)
            diverged = run.exists and run.facts().get("diverged")
            if not diverged and TrialState.COMPLETE not in {each.state for each in self.study.trials}:
                say("trial", f"{run.name} failed before any has a result, and others may fail as it did; stopping")
                self.broken, self.stopping = True, max(self.stopping, 1)
        self.write()

    def facts(self) -> dict[str, Any]:
        """What sweep.json holds: what was asked and every trial, the best first."""
        found = [each for each in self.study.trials if each.state.name != "WAITING"]
        order = [*STATES]
        trials = [
            {
                "number": each.number,
                "run": self.run_of(each.user_attrs.get("same_as", each.number)).name,
                "state": "open" if self.placed and each.state.name == "RUNNING" else STATES[each.state.name],
                "values": self.values(each),
                "eval_loss": each.value,
                "evaluations": len(each.intermediate_values),
                "seconds": run.facts().get("seconds") if (run := self.run_of(each.number)).exists else None,
            }
            for each in sorted(found, key=lambda each: (order.index(each.state.name), each.value or 0.0, each.number))
        ]
        spaces = {key: each.facts() for key, each in self.space.items()}
        return {"schema": SCHEMA, "name": self.stem, **self.asked, "space": spaces, "trials": trials}

    @functools.cached_property
    def importances(self) -> dict[str, float]:
        """Of several keys the share of the differences in eval loss that is each one's, by Optuna's fANOVA."""
        import optuna

        done = self.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        if len(self.space) < 2 or len({each.value for each in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(self.study, evaluator=evaluator)

    def write(self) -> None:
        write_whole(self.directory / "sweep.json", json.dumps(self.facts(), indent=2) + "\n")

    def check_same_config(self) -> None:
        """Nothing, for a new sweep or the same one.

        Raises:
            InputError: A sweep of that name went over something else; says what differs.
        """
        path = self.directory / "sweep.json"
        if not self.directory.exists():
            if taken := sorted(path.name for path in RUNS.glob(f"{self.stem}-t[0-9][0-9][0-9]")):
                raise InputError(f"{RUNS / taken[0]} is a run already; choose another NAME=")
            return
        if not path.is_file():
            raise InputError(f"{self.directory} is no sweep that can go on; choose another NAME=")
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self.asked))
        changed = [key for key in now if key != "values" and before.get(key) != now[key]]
        old, new = before["values"], now["values"]
        changed += [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            raise InputError(
                f"{self.directory} was another sweep, with another {', '.join(changed)}; choose another NAME=, or "
                "repeat its command to go on with it"
            )

    def conclude(self, facts: dict[str, Any], code: int, out: Path | None, where: Where) -> int:
        """Say what came of it, write its page, and the best as a recipe if that was asked; give the exit code."""
        asked, trials = self.asked, facts["trials"]
        for each in trials:
            loss = "" if each["eval_loss"] is None else f"eval loss {each['eval_loss']:.4f}, "
            time_taken = f", {duration(each['seconds'])}" if each["seconds"] else ""
            say(each["state"], f"{each['run']}: {loss}{space.said(each['values'])}{time_taken}")
        if code != launch.FINISHED:
            left = self.number - sum(each["state"] not in ("interrupted", "open") for each in trials)
            given = {"RECIPE": asked["recipe"], "OVER": asked["over"], "TRIALS": self.trials, "NAME": self.stem}
            given |= {"ACCEL": asked["accel"], "GPUS": asked["processes"], "OUT": out}
            given |= {"JOBS": self.jobs if self.jobs > 1 else None, **self.placed}
            command = seeds.make_command("sweep", given, asked["overrides"])
            say("left", f"{count(left, 'trial')}: {command}")
            self._page(facts, [(f"{count(left, 'trial')} are left; the same command goes on with them:", command)])
            return code
        done = [each for each in trials if each["state"] == "finished"]
        if not done:
            say_error("no trial finished; the runs say why")
            self._page(facts, [])
            return launch.FAILED
        runs = [Run(RUNS / name) for name in dict.fromkeys(each["run"] for each in done)][:COMPARED]
        if all(run.metrics("test").is_file() for run in runs):
            seeds.conclude(runs)
        else:
            say("compare", "not by test rows, which the recipe has none of to evaluate (task, test_file)")
        best = done[0]
        say(
            "best",
            f"{best['run']}: {space.said(best['values'])}\n"
            f"the lowest of {count(len(done), 'eval loss')} flatters itself; rows that chose it cannot judge it",
        )
        if out is not None:
            self.write_recipe(best, len(trials), out)
            say("recipe", str(out))
        words = [] if out else [*asked["overrides"], *recipes.as_words(best["values"])]
        name = out.stem if out else asked["recipe"]
        target = "launch" if self.placed else "train"
        train = f'{seeds.make_command(target, {"RECIPE": name, **self.placed}, words)} SEEDS="42 43 44"'
        further = self._further(best, where)
        for sentence, command in further:
            say("edge", f"{sentence} {command}")
        say("next", train)
        self._page(facts, [*further, ("Whether the best is more than luck, three seeds of it say:", train)])
        return launch.FAILED if any(each["state"] == "failed" for each in trials) else launch.FINISHED

    def _page(self, facts: dict[str, Any], further: Sequence[tuple[str, str]]) -> None:
        pages.write_sweep(self.directory / "sweep.html", facts, self.importances, further)

    def _further(self, best: dict[str, Any], where: Where) -> list[tuple[str, str]]:
        """Where the best is at an end of what was tried: that, and the sweep that goes on there, if it would start."""
        found = {
            key: onwards
            for key, each in self.space.items()
            if self.importances.get(key, 1) >= MATTERS and (onwards := space.beyond(key, each, best["values"][key]))
        }
        if not found:
            return []
        over = " ".join(text for _, text in found.values())
        kept = {key: value for key, value in best["values"].items() if key not in found}
        words = [*self.asked["overrides"], *recipes.as_words(kept)]
        ends = " and ".join(
            f"the {end} {key} that was tried ({as_yaml(best['values'][key])})" for key, (end, _) in found.items()
        )
        wanted, there = space.parse(over)[0], Where(**{**where, "overrides": words})
        try:
            self.check(self.asked["recipe"], wanted, **there)
        except InputError:
            # There are no such values, as of a dropout of 1.
            return []
        names = (f"{self.stem}-{number}" for number in itertools.count(2))
        given = {"RECIPE": self.asked["recipe"], "OVER": over, "ACCEL": self.asked["accel"]}
        given |= {"TRIALS": self.trials, "NAME": next(name for name in names if not (RUNS / f"{name}.sweep").exists())}
        command = seeds.make_command("sweep", given | {"GPUS": self.asked["processes"], **self.placed}, words)
        return [(f"the best has {ends}, so a better one may lie beyond:", command)]

    def write_recipe(self, best: dict[str, Any], tried: int, out: Path) -> None:
        """Write what a trial set as a recipe that extends the swept one, or what that one extends."""
        name, words = self.asked["recipe"], [*self.asked["overrides"], *recipes.as_words(best["values"])]
        loaded = recipes.load(name, words)
        base = loaded.base or recipes.load(name)
        text = f"{name} with the best of {count(tried, 'trial')} of {self.directory}."
        lines = [f"extends: {base.name}", f"description: {text}"]
        for each in plan.differences(dataclasses.replace(loaded, base=base)):
            if each["key"] in best["values"]:
                lines.append(f"# The lowest eval loss, {best['eval_loss']:.4f}, among {self.asked['over']}")
            lines.append(f"{each['key']}: {as_yaml(each['value'])}")
        write_whole(out, "\n".join(lines) + "\n")


@outliving()
def sweep(
    name: str | Path,
    over: str,
    *,
    trials: int | None = None,
    jobs: int | None = None,
    run_name: str | None = None,
    out: Path | None = None,
    engine: str | None = None,
    site_name: str | None = None,
    dry: bool = False,
    **where: Unpack[Where],
) -> tuple[int, dict[str, Any]]:
    """Train a recipe with the values of OVER, or go on with a sweep that was begun.

    Returns:
        The exit code (0 all trials have ended or have jobs, 1 one of them failed, 3 stopped, and the same command goes
        on) and what sweep.json holds.

    Raises:
        InputError: With everything that is wrong, before the first trial.
    """
    stem = run_name or f"{Path(name).stem}-sweep"
    wanted, problems = space.parse(over)
    ranges = [key for key, each in wanted.items() if not isinstance(each, Choices)]
    if trials is not None and not ranges and trials >= space.size(wanted):
        trials = None
    problems += [] if recipes.NAME.fullmatch(f"{stem}.sweep") else [f"NAME={stem!r} is no run name"]
    problems += _no_recipe(out)
    if trials is None and space.size(wanted) > space.LARGEST:
        problems.append(f"OVER has {space.size(wanted):,} combinations; let Optuna choose among them with TRIALS=20")
    if engine is None and (site_name or dry):
        problems.append("SITE and DRY are of trials that are submitted; write ON=slurm too, or leave them out")
    if engine is not None:
        problems += trials_on.refused(engine, trials, jobs, ranges)
    elif trials is None and ranges:
        problems.append(
            f"OVER: {', '.join(ranges)} is a range, which has no end of values; say how many with TRIALS=20"
        )
    check, site = space.check, None
    try:
        if engine is not None:
            site = submit.site_of(engine, site_name)
            check = functools.partial(space.check, make=functools.partial(trials_on.job_of, engine, site, dry=dry))
        job = check(name, wanted, **where)
    except InputError as error:
        raise InputError(*problems, *error.problems) from None
    at_a_time, too_many = _at_a_time(jobs, job) if site is None else (jobs or 1, [])
    refuse(problems + too_many)
    asked = {
        "recipe": str(name),
        "over": over,
        "accel": where.get("accel"),
        "processes": where.get("processes"),
        "overrides": recipes.as_words(where.get("overrides", ())),
        "values": {key: item.value for key, item in job.recipe.values.items() if key not in wanted},
        "data": job.prepared.fingerprint,
        "seed": job.recipe["seed"],
        "on_cpu": job.topology.use_cpu,
        "chosen_by": "Optuna" if trials else "grid",
        "engine": engine,
    }
    mine = Sweep(RUNS / f"{stem}.sweep", asked, trials, at_a_time)
    mine.check_same_config()
    if engine is not None:
        mine.placed, mine.check = {"ON": engine, "SITE": site_name}, check
    if site is not None and engine is not None:
        submit.warn(engine, site, dry=dry)
    if not dry:
        bases.build_if_needed(job.recipe)
    how = "every combination" if trials is None else "chosen by Optuna"
    how += ", those worse than the median stopped early" if mine.prunes else ""
    how += f", {mine.jobs} at a time" if mine.jobs > 1 else ""
    say("sweep", f"{name}: {count(mine.number, 'trial')} over {over}, {how}; {mine.directory}")
    mine.directory.mkdir(parents=True, exist_ok=True)
    with Run(mine.directory).locked():
        mine.write()
        if engine is None or site is None:
            code = mine.run()
        else:
            trials_on.submit_left(mine, job, engine, site, jobs, dry=dry)
            code = launch.INTERRUPTED if any(mine.left()) else launch.FINISHED
        mine.write()
    facts = mine.facts()
    ended = mine.conclude(facts, code, out, where)
    # Whoever hands out jobs is done.
    return launch.FINISHED if engine is not None and ended == launch.INTERRUPTED else ended, facts


def held_out(run: Run) -> list[tuple[int, float]]:
    """The eval losses of a run so far with their steps; that before the first step is none of training's."""
    # A line that is being written is read the next time.
    found = run.log_entries()
    return [(entry["step"], entry["eval_loss"]) for entry in found if "eval_loss" in entry and entry["step"] > 0]


def kept(run: Run, losses: Sequence[float]) -> float:
    """The eval loss of the weights that a run leaves: the best with load_best_model_at_end, otherwise the last."""
    return min(losses) if run.values().get("load_best_model_at_end") else losses[-1]


def _no_recipe(out: Path | None) -> list[str]:
    if out is None:
        return []
    if out.parent != recipes.RECIPES or out.suffix != ".yaml" or not recipes.NAME.fullmatch(out.stem):
        return [f"OUT={out}: a recipe lies in {recipes.RECIPES}/; write OUT={recipes.RECIPES}/my_best.yaml"]
    return [f"{out} exists and is never overwritten; choose another OUT="] if out.exists() else []


def _at_a_time(jobs: int | None, job: Job) -> tuple[int, list[str]]:
    """How many trials run at a time (unasked, one for each GPU where a trial takes one), and why so many cannot."""
    place, gpus = job.topology, len(job.gpus)
    takes_one = place.backend == "single" and not place.use_cpu
    if jobs is None:
        return (max(gpus, 1) if takes_one else 1), []
    if jobs > 1 and not place.use_cpu and not takes_one:
        return jobs, [
            f"JOBS={jobs}: {place.name} spreads a trial over all its GPUs; with ACCEL=single_gpu each takes one"
        ]
    if jobs > max(gpus, 1) and takes_one:
        return jobs, [f"JOBS={jobs}: {count(gpus, 'GPU')} visible, and each trial takes one"]
    return jobs, []


def _device(number: int, jobs: int, *, on_cpu: bool) -> dict[str, str]:
    """What a trial beside others sees: one GPU, or its share of the cores."""
    if jobs == 1:
        return {}
    if on_cpu:
        # Threads of several processes that wait for one another on the same cores cost far more than they compute.
        return {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // jobs, 1))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number].strip() if visible else str(number)}
