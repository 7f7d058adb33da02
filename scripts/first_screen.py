"""The README's pictures: a finding of plan, the tokens that are trained on, the verdict with its intervals; and the
curves of the demo's small model and of a real one."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft_recipes import terminal
from sft_recipes.plan import preview
from sft_recipes.report import charts, quality
from sft_recipes.runs.run import Run
from sft_recipes.terminal import visible

# Letters in a line, lines, and inches.
COLUMNS, LINES, SIZE = 46, 14, (11.4, 2.4)

Line = list[tuple[str, str]]
"""Texts that stand over each other, each with its colour; where one has a letter, the others have blanks."""


def draw(run: Run, plan: list[str], path: Path) -> None:
    """Write the picture.

    Args:
        run: the demo, trained and evaluated.
        plan: the lines of a plan.
        path: of the PNG.
    """
    metrics = run.evaluation("test")
    lines = quality.lines(metrics)
    key, title = next(iter(quality.drawn(metrics).items()))
    with charts.figure(1, 3, SIZE, width_ratios=(1, 1, 1)) as (drawn, axes):
        for each, said in zip(axes, ("before: what it will do", "what is trained on"), strict=False):
            each.set_title(said, color=charts.FAINT)
        _write(axes[0], _finding(plan))
        _write(axes[1], _rows(preview.preview(run.facts()["recipe"], rows=1)))
        quality.panel(lines, key, f"after: {title}, with 95 % intervals")(axes[2])
        drawn.savefig(path, dpi=150, facecolor=charts.PAPER, metadata={"Software": None})


def draw_beside(log: list[dict[str, Any]], real: dict[str, Any], path: Path) -> None:
    """Write the picture of the curves.

    Args:
        log: what the demo logged.
        real: the kept facts of a run of the same recipe on a real model.
        path: of the PNG.
    """
    key, title = next(iter(quality.drawn(real["metrics"]).items()))
    with charts.figure(1, 3, SIZE, width_ratios=(1, 1, 1)) as (drawn, axes):
        for each, logged, said in zip(
            axes, (log, real["log"]), ("the demo's model: loss", "SmolLM2: loss"), strict=False
        ):
            charts.curve(each, logged, "loss", said, "eval_loss")
        quality.panel(quality.lines(real["metrics"]), key, f"SmolLM2: {title}, with 95 % intervals")(axes[2])
        drawn.savefig(path, dpi=150, facecolor=charts.PAPER, metadata={"Software": None})


def _finding(plan: list[str]) -> Iterator[Line]:
    """The verdict of a plan and what it warns of the schedule, folded, each line with its colour."""
    colour = None
    for line in plan:
        if not line.startswith(" "):
            colour = {"verdict": charts.INK, "warning": charts.BASE}.get(line.split()[0])
            if colour == charts.BASE and "warmup-share" not in line:
                colour = None
        if colour and "evidence:" not in line:
            label = line[: terminal.LABEL].strip()
            for number, part in enumerate(textwrap.wrap(line[terminal.LABEL :].strip(), COLUMNS - 9)):
                yield [(f"{label if not number else '':<8} {part}", colour)]


def _rows(facts: dict[str, Any]) -> Iterator[Line]:
    """Rows as the trainer gets them, folded: what is trained on in colour, what is only read faint."""
    for row in facts["rows"]:
        letters = [(letter, state) for state, text in row["segments"] for letter in visible(text) if letter != "\n"]
        whole, start = "".join(letter for letter, _ in letters), 0
        while start < len(whole):
            end = min(start + COLUMNS, len(whole))
            # At the end of a line of the text, or of a word.
            end = whole.find("↵", start, end) + 1 or (end < len(whole) and whole.rfind(" ", start, end) + 1) or end
            yield [
                ("".join(letter if each == state else " " for letter, each in letters[start:end]), colour)
                for state, colour in ((preview.MASKED, charts.FAINT), (preview.TRAINED, charts.TUNED))
            ]
            start = end
        yield []


def _write(axes: Any, lines: Iterable[Line]) -> None:
    axes.set_axis_off()
    style = {"family": "monospace", "fontsize": 7, "va": "top", "transform": axes.transAxes}
    for number, line in enumerate(itertools.islice(lines, LINES)):
        for text, colour in line:
            axes.text(0, 1 - number / LINES, text, color=colour, **style)
