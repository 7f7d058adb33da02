"""All that a run which went on and one that never stopped have in common, to the bit."""

import json
from typing import Any

import torch
from safetensors.torch import load_file

from sft_recipes.runs import checkpoints
from sft_recipes.runs.run import Run

# What no two runs have in common.
CLOCK = {
    "time",
    "tokens_per_second",
    "waiting_share",
    *(f"{part}_{key}" for part in ("train", "eval") for key in ("runtime", "samples_per_second", "steps_per_second")),
}


def timeless(value: Any) -> Any:
    """A value of JSON without what clocks say."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in CLOCK}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def logged(run: Run) -> list[dict[str, Any]]:
    """The lines of its log without what clocks say."""
    return timeless([json.loads(line) for line in run.log.read_text().splitlines()])


def everything(run: Run) -> dict[str, Any]:
    """Log, totals, adapter; of the newest checkpoint the trainer's state, optimizer, schedule and random numbers."""
    last = checkpoints.newest_whole(run)[0]
    assert last is not None
    state, measured = checkpoints.state(last), run.facts()["measured"]
    del state["stateful_callbacks"]["Record"]
    found = {
        "log": logged(run),
        "state": timeless(state),
        "measured": [measured[key] for key in ("step", "kept_step", "train_loss", "best_checkpoint", "eval_loss")],
        "status": run.facts()["status"],
    }
    for path in (*last.glob("*.pt"), *last.glob("*.pth")):
        # Written by the run itself.
        found[path.name] = plain(torch.load(path, weights_only=False))
    return found | {
        name: plain(tensor) for name, tensor in load_file(run.adapter / "adapter_model.safetensors").items()
    }


def plain(value: Any) -> Any:
    """A value whose parts can be compared: of tensors and arrays, type and bytes."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return (str(value.dtype), value.tobytes()) if hasattr(value, "tobytes") else value


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert {key: one[key] for key in one if one[key] != other[key]} == {
        key: other[key] for key in one if one[key] != other[key]
    }
