"""A run put back to the checkpoint from which it is continued: checkpoint, best, log, and what run.json says."""

import json
from pathlib import Path

from sft_recipes.errors import InputError
from sft_recipes.files import json_lines, write_whole
from sft_recipes.runs import checkpoints, provenance
from sft_recipes.runs.run import Run
from sft_recipes.terminal import say


def rewind(run: Run, *, forget_best: bool = False) -> None:
    """Put a run back to its newest whole checkpoint, from which the next launch continues.

    Raises:
        InputError: It is finished, or the checkpoint with its best weights is damaged and not to be forgotten.
    """
    facts = run.facts()
    if facts["status"] == "finished":
        raise InputError(f"{run.directory} is finished; start a new run under another NAME=")
    checkpoint, skipped = checkpoints.newest_whole(run)
    for sentence in skipped:
        say("resume", sentence)
    problem = checkpoints.best_damage(run, checkpoint) if checkpoint else None
    if problem and not forget_best:
        raise InputError(problem)
    if forget_best and not problem:
        raise InputError(f"{run.directory} has lost no best checkpoint; continue it without FORGET_BEST")
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    said = (
        f"{run.directory} continues from {checkpoint.name}" if checkpoint else "no whole checkpoint yet: from step 0"
    )
    say("resume", f"{said}; the best is sought from there on" if forget_best else said)
    if changed := provenance.changed(facts):
        say("resume", f"exact only with the same packages; since the start: {', '.join(changed)}")
    launches = facts.get("launches", [])
    reached = _rewind_log(run, checkpoint)
    if launches and launches[-1]["to_step"] is None:
        # It was killed; the log tells how far it came.
        launches[-1]["to_step"] = reached
    if facts["status"] == "running":
        # Nobody holds its lock, so it was killed before it could say so.
        run.update(status="interrupted")
    run.update(
        status="running",
        resume_from=checkpoint.name if checkpoint else None,
        resumed=[
            *facts.get("resumed", []),
            {"at": provenance.now(), "step": step, "skipped": skipped, "forget_best": forget_best},
        ],
        launches=launches,
        problems=None,
        error=None,
        diverged=None,
        disk_was_full=None,
        out_of_memory=None,
    )


def _rewind_log(run: Run, checkpoint: Path | None) -> int | None:
    """Keep the lines that the log had when the checkpoint was written, and give the last step that it told of.

    What was logged after it is done again.
    """
    state = checkpoints.state(checkpoint) if checkpoint else None
    number = state["stateful_callbacks"]["Record"]["attributes"]["log_lines"] if state else 0
    try:
        entries = json_lines(run.log, cut_off=True)
        kept, reached = entries[:number], entries[-1]["step"] if entries else None
    except (OSError, ValueError, KeyError, TypeError):
        kept, reached = [], None
    if state and len(kept) < number:
        say("resume", f"{run.log} is damaged; its lines are taken from the checkpoint, without their times and speeds")
        kept = state["log_history"]
    if kept or run.log.exists():
        write_whole(run.log, "".join(json.dumps(entry) + "\n" for entry in kept))
    return reached
