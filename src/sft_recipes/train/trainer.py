"""SFTTrainer whose checkpoints can be trusted, and whose resumed runs are the runs that were interrupted."""

import contextlib
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import TrainerControl
from transformers.trainer_callback import DefaultFlowCallback, ExportableState
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sft_recipes.children import peak_resident
from sft_recipes.data import templates
from sft_recipes.runs import checkpoints
from sft_recipes.runs.run import Run
from sft_recipes.terminal import say
from sft_recipes.train import rows
from sft_recipes.train.callbacks import GracefulStop, Record, Stopped, diverged
from sft_recipes.train.rows import Tokenised


class Trainer(SFTTrainer):
    """SFTTrainer that changes no step of a run, and what upstream leaves out around the steps.

    What an evaluation finds is that of all supervised tokens, however they are batched and on however many processes.
    Checkpoints are known to be finite before they are written, sealed when whole, and rotated only then. A resumed
    run has everything the interrupted one had: the sums of its losses and tokens, its callbacks, the evaluation that
    was still to come, and whether it had ended.
    """

    control: TrainerControl
    router_aux_loss_coef: float
    kept_step = 0
    """The step whose weights the model holds at the end."""

    compared = 0
    """Rows that were tokenised before and of which TRL has made the same."""

    def __init__(
        self,
        *given: Any,
        mask_empty_reasoning: bool = False,
        sort_within_batch: bool = False,
        tokenised: Mapping[str, Tokenised] | None = None,
        **named: Any,
    ) -> None:
        # Before upstream prepares the rows.
        self.mask_empty_reasoning, self.sort_within_batch = mask_empty_reasoning, sort_within_batch
        self.tokenised = tokenised or {}
        super().__init__(*given, **named)

    def _prepare_dataset(
        self, dataset: Any, tokenizer: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """As upstream's; of rows that were tokenised before, `dataset` is a sample, and must come out the same."""
        given = formatting_func, dataset_name
        kept = self.tokenised.get(dataset_name)
        if "input_ids" in dataset.column_names or not (kept or self.mask_empty_reasoning):
            return self._by_trl(dataset, tokenizer, args, packing, *given)
        if kept and (otherwise := self._tokenised_otherwise(kept, dataset, tokenizer, args)):
            say("rows", f"{kept.split} rows are tokenised by TRL: {otherwise}")
            dataset, kept = kept.as_text(), None
        uncut = rows.changed(args, max_length=None, shuffle_dataset=False)
        whole = self._without_empty_reasoning(self._by_trl(dataset, tokenizer, uncut, False, *given))
        if kept:
            whole = self._kept(kept, whole, "prompt" in dataset.column_names, tokenizer, args, packing, *given)
            args = args if packing else rows.changed(args, max_length=None)
        found = self._by_trl(whole, tokenizer, args, packing, *given)
        # As upstream leaves out those that max_length leaves nothing of.
        return self._supervised(found) if self.mask_empty_reasoning else found

    def _by_trl(self, dataset: Any, tokenizer: Any, *given: Any) -> Any:
        first: dict[str, Any] = next(iter(dataset), {})
        decoding = templates.decoding(tokenizer) if templates.needs_decoding(first) else contextlib.nullcontext()
        with decoding:
            return super()._prepare_dataset(dataset, tokenizer, *given)

    def _without_empty_reasoning(self, dataset: Any) -> Any:
        if not self.mask_empty_reasoning:
            return dataset
        with PartialState().main_process_first():
            return dataset.map(_without_empty_reasoning, fn_kwargs={"tokenizer": self._tokenizer})

    def _supervised(self, dataset: Any) -> Any:
        with PartialState().main_process_first():
            return dataset.filter(_is_supervised)

    def _tokenised_otherwise(self, kept: Tokenised, sample: Any, tokenizer: Any, args: Any) -> str | None:
        """Why upstream would make other tokens or labels of the rows than were made of them; None if it would not."""
        if "prompt" in sample.column_names and args.assistant_only_loss:
            return "assistant_only_loss marks some of an answer's tokens"
        if kept.template is not None and kept.template != (self.chat_template or tokenizer.get_chat_template()):
            return "another chat template renders them, since the loss is on everything"
        return None

    def _kept(
        self, kept: Tokenised, theirs: Any, prompts: bool, tokenizer: Any, args: Any, packing: bool, *given: Any
    ) -> Any:
        """Rows that were tokenised before, cut where they are not packed, if they are the same as upstream's.

        Raises:
            InputError: Upstream has made something else of the sample.
        """
        everything = not (self.completion_only_loss if prompts else args.assistant_only_loss)
        limit, drop = args.max_length, args.max_length is not None or self.mask_empty_reasoning
        how = {"from_end": args.truncation_mode == "keep_end", "drop": drop}
        with PartialState().main_process_first():
            ours = rows.cut(kept.whole().select(kept.numbers), None, everything=everything)
        rows.compare(ours, theirs, f"the {kept.split} rows", kept.numbers)
        self.compared += len(theirs)
        if packing or not kept.is_cut(limit, drop=drop):
            return kept.whole(everything=everything)
        # Those that are left of them when they are cut are not all.
        left = self._by_trl(theirs, tokenizer, rows.changed(args, shuffle_dataset=False), False, *given)
        left = self._supervised(left) if drop else left
        with PartialState().main_process_first():
            rows.compare(rows.cut(ours, limit, **how), left, f"the {kept.split} rows at max_length {limit}")
            return rows.cut(kept.whole(everything=everything), limit, **how)

    def belongs_to(self, run: Run, record: Record, stop: GracefulStop) -> None:
        """Say whose checkpoints these are, before training."""
        self.run, self.record, self.stop = run, record, stop
        facts = run.facts()
        self.topology = checkpoints.place(run)
        self.forget_best = bool(facts.get("resumed") and facts["resumed"][-1].get("forget_best"))
        self.args.output_dir = str(run.directory)
        # Upstream deletes older checkpoints before the new one is whole.
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None

    @contextlib.contextmanager
    def _adapter_dtypes_kept(self, model: torch.nn.Module) -> Iterator[None]:
        # PEFT loads adapters as float32 whatever they were, so a resumed bfloat16 run would be another run.
        before = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
        yield
        for name, parameter in model.named_parameters():
            if name in before and parameter.dtype != before[name]:
                parameter.data = parameter.data.to(before[name])

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """None beside the run's files at each save: that of the adapter is written when there is something to say."""

    # Training

    def get_train_dataloader(self) -> Any:
        """As upstream's, with the rows of each step by length where the recipe asks for it."""
        loader = super().get_train_dataloader()
        if self.sort_within_batch:
            loader.set_sampler(self.by_length(rows.sampler_of(loader)))
        return loader

    def by_length(self, sampler: Any) -> rows.ByLength:
        """A sampler of the training rows, with those of each step sorted."""
        args = self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return rows.ByLength(sampler, rows.lengths(self.train_dataset), batch)

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """As upstream's, with the time that it waits for them."""
        began = time.perf_counter()
        found = super().get_batch_samples(*given, **named)
        # A benchmark has a clock of its own.
        if hasattr(self, "record"):
            self.record.waiting_seconds += time.perf_counter() - began
        return found

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """As upstream's, without the rows that accelerate repeats to fill the last batches of an epoch."""
        args, size = self.args, self.args.train_batch_size
        left = len(self.train_dataset) % (size * args.world_size)
        ended = batch_samples and self.accelerator.gradient_state.end_of_dataloader
        # A sampler that rebalances gives each process batches of its own, and repeats none.
        filled = not args.dataloader_drop_last and args.train_sampling_strategy != "batch_rebalance"
        if ended and left and filled and not self.padding_free:
            # The first processes have the rows that are left.
            batch_samples[-1]["labels"][max(left - args.process_index * size, 0) :] = -100
        return super()._get_num_items_in_batch(batch_samples, device)

    # Evaluating

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> Any:
        """Batches of the rows that are held out, with empty ones where rows would be left out or computed twice."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        processes = self.args.world_size
        # Accelerate fills the last batches with the first rows, so that all processes have as many of one size.
        missing = -len(rows) % (self.args.eval_batch_size * processes)
        if missing and (processes > 1 or self.args.dataloader_drop_last):
            unsupervised = rows[0] | {"labels": [-100] * len(rows[0]["labels"])}
            empty = Dataset.from_list([unsupervised] * missing, features=rows.features)
            rows = concatenate_datasets([rows, empty])
        return super().get_eval_dataloader(rows)

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        """As upstream's, noting the sum of a batch's losses and over how many tokens it is."""
        found = super().prediction_step(model, inputs, *given, **named)
        tokens = int((inputs["labels"][:, 1:] != -100).sum())
        self._evaluated.append((float(found[0]) * tokens, tokens))
        return found

    def evaluation_loop(self, *given: Any, **named: Any) -> EvalLoopOutput:
        """As upstream's, with means over all supervised tokens, where upstream's are means of those of batches."""
        self._evaluated: list[tuple[float, int]] = []
        self._metrics["eval"].clear()
        # The term that balances experts is no loss of a token, and another one in each size of a batch.
        balance, self.router_aux_loss_coef = self.router_aux_loss_coef, 0.0
        try:
            output = super().evaluation_loop(*given, **named)
        finally:
            self.router_aux_loss_coef = balance
        own = torch.tensor(self._evaluated, dtype=torch.float64, device=self.args.device)
        losses, tokens = self.accelerator.reduce(own).unbind(1)
        output.metrics["eval_loss"] = float(losses.sum() / tokens.sum())
        for name in ("entropy", "mean_token_accuracy"):
            means = torch.tensor(self._metrics["eval"][name], dtype=torch.float64, device=self.args.device)
            self._metrics["eval"][name] = [float(means @ tokens / tokens.sum())]
        return output

    # Stopping

    def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
        if not self.control.should_evaluate:
            super()._maybe_log_save_evaluate(*given, **named)
            return
        with tempfile.TemporaryDirectory() as before:
            self._save_rng_state(before)
            try:
                super()._maybe_log_save_evaluate(*given, **named)
            except Stopped:
                # As if it had not begun: a resumed run does it first, since no log tells of it.
                self._load_rng_state(before)
                self._save_checkpoint(self.model, None)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # PEFT's card, which says nothing; ours is written beside the adapter when there is something to say.
        (Path(output_dir or self.args.output_dir) / "README.md").unlink(missing_ok=True)

    def check_finite(self) -> None:
        """Refuse to go on with weights, or a state of the optimizer, that hold a NaN or an infinity in any process.

        Raises:
            FloatingPointError: They do; in all processes together.
        """
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        largest = [_largest(tensors, self.args.device) for tensors in (trained, _states(self.optimizer))]
        found = self.accelerator.gather(torch.stack(largest).unsqueeze(0))
        for what, finite in zip(("weights", "optimizer's state"), found.isfinite().all(dim=0).tolist(), strict=True):
            if not finite:
                raise diverged(self.run, f"a NaN or an infinity is in the {what} after step {self.state.global_step}")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_finite()
        self.state.stateful_callbacks["Trainer"] = {"args": {}, "attributes": self._sums()}
        self.record.peak_memory_bytes = self.peak_memory()
        checkpoint = checkpoints.at(self.run.directory, self.state.global_step)
        if self.is_world_process_zero():
            # Of a launch that came further, and was continued from before it.
            checkpoints.remove(checkpoint)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        # Each process writes its own files; only when all are done is the checkpoint whole.
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.seal(checkpoint, self.topology)
            best = self.state.best_model_checkpoint
            checkpoints.rotate(checkpoint, self.save_total_limit, Path(best) if best else None)

    def _sums(self) -> dict[str, Any]:
        """What is summed up since the start and since the last line of the log, which upstream starts anew."""
        return {
            "loss_since_log": self.accelerator.gather(self._tr_loss.reshape(1)).tolist(),
            "loss_until_log": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "num_tokens": self._total_train_tokens,
            "metrics_since_log": {name: [*values] for name, values in self._metrics["train"].items()},
            "training": self.model.training,
        }

    def peak_memory(self) -> int:
        """The largest process's peak in all launches: bytes that torch allocated on its GPU, or resident on a CPU."""
        device = self.accelerator.device
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident()
        largest = self.accelerator.gather(torch.tensor([peak], device=device)).max()
        return max(int(largest), self.record.peak_memory_bytes)

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with self._adapter_dtypes_kept(model or self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_callback_state(self) -> None:
        # Upstream makes the callbacks anew and puts them behind all others; the log then lacks what they add to it.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                stored = self.state.stateful_callbacks[type(callback).__name__]["attributes"]
                for name in callback.state()["attributes"].keys() & stored.keys():
                    setattr(callback, name, stored[name])

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        place = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._ended = False
        if resume_from_checkpoint is None:
            return place
        self.args.eval_on_start = False
        state = self.state
        # By its step, since the path is that of the directory in which the run was started.
        best = checkpoints.at(self.run.directory, state.best_global_step) if state.best_global_step else None
        state.best_model_checkpoint = str(best) if best else None
        if self.forget_best:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
            for entry in state.log_history:
                if entry["step"] == state.global_step and "eval_loss" in entry:
                    self._seek_best(entry, resume_from_checkpoint)
        control = state.stateful_callbacks["TrainerControl"]["args"]
        self._ended = control["should_training_stop"] or state.global_step >= max_steps
        # Upstream would train one step of an epoch that the run had left, and none of an epoch that is complete.
        return (num_train_epochs - 1, 0) if self._ended else place

    def _run_epoch(self, **epoch: Any) -> None:
        checkpoint = epoch["resume_from_checkpoint"]
        if checkpoint is None or epoch["epoch"] != epoch["epochs_trained"]:
            super()._run_epoch(**epoch)
            return
        self._restore_sums()
        with contextlib.ExitStack() as stack:
            if self._owes_evaluation(epoch["num_update_steps_per_epoch"]):
                # It draws random numbers, so what upstream restores before the next step is what is left after it.
                self._load_rng_state(checkpoint)
                self._seek_best(self._evaluate(epoch["trial"], epoch["ignore_keys_for_eval"]), checkpoint)
                after = stack.enter_context(tempfile.TemporaryDirectory())
                self._save_rng_state(after)
                epoch["resume_from_checkpoint"] = after
            if self._ended or self.control.should_training_stop:
                self.control.should_training_stop = True
            else:
                super()._run_epoch(**epoch)

    def _restore_sums(self) -> None:
        sums = self.state.stateful_callbacks["Trainer"]["attributes"]
        self._tr_loss += sums["loss_since_log"][self.args.process_index]
        self._total_loss_scalar = sums["loss_until_log"]
        self._globalstep_last_logged = sums["last_logged"]
        self._total_train_tokens = sums["num_tokens"]
        self._metrics["train"].update(sums["metrics_since_log"])
        self._initial_global_step = 0
        self.model.train(sums["training"])

    def _owes_evaluation(self, steps_per_epoch: int) -> bool:
        """Whether the step of the checkpoint is one that is evaluated, and was saved before it was."""
        state, due, flow = self.state, TrainerControl(), DefaultFlowCallback()
        flow.on_step_end(self.args, state, due)
        if self._ended or state.global_step % steps_per_epoch == 0:
            flow.on_epoch_end(self.args, state, due)
        done = any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history)
        return due.should_evaluate and not done

    def _seek_best(self, metrics: dict[str, Any], checkpoint: str) -> None:
        if self._determine_best_metric(metrics, None):
            self.state.best_model_checkpoint = checkpoint

    # Ending

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if not hasattr(self, "run"):
            # Of a benchmark, which keeps nothing.
            return super()._finalize_training(trial, num_train_samples, start_time)
        self.check_finite()
        self.kept_step = self.state.global_step
        return super()._finalize_training(trial, num_train_samples, start_time - self.record.seconds_before)

    def _load_best_model(self) -> None:
        if self.stop.stopped:
            # Nothing is made of the weights in memory; what was saved is what goes on.
            return
        best = Path(self.state.best_model_checkpoint)
        # Upstream warns where it is missing, and ends with the last weights.
        if problem := checkpoints.unusable_best(self.run, best):
            raise checkpoints.DamagedBest(problem)
        with self._adapter_dtypes_kept(self.model):
            super()._load_best_model()
        self.kept_step = checkpoints.step_of(best)


def _states(optimizer: Any) -> Iterator[torch.Tensor]:
    """The tensors of an optimizer's state, and those it updates: float32 copies, where an engine keeps such."""
    for parameter, state in optimizer.state.items():
        yield parameter
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _largest(tensors: Any, device: torch.device) -> torch.Tensor:
    """The largest magnitude in what this process holds of the tensors; NaN where one is, and nothing is copied."""
    norms = [torch.zeros((), device=device)]
    for tensor in tensors:
        held = getattr(tensor, "ds_tensor", tensor).detach()
        held = held.to_local() if hasattr(held, "to_local") else held
        if held.is_floating_point() and held.numel():
            norms.append(torch.linalg.vector_norm(held, float("inf")).to(device, torch.float32))
    return torch.stack(norms).max()


def _without_empty_reasoning(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The row without a loss on an empty block of reasoning at the head of an answer."""
    labels = list(row["labels"])
    decode = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    starts = [at for at, (before, own) in enumerate(itertools.pairwise([-100, *labels])) if before == -100 != own]
    for start in starts:
        end = next((at for at in range(start, len(labels)) if labels[at] == -100), len(labels))
        block = templates.empty_reasoning(decode, row["input_ids"][start:end])
        labels[start : start + block] = [-100] * block
    return {"labels": labels}


def _is_supervised(row: dict[str, Any]) -> bool:
    return any(label != -100 for label in row["labels"])
