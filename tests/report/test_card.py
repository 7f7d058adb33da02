"""The model card says what the run directory holds, what it does not, and nothing of the machine."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_rows
from finished import FLOAT32
from huggingface_hub import ModelCard

from sft_recipes.evaluate import metrics
from sft_recipes.report import card
from sft_recipes.report.table import markdown_text
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

Finished = Callable[..., Run]


def evaluated(run: Run, group: str = "formal") -> dict[str, Any]:
    """Write the metrics of made-up predictions: the tuned model right in 70 of 80 rows, the base in 40."""
    rows = []
    for number in range(80):
        gold = ("even", "odd")[number % 2]
        other = ("odd", "even")[number % 2]
        said = {"base": gold if number < 40 else other, "tuned": gold if number < 70 else other}
        models = {
            name: {"prediction": value, "probabilities": None, "text": value, "finished": True}
            for name, value in said.items()
        }
        rows.append(
            {
                "row": number + 1,
                "id": f"{number:016x}",
                "prompt": "p",
                "group": group if number % 2 else "plain",
                "gold": gold,
                "reference": gold,
                "leaked": number == 0,
                **models,
            }
        )
    train = [(f"red {number}", ("even", "odd")[number % 2]) for number in range(20)]
    result = metrics.measure(rows, "classification", train, ["even", "odd"], group_column="register", resamples=200)
    head = {"task": "classification", "split": "test", "scored": 79, "leaked": 1, "predict_by": "generation"}
    head |= {"schema": 1, "settings": {}, "measured": {}}
    result = {**head, **result}
    (run.directory / "metrics.json").write_text(json.dumps(result))
    return result


def test_the_card_carries_recipe_data_metrics_with_intervals_and_limits(finished: Finished) -> None:
    run = finished(**FLOAT32)
    result = evaluated(run)
    card.write(run)
    text = run.adapter.joinpath("README.md").read_text(encoding="utf-8")
    header = ModelCard(text).data.to_dict()
    assert header == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["sft", "trl", "lora"]}
    facts = run.facts()
    assert facts["data"]["fingerprint"] in text
    assert facts["data"]["splits"]["train"]["sha256"] in text and "train: 64 rows" in text
    assert "A LoRA adapter (r=8, alpha=8) for a local model." in text
    assert f"peft {facts['versions']['peft']}" in text
    assert "learning_rate: 0.01\n" in text and "global_batch_size: 8\n" in text
    tuned = result["models"]["tuned"]["accuracy"]
    assert f"{tuned['value']:.3f} ({tuned['low']:.3f} to {tuned['high']:.3f})" in text
    for name in ("tuned model", "base model", "majority class", "stratified draw", "TF-IDF + logistic regression"):
        assert re.search(rf"^\| {re.escape(name)} \| \d+ \| \d\.\d{{3}} \(", text, re.MULTILINE), name
    assert markdown_text(result["verdict"]["text"]) in text
    assert re.search(r"\| formal, tuned \| 40 \| \d\.\d{3} \(", text)
    assert "No evaluation of safety, bias or privacy was made" in text


def test_without_an_evaluation_the_card_claims_nothing(finished: Finished) -> None:
    run = finished(**FLOAT32)
    text = card.card(run)
    assert "Not evaluated; nothing is known of how well it answers." in text
    assert "accuracy" not in text
    assert re.search(r"Loss on held-out rows: \d+\.\d{4} at step 8\.", text)


def test_nothing_of_the_machine_is_in_the_card(
    train_here: Callable[..., Run], project: Path, tiny_model: Path
) -> None:
    template = project / "private" / "template.jinja"
    template.parent.mkdir()
    template.write_text((tiny_model / "chat_template.jinja").read_text())
    rows = project / "private" / "rows.jsonl"
    write_rows(rows, [{"instruction": "a", "input": str(n), "output": "b"} for n in range(16)])
    run = train_here(
        name="away",
        train_file=str(rows),
        chat_template_path=str(template),
        model_name_or_path=str(tiny_model),
        num_train_epochs=2,
    )
    text = card.card(run)
    for secret in (str(project), "private", str(tiny_model), ".cache", socket.gethostname(), "runs/"):
        assert secret not in text, secret
    assert "SET='" in text
    assert "chat_template_path: (local)" in text and "model_name_or_path: (local)" in text


def test_a_base_and_data_of_the_hub_are_linked(finished: Finished) -> None:
    run = finished(**FLOAT32)
    run.recipe.write_text(
        run.recipe.read_text().replace("model_name_or_path: model", "model_name_or_path: Qwen/Qwen3-8B")
    )
    facts = run.facts()
    facts["data"]["source"] |= {"train_file": None, "dataset_name": "org/rows"}
    run.write(facts)
    text = card.card(run)
    header = ModelCard(text).data.to_dict()
    assert (header["base_model"], header["datasets"]) == ("Qwen/Qwen3-8B", ["org/rows"])
    assert header["license"] == "apache-2.0"
    assert 'from_pretrained(\n    "Qwen/Qwen3-8B",\n    revision="main",\n' in text


@pytest.mark.promise("hostile", "HTML, Markdown and templates in a model card")
def test_what_recipe_and_rows_hold_stays_text(finished: Finished) -> None:
    run = finished(**FLOAT32)
    evil = "<img src=x onerror=alert(1)>|x\n# heading `code` [a](b)\x1b[2J {{ 7*7 }} {% include 'card.md' %}"
    facts = run.facts()
    facts["own"]["description"] = evil
    run.write(facts)
    evaluated(run, group=evil)
    text = card.card(run)
    assert "<img" not in text and "\x1b" not in text and "\n# heading" not in text
    table = [line for line in text.splitlines() if "img src" in line and line.startswith("|")]
    assert len(table) == 2, "a row of the tuned and one of the base model"
    assert text.count(r"{{ 7\*7 }} {% include 'card.md' %}") == 3, "in the description and in both rows"
    columns = [len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert len(set(columns[-3:])) == 1


def test_no_value_of_the_recipe_ends_a_block_of_code(finished: Finished) -> None:
    run = finished(**FLOAT32)
    evil = "a\n```\n\n<script>alert(1)</script>"
    facts = run.facts()
    facts["own"]["label_pattern"] = facts["overrides"]["label_pattern"] = evil
    run.write(facts)
    text = card.card(run)
    fences = [line for line in text.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```", "```bash", "```", "```bash", "```", "```yaml", "```"]
    assert f"label_pattern: {json.dumps(evil)}\n" in text
    (command,) = [line for line in text.splitlines() if line.startswith("- `")]
    assert command.startswith("- ````make train RECIPE=tiny") and command.endswith("````")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tuned", FLOAT32),
        ("four_bit", {}),
        ("changed", {**FLOAT32, "model_init_kwargs": {"rms_norm_eps": 0.5, "low_cpu_mem_usage": True}}),
    ],
)
def test_the_code_in_the_card_loads_what_was_trained_and_answers(
    finished: Finished, tiny_model: Path, capsys: pytest.CaptureFixture, name: str, overrides: dict[str, Any]
) -> None:
    import torch

    from sft_recipes.evaluate import scoring

    run = finished(name, **overrides)
    (code,) = re.findall(r"```python\n(.*?)```", card.card(run), re.DOTALL)
    assert ("BitsAndBytesConfig" in code) == (name == "four_bit")
    code = code.replace("PATH OF THE BASE MODEL", str(tiny_model))
    code = code.replace("PATH OR HUB ID OF THIS DIRECTORY", str(run.adapter)).replace(
        "max_new_tokens=64", "max_new_tokens=4"
    )
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102, what a reader of the card would do
    assert ("rms_norm_eps" in code) == (name == "changed") and "low_cpu_mem_usage" not in code
    ours, ids = scope["model"], torch.tensor([[3, 14, 15, 92, 65]])
    trained, _ = scoring.load(yaml.safe_load(run.recipe.read_text()), run.adapter, on_cpu=True)
    with torch.inference_mode():
        expected = trained(ids).logits
        apart = (ours(ids).logits - expected).abs().max()
        with ours.disable_adapter():
            effect = (ours(ids).logits - expected).abs().max()
    # Some CPUs round the scales of 4-bit weights further where training does not let them.
    assert apart < effect / 10 if name == "four_bit" else apart == 0 < effect
    (eps,) = {module.variance_epsilon for module in trained.modules() if hasattr(module, "variance_epsilon")}
    assert eps == (0.5 if name == "changed" else 1e-6)
    assert capsys.readouterr().out.endswith("\n")


def test_the_card_of_a_merged_model_says_how_far_it_is_from_what_was_trained(finished: Finished) -> None:
    run = finished(**FLOAT32)
    proof = {"dtype": "bfloat16", "answer_tokens": 96, "rows": 32, "kl": 1.234e-5, "top1": 0.99}
    text = card.card(run, proof)
    assert ModelCard(text).data.library_name == "transformers"
    assert "merged into its bfloat16 weights. On 96 answer tokens of 32 held-out rows" in text
    assert "1.2e-05 nats" in text and "99.0%" in text
    assert "PeftModel" not in text and "BitsAndBytesConfig" not in text
