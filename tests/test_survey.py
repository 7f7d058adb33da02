"""What is counted in the rows, and that it is what a real training run sees."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes import launch, survey

Train = Callable[..., Any]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def talks(number: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one to three rounds."""
    rng = random.Random(seed)  # noqa: S311, seeded rows, no secrets
    rows = []
    for _ in range(number):
        turns = [turn("system", "Count.")] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 3)):
            turns += [turn("user", " ".join(["dog"] * rng.randint(1, 9))), turn("assistant", f"{rng.random()} dogs")]
        rows.append({"messages": turns})
    return rows


def pairs(number: int, seed: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"{row['instruction']} {row['input']} =", "completion": f" {row['output']} " * 3}
        for row in alpaca_rows(number, seed)
    ]


def surveyed(name: str = "tiny", **overrides: Any) -> dict[str, Any]:
    words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
    job = launch.check(name, overrides=words)
    return survey.survey(job.prepared, survey.find_tokenizer(job.recipe), cache=Path("surveys"))


# What a training run records of the same rows


@pytest.mark.parametrize(
    ("rows", "max_lengths"), [(alpaca_rows, (512, 45, 40)), (talks, (512, 60, 30)), (pairs, (512, 42, 30))]
)
def test_figures_are_those_of_a_training_run(
    train_here: Train, rows: Callable[..., list[Any]], max_lengths: tuple[int, ...]
) -> None:
    write_rows(Path("data/train.jsonl"), rows(64, seed=3))
    write_rows(Path("data/validation.jsonl"), rows(8, seed=4))
    found = surveyed()
    assert found["tokens_are"] == "exact"
    train = found["splits"]["train"]
    for max_length in max_lengths:
        run = train_here(name=f"at-{max_length}", max_length=max_length, max_steps=1, warmup_steps=0)
        effect = run.facts()["in_effect"]["data"]
        figures = survey.at_length(train, max_length)
        share = figures.pop("supervised_tokens") / figures["tokens"]
        assert share == pytest.approx(effect["supervised_token_share"], abs=1e-12)
        assert figures == {key: effect[key] for key in figures}
        expected = survey.real_token_share(train, max_length, 4)
        assert expected == pytest.approx(effect["real_token_share"], abs=0.05)
    assert figures["rows_lost"] > 0 and figures["rows_cut"] > 0
    assert survey.at_length(train, None) | {"rows_cut": 0} == survey.at_length(train, 10**6)
    assert survey.at_length(train, None)["tokens"] == train["tokens"]
