import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, alpaca_rows, write_rows
from finished import BARE

from sft_recipes.models import base_model
from sft_recipes.plan import gpus, memory, plan, speed
from sft_recipes.plan.memory import Setup
from sft_recipes.recipes import recipe, topology
from sft_recipes.runs.run import Run


def llama3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> base_model.Model:
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    return base_model.from_config("Llama-3-8B", config, "test")


@pytest.fixture(scope="module")
def qwen() -> base_model.Model:
    found = base_model.find("Qwen/Qwen3-8B")
    assert found is not None
    return found


def test_operations_are_four_n_six_n_and_with_all_weights_six_n_eight_n(qwen: base_model.Model) -> None:
    weights = qwen.elements("linear") + qwen.elements("head")
    short = {"length": 1, "rank": 1, "fused_head": False}
    lora, lora_again, full, full_again = (
        speed.flops_per_token(qwen, Setup(use_peft=peft, checkpointing=again, **short)) / weights
        for peft in (True, False)
        for again in (False, True)
    )
    assert lora == pytest.approx(4, rel=0.01)
    assert full == pytest.approx(6, rel=0.01)
    # The head is not recomputed.
    body = qwen.elements("linear") / weights
    assert lora_again == pytest.approx(4 + 2 * body, rel=0.01)
    assert full_again == pytest.approx(6 + 2 * body, rel=0.01)


def test_longer_rows_and_masked_attention_cost_more(qwen: base_model.Model) -> None:
    flash, dense = (
        [speed.flops_per_token(qwen, Setup(attention=name, length=length)) for length in (2048, 16384)]
        for name in ("flash_attention_2", "sdpa")
    )
    assert flash[0] < flash[1] < dense[1]
    assert dense[1] - dense[0] == pytest.approx(2 * (flash[1] - flash[0]))


def test_only_visited_experts_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": "qwen3_moe",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
    model = base_model.from_config("tiny", config, "test")
    assert speed.active_experts(model, memory.Shape.of(model)) == 2 * 2 * 3 * 64 * 32
    told = speed.speed(model, Setup(), gpus.find("a100-80gb"), accumulation=1)
    assert told.seconds_per_step is None and told.basis.startswith("the published speeds of mixtures")


@pytest.mark.parametrize(
    ("gpu", "changes", "published"),
    [
        # Llama-3-8B with FOAK and Liger kernels, 4096 x 32, one A100; and sharded over 4 (fms-acceleration).
        ("a100-80gb", {"four_bit": True, "tokens": 131072}, 4160),
        ("a100-80gb", {"four_bit": True, "fsdp": True, "processes": 4, "tokens": 65536}, 4089),
        # Mistral-7B, 4096 x 4; its shape is Llama-3's but for the vocabulary.
        ("a100-80gb", {"four_bit": True, "tokens": 16384}, 3596),
        ("a100-80gb", {"tokens": 16384}, 3324),
        # NeMo's performance summary: nothing recomputed.
        ("h100-80gb", {"tokens": 8192, "checkpointing": False, "targets": ("all-linear",)}, 12473),
        # torchtune's README: recomputed, 2048 x 2.
        ("rtx-4090", {"tokens": 4096, "length": 2048}, 3083),
        ("rtx-4090", {"four_bit": True, "tokens": 4096, "length": 2048}, 2413),
    ],
)
def test_published_throughputs_lie_within_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, changes: dict[str, Any], published: float
) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    usual = {"attention": "flash_attention_2", "length": 4096, "targets": targets, "fused_head": False}
    setup = Setup(**(usual | changes))
    low, high = speed.per_micro_batch(llama3(tmp_path, monkeypatch), setup, gpus.find(gpu))
    assert setup.tokens / high < published * 1.02
    assert published * 0.98 < setup.tokens / low


def test_what_plan_reads_is_what_the_page_says() -> None:
    """Of the committed constants; scripts/validate_speed.py writes both at once."""
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for weights, each in speed.PUBLISHED["fixed_seconds"].items():
        assert f"| {weights} | {' | '.join(f'{low:.2f} to {high:.2f}' for low, high in each.values())} |" in page
    for card, kinds in speed.PUBLISHED["efficiency"].items():
        for weights, each in kinds.items():
            assert re.search(rf"\| {card} \| {weights} \|.* {each['low']:.2f} to {each['high']:.2f} \|", page)
    rows = (ROOT / "tests" / "plan" / "measured_speed.csv").read_text(encoding="utf-8").splitlines()[1:]
    counted = sum(each["rows"] for kinds in speed.PUBLISHED["efficiency"].values() for each in kinds.values())
    assert len(re.findall(r"^\| \d+ \|", page, re.MULTILINE)) == len(rows) > counted
    assert re.search(r"of \d+ rows \d+ are within the range", page)


@pytest.fixture(scope="module")
def validate_speed() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("validate_speed")


def test_the_fit_finds_what_the_rows_were_made_with(validate_speed: ModuleType) -> None:
    """A fixed part and an efficiency for each group, on rows computed from them."""
    rows = [
        validate_speed.Row(
            {"group": f"{efficiency}", "source": "https://x/y/z/w"},
            Setup(four_bit=four_bit, fsdp=sharded),
            "a100-80gb",
            (0.1 + four_bit * 0.1 + sharded * 0.3) * size + ideal / efficiency,
            ideal,
            size,
        )
        for four_bit in (False, True)
        for sharded in (False, True)
        for efficiency in (0.4, 0.6)
        for size in (0.5, 2.0)
        for ideal in (0.05, 0.5, 5.0)
    ]
    fixed = validate_speed.fit(rows)
    assert fixed == pytest.approx({(False, False): 0.1, (True, False): 0.2, (False, True): 0.4, (True, True): 0.5})
    for kind, (low, high) in validate_speed.fixed_range(rows).items():
        assert (low, high) == pytest.approx((fixed[kind], fixed[kind]))
    for low, high in validate_speed.bands(rows, fixed).values():
        assert (low, high) == pytest.approx((0.4, 0.6))


def test_more_tokens_in_a_micro_batch_are_faster_for_each(qwen: base_model.Model) -> None:
    per_token = [
        speed.per_micro_batch(qwen, Setup(four_bit=True, tokens=tokens, length=512), gpus.find("h200"))[1] / tokens
        for tokens in (512, 2048, 8192)
    ]
    assert per_token == sorted(per_token, reverse=True)


def test_an_estimate_says_what_it_rests_on(qwen: base_model.Model) -> None:
    found = speed.speed(qwen, Setup(), gpus.find("h100-80gb"), accumulation=4)
    assert found.seconds_per_step is not None
    low, high = found.seconds_per_step
    assert 0 < low < high
    band = speed.PUBLISHED["efficiency"]["h100-80gb"]["whole"]
    assert found.basis.startswith(
        f"published: {band['low']:.0%} to {band['high']:.0%} of 989 TFLOP/s in 2 rows of NVIDIA"
    )
    assert "not measured" in found.basis
    assert speed.speed(qwen, Setup(), gpus.find("h200"), accumulation=4) == found, "the same chip with the same peak"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"on_cpu": True}, "on a CPU only a finished run tells"),
        ({"spec": None}, "no figures for this GPU"),
        ({"model": None}, "config is not here"),
        ({"spec": gpus.find("b200")}, "nobody's speed of b200 with whole weights is on record"),
        ({"spec": gpus.find("h100-80gb-3g.40gb")}, "nobody's speed of h100-80gb-3g.40gb"),
        ({"spec": gpus.find("l40s"), "setup": Setup(fsdp=True)}, "nobody's speed of l40s with sharded weights"),
    ],
)
def test_what_is_not_known_is_said(qwen: base_model.Model, changes: dict[str, Any], reason: str) -> None:
    arguments = {"model": qwen, "spec": gpus.find("h200"), "setup": Setup(), **changes}
    found = speed.speed(accumulation=1, **arguments)
    assert found.seconds_per_step is None
    assert reason in found.basis


def write_run(name: str, asked: recipe.Recipe, chosen: topology.Topology, **changes: Any) -> None:
    directory = Path("runs") / name
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text(recipe.dump(asked.upstream()), encoding="utf-8")
    facts = {
        **BARE,
        "status": "finished",
        "own": asked.own(),
        "topology": {
            "name": chosen.name,
            "backend": chosen.backend,
            "processes": chosen.processes,
            "zero_stage": chosen.zero_stage,
            "use_cpu": chosen.use_cpu,
        },
        "gpus": [],
        "cpus": os.cpu_count(),
        "started": "2026-01-01T00:00:00+0000",
        "measured": {"step": 1, "tokens_per_second": 1000.0},
        **changes,
    }
    (directory / "run.json").write_text(json.dumps(facts), encoding="utf-8")


def test_a_run_of_the_same_work_says_it_better(project: Path, qwen: base_model.Model) -> None:
    asked = recipe.load("tiny")
    chosen = topology.read("cpu", "test")
    resolved = topology.resolve(asked, chosen)
    assert speed.measured(asked, chosen, []) is None
    write_run("old", resolved, chosen)
    write_run(
        "new", resolved, chosen, started="2026-02-01T00:00:00+0000", measured={"step": 1, "tokens_per_second": 2000.0}
    )
    found = speed.measured(asked, chosen, [])
    assert found == speed.Measured("new", 2000.0)
    told = speed.speed(qwen, Setup(), None, 4, found, tokens_per_step=500, on_cpu=True)
    assert told == speed.Speed((0.25, 0.25), "measured: 2,000 tokens/s in runs/new")


def test_selective_checkpointing_keeps_the_attention_and_does_not_compute_it_twice(qwen: base_model.Model) -> None:
    """Its output, and a float32 for each head; TRL's policy knows torch's attention, and eager has none to keep."""
    usual = Setup(tokens=4096, length=4096)
    full, kept, off = usual, Setup(tokens=4096, length=4096, selective=True), Setup(tokens=4096, checkpointing=False)
    held = [memory.estimate(qwen, each).activations for each in (full, kept, off)]
    assert held[1] - held[0] == 36 * 4096 * (2 * 4096 + 4 * 32) and held[1] < held[2]
    work = [speed.flops_per_token(qwen, each) for each in (full, kept)]
    assert work[0] - work[1] == 4 * 4096 * 4096 * 36
    eager = [memory.estimate(qwen, Setup(attention="eager", selective=each)).activations for each in (False, True)]
    assert eager[0] == eager[1]


@pytest.mark.parametrize(("peft", "useful"), [(True, 4), (False, 6)])
def test_a_run_s_utilisation_is_its_useful_operations_over_the_peak_of_its_gpus(
    project: Path, qwen: base_model.Model, peft: bool, useful: int
) -> None:
    """Of 8.2e9 parameters all but the embedding are multiplied with; that of the head is."""
    words = [f"use_peft={str(peft).lower()}", "load_in_4bit=false", "train_file=data/train.jsonl"]
    chosen = topology.read("ddp", "test")
    asked = topology.resolve(recipe.load("default", recipe.parse_overrides(words)), chosen)
    measured, machine = {"step": 1, "tokens_per_second": 8000.0}, ["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 4
    write_run("run", asked, chosen, gpus=machine, measured=measured)
    number = qwen.elements() - 151936 * 4096
    assert speed.matrix_parameters(qwen) == pytest.approx(number, rel=1e-3)
    expected = useful * number * 8000 / (4 * 312e12)
    assert speed.utilisation(Run.open("run")) == pytest.approx(expected, rel=1e-3)
    for name, changes in {
        "cpu": {"topology": topology.read("cpu", "test").facts()},
        "unknown": {"gpus": ["NVIDIA X1, 81920 MiB"] * 4},
        "unmeasured": {"measured": {"step": 1, "tokens_per_second": None}},
    }.items():
        write_run(name, asked, chosen, **{"gpus": machine, "measured": measured, **changes})
        assert speed.utilisation(Run.open(name)) is None


def test_evaluations_take_time_as_measured_or_as_the_forward_part_of_a_step(project: Path) -> None:
    chosen = topology.read("cpu", "test")
    asked = topology.resolve(recipe.load("tiny"), chosen)
    splits = {**BARE["data"]["splits"], "validation": {"source": "v", "sha256": "v", "rows": 8, "prepared_rows": 8}}
    write_run("run", asked, chosen, data=BARE["data"] | {"splits": splits})
    log = [{"step": step, "epoch": 1.0, "time": 1.0, "eval_loss": 1.0, "eval_runtime": 2.0} for step in (4, 8)]
    Path("runs/run/log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
    run = speed.measured(asked, chosen, [])
    assert run == speed.Measured("run", 1000.0, 4.0)
    assert speed.evaluation(Setup(), 0.001, rows=20, tokens=3000, run=run) == 5.0
    for setup, expected in {(True, True): 1.0, (True, False): 1.5, (False, True): 0.75, (False, False): 1.0}.items():
        usual = Setup(use_peft=setup[0], checkpointing=setup[1])
        assert speed.evaluation(usual, 0.001, rows=20, tokens=3000, run=None) == pytest.approx(expected)


def test_a_plan_s_time_has_the_evaluations_in_it(project: Path) -> None:
    write_rows(project / "data" / "validation.jsonl", alpaca_rows(2000, seed=2))
    files = "train_file=data/train.jsonl validation_file=data/validation.jsonl"
    never = "eval_strategy=no load_best_model_at_end=false early_stopping_patience=0"
    with_them, without = (
        plan.plan("default", gpu="a100-80gb", overrides=[f"{files} {words}"])["time"] for words in ("", never)
    )
    assert (with_them["evaluations"], without["evaluations"]) == (3, 0)
    assert all(more > less for more, less in zip(with_them["seconds"], without["seconds"], strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "interrupted"},
        {"rehearsal": True},
        {"gpus": ["NVIDIA L4, 23034 MiB"]},
        {"measured": {"step": 1, "tokens_per_second": None}},
        {"started": None, "own": None},
    ],
)
def test_a_run_of_another_kind_says_nothing(project: Path, changes: dict[str, Any]) -> None:
    asked = recipe.load("tiny")
    chosen = topology.read("cpu", "test")
    write_run("other", topology.resolve(asked, chosen), chosen, **changes)
    assert speed.measured(asked, chosen, []) is None


@pytest.mark.parametrize("override", ["max_length=64", "activation_checkpointing=true", "lora_r=4", "optim=sgd"])
def test_another_recipe_is_not_measured_by_it(project: Path, override: str) -> None:
    chosen = topology.read("cpu", "test")
    write_run("other", topology.resolve(recipe.load("tiny"), chosen), chosen)
    assert speed.measured(recipe.load("tiny"), chosen, []) is not None
    assert speed.measured(recipe.load("tiny", recipe.parse_overrides(override)), chosen, []) is None
