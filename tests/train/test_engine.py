"""What DeepSpeed reads of a checkpoint that may be anybody's."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from sft_recipes.environment import quiet_environment

LOAD = """
import sys
from sft_recipes.train import engine
engine.allow_its_state()
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
torch.save({"loss_scaler": LossScaler(scale=8), "step": torch.ones(2)}, "own.pt")
print(TorchCheckpointEngine().load("own.pt")["loss_scaler"].cur_scale)
TorchCheckpointEngine().load("foreign.pt")
"""


class Runs:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


@pytest.mark.promise("foreign-run", "code in a checkpoint of DeepSpeed")
@pytest.mark.slow
def test_deepspeed_reads_its_own_state_and_runs_nobody_s_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"loss_scaler": Runs()}, "foreign.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=quiet_environment(on_cpu=True), capture_output=True, text=True
    )
    assert "8" in done.stdout.splitlines()[-1], done.stderr
    assert pickle.UnpicklingError.__name__ in done.stderr
    assert not Path("executed").exists()
    # As it would be read otherwise.
    torch.load("foreign.pt", weights_only=False)
    assert Path("executed").exists()
