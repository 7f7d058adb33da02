"""`tune` on a tiny model: real steps, the same losses, and a winner that `execution: auto` takes where it was had."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState

from sft_recipes.benchmark import candidate, tune
from sft_recipes.errors import InputError
from sft_recipes.plan import plan, tuning

# Few candidates: what is left to choose is whether rows are joined.
WORDS = [
    *("per_device_train_batch_size=8", "activation_checkpointing=false", "optim=adamw_torch_fused", "max_length=512"),
    *("load_in_4bit=false", "lora_dropout=0"),
]


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Candidates are measured in this process, which has torch imported already; what was asked."""
    asked: list[dict[str, Any]] = []
    start = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "sft_recipes.benchmark.candidate" not in command:
            return start(command, **options)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        asked.append(json.loads(options["input"]))
        return subprocess.CompletedProcess(command, 0, json.dumps(candidate.measured(asked[-1])), "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tune, "TIMED", 2)
    monkeypatch.setattr(tune, "ALONE", tune.ALONE | {"max_steps": 4})
    yield asked


def test_candidates_learn_the_same_and_the_winner_is_taken(
    here: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("recipes/mine.yaml").write_text(
        Path("recipes/tiny.yaml").read_text().replace("activation_checkpointing: false\n", "")
        + "".join(f"{word.replace('=', ': ')}\n" for word in WORDS)
    )
    found = tune.tune("mine")
    names = [each["name"] for each in found["measured"]]
    assert names == ["as written", "by estimate", "micro-batch of 2", "joined rows"] and len(here) == 5
    assert all(each["same"] and len(each["losses"]) == 4 for each in found["measured"])
    assert [each["rows"] for each in found["measured"]] == [16] * 4
    assert max(each["apart"] for each in found["measured"]) < tune.TOLERANCE["float32"]
    table = dict(tune.render(found))["candidates"]
    assert "tokens/s" in table and table.count("yes") == 4
    # A way that was faster is taken, with its place and its gain, and nowhere else.
    case = tune.jobs.resolve("mine", overrides=["execution=auto"]).case_as_written
    tuning.remember(case, {"per_device_train_batch_size": 4}, 1200.0, 1000.0)
    executed = plan.plan("mine", overrides=["execution=auto"])["execution"]
    assert [(each["key"], each["value"]) for each in executed["chosen"]] == [("per_device_train_batch_size", 4)]
    assert executed["chosen"][0]["reason"].startswith("make tune measured 1,200 tokens/s on 20")
    assert executed["worth"].startswith("1.20 times")
    for changed in ("lora_r=4", "max_length=50", "global_batch_size=16"):
        other = plan.plan("mine", overrides=["execution=auto", changed])["execution"]["chosen"]
        assert "make tune" not in str(other)
    # What is said nearer is kept, and then the rest was never measured with it.
    assert "make tune" not in str(
        plan.plan("mine", overrides=["execution=auto", "per_device_train_batch_size=2"])["execution"]
    )
    (kept,) = Path(".cache/execution").iterdir()
    kept.write_text(kept.read_text()[:50])
    assert "make tune" not in str(plan.plan("mine", overrides=["execution=auto"])["execution"]["chosen"])


def test_a_candidate_that_learns_otherwise_or_fails_never_wins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(job: Any, values: dict[str, Any]) -> dict[str, Any]:
        rate = 1000.0 + 500 * len(values)
        if values.get("per_device_train_batch_size") == 2:
            return {"error": "OutOfMemoryError: CUDA out of memory"}
        rate *= drift if not values and seen else 1
        seen.append(values)
        losses = [1.0, 0.9] if not values.get("padding_free") else [1.0, 0.8]
        return {"tokens_per_second": rate, "rows": 16, "losses": losses, "peak_memory_bytes": 2**30}

    seen: list[Any] = []
    drift = 1.1
    monkeypatch.setattr(tune, "_measured", measured)
    found = tune.tune("tiny")
    by_name = {each["name"]: each for each in found["measured"]}
    assert by_name["joined rows"]["same"] is False and by_name["micro-batch of 2"]["same"] is False
    assert found["winner"] == "by estimate"
    table = dict(tune.render(found))["candidates"]
    assert "no, 11 % apart" in table and "failed" in table
    assert found["file"] and "differed from itself by 10 %" in dict(tune.render(found))["again"]
    # Where what is written differs from itself as much as that, nothing is told from it.
    Path(found["file"]).unlink()
    seen, drift = [], 2.5
    found = tune.tune("tiny")
    assert found["file"] is None and not [*Path(".cache/execution").iterdir()]
    assert dict(tune.render(found))["winner"].startswith("none: this machine is busy")


def test_what_cannot_be_measured_is_refused(project: Path) -> None:
    Path("accelerate_configs/two.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    with pytest.raises(InputError, match="two has 2 processes, and steps are measured in one; choose ACCEL=cpu"):
        tune.tune("tiny", accel="two")
