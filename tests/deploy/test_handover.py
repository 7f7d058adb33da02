"""The config for preference training: stock TRL reads it, with the pairs and the model that the run has learned."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from finished import FLOAT32

from sft_recipes.cli import main
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

PAIRS = [{"prompt": f"Question {n}.", "chosen": " even", "rejected": " odd"} for n in range(4)]


def test_trl_dpo_reads_the_config_with_the_merged_model_and_the_pairs(
    finished: Callable[..., Run], merge_here: Callable[..., Any], capsys: pytest.CaptureFixture
) -> None:
    run = finished(**FLOAT32)
    write_rows(Path("pairs.jsonl"), PAIRS)
    ask = ["export", "--run", "tuned", "--for", "dpo", "--out", "dpo.yaml"]
    write_rows(Path("wrong.jsonl"), [{"prompt": "a", "good": "b", "bad": "c"}])
    assert main([*ask, "--data", "wrong.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "make merge RUN=tuned" in said and "no column chosen and rejected" in said and "good, bad" in said
    assert merge_here("tuned")[0] == 0
    assert main(ask) == 2 and "say DATA=" in capsys.readouterr().err
    assert not Path("dpo.yaml").exists()
    assert main([*ask, "--data", "pairs.jsonl"]) == 0
    assert "next: trl dpo --config dpo.yaml" in capsys.readouterr().out

    from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser, get_dataset
    from trl.scripts.utils import DatasetMixtureConfig

    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig))
    script, training, model, mixture = parser.parse_args_and_config(["--config", "dpo.yaml"])
    assert model.model_name_or_path == "runs/tuned/merged"
    assert (model.use_peft, model.lora_r, model.dtype) == (True, 8, "float32")
    default = {field.name: field.default for field in dataclasses.fields(DPOConfig)}
    assert (training.beta, training.learning_rate) == (default["beta"], default["learning_rate"])
    assert training.max_length == run.values()["max_length"] and training.output_dir == "runs/tuned-dpo"
    assert sorted(get_dataset(mixture)[script.dataset_train_split].column_names) == ["chosen", "prompt", "rejected"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tiny", "--for", "dpo"], "FOR=dpo goes on from a run"),
        (["--run", "x", "--for", "dpo", "--set", "lora_r=4"], "reads nothing else but OUT="),
        (["--run", "x"], "stock trl sft reads runs/x/recipe.yaml as it is"),
        ([], "name the recipe, or"),
    ],
)
def test_what_no_export_is_made_of(
    project: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", *arguments, "--out", "x.yaml"]) == 2
    assert says in capsys.readouterr().err and not Path("x.yaml").exists()
