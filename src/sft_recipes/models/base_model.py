"""What is known of a base model without its weights: its config, and the modules that upstream builds from it.

No torch here. The modules are counted once for each config, by `census.py` in a process of its own, and kept.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.errors import InputError, hub_reason, refuse, shown
from sft_recipes.files import write_whole
from sft_recipes.recipes import arguments, places, schema
from sft_recipes.recipes.recipe import Recipe

CACHE = Path(".cache/models")
# What the config of a mixture of experts has that gives its router's logits, by which TRL knows one.
ROUTER = "output_router_logits"
# What configs, tokenizers and chat templates are kept in; never weights, and never code.
FETCHED = ("*.json", "*.jinja", "*.model", "*.txt")
# The keys whose names must each match a module or parameter of the model.
LISTS = ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save")


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters of one shape: `path` is the module's, with `*` for layer numbers."""

    path: str
    shape: tuple[int, ...]
    count: int
    kind: str
    """linear: a decoder's `nn.Linear` or `Conv1D`, as (out, in), which 4-bit quantises; tower: one beside the decoder,
    of a model that also sees or hears, which 4-bit quantises and no row of text reaches; head: the output embedding;
    embedding; positions: one of them that is learned for each place in a row; other: norms, biases, and experts held
    as one tensor, which 4-bit does not quantise."""

    @property
    def elements(self) -> int:
        """Of all parameters of the group."""
        return self.count * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Model:
    """A base model's config and census.

    Args:
        name: as the recipe names it.
        config: config.json.
        source: where the config was found, as a person reads it.
        groups: every parameter of the model, shared ones once.
        without: the implementations of attention that it has not, with transformers' reason.
    """

    name: str
    config: dict[str, Any]
    source: str
    groups: tuple[Group, ...]
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)

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

    @property
    def experts(self) -> int:
        """How many experts its config names; 0 for a dense model."""
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        found = (self.text_config.get(name) for name in names)
        return next((number for number in found if number and isinstance(number, int)), 0)

    @property
    def stored_bits(self) -> float | None:
        """Bits of a weight of a checkpoint that is stored quantised, scales included; None if they are not known.

        GPTQ and AWQ have a 16-bit scale and a zero point for each group of a row, FP8 nearly nothing beside its byte.
        """
        stored = self.config.get("quantization_config") or {}
        method, bits, group = (stored.get(key) for key in ("quant_method", "bits", "group_size"))
        if method in ("gptq", "awq") and isinstance(bits, int):
            return bits + (16 + bits) / group if isinstance(group, int) and group > 0 else float(bits)
        return 8.0 if method in ("fp8", "fbgemm_fp8") else None

    @property
    def beyond_text(self) -> bool:
        """Whether parts of it see or hear, which rows of text never reach."""
        return any(group.kind == "tower" for group in self.groups)

    @property
    def positions(self) -> tuple[int | None, bool]:
        """Tokens of the longest row that it was made for, None if unknown; and whether a longer one is impossible.

        Positions that are learned, or a bias for each (MPT), end; those of RoPE and of Bloom go on beyond what was
        trained.
        """
        config = self.text_config
        names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
        number = next((config[name] for name in names if isinstance(config.get(name), int)), None)
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        if number and isinstance(original, int) and isinstance(factor, int | float):
            number = max(number, round(original * factor))
        hard = config.get("model_type") == "mpt" or any(group.kind == "positions" for group in self.groups)
        return number, hard

    def adapters(self, asked: "Asked") -> "Adapters":
        """What PEFT makes of the keys of a recipe that ask for adapters.

        Raises:
            InputError: transformers cannot build the model.
        """
        answer = _answer("adapters", {"config": self.config, "adapter": asked.keys()})
        layers = (Adapted(path, tuple(shape), *rest) for path, shape, *rest in answer["layers"])
        saved, unmatched = dict(answer["saved"]), tuple((key, name) for key, name in answer["unmatched"])
        return Adapters(tuple(layers), saved, unmatched, answer["refused"])


@dataclasses.dataclass(frozen=True)
class Asked:
    """The keys of a recipe that decide which modules get an adapter, and of what form."""

    targets: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    dora: bool = False
    dropout: bool = False

    @classmethod
    def of(cls, recipe: Mapping[str, Any] | Recipe) -> "Asked":
        """What a recipe asks for."""
        targets, parameters, saved = (tuple(recipe[key] or ()) for key in LISTS)
        return cls(targets, parameters, saved, recipe["use_dora"], bool(recipe["lora_dropout"]))

    def keys(self) -> dict[str, Any]:
        """The same in TRL's keys."""
        lists = dict(zip(LISTS, map(list, (self.targets, self.parameters, self.saved)), strict=True))
        given = {key: value or None for key, value in lists.items()}
        return {**given, "use_dora": self.dora, "lora_dropout": 0.1 if self.dropout else 0.0}


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Modules of one shape that get an adapter, or parameters such as all experts of a layer."""

    path: str  # with `*` for layer numbers
    shape: tuple[int, ...]
    ranked: int  # parameters of one adapter for each rank
    fixed: int  # and those that do not grow with it
    copied: bool  # whether it is a parameter, whose adapter is added to a copy of it in every forward pass
    count: int

    @property
    def elements(self) -> int:
        """Of all that is adapted."""
        return self.count * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What PEFT makes of what a recipe asks for."""

    layers: tuple[Adapted, ...]
    saved: dict[str, int]  # parameters of each module that is trained and saved whole
    unmatched: tuple[tuple[str, str], ...]  # names that match nothing, with the recipe's key that has them
    refused: str | None  # why PEFT does not make them, in its words

    def parameters(self, rank: int) -> int:
        """That are trained."""
        return sum(each.count * (rank * each.ranked + each.fixed) for each in self.layers) + sum(self.saved.values())

    @property
    def modules(self) -> dict[str, int]:
        """How many adapters there are, by the last part of what they are on."""
        found: collections.Counter[str] = collections.Counter()
        for each in self.layers:
            found[each.path.rpartition(".")[2]] += each.count
        return dict(found)


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
    answer = _answer("model", {"config": config})
    groups = tuple(Group(path, tuple(shape), *rest) for path, shape, *rest in answer["groups"])
    return Model(name, config, source, groups, answer["without"])


def fetch(recipe: Recipe) -> Path:
    """Get config, tokenizer and chat template of a recipe's model from the Hub into its cache; no weights.

    Raises:
        InputError: It is no model of the Hub, or the Hub does not answer for it.
    """
    from huggingface_hub import snapshot_download

    name = recipe["model_name_or_path"]
    if places.is_local(name):
        raise InputError(f"{name} is a directory of this machine, so there is nothing to fetch; leave FETCH=1 out")
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
    return schema.table("sft_recipes.models", "models.json")


def find_config(name: str, revision: str = "main") -> tuple[dict[str, Any], str] | None:
    """The config of that name and where it was found, as `find` looks for it; None if it is nowhere."""
    if directory := places.directory_with("config.json", name, revision):
        local = directory == Path(name).expanduser()
        return _read(directory / "config.json"), f"config of {name}" if local else "config in the Hub's cache"
    if name in bundled():
        return bundled()[name]["config"], f"bundled config of {name}"
    if places.directory_with(places.ADAPTER, name, revision):
        raise InputError(f"model_name_or_path: {places.not_a_model(name)}")
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a model's config: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} cannot be read as a model's config: it holds {shown(config)}, not an object")
    return config


def _answer(question: str, asked: Mapping[str, Any]) -> Any:
    """What `census` answers about a config, from a process of its own; asked once, and kept."""
    key = json.dumps([question, asked, *_versions()], sort_keys=True)
    kept = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        answer = _asked_apart(question, asked)
        CACHE.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(answer))
    return _read_answer(kept)


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of those whose answers are kept; reading one takes milliseconds, and a plan asks a thousand times."""
    return tuple(map(metadata.version, ("transformers", "peft", "trl")))


@functools.lru_cache(maxsize=256)
def _read_answer(kept: Path) -> Any:
    return json.loads(kept.read_text("utf-8"))


def _asked_apart(question: str, asked: Mapping[str, Any]) -> Any:
    failure = "transformers cannot build a causal language model from this config"
    return json.loads(children.call("sft_recipes.models.census", asked, question, failure=failure))


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


def _lacking(config: Mapping[str, Any], *names: str) -> list[str]:
    """Those of some names that transformers' config of a model has not, by a process of its own."""
    return _answer("names", {"config": config, "names": list(names)})


def check_arguments(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """The recipe's `model_init_kwargs` are values that the model's config has, and it has a router to be balanced.

    Raises:
        InputError: One is not, so that the model could not be built with it; or there is no router.
    """
    if (weight := recipe["router_aux_loss_coef"]) and _lacking(config.get("text_config") or config, ROUTER):
        raise InputError(
            f"{recipe.values['router_aux_loss_coef'].origin}: router_aux_loss_coef is {weight:g}, and the model gives "
            "no router's logits that it could weight; drop it"
        )
    given = further_arguments({"model_init_kwargs": recipe["model_init_kwargs"]}).keys() - arguments.WEIGHTS
    lacking = _lacking(config, *sorted(given)) if given else []
    known = ", ".join(sorted(arguments.WAYS | arguments.WEIGHTS))
    refuse(
        f"{recipe.values['model_init_kwargs'].origin}: model_init_kwargs: {key} is no value of this model's config, "
        f"and none of {known}; drop it"
        for key in lacking
    )
