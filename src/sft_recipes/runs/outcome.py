"""What became of the eval loss, and the verdict, in the words that the terminal, the report and the API share."""

from collections.abc import Mapping
from typing import Any


def kept_step(measured: dict[str, Any]) -> int:
    """The step whose weights a run left."""
    if "kept_step" in measured:
        return measured["kept_step"]
    # A run of before it was recorded.
    best = measured.get("best_checkpoint")
    return int(best.rpartition("-")[2]) if best else measured["step"]


def held_out(measured: dict[str, Any]) -> list[str]:
    """Sentences on the evaluations of a run: from the first to that of the weights it left, and what went wrong.

    None where nothing was evaluated.
    """
    evaluations, kept = measured["eval_loss"], kept_step(measured)
    if not evaluations:
        return []
    first, last, lowest = evaluations[0], evaluations[-1], min(evaluations, key=lambda each: each["eval_loss"])
    ours = next((each for each in evaluations if each["step"] == kept), None)
    began = f"{first['eval_loss']:.4f} {_when(first)}"
    if ours is None:
        then = f" -> {last['eval_loss']:.4f} {_when(last)}" if last is not first else ""
        return [f"{began}{then}; the weights that were kept, those of step {kept}, were not evaluated"]
    said = [began if ours is first else f"{began} -> {ours['eval_loss']:.4f} {_when(ours)}"]
    worse = None
    if ours["eval_loss"] > lowest["eval_loss"]:
        worse = "" if lowest is first else f": it had been {lowest['eval_loss']:.4f} {_when(lowest)}"
    elif last["eval_loss"] > first["eval_loss"]:
        worse = f" after that: it became {last['eval_loss']:.4f} {_when(last)}"
    if worse is not None:
        said.append(f"training made it worse{worse}; the weights kept are those of step {kept}")
    return said


def _when(evaluation: dict[str, Any]) -> str:
    return f"at step {evaluation['step']}" if evaluation["step"] else "before training"


def verdict(found: Mapping[str, Any]) -> str:
    """The line of a verdict in metrics.json, as it stands after that word."""
    return str(found["text"]).replace("no verdict: ", "none: ", 1)
