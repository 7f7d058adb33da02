"""A finished run again, from its directory alone: does the same come out, and if not, what is not the same?"""

from typing import Any

from sft_recipes.data import preparation
from sft_recipes.demo import bases
from sft_recipes.errors import InputError, listed, refuse
from sft_recipes.launch import launch
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.runs import identity, provenance
from sft_recipes.runs.run import Run, rehearsed, unfinished
from sft_recipes.terminal import say

# What a run was asked for, which the next one is asked for too.
ASKED = ("recipe", "rehearsal", "rehearses", "extends", "differences", "overrides", "origins", "own", "topology")
# PEFT writes its target modules in the order of a set, which is another one in each process.
UNORDERED = "adapter_config.json"


def reproduce(name: str, run_name: str | None = None) -> tuple[int, Run]:
    """Train a finished run again into a new one, and compare what came out to the bit.

    Returns:
        The exit code (0 the same to the bit, 1 it is not or the training failed, 3 interrupted and resumable) and the
        new run, whose `reproduces` holds what was compared.

    Raises:
        InputError: There is nothing to reproduce, or not here.
    """
    before = Run.open(name)
    facts = before.facts()
    refuse([rehearsed(before) or unfinished(before)])
    saved = facts.get("measured", {}).get("saved")
    if not saved:
        raise InputError(
            f"{before.directory} has no checksums of what it trained, so there is nothing to compare with; reproduce "
            "another"
        )
    new_name = Run.directory_of(run_name or f"{before.name}-again").name
    identity.may_ask(before)
    chosen = launch.runnable(before)
    own = {key: recipes.Value(value, before.name) for key, value in (before.values() | facts["own"]).items()}
    recipe = Recipe(facts["recipe"], own)
    bases.build_if_needed(recipe)
    prepared = preparation.prepare(**facts["data"]["source"], cache=preparation.CACHE)
    gpus = topology.visible_gpus()
    read = ("fingerprint", "format", "kind", "conversational", "columns", "holds", "variables", "splits")
    data = {**facts["data"], **{key: getattr(prepared, key) for key in read}}
    again: dict[str, Any] = {
        **{key: facts[key] for key in ASKED if key in facts},
        "data": launch.with_tokens(data, prepared, recipe),
        "findings": [],
        **launch.surroundings(gpus),
    }
    differ = [*identity.changed(before), *_surroundings(facts, again)]
    say("reproduce", f"{before.directory} into a new run; not the same: {'; '.join(differ) or 'nothing known of'}")
    values = before.values() | {"dataset_name": str(prepared.directory)}
    run = Run.create(new_name, "", lambda path: identity.first_files(path, again, values, chosen.config))
    code = launch.finish(run, launch.begin(run))
    if run.facts()["status"] == "finished":
        now = run.facts()["measured"]["saved"]
        other = sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))
        other = [key for key in other if key != UNORDERED]
        run.update(reproduces={"run": before.name, "differences": differ, "other_files": other, "same": not other})
        result = "the same to the bit" if not other else f"not the same: {listed(other)}"
        say("reproduced", f"{run.adapter} and {before.adapter} are {result}")
        code = code or (launch.FAILED if other else launch.FINISHED)
    return code, run


def _surroundings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same around two runs, in words."""
    found = [] if before["data"]["fingerprint"] == now["data"]["fingerprint"] else ["the data have changed"]
    words = {"python": "Python", "gpus": "GPUs", "cpus": "CPU cores"}
    found += [f"{word} {before.get(key)} -> {now[key]}" for key, word in words.items() if before.get(key) != now[key]]
    return found + provenance.changed(before)
