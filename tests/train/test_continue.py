"""A recipe that continues from an earlier adapter: what it takes from it, that it begins where that one ended, and
that everything after a training is right with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from exactness import everything, same
from finished import FLOAT32, restate
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sft_recipes.cli import main
from sft_recipes.data import preparation
from sft_recipes.deploy import chat, merge, predict, push
from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate
from sft_recipes.files import sha256
from sft_recipes.launch import launch, rehearse, reproduce, seeds, space
from sft_recipes.models import base_model
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.recipes import adapters
from sft_recipes.recipes import recipe as recipes
from sft_recipes.report import card, report
from sft_recipes.runs import earlier, identity
from sft_recipes.runs.run import Run
from sft_recipes.train import train as worker

pytest_plugins = ["finished"]

Finished = Callable[..., Run]
# What is asked of the second run beside its adapter, which was trained with FLOAT32.
AGAIN = FLOAT32 | {"adapter_name_or_path": "tuned", "num_train_epochs": 2, "eval_on_start": True}
# A recipe of which nothing contradicts any adapter.
MINE = """\
extends: default
accelerate_config: cpu
train_file: data/train.jsonl
validation_file: data/validation.jsonl
report_to: none
adapter_name_or_path: tuned
"""


@pytest.fixture
def first(finished: Finished) -> Run:
    """The earlier run: rank 8 on queries and values, in float32."""
    Path("recipes/mine.yaml").write_text(MINE)
    return finished(**FLOAT32)


@pytest.fixture
def second(first: Run, finished: Finished) -> Run:
    """A run that continued from it on the same rows for two epochs, and was evaluated before its first step."""
    return finished("second", **AGAIN)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / adapters.WEIGHTS)


def copied(run: Run, **config: Any) -> Path:
    """A copy of a run's adapter as a folder of its own, with other values in its config."""
    path = Path(shutil.copytree(run.adapter, "copy")) / adapters.CONFIG
    if config:
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return path.parent


def refused(recipe: str = "mine", **overrides: Any) -> list[str]:
    """What a plan and a training both refuse, in the same words, before there is a run."""
    before = sorted(Path("runs").iterdir())
    with pytest.raises(InputError) as planned:
        plan.plan(recipe, overrides=overrides)
    with pytest.raises(InputError) as checked:
        launch.train(recipe, overrides=overrides)
    assert planned.value.problems == checked.value.problems
    assert sorted(Path("runs").iterdir()) == before
    return checked.value.problems


def test_base_and_shape_are_taken_from_the_adapter_and_planned_with(first: Run) -> None:
    loaded = recipes.load("mine")
    taken = {key: (item.value, item.origin) for key, item in loaded.values.items() if "tuned" in item.origin}
    assert taken == {
        key: (value, "derived: the adapter tuned")
        for key, value in {
            "model_name_or_path": "model",
            "model_revision": "main",
            "use_peft": True,
            "lora_r": 8,
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "lora_target_modules": ["q_proj", "v_proj"],
            "lora_target_parameters": None,
            "lora_modules_to_save": None,
            "use_rslora": False,
            "use_dora": False,
        }.items()
    }
    planned = plan.plan("mine")
    held = sum(tensor.numel() for tensor in weights(first.adapter).values())
    assert planned["adapter"]["trainable_parameters"] == held == 3584
    assert (planned["model"]["name"], planned["adapter"]["rank"], planned["blocking"]) == ("model", 8, 0)
    assert not {"alpha-follows-rank", "contradiction"} & {each["rule"] for each in planned["findings"]}
    decided = dict(jobs.check("mine").decisions())
    assert decided["continues"] == f"tuned, SHA-256 {sha256(first.adapter / adapters.WEIGHTS)[:16]}, on model"


@pytest.mark.parametrize(
    ("key", "stated", "held"),
    [
        ("model_name_or_path", "org/other", "model"),
        ("lora_r", 16, "8"),
        ("lora_alpha", 32, "8"),
        ("lora_dropout", 0.1, "0.05"),
        ("lora_target_modules", ["q_proj"], '["q_proj", "v_proj"]'),
        ("lora_modules_to_save", ["lm_head"], "null"),
        ("use_dora", True, "false"),
        ("use_peft", False, "true"),
    ],
)
def test_what_the_recipe_says_otherwise_is_refused_with_what_to_write(
    first: Run, key: str, stated: Any, held: str
) -> None:
    (problem,) = refused(**{key: stated})
    assert problem.startswith(f"SET: {key} is ")
    assert f", and the adapter tuned that adapter_name_or_path names has {held}, which cannot be changed" in problem


def test_all_contradictions_are_said_at_once_and_what_agrees_is_none(first: Run) -> None:
    assert len(refused(lora_r=4, lora_alpha=4, use_rslora=True)) == 3
    agreeing = {"lora_target_modules": ["v_proj", "q_proj"], "model_name_or_path": "./model", "lora_r": 8}
    loaded = recipes.load("mine", agreeing)
    assert (loaded["model_name_or_path"], loaded["lora_target_modules"]) == ("model", ["v_proj", "q_proj"])
    (problem,) = refused(lora_target_modules=["all-linear"])
    assert "lora_target_modules is [all-linear], and the adapter tuned" in problem
    assert "has nothing on model.layers.*.self_attn.k_proj, model.layers.*.self_attn.o_proj, " in problem


def test_a_base_that_it_pins_is_another_at_another_commit_and_one_that_it_does_not_may_be_pinned(first: Run) -> None:
    assert recipes.load("mine", {"model_revision": "abc"})["model_revision"] == "abc"
    copied(first, revision="v1")
    (problem,) = refused(adapter_name_or_path="copy", model_revision="v2")
    assert "model_revision is v2, and the adapter copy that adapter_name_or_path names has v1" in problem
    assert recipes.load("mine", {"adapter_name_or_path": "copy"})["model_revision"] == "v1"


def test_a_sweep_over_its_rank_is_refused_and_one_over_the_learning_rate_is_not(first: Run) -> None:
    over, _ = space.parse("lora_r=8,16")
    with pytest.raises(InputError, match="OVER: lora_r is 16, and the adapter tuned"):
        space.check("mine", over)
    over, _ = space.parse("learning_rate=1e-4,2e-4")
    assert space.check("mine", over).recipe["adapter_name_or_path"] == "tuned"


def test_it_is_named_by_its_run_its_folder_or_a_hub_id_with_a_revision(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, cache, commit = copied(first), tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--org--adapter"
    shutil.copytree(elsewhere, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name in ("tuned", "runs/tuned", "runs/tuned/adapter", str(first.directory.absolute())):
        assert adapters.folder(name).resolve() == first.adapter.resolve()
    assert adapters.folder("copy") == elsewhere
    own = {"adapter_name_or_path": "org/adapter", "adapter_revision": "v2"}
    assert earlier.folder(own) == repository / "snapshots" / commit
    known, here = earlier.fingerprint(own), earlier.fingerprint({"adapter_name_or_path": "tuned"})
    assert known and here
    assert (known["commit"], here["commit"]) == (commit, None)
    assert known["files"] == here["files"]
    assert recipes.load("mine", own)["lora_r"] == 8
    (problem,) = refused(adapter_name_or_path="org/adapter", adapter_revision="main")
    assert problem.endswith("in the Hub's cache; fetch it with: hf download org/adapter --revision main")
    with pytest.raises(InputError, match="org/adapter is an adapter and no model; write adapter_name_or_path"):
        base_model.find_config("org/adapter", "v2")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, 'peft_type is IA3, and only LoRA is trained here'),
        ({"task_type": "SEQ_CLS"}, "task_type is SEQ_CLS, and only CAUSAL_LM"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path names no base"),
        ({"base_model_name_or_path": "a b"}, "no directory of a saved model, and no Hub id"),
        ({"rank_pattern": {"q_proj": 4}}, 'rank_pattern is {"q_proj": 4}, which no recipe can say; merge'),
        ({"bias": "all"}, "bias is all, which no recipe can say"),
        ({"layers_to_transform": [0]}, "layers_to_transform is [0], which no recipe can say"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, 'megatron_config is {"a": 1}, which no recipe'),
        ({"of_tomorrow": 1}, "of_tomorrow is 1, which no recipe can say"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which changes the base's own weights"),
        ({"target_modules": ".*q_proj"}, "target_modules is the pattern .*q_proj, not a list of names"),
        ({"target_modules": None}, "use_peft needs lora_target_modules"),
        ({"r": "8"}, "lora_r: expected a whole number, got the string '8'"),
        ({"r": -8}, "lora_r: -8 is out of range"),
        ({"modules_to_save": [1]}, "lora_modules_to_save: expected a list of texts"),
    ],
)  # fmt: skip
def test_an_adapter_that_no_recipe_can_describe_is_refused(first: Run, config: dict[str, Any], said: str) -> None:
    copied(first, **config)
    (problem,) = refused(adapter_name_or_path="copy")
    assert said in problem


def test_what_is_harmless_in_a_config_is_no_problem(first: Run) -> None:
    copied(
        first, lora_alpha=8.0, init_lora_weights="gaussian", enable_lora=None, peft_version="0.9", merge_weights=False
    )
    assert recipes.load("mine", {"adapter_name_or_path": "copy"})["lora_alpha"] == 8


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run, copy: (copy / adapters.WEIGHTS).unlink(), f"copy is no adapter: copy has no {adapters.WEIGHTS}"),
        (
            lambda run, copy: (copy / adapters.WEIGHTS).rename(copy / "adapter_model.bin"),
            "a pickle could run code and is not read, so save it as safetensors",
        ),
        (lambda run, copy: (copy / adapters.CONFIG).write_text("[1]"), "it holds a list of 1, not an object"),
        (lambda run, copy: (copy / adapters.CONFIG).write_text("{" * 10**5), "cannot be read as an adapter's config"),
        (lambda run, copy: (copy / adapters.CONFIG).write_text(" " * 2**21), "more than 1048576 bytes"),
        (lambda run, copy: shutil.rmtree(copy), "copy is no run, no directory, and not in the Hub's cache"),
    ],
)
def test_a_folder_that_holds_no_adapter_is_refused(first: Run, damage: Callable[[Run, Path], Any], said: str) -> None:
    damage(first, copied(first))
    (problem,) = refused(adapter_name_or_path="copy")
    assert said in problem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b", "the string 'a b' is no directory of a run or an adapter, and no Hub id such as ORG/NAME"),
        ("~nobody/adapter", "the string '~nobody/adapter' is in nobody's home"),
        ("./model", "./model is no adapter: model has no adapter_config.json"),
        (" tuned", "is blank, or begins or ends with white space"),
        (7, "expected text, got 7"),
    ],
)
def test_what_can_be_the_name_of_no_adapter_is_refused(first: Run, name: Any, said: str) -> None:
    (problem,) = refused(adapter_name_or_path=name)
    assert problem.startswith("SET: adapter_name_or_path: ") and said in problem


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"status": "interrupted"}, "is interrupted, not finished; finish it first: make resume NAME=tuned"),
        ({"rehearsal": True}, "is a rehearsal, whose adapter belongs to a tiny random model"),
    ],
)
def test_a_run_that_left_no_result_is_not_continued_from(first: Run, facts: dict[str, Any], said: str) -> None:
    restate(first, **facts)
    (problem,) = refused()
    assert said in problem


def test_a_run_whose_adapter_was_changed_is_not_continued_from(first: Run) -> None:
    save_file({key: tensor + 1 for key, tensor in weights(first.adapter).items()}, first.adapter / adapters.WEIGHTS)
    (problem,) = refused()
    assert problem.startswith(f"adapter_name_or_path: {first.adapter} is not what was trained: {adapters.WEIGHTS} ")
    shutil.rmtree(first.adapter)
    (problem,) = refused()
    assert "if its run has not finished, go on with it: make resume NAME=tuned" in problem


@pytest.mark.parametrize("name", ["runs/tuned/adapter", "runs/tuned", "copy"])
def test_an_adapter_that_is_named_as_the_model_says_which_key_names_it(first: Run, name: str) -> None:
    copied(first)
    (problem,) = refused("tiny", model_name_or_path=name)
    instead = f"write adapter_name_or_path: {name}, which brings its own base"
    assert problem == f"SET: model_name_or_path: {name} is an adapter and no model; {instead}"


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda held: held | {"base_model.model.model.norm.weight": torch.ones(64)}, "1 of its tensors are"),
        (lambda held: dict([*held.items()][1:]), "1 of its tensors are"),
        (lambda held: {key: tensor[:, :4].contiguous() for key, tensor in held.items()}, "of its tensors are"),
    ],
    ids=["more", "fewer", "smaller"],
)
def test_tensors_that_are_no_part_of_the_adapter_never_reach_the_base(
    first: Run, train_here: Finished, change: Callable[[Any], Any], other: str
) -> None:
    folder = copied(first)
    save_file(change(weights(folder)), folder / adapters.WEIGHTS)
    with pytest.raises(InputError, match=f"does not hold the adapter that adapter_config.json describes .*{other}"):
        train_here("mine", name="hostile", adapter_name_or_path="copy", **FLOAT32)


WHOLE = {"lora_target_modules": ["all-linear"], "use_rslora": True, "use_dora": True, "lora_modules_to_save": ["norm"]}
IDLE = {"learning_rate": 1e-30, "weight_decay": 0.0, "max_steps": 1, "eval_strategy": "no", "eval_on_start": False}
IDLE |= {"load_best_model_at_end": False, "early_stopping_patience": 0}


@pytest.mark.parametrize(
    ("shape", "how", "layers"),
    [({}, {}, 0), ({}, {"load_in_4bit": True, "dtype": "bfloat16"}, 14), (WHOLE, {}, 0)],
    ids=["float32", "four-bit", "all-linear-rslora-dora-norms"],
)
def test_after_steps_that_change_nothing_the_adapter_is_the_earlier_one_to_the_bit(
    finished: Finished, train_here: Finished, shape: dict[str, Any], how: dict[str, Any], layers: int
) -> None:
    """Adam moves a weight by the rate at the most, and 1e-30 is below half the last bit of every weight here."""
    first = finished(**FLOAT32 | shape)
    run = train_here(name="idle", **FLOAT32 | shape | how | IDLE, adapter_name_or_path="tuned")
    assert run.facts()["in_effect"]["base"]["four_bit_layers"] == layers
    now, before = weights(run.adapter), weights(first.adapter)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], before[key]) and now[key].dtype == before[key].dtype for key in now)


def test_its_first_loss_is_that_of_the_earlier_adapter_on_the_same_rows(first: Run, train_here: Finished) -> None:
    copied(first, lora_dropout=0.0)
    together = {"adapter_name_or_path": "copy", "lora_dropout": 0.0, "global_batch_size": 64, "max_steps": 1}
    run = train_here(name="step", **AGAIN | together)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32), "copy")
    losses = []
    for row in worker.build(run.values()).train_dataset:
        labels = torch.tensor(row["labels"])[1:]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100])
    assert run.log_entries()[1]["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert run.facts()["continues"]["run"] is None


def test_it_begins_where_the_earlier_run_ended_and_learns_on(first: Run, second: Run) -> None:
    ended, begun, *_, last = [
        each["eval_loss"] for run in (first, second) for each in run.facts()["measured"]["eval_loss"]
    ]
    assert begun == ended > last
    now, before = weights(second.adapter), weights(first.adapter)
    assert now.keys() == before.keys()
    assert not any(torch.equal(now[key], before[key]) for key in now)


def test_the_chain_is_in_run_json_the_card_and_the_report(first: Run, second: Run) -> None:
    digest = first.facts()["measured"]["saved"][adapters.WEIGHTS]["sha256"]
    chain = {"adapter": "tuned", "sha256": digest, "run": "tuned", "base": "model", "revision": "main"}
    facts = second.facts()
    assert facts["continues"] == chain | {"continues": None}
    assert facts["identity"]["adapter"]["files"][adapters.WEIGHTS] == digest
    assert first.facts()["continues"] is first.facts()["identity"]["adapter"] is None
    third = earlier.chain({"adapter_name_or_path": "runs/second/adapter"})
    assert third and (third["run"], third["continues"]) == ("second", facts["continues"])
    assert f"It continues from the adapter tuned, SHA-256 {digest}." in card.card(second)
    restate(second, continues=third)
    assert f"That one continues from the adapter tuned, SHA-256 {digest}." in card.card(second)
    assert "runs/second" not in card.card(second)
    page = report.write(second).read_text()
    assert page.count("continues from the adapter") == 2 and digest in page


def test_a_killed_run_goes_on_as_if_it_had_not_been(second: Run, train_here: Finished) -> None:
    uninterrupted = everything(second)
    shutil.rmtree(second.adapter)
    shutil.rmtree(second.directory / "checkpoint-16")
    restate(second, status="running", measured=None)
    preparation.prepare(**second.facts()["data"]["source"], cache=preparation.CACHE)
    launch.rewind(second)
    train_here(run=second)
    same(everything(second), uninterrupted)
    assert second.facts()["launches"][1]["from_step"] == 8


def test_whatever_uses_the_run_refuses_when_the_earlier_adapter_was_changed(
    first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setattr(card, "hub_id", lambda name: name)
    identity.check(second, training=True)
    save_file({key: tensor + 1 for key, tensor in weights(first.adapter).items()}, first.adapter / adapters.WEIGHTS)
    uses: list[Callable[[], Any]] = [
        lambda: launch.resume("second"),
        lambda: evaluate.evaluate("second"),
        lambda: merge.merge("second"),
        lambda: predict.predict("second", Path("data/validation.jsonl")),
        lambda: chat.chat("second"),
        lambda: push.push("second", "org/name"),
    ]
    for use in uses:
        with pytest.raises(InputError, match=f"earlier adapter tuned: {adapters.WEIGHTS} has other content"):
            use()
    shutil.rmtree(first.directory)
    identity.check(second)
    with pytest.raises(InputError, match="tuned is no run, no directory"):
        evaluate.evaluate("second", base=True)


def test_it_is_evaluated_beside_base_and_earlier_adapter(
    first: Run, second: Run, scoring_here: Callable[[], Any], capsys: pytest.CaptureFixture
) -> None:
    with scoring_here():
        evaluate.evaluate("tuned", base=True)
        assert evaluate.evaluate("second", base=True) == (0, second.metrics("validation"))
    before, now = first.predicted("validation"), second.predicted("validation")
    assert [row["earlier"] for row in now] == [row["tuned"] for row in before]
    assert [row["base"] for row in now] == [row["base"] for row in before]
    assert all(row["tuned"]["probabilities"] != row["earlier"]["probabilities"] for row in now)
    found = second.evaluation("validation")
    assert [*found["models"]] == ["base", "earlier", "tuned"]
    assert found["models"]["earlier"] == first.evaluation("validation")["models"]["tuned"]
    assert {"base", "earlier"} <= found["paired"].keys()
    assert "earlier    macro F1" in capsys.readouterr().out
    assert "earlier adapter" in report.write(second).read_text()
    assert "earlier adapter" in card.card(second)


def test_it_is_merged_and_predicts_as_base_and_adapter_do(
    second: Run, merge_here: Any, scoring_here: Callable[[], Any]
) -> None:
    code, proof = merge_here("second")
    assert (code, proof["top1"]) == (0, 1)
    assert proof["kl"] < 1e-6 < proof["effect"]["kl"]
    with scoring_here():
        _, path = predict.predict("second", Path("data/validation.jsonl"))
        evaluate.evaluate("second")
    predicted = [json.loads(line) for line in path.read_text().splitlines()]
    evaluated = [row["tuned"] for row in second.predicted("validation")]
    assert [row["probabilities"] for row in predicted] == [row["probabilities"] for row in evaluated]


def test_chat_talks_to_it(second: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    lines = iter(["red", "/base", "/reset", "red"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    restate(second, own=second.facts()["own"] | {"max_new_tokens": 4})
    chat.main(second, "tuned")
    assert "second; /tuned and /base choose the model" in capsys.readouterr().out


def test_its_seeds_all_begin_with_it_and_it_is_reproduced(
    first: Run, launch_here: None, scoring_here: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds.launch, "finish", lambda run, code: code)
    words = ["adapter_name_or_path=tuned", "max_steps=1", "load_in_4bit=false", "dtype=float32", "bf16=false"]
    seeds.train_seeds("tiny", "1 2", overrides=words)
    one, two = (Run(Path(f"runs/tiny-seed{seed}")) for seed in (1, 2))
    assert one.facts()["continues"] == two.facts()["continues"]
    assert one.facts()["continues"]["run"] == "tuned"
    code, again = reproduce.reproduce("tiny-seed1")
    assert (code, again.facts()["reproduces"]["same"]) == (0, True)
    assert again.facts()["identity"]["adapter"] == one.facts()["identity"]["adapter"]


def test_a_rehearsal_begins_anew_in_its_shape_and_an_export_is_refused(
    first: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = jobs.resolve("mine")
    base = rehearse.tiny.find("model", "main")
    # Which takes a process, and is no part of what is asked here.
    monkeypatch.setattr(rehearse.tiny, "make", lambda base: base.directory)
    job = rehearse.rehearsal_of(real, base)
    assert (job.recipe["adapter_name_or_path"], job.recipe["lora_r"]) == (None, 8)
    assert "the earlier adapter is not rehearsed" in rehearse.description(job, real.topology, base)
    assert main(["export", "mine", "--out", "out.yaml"]) == 2
    assert "stock trl sft would begin with a new adapter and not with tuned" in capsys.readouterr().err
    assert not Path("out.yaml").exists()
