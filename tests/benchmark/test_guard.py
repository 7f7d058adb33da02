"""What `make bench` finds in seconds, as counts that are the same on every machine: more work than now is a failure.

How many processes one training starts is counted by the demo's own test (tests/demo/test_demo.py).
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

from sft_recipes.data import survey, tokens
from sft_recipes.demo import demo_base
from sft_recipes.plan import job as jobs

# What a command that reads no rows and no weights has no use for.
HEAVY = (
    "torch transformers tokenizers datasets trl peft accelerate pyarrow pandas scipy sklearn matplotlib "
    "numpy psutil pydantic rich jinja2 httpx asyncio http concurrent"
)


def test_light_commands_import_little() -> None:
    program = """
        import contextlib, io, sys
        from sft_recipes.benchmark.scale import LIGHT
        from sft_recipes.cli import main
        for each in LIGHT:
            with contextlib.redirect_stdout(io.StringIO()):
                assert main(list(each)) == 0, each
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["diff", "default", "quick_test"]) == 0
            assert main(["train", "demo", "--set", "lerning_rate=1e-4"]) == 2
        print(len(sys.modules), *{name.partition(".")[0] for name in sys.modules})
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    number, *names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {*HEAVY.split()} & {*names}
    # 339 when this was written.
    assert int(number) < 380


def test_the_demo_takes_as_few_steps_and_pads_as_little_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_base.train_tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(ROOT)
    job = jobs.resolve("demo", overrides={"model_name_or_path": str(tmp_path / "base")})
    found = survey.survey(job.prepared, tokens.find_tokenizer(job.recipe), cache=tmp_path / "surveys")
    assert job.schedule is not None and job.schedule.steps == 150
    assert found["tokens_are"] == "exact"
    size = job.recipe["per_device_train_batch_size"]
    assert survey.real_token_share(found["splits"]["train"], job.recipe["max_length"], size) > 0.82


@pytest.mark.slow
def test_a_row_is_read_once_for_all_its_labels(tiny_model: Path) -> None:
    """And what all rows begin with once for all rows: 53 tokens and 8 labels are 35 positions of a row."""
    from sft_recipes.evaluate import likelihood, scoring

    model, tokenizer = scoring.load({"model_name_or_path": str(tiny_model), "dtype": "float32"}, None, on_cpu=True)
    with (ROOT / "data" / "demo" / "test.jsonl").open(encoding="utf-8") as lines:
        asked = [json.loads(next(lines)) for _ in range(200)]
    prompts = [[{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}] for row in asked]
    labels = sorted({row["output"] for row in asked})
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    found = list(likelihood.likelihoods(model, tokenizer, prompts, labels))
    assert sum(map(len, found)) == len(prompts) and len(labels) == 8
    every = likelihood.candidates(model, tokenizer, prompts, labels)
    shared = likelihood.shared_tokens([row.prefix for row in every])
    least = shared + sum(len(row.prefix) - shared + len(row.tree.tokens) for row in every)
    # Beside it is padding, to the longest row of a pass.
    assert least <= sum(read) < 1.15 * least < 45 * len(prompts)
    assert len(read) <= 2 + sum(read) / (likelihood.CPU_FORWARD_TOKENS / 2)
