"""How a base model and an earlier adapter are loaded, in training as in scoring. Imports torch and transformers."""

import collections
import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from transformers.quantizers import AutoQuantizationConfig

from sft_recipes.data import tokens
from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.recipes import adapters


def stored_quantisation(recipe: Mapping[str, Any]) -> Any:
    """How a checkpoint that is quantised is to be loaded: `quantization_config` of `model_init_kwargs`, None without.

    Raises:
        InputError: transformers knows no such quantisation.
    """
    described = base_model.described_quantisation(recipe)
    with refusals():
        return AutoQuantizationConfig.from_dict(described) if described else None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What upstream refuses when it is given its arguments is wrong input, and its message says what."""
    try:
        yield
    except pickle.UnpicklingError:
        # Upstream's words tell how to run it all the same.
        raise InputError(
            "the weights are a pickle that holds more than tensors, which would run as code; name a checkpoint of "
            "safetensors"
        ) from None
    except TemplateError as error:
        raise tokens.refuses("a row", error) from None
    except RuntimeError as error:
        if re.search(r"Callback (requires|needs)", str(error)):
            # Of a tracker, which transformers asks for more than that its package is there.
            raise InputError(f"report_to: refused by transformers: {error}") from error
        if "at least one example has no assistant tokens" not in str(error):
            raise
        raise tokens.refuses("a row", tokens.NO_MARKS) from None
    except (ValueError, ImportError) as error:
        raise InputError(f"refused by TRL or transformers: {error}") from error


def adapter_config(directory: Path) -> PeftConfig:
    """The config of an earlier adapter, as PEFT reads it, for an adapter that is trained.

    Raises:
        InputError: It asks for what no recipe can say.
    """
    adapters.values(directory)
    found = PeftConfig.from_pretrained(str(directory))
    found.inference_mode = False
    return found


def put_adapter(model: PeftModel, directory: Path, name: str = "default") -> None:
    """Give an adapter of a model the weights of an earlier one, in the dtype that it has; one more of a new name.

    Raises:
        InputError: The file does not hold the tensors of that adapter on this base, and no others.
    """
    new = name not in model.peft_config
    if new:
        model.add_adapter(name, adapter_config(directory))
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = {key: list(tensor.shape) for key, tensor in state.items()}
    path = directory / adapters.WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            # What is no part of an adapter would overwrite the base.
            held = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118, it is no mapping
        if other := sorted(key for key in held.keys() | expected.keys() if held.get(key) != expected.get(key)):
            wanted = f"{other[0]} is {held.get(other[0])}, not {expected.get(other[0])}"
            raise InputError(
                f"{path} does not hold the adapter that {adapters.CONFIG} describes on this base: {len(other)} of its "
                f"tensors are other ones, such as {wanted}; put the files back, or name another adapter"
            )
        model.load_adapter(str(directory), name, is_trainable=not new, torch_device="cpu", autocast_adapter_dtype=new)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}; put it back from a copy") from None


def offloaded(model: Any) -> str | None:
    """Which weights were put into host memory or on the disk for want of room on a GPU, as a sentence; None without.

    `device_map="auto"`, which TRL loads with in a single process, does so in silence.
    """
    places = collections.Counter(str(place) for place in (getattr(model, "hf_device_map", None) or {}).values())
    away = {"cpu": "in host memory", "disk": "on the disk"}
    found = [
        f"{places[place]} of its {places.total()} parts are {words}" for place, words in away.items() if places[place]
    ]
    return " and ".join(found) or None


def keep_four_bit(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew, which it does on CPUs with AVX512-BF16 for inference alone.

    It would round their scales further, and let no gradient through in the training that follows an evaluation.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


# Of the free memory, that weights of 4 bit may take when they are made whole: there may be a limit that is not seen.
WHOLE_SHARE = 0.25


def made_whole(model: Any) -> Any:
    """A float32 model with its 4-bit weights dequantised, where there is memory enough; another one as it is.

    bitsandbytes does so at each forward pass, and multiplies by the same numbers. In a narrower dtype PEFT would round
    what an adapter adds at another place.
    """
    packed = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    size = sum(module.in_features * module.out_features for module in packed) * model.dtype.itemsize
    if model.dtype != torch.float32 or not packed or size > WHOLE_SHARE * psutil.virtual_memory().available:
        return model
    return model.dequantize()


def can_merge(model: PeftModel) -> bool:
    """Whether adapters can be merged into the weights of their base, and taken out again, with float32's error alone.

    Not in a narrower dtype, nor where a weight is read in two places, as a tied embedding is.
    """
    inner = model.get_base_model()
    weights = [parameter for parameter in inner.parameters() if not isinstance(parameter, bnb.nn.Params4bit)]
    embeddings = (inner.get_input_embeddings(), inner.get_output_embeddings())
    return (
        len(weights) == len([*inner.parameters()])
        and all(weight.dtype == torch.float32 for weight in weights)
        and not any(isinstance(module, BaseTunerLayer) for module in embeddings)
    )
