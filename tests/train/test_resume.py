"""A run that was stopped, killed or damaged: it goes on as if nothing had happened, or says what is lost."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from exactness import everything, same, timeless
from finished import restate
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTTrainer

from sft_recipes.data import preparation
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.runs import checkpoints
from sft_recipes.runs.run import Run
from sft_recipes.train import train as worker
from sft_recipes.train.trainer import Trainer

pytest_plugins = ["finished"]

Train = Callable[..., Run]

# Evaluated, and saved, twice an epoch of eight steps; the loss is logged at other steps than it is saved.
OFTEN = {
    "num_train_epochs": 2,
    "logging_steps": 3,
    "eval_on_start": True,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
}
# As OFTEN, with an accuracy that such steps do not raise, so that the first evaluation stays the best.
FIRST_IS_BEST = OFTEN | {
    "max_steps": 12,
    "learning_rate": 1e-8,
    "metric_for_best_model": "eval_mean_token_accuracy",
    "early_stopping_patience": 0,
}
NO_EVALUATION = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
}


def kill(run: Run, step: int) -> None:
    """Leave what a kill leaves of a finished run right after it saved that step."""
    shutil.rmtree(run.adapter)
    for path in run.directory.glob("checkpoint-*"):
        if checkpoints.step_of(path) > step:
            shutil.rmtree(path)
    restate(run, status="running", measured=None)


def back(run: Run, **how: bool) -> Run:
    """The run, put back to its newest whole checkpoint, with its rows prepared."""
    prepared(run)
    launch.rewind(run, **how)
    return run


def prepared(run: Run) -> None:
    """Its rows, in the project of this test."""
    preparation.prepare(**run.facts()["data"]["source"], cache=preparation.CACHE)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Any], Any]) -> None:
    """Have the next runs do something with the model right before this step."""

    class Act(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == step:
                act(model)

    with_callback(monkeypatch, Act())


def in_evaluation(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Any], Any]) -> None:
    """Have the next runs do something with the model while they are evaluated after this step."""

    class Act(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == step:
                act(model)

    with_callback(monkeypatch, Act())


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:

    built = Trainer.__init__

    def build(self: Any, *arguments: Any, callbacks: list, **kwargs: Any) -> None:
        built(self, *arguments, callbacks=[*callbacks, callback], **kwargs)

    monkeypatch.setattr(Trainer, "__init__", build)


@pytest.mark.promise(
    "exact-resume", "killed after a save, and resumed: packed, within an epoch, early stopping, at its end"
)
@pytest.mark.parametrize(
    ("settings", "step", "trained"),
    [
        pytest.param(OFTEN | {"packing": True, "max_length": 64, "lora_dropout": 0.05}, 8, 6, id="packed"),
        pytest.param(OFTEN | {"max_steps": 12}, 8, 4, id="between-logging-steps"),
        pytest.param(OFTEN | {"max_steps": 12}, 12, 0, id="at-its-end-within-an-epoch"),
        pytest.param({"num_train_epochs": 4, "learning_rate": 1e-9}, 16, 8, id="early-stopping"),
        pytest.param({"num_train_epochs": 4, "learning_rate": 1e-9}, 24, 0, id="stopped-early"),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    finished: Train, train_here: Train, settings: dict[str, Any], step: int, trained: int
) -> None:
    """Adapter, optimizer, schedule, random numbers, log, totals, and no step more than it had left."""
    run = finished("whole", **settings)
    uninterrupted = everything(run)
    kill(run, step)
    train_here(run=back(run))
    same(everything(run), uninterrupted)
    before, after = run.facts()["launches"]
    assert (before["from_step"], after["from_step"], after["to_step"]) == (0, step, step + trained)


@pytest.mark.promise("exact-resume", "SIGTERM between two logging steps, before and within an evaluation, and resumed")
@pytest.mark.parametrize(
    ("settings", "step", "moment"),
    [
        # Saved where no checkpoint was due, with half of what the next line of the log sums up.
        pytest.param(OFTEN | {"max_steps": 12}, 7, at_step, id="between-logging-steps"),
        # Saved before the evaluation at the end of the epoch, which is the one that early stopping counts last.
        pytest.param({"num_train_epochs": 4, "learning_rate": 1e-9}, 8, at_step, id="before-an-evaluation"),
        # Not evaluated to its end, however long that would take; dropout draws what the evaluation would have drawn.
        pytest.param(
            OFTEN | {"max_steps": 12, "per_device_eval_batch_size": 2, "lora_dropout": 0.05},
            8,
            in_evaluation,
            id="within-an-evaluation",
        ),
        pytest.param(
            {"num_train_epochs": 2, "per_device_eval_batch_size": 2}, 16, in_evaluation, id="within-the-last"
        ),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    finished: Train,
    train_here: Train,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    step: int,
    moment: Callable[..., None],
) -> None:
    uninterrupted = everything(finished("whole", **settings))
    shutil.rmtree("runs/whole")
    with monkeypatch.context() as context:
        moment(context, step, lambda model: os.kill(os.getpid(), signal.SIGTERM))
        # Of the same name, since that of its directory is part of the trainer's state.
        run = train_here(name="whole", **settings)
    assert run.facts()["status"] == "interrupted"
    assert checkpoints.newest_whole(run)[0] == checkpoints.at(run.directory, step)
    train_here(run=back(run))
    ended = everything(run)
    if step == run.facts()["measured"]["step"]:
        # No step was left, so the last checkpoint is of before the evaluation, which draws random numbers.
        for found in (ended, uninterrupted):
            del found["state"], found["rng_state.pth"]
    same(ended, uninterrupted)
    launches = run.facts()["launches"]
    assert [(each["from_step"], each["to_step"]) for each in launches] == [(0, step), (step, launches[1]["to_step"])]
    measured = run.facts()["measured"]
    # Of the first launch up to its checkpoint, and not what ending it took.
    assert launches[1]["seconds"] < measured["training_seconds"] <= sum(each["seconds"] for each in launches) + 0.02


@pytest.mark.promise("exact-resume", "killed before the first save, and resumed")
def test_a_run_that_died_before_its_first_checkpoint_logs_nothing_twice(finished: Train, train_here: Train) -> None:
    settings = OFTEN | {"max_steps": 12}
    run = finished("whole", **settings)
    uninterrupted = everything(run)
    kill(run, 0)
    train_here(run=back(run))
    same(everything(run), uninterrupted)


@pytest.mark.promise("damage", "log.jsonl with other bytes, when the run is resumed")
def test_a_damaged_log_is_made_again_from_the_checkpoint(finished: Train, capsys: Any) -> None:
    run = finished("whole", **OFTEN | {"max_steps": 12})
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    kill(run, 8)
    run.log.write_bytes(run.log.read_bytes().replace(b"loss", b"\xff\xfe", 1))
    launch.rewind(run)
    assert "log.jsonl is damaged; its lines are taken from the checkpoint" in " ".join(capsys.readouterr().out.split())
    again = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert timeless(again) == timeless([line for line in lines if line["step"] <= 8])


@pytest.mark.promise("clock", "the clock set back by a day between two steps")
def test_a_clock_that_is_set_back_changes_no_total(
    project: Path, launch_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock, behind = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() - behind[0])
    with monkeypatch.context() as context:
        at_step(context, 5, lambda model: behind.__setitem__(0, 86_400.0))
        code, run = launch.train("tiny", run_name="back")
    assert code == launch.FINISHED
    facts, lines = run.facts(), [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, 9)]
    assert lines[-1]["time"] < lines[0]["time"] - 80_000
    assert all(line["tokens_per_second"] > 0 for line in lines if "tokens_per_second" in line)
    measured = facts["measured"]
    seconds = [facts["seconds"], facts["launches"][0]["seconds"], measured["training_seconds"]]
    assert all(0 < each < 1000 for each in (*seconds, measured["tokens_per_second"] / 1000))
    assert measured["step"] == 8 and "-" not in capsys.readouterr().out.partition("finished ")[2].partition("\n")[0]


def test_an_uninterrupted_run_takes_the_steps_of_stock_trl(
    finished: Train, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("whole", **OFTEN | {"max_steps": 12})
    prepared(run)
    # Stock evaluations give the mean of their batches, so that over all tokens where all rows are one batch.
    recipe = yaml.safe_load(run.recipe.read_text()) | {"output_dir": "stock", "run_name": "stock"}
    recipe["per_device_eval_batch_size"] = 8
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    # TRL's own, which knows nothing of our keys.
    monkeypatch.setattr(
        worker, "Trainer", lambda mask_empty_reasoning, sort_within_batch, tokenised, **its: SFTTrainer(**its)
    )
    stock = worker.build(recipe)
    worker.correct(stock, recipe, run.facts()["own"])
    stock.train()
    stock.save_model("stock")
    logged = timeless([json.loads(line) for line in run.log.read_text().splitlines()])
    for theirs, ours in zip(timeless(stock.state.log_history), logged, strict=True):
        found = {key: value for key, value in theirs.items() if key.startswith("eval_")}
        assert {key: ours[key] for key in found} == pytest.approx(found, rel=1e-3)
        assert {key: ours[key] for key in ours.keys() - found} == {key: theirs[key] for key in theirs.keys() - found}
    theirs, ours = (load_file(path / "adapter_model.safetensors") for path in (Path("stock"), run.adapter))
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())


# Numbers that are none


@pytest.mark.promise("nan", "a NaN in the weights between two logging steps, and where no step is logged")
@pytest.mark.parametrize("logging_steps", [3, 100])
def test_weights_that_are_not_finite_are_never_saved(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, logging_steps: int
) -> None:
    """Between two logging steps, and where no step is logged at all."""

    def poison(model: Any) -> None:
        next(p for name, p in model.named_parameters() if "lora_B" in name).data.view(-1)[-1] = float("nan")

    at_step(monkeypatch, 8, poison)
    settings = OFTEN | NO_EVALUATION | {"save_total_limit": 1, "logging_steps": logging_steps}
    with pytest.raises(FloatingPointError, match=r"in the weights after step 8: .*; checkpoint-4 is whole"):
        train_here(name="poisoned", **settings)
    run = Run(Path("runs/poisoned"))
    assert (run.facts()["status"], run.facts()["diverged"]) == ("failed", True)
    assert [path.name for path in run.directory.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not run.adapter.exists()
    assert run.facts()["launches"][0]["to_step"] == 8


@pytest.mark.promise("nan", "an infinity in the weights of a full fine-tune that saves and logs nothing")
def test_a_run_whose_weights_are_not_finite_does_not_finish(
    train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights trained, none saved on the way, none logged."""

    def poison(model: Any) -> None:
        next(model.parameters()).data.view(-1)[0] = float("inf")

    at_step(monkeypatch, 2, poison)
    settings = {"use_peft": False, "load_in_4bit": False, "save_strategy": "no", "logging_steps": 100, "max_steps": 2}
    settings |= NO_EVALUATION
    with pytest.raises(FloatingPointError, match=r"after step 2: .* no checkpoint is whole"):
        train_here(name="poisoned", **settings)
    assert Run(Path("runs/poisoned")).facts()["status"] == "failed"
    assert not Path("runs/poisoned/adapter").exists()


@pytest.mark.promise("nan", "an infinity in the optimizer's state")
def test_a_state_of_the_optimizer_that_is_not_finite_is_found(
    train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Trainer.check_finite

    def spoil(self: Trainer) -> None:
        [*self.optimizer.state.values()][-1]["exp_avg_sq"].view(-1)[0] = float("inf")
        check(self)

    monkeypatch.setattr(Trainer, "check_finite", spoil)
    with pytest.raises(FloatingPointError, match="in the optimizer's state after step 4"):
        train_here(name="spoilt", **OFTEN)


# Damage to checkpoints


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "forgotten": lambda path: forget(path),
}
FILES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def forget(path: Path) -> None:
    """Neither there nor in the manifest."""
    path.unlink()
    manifest = json.loads((path.parent / checkpoints.MANIFEST).read_text())
    del manifest["files"][path.name]
    (path.parent / checkpoints.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.promise(
    "damage", "each file of the newest and the best checkpoint truncated, flipped by a bit, zeroed, deleted, forgotten"
)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_newest_and_best_is_found_before_anything_is_trained(
    finished: Train, name: str, record_property: Any
) -> None:
    whole = finished("whole", **FIRST_IS_BEST)
    assert whole.facts()["measured"]["kept_step"] == 4
    kill(whole, 12)
    for how, harm in HARM.items():
        run = Run(Path(shutil.copytree(whole.directory, f"runs/newest-{how}")))
        harm(run.directory / "checkpoint-12" / name)
        found, skipped = checkpoints.newest_whole(run)
        assert found == run.directory / "checkpoint-8" and name in skipped[0], how
        run = Run(Path(shutil.copytree(whole.directory, f"runs/best-{how}")))
        harm(run.directory / "checkpoint-4" / name)
        log = run.log.read_bytes()
        with pytest.raises(InputError, match=rf"checkpoint-4 holds the best weights .*{name}.* FORGET_BEST=1"):
            launch.rewind(run)
        assert (run.log.read_bytes(), run.facts()["status"]) == (log, "running")
        record_property("injected", 2)


@pytest.mark.promise("damage", "the best checkpoint deleted while the run goes on")
def test_a_best_checkpoint_that_is_lost_is_said_and_forgotten_only_when_asked(
    finished: Train, train_here: Train, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = finished("whole", **FIRST_IS_BEST)
    kill(run, 8)
    with pytest.raises(InputError, match="has lost no best checkpoint; continue it without FORGET_BEST"):
        launch.rewind(run, forget_best=True)
    back(run)
    at_step(monkeypatch, 10, lambda model: shutil.rmtree(run.directory / "checkpoint-4"))
    with pytest.raises(checkpoints.DamagedBest, match=r"checkpoint-4 holds the best weights .*: it is not there"):
        train_here(run=run)
    facts = run.facts()
    assert (facts["status"], facts["diverged"], run.adapter.exists()) == ("failed", False, False)
    assert "FORGET_BEST=1" in facts["error"]
    capsys.readouterr()
    assert launch.conclude(run, facts) == launch.FAILED
    said = capsys.readouterr()
    assert said.err.count("FORGET_BEST=1") == 1 and not said.out
    # What fails for another reason says so beside it.
    launch.conclude(run, facts | {"error": "out of luck"})
    assert "FORGET_BEST=1" in capsys.readouterr().out
    launch.conclude(run, facts | {"error": "in the weights", "diverged": True})
    assert not capsys.readouterr().out
    with pytest.raises(InputError, match=r"checkpoint-4 holds the best weights .*: it is not there"):
        launch.rewind(run)
    # At its end nothing is left to be evaluated: the best is that of the checkpoint itself.
    train_here(run=back(run, forget_best=True))
    measured = run.facts()["measured"]
    assert (run.facts()["status"], measured["step"], measured["kept_step"]) == ("finished", 12, 12)
    assert run.facts()["resumed"][-1]["forget_best"] is True
    found, _ = checkpoints.newest_whole(run)
    assert found == run.directory / "checkpoint-12"
    last, ours = (load_file(path / "adapter_model.safetensors") for path in (found, run.adapter))
    assert all(torch.equal(last[key], value) for key, value in ours.items())


@pytest.mark.promise("kill", "SIGKILL at each file that a save opens, renames or deletes, with save_total_limit 1")
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    """With a limit of one: at each file that is opened, renamed or deleted, a process of its own is killed."""
    save, moments = Trainer._save_checkpoint, []

    def killed(self: Trainer, model: Any, trial: Any) -> None:
        if self.state.global_step == 8:
            shutil.copytree(self.run.directory, tmp_path / "before")
            while dies(lambda: save(self, model, trial), self.run.directory, len(moments)):
                found, _ = checkpoints.newest_whole(self.run)
                assert found is not None
                moments.append(found.name)
                shutil.rmtree(self.run.directory)
                shutil.copytree(tmp_path / "before", self.run.directory)
        save(self, model, trial)

    monkeypatch.setattr(Trainer, "_save_checkpoint", killed)
    settings = {"load_best_model_at_end": False, "early_stopping_patience": 0, "save_total_limit": 1, "max_steps": 8}
    run = train_here(name="killed", **OFTEN | settings)
    assert [path.name for path in run.directory.glob("checkpoint-*")] == ["checkpoint-8"]
    # The old one until the new one is sealed, and from then on the new one.
    assert len(moments) > 20 and {*moments} == {"checkpoint-4", "checkpoint-8"} and moments == sorted(moments)
    record_property("injected", len(moments))


def dies(work: Callable[[], None], directory: Path, moment: int) -> bool:
    """Whether a copy of this process is killed at that moment of some work, rather than coming to its end."""
    child = os.fork()
    if child == 0:
        left = moment

        def watch(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
                left -= str(directory) in str(arguments[0])
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
