"""Checkpoints: sealed when whole, checked before they are used, deleted only once a newer one can be trusted."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.files import difference, sealed, write_whole
from sft_recipes.runs.facts import MANIFEST, SCHEMA
from sft_recipes.runs.run import Run

_STATE, _INDEX = "trainer_state.json", "model.safetensors.index.json"
_STEP = re.compile(r"checkpoint-(\d+)")


class DamagedBest(Exception):
    """The checkpoint whose weights a run would end with cannot be used; the message says why, and what to do."""


def at(directory: Path, step: int) -> Path:
    """Where a run of that directory keeps its checkpoint of a step."""
    return directory / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is named after."""
    return int(checkpoint.name.rpartition("-")[2])


def state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state as a whole checkpoint holds it."""
    return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))


def place(run: Run) -> dict[str, Any]:
    """Where and in what precision a run trains, which decides what its checkpoints hold."""
    return {**run.facts()["topology"], "fp16": bool(run.values().get("fp16"))}


def needed(topology: Mapping[str, Any], step: int) -> Iterator[str]:
    """The files without which no run on that topology can be continued exactly, as patterns of their names.

    Upstream restores what it finds: without the optimizer's file, for one, AdamW starts anew and nothing is said.
    """
    ranks, backend = range(topology["processes"]), topology["backend"]
    yield re.escape(_STATE)
    yield from ["rng_state\\.pth"] if len(ranks) == 1 else [rf"rng_state_{rank}\.pth" for rank in ranks]
    if backend == "deepspeed":
        # The engine loads adapters and models from its own files; scheduler.pt is missed aloud where it is needed.
        yield "latest"
        for rank in ranks:
            yield rf"global_step{step}/(bf16_)?zero_pp_rank_{rank}_mp_rank_00_optim_states\.pt"
        for part in [rf"zero_pp_rank_{rank}_" for rank in ranks] if topology["zero_stage"] == 3 else [""]:
            yield rf"global_step{step}/{part}mp_rank_00_model_states\.pt"
        return
    yield r"scheduler\.pt"
    if topology.get("fp16"):
        yield r"scaler\.pt"
    if backend == "fsdp":
        yield r"pytorch_model_fsdp\.bin|pytorch_model_fsdp_0/\.metadata"
        yield r"optimizer\.bin|optimizer_0/\.metadata"
    else:
        yield r"adapter_model\.safetensors|model\.safetensors|model\.safetensors\.index\.json"
        yield r"optimizer\.pt"


def seal(checkpoint: Path, topology: Mapping[str, Any]) -> None:
    """Write the manifest of a complete checkpoint, after everything it names is on the disk.

    Upstream neither writes checkpoints atomically nor looks inside one before resuming from it; the manifest, written
    last, is what makes a checkpoint whole.

    Raises:
        RuntimeError: A file that resuming needs was not written.
    """
    files = sealed(checkpoint, besides=MANIFEST)
    if missing := _missing(checkpoint, files, topology):
        raise RuntimeError(f"{checkpoint}: {missing} was not written, so no run could be continued from it")
    write_whole(checkpoint / MANIFEST, json.dumps({"schema": SCHEMA, "files": files}, indent=1) + "\n")


def _missing(checkpoint: Path, files: Mapping[str, Any], topology: Mapping[str, Any]) -> str | None:
    """The first file that resuming needs and that is not among those named."""
    patterns = [*needed(topology, step_of(checkpoint))]
    if _INDEX in files:
        shards = json.loads((checkpoint / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        patterns += map(re.escape, sorted(set(shards)))
    absent = (pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in files))
    return next((pattern.replace("\\", "").replace("|", " or ") for pattern in absent), None)


def damage(checkpoint: Path, topology: Mapping[str, Any]) -> str | None:
    """Why a run on that topology cannot be continued from a checkpoint, or None when all is as it was sealed."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {name: {"bytes": file["bytes"], "sha256": file["sha256"]} for name, file in manifest["files"].items()}
    except FileNotFoundError:
        return "it was never finished (no manifest)" if checkpoint.exists() else "it is not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    if not files or manifest.get("schema") != SCHEMA:
        return "its manifest is of another version, or names no file"
    if reason := difference(checkpoint, files):
        return reason
    if missing := _missing(checkpoint, files, topology):
        return f"its manifest does not name {missing}"
    try:
        found = state(checkpoint)
        kept = found["stateful_callbacks"]
        kept["Trainer"], kept["Record"], kept["TrainerControl"], found["global_step"]
    except (ValueError, KeyError, TypeError):
        return f"its {_STATE} lacks what an exact continuation needs; an earlier version of sft-recipes wrote it"
    if found["global_step"] != step_of(checkpoint):
        return f"it is a copy of checkpoint-{found['global_step']}"
    return None


def newest_whole(run: Run) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and one sentence about each newer one that is not."""
    skipped: list[str] = []
    topology = place(run)
    for path in sorted(_all(run.directory), key=step_of, reverse=True):
        reason = damage(path, topology)
        if reason is None:
            return path, skipped
        skipped.append(f"{path.name} is skipped: {reason}")
    return None, skipped


def best_damage(run: Run, checkpoint: Path) -> str | None:
    """Why the run cannot end with its best weights if it is continued from a checkpoint, and what to do; or None."""
    step = state(checkpoint).get("best_global_step")
    return unusable_best(run, at(run.directory, step)) if step and run.values().get("load_best_model_at_end") else None


def unusable_best(run: Run, best: Path) -> str | None:
    """Why the best checkpoint of a run cannot be used, and what to do; None where it is whole."""
    reason = damage(best, place(run))
    return reason and (
        f"{best} holds the best weights so far, those that the run would end with, and it cannot be used: {reason}. "
        f"Put it back from a backup and write make resume NAME={run.name}, or have the best sought from the newest "
        f"checkpoint on: make resume NAME={run.name} FORGET_BEST=1"
    )


def rotate(newest: Path, limit: int | None, best: Path | None) -> None:
    """Delete older checkpoints than a sealed one, until `limit` are left; itself and the best are always kept.

    What was never finished goes whatever the limit. Newer ones are of a launch that was continued from before them,
    and are written anew.
    """
    older = sorted((path for path in _all(newest.parent) if step_of(path) < step_of(newest)), key=step_of)
    whole = [path for path in older if (path / MANIFEST).is_file()]
    kept = {newest, best}
    others = [path for path in whole if path not in kept]
    room = max(0, limit - 1 - (best in whole)) if limit else len(others)
    for path in [*(path for path in older if path not in whole), *others[: max(0, len(others) - room)]]:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; cut off in the middle, it is one that was never finished."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _all(directory: Path) -> list[Path]:
    return [path for path in directory.glob("checkpoint-*") if _STEP.fullmatch(path.name)]
