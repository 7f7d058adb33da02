"""Likelihoods and greedy answers of real models made small, against the plainest way to compute each."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from bitsandbytes.nn import Linear4bit
from conftest import MadeOnce, alpaca_rows, write_rows
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    GenerationConfig,
    GptOssConfig,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
)

from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.evaluate import likelihood, scoring
from sft_recipes.launch import launch
from sft_recipes.models import loading
from sft_recipes.plan import job as jobs
from sft_recipes.runs.run import Run
from sft_recipes.train import train as worker

# All of them compute with models.
pytestmark = pytest.mark.slow

Train = Callable[..., Run]

WINDOW = 8
# One is the start of another, several share their first tokens, and their lengths differ.
ANSWERS = ["refund", "refund the kettle", "refund the broken kettle", "even", "address"]
QUESTIONS = ["red", "red blue", "a late parcel, and the price of the lamp", "red " * 9, "dog cat bird " * 6]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, Any] = {
    "qwen3": lambda **sizes: Qwen3Config(**sizes),
    "mistral": lambda **sizes: MistralConfig(**sizes, sliding_window=WINDOW),
    "phi3": lambda **sizes: Phi3Config(**sizes, sliding_window=WINDOW),
    "gemma3": lambda **sizes: Gemma3TextConfig(
        **sizes, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt-oss": lambda **sizes: GptOssConfig(
        **sizes,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
}


def turns(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Count the word red.\n\n{question}"}]


def random_model(config: Any) -> Any:
    """In float32, with weights large enough that attention to another token shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config = GenerationConfig(eos_token_id=[config.eos_token_id], pad_token_id=0)
    return model


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def sizes(tokenizer: Any) -> dict[str, Any]:
    return {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}


def one_by_one(model: Any, tokenizer: Any, prompt: Any, answers: list[str]) -> list[float]:
    """Log-likelihoods by one forward pass an answer, from where the answers part to the stop token."""
    texts = [
        tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        if isinstance(prompt, list)
        else prompt + answer + tokenizer.eos_token
        for answer in answers
    ]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    start = next(place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    sums = []
    for row in rows:
        end = row.index(tokenizer.eos_token_id, start) + 1
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row[:end]], device=model.device)).logits[0].float()
        terms = logits.log_softmax(-1)[range(start - 1, end - 1), row[start:end]]
        sums.append(float(terms.sum()))
    return sums


def all_of(batches: Iterator[dict[int, Any]]) -> list[Any]:
    """In the order of the rows; each is there once."""
    found: dict[int, Any] = {}
    for batch in batches:
        assert not found.keys() & batch.keys()
        found |= batch
    return [found[number] for number in range(len(found))]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CONFIGS)
def test_likelihoods_are_those_of_a_forward_pass_for_each_answer(family: str, kernel: str, tokenizer: Any) -> None:
    model = random_model(CONFIGS[family](**sizes(tokenizer)))
    if family != "gpt-oss":
        model.set_attn_implementation(kernel)
    prompts = [turns(question) for question in QUESTIONS]
    expected = torch.tensor([one_by_one(model, tokenizer, prompt, ANSWERS) for prompt in prompts])
    assert expected.std(0).min() > 0.1
    scores = torch.tensor(all_of(likelihood.likelihoods(model, tokenizer, prompts, ANSWERS)))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_answers_do_not_depend_on_the_batch_they_are_in(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIGS["gemma3"](**sizes(tokenizer)))
    prompts = [turns(question) for question in QUESTIONS]
    together = all_of(likelihood.likelihoods(model, tokenizer, prompts, ANSWERS))
    monkeypatch.setattr(likelihood, "CPU_FORWARD_TOKENS", 1)
    batches = list(likelihood.likelihoods(model, tokenizer, prompts, ANSWERS))
    assert [len(batch) for batch in batches] == [1] * len(prompts)
    alone = [all_of(likelihood.likelihoods(model, tokenizer, [prompt], ANSWERS))[0] for prompt in prompts]
    for others in (all_of(iter(batches)), alone):
        torch.testing.assert_close(torch.tensor(others), torch.tensor(together), atol=1e-4, rtol=0)


class Scratch:
    """A job on a run, in a directory of its own."""

    def __init__(self, directory: Path, run: Path, **job: Any) -> None:
        self.directory = directory
        self.job = {
            "recipe": Run(run).values(),
            "tuned": str(run / "adapter"),
            "on_cpu": True,
            "models": ["base", "tuned"],
            "by": "likelihood",
            "candidates": {"even": "even", "odd": "odd"},
            "max_new_tokens": None,
            "longest_answers": ["even"],
            **job,
        }
        directory.mkdir()
        rows = [
            {"row": number, "prompt": turns(row["input"])} for number, row in enumerate(alpaca_rows(12, seed=3), 1)
        ]
        write_rows(directory / "rows.jsonl", rows)
        (directory / "job.json").write_text(json.dumps(self.job), encoding="utf-8")

    def run(self) -> int:
        return scoring.main(self.directory)

    def outputs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "outputs.jsonl").read_text("utf-8").splitlines()]

    def of(self, model: str) -> list[dict[str, Any]]:
        return sorted((each for each in self.outputs() if each["model"] == model), key=lambda each: each["row"])

    def problems(self) -> list[str]:
        return json.loads((self.directory / "answer.json").read_text(encoding="utf-8"))["problems"]


@pytest.fixture
def qlora(train_here: Train, made_once: MadeOnce) -> Path:
    """A run with an adapter on a 4-bit base, trained once for all tests; each of them has the base as `model`."""
    return made_once("qlora", lambda directory: train_here(name="qlora").directory.rename(directory))


@pytest.fixture
def whole(train_here: Train, made_once: MadeOnce) -> Path:
    """A run that trained all weights in float32 until it answers in the form of its rows."""
    settings = {"use_peft": False, "load_in_4bit": False, "num_train_epochs": 3, "dtype": "float32", "bf16": False}
    return made_once("whole", lambda directory: train_here(name="whole", **settings).directory.rename(directory))


def plain(recipe: dict[str, Any], adapter: Path | None = None) -> Any:
    """The 4-bit base as its libraries load it, with or without an adapter."""
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe["bnb_4bit_quant_type"],
        bnb_4bit_use_double_quant=recipe["use_bnb_nested_quant"],
        bnb_4bit_compute_dtype=recipe["dtype"],
        bnb_4bit_quant_storage=recipe["bnb_4bit_quant_storage"],
    )
    model = AutoModelForCausalLM.from_pretrained("model", dtype=recipe["dtype"], quantization_config=four_bit)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.generation_config = GenerationConfig(eos_token_id=[model.config.eos_token_id], pad_token_id=0)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


@pytest.mark.parametrize(("dtype", "room"), [("float32", True), ("float32", False), ("bfloat16", True)])
def test_base_is_the_model_without_the_adapter_and_tuned_is_plain_peft(
    dtype: str, room: bool, qlora: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not memory lets the base be dequantised and the adapter merged; each row is tokenised once."""
    if not room:
        monkeypatch.setattr(loading, "WHOLE_SHARE", 0)
    made, tokenised = [], []
    merge, candidates = LoraModel.merge_adapter, scoring.candidates
    monkeypatch.setattr(LoraModel, "merge_adapter", lambda model: made.append(merge(model)))
    monkeypatch.setattr(scoring, "candidates", lambda *given: tokenised.append(given) or candidates(*given))
    recipe = yaml.safe_load((qlora / "recipe.yaml").read_text(encoding="utf-8")) | {"dtype": dtype}
    job = Scratch(tmp_path / "job", qlora, recipe=recipe)
    assert job.run() == 0
    assert (len(made), len(tokenised)) == (int(room and dtype == "float32"), 1)
    rows = [json.loads(line)["prompt"] for line in (job.directory / "rows.jsonl").read_text("utf-8").splitlines()]
    for name, model in {"base": plain(recipe), "tuned": plain(recipe, qlora / "adapter")}.items():
        scores = [list(each["log_likelihoods"].values()) for each in job.of(name)]
        if dtype == "float32":
            expected = [one_by_one(model, tokenizer, row, ["even", "odd"]) for row in rows]
            torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)
        else:
            # Its rounding depends on the batch.
            assert scores == all_of(likelihood.likelihoods(model, tokenizer, rows, ["even", "odd"]))
    assert job.of("base") != job.of("tuned")
    measured = json.loads((job.directory / "measured.json").read_text(encoding="utf-8"))
    assert measured["device"] == "cpu" and measured["load_seconds"] > 0 and measured["peak_memory_bytes"] > 1e8
    for facts in measured["models"].values():
        assert facts["rows"] == 12 and facts["rows_per_second"] == pytest.approx(12 / facts["seconds"])


def test_a_model_that_was_trained_whole_is_compared_with_the_base_and_reads_its_own_template(
    whole: Path, tokenizer: Any, tmp_path: Path
) -> None:
    job = Scratch(tmp_path / "job", whole)
    assert job.run() == 0
    rows = [json.loads(line)["prompt"] for line in (job.directory / "rows.jsonl").read_text("utf-8").splitlines()]
    for name, directory in {"base": "model", "tuned": whole / "adapter"}.items():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        expected = [one_by_one(model, tokenizer, row, ["even", "odd"]) for row in rows]
        scores = [list(each["log_likelihoods"].values()) for each in job.of(name)]
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_an_adapter_is_taken_out_of_the_weights_again(qlora: Path) -> None:
    recipe = yaml.safe_load((qlora / "recipe.yaml").read_text(encoding="utf-8")) | {"dtype": "float32"}
    ids = torch.tensor([[5, 6, 7]])
    found = []
    for _, model, _ in scoring.each_model(recipe, qlora / "adapter", ["tuned", "base", "tuned"], on_cpu=True):
        assert not any(isinstance(module, Linear4bit) for module in model.modules())
        with torch.inference_mode():
            found.append(model(input_ids=ids).logits)
    with torch.inference_mode():
        expected = plain(recipe)(input_ids=ids).logits
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=0)
    assert (found[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "dtype", "merges"),
    [
        ({"target_modules": "all-linear"}, torch.float32, True),
        ({"target_modules": "all-linear"}, torch.bfloat16, False),
        # In the tied head it would be there too.
        ({"target_modules": ["q_proj", "embed_tokens"]}, torch.float32, False),
    ],
)
def test_only_what_comes_out_again_is_merged(
    settings: dict[str, Any], dtype: torch.dtype, merges: bool, tokenizer: Any
) -> None:
    model = random_model(Qwen3Config(**sizes(tokenizer) | {"tie_word_embeddings": True})).to(dtype)
    assert loading.can_merge(get_peft_model(model, LoraConfig(**settings))) is merges


def test_two_whole_models_are_never_in_memory_together(whole: Path) -> None:
    recipe = yaml.safe_load((whole / "recipe.yaml").read_text(encoding="utf-8"))
    last = None
    for _, model, _ in scoring.each_model(recipe, whole / "adapter", ["tuned", "base"], on_cpu=True):
        assert last is None or last() is None
        last = weakref.ref(model)
        del model


def test_greedy_answers_are_those_of_one_prompt_at_a_time_without_padding(tokenizer: Any) -> None:
    model = random_model(CONFIGS["gemma3"](**sizes(tokenizer)))
    # What a model ships to be sampled with has no say.
    model.generation_config.temperature, model.generation_config.top_k = 0.7, 20
    prompts = [turns(question) for question in QUESTIONS]
    answers = all_of(scoring.generate(model, tokenizer, prompts, 12))
    assert len({each["text"] for each in answers}) > 1
    for prompt, found in zip(prompts, answers, strict=True):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        start = len(ids)
        with torch.inference_mode():
            while len(ids) < start + 12 and tokenizer.eos_token_id not in ids[start:]:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert found == {
            "text": tokenizer.decode(ids[start:], skip_special_tokens=True),
            "tokens": len(ids) - start,
            "finished": ids[-1] == tokenizer.eos_token_id,
        }


def test_generation_stops_at_the_end_of_the_templates_turn_and_says_where_it_did_not(
    whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    # As in many base models: neither the tokenizer nor the model says what ends a turn, and the template alone does.
    for name, key in {"tokenizer_config.json": "eos_token", "config.json": "eos_token_id"}.items():
        file = run / "adapter" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: "<|endoftext|>" if key == "eos_token" else 0}))
    (run / "adapter" / "generation_config.json").unlink()
    job = Scratch(tmp_path / "job", run, by="generation", models=["tuned"])
    assert job.run() == 0
    facts = json.loads((job.directory / "measured.json").read_text(encoding="utf-8"))["models"]["tuned"]
    assert facts["tokens"] == sum(each["tokens"] for each in job.outputs())
    assert facts["tokens_per_second"] == pytest.approx(facts["tokens"] / facts["seconds"])
    assert all(each["finished"] and each["text"] in ("even", "odd") and each["tokens"] <= 5 for each in job.outputs())
    short = Scratch(tmp_path / "short", run, by="generation", models=["tuned"], max_new_tokens=1)
    assert short.run() == 0
    assert not any(each["finished"] for each in short.outputs())
    assert {each["tokens"] for each in short.outputs()} == {1}


def test_the_longest_answer_to_generate_follows_from_the_training_answers(whole: Path, tmp_path: Path) -> None:
    for text, expected in {"even": 32, "red " * 40: 2 * 81}.items():
        job = Scratch(
            tmp_path / str(expected), whole, by="generation", models=["tuned"], longest_answers=["odd", text]
        )
        assert job.run() == 0
        measured = json.loads((job.directory / "measured.json").read_text(encoding="utf-8"))
        assert measured["max_new_tokens"] == expected


@pytest.mark.parametrize("by", ["likelihood", "generation"])
def test_an_interrupted_process_goes_on_where_it_stopped(
    by: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = Scratch(tmp_path / "untouched", whole, by=by)
    assert untouched.run() == 0
    monkeypatch.setattr(likelihood, "CPU_FORWARD_TOKENS", 100)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 300)
    job = Scratch(tmp_path / "job", whole, by=by)
    counting = scoring.counting_rows

    def interrupt(rows: int) -> None:
        if rows > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "counting_rows", lambda *_: contextlib.nullcontext(interrupt))
        assert job.run() == 3
    assert scoring.counting_rows is counting
    file = job.directory / "outputs.jsonl"
    before = file.read_bytes()
    whole_lines = before.count(b"\n")
    assert 3 < whole_lines < 12
    file.write_bytes(before[:-20])
    assert job.run() == 0
    after = file.read_bytes()
    assert after.startswith(before[: before[:-20].rfind(b"\n") + 1])
    assert sorted((each["row"], each["model"]) for each in job.outputs()) == sorted(
        (row, model) for row in range(1, 13) for model in ("base", "tuned")
    )
    for name in ("base", "tuned"):
        for one, other in zip(job.of(name), untouched.of(name), strict=True):
            assert one.get("text") == other.get("text")
            assert one.get("log_likelihoods") == pytest.approx(other.get("log_likelihoods"), abs=1e-4)
    assert job.run() == 0
    assert file.read_bytes() == after


@pytest.mark.parametrize("config", [MambaConfig, Qwen3NextConfig, Llama4TextConfig])
def test_a_model_that_cannot_take_answers_side_by_side_is_refused(config: Any, tokenizer: Any) -> None:
    small = sizes(tokenizer) | {"num_hidden_layers": 4, "num_experts": 4, "num_local_experts": 4}
    model = AutoModelForCausalLM.from_config(config(**small))
    with pytest.raises(InputError, match="predict_by: generation"):
        next(likelihood.likelihoods(model, tokenizer, [turns("red")], ANSWERS))


def supervised(run: Run) -> Any:
    """The rows that SFTTrainer holds of a run's recipe."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    return worker.build(yaml.safe_load(run.recipe.read_text(encoding="utf-8"))).train_dataset


@pytest.mark.parametrize("form", ["turns", "texts"])
def test_the_tokens_are_those_that_sfttrainer_trains_on(form: str, project: Path, tokenizer: Any) -> None:
    overrides = ["load_in_4bit=false", "use_peft=false", "bf16=false"]
    if form == "texts":
        # "Answer: " loses its space to the answer's first token: the prompt's own tokens are not how the row begins.
        rows = [
            {"prompt": f"Count the word red: {row['input']}\nAnswer: ", "completion": row["output"]}
            for row in alpaca_rows(64, seed=1)
        ]
        write_rows(project / "data" / "train.jsonl", rows)
        write_rows(project / "data" / "validation.jsonl", rows[:8])
    run = launch.create(jobs.check("tiny", overrides=overrides), form)
    prepared = Path(yaml.safe_load(run.recipe.read_text(encoding="utf-8"))["dataset_name"]) / "train.jsonl"
    rows = [json.loads(line) for line in prepared.read_text(encoding="utf-8").splitlines()]
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    found = likelihood.candidates(model, tokenizer, [row["prompt"] for row in rows], ["even", "odd"])
    trained = supervised(run)
    assert len(trained) == len(found) == 64
    for row, one, other in zip(rows, found, trained, strict=True):
        completion = row["completion"] if form == "texts" else row["completion"][0]["content"]
        answer = ["even", "odd"].index(completion)
        own = [token for number, _, token in one.tree.terms if number == answer]
        whole = one.prefix + own
        assert other["input_ids"][: len(whole)] == whole
        start = next(place for place, label in enumerate(other["labels"]) if label != -100)
        # " odd" has a token for its space and first letter, and " even" one for its space, where the two part.
        assert len(one.prefix) == start - (form == "texts" and completion == "even")
        assert other["labels"][start : len(whole)] == whole[start:] and own[-1] == tokenizer.eos_token_id
        # After it, a template may have a newline and nothing more.
        assert tokenizer.decode(other["input_ids"][len(whole) :]).strip() == ""


def test_texts_are_scored_like_turns(tokenizer: Any) -> None:
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    # Also one that is the start of others.
    prompts = [*(f"{question}\nAnswer: " for question in QUESTIONS), "red red", "red", "red dog"]
    expected = [one_by_one(model, tokenizer, prompt, ANSWERS) for prompt in prompts]
    scores = all_of(likelihood.likelihoods(model, tokenizer, prompts, ANSWERS))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "condition", ["'shout' in messages[0].content", "'shout' in messages[0].content and message.content == 'odd'"]
)
def test_a_template_whose_answers_depend_on_the_row_is_taken_at_its_word(condition: str, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + '<|im_end|>'",
        f"(message['content'] | upper if {condition} else message['content']) + '<|im_end|>'",
    )
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    prompts = [turns(question) for question in ("red", "shout red", "blue red", "shout blue")]
    expected = [one_by_one(model, tokenizer, prompt, ["even", "odd"]) for prompt in prompts]
    scores = all_of(likelihood.likelihoods(model, tokenizer, prompts, ["even", "odd"]))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_token_that_splits_some_rows_and_not_others_is_found_out() -> None:
    # Without a pre-tokeniser a merge may reach into the answer, and a token of this kind is none after a letter.
    letters = [*"abcdefghijklmnopqrstuvwxyz!<>-.", ">-"]
    bpe = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, [(">", "-")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="|")  # noqa: S106, a token of text
    tokenizer.add_tokens(AddedToken("<a>", single_word=True))
    tokenizer.chat_template = "{{ messages[0].content }}<a>{% if messages[1:] %}{{ messages[1].content }}|{% endif %}"
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    prompts = [[{"role": "user", "content": text}] for text in ("red!", "red", "blue!", "blue")]
    answers = ["-e", ".o"]
    rows = likelihood.candidates(model, tokenizer, prompts, answers)
    assert [tokenizer.decode(row.prefix[-1:]) for row in rows] == ["<a>", "a", "<a>", "a"]
    expected = [one_by_one(model, tokenizer, prompt, answers) for prompt in prompts]
    scores = all_of(likelihood.likelihoods(model, tokenizer, prompts, answers))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_what_a_template_puts_before_every_answer_belongs_to_the_prompt(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + '<|im_end|>'", "'<think>\\n\\n</think>\\n\\n' + message['content'] + '<|im_end|>'"
    )
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    rows = likelihood.candidates(model, tokenizer, [turns(question) for question in QUESTIONS], ["even", "odd"])
    assert all(tokenizer.decode(row.prefix).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") for row in rows)
    prompts = [turns(question) for question in QUESTIONS]
    expected = [one_by_one(model, tokenizer, prompt, ["even", "odd"]) for prompt in prompts]
    scores = all_of(likelihood.likelihoods(model, tokenizer, prompts, ["even", "odd"]))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-4, rtol=0)


def test_labels_that_cannot_be_told_apart_are_refused(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    with pytest.raises(InputError, match="only even"):
        likelihood.candidates(model, tokenizer, [turns("red")], ["even"])
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content'] + ", "message['content'] | trim + ")
    with pytest.raises(InputError, match="'even ' and 'even' are the same tokens"):
        likelihood.candidates(model, tokenizer, [turns("red")], ["odd", "even", "even "])
    tokenizer.chat_template = tokenizer.chat_template.replace(" + '<|im_end|>' -}}{%- endg", " -}}{%- endg")
    with pytest.raises(InputError, match="no stop token ends the answer 'odd'"):
        likelihood.candidates(model, tokenizer, [turns("red")], ["odd", "even"])


def test_out_of_memory_halves_the_batches_and_says_so_once(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(CONFIGS["qwen3"](**sizes(tokenizer)))
    prompts = [turns(question) for question in QUESTIONS]
    expected = all_of(likelihood.likelihoods(model, tokenizer, prompts, ANSWERS))
    most = 2

    def limited(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError

    model.register_forward_pre_hook(limited, with_kwargs=True)
    scores = all_of(likelihood.likelihoods(model, tokenizer, prompts * 2, ANSWERS))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected * 2), atol=1e-4, rtol=0)
    assert capsys.readouterr().out.count("memory ") == 1
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        all_of(likelihood.likelihoods(model, tokenizer, prompts[1:], ANSWERS))


def test_a_damaged_adapter_is_the_inputs_fault(qlora: Path, tmp_path: Path) -> None:
    def problem(damage: Callable[[Path], None]) -> str:
        run = shutil.copytree(qlora, tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        damage(run / "adapter" / "adapter_model.safetensors")
        job = Scratch(run / "job", run)
        assert job.run() == 2
        assert not job.outputs()[12:]
        (message,) = job.problems()
        return message

    def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
        return lambda file: save_file(change(load_file(file)), file)

    assert "train again" in problem(lambda file: file.write_bytes(file.read_bytes()[:1000]))
    assert "train again" in problem(Path.unlink)
    assert "missing adapter keys" in problem(rewritten(lambda tensors: dict(list(tensors.items())[1:])))
    wide = rewritten(lambda tensors: {name: tensor.repeat(2, 2) for name, tensor in tensors.items()})
    assert "size mismatch" in problem(wide)
    config = "adapter_config.json"

    def swapped(file: Path) -> None:
        facts = json.loads(file.with_name(config).read_text()) | {"base_model_name_or_path": "another"}
        file.with_name(config).write_text(json.dumps(facts))

    assert "trained on another, and the recipe names model" in problem(swapped)
    nan = rewritten(lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()})
    assert "not finite" in problem(nan)


def test_a_trained_model_that_lacks_weights_is_refused(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    file = run / "adapter" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    job = Scratch(tmp_path / "job", run)
    assert job.run() == 2
    assert "lack" in job.problems()[0] and "up_proj" in job.problems()[0]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(qlora: Path, tmp_path: Path) -> None:
    run = shutil.copytree(qlora, tmp_path / "run")
    words = AutoTokenizer.from_pretrained(run / "adapter")
    words.add_tokens([f"<extra {number}>" for number in range(9)])
    words.save_pretrained(run / "adapter")
    job = Scratch(tmp_path / "job", run)
    assert job.run() == 2
    assert "set it to a .jinja file" in job.problems()[0]


def test_the_process_does_the_same_and_says_nothing(qlora: Path, tmp_path: Path) -> None:
    here, apart = Scratch(tmp_path / "here", qlora), Scratch(tmp_path / "apart", qlora)
    assert here.run() == 0
    # And what torch compiles with is not imported, though bitsandbytes asks for it.
    code = (
        "import sys; from sft_recipes.evaluate.scoring_process import main; code = main(); "
        "sys.exit(code or 9 * ('torch._inductor.compile_fx' in sys.modules or 'bitsandbytes' not in sys.modules))"
    )
    command = [sys.executable, "-c", code, str(apart.directory)]
    done = subprocess.run(command, env=quiet_environment(on_cpu=True), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert apart.outputs() == here.outputs()


def test_a_stop_while_the_libraries_are_imported_says_nothing(qlora: Path, tmp_path: Path) -> None:
    job = Scratch(tmp_path / "job", qlora)
    command = [sys.executable, "-m", "sft_recipes.evaluate.scoring_process", str(job.directory)]
    process = subprocess.Popen(command, env=quiet_environment(on_cpu=True), stderr=subprocess.PIPE, text=True)
    # torch is being loaded, which is the first half of the imports.
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")
