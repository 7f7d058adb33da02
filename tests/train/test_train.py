"""Real NF4 QLoRA training on a CPU, in this process: what took effect, what is refused, what is kept."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import alpaca_rows, write_rows
from exactness import plain
from finished import FLOAT32
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_recipes import cli
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.runs import lock
from sft_recipes.runs.checkpoints import damage, newest_whole
from sft_recipes.runs.run import Run
from sft_recipes.train import process, verify
from sft_recipes.train import train as worker
from sft_recipes.train.callbacks import Record

pytest_plugins = ["finished"]

Train = Callable[..., Run]
# For what is known before the first step.
ONE_STEP = {"max_steps": 1, "warmup_steps": 0}


class SignalAt(TrainerCallback):
    """Sends this process a signal at the end of a step, as a scheduler would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def signal_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next runs get SIGTERM while they take this step."""
    built = worker.Trainer.__init__

    def build(self: Any, *arguments: Any, callbacks: list, **kwargs: Any) -> None:
        built(self, *arguments, callbacks=[*callbacks, SignalAt(step)], **kwargs)

    monkeypatch.setattr(worker.Trainer, "__init__", build)


def adapter_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The same tensors, bit for bit and in the same dtype."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def resumed(run: Run) -> Run:
    """The run, put back to its newest whole checkpoint."""
    launch.rewind(run)
    return run


def test_four_bit_adapters_and_schedule_are_recorded_as_in_effect(finished: Train) -> None:
    facts = finished().facts()
    effect = facts["in_effect"]
    assert facts["status"] == "finished"
    # 7 linear layers a decoder layer; the tied embedding stays as it is.
    assert effect["base"]["four_bit_layers"] == 14
    assert effect["base"]["four_bit_parameters"] == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert effect["adapter"]["modules"] == {"q_proj": 2, "v_proj": 2}
    assert effect["adapter"]["trainable_parameters"] == 2 * 8 * ((64 + 64) + (64 + 32))
    assert effect["adapter"]["dtypes"] == ["float32"]
    assert effect["run"]["effective_batch"] == 8
    assert (effect["run"]["max_steps"], effect["run"]["warmup_steps"]) == (8, 2)
    assert 0 < effect["data"]["supervised_token_share"] < 0.5
    assert effect["data"]["rows_ending_with_eos"] == effect["data"]["rows"] == 64
    assert 0.5 < effect["data"]["real_token_share"] <= 1
    measured = facts["measured"]
    assert measured["tokens_per_second"] > 0 and 0 <= measured["waiting_share"] < 0.5
    # 64 rows in the time of as many tokens.
    per_row = measured["tokens_per_second"] / measured["samples_per_second"]
    assert per_row == pytest.approx(effect["data"]["tokens"] / 64, rel=0.02)
    assert facts["measured"]["peak_memory_bytes"] > 2**20


def test_the_run_directory_holds_what_it_promises(train_here: Train) -> None:
    run = train_here(name="files", logging_steps=2)
    present = {path.name for path in run.directory.iterdir()}
    assert {"recipe.yaml", "run.json", "log.jsonl", "adapter", "checkpoint-8"} <= present
    assert damage(run.directory / "checkpoint-8", run.facts()["topology"]) is None
    assert not (run.adapter / "training_args.bin").exists()
    log = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8]
    assert all(entry["tokens_per_second"] > 0 for entry in log if "loss" in entry)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_test_rows_are_never_trained_on(finished: Train, train_here: Train) -> None:
    """Nor do they change what is: the adapter is the same, bit for bit."""
    write_rows(Path("data/test.jsonl"), [{"instruction": "Count.", "input": "red " * 40, "output": "odd"}] * 100)
    without = finished()
    tested = train_here(name="with", test_file="data/test.jsonl")
    assert tested.facts()["data"]["splits"]["test"]["prepared_rows"] == 100
    assert tested.facts()["in_effect"]["data"] == without.facts()["in_effect"]["data"]
    assert equal(adapter_of(tested), adapter_of(without))


def test_the_adapter_reloads_in_plain_peft_with_the_same_loss(finished: Train) -> None:
    from peft import AutoPeftModelForCausalLM

    run = finished(**FLOAT32)
    model = AutoPeftModelForCausalLM.from_pretrained(str(run.adapter))
    norms = [float(p.norm()) for name, p in model.named_parameters() if "lora_B" in name]
    assert len(norms) == 4 and all(norm > 0 for norm in norms)
    assert equal(
        adapter_of(run), {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    )


@pytest.mark.promise(
    "exact-resume", "SIGTERM with NF4, dropout and accumulation, adapters in float32 and in bfloat16, and resumed"
)
@pytest.mark.parametrize(("stop_at", "adapter_dtype"), [(2, "bfloat16"), (6, "float32")])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    project: Path,
    train_here: Train,
    finished: Train,
    monkeypatch: pytest.MonkeyPatch,
    adapter_dtype: str,
    stop_at: int,
) -> None:
    """Within the first epoch of four steps and within the second, with dropout, accumulation and 4-bit weights.

    One of the two computes its activations twice, with the same dropout.
    """
    write_rows(project / "data" / "train.jsonl", alpaca_rows(32, seed=1))
    twice = adapter_dtype == "bfloat16"
    settings = {"adapter_dtype": adapter_dtype, "num_train_epochs": 2, "activation_checkpointing": twice}
    whole = finished("half", **settings)
    with monkeypatch.context() as context:
        signal_at(stop_at, context)
        run = train_here(name="parts", **settings)
    assert run.facts()["status"] == "interrupted"
    assert not run.adapter.exists()
    assert newest_whole(run)[0] == run.directory / f"checkpoint-{stop_at}"
    train_here(run=resumed(run))
    assert run.facts()["status"] == "finished"
    assert equal(adapter_of(run), adapter_of(whole))
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(r.directory / "checkpoint-8" / name, weights_only=True) for r in (run, whole)]
        assert plain(states[0]) == plain(states[1])


def test_resume_without_the_kept_dtype_would_differ(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with upstream's own loading, bfloat16 adapters come back as float32."""
    with monkeypatch.context() as context:
        signal_at(3, context)
        run = train_here(name="parts", adapter_dtype="bfloat16")
    monkeypatch.delattr(worker.Trainer, "_load_from_checkpoint")
    with pytest.raises(InputError, match="adapter_dtype is bfloat16, but the adapters are in float32"):
        train_here(run=resumed(run))


# Without dropout, because every data loader draws from the generator that dropout draws from.
UNDISTURBED = {
    "lora_dropout": 0.0,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
}


def test_an_evaluation_leaves_no_trace_in_training(finished: Train, train_here: Train) -> None:
    """bitsandbytes would pack the weights anew for it on CPUs with AVX512-BF16, and then pass no gradient on."""
    never = finished("never", eval_strategy="no", **UNDISTURBED)
    often = train_here(name="often", eval_strategy="steps", eval_steps=1, eval_on_start=True, **UNDISTURBED)
    assert len(often.facts()["measured"]["eval_loss"]) == 9
    assert equal(adapter_of(never), adapter_of(often))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    finished: Train, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = UNDISTURBED | {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    whole = finished("never", eval_strategy="no", **UNDISTURBED)
    with monkeypatch.context() as context:
        signal_at(5, context)
        run = train_here(name="parts", **settings)
    optimizer = run.directory / "checkpoint-5" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    checkpoint, skipped = newest_whole(run)
    assert checkpoint == run.directory / "checkpoint-4"
    assert len(skipped) == 1 and "checkpoint-5 is skipped: optimizer.pt has" in skipped[0]
    train_here(run=resumed(run))
    assert equal(adapter_of(run), adapter_of(whole))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"lora_target_modules": ["q_proj", "v_porj"]},
            "v_porj matches no module of model; its linear layers are .*v_proj",
        ),
        ({"lora_target_modules": ["nothing"]}, "nothing matches no module of model"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef is 0.1, and the model gives no router's logits"),
        ({"eos_token": "<none>"}, "eos_token '<none>' is no token of the tokenizer of model; set eos_token to one"),
        ({"max_length": 4}, "all 64 rows lose their whole answer at max_length 4"),
        ({"model_name_or_path": "no-such/model"}, "no-such/model .* cannot be loaded"),
    ],
)
def test_what_cannot_take_effect_stops_before_the_first_step(
    train_here: Train, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_here(name="refused", **overrides)
    assert not (Path("runs/refused") / "log.jsonl").exists()


def test_one_target_module_is_a_name_and_not_a_regular_expression(train_here: Train) -> None:
    effect = train_here(lora_target_modules=["q_proj"], **ONE_STEP).facts()["in_effect"]
    assert effect["adapter"]["modules"] == {"q_proj": 2}


def test_all_linear_adapts_every_linear_layer(train_here: Train) -> None:
    modules = train_here(lora_target_modules=["all-linear"], **ONE_STEP).facts()["in_effect"]["adapter"]["modules"]
    assert set(modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_four_bit_on_a_quantised_checkpoint_is_refused(train_here: Train, project: Path, tiny_model: Path) -> None:
    other = project / "mxfp4"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).symlink_to(path)
    config = json.loads((other / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"quantised already \(mxfp4\).*load_in_4bit: false"):
        train_here(model_name_or_path="./mxfp4")


def test_four_bit_that_did_not_happen_stops_the_run(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "get_quantization_config", lambda model: None)
    with pytest.raises(InputError, match="load_in_4bit is true, but 0 layers"):
        train_here(name="silent")


def test_without_quantisation_no_layer_is_in_four_bit(finished: Train) -> None:
    base = finished("unquantised", load_in_4bit=False).facts()["in_effect"]["base"]
    assert (base["four_bit_layers"], base["four_bit_share"]) == (0, 0)


@pytest.mark.promise("nan", "a loss that is a NaN")
def test_a_loss_that_is_not_a_number_stops_the_run(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))

    built = worker.Trainer.__init__
    monkeypatch.setattr(
        worker.Trainer,
        "__init__",
        lambda self, *a, callbacks, **k: built(self, *a, callbacks=[*callbacks, Poison()], **k),
    )
    with pytest.raises(FloatingPointError, match="at step 4"):
        train_here(name="poisoned")
    assert not Path("runs/poisoned/adapter").exists()


def test_rows_that_lose_their_answer_are_counted(rows_here: Callable[..., Any], project: Path) -> None:
    long = {"instruction": "red " * 200, "input": "", "output": "even"}
    rows = [json.loads(line) for line in (project / "data" / "train.jsonl").read_text().splitlines()]
    write_rows(project / "data" / "train.jsonl", [*rows, long, long])
    _, data = rows_here(max_length=128, **ONE_STEP)
    assert (data["rows"], data["rows_lost"]) == (64, 2)


def test_early_stopping_counts_evaluations_and_zero_never_stops(train_here: Train) -> None:
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    settings |= {"learning_rate": 1e-9, "save_total_limit": 2}
    assert train_here(early_stopping_patience=2, **settings).facts()["measured"]["step"] == 3 * 2
    assert train_here(early_stopping_patience=0, **settings).facts()["measured"]["step"] == 4 * 2


def test_batches_are_padded_to_their_longest_row(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
            with torch.random.fork_rng(devices=[]):
                shapes.extend((b["input_ids"].shape[1], int((b["labels"] != -100).sum())) for b in train_dataloader)

    built = worker.Trainer.__init__
    monkeypatch.setattr(
        worker.Trainer,
        "__init__",
        lambda self, *a, callbacks, **k: built(self, *a, callbacks=[*callbacks, Watch()], **k),
    )
    run = train_here(**ONE_STEP)
    longest = run.facts()["in_effect"]["data"]["longest_row"]
    assert max(width for width, _ in shapes) == longest < 512
    assert len({width for width, _ in shapes}) > 1
    assert all(supervised > 0 for _, supervised in shapes)


MESSAGES = [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "odd"}]
FORMATS = {
    "messages": {"messages": MESSAGES},
    "multi_turn": {
        "messages": [*MESSAGES, {"role": "user", "content": "red red"}, {"role": "assistant", "content": "even"}]
    },
    "prompt_completion": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "plain": {"prompt": "red cat is", "completion": " odd"},
    "alpaca": {"instruction": "Count the word red.", "input": "red cat", "output": "odd"},
    "sharegpt": {"conversations": [{"from": "human", "value": "red cat"}, {"from": "gpt", "value": "odd"}]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_trains_on_its_answers_alone(rows_here: Callable[..., Any], project: Path, name: str) -> None:
    write_rows(project / "data" / "train.jsonl", [FORMATS[name]] * 16)
    write_rows(project / "data" / "validation.jsonl", [FORMATS[name]] * 4)
    trainer, _ = rows_here(name=name, **ONE_STEP)
    labels = trainer.train_dataset[0]["labels"]
    trained = trainer.processing_class.decode([token for token in labels if token != -100])
    expected = {"plain": " odd<|im_end|>", "multi_turn": "odd<|im_end|>even<|im_end|>"}
    assert trained.replace("\n", "") == expected.get(name, "odd<|im_end|>")


def test_the_plain_recipe_of_a_run_is_what_upstream_reads(finished: Train) -> None:
    recipe = yaml.safe_load(finished().recipe.read_text())
    own = {"global_batch_size", "train_file", "adapter_dtype", "early_stopping_patience", "description"}
    assert not own & recipe.keys()
    assert recipe["gradient_accumulation_steps"] == 2


@pytest.mark.promise("same-run", "another recipe with RESUME=1")
def test_a_changed_recipe_cannot_resume(project: Path) -> None:
    run = launch.create(jobs.check("tiny"), "same")
    launch.check_same_config(run, jobs.check("tiny"))
    with pytest.raises(InputError) as refused:
        launch.check_same_config(
            run, jobs.check("tiny", overrides=["learning_rate=1e-3 lora_r=4 adapter_dtype=bfloat16"])
        )
    message = str(refused.value)
    assert "learning_rate: 0.01 -> 0.001" in message
    assert "lora_r: 8 -> 4" in message
    assert "adapter_dtype: float32 -> bfloat16" in message


def test_a_base_that_was_put_where_no_gpu_has_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"), "cpu")
    where |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(tiny_model, device_map=where, offload_folder=tmp_path)
    with pytest.raises(InputError, match="5 of its 6 parts are in host memory and 1 of its 6 parts are on the disk"):
        verify.base(model, {"dtype": "bfloat16"})
    # On a CPU all of it is in host memory, and that is where it should be.
    model.hf_device_map = {"": "cpu"}
    assert verify.base(model, {"dtype": "bfloat16", "use_cpu": True})["four_bit_layers"] == 0


def test_tokens_a_second_are_of_the_logged_steps_alone(tmp_path: Path) -> None:
    record = Record(Run(tmp_path))
    arguments, state, control = TrainingArguments(use_cpu=True), TrainerState(), TrainerControl()
    for step in range(3):
        record.on_step_begin(arguments, state, control)
        time.sleep(0.05)
        record.on_step_end(arguments, state, control)
        if step < 2:
            record.on_log(arguments, state, control, logs={"loss": 1.0, "num_tokens": 100.0 * (step + 1)})
    assert 0.15 <= record.training_seconds < 0.3
    # 200 tokens in 0.1 s: of the third step nobody knows the tokens yet.
    assert record.tokens_per_second == pytest.approx(2000, rel=0.3)


def test_the_wait_for_rows_is_measured_apart_from_the_steps(
    train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dataloader that takes 50 ms for each of two micro-batches of a step, and steps that take little."""
    collate = DataCollatorForLanguageModeling.__call__

    def slow(self: Any, *given: Any, **named: Any) -> Any:
        time.sleep(0.05)
        return collate(self, *given, **named)

    monkeypatch.setattr(DataCollatorForLanguageModeling, "__call__", slow)
    steps_alone = {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 0}
    run = train_here(name="slow", max_steps=4, save_strategy="no", **steps_alone)
    measured = run.facts()["measured"]
    seconds = 4 * 8 / measured["samples_per_second"]
    waited = measured["waiting_share"] / (1 - measured["waiting_share"]) * seconds
    assert 0.05 * 8 <= waited < 0.05 * 8 + 0.3
    logged = [each["waiting_share"] for each in run.log_entries() if "loss" in each]
    assert len(logged) == 4 and logged[-1] == pytest.approx(measured["waiting_share"], abs=0.02)


def test_the_process_that_runs_out_of_memory_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = launch.create(jobs.check("tiny"), "oom")

    def fail(error: Exception) -> Callable[[Run], None]:
        def train(run: Run, *, launched: bool) -> None:
            raise error

        return train

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    # It is on one process alone, and the main one hears of it as of a broken connection.
    for rank, error in (("1", torch.OutOfMemoryError("5 GiB")), ("0", RuntimeError("connection closed by peer"))):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(worker, "train", fail(error))
        with run.locked():
            monkeypatch.setattr(sys, "argv", ["process", str(run.directory), lock.launch_name(run.directory)])
            assert process.main() == 1
    assert run.facts()["status"] == "failed"
    assert run.facts()["error"] == "out of GPU memory: 5 GiB"
    assert run.facts()["out_of_memory"] == {}
    assert "OutOfMemoryError: 5 GiB" in run.output.read_text()


@pytest.mark.promise("memory", "a GPU that is out of memory")
def test_a_run_that_is_out_of_memory_says_what_fits(
    project: Path, launch_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What torch had when it failed is more than was planned, and decides what is advised."""
    step = worker.Trainer.training_step

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 1:
            raise torch.OutOfMemoryError("Tried to allocate 5 GiB. See the documentation.")
        return step(self, *arguments, **options)

    planned = launch.out_of_memory.planned(jobs.check("tiny"))
    assert planned is not None
    sizes = planned["micro_batches"]
    assert [*sizes] == ["1", "2", "4"] and sizes["1"] < sizes["2"] < sizes["4"]
    # Twice what was planned was there; half of the rows need a little more than half of it, and it holds a half.
    measured = {"allocated": 2 * sizes["4"], "free": 2**20, "total": int(1.2 * 2 * sizes["2"])}
    monkeypatch.setattr(process, "_memory", lambda: measured)
    monkeypatch.setattr(worker.Trainer, "training_step", fail)
    assert cli.main(["train", "tiny", "--name", "large"]) == 1
    said = capsys.readouterr()
    assert "error: out of GPU memory: Tried to allocate 5 GiB\n" in said.err
    assert "the plan counted" in said.out and "were allocated by torch when it asked for more" in said.out
    advised = re.search(r"SET='(.+?)'", said.out)
    assert advised and advised[1] == "per_device_train_batch_size=2 per_device_eval_batch_size=2"
    again = jobs.check("tiny", overrides=advised[1]).resolved
    assert (again["per_device_train_batch_size"], again["global_batch_size"]) == (2, 8)


@pytest.mark.promise("one-writer", "a training process of an earlier launch that comes late")
def test_a_process_of_an_earlier_launch_does_not_join(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gets to work only when its command has ended, or another one has the run."""
    run = launch.create(jobs.check("tiny"), "late")
    with run.locked():
        earlier = lock.launch_name(run.directory)
    before = run.facts()
    monkeypatch.setattr(sys, "argv", ["process", str(run.directory), earlier])
    assert process.main() == 0
    with run.locked():
        assert process.main() == 0
    assert run.facts() == before
    assert not run.log.exists()
