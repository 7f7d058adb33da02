"""The adapter that a run continues from: can it be trusted, what is it known by, and what did it continue from?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.files import sha256
from sft_recipes.models.base_model import Model
from sft_recipes.recipes import adapters
from sft_recipes.runs.run import Run, adapter_damage, rehearsed


def folder(own: Mapping[str, Any]) -> Path | None:
    """Where the adapter lies that our own keys of a recipe or run name; None where they name none.

    Raises:
        InputError: It is not there.
    """
    name = own.get("adapter_name_or_path")
    return adapters.folder(name, own.get("adapter_revision") or "main") if name else None


def check(own: Mapping[str, Any]) -> None:
    """Nothing where the adapter is that of no run, or of one that left it as it is.

    Raises:
        InputError: Its run is a rehearsal, or has not finished, or the adapter is not what that run trained.
    """
    directory = folder(own)
    if directory is None or (run := _run(directory)) is None:
        return
    where = "adapter_name_or_path"
    if sentence := rehearsed(run):
        raise InputError(f"{where}: {sentence}")
    if directory.resolve() == run.adapter.resolve() and (damage := adapter_damage(run)):
        raise InputError(f"{where}: {damage}")


def check_targets(own: Mapping[str, Any], targets: Sequence[str] | None, model: Model) -> None:
    """A recipe that says all-linear continues from an adapter on all linear layers of its base.

    Raises:
        InputError: The adapter is on some of them alone.
    """
    directory = folder(own) if targets == ["all-linear"] else None
    if directory is None:
        return
    held = adapters.layers(directory)
    if lacking := [group.path for group in model.groups if group.kind == "linear" and held[group.path] < group.count]:
        raise InputError(
            f"lora_target_modules is [all-linear], and the adapter {own['adapter_name_or_path']} that "
            f"adapter_name_or_path names has nothing on {', '.join(lacking)}, which cannot be changed; drop the key"
        )


def fingerprint(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an adapter is known by, in the form of a base's (`models.fingerprint`); None if it is not here."""
    try:
        directory = folder(own)
    except InputError:
        return None
    if directory is None:
        return None
    # A snapshot in the Hub's cache has the name of its commit.
    commit = directory.name if directory.parent.name == "snapshots" else None
    files = (adapters.CONFIG, adapters.WEIGHTS)
    return {"commit": commit, "files": {file: sha256(directory / file) for file in files}}


def chain(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json says of the adapter that a run continues from, and of what that one continued from.

    Raises:
        InputError: The adapter is not there.
    """
    directory = folder(own)
    if directory is None:
        return None
    run, said = _run(directory), adapters.values(directory)
    return {
        "adapter": own["adapter_name_or_path"],
        "sha256": sha256(directory / adapters.WEIGHTS),
        "run": run.name if run else None,
        "base": said["model_name_or_path"],
        "revision": adapters.config(directory).get("revision"),
        "continues": run.facts().get("continues") if run else None,
    }


def links(continues: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The adapters of a chain, as `chain` has them, the one that was continued from last at first."""
    found = []
    while isinstance(continues, Mapping):
        found.append(continues)
        continues = continues.get("continues")
    return found


def _run(directory: Path) -> Run | None:
    """The run in whose directory an adapter lies."""
    run = Run(directory.parent)
    return run if run.exists else None
