"""A real pretrained model all the way: SmolLM2-135M-Instruct from a package, no hub and no GPU (`make test-real`).

In its own folder, because it takes minutes and packages that nothing else needs.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STEPS, ROWS = 4, 6
# In float32 without quantisation, so that whoever computes it gets the same; nothing is evaluated in training, which
# stock TRL does in another way.
SETTINGS = (
    f"max_steps={STEPS} load_in_4bit=false per_device_train_batch_size=4 global_batch_size=4 learning_rate=5e-4 "
    "logging_steps=1 eval_on_start=false eval_strategy=no save_strategy=no load_best_model_at_end=false "
    "report_to=none test_file=few.jsonl"
)

# The losses of stock TRL stand in its last checkpoint, which ours is not asked for.
SAVED = {"output_dir": "stock", "run_name": "stock", "save_strategy": "steps", "save_steps": STEPS}


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `real`, evaluated on a few rows."""
    folder = tmp_path_factory.mktemp("real")
    (ROOT / ".cache").mkdir(exist_ok=True)
    (folder / ".cache").symlink_to(ROOT / ".cache")
    rows = (ROOT / "data" / "demo" / "test.jsonl").read_text().splitlines()[:ROWS]
    (folder / "few.jsonl").write_text("\n".join(rows) + "\n")
    command = [str(BIN / "sft-recipes"), "train", "demo", "--model", "smollm2_135m_packaged", "--name", "real"]
    said = run(*command, "--set", SETTINGS, cwd=folder)
    assert "verdict" in said
    return folder


def test_stock_trl_gives_the_same_losses_and_the_same_tensors(trained: Path) -> None:
    recipe = yaml.safe_load((trained / "runs/real/recipe.yaml").read_text())
    (trained / "stock.yaml").write_text(yaml.safe_dump(recipe | SAVED))
    shutil.copy(trained / "runs/real/accelerate.yaml", trained / "place.yaml")
    run(str(BIN / "trl"), "sft", "--config", "stock.yaml", "--accelerate_config", "place.yaml", cwd=trained)
    lines = map(json.loads, (trained / "runs/real/log.jsonl").read_text().splitlines())
    ours = [line["loss"] for line in lines if "loss" in line]
    (state,) = (trained / "stock").glob("**/trainer_state.json")
    theirs = [line["loss"] for line in json.loads(state.read_text())["log_history"] if "loss" in line]
    assert len(ours) == STEPS and ours == theirs
    mine, stock = (load_file(trained / each / "adapter_model.safetensors") for each in ("runs/real/adapter", "stock"))
    assert mine.keys() == stock.keys() and all(torch.equal(mine[key], stock[key]) for key in mine)
    assert any(tensor.abs().max() > 0 for key, tensor in mine.items() if "lora_B" in key)


def test_the_scores_are_those_of_an_independent_forward_pass(trained: Path) -> None:
    metrics = json.loads((trained / "runs/real/metrics.json").read_text())
    rows = [json.loads(line) for line in (trained / "runs/real/predictions.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (trained / "few.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(trained / "runs/real/adapter")
    base = AutoModelForCausalLM.from_pretrained(
        trained / ".cache/models/smollm2_135m_packaged", dtype=torch.float32, attn_implementation="eager"
    )
    tuned = PeftModel.from_pretrained(base, trained / "runs/real/adapter").eval()
    assert len(rows) == ROWS
    for row, source in zip(rows, asked, strict=True):
        turns = [{"role": "user", "content": f"{source['instruction']}\n\n{source['input']}"}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        scores = {}
        for label in metrics["labels"]:
            start = len(tokenizer(prompt)["input_ids"])
            ids = tokenizer(f"{prompt}{label}<|im_end|>", return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                logits = tuned(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
            scores[label] = float(logits.gather(1, ids[0, start:, None]).sum())
        whole = math.log(sum(math.exp(score - max(scores.values())) for score in scores.values())) + max(
            scores.values()
        )
        expected = {label: math.exp(score - whole) for label, score in scores.items()}
        found = row["tuned"]["probabilities"]
        assert found == pytest.approx(expected, abs=1e-4)
        assert row["tuned"]["prediction"] == max(expected, key=expected.__getitem__)


def test_it_is_merged_and_converted_to_gguf_and_back(trained: Path) -> None:
    run(str(BIN / "sft-recipes"), "merge", "real", cwd=trained)
    proof = json.loads((trained / "runs/real/merged/merge.json").read_text())
    assert proof["kl"] < 1e-6 and proof["effect"]["kl"] > 1e-4
    if not (os.environ.get("LLAMA_CPP") or shutil.which("convert_hf_to_gguf.py")):
        pytest.skip("llama.cpp's converter is not here; name its folder by LLAMA_CPP=")
    found: dict[str, Any] = json.loads(
        run(str(BIN / "sft-recipes"), "gguf", "real", "--quant", "q8_0", "--json", cwd=trained)
    )
    assert found["compared"] and found["kl"] < 0.01 and found["top1"] > 0.95
    modelfile = (trained / "runs/real/gguf-q8_0/Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile and "named SmolLM" in modelfile
