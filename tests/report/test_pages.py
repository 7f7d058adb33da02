"""What people read of a run is made after it, and a page that cannot be made fails nothing."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from sft_recipes.report import card, pages
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]


def test_a_finished_run_gets_its_curve_its_report_and_its_card(
    finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished()
    pages.draw_curve(run)
    pages.write(run)
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    assert run.report.is_file()
    assert (run.adapter / card.CARD).read_text().startswith("---\n")
    assert capsys.readouterr().out == "curve      runs/tuned/loss.png\nreport     runs/tuned/report.html\n"


def test_a_page_that_cannot_be_made_is_said_in_a_line_and_the_others_are_made(
    finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished()
    run.curve.mkdir()
    run.report.mkdir()
    pages.draw_curve(run)
    pages.write(run)
    curve, report = capsys.readouterr().out.splitlines()
    assert curve.startswith("curve      runs/tuned/loss.png could not be made, and the run is not the worse for it: ")
    assert report.startswith("report     runs/tuned/report.html could not be made, ")
    assert (run.adapter / card.CARD).is_file()


def test_the_pages_of_a_run_do_without_what_compares_runs() -> None:
    """A second of every training's end, for statistics that only a comparison and an evaluation compute."""
    code = "import sys; from sft_recipes.report import pages; sys.exit(bool({'scipy', 'sklearn'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
