"""How a base model is loaded, in training as in scoring. Imports torch and transformers."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.quantizers import AutoQuantizationConfig

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
    except (ValueError, ImportError) as error:
        raise InputError(f"refused by TRL or transformers: {error}") from error
