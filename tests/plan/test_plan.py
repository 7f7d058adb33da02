"""The plan of a recipe: its figures against a real run, its page, what stops a run, and how fast it answers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, alpaca_rows, write_rows

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.recipes import topology
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]


def page(figures: dict[str, Any]) -> str:
    return "\n".join(f"{subject} {text}" for subject, text in plan.render(figures))


def test_the_figures_are_those_of_the_run(train_here: Callable[..., Run], project: Path) -> None:
    long = {"instruction": "red " * 200, "input": "", "output": "even"}
    write_rows(project / "data" / "train.jsonl", [*alpaca_rows(62, seed=1), long, long])
    words = ["max_length=64", "warmup_steps=0.3", "num_train_epochs=2"]
    figures = plan.plan("tiny", overrides=words)
    effect = train_here(max_length=64, warmup_steps=0.3, num_train_epochs=2).facts()["in_effect"]
    train = figures["data"]["train"]
    assert train["tokens_are"] == "exact"
    assert (train["rows"], train["rows_lost"], train["tokens"]) == (
        effect["data"]["rows"],
        effect["data"]["rows_lost"],
        effect["data"]["tokens"],
    )
    assert train["supervised_tokens"] / train["tokens"] == effect["data"]["supervised_token_share"]
    assert figures["schedule"]["steps"] == effect["run"]["max_steps"]
    assert figures["schedule"]["warmup_steps"] == effect["run"]["warmup_steps"]
    assert figures["adapter"]["trainable_parameters"] == effect["adapter"]["trainable_parameters"]
    assert figures["model"]["four_bit_share"] == effect["base"]["four_bit_share"]


def test_a_finished_run_of_the_same_kind_says_how_long_it_takes(finished: Callable[..., Run]) -> None:
    assert plan.plan("tiny")["time"]["span"] is None
    finished()
    figures = plan.plan("tiny")
    assert "measured" in figures["time"]["basis"] and "runs/tuned" in figures["time"]["basis"]
    assert figures["time"]["seconds"][0] > 0


def test_without_data_the_plan_says_what_it_does_not_know(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "data" / "train.jsonl").unlink()
    assert main(["plan", "high_capacity"]) == 0
    said = capsys.readouterr().out
    for fragment in (
        "high_capacity, extends default",
        "lora_r: 32 -> 64",
        "planned for a100-80gb",
        "8,190,735,360 parameters",
        "30,670,848 trainable",
        "data/train.jsonl is not here",
        "fits into 80 GiB",
    ):
        assert fragment in said
    assert "schedule" not in said


def test_data_on_the_command_line_must_exist(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "tiny", "--data", "data/nowhere.jsonl"]) == 2
    assert "data/nowhere.jsonl: no such file" in capsys.readouterr().err


def test_the_rows_of_data_are_planned_with(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_rows(project / "it's mine.jsonl", alpaca_rows(40, seed=3))
    words = ["--set", "task=classification test_file=data/validation.jsonl"]
    assert main(["plan", "tiny", "--data", "it's mine.jsonl", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["train"]["rows_read"] + found["validation"]["rows_read"] == 40
    assert found["test"]["rows_read"] == 8
    assert found["notes"][0] == "it's mine.jsonl takes the place of the recipe's train_file, validation_file"


def test_the_page_about_the_figures_names_all_of_them(project: Path) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "plan.md").read_text(), flags=re.MULTILINE))
    assert documented == plan.plan("tiny").keys()


@pytest.mark.parametrize("name", ["default", "high_capacity", "memory_efficient", "quick_test", "demo"])
def test_every_shipped_recipe_can_be_planned_on_its_topology(project: Path, name: str) -> None:
    (project / "data" / "train.jsonl").unlink()
    (project / "data" / "demo").symlink_to(ROOT / "data" / "demo")
    figures = plan.plan(name)
    assert figures["blocking"] == 0
    assert figures["batch"]["accumulation"] == {"memory_efficient": 8, "demo": 1}.get(name, 4)
    assert page(figures)


def test_a_blocking_finding_stops_plan_and_train_alike(project: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--set", "lora_target_modules=[q_porj]"]
    assert main(["plan", "tiny", *words]) == 2
    said = capsys.readouterr().out
    assert "target-unmatched: lora_target_modules: q_porj matches no module of model" in said
    assert "1 blocking" in said
    assert main(["train", "tiny", "--name", "no", *words]) == 2
    assert "target-unmatched" in capsys.readouterr().err
    assert not Path("runs/no").exists()


def test_the_verdict_comes_first(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "tiny", "--set", "lora_target_modules=[q_porj]"]) == 2
    assert capsys.readouterr().out.startswith("verdict    will not run: target-unmatched\n")
    figures = plan.plan("tiny", overrides=["lora_target_modules=[q_porj]"])
    stops, *others = dict(plan.render(figures))["verdict"].splitlines()
    assert stops == "will not run: target-unmatched"
    assert any(line.startswith("look at ") for line in others)
    (project / "data" / "train.jsonl").unlink()
    lines = dict(plan.render(plan.plan("default")))["verdict"].splitlines()
    assert lines[0] == "nothing stops it on a machine that has its GPUs"
    assert re.fullmatch(r"fits: [\d.]+ GiB at the peak, a100-80gb has 80 GiB", lines[-1])


@pytest.mark.parametrize("name", ["runs/X/adapter", "a/b/c", "~/m", "./m", "org name/x", "~nobody/m", "/nowhere"])
def test_a_name_that_is_no_model_is_said_by_every_command(
    project: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    words = ["tiny", "--set", f"'model_name_or_path={name}'"]
    assert main(["train", *words, "--name", "no"]) == main(["fit", *words, "--vram", "24"]) == 2
    train, fit = capsys.readouterr().err.splitlines()
    assert f"{name}" in train and f"{name}" in fit and not Path("runs").exists()
    planned = main(["plan", *words])
    said = capsys.readouterr()
    if planned == 0:
        # Whoever plans may be on another machine than the one that has it.
        assert said.out.startswith("verdict    nothing stops it on a machine that has its model\n")
        assert "model-missing: SET: " in said.out and "has no config.json" in said.out + train
    else:
        assert (planned, said.err) == (2, f"{train}\n")


def test_one_finding_of_two_splits_is_said_once(project: Path) -> None:
    common = {"rule": "duplicate-rows", "severity": "warning", "silenced": None}
    common |= {"instead": "delete the repeats", "evidence": "https://arxiv.org/abs/2107.06499v2: less memorised"}
    found = [common | {"message": f"2 of 8 {split} rows repeat an earlier row"} for split in ("train", "validation")]
    lines = list(plan.render(plan.plan("tiny") | {"findings": found}))
    said = [text for _, text in lines if text.startswith("duplicate-rows: ")]
    assert len(said) == 1 and lines[-1][1].startswith("1: 0 blocking, 1 warning, 0 info")
    assert all(each["message"] in said[0] for each in found)
    assert said[0].count("instead: ") == 1
    assert said[0].count("evidence: ") == 1


def test_evidence_is_a_link_unless_all_of_it_is_asked_for(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "data" / "train.jsonl").unlink()
    assert main(["plan", "default", "--set", "learning_rate=0.01"]) == 0
    short = capsys.readouterr().out
    assert main(["plan", "default", "--set", "learning_rate=0.01", "--why"]) == 0
    whole = capsys.readouterr().out
    evidence = next(each for each in plan.plan("default", overrides=["learning_rate=0.01"])["findings"])["evidence"]
    assert "evidence: https://arxiv.org/abs/2305.14314v1\n" in short and "table 9" not in short
    assert "table 9" in whole and f"evidence: {evidence}\n" in whole
    assert "WHY=1" in short and "WHY=1" not in whole


def test_what_is_silenced_stops_nothing_and_is_recorded(project: Path) -> None:
    kwargs = "model_init_kwargs={trust_remote_code: true}"
    with pytest.raises(InputError, match="remote-code"):
        jobs.lint_or_raise(jobs.check("tiny", overrides=[f"'{kwargs}'"]))
    silence = "silence={remote-code: 'read on 1 May, commit pinned'}"
    job = jobs.lint_or_raise(jobs.check("tiny", overrides=[f"'{kwargs}'", f'"{silence}"']))
    run = launch.create(job, "silenced")
    recorded = {each["rule"]: each["silenced"] for each in run.facts()["findings"]}
    assert recorded["remote-code"] == "read on 1 May, commit pinned"


def test_a_model_that_is_not_known_is_planned_without_it(project: Path) -> None:
    figures = plan.plan("tiny", overrides=["model_name_or_path=no/such-model"])
    assert (figures["model"], figures["memory"], figures["adapter"]) == (None, None, None)
    assert figures["data"]["train"]["tokens_are"] == "estimated"
    assert "FETCH=1 gets it" in page(figures)
    assert "estimated from characters" in page(figures)


@pytest.mark.slow
def test_the_plan_of_the_default_recipe_answers_at_once(project: Path) -> None:
    """Under 1.5 s of the processor once the model's modules have been counted; twice that here, for busy ones."""
    (project / "data" / "train.jsonl").unlink()
    command = [sys.executable, "-m", "sft_recipes", "plan", "default"]
    plan.plan("default")
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True
    )
    ended = os.times()
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 3
    assert not re.search(r"\| +torch$", done.stderr, flags=re.MULTILINE)


@pytest.mark.slow
def test_ten_thousand_rows_are_planned_in_seconds_and_then_at_once(project: Path) -> None:
    rows = [{**row, "input": f"{number} {row['input']}"} for number, row in enumerate(alpaca_rows(10_000, seed=5))]
    write_rows(project / "data" / "train.jsonl", rows)
    command = [sys.executable, "-m", "sft_recipes", "plan", "tiny"]
    seconds = []
    for _ in range(2):
        began = os.times()
        subprocess.run(command, check=True, capture_output=True)
        ended = os.times()
        # Of the processor, because other tests may keep it busy.
        seconds.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert seconds[0] < 20
    assert seconds[1] < seconds[0] / 2


def test_fetching_says_why_when_the_hub_does_not_answer(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "default", "--fetch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the Hub does not answer for Qwen/Qwen3-8B: ")
    assert "HF_ENDPOINT" in said


def test_the_demo_s_base_is_built_rather_than_fetched(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "demo"]) == 0
    assert ".cache/demo/base is built when it is first needed, as by make preview" in capsys.readouterr().out
    assert main(["plan", "demo", "--fetch"]) == 2
    assert "is a directory of this machine, so there is nothing to fetch" in capsys.readouterr().err


def test_a_visible_gpu_without_figures_is_not_taken_for_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [topology.Gpu("NVIDIA Unheard 9000", 40960)] * 4
    monkeypatch.setattr(topology, "visible_gpus", lambda: seen)
    figures = plan.plan("default")
    assert figures["gpu"] is None and figures["memory"]["fits"] is None
    assert "no figures for this machine's GPU" in page(figures)
    assert plan.plan("default", gpu="h200")["gpu"]["name"] == "h200"


def test_a_length_that_no_answer_fits_into_is_a_finding(project: Path) -> None:
    figures = plan.plan("tiny", overrides=["max_length=4"])
    assert "every-answer-lost" in [each["rule"] for each in figures["findings"] if each["severity"] == "blocking"]
    assert figures["schedule"] is None and figures["time"] is None
    assert "every-answer-lost" in page(figures)
