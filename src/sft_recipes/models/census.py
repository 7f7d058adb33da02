"""Count a model's parameters as upstream builds them, on the meta device.

`python -m sft_recipes.models.census < config.json` prints a JSON list of [path, shape, count, kind], as
`base_model.Group` holds them; with names behind it, those that the config does not know.
"""

import json
import re
import sys
from typing import Any


def take(config: dict[str, Any]) -> list[tuple[str, list[int], int, str]]:
    """The parameters of the causal language model that a config describes, equal ones of all layers together."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(config))
    head, text = model.get_output_embeddings(), set(model.get_decoder().modules())
    counts: dict[tuple[str, tuple[int, ...], str], int] = {}
    seen = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = "other"
            if isinstance(module, torch.nn.Embedding):
                kind = "embedding"
            elif name == "weight" and isinstance(module, torch.nn.Linear):
                kind = "head" if module is head else "linear" if module in text else "tower"
            pattern = re.sub(r"\.\d+(?=\.|$)", ".*", path if name == "weight" else f"{path}.{name}")
            key = (pattern, tuple(parameter.shape), kind)
            counts[key] = counts.get(key, 0) + 1
    return [(path, list(shape), count, kind) for (path, shape, kind), count in counts.items()]


def beside_text(config: Any) -> str | None:
    """A regular expression of the modules that rows of text never reach, for PEFT's `exclude_modules`.

    A model that also sees or hears has layers of the same names as its language model's, and an adapter there would
    get no gradient, which DDP would wait for. None for a model of text alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if config.get_text_config() is config:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = model.get_decoder()
    path = next(path for path, module in model.named_modules() if module is text)
    return rf"(?!{re.escape(path)}\.).*"


def config_of(values: dict[str, Any]) -> Any:
    """A transformers config from the values of a config.json."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{"model_type": None, **values})


if __name__ == "__main__":
    given = json.load(sys.stdin)
    names = sys.argv[1:]
    known = config_of(given) if names else None
    print(json.dumps([name for name in names if not hasattr(known, name)] if names else take(given)))
