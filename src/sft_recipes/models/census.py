"""A model as training loads it, on the meta device: its parameters, and what PEFT makes of them.

`python -m sft_recipes.models.census QUESTION` answers one of `answer` as JSON; `base_model` asks them all.
"""

import collections
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sft_recipes.models.base_model import LISTS


def config_of(values: Mapping[str, Any]) -> Any:
    """A transformers config from the values of a config.json."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{"model_type": None, **values})


def build(config: Any, **options: Any) -> Any:
    """The model of a config with random weights, of the class that SFTTrainer loads: the one the config names.

    Raises:
        ValueError: It is no language model of a decoder alone.
    """
    import transformers

    # trl/trainer/utils.py, 1.16: `create_model_from_path`. A config that names none is nothing that was saved.
    name = (config.architectures or [None])[0]
    kind = getattr(transformers, name or "", None)
    if kind is None:
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    elif not hasattr(kind, "can_generate") or not kind.can_generate() or config.is_encoder_decoder:
        raise ValueError(f"{name} is no language model that continues a text; name one of a decoder alone")
    else:
        model = kind._from_config(config, **options)
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no output embedding; name a language model of a decoder alone")
    return model


def on_meta(config: Any, **options: Any) -> Any:
    """The same without memory for its weights."""
    import torch

    with torch.device("meta"):
        return build(config, **options)


def take(config: Mapping[str, Any]) -> list[tuple[str, list[int], int, str]]:
    """The parameters of the model that a config describes, equal ones of all layers together."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = on_meta(config_of(config))
    beside = re.compile(beside_text(model) or r"\b\B")
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    counts: collections.Counter[tuple[str, tuple[int, ...], str]] = collections.Counter()
    seen = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind, shape = "other", tuple(parameter.shape)
            if isinstance(module, torch.nn.Embedding):
                own = module is not words and not beside.fullmatch(path)
                learned = own and re.search(r"pos|wpe", path.rpartition(".")[2])
                kind = "positions" if learned else "embedding"
            # What bitsandbytes quantises (transformers/integrations/bitsandbytes.py: `replace_with_bnb_linear`).
            elif name == "weight" and (type(module) is torch.nn.Linear or isinstance(module, Conv1D)):
                kind = "head" if module is head else "tower" if beside.fullmatch(path) else "linear"
                shape = tuple(reversed(shape)) if isinstance(module, Conv1D) else shape
            counts[_pattern(path if name == "weight" else f"{path}.{name}"), shape, kind] += 1
    return [(path, list(shape), count, kind) for (path, shape, kind), count in counts.items()]


def without_attention(config: Mapping[str, Any]) -> dict[str, str]:
    """The implementations of attention that the model's class has not, with transformers' words for it."""
    found = {}
    for name in ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"):
        # A package that this machine lacks is not the model's fault.
        with contextlib.suppress(ImportError):
            try:
                on_meta(config_of(config), attn_implementation=name)
            except ValueError as error:
                found[name] = str(error)
    return found


def _pattern(path: str) -> str:
    """A path with `*` for its numbers, so that those of all layers are one."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def beside_text(model: Any) -> str | None:
    """A regular expression of the modules that rows of text never reach, for PEFT's `exclude_modules`.

    A model that also sees or hears has layers of the same names as its language model's, some within it: an adapter
    there would get no gradient, which DDP would wait for. A router that is a linear layer by name and gives more than
    its product, as Llama 4's, is not to be adapted either. None for a model of text and linear layers alone.
    """
    import torch
    from transformers import PreTrainedModel

    text = model.get_decoder()
    start = next(path for path, module in model.named_modules() if module is text)
    excluded = [] if model.config.get_text_config() is model.config else [rf"(?!{re.escape(start)}\.).*"]
    for path, module in text.named_modules():
        part = None
        if isinstance(module, PreTrainedModel) and type(module.config) is not type(text.config):
            # All that it comes with, such as the projection of what it sees.
            part = path.partition(".")[0]
        elif "CrossAttention" in type(module).__name__:
            # As Llama 3.2 and Idefics have them: layers that only pictures pass.
            part = path
        elif isinstance(module, torch.nn.Linear) and type(module).__module__.startswith("transformers.models."):
            part = None if _gives_a_tensor(module) else path
        if part:
            excluded.append(rf"{re.escape(f'{start}.{part}')}(\..*)?")
    return "|".join(dict.fromkeys(excluded)) or None


def _gives_a_tensor(linear: Any) -> bool:
    """Whether a linear layer of a model's own class gives one, as PEFT takes it to do."""
    import torch

    with torch.no_grad(), contextlib.suppress(RuntimeError):
        return isinstance(linear(linear.weight.new_empty(1, linear.in_features)), torch.Tensor)
    return True


def lora_config(arguments: Any, beside: str | None) -> Any:
    """The adapter that TRL's `ModelConfig` asks for, on the language part alone; None without one."""
    from trl import get_peft_config

    # TRL makes a text of a one-element list, which PEFT then reads as a regular expression over whole module names.
    if isinstance(arguments.lora_target_modules, str) and arguments.lora_target_modules != "all-linear":
        arguments.lora_target_modules = [arguments.lora_target_modules]
    config = get_peft_config(arguments)
    if config is not None:
        config.exclude_modules = beside
    return config


def adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's layers by the path of what each adapts: a module, or a parameter such as all experts of a layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            # Adapters on two parameters of a module are one inside the other.
            base = path.removeprefix("base_model.model.").replace(".base_layer", "")
            name = getattr(module, "parameter_name", "weight")
            yield base if name == "weight" else f"{base}.{name}", module


def saved(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that PEFT trains and saves whole, by their path."""
    from peft.utils import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield path.removeprefix("base_model.model."), module


def unmatched(model: Any, asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names that got nothing, with the key that has them; PEFT itself only refuses when none got anything."""
    layers, made = [path for path, _ in adapted(model)], model.peft_config["default"]
    got = (layers, [*layers, *(f"{path}.weight" for path in layers)], [path for path, _ in saved(model)])
    # PEFT makes parameters of the names that the modules of an expert had before transformers 5.
    moved = set(asked.get(LISTS[0]) or ()) - set(made.target_modules or ()) if made.target_parameters else set()
    if asked.get(LISTS[0]) == ["all-linear"]:
        moved = {"all-linear"}
    return [
        (key, name)
        for key, paths in zip(LISTS, got, strict=True)
        for name in asked.get(key) or []
        if not (key == LISTS[0] and name in moved) and not any(f".{path}".endswith(f".{name}") for path in paths)
    ]


def adapters(config: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT makes at rank 1 of the keys of a recipe that ask for adapters, as `base_model.Adapters` holds it."""
    from peft.utils.error import NoMatchingPeftModuleError

    refused = None
    try:
        try:
            model = _adapter(config, asked)
        except NoMatchingPeftModuleError:
            nothing = [(key, name) for key in LISTS[:2] for name in asked.get(key) or []]
            return {"layers": [], "saved": [], "unmatched": nothing, "refused": None}
        except ValueError as error:
            refused = str(error)
            # Where they would be without what experts cannot have, so that the rest of a plan is known.
            model = _adapter(config, {**asked, "lora_dropout": 0.0, "use_dora": False})
    except ValueError:
        return {"layers": [], "saved": [], "unmatched": [], "refused": refused}
    layers: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for path, module in adapted(model):
        trained = collections.Counter[bool]()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not name.startswith("base_layer."):
                # DoRA's magnitudes do not grow with the rank.
                trained["magnitude" not in name] += parameter.numel()
        copied = hasattr(module, "parameter_name")
        shape = tuple(module.get_param().shape) if copied else (module.out_features, module.in_features)
        layers[_pattern(path), shape, trained[True], trained[False], copied] += 1
    return {
        "layers": [(*each, count) for each, count in layers.items()],
        "saved": [
            (path, sum(each.numel() for each in module.modules_to_save.parameters())) for path, module in saved(model)
        ],
        "unmatched": unmatched(model, asked),
        "refused": refused,
    }


def _adapter(config: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    import torch
    from peft import get_peft_model
    from trl import ModelConfig

    model = on_meta(config_of(config))
    with torch.device("meta"):
        return get_peft_model(model, lora_config(ModelConfig(**asked, use_peft=True, lora_r=1), beside_text(model)))


def answer(question: str, asked: Mapping[str, Any]) -> Any:
    """The answer to a question about `config`.

    Its `model`, as parameters and why it is `without` an implementation of attention; what PEFT makes of `adapter`; or
    those of `names` that it does not know.
    """
    config = asked["config"]
    if question == "names":
        known = config_of(config)
        return [name for name in asked["names"] if not hasattr(known, name)]
    if question == "adapters":
        return adapters(config, asked["adapter"])
    return {"groups": take(config), "without": without_attention(config)}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], json.load(sys.stdin))))
