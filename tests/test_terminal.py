"""What is printed: as it is in a pipe, folded to the width and coloured on a terminal."""

import contextlib
import io

import pytest

from sft_recipes import terminal

LONG = "a finding that is longer than the terminal is wide, so that it has to be folded\ninstead: do this"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 40 columns that shows colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"COLUMNS": "40", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture) -> None:
    terminal.print_lines([("warning", LONG), ("", "more")])
    first, second = LONG.splitlines()
    assert capsys.readouterr().out == f"warning    {first}\n           {second}\n           more\n"


def test_a_terminal_gets_folded_lines_that_hang(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.redirect_stdout(screen):
        terminal.say("warning", LONG)
    lines = screen.getvalue().splitlines()
    assert "\x1b" not in screen.getvalue()
    assert len(lines) > 3 and all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("warning    a finding")
    assert all(line.startswith(" " * 11) for line in lines[1:])
    assert " ".join(line[11:].strip() for line in lines) == LONG.replace("\n", " ")


def test_what_stops_is_in_another_colour_than_what_informs(screen: Terminal) -> None:
    with contextlib.redirect_stdout(screen):
        terminal.print_lines([("blocking", "text"), ("info", "text")])
    blocking, info = screen.getvalue().splitlines()
    assert blocking.startswith("\x1b[1;31m") and info.startswith("\x1b[36m")


ROWS = [["name", "what it is"], ["a", "short"], ["longer", "words that need more than one line of a terminal"]]


def test_a_table_in_a_pipe_has_a_line_for_each_row() -> None:
    assert terminal.table(ROWS).splitlines() == [
        "name    what it is",
        "a       short",
        "longer  words that need more than one line of a terminal",
    ]
    assert terminal.table([]) == ""


@pytest.mark.parametrize("indent", [0, 11])
def test_a_table_on_a_terminal_folds_its_cells(screen: Terminal, indent: int) -> None:
    with contextlib.redirect_stdout(screen):
        lines = terminal.table(ROWS, indent=indent).splitlines()
    assert lines[:2] == ["name    what it is", "a       short"]
    assert len(lines) > 3 and all(len(line) <= 40 - indent for line in lines)
    assert " ".join(line[8:] for line in lines[2:]) == ROWS[2][1]


def test_markup_in_somebody_s_text_is_text(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.redirect_stdout(screen):
        terminal.say("row", "[bold]x[/bold] :smile:")
    assert "[bold]x[/bold] :smile:" in screen.getvalue()


def test_in_jupyter_what_is_said_stays_in_the_notebook() -> None:
    """Its stream names a descriptor (the server's own output), and is no file."""

    class Cell(io.StringIO):
        def fileno(self) -> int:
            return 1

    with contextlib.redirect_stdout(Cell()) as cell, terminal.outliving():
        terminal.say("run", "runs/x")
    assert cell.getvalue() == "run        runs/x\n"
