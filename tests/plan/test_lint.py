"""Each rule on a case that trips it and on one that does not."""

import dataclasses
import importlib
import inspect
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_lint_data import REFUSED

from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.plan import lint, schedule
from sft_recipes.plan.gpus import find as find_gpu
from sft_recipes.plan.lint import Case
from sft_recipes.recipes import recipe, topology


def lengths(**splits: dict[int, int]) -> dict[str, Any]:
    """What a survey knows of rows of these lengths, whose answers take the last four tokens."""
    return {
        "splits": {
            name: {
                "rows": sum(rows.values()),
                "lengths": {str(length): number for length, number in rows.items()},
                "answer_starts": {str(length - 4): number for length, number in rows.items()},
                "span_starts": {str(length - 4): number for length, number in rows.items()},
                "span_ends": {str(length): number for length, number in rows.items()},
                "stops": {str(length): number for length, number in rows.items()},
                "turn_stops": {},
                "unstopped_lengths": {},
            }
            for name, rows in splits.items()
        },
        "tokens_are": "exact",
        "tokenizer": None,
    }


# The advice that `case` follows beside what it is asked for: keys of the recipe, and make's variables.
FOLLOWED: dict[str, Any] = {}
PLACED: dict[str, str] = {}


def case(
    name: str = "default",
    accel: str = "ddp",
    *,
    gpus: int = 0,
    rows: int | None = None,
    config: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    processes: int | None = None,
    gpu: str | None = None,
    **overrides: Any,
) -> Case:
    """A shipped recipe with overrides on a shipped topology, for so many rows and a base model of this config."""
    words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in (overrides | FOLLOWED).items()]
    loaded = recipe.load(name, recipe.parse_overrides(words))
    chosen = topology.read(PLACED.get("ACCEL", accel), "test", int(PLACED.get("GPUS", 0)) or processes)
    model = base_model.find(loaded["model_name_or_path"])
    if config is not None:
        assert model is not None
        model = base_model.Model(model.name, model.config | config, "test", model.groups)
    plan = schedule.schedule(loaded, chosen, rows) if rows else None
    card = find_gpu(gpu) if gpu else None
    return Case(loaded, chosen, (topology.Gpu("NVIDIA A100-SXM4-80GB", 81920),) * gpus, card, model, data, plan)


PLACE = tempfile.TemporaryDirectory()


def damaged() -> Case:
    """A model's directory whose index names a file that is not there."""
    whole = case()
    assert whole.model is not None
    Path(PLACE.name, "config.json").write_text(json.dumps(whole.model.config))
    index = {"weight_map": {"weight": "model-2.safetensors"}}
    Path(PLACE.name, "model.safetensors.index.json").write_text(json.dumps(index))
    return case(model_name_or_path=PLACE.name)


GPT_OSS = {"model_name_or_path": "openai/gpt-oss-20b", "load_in_4bit": False, "lora_dropout": 0.0}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} | {
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
EXPERTS = {"num_experts": 128, "router_aux_loss_coef": 0.9}
SHORT = lengths(train={20: 900, 400: 100})
EVEN = lengths(train={2000: 1000})

# rule: (a case that trips it, a word of its message, one that does not)
CASES: dict[str, tuple[Any, str, Any]] = {
    "warmup-share": (lambda: case(rows=2686), "100 of 126 steps", lambda: case(rows=100_000)),
    "batch-exceeds-rows": (
        lambda: case(rows=64, global_batch_size=128),
        "global_batch_size is 128, and a step takes the 64 training rows there are",
        lambda: case(rows=128, global_batch_size=128),
    ),
    "few-steps": (lambda: case(rows=1000), "48 optimizer steps", lambda: case(rows=10_000)),
    "early-stopping-idle": (
        lambda: case(rows=10_000),
        "needs 3 evaluations",
        lambda: case(rows=10_000, num_train_epochs=5),
    ),
    "evaluation-never-runs": (
        lambda: case(rows=1000, eval_delay=10),
        "no best model",
        lambda: case(rows=1000, eval_delay=1),
    ),
    "evaluation-once": (
        lambda: case("quick_test", rows=1000),
        "among one evaluation",
        lambda: case(rows=1000),
    ),
    "rows-dropped": (
        lambda: case(rows=1001, dataloader_drop_last=True),
        "leaves 9 rows",
        lambda: case(rows=1008, dataloader_drop_last=True),
    ),
    "warmup-ignored": (
        lambda: case(rows=6400, lr_scheduler_type="constant"),
        "constant begins at the full learning rate, so warmup_steps: 100 does nothing",
        lambda: case(rows=6400, lr_scheduler_type="constant_with_warmup"),
    ),
    "partial-epoch": (lambda: case(rows=6400, max_steps=150), "1.50 epochs", lambda: case(rows=6400)),
    "batch-unreachable": (lambda: case(global_batch_size=60), "60 is not reachable", lambda: case()),
    "unsupported-pair": (lambda: case(accel="fsdp2"), "FSDP2 cannot train", lambda: case(accel="zero3")),
    "devices-missing": (lambda: case(gpus=1), "ddp needs 4 GPUs, 1 is visible", lambda: case(gpus=4)),
    "tool-missing": (
        lambda: case(report_to="mlflow", accel="cpu"),
        "report_to: mlflow is not installed",
        lambda: case(accel="cpu"),
    ),
    "model-damaged": (
        damaged,
        "'model-2.safetensors' missing of its 1 file of weights",
        lambda: case(),
    ),
    "model-missing": (
        lambda: case(model_name_or_path="./nowhere"),
        "./nowhere has no config.json",
        lambda: case(model_name_or_path=".cache/demo/base"),
    ),
    "devices-idle": (lambda: case(accel="single_gpu", gpus=4), "one of 4", lambda: case(accel="single_gpu", gpus=1)),
    "zero-saves-nothing": (lambda: case(accel="zero2"), "ZeRO-2 saves 0.15 GiB", lambda: case(accel="ddp")),
    "checkpoint-quantised": (
        lambda: case(config={"quantization_config": {"quant_method": "mxfp4"}}),
        "(mxfp4)",
        lambda: case(config={"quantization_config": {"quant_method": "mxfp4"}}, load_in_4bit=False),
    ),
    "stored-quantised": (
        lambda: case(config={"quantization_config": AWQ}, load_in_4bit=False),
        "stored quantised (awq), which needs the packages of awq to be trained on; counted with 4.2 bits a weight",
        lambda: case(config={"quantization_config": BNB}),
    ),
    "positions-missing": (
        lambda: learned_positions({30: 20, 1200: 1}, max_length=2048),
        "rows have up to 1,200 tokens, and org/model has positions for 1,024 alone",
        lambda: learned_positions({30: 20, 1000: 1}, max_length=2048),
    ),
    "beyond-positions": (
        lambda: case(data=lengths(train={50_000: 9}), max_length=65_536),
        "was made for 40,960: nothing beyond is known to it",
        lambda: case(data=lengths(train={300: 9}), max_length=65_536),
    ),
    "four-bit-coverage": (lambda: experts_case(), "would be in 4 bit", lambda: case()),
    "compute-dtype": (lambda: case(dtype="float16"), "compute in float16", lambda: case()),
    "precision-mixed": (
        lambda: case(dtype="float16"),
        "dtype: float16 holds the weights in another precision than bf16: true computes in",
        lambda: case(dtype="float16", bf16=False, fp16=True),
    ),
    "target-unmatched": (
        lambda: case(lora_target_modules=["q_proj,v_proj"]),
        "a list is written",
        lambda: case(lora_target_modules=["q_proj", "self_attn.v_proj"]),
    ),
    "target-head": (lambda: case(lora_target_modules=["q_proj", "lm_head"]), "lm_head", lambda: case()),
    "attention-only-experts": (
        lambda: case(**GPT_OSS, lora_target_modules=["all-linear"]),
        "32 experts are not adapted",
        lambda: case(**GPT_OSS, lora_target_parameters=["mlp.experts.down_proj"]),
    ),
    "alpha-follows-rank": (
        lambda: case("high_capacity"),
        "32 -> 64 and lora_alpha 32 -> 64",
        lambda: case("high_capacity", lora_alpha=32),
    ),
    "adapter-refused": (
        lambda: case(**GPT_OSS | {"lora_dropout": 0.1}, lora_target_parameters=["mlp.experts.down_proj"]),
        "lora.ParamWrapper does not work with lora_dropout != 0",
        lambda: case(**GPT_OSS, lora_target_parameters=["mlp.experts.down_proj"]),
    ),
    "model-class": (
        lambda: case(config={"architectures": None}),
        "names no architectures",
        lambda: case(),
    ),
    "attention-unsupported": (
        lambda: of_config({"model_type": "bloom"}, attn_implementation="sdpa"),
        "does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention",
        lambda: of_config({"model_type": "bloom"}, attn_implementation="eager"),
    ),
    "part-without-gradient": (
        lambda: case(model_name_or_path="google/gemma-3-4b-it", use_peft=False, load_in_4bit=False),
        "rows of text leave part of it without a gradient",
        lambda: case(use_peft=False, load_in_4bit=False),
    ),
    "router-loss": (
        lambda: case(config=EXPERTS),
        "0.9, from the model config",
        lambda: case(config=EXPERTS, router_aux_loss_coef=0.0),
    ),
    "updates-round-away": (
        lambda: case("full_finetune", "ddp"),
        "moves by 0.00012 or not at all",
        lambda: case("full_finetune", "zero2"),
    ),
    "sharded-8bit-optimizer": (
        lambda: case(accel="zero2", optim="paged_adamw_8bit"),
        "paged_adamw_8bit under zero2",
        lambda: case(accel="ddp", optim="paged_adamw_8bit"),
    ),
    "model-unpinned": (lambda: case(), "taken at 'main'", lambda: case(model_revision="0" * 40)),
    "data-unpinned": (
        lambda: case(train_file=None, dataset_name="org/rows"),
        "org/rows is read",
        lambda: case(),
    ),
    "remote-code": (
        lambda: case(model_init_kwargs={"trust_remote_code": True}),
        "trust_remote_code",
        lambda: case(model_init_kwargs={"use_kernels": True}),
    ),
    "tracker-credentials": (lambda: case(report_to="wandb"), "WANDB_API_KEY is not set", lambda: case()),
    "loss-on-prompts": (
        lambda: case(
            completion_only_loss=False, data={"splits": {"train": {"tokens": 1000, "supervised_tokens": 60}}}
        ),
        "over all tokens, of which 6.0 % are answers",
        lambda: case(completion_only_loss=None),
    ),
    "learning-rate-range": (lambda: case(learning_rate=2e-5), "2e-05 is outside", lambda: case()),
    "rank-range": (lambda: case(lora_r=512), "512 is outside", lambda: case()),
    "alpha-range": (lambda: case(lora_alpha=256), "is 8, outside", lambda: case(lora_alpha=256, use_rslora=True)),
    "epochs-range": (lambda: case(rows=5000, num_train_epochs=10), "seen 10 times", lambda: case(rows=5000)),
    "batch-range": (lambda: case(global_batch_size=512), "512 is outside", lambda: case()),
    "does-not-fit": (
        lambda: case(gpu="rtx-3090", load_in_4bit=False, activation_checkpointing=False),
        "of the 24 GiB of rtx-3090",
        lambda: case(gpu="rtx-3090"),
    ),
    "micro-batch-tokens": (lambda: case(rows=1000, data=SHORT), "holds about 232 tokens", lambda: case(data=EVEN)),
    "padding-share": (
        lambda: case(data=SHORT),
        "are real tokens",
        lambda: case(data=SHORT, train_sampling_strategy="group_by_length"),
    ),
    "packing-fill": (
        lambda: case(data=lengths(train={300: 1000}), packing=True),
        "packing at max_length 512 fills 59 %",
        lambda: case(data=lengths(train={512: 1000}), packing=True),
    ),
    "joined-rows": (
        lambda: of_config(OPT, packing=True),
        "sdpa attention of opt does not keep rows apart that packing joins",
        lambda: of_config(OPT),
    ),
    "dropout-memory": (lambda: case(activation_checkpointing=False), "lora_dropout 0.05 without", lambda: case()),
}


def experts_case() -> Case:
    """The default recipe on a mixture of experts whose experts are one tensor."""
    whole = case()
    assert whole.model is not None
    fused = base_model.Group("model.layers.*.mlp.experts.gate_up_proj", (128, 1536, 2048), 48, "other")
    model = base_model.Model("moe", whole.model.config, "test", (*whole.model.groups, fused))
    return Case(whole.recipe, whole.topology, model=model)


def of_config(config: dict[str, Any], **given: Any) -> Case:
    """The default recipe on a model of this config."""
    found = case(lora_target_modules=["all-linear"], **given)
    return dataclasses.replace(found, model=base_model.from_config("org/model", config, "test"))


OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"]}


def learned_positions(rows: dict[int, int], **overrides: Any) -> Case:
    """The default recipe on GPT-2, which has 1,024 positions."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 1024}
    return of_config(config, data=lengths(train=rows), **overrides)


def said(rule: str, given: Case) -> list[str]:
    return [found.message for found in lint.rules()[rule].check(given)]


@pytest.fixture(autouse=True)
def nothing_from_outside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project without trackers."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_what_it_says_and_nothing_else(rule: str) -> None:
    trips, words, passes = CASES[rule]
    found = said(rule, trips())
    assert found and any(words in text for text in found), found
    assert said(rule, passes()) == []


ATTENTION = "lora_target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj] with lora_dropout: 0"
SAVING = "eval_strategy: steps, eval_steps: 0.1, the same for saving"
SAVED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 0.1, "save_strategy": "steps", "save_steps": 0.1}
# rule: what its remedy says to write, word for word, and the keys where the words are no YAML of them.
ADVICE: dict[str, dict[str, dict[str, Any]]] = {
    "adapter-refused": {
        "lora_dropout: 0 and use_dora: false": {},
        "lora_target_modules: [q_proj, v_proj] and lora_target_parameters: null": {},
    },
    "alpha-follows-rank": {"lora_alpha: 32": {}},
    "alpha-range": {"lora_alpha: 32": {}},
    "attention-only-experts": {ATTENTION: {}},
    "attention-unsupported": {"attn_implementation: eager": {}},
    "batch-exceeds-rows": {"global_batch_size: 64": {}},
    "batch-range": {"16 to 64": {"global_batch_size": 64}},
    "batch-unreachable": {
        "per_device_train_batch_size 1, 3, 5, 15": {"per_device_train_batch_size": 3},
        "GPUS 1, 3": {"PLACED": {"GPUS": "3"}},
        "global_batch_size 48": {"global_batch_size": 48},
    },
    "beyond-positions": {"set max_length to 40,960 at most": {"max_length": 40960}},
    "checkpoint-quantised": {"load_in_4bit: false": {}},
    "compute-dtype": {"dtype: bfloat16": {}},
    "devices-idle": {"ACCEL=ddp GPUS=4": {}},
    "dropout-memory": {"lora_dropout: 0": {}, "activation_checkpointing: true": {}},
    "early-stopping-idle": {SAVING: SAVED, "early_stopping_patience: 0": {}},
    "epochs-range": {"num_train_epochs: 2 or 3": {"num_train_epochs": 3}},
    "evaluation-never-runs": {"eval_delay: 0": {}},
    "evaluation-once": {
        "eval_strategy: steps and eval_steps: 0.1, the same for saving": SAVED,
        "load_best_model_at_end: false": {},
    },
    "few-steps": {
        "global_batch_size: 16": {},
    },
    "four-bit-coverage": {"load_in_4bit: false": {}},
    "joined-rows": {"packing: false and padding_free: false": {"packing": False}},
    "learning-rate-range": {"2e-4": {"learning_rate": 2e-4}},
    "loss-on-prompts": {"completion_only_loss: true": {}},
    "micro-batch-tokens": {"per_device_train_batch_size: 16": {}},
    "packing-fill": {"max_length: 1536 and global_batch_size: 16": {}},
    "padding-share": {"train_sampling_strategy: group_by_length": {}},
    "part-without-gradient": {"use_peft: true": {}},
    "partial-epoch": {"max_steps: 200": {}, "num_train_epochs: 2": {"max_steps": -1, "num_train_epochs": 2}},
    "positions-missing": {"set max_length to 1,024 at most": {"max_length": 1024}},
    "precision-mixed": {"dtype: bfloat16": {}, "float32": {"dtype": "float32"}},
    "rank-range": {"8 to 64, on all linear layers": {"lora_r": 64, "lora_target_modules": ["all-linear"]}},
    "router-loss": {"router_aux_loss_coef: 0.0": {}},
    "rows-dropped": {"dataloader_drop_last: false": {}},
    "sharded-8bit-optimizer": {"optim: adamw_torch": {}},
    "target-head": {"[all-linear]": {"lora_target_modules": ["all-linear"]}},
    "target-unmatched": {"[all-linear], alone": {"lora_target_modules": ["all-linear"]}},
    "tool-missing": {"report_to: none": {}},
    "tracker-credentials": {"report_to: none": {}},
    "unsupported-pair": {"ACCEL=ddp": {}, "ACCEL=zero3": {}, "SET=load_in_4bit=false": {"load_in_4bit": False}},
    "updates-round-away": {"ACCEL=zero3": {}, "dtype: float32": {}},
    "warmup-ignored": {"warmup_steps: 0": {}, "lr_scheduler_type: constant_with_warmup": {}},
    "warmup-share": {"warmup_steps: 0.03": {}},
    "zero-saves-nothing": {"ACCEL=ddp": {}},
}
# What no key of the recipe mends: another machine, another file, a command that this test does not run.
ELSEWHERE = {
    "data-unpinned",
    "devices-missing",
    "does-not-fit",
    "model-class",
    "model-damaged",
    "model-missing",
    "model-unpinned",
    "remote-code",
    "stored-quantised",
}


def test_every_remedy_is_followed_or_is_to_be_done_elsewhere() -> None:
    assert CASES.keys() == ADVICE.keys() | ELSEWHERE and not ADVICE.keys() & ELSEWHERE


@pytest.mark.parametrize(("rule", "words"), [(rule, words) for rule, each in ADVICE.items() for words in each])
def test_what_a_finding_says_to_write_mends_it(rule: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = CASES[rule][0]
    assert any(words in found.instead for found in lint.rules()[rule].check(trips())), said(rule, trips())
    values = ADVICE[rule][words]
    placed = values.get("PLACED") or dict(re.findall(r"(ACCEL|GPUS)=(\w+)", words))
    for key, value in placed.items():
        monkeypatch.setitem(PLACED, key, value)
    if not values and not placed:
        values = {key: yaml.safe_load(value) for key, value in re.findall(r"(\w+): (\[.*?]|\S+)", words)}
        assert values, words
    for key, value in values.items():
        if key != "PLACED":
            monkeypatch.setitem(FOLLOWED, key, value)
    assert said(rule, trips()) == []


def test_every_rule_is_tested_and_says_what_to_write_instead() -> None:
    modules = {id: getattr(rule.look, "func", rule.look).__module__ for id, rule in lint.rules().items()}
    assert {id for id, module in modules.items() if not module.endswith(".data")} - REFUSED == CASES.keys()
    for rule in lint.rules().values():
        assert rule.severity in lint.SEVERITIES
        assert rule.idea.endswith(".") and len(rule.evidence) > 20
    for id, (trips, _, _) in CASES.items():
        assert all(found.instead for found in lint.rules()[id].check(trips()))


@pytest.mark.parametrize("rows", [2686, 1000, 20_000])
def test_warm_up_is_graver_the_more_of_the_run_it_takes(rows: int) -> None:
    expected = {2686: "warning", 1000: "warning", 20_000: None}[rows]
    found = [finding for finding in lint.findings(case(rows=rows)) if finding.rule == "warmup-share"]
    assert [finding.severity for finding in found] == ([expected] if expected else [])
    if rows == 1000:
        assert "never decays" in found[0].message


def test_a_silenced_rule_is_kept_with_its_reason() -> None:
    found = lint.findings(case(rows=2686, silence={"warmup-share": "as documented by the origin"}))
    silenced = [finding for finding in found if finding.silenced]
    assert [(finding.rule, finding.silenced) for finding in silenced] == [
        ("warmup-share", "as documented by the origin")
    ]
    assert found[-1] is silenced[0]


def test_every_function_of_a_rule_is_named_by_one() -> None:
    """So that no rule is lost by a misspelt name."""
    known = {rule.look for rule in lint.rules().values()}
    helpers = {
        "rows_with",
        "over_splits",
        "largest_batch",
        "refused",
        "named",
        "largest_micro_batch",
        "detectable_accuracy",
        "detectable_f1",
    }
    for name in lint.MODULES:
        module = importlib.import_module(f"sft_recipes.plan.lint.{name}")
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                public = not function.__name__.startswith("_") and function.__name__ not in helpers
                assert not public or function in known, function.__name__


def test_a_rule_can_be_silenced_by_the_name_that_it_had() -> None:
    forms = {"train": {"rows": 100, "source": "rows.jsonl", "classes": {}}}
    for name, starts in (("yes", {"{{": 50}), ("no", {'{"': 50})):
        forms["train"]["classes"][name] = {"rows": 50, "first_row": 1, "starts": starts, "fields": {}}
    rule = lint.rules()["answer-leaks-class"]
    data: Any = {"class_field": "label", "splits": forms}
    assert len(list(rule.check(case(data=data)))) == 1
    assert set(rule.formerly) == {"surface-gives-class-away", "field-in-one-class"}
    for former in rule.formerly:
        assert lint._silence(case(silence={former: "meant"}).recipe) == {"answer-leaks-class": "meant"}


@pytest.mark.parametrize(
    ("silence", "message"),
    [
        ({"warmup-shares": "x"}, "did you mean warmup-share"),
        ({"unsupported-pair": "x"}, "cannot be silenced"),
        ({"warmup-share": " "}, "needs the reason"),
    ],
)
def test_silence_that_says_nothing_is_refused(silence: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lint.findings(case(silence=silence))
