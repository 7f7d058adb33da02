"""What people read of a run, made when its processes have ended: the loss curve, the report and the model card.

And of a sweep its page. The run is what counts. A page that cannot be made is said in one line and fails nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_recipes.data import tokens
from sft_recipes.report import card, charts, report, sweeps
from sft_recipes.runs.run import Run
from sft_recipes.terminal import say


def ready(run: Run) -> None:
    """Have what draws, and what reads tokenizers, imported while something else is waited for: it takes a second."""
    with charts.figure(1, 1, (1, 1)):
        pass
    recipe = run.values()
    if base := tokens.directory_of(recipe["model_name_or_path"], recipe.get("model_revision", "main")):
        tokens.read(base)


def draw_curve(run: Run) -> None:
    """Draw the losses of a finished training, and say where."""
    if _made("curve", lambda: charts.draw_loss(run), run.curve):
        say("curve", str(run.curve))


def write(run: Run) -> None:
    """Write report and model card of a finished run, or of one that was evaluated anew, and say where."""
    written = _made("report", lambda: report.write(run), run.report)
    _made("card", lambda: card.write(run), run.adapter / card.CARD)
    if written:
        say("report", str(run.report))


def write_sweep(path: Path, *what: Any) -> None:
    """Write the page of a sweep, with what `sweeps.write` takes, and say where."""
    if _made("page", lambda: sweeps.write(path, *what), path):
        say("page", str(path))


def _made(label: str, make: Callable[[], object], path: Path) -> bool:
    try:
        make()
    except Exception as error:
        reason = " ".join(str(error).split())
        say(label, f"{path} could not be made, and the run is not the worse for it: {type(error).__name__}: {reason}")
        return False
    return True
