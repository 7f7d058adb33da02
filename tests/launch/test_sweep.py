"""A sweep: what it goes over, what it refuses before the first trial, and that it goes on, prunes and concludes."""

import concurrent.futures
import html
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import bare

from sft_recipes.errors import InputError
from sft_recipes.launch import launch, space, sweep
from sft_recipes.launch.space import Choices, Range
from sft_recipes.recipes import recipe as recipes
from sft_recipes.runs.run import Run

pytest_plugins = ["forks"]


def test_values_are_read_as_a_recipe_s_are() -> None:
    found, problems = space.parse(
        "learning_rate=1e-4,2e-4 lora_r=8,16 lora_target_modules=[q_proj,v_proj],[all-linear] use_rslora=true,false "
        "optim=adamw_torch,'adamw_torch_fused'"
    )
    assert problems == []
    assert found == {
        "learning_rate": Choices((1e-4, 2e-4)),
        "lora_r": Choices((8, 16)),
        "lora_target_modules": Choices((["q_proj", "v_proj"], ["all-linear"])),
        "use_rslora": Choices((True, False)),
        "optim": Choices(("adamw_torch", "adamw_torch_fused")),
    }
    assert len(space.grid(found)) == 32
    assert [values["optim"] for values in space.grid(found)[:3]] == ["adamw_torch", "adamw_torch_fused", "adamw_torch"]


@pytest.mark.parametrize(
    ("text", "whole", "logarithmic"),
    [
        ("learning_rate=1e-5..1e-3", False, True),
        ("lora_dropout=0.0..0.1", False, False),
        ("weight_decay=0..1", False, False),
        ("lora_r=4..64", True, True),
        ("lora_r=4..8", True, False),
    ],
)
def test_a_range_is_on_the_scale_of_its_ends(text: str, whole: bool, logarithmic: bool) -> None:
    (found,) = space.parse(text)[0].values()
    assert isinstance(found, Range)
    assert (found.whole, found.logarithmic) == (whole, logarithmic)


@pytest.mark.parametrize(
    ("over", "best", "found"),
    [
        ("learning_rate=1e-4,2e-4,4e-4", 4e-4, ("largest", "learning_rate=0.0004,0.0008,0.0016")),
        ("learning_rate=4e-4,1e-4,2e-4", 1e-4, ("smallest", "learning_rate=2.5e-05,5e-05,0.0001")),
        ("learning_rate=1e-4,2e-4,4e-4", 2e-4, None),
        ("learning_rate=1e-9,1e-2", 1e-2, ("largest", "learning_rate=0.01,0.1")),
        ("lora_r=8,16", 16, ("largest", "lora_r=16,32,64")),
        ("lora_r=1,2,4", 1, None),
        ("lora_dropout=0,0.05,0.1", 0.1, ("largest", "lora_dropout=0.1,0.2,0.4")),
        ("lora_dropout=0,0.2,0.4", 0.4, ("largest", "lora_dropout=0.4,0.8")),
        ("lora_dropout=0,0.05", 0, None),
        ("warmup_steps=0.4,0.8", 0.8, None),
        ("learning_rate=1e-5..1e-3", 9e-4, ("largest", "learning_rate=0.0009..0.0036")),
        ("learning_rate=1e-5..1e-3", 1e-4, None),
        ("lora_r=4..8", 8, ("largest", "lora_r=8..12")),
        ("weight_decay=0..1", 0.0, None),
        ("use_rslora=false,true", True, None),
        ("lora_target_modules=[q_proj],[v_proj]", ["v_proj"], None),
    ],
)
def test_a_best_value_at_an_end_says_what_lies_beyond(over: str, best: Any, found: tuple[str, str] | None) -> None:
    (space_of,) = space.parse(over)[0].items()
    assert space.beyond(*space_of, best) == found
    if found:
        assert space.parse(found[1])[1] == []


@pytest.mark.parametrize(
    ("over", "wrong"),
    [
        ("", "OVER names nothing to vary"),
        ("lora_r", "'lora_r' is not key=value,value"),
        ("lora_r=8,16,8", "lora_r has 8 twice; keep one"),
        ("lora_r=8 lora_r=16", "lora_r appears twice"),
        ("learning_rate=1e-3..1e-5", "is no range; write two numbers, the smaller first"),
        ("learning_rate=a..b", "is no range"),
        ("lora_rank=8..16", "lora_rank is not a key of TRL"),
        ("lora_r=[8", "is not a YAML value"),
        ("seed=1,2", "a seed is luck and not a setting; train the best with SEEDS"),
        (
            "logging_steps=5,10",
            "logging_steps cannot be swept: it is none of the keys that act on training alone: adam",
        ),
        ("global_batch_size=8..64", "write its values one by one: global_batch_size=8,16,32"),
        ("warmup_steps=0.01..10", "would mean two things: below 1 it is a share, and above a number of steps"),
        ("max_steps=-1..100", "steps begin at 1"),
        ("max_length=256,512", "max_length cannot be swept: another value holds out, reads or cuts other rows"),
        ("learning_rate='1", "No closing quotation"),
    ],
)
def test_what_cannot_be_gone_over_is_refused(over: str, wrong: str) -> None:
    _, (problem,) = space.parse(over)
    assert wrong in problem


def test_everything_wrong_is_said_before_the_first_trial(project: Path) -> None:
    with pytest.raises(InputError) as refused:
        sweep.sweep(
            "tiny",
            "learning_rate=1e-3..1e-2 lora_rank=8 lora_alpha=x,16",
            overrides=["learning_rate=1e-3"],
            run_name="a/b",
            out=Path("best.yaml"),
        )
    key, name, out, endless, twice, alpha = refused.value.problems
    assert key.startswith("OVER: ") and "lora_rank" in key and "lora_r" in key
    assert "NAME='a/b' is no run name" in name
    assert "OUT=best.yaml: a recipe lies in recipes/" in out
    assert "learning_rate is a range, which has no end of values; say how many with TRIALS=20" in endless
    assert "learning_rate is in SET and in OVER" in twice
    assert alpha.startswith("OVER: lora_alpha: expected a whole number, got the string 'x'")
    assert not Path("runs").exists()


def test_of_very_many_combinations_each_value_is_looked_at(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "LARGEST", 8)
    over = "lora_r=1,2,3,4,5 lora_alpha=8,16"
    looked_at = space.looked_at(space.parse(over)[0])
    assert len(looked_at) == 6 and {"lora_r": 5, "lora_alpha": 8} in looked_at
    with pytest.raises(InputError, match="OVER has 10 combinations; let Optuna choose among them with TRIALS=20"):
        sweep.sweep("tiny", over)


def test_a_combination_that_would_not_start_is_named(project: Path) -> None:
    with pytest.raises(InputError) as refused:
        sweep.sweep("tiny", "lora_target_modules=[q_proj],[q_porj] global_batch_size=8,9")
    found = refused.value.problems
    assert any(each.startswith('lora_target_modules ["q_porj"]') and "matches no module" in each for each in found)
    assert any("global_batch_size 9" in each and "not reachable" in each for each in found)
    with pytest.raises(InputError, match="trials are compared by the eval loss"):
        never = "eval_strategy=no load_best_model_at_end=false early_stopping_patience=0"
        sweep.sweep("tiny", "lora_r=4,8", overrides=[never])
    with pytest.raises(
        InputError, match="keeps the best weights by eval_mean_token_accuracy, and trials are compared"
    ):
        sweep.sweep("tiny", "lora_r=4,8", overrides=["metric_for_best_model=eval_mean_token_accuracy"])
    assert not Path("runs").exists()


def test_jobs_share_what_is_there() -> None:
    assert sweep._device(1, 1, on_cpu=True) == {}
    assert int(sweep._device(1, 2, on_cpu=True)["OMP_NUM_THREADS"]) == max((os.cpu_count() or 1) // 2, 1)


def test_a_gpu_is_given_to_each_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep._device(1, 4, on_cpu=False) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab")
    assert sweep._device(1, 2, on_cpu=False) == {"CUDA_VISIBLE_DEVICES": "GPU-ab"}


@pytest.mark.parametrize(
    ("facts", "code", "state", "stops"),
    [
        ({"status": "failed", "error": "OSError: no space left on device"}, 1, "FAIL", True),
        ({"status": "failed", "error": "loss is nan at step 1", "diverged": True}, 1, "FAIL", False),
        ({"status": "interrupted"}, 3, "RUNNING", True),
        ({"status": "finished"}, 3, "RUNNING", True),
        ({"status": "finished"}, 1, "COMPLETE", False),
    ],
    ids=["first fails", "diverged", "interrupted", "evaluation interrupted", "evaluation failed"],
)
def test_how_a_trial_ended_is_written_down(
    project: Path, facts: dict[str, Any], code: int, state: str, stops: bool
) -> None:
    asked = {"recipe": "tiny", "over": "lora_r=4,8", "seed": 42}
    (Path("runs") / "s.sweep").mkdir(parents=True)
    tried = sweep.Sweep(Path("runs") / "s.sweep", asked, None, 1)
    trial = next(tried.left())
    assert tried.values(trial) == {"lora_r": 4}
    run = bare("s-t000", **facts)
    run.recipe.write_text("load_best_model_at_end: true\n")
    entries = [{"step": step, "eval_loss": loss} for step, loss in ((0, 0.1), (4, 2.0), (8, 3.0))]
    run.log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tried.told(trial, run, code)
    found = tried.study.trials[0]
    assert (found.state.name, bool(tried.stopping)) == (state, stops)
    assert found.value == (2.0 if state == "COMPLETE" else None)
    assert (Path("runs") / "s.sweep" / "sweep.json").is_file()


def test_a_sweep_runs_in_any_thread_and_under_nohup(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path("runs") / "s.sweep").mkdir(parents=True)
    tried = sweep.Sweep(Path("runs") / "s.sweep", {"recipe": "tiny", "over": "lora_r=4,8", "seed": 42}, None, 1)
    tried.stopping = 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(tried.run).result(60) == launch.INTERRUPTED
    before, heard = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    try:
        monkeypatch.setattr(tried, "left", lambda: heard.append(signal.getsignal(signal.SIGHUP)) or iter(()))
        assert (tried.run(), heard) == (launch.INTERRUPTED, [signal.SIG_IGN])
    finally:
        signal.signal(signal.SIGHUP, before)


def interrupt_when(there: Callable[[], bool]) -> None:
    def wait() -> None:
        while threading.main_thread().is_alive() and not there():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.usefixtures("forks")
def test_a_grid_goes_on_where_it_was_stopped_and_its_best_becomes_a_recipe(
    project: Path, capfd: pytest.CaptureFixture
) -> None:
    """Stopped as by Ctrl-C in the first of two trials; then both are trained side by side."""
    asked: dict[str, Any] = {"overrides": ["max_steps=6 logging_steps=2"], "run_name": "grid"}
    interrupt_when(lambda: Path("runs/grid-t000/log.jsonl").exists())
    code, facts = sweep.sweep("tiny", "learning_rate=1e-9,1e-2", **asked)
    assert (code, [each["state"] for each in facts["trials"]]) == (launch.INTERRUPTED, ["interrupted"])
    again = "make sweep RECIPE=tiny OVER=learning_rate=1e-9,1e-2 NAME=grid SET='max_steps=6 logging_steps=2'"
    assert f"2 trials: {again}" in capfd.readouterr().out
    first = Run.open("grid-t000")
    assert first.facts()["status"] == "interrupted"
    with pytest.raises(InputError, match="was another sweep, with another over; choose another NAME="):
        sweep.sweep("tiny", "learning_rate=1e-9,1e-3", **asked)
    with pytest.raises(InputError, match="was another sweep, with another overrides, lora_r; choose"):
        sweep.sweep("tiny", "learning_rate=1e-9,1e-2", overrides=[*asked["overrides"], "lora_r=4"], run_name="grid")

    out = Path("recipes/best.yaml")
    code, facts = sweep.sweep("tiny", "learning_rate=1e-9,1e-2", **asked, jobs=2, out=out)
    said = capfd.readouterr().out
    assert code == launch.FINISHED, said
    assert [each["values"]["learning_rate"] for each in facts["trials"]] == [1e-2, 1e-9]
    assert [each["state"] for each in facts["trials"]] == ["finished", "finished"]
    assert first.facts()["resumed"] and first.facts()["status"] == "finished"
    for each in facts["trials"]:
        run = Run.open(each["run"])
        assert run.facts()["overrides"]["learning_rate"] == each["values"]["learning_rate"]
        assert each["eval_loss"] == min(entry["eval_loss"] for entry in run.facts()["measured"]["eval_loss"])
    assert json.loads(Path("runs/grid.sweep/sweep.json").read_text()) == facts
    assert "grid-t001: eval loss " in said and "finished   6 steps" not in said
    assert "finished   6 steps" in Path("runs/grid.sweep/grid-t001.txt").read_text()
    assert "the lowest of 2 eval losses flatters itself" in said
    beyond = "make sweep RECIPE=tiny OVER=learning_rate=0.01,0.1 NAME=grid-2 SET='max_steps=6 logging_steps=2'"
    assert (
        f"the best has the largest learning_rate that was tried (0.01), so a better one may lie beyond: {beyond}"
        in said
    )
    assert "page       runs/grid.sweep/sweep.html" in said
    page = html.unescape(Path("runs/grid.sweep/sweep.html").read_text())
    assert beyond in page and '"../grid-t001/report.html"' in page and ">0.01<" in page
    # As the trial was, and two files tell the whole story.
    best, trial = (
        recipes.load("best"),
        recipes.load("tiny", recipes.parse_overrides("learning_rate=1e-2 max_steps=6 logging_steps=2")),
    )
    assert {key: best[key] for key in trial.values} | {"description": ""} == {
        key: trial[key] for key in trial.values
    } | {"description": ""}
    assert best.base is not None and best.base.name == "default"
    # Everything is there, so nothing is trained again.
    with pytest.raises(InputError, match=r"recipes/best.yaml exists and is never overwritten"):
        sweep.sweep("tiny", "learning_rate=1e-9,1e-2", **asked, out=out)
    began = time.monotonic()
    assert sweep.sweep("tiny", "learning_rate=1e-9,1e-2", **asked)[1]["trials"] == facts["trials"]
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("forks")
def test_a_trial_that_is_worse_than_the_others_is_stopped_early(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The first trial learns and is finished; the second hardly does, and its run could be resumed."""
    monkeypatch.setattr(sweep, "BEFORE_PRUNING", 1)
    monkeypatch.setattr(sweep, "SECONDS", 0.05)
    steps = "max_steps=20 eval_strategy=steps save_strategy=steps eval_steps=2 save_steps=2"
    # With this seed Optuna begins with the first value.
    words = [f"{steps} early_stopping_patience=0 logging_steps=2 seed=44"]
    code, facts = sweep.sweep("tiny", "learning_rate=1e-2,1e-9,2e-9", trials=2, overrides=words, run_name="study")
    said = capfd.readouterr().out
    assert code == launch.FINISHED, said
    good, bad = facts["trials"]
    assert (good["state"], good["values"], good["evaluations"]) == ("finished", {"learning_rate": 1e-2}, 10)
    assert bad["state"] == "pruned" and bad["eval_loss"] > good["eval_loss"]
    assert bad["evaluations"] < 10 and bad["values"]["learning_rate"] < 1e-8
    assert "1 finished, 1 pruned" in Path("runs/study.sweep/sweep.html").read_text()
    assert "pruned     study-t001: eval loss" in said
    run = Run.open("study-t001")
    assert run.facts()["status"] == "interrupted"
    assert run.facts()["measured"]["step"] < 20 and not run.adapter.exists()
    # The same command has nothing left to do.
    monkeypatch.setattr(sweep.Sweep, "_start", lambda self, trial: pytest.fail("nothing is left to train"))
    again = sweep.sweep("tiny", "learning_rate=1e-2,1e-9,2e-9", trials=2, overrides=words, run_name="study")
    assert again == (code, facts)
