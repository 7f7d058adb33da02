"""What happens around the steps of a run: log, terminal, a stop that loses nothing, a NaN that is not hidden."""

import json
import math
import signal
import sys
import time
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from sft_recipes.runs import checkpoints, lock
from sft_recipes.runs.run import Run
from sft_recipes.terminal import duration


class Record(TrainerCallback, ExportableState):
    """Writes log.jsonl, one object a logging step, and measures what the run takes over all its launches.

    Tokens are those of the attention mask over all processes (TRL's `num_tokens`), padding not counted; their seconds
    are those within optimizer steps, evaluation and saving not counted. Between the steps, the main process waits for
    its next rows: read, collated and put on their device.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.training_seconds = self.waiting_seconds = 0.0
        self.seconds_before = 0.0
        """Of the launches before this one, up to the checkpoint that it continues from."""
        self.log_lines = 0
        """How many lines of log.jsonl are this run's: those after them are of steps that are done again."""
        self.peak_memory_bytes = 0
        self.began = time.monotonic()
        self._began_step = 0.0
        self.at_last_log = (0, 0.0)

    @property
    def seconds(self) -> float:
        """What training took until now, with loading, evaluating and saving."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def tokens_per_second(self) -> float | None:
        """Over all logged steps of the run, None before the first."""
        tokens, seconds = self.at_last_log
        return tokens / seconds if tokens and seconds else None

    @property
    def waiting_share(self) -> float | None:
        """The share of the time of steps, waiting included, that went into waiting; None before the first."""
        whole = self.waiting_seconds + self.training_seconds
        return self.waiting_seconds / whole if whole else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in the form that upstream gives the states of callbacks."""
        kept = ("training_seconds", "waiting_seconds", "log_lines", "peak_memory_bytes", "at_last_log")
        return {
            "args": {},
            "attributes": {"seconds_before": self.seconds, **{name: getattr(self, name) for name in kept}},
        }

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._began_step = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type != "cpu":
            # It is still at work on what it was given, most of all the last backward pass.
            torch.accelerator.synchronize()
        self.training_seconds += time.perf_counter() - self._began_step

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs if logs is not None else {}
        if "loss" in logs and "num_tokens" in logs:
            tokens, seconds = self.at_last_log
            now = int(logs["num_tokens"])
            if self.training_seconds > seconds and now > tokens:
                # Added to the logs themselves, so that trackers and the terminal show the same figure.
                logs["tokens_per_second"] = round((now - tokens) / (self.training_seconds - seconds), 1)
                logs["waiting_share"] = round(self.waiting_share or 0.0, 5)
            self.at_last_log = (now, self.training_seconds)
        if state.is_world_process_zero:
            entry = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
            with self.run.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self.log_lines += 1


EVERY = 60.0
"""Seconds between the lines of a long evaluation."""
BAR = 5
"""Columns that a bar has at least, before what is beside it is left out."""


class Progress(TrainerCallback):
    """A bar for the steps and one for an evaluation on a terminal, a plain line a logging step elsewhere."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self._evaluation: tqdm | None = None
        self._said: dict[str, str] = {}  # what the last logging step found, by name
        self._seconds, self._steps = 0.0, 0  # of this launch, without evaluating and saving
        self._last: float | None = None  # when the last step ended, if nothing but a step came after it
        self._batches = 0
        self._spoke = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = self._bar("training", state.max_steps, "  {desc}", initial=state.global_step)

    @staticmethod
    def _bar(label: str, total: int, beside: str, **options: Any) -> tqdm:
        shape = f"{label:<10} {{percentage:3.0f}}% {{bar}} {{n_fmt}}/{{total_fmt}}{beside}"
        return tqdm(total=total, bar_format=shape, dynamic_ncols=True, **options)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._evaluated()
        if self._last is None:
            self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        # From the end of one step to that of the next, so that waiting for rows counts.
        self._seconds += now - (now if self._last is None else self._last)
        self._steps, self._last = self._steps + 1, now
        if self.bar is not None:
            self._put_beside(self.bar, state)
            self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            self._evaluated()
            self._line(f"{'evaluation':<10} step {state.global_step}: eval loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            self._said = {"loss": f"loss {logs['loss']:.4f}", "rate": f"lr {logs['learning_rate']:.2e}"}
            if "tokens_per_second" in logs:
                self._said["speed"] = f"{logs['tokens_per_second']:,.0f} tokens/s"
            if self.bar is not None:
                self._put_beside(self.bar, state)
                self.bar.refresh()
                return
            step = f"step {state.global_step}/{state.max_steps}"
            self._line(f"{'training':<10} {step}  {'  '.join([*self._said.values(), self._left(state)])}")

    def _left(self, state: TrainerState) -> str:
        seconds = self._seconds / self._steps if self._steps else 0.0
        return f"ETA {duration(seconds * (state.max_steps - state.global_step))}"

    def _put_beside(self, bar: tqdm, state: TrainerState) -> None:
        """What fits beside the bar, whole; the terminal may be of another width by now."""
        parts = {**self._said, "left": self._left(state)}
        taken = len(f"{'training':<10} 100%  {state.max_steps}/{state.max_steps}  ") + BAR
        room = (bar.format_dict["ncols"] or 80) - taken
        for name in ("rate", "loss", "left", "speed"):
            if len("  ".join(parts.values())) > room:
                parts.pop(name, None)
        bar.set_description_str("  ".join(parts.values()), refresh=False)

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show how far an evaluation is: in a bar of its own, or a line a minute."""
        self._last = None
        self._batches += 1
        if not state.is_world_process_zero:
            return
        batches, now = len(kwargs["eval_dataloader"]), time.perf_counter()
        self._spoke = now if self._batches == 1 else self._spoke
        if self.bar is not None:
            if self._evaluation is None:
                self._evaluation = self._bar("evaluation", batches, " batches  ETA {remaining}", leave=False)
            self._evaluation.update()
        elif now - self._spoke >= EVERY:
            self._spoke = now
            self._line(f"{'evaluation':<10} step {state.global_step}: {self._batches:,} of {batches:,} batches")

    def _evaluated(self) -> None:
        self._batches = 0
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._evaluated()
        if self.bar is not None:
            self.bar.close()

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)


def diverged(run: Run, what: str) -> FloatingPointError:
    """The error of a run whose numbers are none any more, with what is left of it."""
    checkpoint, _ = checkpoints.newest_whole(run)
    left = f"{checkpoint.name} is whole and from before that" if checkpoint else "no checkpoint is whole"
    return FloatingPointError(
        f"{what}: training has diverged, and would again from where it was saved; {left}. Start a new run with a "
        "smaller learning_rate or more warmup_steps"
    )


class StopOnNaN(TrainerCallback):
    """Stops a run whose loss or gradient is not a number any more, on the first logging step that shows it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for key in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value):
                raise diverged(self.run, f"{key} is {value} at step {state.global_step}")


class Stopped(Exception):
    """An evaluation was stopped on the way; it is done again when the run goes on."""


class GracefulStop(TrainerCallback):
    """On a signal, a stop file or the end of the command that launched it: save after the step, then stop.

    All processes do so together. One may be told alone, so each asks the others at every step; were they to save at
    different steps, the collective calls within a save would hang. An evaluation, which may take longer than anybody
    waits, is left at its next batch (`Trainer._maybe_log_save_evaluate` then saves).
    """

    def __init__(self, run: Run, *, launched: bool) -> None:
        self.run, self.launched = run, launched
        self.stopped = False
        self._told = False
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        for number in signals:
            signal.signal(number, self._tell)
        # They wait since the launch, when nobody could take them (launch/processes.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    def _tell(self, number: int, frame: object) -> None:
        self._told = True

    def _asked(self, args: Any) -> bool:
        """Whether any process was told to stop; all of them must ask together."""
        told = self._told or self.run.stop.exists()
        told = told or (self.launched and lock.command_gone(self.run.directory))
        if torch.distributed.is_initialized():
            flag = torch.tensor(int(told), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            told = bool(flag.item())
        return told

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked(args) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked(args):
            self.stopped = True
            raise Stopped

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Only now: a checkpoint that holds should_training_stop would stop the resumed run at once.
        if self.stopped:
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Upstream takes the stop for the end of an epoch; an evaluation or a second save here would belong to no
        # epoch, and the resumed run would differ from an uninterrupted one.
        if self.stopped:
            control.should_evaluate = control.should_save = False
