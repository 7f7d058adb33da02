"""How a run is served: vLLM's command and a request to it, for the model card and for `make serve`.

vLLM is not imported. What it takes is that of its `vllm/config/lora.py` (ranks), `vllm/lora/peft_helper.py` (adapters)
and `vllm/lora/ops/triton_ops` (dtypes), the same in 0.10 to 0.26.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_recipes.data import tokens
from sft_recipes.models import base_model
from sft_recipes.runs.run import Run

Facts = dict[str, Any]

HOST, PORT = "127.0.0.1", 8000
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Keys of an adapter that vLLM's LoRA refuses when they are set, or passes over in silence, which is worse.
_REFUSED = {
    "use_dora": "use_dora: its LoRA knows no magnitudes",
    "lora_modules_to_save": "lora_modules_to_save: its LoRA takes no modules that were trained whole",
    "lora_target_parameters": "lora_target_parameters: its LoRA takes adapters of modules, not of parameters",
}


def refused(recipe: Mapping[str, Any]) -> list[str]:
    """What of a run's adapter vLLM cannot serve beside its base, each as the key and why; merged, all of it can be."""
    found = [why for key, why in _REFUSED.items() if recipe.get(key)]
    if recipe.get("lora_bias", "none") != "none":
        found.append(f"lora_bias: {recipe['lora_bias']}: its LoRA takes no biases")
    if rank_of(recipe) is None:
        found.append(f"lora_r: {recipe['lora_r']}: its LoRA holds a rank of {RANKS[-1]} at the most")
    further = base_model.further_arguments(recipe).keys() - {"experts_implementation"}
    if further or base_model.dequantised(recipe):
        names = ", ".join(sorted(further)) or "dequantize"
        found.append(f"model_init_kwargs: {names}: it would load another base than the adapter was trained on")
    return found


def rank_of(recipe: Mapping[str, Any]) -> int | None:
    """The smallest rank that vLLM can be given which holds the run's; None where none does."""
    return next((rank for rank in RANKS if rank >= recipe.get("lora_r", 16)), None)


def served(
    run: Run, *, adapter: str | None, base: str, tokenizer: Path, revision: str | None = None, port: int = PORT
) -> Facts:
    """The command that serves a run and a request to it.

    Args:
        adapter: The adapter's directory as the command names it; None where `base` is the whole tuned model.
        base: The model as the command names it.
        tokenizer: A directory of this machine with the tokenizer that was trained with.
        revision: Of the base on the Hub; None for a directory.
        port: Of this machine alone, where it listens.

    Returns:
        `command` (a list of arguments), `path` and `body` of a request, the two as `shell` and `curl`; `quantised`
        (whether the base is put into NF4 as it was for training), `rounded` (whether float32 is served as bfloat16),
        `port` and `max_length`.
    """
    recipe, conversational = run.values(), run.facts()["data"]["conversational"]
    dtype, folder = recipe.get("dtype", "float32"), adapter or base
    command = ["vllm", "serve", base, "--host", HOST, "--port", str(port)]
    command += ["--revision", revision] if revision else []
    rounded = adapter is not None and dtype == "float32"
    # What a LoRA is computed with takes no float32.
    command += ["--dtype", "bfloat16" if rounded else dtype]
    if recipe.get("max_length"):
        command += ["--max-model-len", str(recipe["max_length"])]
    command += ["--tokenizer", folder]
    if conversational and (tokenizer / "chat_template.jinja").is_file():
        command += ["--chat-template", f"{folder}/chat_template.jinja"]
    quantised = adapter is not None and bool(recipe.get("load_in_4bit"))
    if adapter:
        command += ["--enable-lora", "--lora-modules", f"{run.name}={adapter}"]
        command += ["--max-lora-rank", str(rank_of(recipe))]
        command += ["--quantization", "bitsandbytes"] if quantised else []
    else:
        command += ["--served-model-name", run.name]
    asked = {"messages": [{"role": "user", "content": "..."}]} if conversational else {"prompt": "..."}
    stops = stop_ids(recipe, tokenizer)
    found: Facts = {
        "command": command,
        "path": "/v1/chat/completions" if conversational else "/v1/completions",
        "body": {"model": run.name, **asked, "temperature": 0, "max_tokens": 64, "stop_token_ids": stops},
        "port": port,
        "quantised": quantised,
        "rounded": rounded,
        "max_length": recipe.get("max_length"),
    }
    return found | {"shell": as_shell(found), "curl": as_curl(found)}


def stop_ids(recipe: Mapping[str, Any], tokenizer: Path) -> list[int]:
    """The tokens that end an answer of a run, as its evaluation has them; the base's own as far as it is here."""
    base = tokens.directory_of(recipe["model_name_or_path"], recipe.get("model_revision", "main"))
    return tokens.stops(tokens.read(tokenizer), tokens.configured_stops(base) if base else [])


def as_shell(found: Facts) -> str:
    """The command as a shell takes it, an option a line."""
    command = found["command"]
    lines = [shlex.join(command[:3])]
    for word in command[3:]:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


def as_curl(found: Facts) -> str:
    """The request as a shell takes it."""
    url = f"http://{HOST}:{found['port']}{found['path']}"
    return f"curl {url} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(json.dumps(found['body']))}"
