"""What a run's model answers to the rows of a file, written beside their own columns.

The models' work is that of an evaluation (`scoring.py`), so what was predicted before an interruption is kept.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from sft_recipes.data import preparation
from sft_recipes.errors import InputError, refuse
from sft_recipes.evaluate import evaluate, scoring_job
from sft_recipes.evaluate.questions import ask
from sft_recipes.files import taken, write_whole
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage
from sft_recipes.terminal import count, say

Facts = dict[str, Any]


def predict(name: str, rows: Path, out: Path | None = None) -> tuple[int, Path]:
    """Predict every row of a file into JSON lines: its columns, `prediction`, and what is known of it.

    That is `probabilities` where a class is predicted by likelihood, and else whether the answer `finished`; a class
    by generation is null where the `text` names none, which is `prediction_text` in rows with a text of their own.

    Returns:
        The exit code (0 done, 1 failed, 3 interrupted and resumable) and the file.

    Raises:
        InputError: The run, the rows or the file are not as they should be.
    """
    out = out or rows.with_name(f"{rows.stem}.predictions.jsonl")
    run = Run.open(name)
    refuse([adapter_damage(run)])
    identity.check(run)
    facts = run.facts()
    asked = rows_to_answer(rows, facts, out)
    # Without a task in its recipe, it was trained to answer texts.
    own = facts["own"] if facts["own"].get("task") else facts["own"] | {"task": "generation"}
    task = ask(own, identity.training_rows(run, facts), "train")
    work = out.with_name(f".{out.name}.unfinished")
    fingerprint = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()
    with run.locked() as lock:
        prompts = (prompt for _, prompt in asked)
        scoring_job.prepare(work, run, task.task, task.longest_answers, prompts, fingerprint)
        if code := scoring_job.score(work, ["tuned"], lock):
            say("stopped", "what was predicted is kept; the same command goes on with it")
            return code, out
        with (work / "outputs.jsonl").open(encoding="utf-8") as lines:
            outputs = {output["row"]: output for output in map(json.loads, lines)}
        predicted = (answer(row, task.task, outputs[number]) for number, (row, _) in enumerate(asked, 1))
        write_whole(out, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in predicted))
        shutil.rmtree(work)
    say("predicted", f"{count(len(asked), 'row')} by {task.task.by} into {out}")
    return 0, out


def rows_to_answer(rows: Path, facts: Facts, out: Path) -> list[tuple[Facts, Any]]:
    """The rows with what the model is asked.

    Raises:
        InputError: With every row that is wrong, or because there is a file of the name to write.
    """
    refuse([taken(out)])
    asked = preparation.prompts(
        str(rows),
        facts["data"]["format"],
        # By the names that were recognised; runs of before have those alone that were asked for.
        {**(facts["data"]["source"]["data_columns"] or {}), **facts["data"].get("columns", {})},
        conversational=facts["data"]["conversational"],
    )
    if clash := sorted({"prediction", "probabilities", "finished"} & {key for row, _ in asked for key in row}):
        raise InputError(f"{rows}: the column {clash[0]} would be overwritten by the prediction's; rename it")
    return asked


def answer(row: Facts, task: Any, output: Facts) -> Facts:
    """A row with its prediction."""
    said = evaluate.said(task, output)
    if task.kind == "generation":
        said["text"] = None
    if "text" in row:
        said["prediction_text"] = said.pop("text", None)
    return {**row, **{key: value for key, value in said.items() if value is not None or key == "prediction"}}
