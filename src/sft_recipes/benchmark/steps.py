"""Training steps that are measured: a base of random weights, a trainer of the product's own, and a clock around it.

Speed and memory do not need trained weights, so models of real sizes are made where they are measured, without a file.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import BitsAndBytesConfig, HfArgumentParser, TrainerCallback
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config

from sft_recipes.benchmark.device import Device
from sft_recipes.demo import demo_base
from sft_recipes.models import census
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.train.train import OF_TRAINER, build, correct

# Nothing but steps: what else a run does is not measured here.
STEPS_ALONE = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
    "report_to": "none",
    "validation_split_size": 0.0,
    "test_split_size": 0.0,
}


def tokenizer() -> Any:
    """The demo's: what is measured are ids, and no tokenizer of a real model is needed to have some."""
    return demo_base.train_tokenizer()


def random_base(
    config: Mapping[str, Any],
    device: Device,
    *,
    four_bit: bool,
    double_quant: bool = True,
    attention: str = "sdpa",
    dtype: str = "bfloat16",
    seed: int | None = None,
) -> Any:
    """A base model of random weights, made on the device, and quantised by the loading that a recipe uses."""
    described, held = census.config_of(config), getattr(torch, dtype)
    if seed is not None:
        torch.manual_seed(seed)
    with torch.device(device.type):
        plain = census.build(described, dtype=held)
    weights, kind = plain.state_dict(), type(plain)
    del plain
    quantisation = None
    if four_bit:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16,
        )
    return kind.from_pretrained(
        None,
        config=described,
        state_dict=weights,
        dtype=held,
        attn_implementation=attention,
        device_map={"": 0 if device.gpu else "cpu"},
        quantization_config=quantisation,
    )


def resolved(device: Device, rows: Path, output: Path, **settings: Any) -> Recipe:
    """The default recipe for steps alone, with these settings, on one process of this machine.

    Raises:
        InputError: The settings do not go together.
    """
    overrides = {key: recipes.Value(value, "the benchmark") for key, value in {**STEPS_ALONE, **settings}.items()}
    recipe = recipes.load("default", overrides)
    chosen = topology.read("single_gpu" if device.gpu else "cpu", "the benchmark")
    return topology.resolve(recipe, chosen).derive(
        dataset_name=(str(rows), "rows of token ids"),
        dataset_train_split=("train", "the only one"),
        output_dir=(str(output), "kept nowhere"),
    )


def ours(recipe: Recipe, base: Any, words: Any) -> Any:
    """The trainer that `train` would have."""
    own = {key: recipe[key] for key in OF_TRAINER}
    trainer = build(recipe.upstream(), base=base, tokenizer=words, **own)
    correct(trainer, recipe.upstream(), recipe.own())
    return silent(trainer)


def stock(recipe: Recipe, base: Any, words: Any) -> Any:
    """The trainer that `trl sft --config` has of the exported recipe (trl/scripts/sft.py, 1.16)."""
    script, training, model = HfArgumentParser((ScriptArguments, SFTConfig, ModelConfig)).parse_dict(recipe.upstream())
    # As `build` says: TRL makes a text of a list of one.
    if recipe["lora_target_modules"] != ["all-linear"]:
        model.lora_target_modules = recipe["lora_target_modules"]
    training.model_init_kwargs = None
    trainer = SFTTrainer(
        model=base,
        args=training,
        train_dataset=load_dataset(script.dataset_name)[script.dataset_train_split],
        processing_class=words,
        peft_config=get_peft_config(model),
    )
    return silent(trainer)


def silent(trainer: Any) -> Any:
    """The trainer without the lines and bars that it prints."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


class Clock(TrainerCallback):
    """Seconds, real tokens, rows and the wait for data of each optimizer step, after everything it started is done."""

    def __init__(self, trainer: Any, device: Device) -> None:
        self.device = device
        self.steps: list[dict[str, Any]] = []
        self._counts: list[Any] = []
        self._positions = self._rows = 0
        self._waited = self._last = 0.0
        self._fetch: Callable[..., Any] = trainer.get_batch_samples
        trainer.get_batch_samples = self._timed
        trainer.add_callback(self)

    def _timed(self, *arguments: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        batches, items = self._fetch(*arguments, **kwargs)
        self._waited += time.perf_counter() - began
        for batch in batches:
            mask = batch.get("attention_mask")
            # Kept as tensors: reading their numbers here would wait for the GPU.
            self._counts.append(batch["input_ids"].numel() if mask is None else mask.sum())
            self._positions += batch["input_ids"].numel()
            # A batch without a mask is one long line of rows, each of which begins at position 0.
            self._rows += len(batch["input_ids"]) if mask is not None else int((batch["position_ids"] == 0).sum())
        return batches, items

    def on_train_begin(self, *arguments: Any, **kwargs: Any) -> None:
        self.device.synchronise()
        self._last = time.perf_counter()

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        self.device.synchronise()
        now = time.perf_counter()
        self.steps.append(
            {
                "seconds": now - self._last,
                "waited": self._waited,
                "tokens": sum(int(each) for each in self._counts),
                "positions": self._positions,
                "rows": self._rows,
            }
        )
        self._counts, self._positions, self._rows, self._waited = [], 0, 0, 0.0
        self._last = time.perf_counter()


class Arm:
    """One way of executing the same training, timed in rounds that take turns with others'."""

    def __init__(self, name: str, trainer: Any, device: Device) -> None:
        self.name, self.trainer = name, trainer
        self.clock = Clock(trainer, device)
        self.timed: list[dict[str, Any]] = []

    def round(self, warm: int, timed: int) -> None:
        """Train `warm` steps and then `timed` ones, of which the times are kept."""
        self.clock.steps = []
        self.trainer.args.max_steps = warm + timed
        self.trainer.train()
        self.timed += self.clock.steps[warm:]

    def facts(self) -> dict[str, Any]:
        """Sums over the timed steps, and every step's seconds."""
        total: dict[str, float] = {
            key: sum(step[key] for step in self.timed) for key in ("seconds", "waited", "tokens", "positions", "rows")
        }
        return {
            "step_seconds": [round(step["seconds"], 4) for step in self.timed],
            "tokens": int(total["tokens"]),
            "positions": int(total["positions"]),
            "rows": int(total["rows"]),
            "tokens_per_second": round(total["tokens"] / total["seconds"], 1),
            "samples_per_second": round(total["rows"] / total["seconds"], 3),
            "waiting_share": round(total["waited"] / total["seconds"], 4),
        }


def take_turns(arms: list[Arm], warm: int, timed: int, rounds: int = 2) -> None:
    """A B A B: whatever drifts while they run drifts for all of them; only the first round needs the whole warm-up."""
    for number, arm in itertools.product(range(rounds), arms):
        arm.round(warm if number == 0 else 1, timed)
