"""How far a training is: on a terminal of any width, and in a pipe."""

import os
import pty
import re
import termios
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sft_recipes.train import callbacks

STEPS = 12_000


class Steps:
    """A run that was resumed, whose steps take two seconds each and whose evaluations a hundred."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int) -> None:
        self.now = 0.0
        monkeypatch.setattr(callbacks.time, "perf_counter", lambda: self.now)
        self.state = TrainerState(max_steps=STEPS, global_step=first)
        self.given = TrainingArguments(str(tmp_path), use_cpu=True), self.state, TrainerControl()
        self.progress = callbacks.Progress()
        self.progress.on_train_begin(*self.given)

    def evaluate(self, batches: int = 10) -> None:
        for _ in range(batches):
            self.now += 100 / batches
            self.progress.on_prediction_step(*self.given, eval_dataloader=range(batches))
        self.progress.on_log(*self.given, logs={"eval_loss": 0.5})

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.progress.on_step_begin(*self.given)
            self.now += 2
            self.state.global_step += 1
            self.progress.on_step_end(*self.given)
            logs = {"loss": 0.1234, "learning_rate": 1.5e-4, "tokens_per_second": 12345.6}
            self.progress.on_log(*self.given, logs=logs)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have this process's errors on a terminal of that many columns, and give what was drawn on it."""

    def shown(columns: int, run: Any) -> list[str]:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        with open(theirs, "w") as screen, monkeypatch.context() as context:  # noqa: PTH123, a descriptor
            context.setattr("sys.stderr", screen)
            run()
        os.set_blocking(ours, False)
        drawn = b""
        while True:
            try:
                drawn += os.read(ours, 65536)
            except OSError:
                break
        os.close(ours)
        # What is drawn over what was there, line by line.
        return [line for line in re.split(r"[\r\n]+|\x1b\[A", drawn.decode()) if line.strip()]

    return shown


@pytest.mark.parametrize(
    ("columns", "beside"),
    [
        (120, "loss 0.1234  lr 1.50e-04  12,346 tokens/s  ETA 4 h 23 min"),
        (80, "loss 0.1234  12,346 tokens/s  ETA 4 h 23 min"),
        (60, "12,346 tokens/s"),
        (30, ""),
    ],
)
def test_no_number_of_the_bar_is_cut(
    columns: int,
    beside: str,
    shown: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    def run() -> None:
        steps = Steps(monkeypatch, tmp_path, first=4_097)
        steps.train(3)
        steps.evaluate()
        steps.train(3)
        steps.progress.on_train_end(*steps.given)

    lines = shown(columns, run)
    assert all(len(line) <= columns for line in lines)
    last = [line for line in lines if line.startswith("training")][-1]
    assert re.fullmatch(rf"training    34% .+ 4103/12000 *{re.escape(beside)} *", last), last
    assert [line for line in lines if re.match(r"evaluation +\d+% .+ \d+/10 batch", line)]
    assert capsys.readouterr().out.strip() == "evaluation step 4100: eval loss 0.5000"


def test_what_is_left_counts_the_steps_of_this_launch_and_no_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = Steps(monkeypatch, tmp_path, first=STEPS - 10)
    steps.evaluate()
    steps.train(2)
    steps.evaluate(batches=1)
    steps.train(1)
    said = capsys.readouterr().out.splitlines()
    assert [line.split("ETA ")[1] for line in said if line.startswith("training")] == ["18 s", "16 s", "14 s"]
    # A line a minute, since nobody sees a bar.
    assert [line for line in said if "batches" in line] == ["evaluation step 11990: 7 of 10 batches"]
