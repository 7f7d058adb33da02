"""Two real processes on a CPU, with real NF4: the shipped topologies, made small."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from conftest import alpaca_rows, write_rows
from finished import restate
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from sft_recipes.cli import main
from sft_recipes.launch.launch import INTERRUPTED
from sft_recipes.runs.run import Run
from sft_recipes.train import train as worker

pytest_plugins = ["finished", "forks"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone", "forks")]

COMMAND = [sys.executable, "-m", "sft_recipes"]


@pytest.fixture
def on_cpu(project: Path) -> Path:
    """The project, with each shipped topology also as NAME_cpu: the same file on two CPU processes."""
    for name in ("ddp", "zero2", "zero3"):
        config = yaml.safe_load((project / "accelerate_configs" / f"{name}.yaml").read_text())
        config |= {"use_cpu": True, "num_processes": 2}
        (project / "accelerate_configs" / f"{name}_cpu.yaml").write_text(yaml.safe_dump(config))
    # As these compute, and ZeRO-3 stores what is quantised.
    tiny = project / "recipes" / "tiny.yaml"
    tiny.write_text(tiny.read_text().replace("dtype: float32\nbf16: false", "dtype: bfloat16\nbf16: true"))
    return project


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """What a command says, which is given here and starts real processes."""

    def run(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        found, said = main([*arguments]), "".join(capfd.readouterr())
        assert found == code, said
        return said

    return run


def on_two_machines(name: str, run: Callable[..., str]) -> str:
    """What machine 0 says of a run that is resumed on two, both of them this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["resume", name, "--machines", "2", "--head", f"127.0.0.1:{port}"]
    other = subprocess.Popen([*COMMAND, *given, "--machine", "1"], stdout=subprocess.PIPE, text=True)
    said = run(*given)
    assert other.communicate(timeout=60)[0].startswith("topology   machine 1 of 2: ") and other.returncode == 0
    machines = [(each["machine"], each["processes"]) for each in facts(name)["in_effect"]["run"]["hosts"]]
    assert machines == [(0, 1), (1, 1)]
    return said


def facts(name: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/run.json").read_text())


def adapter(name: str) -> dict[str, torch.Tensor]:
    return load_file(f"runs/{name}/adapter/adapter_model.safetensors")


def kept_loss(name: str) -> float:
    measured = facts(name)["measured"]
    return next(each["eval_loss"] for each in measured["eval_loss"] if each["step"] == measured["kept_step"])


def evaluated_alone(run: Run) -> float:
    """The eval loss of what a run left, in one process and one batch."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(datasets.config, "HF_DATASETS_CACHE", str(run.directory / "cache"))
        trainer = worker.build(run.values() | {"per_device_eval_batch_size": 17})
    set_peft_model_state_dict(trainer.model, adapter(run.directory.name))
    return trainer.evaluate()["eval_loss"]


def interrupt(*arguments: str, name: str, at_step: int) -> str:
    """Train for a reader of one line, as `head -1`, and send SIGTERM to all processes once a step is logged, as a
    scheduler does; what the run's own file has of it."""
    process = subprocess.Popen(
        [*COMMAND, "train", *arguments, "--name", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    log = Path(f"runs/{name}/log.jsonl")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and any(json.loads(line)["step"] >= at_step for line in log.read_text().splitlines()):
            break
        time.sleep(0.05)
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        each.send_signal(signal.SIGTERM)
    code, said = process.wait(timeout=300), Run(Path("runs") / name).output.read_text()
    assert code == INTERRUPTED, said
    return said


@pytest.mark.parametrize(
    ("accel", "kind", "stage"),
    [
        pytest.param(
            *("ddp", "MULTI_CPU", None),
            marks=pytest.mark.promise("exact-resume", "two processes, killed in the second epoch, and resumed"),
        ),
        pytest.param(
            *("zero2", "DEEPSPEED", 2),
            marks=[
                pytest.mark.promise("exact-resume", "two processes under ZeRO-2, stopped, and resumed"),
                pytest.mark.promise("stop", "SIGTERM to the command, accelerate and both training processes at once"),
                pytest.mark.promise("terminal", "`train | head -1`"),
            ],
        ),
        ("zero3", "DEEPSPEED", 3),
    ],
)
def test_two_processes_learn_what_one_learns_and_resume_bit_for_bit(
    on_cpu: Path,
    finished: Callable[..., Run],
    run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    accel: str,
    kind: str,
    stage: int | None,
) -> None:
    cache = on_cpu / "cache"
    # Nothing is compiled, and so no build that was killed is waited for.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(on_cpu / "extensions"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    # Held-out rows that fill no batch of two processes, with answers of other lengths than those that are learned.
    held_out = [row | {"output": "odd " * length} for length, row in enumerate(alpaca_rows(17, seed=2))][1:]
    write_rows(on_cpu / "data" / "validation.jsonl", [*alpaca_rows(1, seed=3), *held_out])
    # The last of each epoch is alone in its step, and accelerate fills both batches with others.
    write_rows(on_cpu / "data" / "train.jsonl", alpaca_rows(25, seed=1))
    # Once with the rows of a step sorted, which changes nothing of it.
    batch, by_length = ("2", " sort_within_batch=true") if stage is None else ("4", "")
    words = f"num_train_epochs=2 per_device_train_batch_size={batch}{by_length}"
    arguments = ["tiny", "--accel", f"{accel}_cpu", "--set", words]

    # First, for what is asked of the model here need not be asked of a process of its own.
    finished("single", num_train_epochs=2)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    said = run("train", *arguments, "--name", "whole")
    assert not (on_cpu / "extensions").exists()
    assert f"{batch} per device x 2 processes x {4 // int(batch)} accumulation = 8 rows a step" in said
    assert said.count("finished") == 1
    tokenised = {path: path.stat().st_mtime_ns for path in on_cpu.glob(".cache/data/*/.tokens/*/*.arrow")}
    assert tokenised and facts("whole")["in_effect"]["data"]["rows_compared"] == 25 + 17

    # The same global batch on another topology: the same steps, and a loss that differs by rounding only.
    effect, alone = facts("whole")["in_effect"], facts("single")["in_effect"]
    assert effect["run"]["distributed_type"] == kind
    assert (effect["run"]["world_size"], effect["run"]["zero_stage"]) == (2, stage)
    assert effect["run"]["effective_batch"] == alone["run"]["effective_batch"] == 8
    assert effect["run"]["max_steps"] == alone["run"]["max_steps"] == 8
    assert effect["base"] == alone["base"]
    assert effect["base"]["four_bit_layers"] == 14
    assert effect["adapter"]["trainable_parameters"] == alone["adapter"]["trainable_parameters"]
    losses = [facts(name)["measured"]["eval_loss"][-1]["eval_loss"] for name in ("whole", "single")]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    logs = [
        [entry["loss"] for entry in Run(Path("runs") / name).log_entries() if "loss" in entry]
        for name in ("whole", "single")
    ]
    assert logs[0] == pytest.approx(logs[1], abs=0.02)
    assert {name: tensor.shape for name, tensor in adapter("whole").items()} == {
        name: tensor.shape for name, tensor in adapter("single").items()
    }
    # Under ZeRO-3 no process has a whole model to load the adapter into.
    reloaded = facts("whole")["measured"]["adapter"]["reloaded"]
    assert reloaded == ("weights" if stage == 3 else "logits")
    if stage == 3:
        # Resuming is the same code as under ZeRO-2, and each launch costs the tests a quarter of a minute.
        return

    whole = adapter("whole")
    if stage is None:
        assert evaluated_alone(Run(Path("runs/whole"))) == pytest.approx(kept_loss("whole"), rel=1e-3)
        # What a kill in the second epoch leaves; that all processes stop together is shown under ZeRO-2.
        name = "whole"
        for path in ("adapter", "checkpoint-8"):
            shutil.rmtree(f"runs/whole/{path}")
        restate(Run(Path("runs/whole")), status="interrupted")
    else:
        name = "parts"
        said = interrupt(*arguments, name=name, at_step=2)
        assert "training   step 2/" in said
        assert "sft-recipes resume parts" in said
    assert facts(name)["status"] == "interrupted"
    assert not Path(f"runs/{name}/adapter").exists()
    # Under DDP by two machines with a process each, which are no other run.
    said = run("resume", name) if stage else on_two_machines(name, run)
    assert "continues from checkpoint-4" in said if stage is None else "continues from checkpoint-" in said
    assert adapter(name).keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in adapter(name).items())
    steps = [json.loads(line) for line in Path(f"runs/{name}/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps if "loss" in entry] == list(range(1, 9))
    # The rows were tokenised once, before the processes were started: both, and those of later runs, read the files.
    assert {path: path.stat().st_mtime_ns for path in on_cpu.glob(".cache/data/*/.tokens/*/*.arrow")} == tokenised
    assert not [*cache.rglob("*.arrow")]


def test_a_refusal_on_all_processes_is_one_message_and_leaves_nothing(on_cpu: Path, run: Callable[..., str]) -> None:
    said = run(
        "train", "tiny", "--accel", "ddp_cpu", "--name", "no", "--set", "model_name_or_path=no-such/model", code=2
    )
    assert said.count("error: ") == 1
    assert "no-such/model (revision main) cannot be loaded" in said
    assert "Traceback" not in said
    assert not Path("runs/no").exists()
