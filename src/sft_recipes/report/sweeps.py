"""The page of a sweep: what to try next, each key by itself, what matters, and the trials by their eval loss."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.files import write_whole
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.report import charts, page
from sft_recipes.report.report import link
from sft_recipes.report.table import Code, Table, pairs
from sft_recipes.runs.run import RUNS, Run
from sft_recipes.terminal import count, duration

Facts = dict[str, Any]

# The states of sweep.json whose eval loss is drawn, with the role that a chart draws them in.
DRAWN = {"finished": "tuned", "pruned": "base"}


def write(
    path: Path, facts: Facts, importances: Mapping[str, float], further: Sequence[tuple[str, str]], runs: Path = RUNS
) -> None:
    """Write the page of a sweep, whole or not at all.

    Args:
        path: of the page; it leads to the reports of the runs from there.
        facts: what sweep.json holds.
        importances: of each key, the share of the differences in eval loss that is its own; empty if not known.
        further: what to try next: a sentence, and the command that does it.
    """
    trials, keys = facts["trials"], list(facts["space"])
    states = Counter(each["state"] for each in trials)
    best = next((each for each in trials if each["state"] == "finished"), None)
    body = page.html(
        "sweep.html",
        title=f"Sweep {facts['name']}",
        facts=facts,
        states=", ".join(f"{number} {state}" for state, number in states.items()),
        best=best and {**best, "said": ", ".join(f"{key} {as_yaml(value)}" for key, value in best["values"].items())},
        finished=states["finished"],
        further=further,
        keys=keys,
        trials=[_trial(each, keys, link(Run(runs / each["run"]).report, path)) for each in trials],
        charts=[_slice(key, facts["space"][key], trials) for key in keys] if best else [],
        importances=Table(
            f"Importance by Optuna's fANOVA, from {count(states['finished'], 'finished trial')}",
            ["key", "share of the differences in eval loss"],
            [[Code(key), f"{100 * share:.0f} %"] for key, share in importances.items()],
        ),
        asked=pairs(
            "As it was asked for",
            {
                "recipe": facts["recipe"],
                "over": Code(facts["over"]),
                "changed for all": Code(" ".join(facts["overrides"])) if facts["overrides"] else None,
                "chosen by": facts["chosen_by"],
                "seed": facts["seed"],
                "fingerprint of the data": Code(facts["data"]),
            },
        ),
    )
    write_whole(path, body)


def _trial(trial: Facts, keys: Sequence[str], address: str | None) -> Facts:
    """A line of the table of trials."""
    loss, seconds = trial["eval_loss"], trial["seconds"]
    return {
        "run": trial["run"],
        "address": address,
        "state": trial["state"],
        "loss": None if loss is None else f"{loss:.4f}",
        "values": [as_yaml(trial["values"][key]) for key in keys],
        "seconds": None if seconds is None else duration(seconds),
    }


def _slice(key: str, space: Facts, trials: Sequence[Facts]) -> Any:
    """The eval losses over one key, whatever the others were."""
    points = [
        (
            DRAWN[each["state"]],
            space["choices"].index(each["values"][key]) if "choices" in space else each["values"][key],
            each["eval_loss"],
            f"{each['run']}: {key} {as_yaml(each['values'][key])}, eval loss {each['eval_loss']:.4f}, {each['state']}",
        )
        for each in trials
        if each["eval_loss"] is not None and each["state"] in DRAWN
    ]
    ticks = [as_yaml(value) for value in space["choices"]] if "choices" in space else None
    draw = functools.partial(
        charts.slice_of, points=points, title=f"eval loss over {key}", ticks=ticks, log=space.get("log", False)
    )
    return charts.svg(f"slice-{key}", f"Eval loss of each trial over {key}; a table below has the figures", draw)
