"""Every recipe that an audit writes loads, and has no blocking finding that the audit does not state."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from theirs import AXOLOTL, CASES, FACTORY, FILES, TRL, audited, outcomes

from sft_recipes.interop import importers, tables
from sft_recipes.interop.audit import OPEN, Audit, audit, write
from sft_recipes.models import base_model
from sft_recipes.plan import lint
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology

BASES = {
    "trl": TRL,
    "alignment-handbook": "model_name_or_path: a/b\ndataset_mixer: {c/d: 1.0}\n",
    "axolotl": AXOLOTL,
    "llama-factory": FACTORY.replace("bf16: true\n", ""),
    "llama-factory-v1": "model: a/b\ntrain_dataset: rows.jsonl\n",
    "ms-swift": "model: a/b\ndataset: rows.jsonl\ntorch_dtype: bfloat16\n",
    "torchtune": yaml.safe_dump(
        {
            "model._component_": "torchtune.models.llama3.llama3_8b",
            "checkpointer.checkpoint_dir": "base/model",
            "optimizer._component_": "torch.optim.AdamW",
            "dataset._component_": "torchtune.datasets.alpaca_dataset",
            "dtype": "bf16",
        }
    ),
    "oumi": yaml.safe_dump(
        {
            "model.model_name": "a/b",
            "model.torch_dtype_str": "bfloat16",
            "training.trainer_type": "TRL_SFT",
            "data.train.datasets": [{"dataset_name": "c/d"}],
        }
    ),
}


def refusals(made: Audit, tmp_path: Path) -> list[str]:
    """The blocking findings of the recipe that an audit writes, which the audit does not state."""
    out = tmp_path / "translated.yaml"
    out.unlink(missing_ok=True)
    write(made, out)
    recipe = recipes.load(out)
    place = topology.read(recipe["accelerate_config"] or "ddp", "a test", made.processes)
    model = base_model.find(recipe["model_name_or_path"], str(recipe["model_revision"]))
    stated = {key for entry in made.entries if entry.outcome in OPEN for key in (entry.key, *entry.sets)}
    return [
        f"{found.rule}: {found.message}"
        for found in lint.findings(lint.Case(recipe, place, model=model))
        if found.stops and not any(key in found.message for key in stated)
    ]


@pytest.mark.parametrize("tool", BASES)
def test_no_key_makes_a_recipe_that_is_refused(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path, base = tmp_path / "theirs.yaml", yaml.safe_load(BASES[tool])
    seen, found = set(), {}
    for key in importers.TOOLS[tool].keys:
        cases = tables.DATA["tools"][tool]["cases"].get(key, [])
        listed = [value for case in cases if isinstance(case.get("is"), list) for value in case["is"]]
        right, wrong = False, {}
        for value in (True, 4, 0.25, "a/b", *listed):
            said = importers.translate(tool, key, value, base)
            what = json.dumps([said.values, key], default=str)
            if not said.values or what in seen or (right and value not in listed):
                continue
            seen.add(what)
            path.write_text(yaml.safe_dump(base | {key: value}), encoding="utf-8")
            made = audit(path, tool, None if key == "accelerate_config" else 2)
            problems = [*made.problems] or refusals(made, tmp_path)
            right |= not problems
            wrong |= {(key, value): problems} if problems else {}
        # A table's own values are right; of those of every type one has to be.
        found |= {name: why for name, why in wrong.items() if not right or name[1] in listed}
    assert seen
    assert found == {}


@pytest.mark.parametrize("name", CASES)
def test_no_recipe_of_a_public_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert refusals(audit(FILES / name), tmp_path) == []


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (TRL + "use_peft: true\nlora_target_modules: [q_proj, lm_head]\n", "lora_target_modules"),
        (TRL + "use_peft: true\nlora_target_parameters: [mlp.experts.down_proj]\n", "lora_dropout"),
        (TRL + "use_peft: true\nlora_target_parameters: [a.b]\nlora_dropout: 0.1\n", "lora_dropout"),
        (TRL + "model_init_kwargs: {trust_remote_code: true}\n", "model_init_kwargs"),
        (TRL + "bf16: false\n", "bf16"),
        (TRL + "fp16: true\n", "fp16"),
    ],
)
def test_what_a_plan_refuses_of_any_recipe_is_stated(
    content: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made = audited(tmp_path, content, processes=2)
    assert key in outcomes(made)["inexpressible"]
    assert refusals(made, tmp_path) == []
    assert key not in outcomes(audited(tmp_path, TRL + "use_peft: true\n", processes=2)).get("inexpressible", set())


def test_what_is_not_stated_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = audited(tmp_path, TRL + "bf16: false\n", processes=2)
    silent = dataclasses.replace(made, entries=tuple(entry for entry in made.entries if entry.key != "bf16"))
    assert [found.partition(":")[0] for found in refusals(silent, tmp_path)] == ["unsupported-pair"]
