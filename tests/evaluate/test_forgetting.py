"""What a model lost: tasks of lm-evaluation-harness on base and tuned model, paired, without a network.

What asks a model needs lm-evaluation-harness, which the tests do not install: `make test-forgetting` does.
"""

import importlib.util
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import FLOAT32, bare
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.evaluate import forgetting, harness
from sft_recipes.report import report
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

Finished = Callable[..., Run]
INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed; make test-forgetting")


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The work of the other process is done in this one, which has torch imported already."""

    class Done:
        def __init__(self, command: list[str]) -> None:
            self.code = harness.main(Path(command[-1]))

        def wait(self) -> int:
            return self.code

    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return Done(command) if "sft_recipes.evaluate.harness" in command else start(command, **options)

    monkeypatch.setattr(forgetting.subprocess, "Popen", popen)
    yield


def values(right: int, rows: int = 200) -> dict[str, float]:
    return {str(number): float(number < right) for number in range(rows)}


def task(base: int, tuned: int, **facts: Any) -> dict[str, Any]:
    return {
        "metric": "acc",
        "higher_is_better": True,
        "values": {"base": values(base), "tuned": values(tuned)},
        **facts,
    }


def test_differences_are_paired_and_real_by_holm_over_the_tasks() -> None:
    tasks = {"lost": task(150, 120), "same": task(100, 100), "gained": task(50, 90), "chance": task(100, 98)}
    found = {each["task"]: each for each in forgetting.compared(tasks)}
    assert {name: each["outcome"] for name, each in found.items()} == {
        "lost": "lost",
        "same": "none",
        "gained": "gained",
        "chance": "none",
    }
    lost = found["lost"]
    assert lost["difference"]["value"] == pytest.approx(-0.15) and lost["difference"]["high"] < 0
    # The same rows apart would leave this difference in doubt: 75 % and 60 % have intervals of 6 % on either side.
    assert lost["difference"]["high"] - lost["difference"]["low"] < 0.11
    assert lost["p_holm"] == pytest.approx(3 * lost["p"]) and lost["base"]["low"] < 0.75 < lost["base"]["high"]
    # McNemar's exact p of 30 rows lost and none gained.
    assert lost["p"] == pytest.approx(2 * 0.5**30)
    assert found["same"]["difference"] == {"value": 0.0, "low": None, "high": None} and found["same"]["p_holm"] == 1
    alone = forgetting.compared({"chance": task(100, 94)})
    among = forgetting.compared({"chance": task(100, 94), **{f"same{n}": task(100, 100) for n in range(9)}})
    assert (alone[0]["outcome"], among[0]["outcome"]) == ("lost", "none")
    (loss,) = forgetting.compared({"loss": task(100, 140, higher_is_better=False)})
    assert loss["outcome"] == "lost"


def test_a_metric_that_is_no_share_has_the_interval_and_p_of_its_resamples() -> None:
    drawn = np.random.default_rng(3)
    base = drawn.random(300)
    worse = base - drawn.normal(0.02, 0.1, 300)
    both = {name: dict(enumerate(numbers.tolist())) for name, numbers in (("base", base), ("tuned", worse))}
    (found,) = forgetting.compared({"f1": {"metric": "f1", "higher_is_better": True, "values": both}})
    normal = stats.ttest_rel(worse, base)
    assert found["difference"]["value"] == pytest.approx((worse - base).mean())
    interval = (found["difference"]["low"], found["difference"]["high"])
    assert interval == pytest.approx(tuple(normal.confidence_interval(0.95)), abs=0.002)
    assert found["p"] == pytest.approx(normal.pvalue, abs=0.005) and found["outcome"] == "lost"


def test_without_the_harness_there_is_one_message(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bare("tuned", status="finished")
    monkeypatch.setattr(forgetting.importlib.util, "find_spec", lambda name: None)
    assert main(["forgetting", "tuned", "--tasks", "sums"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"^error: lm-evaluation-harness is not installed; run \S+pip install 'lm-eval>=0\.4\.13,<0\.5'$", said
    )


def test_a_run_that_is_no_result_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting.importlib.util, "find_spec", lambda name: True)
    bare("half", status="failed")
    with pytest.raises(InputError, match=r"half is failed, not finished; finish it first: make resume NAME=half"):
        forgetting.forgetting("half", ["sums"])
    bare("tried", status="finished", rehearsal=True)
    with pytest.raises(InputError, match="tried is a rehearsal"):
        forgetting.forgetting("tried", ["sums"])


@needs_harness
def test_what_cannot_be_asked_is_refused(finished: Finished, asked_here: None, capsys: pytest.CaptureFixture) -> None:
    run = finished(**FLOAT32)
    with pytest.raises(InputError, match="TASKS names no task; write TASKS="):
        forgetting.forgetting(run.name, [])
    with pytest.raises(InputError, match="INCLUDE=nowhere is no folder"):
        forgetting.forgetting(run.name, ["sums"], include=Path("nowhere"))
    folder = Path("more")
    folder.mkdir()
    mine = (forgetting.SHIPPED / "sums.yaml").read_text()
    mine = mine.replace("sums.jsonl", str(forgetting.SHIPPED / "sums.jsonl"))
    (folder / "runs_code.yaml").write_text(mine.replace("task: sums", "task: runs_code") + "unsafe_code: true\n")
    rolling = mine.replace("task: sums", "task: rolling").replace("multiple_choice", "loglikelihood_rolling")
    (folder / "rolling.yaml").write_text(rolling)
    (folder / "empty.yaml").write_text(mine.replace("task: sums", "task: empty").replace("sums.jsonl", "none.jsonl"))
    with pytest.raises(InputError) as refused:
        forgetting.forgetting(run.name, ["sums", "hellaswagg", "runs_code", "rolling", "empty"], include=folder)
    assert re.search(
        r"no task hellaswagg; \S+lm-eval ls tasks lists them; did you mean hellaswag\?$", refused.value.problems[0]
    )
    assert [text[:60] for text in refused.value.problems[1:]] == [
        "TASKS: runs_code runs the code that a model writes, which is",
        "TASKS: rolling has no metric with a number for each sample, ",
        "TASKS: lm-evaluation-harness cannot load empty: Unable to fi",
    ]
    assert not (run.directory / forgetting.FILE).exists() and not (run.directory / ".forgetting").exists()


@needs_harness
def test_base_and_tuned_model_are_asked_the_same_and_the_report_shows_it(
    finished: Finished, asked_here: None, capsys: pytest.CaptureFixture
) -> None:
    run = finished(**FLOAT32)
    assert main(["forgetting", run.name, "--tasks", "sums,opposites", "--limit", "24"]) == 0
    said = capsys.readouterr().out
    held = json.loads((run.directory / forgetting.FILE).read_text())
    assert (held["schema"], [each["task"] for each in held["tasks"]]) == (1, ["sums", "opposites"])
    assert {each["samples"] for each in held["tasks"]} == {24}
    # The base is asked without the adapter: its share of right answers is what the plain model gives.
    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32),
        AutoTokenizer.from_pretrained("model"),
    )
    rows = [json.loads(line) for line in (forgetting.SHIPPED / "sums.jsonl").read_text().splitlines()][:24]
    right = sum(chosen(plain, tokenizer, row) == row["answer"] for row in rows)
    assert held["tasks"][0]["base"]["value"] == pytest.approx(right / 24)
    page = report.write(run).read_text()
    assert "What it forgot" in page and "sums (acc)" in page
    assert "forgetting " in said and "sums " in said


@torch.inference_mode()
def chosen(model: Any, tokenizer: Any, row: dict[str, Any]) -> int:
    """The choice that is most likely after the question."""
    scores = []
    for choice in row["choices"]:
        before = tokenizer(row["question"])["input_ids"]
        whole = tokenizer(f"{row['question']} {choice}")["input_ids"]
        logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(before), len(whole))))
    return max(range(len(scores)), key=scores.__getitem__)
