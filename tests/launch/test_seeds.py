"""Several seeds of a recipe: what is checked before the first run, and what is said when it ends early."""

import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from finished import bare

from sft_recipes.errors import InputError
from sft_recipes.launch import launch, processes, seeds
from sft_recipes.recipes import recipe as recipes


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "names no seed; write SEEDS='42 43 44'"),
        (" , ", "names no seed"),
        ("1 -2", "'-2' is no seed; write a whole number from 0 to 4294967295"),
        ("1.5", "'1.5' is no seed"),
        ("4294967296", "'4294967296' is no seed"),
        ("٣", "'٣' is no seed"),
        ("42 43 42", "42 is there twice; keep one"),
        ("7 07", "7 is there twice"),
        ("9" * 5000, "is no seed"),
    ],
)
def test_what_is_no_seed_is_refused(text: str, wrong: str) -> None:
    _, problems = seeds.parse(text)
    assert len(problems) == 1
    assert wrong in problems[0]


def test_seeds_are_separated_by_spaces_or_commas() -> None:
    assert seeds.parse("42 43,44, 0") == ([42, 43, 44, 0], [])


def test_everything_wrong_is_said_before_the_first_run(project: Path) -> None:
    bare("tiny-seed43")
    with pytest.raises(InputError) as refused:
        seeds.train_seeds("tiny", "42 43 x", overrides=["seed=1 lora_rank=8"], resume=True)
    word, resume, taken, seed, key = refused.value.problems
    assert "'x' is no seed" in word
    assert "RESUME=1 continues one run" in resume and "make resume NAME=tiny-seedN" in resume
    assert "runs/tiny-seed43 exists" in taken and "leave 43 out of SEEDS" in taken
    assert "SET: seed is what SEEDS sets" in seed
    assert "lora_rank" in key and "lora_r" in key
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-seed43"]


def test_a_name_that_is_none_is_refused_once(project: Path) -> None:
    with pytest.raises(InputError) as refused:
        seeds.train_seeds("tiny", "42 43", run_name="../up")
    assert refused.value.problems == ["NAME='../up' is no run name: letters, digits, '_', '-' and '.' only"]
    assert not Path("runs").exists()


def test_the_command_for_what_is_left_trains_it_as_the_others(project: Path, capsys: pytest.CaptureFixture) -> None:
    """It goes through make and the shell as it was meant."""
    words = ["""train_file='"my rows.jsonl"'""", "learning_rate=1e-3"]
    given = {"RECIPE": "tiny", "SEEDS": "43 44", "NAME": None, "ACCEL": "cpu", "GPUS": None}
    command = seeds.make_command("train", given, words)
    target, *variables = shlex.split(command)[1:]
    values = dict(word.split("=", 1) for word in variables)
    assert (target, values.keys()) == ("train", {"RECIPE", "SEEDS", "ACCEL", "SET"})
    assert seeds.parse(values["SEEDS"]) == ([43, 44], [])
    parsed = recipes.parse_overrides([values["SET"]])
    assert {key: item.value for key, item in parsed.items()} == {"train_file": "my rows.jsonl", "learning_rate": 1e-3}


def test_runs_without_an_evaluation_end_with_what_is_to_be_done(project: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [bare(f"tiny-seed{seed}") for seed in (1, 2)]
    (runs[0].directory / "metrics.json").write_text("{}")
    seeds.conclude(runs)
    said = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert said == [
        ["evaluate", "make evaluate RUN=tiny-seed2"],
        ["compare", "make compare RUNS='tiny-seed1 tiny-seed2'"],
    ]


@pytest.mark.slow
def test_runs_differ_in_their_seed_alone_and_a_stop_says_what_is_left(
    project: Path, launch_here: None, capfd: pytest.CaptureFixture
) -> None:
    """Stopped as by Ctrl-C in the second run of three; what was trained before it stays."""

    def interrupt() -> None:
        log = Path("runs/tiny-seed2/log.jsonl")
        while threading.main_thread().is_alive() and not log.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    code, runs = seeds.train_seeds("tiny", "1 2 3", accel="cpu", overrides=["max_steps=12"])
    said = capfd.readouterr().out
    assert (code, [run.name for run in runs]) == (launch.INTERRUPTED, ["tiny-seed1", "tiny-seed2"])
    assert [run.facts()["status"] for run in runs] == ["finished", "interrupted"]
    assert not Path("runs/tiny-seed3").exists()
    assert "runs/tiny-seed2 is interrupted, not finished; finish it first: make resume NAME=tiny-seed2" in said
    assert "make train RECIPE=tiny SEEDS=3 ACCEL=cpu SET=max_steps=12" in said
    assert "make compare" not in said
    recipe, other = (recipes.read(run.recipe) for run in runs)
    different = {key for key in recipe if recipe[key].value != other[key].value}
    assert different == {"seed", "data_seed", "output_dir", "run_name"}
    losses = [json.loads(run.log.read_text().splitlines()[0])["loss"] for run in runs]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_a_stop_after_the_last_step_is_no_reason_to_go_on(
    project: Path, launch_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is left to be saved, but another training and an evaluation are."""
    work = processes.Processes.work

    def asked_at_the_end(self: processes.Processes, **given: Any) -> int:
        code = work(self, **given)
        self._ask(signal.SIGINT, None)
        return code

    monkeypatch.setattr(processes.Processes, "work", asked_at_the_end)
    code, runs = seeds.train_seeds("tiny", "1 2", accel="cpu", overrides=["max_steps=2", "warmup_steps=0"])
    assert (code, [run.facts()["status"] for run in runs]) == (launch.INTERRUPTED, ["finished"])
    assert "after the last step; go on with: make report RUN=tiny-seed1" in capsys.readouterr().out
