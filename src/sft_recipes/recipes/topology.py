"""Where a recipe runs: an accelerate config, the visible GPUs, and which recipes cannot run there."""

import csv
import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, refuse
from sft_recipes.recipes import conflicts, schema, secrets
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.terminal import count

CONFIGS = Path("accelerate_configs")

# What an accelerate config may say here, and in its sections.
KEYS: dict[str, list[Any]] = schema.DATA["of_accelerate"]
SECTIONS: dict[str, dict[str, list[Any]]] = {
    "deepspeed_config": schema.DATA["of_deepspeed"],
    "fsdp_config": schema.DATA["of_fsdp"],
}
# More than any one machine has GPUs or cores.
MOST_PROCESSES = 1024
BACKENDS = {"NO": "single", "MULTI_GPU": "ddp", "DEEPSPEED": "deepspeed", "FSDP": "fsdp"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Processes and backend of one run on one machine."""

    name: str
    config: dict[str, Any]  # the accelerate config as launched
    origin: str  # why this one: the recipe, ACCEL=, or the visible hardware

    @property
    def processes(self) -> int:
        return self.config["num_processes"]

    @property
    def backend(self) -> str:
        """single, ddp, deepspeed or fsdp."""
        return BACKENDS[self.config["distributed_type"]]

    @property
    def zero_stage(self) -> int | None:
        return self.config["deepspeed_config"]["zero_stage"] if self.backend == "deepspeed" else None

    @property
    def use_cpu(self) -> bool:
        return bool(self.config.get("use_cpu"))

    @property
    def offloads(self) -> bool:
        """Whether DeepSpeed keeps the optimizer or the weights in host memory."""
        return "cpu" in (self.config.get("deepspeed_config") or {}).values()

    @property
    def computes_on_cpu(self) -> bool:
        """Whether a CPU does much of the work: all of it, or the optimizer's where DeepSpeed offloads it."""
        return self.use_cpu or self.offloads

    def describe(self) -> str:
        """One line: `zero2: 4 processes, DeepSpeed ZeRO-2`."""
        backend = {"single": "no distribution", "ddp": "DDP", "fsdp": "FSDP2"}.get(
            self.backend, f"DeepSpeed ZeRO-{self.zero_stage}"
        )
        where = f"{count(self.processes, 'process')} on {'CPU' if self.use_cpu else 'GPU'}"
        return f"{self.name}: {where}, {backend} ({self.origin})"

    def facts(self) -> dict[str, Any]:
        """As run.json holds it."""
        return {
            "name": self.name,
            "backend": self.backend,
            "processes": self.processes,
            "zero_stage": self.zero_stage,
            "use_cpu": self.use_cpu,
        }


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A visible GPU."""

    name: str
    memory_mib: int  # 0 for one that shares the host's memory


# What the NVIDIA driver leaves in the file system of a machine, or of a container that it is given to.
DRIVER = Path("/dev/nvidiactl")


def visible_gpus() -> list[Gpu]:
    """The GPUs that a process started now would see: NVIDIA's as nvidia-smi names them, or the one of an Apple chip.

    A GPU that is divided (MIG) is seen as one of its parts, since CUDA shows a process no more than one. Neither needs
    torch to be imported.
    """
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        # It has the machine's memory, of which the system decides how much a GPU may take.
        return [Gpu("Apple GPU", 0)]
    listed, _ = _nvidia_smi(
        "--query-gpu=index,uuid,name,memory.total,mig.mode.current", "--format=csv,noheader,nounits"
    )
    known: dict[str, Gpu] = {}
    divided: dict[str, str] = {}
    for row in csv.reader(listed.splitlines(), skipinitialspace=True):
        if len(row) == 5:
            # GPUs that share the host's memory, such as the GB10, do not tell how much.
            index, uuid, name, memory, mode = row
            known[index] = known[uuid] = Gpu(name, int(memory) if memory.isdigit() else 0)
            divided |= {index: name, uuid: name} if mode == "Enabled" else {}
    if divided:
        known = {key: gpu for key, gpu in known.items() if key not in divided} | _parts(divided)
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        indices = sorted((key for key in known if key.isdigit()), key=int)
        return [known[key] for key in indices if key not in divided] or [known[key] for key in indices[:1]]
    gpus: list[Gpu] = []
    for word in (part.strip() for part in wanted.split(",")):
        # CUDA stops at the first device it does not know, and accepts a prefix of a UUID.
        long = word.startswith(("GPU-", "MIG-"))
        key = word if word in known else next((key for key in known if long and key.startswith(word)), None)
        if key is None:
            break
        gpus.append(known[key])
        if key in divided or key.startswith("MIG-"):
            break
    return gpus


def _parts(divided: Mapping[str, str]) -> dict[str, Gpu]:
    """The parts of divided GPUs by UUID, and the first of each GPU by the GPU's own index and UUID.

    Args:
        divided: Index and UUID of each such GPU to its name.

    Returns:
        GPUs that are named as torch names them. The memory is the one that the part's profile is called by, in units
        of 1e9 bytes, which is about what it has.
    """
    found: dict[str, Gpu] = {}
    of: tuple[str, ...] = ()
    for line in _nvidia_smi("-L")[0].splitlines():
        if gpu := re.match(r"GPU (\d+): .*\(UUID: (\S+)\)", line):
            of = gpu.groups()
        elif of and (part := re.match(r"\s+MIG (\S*?(\d+)gb\S*)\s+Device\s+\d+: \(UUID: (\S+)\)", line)):
            name, gigabytes, uuid = part.groups()
            found[uuid] = Gpu(f"{divided.get(of[0], 'NVIDIA')} MIG {name}", int(gigabytes) * 10**9 // 2**20)
            for key in of:
                found.setdefault(key, found[uuid])
    return found


def _nvidia_smi(*arguments: str) -> tuple[str, str | None]:
    """What nvidia-smi prints, and why it failed if it did."""
    try:
        answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)  # noqa: S607
    except FileNotFoundError:
        return "", f"{DRIVER} is there and nvidia-smi is not in PATH" if DRIVER.exists() else None
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"nvidia-smi failed: {error}"
    if answer.returncode == 0:
        return answer.stdout, None
    said = (answer.stdout + answer.stderr).strip()
    # Its code for a machine without the device that is asked for.
    none = answer.returncode == 6
    return "", None if none else f"nvidia-smi failed with code {answer.returncode}: {' '.join(said.split())[:200]}"


def no_gpu() -> bool:
    """Whether there is no GPU, so that a CPU is to compute what nobody said where to compute.

    Raises:
        InputError: As `refuse_fault`.
    """
    if visible_gpus():
        return False
    refuse_fault()
    return True


UNSEEN_GPU = (
    "nvidia-smi shows a GPU, and torch sees none; install a torch that is built for its driver, or set "
    "CUDA_VISIBLE_DEVICES= to compute on the CPU"
)


def refuse_fault() -> None:
    """For when no GPU is visible, before that is taken to mean that there is none.

    Raises:
        InputError: It looks like a fault, and a CPU would be a hundred times slower.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and (fault := _nvidia_smi("-L")[1]):
        raise InputError(f"no GPU is visible: {fault}. Mend that, or set CUDA_VISIBLE_DEVICES= to compute on the CPU")


def names(directory: Path = CONFIGS) -> list[str]:
    """The accelerate configs of a directory."""
    return recipes.names(directory)


def choose(recipe: Recipe, accel: str | None, processes: int | None, gpus: list[Gpu]) -> Topology:
    """The topology that was asked for, by the command, else by the recipe, else by the visible hardware.

    Raises:
        InputError: No such config, or one that says what a recipe must say, or a process count it cannot have; or
            the hardware is to decide and cannot be seen.
    """
    if accel:
        return read(accel, "ACCEL", processes)
    if recipe["accelerate_config"]:
        return read(recipe["accelerate_config"], recipe.values["accelerate_config"].origin, processes)
    if not gpus:
        refuse_fault()
        return read("cpu", "no GPU is visible", processes)
    if len(gpus) == 1:
        return read("single_gpu", "one GPU is visible", processes)
    return read("ddp", f"{len(gpus)} GPUs are visible", processes or len(gpus))


def read(name: str, origin: str, processes: int | None = None, directory: Path = CONFIGS) -> Topology:
    """Read and check `directory/name.yaml`, or a file by its path; `processes` replaces its number of processes."""
    if name.endswith(".yaml"):
        name, directory = Path(name).stem, Path(name).parent
    path = recipes.find("accelerate config", name, directory)
    values = recipes.read(path)
    refuse(secrets.problems(values).values())
    config = {key: item.value for key, item in values.items()}
    problems = []
    for key, item in values.items():
        if key not in KEYS:
            problems.append(f"{item.origin}: {key} is not a fact of where a recipe runs; drop it")
        elif wrong := _no_choice(item.value, KEYS[key]):
            problems.append(f"{item.origin}: {key}: {wrong}")
    for key in SECTIONS:
        if not isinstance(config.get(key, {}), dict):
            raise InputError(*problems, f"{path}: {key} must be a mapping, written in this file")
    for section, known in SECTIONS.items():
        for key, value in config.get(section, {}).items():
            if key not in known:
                problems.append(f"{path}: {section}.{key!s:.100} is not a fact of where a recipe runs; drop it")
            elif wrong := _no_choice(value, known[key]):
                problems.append(f"{path}: {section}.{key}: {wrong}")
    kind = config.get("distributed_type")
    if kind == "MULTI_CPU":
        problems.append(f"{path}: accelerate runs MULTI_CPU as one process; write MULTI_GPU with use_cpu: true")
    elif not isinstance(kind, str) or kind not in BACKENDS:
        problems.append(f"{path}: distributed_type: {schema.short(kind)} is not one of {', '.join(BACKENDS)}")
    elif kind == "FSDP" and config.get("use_cpu"):
        problems.append(f"{path}: accelerate turns FSDP on CPU into DDP; use ddp or zero3 with use_cpu: true")
    stage = config.get("deepspeed_config", {}).get("zero_stage")
    if kind == "DEEPSPEED" and (stage is True or stage not in (1, 2, 3)):
        problems.append(f"{path}: deepspeed_config.zero_stage must be 1, 2 or 3")
    elif kind == "FSDP" and config.get("fsdp_config", {}).get("fsdp_version") != 2:
        problems.append(f"{path}: fsdp_config.fsdp_version must be 2")
    if not isinstance(config.get("use_cpu", False), bool):
        problems.append(f"{path}: use_cpu: {schema.short(config['use_cpu'])} must be true or false")
    if config.get("mixed_precision", "no") not in ("no", "bf16", "fp16"):
        problems.append(f"{path}: mixed_precision must be 'no', bf16 or fp16")
    if config.get("num_machines", 1) != 1:
        problems.append(
            f"{path}: num_machines: {schema.short(config['num_machines'])}; these configs are for one machine"
        )
    if processes is not None:
        config["num_processes"] = processes
    number = config.get("num_processes")
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_PROCESSES:
        asked = f"{path}: num_processes" if processes is None else f"GPUS={processes!r:.40}"
        problems.append(f"{asked} must be a whole number above 0, and at most {MOST_PROCESSES}")
    elif kind == "NO" and number > 1:
        one = f"{path}: distributed_type: NO" if processes is None else name
        problems.append(f"{one} is one process, not {number}; choose ACCEL=ddp, zero2 or zero3")
    refuse(problems)
    return Topology(name, config, origin)


def _no_choice(value: Any, choices: list[Any]) -> str | None:
    # True equals 1, and is no number of anything.
    if not choices or any(value == each and type(value) is type(each) for each in choices):
        return None
    return f"{schema.short(value)} is not one of {', '.join(map(schema.as_yaml, choices))}"


def accumulation(recipe: Recipe, topology: Topology) -> int:
    """Micro-batches per optimizer step: global_batch_size / (per_device_train_batch_size x processes).

    Raises:
        InputError: The quotient is not whole; names the values that would work.
    """
    refuse(conflicts.unreachable(recipe, topology.processes))
    return recipe["global_batch_size"] // (recipe["per_device_train_batch_size"] * topology.processes)


def resolve(recipe: Recipe, topology: Topology) -> Recipe:
    """The recipe with everything that follows from where it runs.

    Raises:
        InputError: With every reason why this recipe cannot run on this topology.
    """
    refuse(conflicts.of_topology(recipe, topology))
    steps = accumulation(recipe, topology)
    batch = (
        f"{recipe['global_batch_size']} / ({recipe['per_device_train_batch_size']} x {topology.processes} processes)"
    )
    derived: dict[str, tuple[Any, str]] = {"gradient_accumulation_steps": (steps, batch)}
    if topology.use_cpu:
        derived["use_cpu"] = (True, f"accelerate config {topology.name}")
    if topology.backend == "ddp":
        # Every adapter takes part in every step, and the search for unused ones costs a graph traversal each step.
        derived["ddp_find_unused_parameters"] = (False, "every adapter takes part in every step")
    if recipe["activation_checkpointing"] is None:
        derived["activation_checkpointing"] = (recipe.checkpoints_activations, "TRL's default, by its current name")
    if topology.zero_stage == 3 and recipe["use_peft"] and recipe.checkpoints_activations:
        # TRL sets this under the deprecated name, which transformers 5.23 no longer reads.
        kwargs = {**(recipe["activation_checkpointing_kwargs"] or {}), "use_reentrant": True}
        derived["activation_checkpointing_kwargs"] = (kwargs, "ZeRO-3 with adapters needs reentrant checkpointing")
    if metric := recipe["metric_for_best_model"]:
        better = schema.LARGER_IS_BETTER[metric]
        derived["greater_is_better"] = (better, f"{'more' if better else 'less'} {metric} is better")
    # A NaN must reach the log, where it stops the run; upstream's default writes 0.0 in its place.
    derived["logging_nan_inf_filter"] = (False, "a NaN stops the run instead of being logged as 0")
    # Otherwise a resumed run forgets how many evaluations were without improvement.
    derived["restore_callback_states_from_checkpoint"] = (True, "early stopping continues after a resume")
    return recipe.derive(**derived)
