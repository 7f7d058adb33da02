"""What cannot run together, in one list: a plan says all of it, and a training refuses it by the same functions.

A conflict has a phase, which says when it is known and what it stops (`PHASES`).
"""

import dataclasses
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_recipes.errors import closest
from sft_recipes.recipes import arguments, places, schema, sources, task
from sft_recipes.terminal import count

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Recipe
    from sft_recipes.recipes.topology import Gpu, Topology

Phase = Literal["recipe", "topology", "files", "machine", "rehearsal"]
# How grave a conflict is for a plan: two values of a recipe, or a recipe and its accelerate config, run nowhere, and
# neither do damaged files; what this machine lacks may be there on the one that trains; and what a rehearsal lacks
# stops a rehearsal alone.
PHASES: dict[Phase, str] = {
    "recipe": "blocking",
    "topology": "blocking",
    "files": "blocking",
    "machine": "info",
    "rehearsal": "info",
}


@dataclasses.dataclass(frozen=True)
class Conflict:
    """One thing that cannot be: `str` of it is the sentence of an error."""

    rule: str  # the rule of `make rules` that says it in a plan
    reason: str
    remedy: str = ""
    phase: Phase = "recipe"
    join: str = "; "  # what stands between the two in a sentence
    key: str | None = None  # the key of the recipe whose place the error names

    @property
    def severity(self) -> str:
        """How grave it is for a plan."""
        return PHASES[self.phase]

    def __str__(self) -> str:
        return f"{self.reason}{self.join}{self.remedy}" if self.remedy else self.reason


def of_values(recipe: "Recipe") -> Iterator[Conflict]:
    """Values that are each legal and together are not."""

    def wrong(key: str, reason: str, remedy: str = "") -> Conflict:
        return Conflict("contradiction", reason, remedy, key=key)

    if not recipe["model_name_or_path"]:
        yield wrong("model_name_or_path", "model_name_or_path is missing", "name a Hub id or a local directory")
    if (recipe["train_file"] is not None) == bool(recipe["dataset_name"]):
        yield wrong("train_file", "name exactly one of train_file (a local file) and dataset_name (a Hub id)")
    if recipe["test_file"] and recipe["test_split_size"]:
        both = "test_file has the rows of the test, and test_split_size would set more of them aside for nothing"
        yield wrong("test_split_size", both, "keep one")
    if recipe["load_in_4bit"] and recipe["load_in_8bit"]:
        yield wrong("load_in_8bit", "load_in_4bit and load_in_8bit are both true", "keep one")
    quantised = recipe["load_in_4bit"] or recipe["load_in_8bit"]
    if quantised and "quantization_config" in (recipe["model_init_kwargs"] or {}):
        two = "load_in_4bit and a quantization_config in model_init_kwargs are two answers"
        yield wrong("load_in_4bit", two, "keep one")
    if quantised and not recipe["use_peft"]:
        yield wrong("load_in_4bit", "quantised weights cannot be trained themselves", "set use_peft: true")
    if recipe["load_in_4bit"] and recipe["dtype"] not in ("bfloat16", "float16", "float32"):
        dtype = f"dtype: {schema.as_yaml(recipe['dtype'])} cannot be the 4-bit compute dtype"
        yield wrong("dtype", dtype, "write bfloat16")
    if recipe["use_peft"] and not recipe["lora_target_modules"] and not recipe["lora_target_parameters"]:
        none = "use_peft needs lora_target_modules, such as [q_proj, v_proj] or [all-linear]"
        yield wrong("lora_target_modules", none)
    yield from (wrong("init_lora_weights", *each) for each in _beginnings(recipe))
    if recipe["bf16"] and recipe["fp16"]:
        yield wrong("fp16", "bf16 and fp16 are both true", "keep one")
    if recipe["eval_strategy"] == "no":
        for key in ("load_best_model_at_end", "early_stopping_patience", "eval_on_start"):
            if recipe[key]:
                off = 0 if key == "early_stopping_patience" else "false"
                remedy = f"set {key}: {off}, or eval_strategy: epoch"
                yield wrong(key, f"{key} needs evaluations, but eval_strategy is no", remedy)
    elif not recipe["validation_file"] and not recipe["dataset_name"] and not recipe["validation_split_size"]:
        none = "eval_strategy needs held-out rows: set validation_file or validation_split_size"
        yield wrong("eval_strategy", none)
    metric, larger = recipe["metric_for_best_model"] or "loss", recipe["greater_is_better"]
    if larger is not None and larger is not schema.LARGER_IS_BETTER[metric]:
        both = f"greater_is_better: {schema.as_yaml(larger)} with metric_for_best_model: {metric}"
        follows = "drop it, the direction follows from the metric"
        yield wrong("greater_is_better", f"{both} keeps the worst weights", follows)
    if recipe["early_stopping_patience"] and not recipe["load_best_model_at_end"] and recipe["eval_strategy"] != "no":
        needs = "early stopping needs load_best_model_at_end: true and metric_for_best_model"
        yield wrong("early_stopping_patience", needs, "set both, or early_stopping_patience: 0")
    if recipe["load_best_model_at_end"] and recipe["save_strategy"] != "best":
        every = recipe["eval_steps"] or recipe["logging_steps"]
        if recipe["eval_strategy"] != recipe["save_strategy"] and recipe["eval_strategy"] != "no":
            yield wrong("save_strategy", "load_best_model_at_end needs save_strategy equal to eval_strategy")
        elif recipe["save_strategy"] == "steps" and every != recipe["save_steps"]:
            yield wrong("save_steps", "load_best_model_at_end needs save_steps equal to eval_steps")
    if recipe["mask_empty_reasoning"] and not recipe.loss_on_answers:
        everything = "mask_empty_reasoning leaves a part of answers out of a loss that is on everything"
        yield wrong("mask_empty_reasoning", everything, "set completion_only_loss: true, or drop it")
    if recipe["sort_within_batch"] and (why := unsorted(recipe)):
        yield wrong("sort_within_batch", f"sort_within_batch has nothing to sort: {why}", "drop it")
    for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if recipe[key] and not recipe["dataloader_num_workers"]:
            yield wrong(key, f"{key} needs dataloader_num_workers above 0", "set both, or drop it")
    if recipe["packing"] and recipe["max_length"] is None:
        yield wrong("packing", "packing needs max_length, which is what it fills", "set max_length: 2048")
    elif recipe["padding_free"] and not recipe["packing"] and recipe["max_length"] is not None:
        cut = "padding_free without packing cuts nothing at max_length"
        yield wrong("padding_free", cut, "set packing: true, or max_length: null")
    if recipe["fp16_full_eval"] and recipe["bf16_full_eval"]:
        yield wrong("fp16_full_eval", "bf16_full_eval and fp16_full_eval are both true", "keep one")
    found = (
        *places.problems(recipe),
        *arguments.problems(recipe),
        *task.problems(recipe.own()),
        *sources.problems(recipe),
    )
    yield from (wrong(key, text) for key, text in found)


def _beginnings(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What is wrong with how the adapter is to begin, as (reason, remedy)."""
    init, table = recipe["init_lora_weights"], schema.DATA["inits"]
    said, plain = f"init_lora_weights: {schema.short(init)}", "set init_lora_weights: true"
    if init is True:
        return
    # pissa_niter_4 is pissa by another algorithm.
    name = init if init is False else str(init).lower().partition("_niter_")[0]
    why = next((why for why, names in table["refused"].items() if name in names), None)
    if why:
        yield f"{said} {why}", f"{plain}, with which the adapter begins as no change of the base"
    elif init not in table["taken"]:
        near = closest(str(init), table["taken"])
        instead = f"set init_lora_weights: {near}" if near else plain
        yield f"{said} is not one of true, {', '.join(table['taken'])}", instead
    elif not recipe["use_peft"]:
        yield f"{said} needs an adapter, and use_peft is false", "drop it"
    elif recipe["adapter_name_or_path"]:
        yield f"{said} is of a new adapter, and adapter_name_or_path continues from one", "drop it"
    elif init == "orthogonal":
        # PEFT draws it in the dtype that the base's weights are stored in, which is that of whole numbers there.
        if recipe["load_in_4bit"] or recipe["load_in_8bit"]:
            yield f"{said} cannot be drawn on a quantised base", "set init_lora_weights: gaussian"
        if recipe["lora_r"] % 2:
            yield f"{said} needs an even rank, and lora_r is {recipe['lora_r']}", f"set lora_r: {recipe['lora_r'] + 1}"


def unsorted(recipe: "Recipe") -> str | None:
    """Why the rows of a step cannot be sorted by length, or need not be; None if they can."""
    if recipe["packing"] or recipe["padding_free"]:
        return f"{'packing' if recipe['packing'] else 'padding_free'} pads nothing"
    if (order := recipe["train_sampling_strategy"]) not in ("random", "sequential"):
        return f"train_sampling_strategy: {order} orders rows by length already"
    return None


def of_topology(recipe: "Recipe", topology: "Topology") -> Iterator[Conflict]:
    """Pairs of recipe and topology that the libraries get wrong, and a global batch that cannot be reached there."""

    wrong = functools.partial(Conflict, "unsupported-pair", phase="topology")

    for key in ("fp16", "tf32"):
        if topology.use_cpu and recipe[key]:
            yield wrong(f"{key}: true needs a GPU, and {topology.name} runs on the CPU", f"set {key}: false")
    zero3, deepspeed, fsdp = topology.zero_stage == 3, topology.backend == "deepspeed", topology.backend == "fsdp"
    storage = recipe["bnb_4bit_quant_storage"] or "uint8"
    precision = topology.config.get("mixed_precision", "no")
    wanted = "bf16" if recipe["bf16"] else "fp16" if recipe["fp16"] else "no"
    if precision not in ("no", wanted):
        yield wrong(
            f"{topology.name} computes in {precision}, the recipe in {wanted}",
            f"set {precision}: true in the recipe, or mixed_precision: 'no' in the accelerate config",
        )
    if fsdp and (recipe["load_in_4bit"] or recipe["load_in_8bit"]):
        bits = "load_in_4bit" if recipe["load_in_4bit"] else "load_in_8bit"
        stored = [f"{key}=bfloat16" for key in ("bnb_4bit_quant_storage", "dtype") if recipe[key] != "bfloat16"]
        sharded = "ACCEL=zero3" + (f' SET="{" ".join(stored)}"' if stored else "")
        ways = [
            "ACCEL=ddp",
            *([sharded] if bits == "load_in_4bit" else []),
            f"train without quantisation: SET={bits}=false",
        ]
        yield wrong(
            "FSDP2 cannot train a quantised base: uint8 weights stay whole on every GPU and float storage gives wrong "
            "forward passes (bitsandbytes#1945, accelerate#3874)",
            f"choose {', or '.join(ways)}",
        )
    if zero3 and recipe["load_in_8bit"]:
        yield wrong("ZeRO-3 cannot partition 8-bit weights", "choose ACCEL=ddp")
    if zero3 and recipe["load_in_4bit"]:
        if storage != "bfloat16":
            yield wrong(
                f"ZeRO-3 can only partition 4-bit weights that are stored as bfloat16, not {storage}",
                "set bnb_4bit_quant_storage: bfloat16 (the same bits, so nothing else changes), or choose ACCEL=ddp",
            )
        if recipe["dtype"] != "bfloat16":
            dtype = f"ZeRO-3 with 4-bit weights needs dtype: bfloat16, not {recipe['dtype']}"
            yield wrong(dtype, "or choose ACCEL=ddp")
    elif deepspeed and recipe["load_in_4bit"] and storage not in ("uint8", "bfloat16"):
        cast = f"DeepSpeed would cast 4-bit weights stored as {storage} and destroy them"
        yield wrong(cast, "set bnb_4bit_quant_storage: bfloat16")
    reentrant = (recipe["activation_checkpointing_kwargs"] or {}).get("use_reentrant")
    if zero3 and recipe["use_peft"] and recipe.checkpoints_activations and reentrant is False:
        needs = "ZeRO-3 with adapters needs reentrant checkpointing (trl#2514)"
        yield wrong(needs, "drop use_reentrant: false, it is derived")
    wide = recipe["use_peft"] and recipe["adapter_dtype"] != "float32"
    if topology.zero_stage and wide:
        yield wrong("DeepSpeed keeps float32 master weights of the adapters", "set adapter_dtype: float32")
    away = (topology.config.get("deepspeed_config") or {}).get("offload_optimizer_device", "none") != "none"
    if away and recipe["optim"] not in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"):
        # accelerate/utils/deepspeed.py: `map_pytorch_optim_to_deepspeed`
        yield wrong(
            "accelerate trains with DeepSpeed's Adam, without decoupled weight decay, or fails, where the optimizer "
            f"is offloaded and optim is {recipe['optim']}",
            "set optim: adamw_torch",
        )
    layerwise = recipe["optim"].endswith("layerwise")
    if layerwise and recipe["global_batch_size"] != recipe["per_device_train_batch_size"] * topology.processes:
        yield wrong(
            f"optim: {recipe['optim']} steps after every micro-batch and cannot accumulate",
            f"set global_batch_size: {recipe['per_device_train_batch_size']}, or the optimizer without layerwise",
        )
    if layerwise and topology.processes > 1:
        yield wrong(f"optim: {recipe['optim']} runs in one process alone", "choose ACCEL=single_gpu")
    if fsdp and wide and wanted != "no":
        # accelerate/utils/fsdp_utils.py: `fsdp2_prepare_model`
        yield wrong("accelerate widens what FSDP2 trains to float32", "set adapter_dtype: float32")
    yield from unreachable(recipe, topology.processes)


def unreachable(recipe: "Recipe", processes: int, machines: int = 1) -> Iterator[Conflict]:
    """A global batch that is no multiple of what all processes take at once, with the values that would work.

    Of several machines, GPUS counts those of each.
    """
    total, per_device = recipe["global_batch_size"], recipe["per_device_train_batch_size"]
    steps, rest = divmod(total, per_device * processes)
    if rest == 0 and steps:
        return
    per_process, uneven = divmod(total, processes)
    # Beyond 64 rows nobody looks for a micro-batch that divides.
    sizes = [str(size) for size in range(1, min(per_process, 64) + 1) if not uneven and per_process % size == 0]
    counts = [str(number) for number in (1, 2, 3, 4, 6, 8) if total % (per_device * number * machines) == 0]
    works = [
        *([f"per_device_train_batch_size {', '.join(sizes)}"] if sizes else []),
        *([f"GPUS {', '.join(counts)}"] if counts else []),
        f"global_batch_size {max(per_device * processes, total - rest)}",
    ]
    yield Conflict(
        "batch-unreachable",
        f"global_batch_size {total} is not reachable with per_device_train_batch_size {per_device} on "
        f"{count(processes, 'process')}: {total} / ({per_device} x {processes}) is not whole",
        " or ".join(works),
        "topology",
        join=". Works: ",
    )


def of_machine(
    recipe: "Recipe", topology: "Topology", gpus: Collection["Gpu"], built: Mapping[Path, tuple[str, str] | None]
) -> Iterator[Conflict]:
    """What this machine lacks: GPUs, trackers, compilers, a local base model that is not among those `built` first.

    Of each of those that is not None, why it cannot be built here, and what to install.
    """
    missing = [*missing_gpus(recipe, topology, len(gpus))]
    yield from missing
    yield from missing_tools(recipe, topology, compilers=not missing)
    name = recipe["model_name_or_path"]
    path = Path(name).expanduser()
    where = f"{recipe.values['model_name_or_path'].origin}: model_name_or_path {name}"
    if lacks := built.get(path):
        reason, install = lacks
        yield Conflict("model-missing", f"{where}: {reason}", f"install what is missing with: {install}", "machine")
    elif places.is_path(name) and path not in built and not (path / "config.json").is_file():
        remedy = "name a saved model's directory, or a Hub id ORG/NAME"
        yield Conflict("model-missing", f"{where} has no config.json", remedy, "machine")
    elif damage := places.damaged_weights(path):
        remedy = "copy or download the model again"
        yield Conflict("model-damaged", f"{where}: {damage}", remedy, "files")


def missing_gpus(recipe: "Recipe", topology: "Topology", visible: int) -> Iterator[Conflict]:
    """Fewer GPUs than the topology has processes, with three ways on."""
    need = topology.processes
    if topology.use_cpu or need <= visible:
        return
    total, size = recipe["global_batch_size"], recipe["per_device_train_batch_size"]
    number = next((number for number in range(visible, 1, -1) if total % (size * number) == 0), 1)
    fewer = (
        f"GPUS={number} keeps {topology.name} and the global batch of {total}"
        if number > 1
        else "ACCEL=single_gpu trains it on one GPU with the same global batch"
        if visible
        else "ACCEL=single_gpu on a machine with one GPU trains it with the same global batch"
    )
    yield Conflict(
        "devices-missing",
        f"{topology.name} needs {count(need, 'GPU')}, {visible} {'is' if visible == 1 else 'are'} visible",
        f"  1. {fewer}\n"
        "  2. make train RECIPE=demo shows the whole road on a CPU, with real 4-bit weights\n"
        f"  3. ACCEL=cpu trains {recipe.name} itself on this CPU, if the model is small enough for it",
        "machine",
        join=". Instead:\n",
    )


def missing_tools(recipe: "Recipe", topology: "Topology", *, compilers: bool = True) -> Iterator[Conflict]:
    """Trackers that are asked for and not installed, DeepSpeed, and the compilers that it and Triton need.

    Args:
        compilers: Whether those for a GPU are looked for, which is idle where the GPUs are another machine's.
    """

    missing = functools.partial(Conflict, "tool-missing", phase="machine")

    pip = Path(os.path.relpath(sys.prefix)) / "bin" / "pip"
    for tracker, about in trackers(recipe):
        if any(importlib.util.find_spec(module) is None for module in about["modules"]):
            install = f"run {pip} install {about['pip']}, or set report_to: none"
            yield missing(f"report_to: {tracker} is not installed", install)
        elif (needed := about.get("requires")) and not os.environ.get(needed):
            yield missing(
                f"report_to: {tracker} needs {needed}, which is not set", "export it, or set report_to: none"
            )
    for module, needed in schema.DATA["optimizers"]["packages"].items():
        if recipe["optim"] in needed["of"] and importlib.util.find_spec(module) is None:
            install = f"run {pip} install {needed['pip']}, or set optim: adamw_torch"
            yield missing(f"optim: {recipe['optim']} needs {module}, which is not installed", install)
    if topology.backend == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            none = f"{topology.name}: DeepSpeed is not installed, it is for Linux alone"
            yield missing(none, "choose ACCEL=single_gpu")
        if topology.offloads and not shutil.which(os.environ.get("CXX", "c++")):
            yield missing(
                f"{topology.name}: DeepSpeed builds its optimizer for host memory first and finds no C++ compiler",
                "install one (apt-get install g++), or choose ACCEL=zero3",
            )
    # Triton loads any kernel on a GPU, such as those of TRL's loss, and says what it lacks only in the first step.
    if not compilers or topology.use_cpu or importlib.util.find_spec("triton") is None:
        return
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        yield missing(
            f"{topology.name}: TRL's loss runs in Triton, which finds no C compiler",
            "install one (apt-get install gcc)",
        )
    headers = Path(sysconfig.get_path("include", "posix_prefix"))
    if not (headers / "Python.h").is_file():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        yield missing(
            f"{topology.name}: TRL's loss runs in Triton, which needs Python's headers, and {headers} has no Python.h",
            f"install them (apt-get install {python})",
        )


def trackers(recipe: "Recipe") -> Iterator[tuple[str, dict[str, Any]]]:
    """The trackers that a recipe names, and what is known of each."""
    asked = recipe["report_to"]
    for name in asked if isinstance(asked, list) else [asked]:
        if name in schema.DATA["trackers"]:
            yield name, schema.DATA["trackers"][name]


def of_rehearsal(recipe: "Recipe", topology: "Topology") -> Iterator[Conflict]:
    """What only a GPU can do, so that a rehearsal on a CPU can say nothing about it."""

    wrong = functools.partial(Conflict, "rehearsal", phase="rehearsal")

    if topology.backend == "fsdp":
        yield wrong(
            f"{topology.name}: accelerate turns FSDP on a CPU into DDP, so FSDP2 cannot be rehearsed",
            "ACCEL=ddp rehearses everything else of the recipe",
        )
    for key in ("fp16", "tf32"):
        # On a CPU a training is refused for it too.
        if recipe[key] and not topology.use_cpu:
            yield wrong(f"{key}: true needs a GPU, so it cannot be rehearsed", f"SET='{key}=false' rehearses the rest")
    attention = recipe["attn_implementation"]
    if attention not in (None, "sdpa", "eager"):
        yield wrong(
            f"attn_implementation: {attention} needs a GPU, so it cannot be rehearsed",
            "SET='attn_implementation=sdpa' rehearses the rest",
        )
