"""An earlier adapter that a recipe continues from: where it lies, and what of the recipe follows from its config.

No torch and no PEFT here; the defaults of PEFT's `LoraConfig` are in `arguments.json`, a snapshot that a test keeps
equal to the installed PEFT, and what loads the weights is PEFT itself (`models.loading`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sft_recipes.errors import InputError, refuse, shown
from sft_recipes.files import open_regular
from sft_recipes.recipes import arguments, places, schema

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Recipe, Value

CONFIG, WEIGHTS = places.ADAPTER, "adapter_model.safetensors"
# A list of every layer's path has a tenth of it.
_LARGEST = 2**20
# What PEFT calls the keys of a recipe that say what an adapter is.
KEYS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# What else a config says of where it came from and how it is used, and what PEFT sets to fit the base by itself.
_BESIDE = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
}
# Those that leave the base as it is, so that the adapter is on the base that it names.
_STARTS = (True, False, "gaussian", "orthogonal")


def folder(name: str, revision: str = "main") -> Path:
    """The directory of an adapter by the name of its run, its path or the run's, or its name in the Hub's cache.

    Raises:
        InputError: There is no adapter, or its weights are a pickle.
    """
    found = Path("runs", name)
    if "/" in name or not (found / "run.json").is_file():
        found = Path(name).expanduser()
    if (found / "run.json").is_file():
        lacks = f"; if its run has not finished, go on with it: make resume NAME={found.name}"
        found /= "adapter"
    elif places.is_local(name):
        lacks = ""
    else:
        lacks = f"; fetch it with: hf download {name} --revision {revision}"
        cached = places.directory_with(CONFIG, name, revision)
        if cached is None:
            no = f"{name} is no run, no directory, and not in the Hub's cache"
            raise InputError(f"adapter_name_or_path: {no}{lacks}")
        found = cached
    for file in (CONFIG, WEIGHTS):
        if not (found / file).is_file():
            if file == WEIGHTS and (found / "adapter_model.bin").is_file():
                lacks = "; a pickle could run code and is not read, so save it as safetensors"
            raise InputError(f"adapter_name_or_path: {name} is no adapter: {found} has no {file}{lacks}")
    return found


def config(directory: Path) -> dict[str, Any]:
    """The adapter_config.json of a directory.

    Raises:
        InputError: It cannot be read.
    """
    path = directory / CONFIG
    try:
        with open_regular(path) as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {shown(found)}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as an adapter's config: {str(error)[:200]}") from None
    return found


def values(directory: Path) -> dict[str, Any]:
    """What a recipe that continues from an adapter says of it, in its keys: the base and the shape of the adapter.

    Raises:
        InputError: With everything of it that no recipe can say, so that it cannot be trained on here.
    """
    given, known = config(directory), arguments.upstream()["adapters"]
    whole = known | given
    said: dict[str, Any] = {"model_name_or_path": whole["base_model_name_or_path"], "use_peft": True}
    # A branch that is everybody's default says nothing of which commit it was.
    said |= {"model_revision": whole["revision"]} if whole["revision"] not in (None, "main") else {}
    said |= {key: whole[name] for name, key in KEYS.items()}
    for key, value in said.items():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            # PEFT writes a set, in any order.
            said[key] = sorted(value)
        elif isinstance(value, float) and value.is_integer() and key == "lora_alpha":
            said[key] = int(value)
    refuse(f"{directory / CONFIG}: {text}" for text in _faults(whole, said))
    return said


def _faults(whole: dict[str, Any], said: dict[str, Any]) -> Iterator[str]:
    """What of an adapter's config no recipe can say."""
    instead = "merge that adapter into its base, and train a new one on it"
    known = arguments.upstream()["adapters"]
    if whole["peft_type"] != "LORA":
        yield f"peft_type is {schema.short(whole['peft_type'])}, and only LoRA is trained here; {instead}"
        return
    if whole["task_type"] not in (None, "CAUSAL_LM"):
        yield f"task_type is {schema.short(whole['task_type'])}, and only CAUSAL_LM is trained here; name another"
    if whole["base_model_name_or_path"] is None:
        yield "base_model_name_or_path names no base; write the model that it was trained on"
    for key, value in whole.items():
        if key == "init_lora_weights":
            if value not in _STARTS:
                yield f"{key} is {schema.short(value)}, which changes the base's own weights; {instead}"
        elif key not in KEYS | dict.fromkeys(_BESIDE) and value != known.get(key) and value not in (None, False, {}):
            yield f"{key} is {schema.short(value)}, which no recipe can say; {instead}"
    for key, value in said.items():
        if key == "lora_target_modules" and isinstance(value, str):
            yield f"target_modules is the pattern {schema.short(value)}, not a list of names; {instead}"
        elif value is not None and (found := schema.problem(key, value)):
            yield found


def layers(directory: Path) -> Counter[str]:
    """The layers that an adapter's weights are for, with `*` for their numbers, as a census has them.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        # Of NumPy nothing but its name: no tensor is read.
        with safe_open(directory / WEIGHTS, "np") as file:
            names = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory / WEIGHTS} cannot be read: {error}; put it back from a copy") from None
    return Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names)


def continued(recipe: "Recipe") -> "Recipe":
    """The recipe with the base and the shape of the adapter that it continues from.

    What the recipe that it extends says of them, and the layers that models/ names for its base, give way.

    Raises:
        InputError: There is no such adapter, or the recipe itself says another base, rank or target, with all of it.
    """
    name = recipe["adapter_name_or_path"]
    where = recipe.values["adapter_name_or_path"].origin
    try:
        refuse([places.nowhere("adapter_name_or_path", name, "run or an adapter")])
        found = values(folder(name, recipe["adapter_revision"]))
    except InputError as error:
        raise InputError(*(f"{where}: {text}" for text in error.problems)) from None
    stated = {key: item for key, item in recipe.values.items() if _stated(recipe, key, item)}
    if not _same("model_name_or_path", recipe["model_name_or_path"], found) and "model_revision" not in stated:
        # What is inherited is that of another model.
        found.setdefault("model_revision", "main")
    problems = [
        f"{stated[key].origin}: {key} is {schema.short(stated[key].value)}, and the adapter {name} that "
        f"adapter_name_or_path names has {schema.short(value)}, which cannot be changed; write that, or drop the key"
        for key, value in found.items()
        if key in stated and not _same(key, stated[key].value, found)
    ]
    refuse(problems)
    # As it is written where it says the same, so that all-linear stays all-linear.
    kept = {key for key in stated if key != "model_name_or_path"}
    return recipe.derive(**{key: (value, f"the adapter {name}") for key, value in found.items() if key not in kept})


def _stated(recipe: "Recipe", key: str, item: "Value") -> bool:
    """Whether the recipe itself says a value, rather than the one that it extends, or models/ of its base's layers."""
    if recipe.base is not None and recipe.base.values.get(key) == item:
        return False
    return not (key == "lora_target_modules" and item.origin.startswith("models/"))


def _same(key: str, stated: Any, found: dict[str, Any]) -> bool:
    """Whether a value says what the adapter's does; all-linear is compared where the base is known (`plan.job`)."""
    value = found[key]
    if key == "model_name_or_path" and stated and all(map(places.is_local, (stated, value))):
        return Path(stated).expanduser().resolve() == Path(value).expanduser().resolve()
    if isinstance(stated, list) and isinstance(value, list):
        return stated == ["all-linear"] or sorted(stated) == sorted(value)
    return stated == value
