"""What a model has lost by its training: public tasks by lm-evaluation-harness, on the base and with the adapter.

Both models answer the same samples, so differences are paired, and Holm's adjustment over the tasks says which are
real. This process imports no torch; the answers are the work of another (`harness.py`).
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, refuse
from sft_recipes.evaluate import scoring_job
from sft_recipes.evaluate.evaluate import estimate
from sft_recipes.files import staged, write_whole
from sft_recipes.recipes import topology
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage, rehearsed
from sft_recipes.terminal import count, duration, print_lines, say

SCHEMA = 1
FILE = "forgetting.json"
# Tasks of our own, which need no network: small, and of no other merit.
SHIPPED = Path(__file__).parent / "tasks"
WORDS = {"lost": "worse", "gained": "better", "none": "no real difference"}
ALPHA = 0.05


def forgetting(
    name: str, tasks: Sequence[str], *, include: Path | None = None, limit: int | None = None, batch: int = 8
) -> tuple[int, dict[str, Any] | None]:
    """Ask base and tuned model the tasks, and write runs/NAME/forgetting.json.

    Returns:
        The exit code (0 done, 1 failed, 3 interrupted) and what was written.

    Raises:
        InputError: lm-evaluation-harness is not installed, or the run or the tasks are not fit for it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        pip = Path(os.path.relpath(sys.prefix)) / "bin" / "pip"
        raise InputError(f"lm-evaluation-harness is not installed; run {pip} install 'lm-eval>=0.4.13,<0.5'")
    run = Run.open(name)
    facts = run.facts()
    refuse([rehearsed(run) or adapter_damage(run)])
    if not tasks:
        raise InputError(
            "TASKS names no task; write TASKS='hellaswag arc_easy', or TASKS='sums opposites' without a network"
        )
    if include is not None and not include.is_dir():
        raise InputError(f"INCLUDE={include} is no folder; name one that holds tasks as YAML files")
    identity.check(run)
    recipe = run.values()
    with run.locked() as lock, staged(run.directory / ".forgetting") as work:
        job: dict[str, Any] = {
            "recipe": recipe,
            "tuned": str(run.adapter),
            "on_cpu": topology.no_gpu(),
            "tasks": list(tasks),
        }
        job |= {"include": include and str(include), "shipped": str(SHIPPED), "limit": limit, "batch": batch}
        write_whole(work / "job.json", json.dumps(job))
        if code := scoring_job.ask("sft_recipes.evaluate.harness", work, lock, job):
            smaller = "LIMIT= asks fewer samples, and a smaller BATCH= takes less memory"
            say("stopped" if code == 3 else "failed", f"nothing was written; {smaller}")
            return code, None
        answered = json.loads((work / "samples.json").read_text(encoding="utf-8"))
        settings = {"include": include and str(include), "limit": limit}
        head = {"schema": SCHEMA, "run": run.name, "base": recipe["model_name_or_path"], "settings": settings}
        head |= {"adapter": facts["measured"]["saved"], "lm_eval": answered["version"]}
        result = head | {"tasks": compared(answered["tasks"]), "seconds": answered["seconds"]}
        result |= {"device": answered["device"]}
        write_whole(run.directory / FILE, json.dumps(result, indent=1) + "\n")
    print_lines(render(result))
    return 0, result


def compared(tasks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task both means, the paired difference with its 95 % interval, and whether it is real.

    Intervals are those of a bootstrap of samples, or Wilson's of a share. Where each sample is right or wrong, p is
    McNemar's, which holds for few differences too; otherwise it is counted from the resamples. Holm adjusts it.
    """
    import numpy as np

    from sft_recipes.evaluate import statistics

    def means(values: Any) -> Any:
        """Of samples drawn again."""
        return statistics.bootstrap(lambda counts: counts @ values / len(values), np.arange(len(values)), seed=0)

    def mean(values: Any) -> dict[str, float | None]:
        if set(values.tolist()) <= {0.0, 1.0}:
            return statistics.share_of(float(values.sum()), len(values))
        return statistics.estimate(float(values.mean()), statistics.percentile(means(values)))

    found, p_values = [], []
    for name, task in tasks.items():
        both = task["values"]["base"].keys() & task["values"]["tuned"].keys()
        base, tuned = (
            np.array([task["values"][model][number] for number in sorted(both)]) for model in ("base", "tuned")
        )
        drawn = means(tuned - base)
        p_values.append(statistics.difference_p(drawn))
        if {*base.tolist(), *tuned.tolist()} <= {0.0, 1.0}:
            p_values[-1] = statistics.mcnemar(int((base > tuned).sum()), int((tuned > base).sum()))
        entry = {"task": name, "metric": task["metric"], "higher_is_better": task["higher_is_better"]}
        entry |= {"samples": len(base), "base": mean(base), "tuned": mean(tuned)}
        difference = statistics.estimate(float((tuned - base).mean()), statistics.percentile(drawn))
        found.append(entry | {"difference": difference, "p": p_values[-1]})
    for entry, adjusted in zip(found, statistics.holm(p_values), strict=True):
        better = (entry["difference"]["value"] > 0) is entry["higher_is_better"]
        entry["p_holm"] = adjusted
        entry["outcome"] = "none" if adjusted > ALPHA else "gained" if better else "lost"
    return found


def render(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The tasks and what they come to, as (subject, text) for `terminal.say`."""
    for each in result["tasks"]:
        difference = estimate(each["difference"])
        signed = difference if difference.startswith("-") else f"+{difference}"
        yield (
            each["task"],
            f"{each['metric']} {estimate(each['base'])} -> {estimate(each['tuned'])} on "
            f"{count(each['samples'], 'sample')}\n{signed}: {WORDS[each['outcome']]} (p {each['p_holm']:.2g})",
        )
    yield "forgetting", sentence(result)
    yield "took", f"{duration(sum(result['seconds'].values()))} on {result['device']}, lm-eval {result['lm_eval']}"


def sentence(result: Mapping[str, Any]) -> str:
    """What the tasks come to."""
    lost, gained = (
        [each["task"] for each in result["tasks"] if each["outcome"] == outcome] for outcome in ("lost", "gained")
    )
    said = [f"worse on {', '.join(lost)}"] if lost else []
    said += [f"better on {', '.join(gained)}"] if gained else []
    tests = "" if len(result["tasks"]) == 1 else f", by Holm over {len(result['tasks'])} tasks"
    if not said:
        return f"no task shows a real difference from the base{tests}; that is no proof that nothing was lost"
    return f"{' and '.join(said)} than the base{tests}"
