"""What two recipes do differently, and whether it is one idea."""

from pathlib import Path

import pytest

from sft_recipes.cli import main
from sft_recipes.plan import diff
from sft_recipes.recipes import schema


@pytest.fixture(autouse=True)
def without_data(project: Path) -> None:
    (project / "data" / "train.jsonl").unlink()


def test_a_difference_has_both_values_its_reason_and_what_follows(capsys: pytest.CaptureFixture) -> None:
    assert main(["diff", "default", "memory_efficient"]) == 0
    said = capsys.readouterr().out
    assert "max_length: 512 -> 256" in said
    assert "accumulation: 4 -> 8" in said
    assert "one: length" in said
    figures = diff.diff("default", "high_capacity")
    reasons = {each["key"]: each["reason"] for each in figures["changed"]}
    assert reasons["lora_r"] is None
    assert "as documented" in reasons["lora_alpha"]


def test_the_heading_of_a_group_is_no_reason(capsys: pytest.CaptureFixture) -> None:
    Path("recipes/first.yaml").write_text(
        "extends: default\n# Optimisation\nweight_decay: 0.1\n# LoRA\n# Half of the seed's.\nlora_r: 16\n"
    )
    changed = diff.diff("default", "first")["changed"]
    assert {each["key"]: each["reason"] for each in changed} == {"weight_decay": None, "lora_r": "Half of the seed's."}
    assert main(["diff", "default", "first"]) == 0
    said = capsys.readouterr().out
    assert "Half of the seed's." in said and "Optimisation" not in said


def test_several_ideas_at_once_are_a_warning(capsys: pytest.CaptureFixture) -> None:
    assert diff.diff("default", "quick_test")["ideas"] == [
        "rank",
        "scale of updates",
        "warm-up",
        "epochs",
        "stopping",
    ]
    assert main(["diff", "default", "quick_test"]) == 0
    assert "5 ideas changed at once" in capsys.readouterr().out


def test_a_micro_batch_changes_nothing_that_is_learned(project: Path, capsys: pytest.CaptureFixture) -> None:
    Path("recipes/smaller.yaml").write_text("extends: default\nper_device_train_batch_size: 2\n")
    assert main(["diff", "default", "smaller"]) == 0
    assert "none: the same is learned" in capsys.readouterr().out
    assert main(["diff", "default", "default"]) == 0
    assert "changed    nothing" in capsys.readouterr().out


def test_ideas_are_made_of_keys_that_recipes_may_set() -> None:
    keys = [key for keys in diff.IDEAS.values() for key in keys]
    assert len(keys) == len(set(keys))
    assert not set(keys) - schema.known().keys()
