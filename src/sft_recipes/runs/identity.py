"""Is it still the run that was started? What it was is written down at its creation, and asked whenever it is used.

A run directory may also come from somebody else, so what it asks for is what a recipe may ask for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.data import preparation
from sft_recipes.data.preparation import Prepared
from sft_recipes.errors import InputError, refuse
from sft_recipes.files import sha256
from sft_recipes.models.fingerprint import differences, fingerprint
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, topology
from sft_recipes.recipes.recipe import Value
from sft_recipes.recipes.topology import Topology
from sft_recipes.runs import earlier
from sft_recipes.runs import facts as shapes
from sft_recipes.runs.run import Run, begun

Facts = dict[str, Any]
RECIPE, ACCELERATE = "recipe.yaml", "accelerate.yaml"


def first_files(directory: Path, facts: Facts, values: Facts, accelerate: Facts) -> dict[str, str]:
    """The files that a new run begins with, as `Run.create` takes them.

    Args:
        facts: its run.json, but for its name and what it is known by.
        values: its resolved recipe in upstream's keys, but for its directory and name.
        accelerate: the accelerate config that it is launched with.
    """
    values = {**values, "output_dir": str(directory), "run_name": directory.name}
    texts = {RECIPE: recipes.dump(values), ACCELERATE: recipes.dump(accelerate)}
    identity = {
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "settings": _settings(facts),
        "base": _base(values),
        "adapter": earlier.fingerprint(facts["own"]),
    }
    known = {"continues": earlier.chain(facts["own"]), "identity": identity}
    return {**texts, "run.json": begun({"name": directory.name, **facts, **known})}


def know_base(run: Run) -> None:
    """Write down what the base is if it was not known at the start, because the training has fetched it."""
    identity = run.facts()["identity"]
    if identity["base"] is None:
        run.update(identity={**identity, "base": _base(run.values())})


def check(run: Run, *, training: bool = False) -> None:
    """Whether a run may be used: it asks for nothing that a recipe may not, and is what it was when it was started.

    Args:
        training: whether it is to be trained on: all its rows must be as they were, and its directory where it was.

    Raises:
        InputError: With all that is not so. What a run of an earlier version did not write down is not asked.
    """
    may_ask(run)
    found = changed(run, training=training)
    if found:
        raise InputError(
            f"{run.directory} is not as it was when it was started:\n  "
            + "\n  ".join(found)
            + "\nPut that back, or start a new run with it"
        )


def may_ask(run: Run) -> None:
    """Nothing for a run that asks for no more than a recipe may.

    Raises:
        InputError: With everything else that it asks for, and every file that is missing or damaged.
    """
    refuse(_forbidden(run, run.facts()))


def changed(run: Run, *, training: bool = False) -> list[str]:
    """What of a run is not as it was when it was started, each in a few words; `training` as `check` takes it."""
    facts = run.facts()
    return [*_changed(run, facts), *((_moved(run) or _other_rows(facts)) if training else [])]


def launched_with(run: Run, facts: Facts) -> Topology:
    """The topology of a run, from its accelerate.yaml, by the reader of accelerate configs.

    Raises:
        InputError: The file is missing, no accelerate config, or another one than run.json names.
    """
    if not run.accelerate.is_file():
        raise InputError(f"{run.accelerate} is missing; put the file back from a copy, or start a new run")
    found = topology.read(str(run.accelerate), "as the run was started")
    named = Topology(facts["topology"]["name"], found.config, found.origin)
    if named.facts() != facts["topology"]:
        raise InputError(f"{run.accelerate} and the topology in run.json are not the same; put the file back")
    return named


def training_rows(run: Run, facts: Facts, **changes: Any) -> Prepared:
    """The rows of a run, those that it was trained on being the same; what it has seen must be known.

    Args:
        changes: what else is read, as `preparation.prepare` takes it.

    Raises:
        InputError: The training rows have changed, or are not there.
    """
    prepared = preparation.prepare(**facts["data"]["source"] | changes, cache=preparation.CACHE)
    before, now = (splits["train"] for splits in (facts["data"]["splits"], prepared.splits))
    if (before["sha256"], before["prepared_rows"]) != (now["sha256"], now["prepared_rows"]):
        raise InputError(
            f"{now['source']} has changed since {run.directory} was trained, so it is not known which rows the model "
            "has seen; put the file back"
        )
    return prepared


def _forbidden(run: Run, facts: Facts) -> Iterator[str]:
    """What a run asks for and no recipe may."""
    written = run.directory / "run.json"
    for where, asked in {"own": facts["own"], "data.source": facts["data"]["source"]}.items():
        yield from recipes.refused({key: Value(value, f"{written}: {where}") for key, value in asked.items()})
    for key in facts["data"]["source"].keys() - preparation.ARGUMENTS:
        yield f"{written}: data.source: {key} says nothing of rows; take it out"
    values: Mapping[str, Value] = {}
    try:
        values = shapes.read_recipe(run.recipe)
    except InputError as error:
        yield from error.problems
    try:
        launched_with(run, facts)
    except InputError as error:
        yield from error.problems
    if values.get("use_peft", Value(False, "")).value:
        yield from _adapter(run.adapter / "adapter_config.json", values)


def _adapter(path: Path, values: Mapping[str, Value]) -> Iterator[str]:
    """What an adapter's config asks for beside LoRA on the recipe's base; its content is compared elsewhere."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        expected = {"base_model_name_or_path": values["model_name_or_path"].value, "peft_type": "LORA"}
        expected |= {"megatron_config": None}
        # Where an adapter has no task, PEFT writes down the class of its base, which is one of transformers.
        module = (found.get("auto_mapping") or {}).get("parent_library", "transformers.")
        if not str(module).startswith("transformers."):
            expected["auto_mapping"] = None
        wrong = [key for key, value in expected.items() if found.get(key) != value]
    except (OSError, ValueError, AttributeError, KeyError):
        # Nothing that can be loaded, which is said where it is.
        return
    for key in wrong:
        yield f"{path}: {key} is {schema.as_yaml(found.get(key))}, where this run has {schema.as_yaml(expected[key])}"


def _changed(run: Run, facts: Facts) -> Iterator[str]:
    """What is not as it was written down, each in a few words."""
    was = facts.get("identity")
    if was is None:
        return
    for name in (RECIPE, ACCELERATE):
        if sha256(run.directory / name) != was["files"].get(name):
            yield f"{name} has other content"
    if was["settings"] != _settings(facts):
        yield "run.json has another own, topology or data"
    values = run.values()
    for each in differences(was["base"], _base(values)):
        yield f"base model {values['model_name_or_path']}: {each}"
    for each in differences(was.get("adapter"), earlier.fingerprint(facts["own"])):
        yield f"earlier adapter {facts['own']['adapter_name_or_path']}: {each}"


def _moved(run: Run) -> list[str]:
    """Whether a run would write elsewhere: it was copied or renamed, or its project's root is another."""
    home = Path(run.values()["output_dir"])
    if home.resolve() == run.directory.resolve():
        return []
    if home.name != run.directory.resolve().name:
        return [f"its directory is that of {home}: give it its name back, or resume that one"]
    return [f"it belongs to {home}, seen from its project's root: run the command there"]


def _other_rows(facts: Facts) -> list[str]:
    try:
        prepared = preparation.prepare(**facts["data"]["source"], cache=preparation.CACHE)
    except InputError as error:
        return error.problems
    return [] if prepared.fingerprint == facts["data"]["fingerprint"] else ["the data have changed"]


def _settings(facts: Mapping[str, Any]) -> str:
    decisive = [facts["own"], facts["topology"], facts["data"]["source"]]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _base(values: Mapping[str, Any]) -> Facts | None:
    return fingerprint(values["model_name_or_path"], str(values.get("model_revision", "main")))
