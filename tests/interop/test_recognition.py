"""Whose a file is: several keys with a margin tell, and what is no file of a supervised fine-tuning is refused."""

from pathlib import Path

import pytest
from theirs import AXOLOTL, TRL, audited, outcomes

from sft_recipes.errors import InputError
from sft_recipes.interop import importers


def test_a_file_of_one_tool_has_no_other_tools_signs_by_half() -> None:
    for name, tool in importers.TOOLS.items():
        for other, rival in importers.TOOLS.items():
            if name != other and tool.of is None and rival.of is None:
                assert 2 * len({*tool.signs} & {*rival.signs}) <= len(tool.signs), (name, other)


OTHER_JOBS = {
    "llama-factory": [
        "model_name_or_path: a/b\nadapter_name_or_path: c\ntemplate: qwen3\nexport_dir: out\nexport_size: 5\n",
        "stage: dpo\nfinetuning_type: lora\nmodel_name_or_path: a/b\n",
        "model_name_or_path: a/b\ntemplate: qwen3\ninfer_backend: huggingface\n",
    ],
    "llama-factory-v1": ["model: a/b\npeft_config: {name: lora, adapter_name_or_path: c, export_dir: out}\n"],
    "axolotl": [AXOLOTL + "rl: dpo\n", AXOLOTL + "reward_model: true\n"],
    "trl": [TRL + "beta: 0.1\n", TRL + "reward_funcs: [accuracy]\nnum_generations: 8\n"],
    "ms-swift": ["model: a/b\ndataset: rows.jsonl\nrlhf_type: grpo\n"],
    "torchtune": [
        "model: {_component_: torchtune.models.llama3.llama3_8b}\ntokenizer: {_component_: torchtune.models.x}\n",
        "model: {_component_: a.lora_x}\noptimizer: {_component_: torch.optim.AdamW}\n"
        "loss: {_component_: torchtune.rlhf.loss.DPOLoss}\n",
    ],
    "oumi": ["model: {model_name: a/b}\ndata: {train: {datasets: []}}\ntraining: {trainer_type: TRL_DPO}\n"],
}


@pytest.mark.parametrize("tool", OTHER_JOBS)
def test_another_kind_of_job_is_no_recipe(tmp_path: Path, tool: str) -> None:
    for content in OTHER_JOBS[tool]:
        with pytest.raises(InputError, match=r"a file of .*; no recipe can be made of it"):
            audited(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        # A file of NeMo, of accelerate, of DeepSpeed, of a merge, of LitGPT, and of a continuous integration.
        "step_scheduler: {global_batch_size: 64, local_batch_size: 8}\n"
        "model: {_target_: nemo_automodel.NeMoAutoModel.from_pretrained, pretrained_model_name_or_path: a/b}\n"
        "dataset: {_target_: x.squad}\noptimizer: {_target_: torch.optim.Adam, lr: 1e-5}\nlr_scheduler: {a: b}\n",
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 8\n"
        "fsdp_config: {fsdp_version: 2}\ndebug: false\nuse_cpu: false\n",
        "train_batch_size: auto\ngradient_accumulation_steps: auto\nzero_optimization: {stage: 3}\n"
        "fp16: {enabled: auto}\nbf16: {enabled: auto}\noptimizer: {type: AdamW}\n",
        "merge_method: slerp\nbase_model: a/b\nslices: []\nparameters: {t: 0.5}\ndtype: bfloat16\n",
        "checkpoint_dir: a/b\nout_dir: out\nprecision: bf16-true\nlora_r: 8\noptimizer: {class_path: x}\n"
        "train: {global_batch_size: 8, micro_batch_size: 1}\nseed: 1\n",
        "name: build\non: [push]\njobs: {a: {steps: []}}\n",
        # Two signs of one tool, and keys that nobody knows.
        "base_model: a/b\nsequence_len: 8\nfoo: 1\nbar: 2\nbaz: 3\n",
        # As much of one as of another.
        "base_model: a/b\nsequence_len: 8\nstage: sft\nlora_target: all\n",
    ],
)
def test_a_file_of_no_known_tool_is_refused_and_can_be_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"with --tool \(TOOL=\)"):
        audited(tmp_path, content)
    # Whoever names a tool has every key that it does not know in the table.
    made = audited(tmp_path, content, "axolotl")
    assert "unknown" in outcomes(made) or made.problems
