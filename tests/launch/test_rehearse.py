"""A rehearsal is the real recipe and road with a tiny model, and is never taken for a result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_recipes.demo import tiny
from sft_recipes.errors import InputError
from sft_recipes.launch import launch, rehearse
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import topology


def job(name: str, accel: str, *overrides: str) -> jobs.Job:
    real = jobs.resolve(name, accel=accel, overrides=overrides)
    base = tiny.find(real.recipe["model_name_or_path"], real.recipe["model_revision"])
    # In this process, to spare another import of torch; `make` then finds it.
    tiny.build(base.directory, base.config, base.tokenizer)
    return rehearse.rehearsal_of(real, base)


@pytest.mark.parametrize(
    ("accel", "backend", "processes", "stage"),
    [
        ("ddp", "ddp", 2, None),
        ("zero1", "deepspeed", 2, 1),
        ("zero2", "deepspeed", 2, 2),
        ("zero3", "deepspeed", 2, 3),
        ("zero3_offload", "deepspeed", 2, 3),
        ("single_gpu", "single", 1, None),
        ("cpu", "single", 1, None),
    ],
)
def test_the_backend_stays_and_runs_on_the_cpu(
    project: Path, accel: str, backend: str, processes: int, stage: int | None
) -> None:
    real = topology.read(accel, "ACCEL")
    small = rehearse.on_cpu(real)
    assert (small.backend, small.processes, small.zero_stage, small.use_cpu) == (backend, processes, stage, True)
    assert "cpu" not in (small.config.get("deepspeed_config") or {}).values()
    assert real.config == topology.read(accel, "again").config
    # As a file it would be one that we accept.
    (project / "accelerate_configs" / "small.yaml").write_text(yaml.safe_dump(small.config))
    assert topology.read("small", "test").config == small.config


def test_what_a_recipe_claims_is_what_is_rehearsed(project: Path) -> None:
    """Of the default on four GPUs everything stays but the model, the amounts and when things happen."""
    rehearsed = job("default", "zero2")
    real = jobs.resolve("default", accel="zero2").resolved
    before, after = (resolved.upstream() | resolved.own() for resolved in (real, rehearsed.resolved))
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {
        "dataset_name",
        "dataloader_num_workers",
        "eval_steps",
        "eval_strategy",
        "global_batch_size",
        "logging_steps",
        "logging_strategy",
        "max_steps",
        "model_name_or_path",
        "save_steps",
        "save_strategy",
        "use_cpu",
        "warmup_steps",
    }
    assert before["gradient_accumulation_steps"] == after["gradient_accumulation_steps"] == 4
    assert after["global_batch_size"] == 4 * 4 * 2
    assert rehearsed.rehearses is not None
    assert rehearsed.rehearses["model"] == "Qwen/Qwen3-8B"
    assert rehearsed.rehearses["tokenizer"] == "the demo's"
    assert (rehearsed.rehearses["topology"]["processes"], rehearsed.rehearses["global_batch_size"]) == (4, 64)
    assert all(facts["prepared_rows"] <= rehearse.ROWS[split] for split, facts in rehearsed.prepared.splits.items())


@pytest.mark.slow
def test_the_tiny_model_is_of_the_same_kind(project: Path) -> None:
    real = tiny.find("Qwen/Qwen3-8B", "main")
    small = json.loads((tiny.make(real) / "config.json").read_text())
    for key in ("model_type", "head_dim", "hidden_act", "tie_word_embeddings", "attention_bias", "rms_norm_eps"):
        assert small[key] == real.config[key]
    assert small["num_attention_heads"] // small["num_key_value_heads"] == 4
    assert (small["num_hidden_layers"], small["hidden_size"]) == (2, 64)
    made = (real.directory / "model.safetensors").stat().st_mtime_ns
    assert tiny.make(real) == real.directory
    assert (real.directory / "model.safetensors").stat().st_mtime_ns == made


def test_the_tokenizer_is_the_models_own_where_it_is_here(project: Path, tiny_model: Path) -> None:
    base = tiny.find("model", "main")
    assert base.tokenizer == Path("model")
    made = base.directory
    tiny.build(made, base.config, base.tokenizer)
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (tiny_model / name).read_bytes()
    assert (made / "model.safetensors").read_bytes() != (tiny_model / "model.safetensors").read_bytes()
    other = project / "other"
    shutil.copytree(tiny_model, other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert tiny.find("./other", "main").directory != base.directory


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt_oss", ["sliding_attention", "full_attention"]),
        ("gemma3_text", ["sliding_attention", "full_attention"]),
        ("qwen3_next", ["linear_attention", "full_attention"]),
        ("llama", None),
        ("gpt2", None),
    ],
)
def test_every_kind_of_layer_stays(kind: str, expected: list[str] | None) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = tiny.shrunk(AutoConfig.for_model(kind).to_dict(), 320)
    assert small.num_hidden_layers == 2
    if expected:
        assert small.layer_types == expected
    small.pad_token_id = small.bos_token_id = small.eos_token_id = 0
    model = AutoModelForCausalLM.from_config(small)
    with torch.no_grad():
        assert model(input_ids=torch.arange(8)[None]).logits.shape == (1, 8, 320)


@pytest.mark.parametrize(
    ("accel", "overrides", "message"),
    [
        ("fsdp2", "load_in_4bit=false", "FSDP2 cannot be rehearsed; ACCEL=ddp"),
        ("ddp", "fp16=true bf16=false", "fp16: true needs a GPU"),
        ("ddp", "attn_implementation=flash_attention_2", "needs a GPU, so it cannot be rehearsed"),
        (
            "zero3",
            "bnb_4bit_quant_storage=uint8",
            "ZeRO-3 can only partition 4-bit weights that are stored as bfloat16",
        ),
        ("ddp", "global_batch_size=24", "global_batch_size 24 is not reachable"),
        ("ddp", "train_file=data/none.jsonl", r"data/none\.jsonl"),
        ("ddp", "model_name_or_path=no/such", "its config is not on this machine"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(project: Path, accel: str, overrides: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rehearse.rehearse("default", accel=accel, overrides=[overrides])
    assert not Path("runs").exists()


def test_a_quantised_base_is_refused(project: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, project / "mxfp4")
    config = json.loads((tiny_model / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (project / "mxfp4" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"\./mxfp4 is already quantised"):
        rehearse.rehearse("tiny", accel="cpu", overrides=["model_name_or_path=./mxfp4"])


def test_a_rehearsal_of_one_process_is_whole_and_says_what_it_is(
    project: Path, train_here: Callable[..., Any], capsys: pytest.CaptureFixture
) -> None:
    run = launch.create(job("tiny", "single_gpu"), None)
    assert run.name.startswith("rehearsal-tiny-")
    train_here(run=run)
    facts = run.facts()
    assert facts["status"] == "finished"
    assert facts["rehearsal"] is True
    assert facts["rehearses"]["tokenizer"] == "its own"
    assert facts["in_effect"]["base"]["four_bit_layers"] == 14
    assert facts["measured"]["step"] == rehearse.STEPS
    assert [entry["step"] for entry in facts["measured"]["eval_loss"]] == [rehearse.STEPS]
    assert (run.directory / "checkpoint-3" / "manifest.json").is_file()
    capsys.readouterr()
    assert launch.conclude(run, facts | {"seconds": 9}) == launch.FINISHED
    said = capsys.readouterr().out
    assert "no result: the model was tiny and random" in said
    assert "eval loss" not in said and "adapter    runs" not in said


def test_a_run_in_earnest_is_no_rehearsal(project: Path) -> None:
    assert launch.create(jobs.check("tiny"), "real").facts()["rehearsal"] is False


@pytest.mark.parametrize("how", ["resume", "train"])
def test_a_rehearsal_is_never_continued(project: Path, how: str) -> None:
    run = launch.create(job("tiny", "cpu"), "interrupted")
    run.update(status="interrupted")
    with pytest.raises(InputError, match="is a rehearsal, which is never continued"):
        if how == "resume":
            launch.resume(run.name)
        else:
            launch.train("tiny", run_name=run.name, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_four_gpus_are_rehearsed_on_two_processes(project: Path, capfd: pytest.CaptureFixture) -> None:
    """Full fine-tuning on its own topology, ZeRO-3, whose model is gathered when it is saved."""
    job("full_finetune", "zero3")
    capfd.readouterr()
    code, run = rehearse.rehearse("full_finetune", run_name="dress")
    facts, said = run.facts(), capfd.readouterr().out
    assert code == 0, said
    assert (run.name, facts["rehearsal"], facts["status"]) == ("dress", True, "finished")
    assert facts["rehearses"]["topology"]["processes"] == 4
    effect = facts["in_effect"]
    assert (effect["run"]["world_size"], effect["run"]["zero_stage"]) == (2, 3)
    assert effect["run"]["effective_batch"] == 2 * facts["rehearses"]["global_batch_size"] // 4
    assert effect["run"]["mixed_precision"] == "bf16"
    assert (effect["adapter"]["modules"], effect["base"]["four_bit_layers"]) == ({}, 0)
    assert effect["adapter"]["trainable_parameters"] == effect["base"]["parameters"]
    assert "with a tiny random model of the kind of Qwen/Qwen3-8B" in said
    assert "the demo's takes its place" in said
    assert "checkpoint-3 and the model" in said
    from safetensors.torch import load_file

    saved = load_file(run.adapter / "model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) >= effect["base"]["parameters"]


def test_a_wrong_target_is_found_under_the_models_own_name(project: Path, launch_here: None) -> None:
    job("tiny", "cpu")
    with pytest.raises(InputError, match="q_porj matches no module of model; its linear layers are"):
        rehearse.rehearse("tiny", overrides=["lora_target_modules=[q_porj]"])
    assert not list(Path("runs").iterdir())
