"""How a base model is loaded, in training as in scoring. Imports torch and transformers."""

import collections
import contextlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import bitsandbytes as bnb
from jinja2 import TemplateError
from transformers.quantizers import AutoQuantizationConfig

from sft_recipes.data import tokens
from sft_recipes.errors import InputError
from sft_recipes.models import base_model


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
        if "at least one example has no assistant tokens" not in str(error):
            raise
        raise tokens.refuses("a row", tokens.NO_MARKS) from None
    except (ValueError, ImportError) as error:
        raise InputError(f"refused by TRL or transformers: {error}") from error


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
