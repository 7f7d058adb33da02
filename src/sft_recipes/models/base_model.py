"""What is known of a base model without its weights: its config, and the modules that upstream builds from it.

No torch here. The modules are counted once for each config, by `census.py` in a process of its own, and kept.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.errors import InputError, hub_reason, shown
from sft_recipes.files import write_whole
from sft_recipes.recipes import arguments, places
from sft_recipes.recipes.recipe import Recipe

CACHE = Path(".cache/models")
# What configs, tokenizers and chat templates are kept in; never weights, and never code.
FETCHED = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters of one shape: `path` is the module's, with `*` for layer numbers."""

    path: str
    shape: tuple[int, ...]
    count: int
    kind: str
    """linear: a decoder's `nn.Linear`, which 4-bit quantises and LoRA adapts; tower: one beside the decoder, of a
    model that also sees or hears, which 4-bit quantises and no row of text reaches; head: the output embedding;
    embedding; other: norms, biases, and experts held as one tensor, neither quantised nor adapted as linear layers."""

    @property
    def elements(self) -> int:
        """Of all parameters of the group."""
        size = self.count
        for side in self.shape:
            size *= side
        return size


@dataclasses.dataclass(frozen=True)
class Model:
    """A base model's config and census.

    Args:
        name: as the recipe names it.
        config: config.json.
        source: where the config was found, as a person reads it.
        groups: every parameter of the model, shared ones once.
    """

    name: str
    config: dict[str, Any]
    source: str
    groups: tuple[Group, ...]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config, which is all of it in a model of text."""
        return self.config.get("text_config", self.config)

    def elements(self, *kinds: str) -> int:
        """Parameters of the kinds, or of all."""
        return sum(group.elements for group in self.groups if not kinds or group.kind in kinds)

    @property
    def four_bit_share(self) -> float:
        """Share of all parameters that bitsandbytes holds in 4 bit when it is asked to."""
        return self.elements("linear", "tower") / self.elements()

    def targets(self, names: Iterable[str]) -> list[Group]:
        """The linear layers that PEFT adapts for `lora_target_modules`, all but the head for `all-linear`."""
        wanted = list(names)
        return [
            group
            for group in self.groups
            if group.kind == "linear"
            and ("all-linear" in wanted or any(f".{group.path}".endswith(f".{name}") for name in wanted))
        ]

    def experts(self, parameters: Iterable[str]) -> list[Group]:
        """The experts held as one tensor that PEFT adapts for `lora_target_parameters`."""
        wanted = list(parameters)
        return [
            group
            for group in self.groups
            if group.kind == "other"
            and len(group.shape) == 3
            and any(f".{group.path}".endswith(f".{name}") for name in wanted)
        ]

    def adapter_parameters(self, names: Iterable[str], rank: int, parameters: Iterable[str] = ()) -> int:
        """Trainable parameters of LoRA: rank x (in + out) for every adapted layer (arXiv 2106.09685v2, section 4.1).

        The same again for every expert of the `parameters` (peft/tuners/lora/layer.py, 0.21: `ParamWrapper`).
        """
        layers = sum(rank * sum(group.shape) * group.count for group in self.targets(names))
        experts = self.experts(parameters)
        return layers + sum(rank * group.shape[0] * sum(group.shape[1:]) * group.count for group in experts)


def find(name: str, revision: str = "main") -> Model | None:
    """The model of that name, from its directory, the Hub's cache, or the bundled configs; None if none holds it."""
    found = find_config(name, revision)
    if found is None:
        return None
    return from_config(name, *found)


def from_config(name: str, config: dict[str, Any], source: str) -> Model:
    """The model that a config describes, its modules counted.

    Raises:
        InputError: transformers cannot build a causal language model from it.
    """
    return Model(name, config, source, _census(config))


def fetch(recipe: Recipe) -> Path:
    """Get config, tokenizer and chat template of a recipe's model from the Hub into its cache; no weights.

    Raises:
        InputError: The Hub does not answer for it.
    """
    from huggingface_hub import snapshot_download

    name = recipe["model_name_or_path"]
    try:
        return Path(snapshot_download(name, revision=recipe["model_revision"], allow_patterns=list(FETCHED)))
    except Exception as error:
        # The Hub's client raises whatever its transport raises; all of it means that there is no answer.
        raise InputError(f"the Hub does not answer for {name}: {hub_reason(error)}") from None


@functools.cache
def bundled() -> dict[str, dict[str, Any]]:
    """Configs of the models that recipes/ and models/ name, each with its `source` and published `parameters`.

    `checked` says where both were found, since the source itself could not be read when they were written down.
    """
    return json.loads(resources.files("sft_recipes.models").joinpath("models.json").read_text(encoding="utf-8"))


def find_config(name: str, revision: str = "main") -> tuple[dict[str, Any], str] | None:
    """The config of that name and where it was found, as `find` looks for it; None if it is nowhere."""
    if directory := places.directory_with("config.json", name, revision):
        local = directory == Path(name).expanduser()
        return _read(directory / "config.json"), f"config of {name}" if local else "config in the Hub's cache"
    if name in bundled():
        return bundled()[name]["config"], f"bundled config of {name}"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a model's config: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} cannot be read as a model's config: it holds {shown(config)}, not an object")
    return config


def _census(config: dict[str, Any]) -> tuple[Group, ...]:
    key = json.dumps([config, metadata.version("transformers")], sort_keys=True)
    kept = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        counted = _count(config)
        CACHE.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(counted))
    return tuple(
        Group(path, tuple(shape), count, kind) for path, shape, count, kind in json.loads(kept.read_text("utf-8"))
    )


def _count(config: dict[str, Any]) -> list[Any]:
    """What `census.take` gives, from a process of its own."""
    failure = "transformers cannot build a causal language model from this config"
    return json.loads(children.call("sft_recipes.models.census", config, failure=failure))


def described_quantisation(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How a resolved recipe loads a checkpoint that is stored quantised, as in its `model_init_kwargs`; {} if not."""
    return (recipe.get("model_init_kwargs") or {}).get("quantization_config") or {}


def dequantised(recipe: Mapping[str, Any]) -> bool:
    """Whether a resolved recipe makes the weights of a checkpoint that is stored quantised whole as it loads them."""
    return bool(described_quantisation(recipe).get("dequantize"))


def further_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What else a resolved recipe's `model_init_kwargs` say that its base must be loaded with to compute the same."""
    given = recipe.get("model_init_kwargs") or {}
    return {key: value for key, value in given.items() if key not in arguments.WAYS | arguments.REFUSED.keys()}


def check_arguments(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """The recipe's `model_init_kwargs` are values that the model's config has.

    Raises:
        InputError: One is not, so that the model could not be built with it.
    """
    given = further_arguments({"model_init_kwargs": recipe["model_init_kwargs"]}).keys() - arguments.WEIGHTS
    if not given:
        return
    failure = "transformers cannot read this config"
    lacking = json.loads(children.call("sft_recipes.models.census", config, *sorted(given), failure=failure))
    known = ", ".join(sorted(arguments.WAYS | arguments.WEIGHTS))
    if lacking:
        raise InputError(
            *(
                f"{recipe.values['model_init_kwargs'].origin}: model_init_kwargs: {key} is no value of this model's "
                f"config, and none of {known}; drop it"
                for key in lacking
            )
        )
