"""The config by which stock `trl dpo` goes on from a run: preference training begins where the fine-tuning ended."""

from itertools import islice
from pathlib import Path
from typing import Any

from sft_recipes.data import readers
from sft_recipes.deploy import merge
from sft_recipes.errors import refuse
from sft_recipes.recipes import schema
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, rehearsed

# What a DPO pair needs, in TRL's preference format; the prompt may be in both of them instead.
COLUMNS = ("chosen", "rejected")
# The loaders of `datasets` by the endings of files.
_LOADERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# What of the training of a run holds for another one of its model on the same machine. The rest, the learning rate and
# beta above all, is of the method, and left to TRL.
_KEPT = (
    *("max_length", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
    *("activation_checkpointing", "bf16", "fp16", "optim", "seed", "use_cpu"),
)


def dpo(name: str, rows: str | None) -> dict[str, Any]:
    """The values of `trl dpo --config` for a finished run: its whole model, its adapter's shape, and the pairs.

    Args:
        rows: Pairs with the columns `chosen` and `rejected`: a file, a directory, or a dataset of the Hub.

    Raises:
        InputError: The run has no whole model, which alone `trl dpo` begins with, or there are no pairs; all at once.
    """
    run = Run.open(name)
    directory, problem = merge.whole(run)
    problems = [problem, rehearsed(run)]
    source: dict[str, Any] = {}
    if rows is None:
        problems.append(
            "say DATA=: a file, a directory or a Hub dataset of pairs with the columns chosen and rejected"
        )
    elif Path(rows).is_file():
        problems += _wrong(rows)
        source = {"datasets": [{"path": _LOADERS.get(Path(rows).suffix.lower()), "data_files": rows}]}
    else:
        source = {"dataset_name": rows}
    refuse(problems)
    identity.check(run)
    known = schema.known()
    kept = {
        key: value
        for key, value in run.values().items()
        if key in _KEPT or (key in known and known[key]["class"] == "ModelConfig")
    }
    kept.pop("model_revision", None)
    return {**kept, "model_name_or_path": str(directory), **source, "output_dir": f"runs/{name}-dpo"}


def _wrong(rows: str) -> list[str]:
    """What keeps `trl dpo` from reading a file of pairs."""
    if Path(rows).suffix.lower() not in _LOADERS:
        return [f"DATA={rows}: trl dpo reads {', '.join(_LOADERS)}; convert it"]
    problems = readers.Problems()
    first = dict(next(islice(readers.file_source(rows).rows(problems), 1), ("", {}))[1])
    if missing := [column for column in COLUMNS if column not in first]:
        has = f"it has {', '.join(first)}" if first else "it has no row that can be read"
        return [f"DATA={rows}: no column {' and '.join(missing)}, which a pair needs; {has}. Rename its columns"]
    return []
