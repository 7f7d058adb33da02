"""The sections that walk the road with the program's own commands, each in a folder where nothing else is."""

import concurrent.futures
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.benchmark.scale import Scale
from sft_recipes.benchmark.section import Section
from sft_recipes.errors import InputError
from sft_recipes.files import sha256
from sft_recipes.launch import rehearse
from sft_recipes.recipes import conflicts, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.runs.facts import MANIFEST
from sft_recipes.runs.run import Run

# Of the demo: what trains on one GPU as it does on a CPU, and in bfloat16 where a backend computes in it.
BFLOAT16 = "dtype=bfloat16 bf16=true"
UNJUDGED = "task=null test_file=null group_column=null"
TOPOLOGY_STEPS, TOPOLOGY_SAVED = 12, 3


OURS = (sys.executable, "-m", "sft_recipes")


def command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    *,
    of: Sequence[str] = OURS,
    code: int = 0,
) -> tuple[float, str]:
    """Run a command to its end; the seconds it took and what it printed.

    Args:
        environment: All of its environment.
        code: The exit code that it should end with.

    Raises:
        RuntimeError: It ended with another code, with the end of what it said.
        TimeoutError: It did not end in time; it and all it started are killed.
    """
    began = time.monotonic()
    process = _start(arguments, environment, of)
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        children.kill(process)
        raise TimeoutError(f"{' '.join(arguments)} did not end in {seconds:.0f} s") from None
    if process.returncode != code:
        raise RuntimeError(f"{' '.join(arguments)} ended with code {process.returncode}: {_end(output)}")
    return round(time.monotonic() - began, 3), output


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], of: Sequence[str] = OURS
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*of, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return " | ".join((errors or lines)[-3:])


def killed_after(arguments: Sequence[str], environment: Mapping[str, str], checkpoint: Path, seconds: float) -> float:
    """Start a training and kill all its processes once that checkpoint is whole; the seconds until then.

    Raises:
        RuntimeError: It ended before the checkpoint was there.
        TimeoutError: The checkpoint was not there in time.
    """
    began = time.monotonic()
    process = _start(arguments, environment)
    try:
        while not (checkpoint / MANIFEST).is_file():
            if process.poll() is not None:
                output, _ = process.communicate()
                raise RuntimeError(f"{' '.join(arguments)} ended before {checkpoint.name}: {_end(output)}")
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{checkpoint.name} was not there in {seconds:.0f} s")
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            children.kill(process)
    return round(time.monotonic() - began, 1)


def road(section: Section, scale: Scale, environment: Mapping[str, str]) -> None:
    """The demo, trained and evaluated, merged, then trained again, killed, and resumed to the same adapter or not."""
    where = "single_gpu" if scale.gpu else "cpu"
    asked = ["train", "demo", "--accel", where]

    def trained() -> dict[str, Any]:
        seconds, output = command([*asked, "--name", "road"], environment, section.left)
        facts = Run(Path("runs/road")).facts()
        metrics = Run(Path("runs/road")).evaluation("test")
        return {
            "topology": where,
            "seconds": seconds,
            "steps": facts["measured"]["step"],
            "training_seconds": facts["measured"]["training_seconds"],
            "tokens_per_second": facts["measured"]["tokens_per_second"],
            "peak_memory_bytes": facts["measured"]["peak_memory_bytes"],
            "eval_loss": facts["measured"]["eval_loss"],
            "verdict": metrics["verdict"]["text"] if isinstance(metrics["verdict"], dict) else metrics["verdict"],
            "printed": [line for line in output.splitlines() if line.startswith(("tuned", "base  ", "verdict"))],
        }

    def merged() -> dict[str, Any]:
        seconds, output = command(["merge", "road"], environment, section.left)
        return {"seconds": seconds, "printed": [line for line in output.splitlines() if line][-3:]}

    def resumed() -> dict[str, Any]:
        recipe = Run(Path("runs/road")).values()
        saved = int(recipe["save_steps"])
        again = Run(Path("runs/road-killed"))
        checkpoint = again.directory / f"checkpoint-{saved}"
        # What it answers has been measured, and is the same if the adapter is.
        arguments = [*asked, "--name", again.name, "--set", UNJUDGED]
        killed_after(arguments, environment, checkpoint, section.left)
        seconds, _ = command(["resume", again.name], environment, section.left)
        return {"killed_after_step": saved, "seconds": seconds, **adapters_compared(Run(Path("runs/road")), again)}

    section.plan(["demo", "merge", "killed_and_resumed"])
    if section.measure("demo", trained) is None:
        return
    section.measure("merge", merged, expected=10)
    section.measure("killed_and_resumed", resumed, expected=20)


def adapters_compared(one: Run, other: Run) -> dict[str, Any]:
    """Whether two runs have the same adapter to the bit, and else the largest difference of a weight."""
    from safetensors.numpy import load_file

    files = [run.adapter / "adapter_model.safetensors" for run in (one, other)]
    same = len({*map(sha256, files)}) == 1
    first, second = (load_file(path) for path in files)
    if first.keys() != second.keys():
        return {"equal_to_the_bit": False, "largest_difference": None}
    differences = [float(abs(first[name].astype("f8") - second[name].astype("f8")).max()) for name in first]
    return {"equal_to_the_bit": same, "largest_difference": max(differences)}


def topologies(section: Section, scale: Scale, environment: Mapping[str, str]) -> None:
    """Every accelerate config with one process: trains, is verified in effect, saves, is killed, and resumes."""
    names = [name for name in topology.names() if name not in ("cpu", "single_gpu")]
    section.plan(names)
    places = {name: topology.read(name, "the benchmark", 1) for name in names}
    if not scale.gpu:
        recipe = recipes.load("demo")
        for name in names:
            if refusal := _not_on_cpu(recipe, places[name]):
                section.refuse(name, refusal)
                places.pop(name)
            else:
                # The same config on the CPU, under its own name: this folder's copy alone.
                small = rehearse.on_cpu(places[name])
                Path(topology.CONFIGS, f"{name}.yaml").write_text(recipes.dump(small.config), encoding="utf-8")
    # They need no clock of their own, so as many run at once as the cores carry.
    at_once = max(1, (os.cpu_count() or 1) // 2)
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        work = {name: pool.submit(_topology, place, section, environment) for name, place in places.items()}
        for name, future in work.items():
            section.measure(name, future.result, expected=0)


def _not_on_cpu(recipe: recipes.Recipe, place: topology.Topology) -> str:
    """Why a CPU cannot run it, empty if it can."""
    if problems := [*conflicts.of_rehearsal(recipe, place)]:
        return " ".join(map(str, problems))
    if "cpu" in (place.config.get("deepspeed_config") or {}).values():
        return "on a CPU there is no other memory to offload to; what is left of it is zero3"
    return ""


def _topology(place: topology.Topology, section: Section, environment: Mapping[str, str]) -> dict[str, Any]:
    settings = (
        f"{BFLOAT16} bnb_4bit_quant_storage=bfloat16 max_steps={TOPOLOGY_STEPS} save_steps={TOPOLOGY_SAVED} "
        f"eval_steps={TOPOLOGY_SAVED} eval_on_start=false logging_steps=1 load_best_model_at_end=false "
        f"early_stopping_patience=0 {UNJUDGED}"
    )
    if place.backend == "fsdp":
        # It cannot shard a quantised base.
        settings += " load_in_4bit=false"
    asked = ["train", "demo", "--accel", place.name, "--gpus", "1", "--name", place.name, "--set", settings]
    run = Run(Path("runs") / place.name)
    if section.left < 30:
        raise TimeoutError(f"{section.left:.0f} s were left, and two starts of a training take longer")
    seconds = killed_after(asked, environment, run.directory / f"checkpoint-{TOPOLOGY_SAVED}", section.left)
    resumed, _ = command(["resume", place.name], environment, section.left)
    facts = run.facts()
    if facts["status"] != "finished":
        raise InputError(f"the resumed run is {facts['status']}: {facts.get('error')}")
    return {
        "first_seconds": seconds,
        "resumed_seconds": resumed,
        "resumed_from_step": facts["resumed"][-1]["step"],
        "steps": facts["measured"]["step"],
        "in_effect": facts["in_effect"]["run"],
        "eval_loss": facts["measured"]["eval_loss"][-1]["eval_loss"],
        "peak_memory_bytes": facts["measured"]["peak_memory_bytes"],
    }
