"""What happens around the steps of a run: log, terminal, a stop that loses nothing, a NaN that is not hidden."""

import json
import math
import signal
import sys
import time
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft_recipes.runs import checkpoints, lock
from sft_recipes.runs.run import Run
from sft_recipes.terminal import duration


class Record(TrainerCallback, ExportableState):
    """Writes log.jsonl, one object a logging step, and measures what the run takes over all its launches.

    Tokens are those of the attention mask over all processes (TRL's `num_tokens`), padding not counted; their seconds
    are those within optimizer steps, evaluation and saving not counted.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.training_seconds = 0.0
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

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in the form that upstream gives the states of callbacks."""
        kept = ("training_seconds", "log_lines", "peak_memory_bytes", "at_last_log")
        return {
            "args": {},
            "attributes": {"seconds_before": self.seconds, **{name: getattr(self, name) for name in kept}},
        }

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began_step = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type != "cpu":
            # It is still at work on what it was given, most of all the last backward pass.
            torch.accelerator.synchronize()
        self.training_seconds += time.perf_counter() - self._began_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs if logs is not None else {}
        if "loss" in logs and "num_tokens" in logs:
            tokens, seconds = self.at_last_log
            now = int(logs["num_tokens"])
            if self.training_seconds > seconds and now > tokens:
                # Added to the logs themselves, so that trackers and the terminal show the same figure.
                logs["tokens_per_second"] = round((now - tokens) / (self.training_seconds - seconds), 1)
            self.at_last_log = (now, self.training_seconds)
        if state.is_world_process_zero:
            entry = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
            with self.run.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self.log_lines += 1


EVERY = 60.0
"""Seconds between the lines of a long evaluation."""


class Progress(TrainerCallback):
    """A progress bar on a terminal, a plain line a logging step elsewhere."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self._began = 0.0
        self._first_step = 0
        self._batches = 0
        self._said = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="training   {percentage:3.0f}% {bar:24} {n_fmt}/{total_fmt}  ETA {remaining}  {desc}",
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            self._batches = 0
            self._line(f"{'evaluation':<10} step {state.global_step}: eval loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            parts = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
            if "tokens_per_second" in logs:
                parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
            if self.bar is not None:
                self.bar.set_description_str("  ".join(parts))
                return
            done = state.global_step - self._first_step
            left = (time.perf_counter() - self._began) / done * (state.max_steps - state.global_step) if done else 0.0
            step = f"step {state.global_step}/{state.max_steps}"
            self._line(f"{'training':<10} {step}  {'  '.join(parts)}  ETA {duration(left)}")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is: in the bar, or a line a minute."""
        self._batches += 1
        now = time.perf_counter()
        self._said = now if self._batches == 1 else self._said
        if not state.is_world_process_zero or (self.bar is None and now - self._said < EVERY):
            return
        self._said, done = now, f"{self._batches:,} of {len(kwargs['eval_dataloader']):,} batches"
        if self.bar is not None:
            self.bar.set_description_str(f"evaluating {done}")
        else:
            self._line(f"{'evaluation':<10} step {state.global_step}: {done}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
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
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in signals:
            signal.signal(number, self._tell)
        # They wait since the launch, when nobody could take them (launch/processes.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    def _tell(self, number: int, frame: object) -> None:
        self._told = True

    def _asked(self, args: TrainingArguments) -> bool:
        """Whether any process was told to stop; all of them must ask together."""
        told = self._told or self.run.stop.exists()
        told = told or (self.launched and lock.command_gone(self.run.directory))
        if torch.distributed.is_initialized():
            flag = torch.tensor(int(told), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            told = bool(flag.item())
        return told

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._asked(args) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._asked(args):
            self.stopped = True
            raise Stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Only now: a checkpoint that holds should_training_stop would stop the resumed run at once.
        if self.stopped:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Upstream takes the stop for the end of an epoch; an evaluation or a second save here would belong to no
        # epoch, and the resumed run would differ from an uninterrupted one.
        if self.stopped:
            control.should_evaluate = control.should_save = False
