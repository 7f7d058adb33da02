"""The fastest way to execute a recipe here, measured: a few real steps of the best candidates, a process for each.

What wins is remembered for the model, this hardware and the lengths of the rows (`plan.tuning.remember`), and
`execution: auto` then takes it. Nothing here imports torch; `candidate.py` measures.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from sft_recipes import children
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.plan import execution, tuning
from sft_recipes.plan import job as jobs
from sft_recipes.plan.job import Job, Where, with_data
from sft_recipes.plan.lint import Case
from sft_recipes.plan.plan import without_config
from sft_recipes.recipes import arguments, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Value
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import gib, say, share, table

# Steps of a candidate: those that are not counted, and those that are.
WARM, TIMED = 2, 6
# Nothing but steps, and a loss of each.
ALONE: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "logging_strategy": "steps",
    "logging_steps": 1,
    "max_steps": WARM + TIMED,
}
# How far a loss may be from that of what is written: sums of other order, in float32 and in 16 bit. Where dropout
# draws other masks, that goes for the first step alone, when an adapter is no change yet, and the last for the others.
TOLERANCE = {"float32": 1e-4, "16 bit": 2e-2}
# Of itself, how far what is written may be at the end for anything to be told from it.
BUSY = 0.2


def tune(name: str | Path, **where: Unpack[Where]) -> dict[str, Any]:
    """Measure a recipe's candidates on this machine, remember the winner, and give what was measured.

    Raises:
        InputError: The recipe would not start here, is one of several processes, or nothing is known of its model.
    """
    words = recipes.parse_overrides(where.get("overrides", ()))
    said = recipes.load(name, words)["execution"] == "auto"
    where["overrides"] = words if said else words | {"execution": Value("auto", "SET")}
    job = jobs.lint_or_raise(jobs.check(name, **where))
    if job.topology.processes > 1:
        raise InputError(
            f"{job.topology.name} has {job.topology.processes} processes, and steps are measured in one; "
            f"choose ACCEL={'cpu' if job.topology.use_cpu else 'single_gpu'}"
        )
    if job.model is None:
        raise InputError(f"{without_config(job.written)}; without it no candidate can be said to fit")
    before = job.case_as_written
    candidates = execution.candidates(before)
    say("topology", job.topology.describe())
    say("measuring", f"{', '.join(candidates)}: {WARM + TIMED} steps each, and the first again at the end")
    # What drifts while they run shows in the first one, which is measured again at the end.
    order = [*candidates.items(), ("as written, again", {})]
    measured = []
    for label, values in order:
        found = {"name": label, "values": values, **_measured(job, values)}
        say("measured", f"{label}: {_words(found)}")
        measured.append(found)
    return _judged(job, before, measured)


def _measured(job: Job, values: dict[str, Any]) -> dict[str, Any]:
    """What a candidate's process found, or why it failed."""
    given = {key: Value(value, "tune") for key, value in {**values, **ALONE}.items()}
    recipe = dataclasses.replace(job.written, values={**job.written.values, **given})
    resolved = with_data(topology.resolve(recipe, job.topology), job.prepared)
    asked = {
        "values": {**resolved.upstream(), "output_dir": "unused"},
        "own": resolved.own(),
        "warm": WARM,
        "timed": TIMED,
    }
    compiles = arguments.compiles(resolved.upstream())
    environment = quiet_environment(on_cpu=job.topology.use_cpu, one_gpu=True, compiles=compiles)
    done = children.run("sft_recipes.benchmark.candidate", asked, env=environment)
    return {"error": children.reason(done)} if done.returncode else json.loads(done.stdout)


def _judged(job: Job, before: Case, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The measurements with whether each learned the same, and the fastest of those, which is remembered."""
    first, again = measured[0], measured.pop()
    for each in (first, again):
        if "error" in each:
            raise InputError(f"what is written cannot be measured: {each['error']}")
    exact = job.written["dtype"] == "float32" and not (job.written["bf16"] or job.written["fp16"])
    limit = TOLERANCE["float32" if exact else "16 bit"]
    later = TOLERANCE["16 bit"] if job.written["use_peft"] and job.written["lora_dropout"] else limit
    for each in measured:
        pairs = zip(each.get("losses", ()), first["losses"], strict=False)
        apart = [abs(one / other - 1) for one, other in pairs] or [math.inf]
        each["apart"] = max(apart)
        each["same"] = each.get("rows") == first["rows"] and apart[0] <= limit and max(apart) <= later
    written = [first["tokens_per_second"], again["tokens_per_second"]]
    drift = max(written) / min(written) - 1
    best = max((each for each in measured if each["same"]), key=lambda each: each["tokens_per_second"])
    if best["tokens_per_second"] <= (1 + execution.WORTH) * max(written):
        best = first
    kept = None
    if drift <= BUSY:
        # Whole, so that they mean the same to a recipe that is written otherwise.
        values = {key: best["values"].get(key, job.written[key]) for key in execution.KEYS}
        kept = str(tuning.remember(before, values, max(best["tokens_per_second"], *written), max(written)))
    return {"recipe": job.written.name, "measured": measured, "drift": drift, "winner": best["name"], "file": kept}


def _words(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"]
    changed = ", ".join(f"{key} {as_yaml(value)}" for key, value in found["values"].items())
    return f"{found['tokens_per_second']:,.0f} tokens/s" + (f" with {changed}" if changed else "")


def render(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The table, and the winner, as (subject, text) for `terminal.say`."""
    rows = [["", "tokens/s", "peak memory", "first loss", "last loss", "same"]]
    for each in facts["measured"]:
        if "error" in each:
            rows.append([each["name"], "failed", "", "", "", ""])
            continue
        losses = [f"{each['losses'][at]:.5f}" for at in (0, -1)]
        same = "yes" if each["same"] else f"no, {share(each['apart'], 1)} apart"
        rows.append(
            [each["name"], f"{each['tokens_per_second']:,.0f}", gib(each["peak_memory_bytes"], 2), *losses, same]
        )
    yield "candidates", table(rows)
    yield "again", f"what is written, measured again at the end, differed from itself by {share(facts['drift'], 1)}"
    if facts["file"] is None:
        yield "winner", "none: this machine is busy, so that nothing can be told; measure again when nothing else runs"
        return
    rates = {each["name"]: each.get("tokens_per_second") for each in facts["measured"]}
    first, best = next(iter(rates.values())), rates[facts["winner"]]
    gain = (
        f"{best / first:.2f} times the tokens a second"
        if best != first
        else f"nothing else gained {share(execution.WORTH, 1)}"
    )
    yield "winner", f"{facts['winner']}, {gain}; execution: auto takes it here from now on ({facts['file']})"
