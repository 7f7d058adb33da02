"""A merged model computes what base and adapter compute, or does not come to be; and a damaged adapter is noticed."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from finished import BFLOAT16, FLOAT32, restate
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_recipes.deploy import merge
from sft_recipes.errors import InputError
from sft_recipes.files import sealed
from sft_recipes.runs.run import Run, adapter_damage
from sft_recipes.train import verify

pytest_plugins = ["finished", "forks"]

Finished = Callable[..., Run]


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def left(run: Run) -> list[str]:
    """What a merge has left in the run's directory, finished or not."""
    return [path.name for path in run.directory.iterdir() if "merged" in path.name]


def test_the_merged_files_compute_what_base_and_adapter_compute(
    finished: Finished, merge_here: Any, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    run = finished(**FLOAT32)
    before = digests(tiny_model)
    code, proof = merge_here("tuned")
    assert code == 0
    assert digests(tiny_model) == before
    out = run.directory / "merged"
    assert left(run) == ["merged"]
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert proof["kl"] < 1e-6 < proof["effect"]["kl"]
    assert proof["top1"] == 1
    assert (proof["dtype"], proof["rows"], proof["split"], proof["quantised"]) == ("float32", 8, "validation", None)
    assert json.loads((out / merge.PROOF).read_text()) == proof
    assert run.facts()["merged"] == {"directory": str(out), **proof}
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "red"}], return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out)
    with torch.inference_mode():
        untouched = base(ids).logits
        both = PeftModel.from_pretrained(base, run.adapter)(ids).logits
        one = merged(ids).logits
    assert (both - one).abs().max() < 1e-5 < (both - untouched).abs().max()
    assert tokenizer.eos_token_id in merged.generation_config.eos_token_id
    said = capsys.readouterr().out
    assert "merged from base and adapter: " in said and str(out) in said


def test_a_run_trained_in_four_bit_is_merged_into_unquantised_weights(
    finished: Finished, merge_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(**BFLOAT16)
    monkeypatch.setattr(merge, "SHARD", "100KB")
    code, proof = merge_here("tuned", Path("elsewhere"))
    assert (code, proof["dtype"]) == (0, "bfloat16")
    assert len(list(Path("elsewhere").glob("model-*.safetensors"))) > 1
    tensors = [load_file(path) for path in Path("elsewhere").glob("*.safetensors")]
    assert {tensor.dtype for shard in tensors for tensor in shard.values()} == {torch.bfloat16}
    # What the base loses in 4 bit is not what merging loses, and is reported apart.
    assert proof["kl"] < proof["quantised"]["kl"] / 10
    present = sealed(Path("elsewhere"), besides="README.md")
    present.pop(merge.PROOF)
    assert proof["files"] == present
    assert run.facts()["merged"]["directory"] == "elsewhere"
    with pytest.raises(InputError, match="elsewhere exists and is never overwritten"):
        merge_here("tuned", Path("elsewhere"))


def unmerged(self: LoraModel, *arguments: Any, **options: Any) -> Any:
    return self.unload()


def one_weight_off(self: LoraModel, *arguments: Any, **options: Any) -> Any:
    model = merge_and_unload(self)
    weight = model.model.layers[0].self_attn.v_proj.weight
    weight.data.copy_(weight.flip(0))
    return model


merge_and_unload = LoraModel.merge_and_unload


@pytest.mark.parametrize("defect", [unmerged, one_weight_off])
def test_a_merge_that_is_not_one_is_refused_and_leaves_nothing(
    finished: Finished, merge_here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, defect: Any
) -> None:
    run = finished(**FLOAT32)
    monkeypatch.setattr(LoraModel, "merge_and_unload", defect)
    code, proof = merge_here("tuned")
    assert code == 1 and proof["refused"]
    assert left(run) == [] and "merged" not in run.facts()
    assert "the merged model differs from base and adapter by" in capsys.readouterr().err


def test_an_adapter_on_a_tied_embedding_is_refused(finished: Finished, merge_here: Any) -> None:
    """Merged, it would change the output layer too, of which PEFT only warns."""
    run = finished("tied", lora_target_modules=["q_proj", "embed_tokens"], **FLOAT32)
    code, proof = merge_here("tied")
    assert code == 1 and proof["kl"] > merge.LIMITS["kl"]
    assert left(run) == []


def test_updates_that_bfloat16_rounds_away_are_not_called_merged(finished: Finished, merge_here: Any) -> None:
    run = finished(**BFLOAT16)

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = tensors[name] / 400

    changed(shrink)(run.adapter)
    facts = run.facts()
    facts["measured"]["saved"] = sealed(run.adapter, besides="README.md")
    # As a run of this base that wrote down less.
    del facts["identity"]
    run.write(facts)
    code, proof = merge_here("tuned")
    assert code == 1
    # Small against the limits, and yet most of what the adapter does.
    assert proof["kl"] < merge.LIMITS["kl"] and proof["kl"] > proof["effect"]["kl"] * merge.LIMITS["share_of_effect"]


def test_the_proof_is_computed_as_a_float32_copy_of_the_weights_would(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    rows = [([3, 14, 15, 92, 65], 2)]
    with merge.computing_in_float32():
        (widened,) = merge.log_probabilities(model, rows)
    (narrow,) = merge.log_probabilities(model, rows)
    (whole,) = merge.log_probabilities(model.float(), rows)
    assert torch.equal(widened, whole) and not torch.equal(narrow, whole)
    assert widened.shape == (3, model.config.vocab_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def set_alpha(run: Run) -> None:
    path = run.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))


DAMAGES: dict[str, tuple[Callable[[Run, Run], Any], str]] = {
    "a byte": (lambda run, _: flip(run.adapter / "adapter_model.safetensors"), "does not match its checksum"),
    "cut off": (lambda run, _: os.truncate(run.adapter / "adapter_model.safetensors", 1000), "has 1000 bytes instead"),
    "gone": (lambda run, _: (run.adapter / "adapter_model.safetensors").unlink(), "is missing"),
    "another run's": (
        # PEFT writes target_modules in another order in each process, which would be seen first.
        lambda run, other: shutil.copytree(
            other.adapter, run.adapter, dirs_exist_ok=True, ignore=lambda *_: ["adapter_config.json"]
        ),
        "adapter_model.safetensors does not match its checksum",
    ),
    "another scale": (lambda run, _: set_alpha(run), "adapter_config.json does not match its checksum"),
}


@pytest.mark.promise("damage", "the adapter damaged or swapped for another run's, when it is merged")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_swapped_adapter_is_refused_before_anything_is_loaded(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run, other = finished(**FLOAT32), finished("other", seed=7, **FLOAT32)
    assert adapter_damage(run) is None
    (run.adapter / "README.md").write_text("a card written anew")
    assert adapter_damage(run) is None
    make, message = DAMAGES[damage]
    make(run, other)
    monkeypatch.setattr(merge.subprocess, "run", None)
    with pytest.raises(InputError, match=message):
        merge.merge("tuned")
    assert left(run) == []


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change the tensors of a saved adapter."""

    def rewrite(directory: Path) -> None:
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})

    return rewrite


def zero_b(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = torch.zeros_like(tensors[name])


def rescaled(directory: Path) -> None:
    path = directory / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))


def one_lost(tensors: dict[str, torch.Tensor]) -> None:
    tensors.popitem()


NOT_TRAINED: list[tuple[Callable[[Path], Any], str]] = [
    (changed(zero_b), "every lora_B is zero, so training changed nothing"),
    (changed(lambda tensors: next(iter(tensors.values())).add_(1e-3)), "1 of 8 tensors are not those in memory"),
    (changed(one_lost), "1 of 8 tensors are not those in memory"),
    (rescaled, "reloaded in PEFT, the adapter gives logits that are up to"),
]


@pytest.mark.promise("damage", "the adapter changed between being written and being read back")
def test_a_saved_adapter_that_is_not_what_was_trained_fails_the_run(
    train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, int], None]
) -> None:
    """Copies of it with each damage, and at last itself."""
    check = verify.saved_adapter
    *_, (happen, said) = NOT_TRAINED

    def check_damaged(trainer: Any, directory: Path) -> Any:
        for number, (happening, message) in enumerate(NOT_TRAINED):
            happening(Path(shutil.copytree(directory, f"copy-{number}")))
            with pytest.raises(RuntimeError, match=message):
                check(trainer, Path(f"copy-{number}"))
        assert check(trainer, directory)["reloaded"] == "logits"
        happen(directory)
        return check(trainer, directory)

    monkeypatch.setattr(verify, "saved_adapter", check_damaged)
    with pytest.raises(RuntimeError, match=rf"runs/lost/adapter: {said}"):
        train_here(name="lost", max_steps=2, **FLOAT32)
    assert Run.open("lost").facts()["status"] == "running"
    record_property("injected", len(NOT_TRAINED))


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
def test_after_training_the_adapter_is_read_back_and_sealed(finished: Finished, adapter_dtype: str) -> None:
    run = finished(adapter_dtype, adapter_dtype=adapter_dtype)
    measured = run.facts()["measured"]
    assert measured["adapter"]["reloaded"] == "logits"
    assert measured["adapter"]["logit_difference"] == 0 < measured["adapter"]["logit_effect"]
    content = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert measured["saved"]["adapter_model.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert {"adapter_config.json", "tokenizer.json", "chat_template.jinja"} < measured["saved"].keys()
    assert adapter_damage(run) is None


def test_what_has_nothing_to_merge_or_no_room_is_refused_with_all_that_is_wrong(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("whole", use_peft=False, lora_target_modules=None, **FLOAT32)
    assert "adapter" not in run.facts()["measured"] and adapter_damage(run) is None
    (run.directory / "merged").mkdir()
    run.update(rehearsal=True)
    with pytest.raises(InputError) as refused:
        merge.merge("whole")
    assert [problem.split(";")[0] for problem in refused.value.problems] == [
        "runs/whole is a rehearsal, whose adapter belongs to a tiny random model",
        "runs/whole trained the whole model and has nothing to merge",
        "runs/whole/merged exists and is never overwritten",
    ]
    run = finished(**FLOAT32)
    with pytest.raises(InputError, match="nowhere is no directory"):
        merge.merge("tuned", Path("nowhere/merged"))
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(InputError, match=r"takes 0.0 GB and 0.0 GB are free; make room"):
        merge.merge("tuned")
    Path("model").unlink()
    with pytest.raises(InputError, match="the base model model is not on this machine any more"):
        merge.merge("tuned")
    restate(run, status="interrupted")
    with pytest.raises(
        InputError, match=r"^runs/tuned is interrupted, not finished; finish it first: make resume NAME=tuned$"
    ):
        merge.merge("tuned")


@pytest.mark.promise("kill", "SIGKILL in the middle of a merge")
@pytest.mark.usefixtures("forks")
def test_a_merge_killed_on_the_way_leaves_nothing_under_the_name_and_does_not_hinder_the_next(
    finished: Finished, merge_here: Any
) -> None:
    run = finished(**FLOAT32)
    command = [sys.executable, "-m", "sft_recipes", "merge", "tuned"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    staging, deadline = run.directory / ".merged.unfinished", time.monotonic() + 60
    while not (staging / "model.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert left(run) == [".merged.unfinished"]
    while time.monotonic() < deadline:
        # The process with torch in it is an orphan that may die a moment later.
        with contextlib.suppress(InputError), run.locked():
            break
        time.sleep(0.02)
    assert merge_here("tuned")[0] == 0
    assert left(run) == ["merged"]


def resident() -> int:
    """The bytes of memory that this process has, with which one that is forked from it begins."""
    return psutil.Process().memory_info().rss


def forked(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    """The work of the merging process in a copy of this one, which has imported what it would import."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            merge.main(Path(command[-1]))
            code = 0
        finally:
            os._exit(code)
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stderr="")


def test_memory_is_bounded_by_the_weights_once(
    finished: Finished, project: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process takes beyond the libraries it imports."""
    run = finished("unquantised", load_in_4bit=False, **BFLOAT16)
    large = project / "large"
    shutil.copytree(tiny_model, large)
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    wide = {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
    }
    config.update(wide)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(large)
    size = sum(parameter.numel() * 2 for parameter in model.parameters())
    adapter = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    adapter.peft_config["default"].base_model_name_or_path = "./large"
    adapter.save_pretrained(run.adapter)
    del model, adapter
    facts = run.facts()
    facts["measured"]["saved"] = sealed(run.adapter, besides="README.md")
    # As a run of this base that wrote down less.
    del facts["identity"]
    run.write(facts)
    recipe = run.recipe.read_text().replace("model_name_or_path: model", "model_name_or_path: ./large")
    run.recipe.write_text(recipe)
    monkeypatch.setattr(merge.subprocess, "run", forked)
    before = resident()
    code, proof = merge.merge("unquantised", rows=1)
    assert code == 0 and size > 150e6
    assert size / 2 < proof["peak_memory_bytes"] - before < 1.5 * size
