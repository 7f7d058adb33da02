"""The same recipe with several seeds, one run after another, so that a comparison knows what a seed alone changes."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.errors import InputError, refuse
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.plan.job import Where
from sft_recipes.recipes import recipe as recipes
from sft_recipes.runs.run import RUNS, Run, unfinished
from sft_recipes.terminal import outliving, print_lines, say

# numpy, which `transformers.set_seed` seeds too, takes no larger one.
LARGEST = 2**32 - 1
_SEED = re.compile(r"[0-9]{1,10}")
SEEDED = ("seed", "data_seed")


@outliving()
def train_seeds(
    name: str | Path, seeds: str, *, run_name: str | None = None, resume: bool = False, **where: Unpack[Where]
) -> tuple[int, list[Run]]:
    """Train a recipe once for each seed, into runs NAME-seed42, NAME-seed43 and so on.

    A seed is `seed` and `data_seed`: initial adapter weights, dropout and the order of the rows. The rows that are
    held out stay the same.

    Returns:
        The exit code of the last run (0 finished, 1 failed, 3 interrupted), and the runs begun. The first that does
        not finish is the last.

    Raises:
        InputError: With everything wrong in seeds, names and recipe, before the first run is started.
    """
    stem = run_name or Path(name).stem
    numbers, problems = parse(seeds)
    if resume:
        problems.append(
            f"RESUME=1 continues one run, and SEEDS are several; continue one with make resume NAME={stem}-seedN, "
            "then give the seeds that are left as SEEDS"
        )
    problems += names_taken(stem, numbers)
    words = recipes.as_words(where.get("overrides", ()))
    try:
        problems += set_twice(words)
        jobs.check(name, **where)
    except InputError as error:
        problems += error.problems
    refuse(problems)
    runs: list[Run] = []
    code = launch.FINISHED
    try:
        for seed in numbers:
            say("seed", f"{seed}, run {len(runs) + 1} of {len(numbers)}")
            where["overrides"] = of_seed(words, seed)
            code, run = launch.train(name, run_name=f"{stem}-seed{seed}", **where)
            runs.append(run)
            if code != launch.FINISHED:
                break
    finally:
        # Also when a run is refused or stopped before it began, after others were trained.
        # One that has finished was stopped in its evaluation, which has said how it goes on.
        if runs and (sentence := unfinished(runs[-1])):
            say("left", sentence)
        if left := numbers[len(runs) :] if runs else []:
            # As the others were trained.
            again: dict[str, Any] = {"RECIPE": name, "SEEDS": " ".join(map(str, left)), "NAME": run_name}
            again |= {"ACCEL": where.get("accel"), "GPUS": where.get("processes")}
            say("left", make_command("train", again, words))
    if code == launch.FINISHED:
        conclude(runs)
    return code, runs


def parse(seeds: str) -> tuple[list[int], list[str]]:
    """The seeds as numbers, and what is wrong with them: there is none, one is no seed, or one is there twice."""
    words = seeds.replace(",", " ").split()
    bad = [word for word in words if not _SEED.fullmatch(word) or int(word) > LARGEST]
    problems = [f"SEEDS: {word!r} is no seed; write a whole number from 0 to {LARGEST}" for word in bad]
    numbers = [int(word) for word in words if word not in bad]
    twice = [seed for seed in dict.fromkeys(numbers) if numbers.count(seed) > 1]
    problems += [f"SEEDS: {seed} is there twice; keep one" for seed in twice]
    if not words:
        problems.append("SEEDS names no seed; write SEEDS='42 43 44'")
    return numbers, problems


def set_twice(words: Sequence[str]) -> list[str]:
    """What is wrong with overrides that set a seed themselves.

    Raises:
        InputError: They are no overrides.
    """
    given = [key for key in recipes.parse_overrides(words) if key in SEEDED]
    return [f"SET: {key} is what SEEDS sets; leave it out of SET" for key in given]


def of_seed(words: Sequence[str], seed: int) -> list[str]:
    """Overrides, with a seed among them."""
    return [*words, *recipes.as_words(dict.fromkeys(SEEDED, seed))]


def names_taken(stem: str, seeds: Sequence[int]) -> list[str]:
    """What is wrong with the names of the runs to come: no name, or one that exists."""
    names = [f"{stem}-seed{seed}" for seed in seeds]
    if not all(recipes.NAME.fullmatch(name) for name in names):
        return [f"NAME={stem!r} is no run name: letters, digits, '_', '-' and '.' only"]
    return [
        f"{RUNS / name} exists and is never overwritten; leave {seed} out of SEEDS (make resume NAME={name} completes "
        "an unfinished one), or choose another NAME="
        for name, seed in zip(names, seeds, strict=True)
        if (RUNS / name).exists()
    ]


def make_command(target: str, variables: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """A make command with the variables that are set, as a shell takes it."""
    given = {**variables, "SET": " ".join(overrides)}
    return " ".join([f"make {target}", *(f"{key}={shlex.quote(str(text))}" for key, text in given.items() if text)])


def conclude(runs: Sequence[Run]) -> None:
    """The comparison of the runs where all are evaluated; otherwise what is to be done for one."""
    names = [run.name for run in runs]
    without = [run.name for run in runs if not (run.directory / "metrics.json").is_file()]
    for name in without:
        say("evaluate", f"make evaluate RUN={name}")
    say("compare", f"make compare RUNS={shlex.quote(' '.join(names))}")
    if not without and len(runs) > 1:
        from sft_recipes.report import compare, tables

        print_lines(tables.render(compare.compare(names)))
