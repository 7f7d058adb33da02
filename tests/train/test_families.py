"""The files of models/, and every family of models through the real trainer: a tiny random model of its architecture,
with its chat template, trained for a step."""

import copy
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, MadeOnce, alpaca_rows, write_rows
from finished import BFLOAT16, restate
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Mxfp4Config

from sft_recipes.data import templates
from sft_recipes.demo import demo_base, tiny
from sft_recipes.deploy import merge
from sft_recipes.errors import InputError
from sft_recipes.evaluate import likelihood, scoring
from sft_recipes.launch import rehearse
from sft_recipes.models import base_model, conflicts
from sft_recipes.plan import job as jobs
from sft_recipes.plan import plan
from sft_recipes.recipes import recipe, schema, topology
from sft_recipes.recipes.recipe import Value, load, parse_overrides, read_model
from sft_recipes.report import card
from sft_recipes.runs.run import Run
from sft_recipes.train import train, verify

# Beside the one that is made from a package, which is trained whole by tests_real/.
FAMILIES = [name for name in recipe.names(ROOT / "models") if not name.endswith("_packaged")]
# Other sizes of a model that is trained here.
SAME = {
    **dict.fromkeys(("qwen3_0_6b", "qwen3_1_7b", "qwen3_8b", "qwen3_14b", "qwen3_32b"), "qwen3_4b"),
    "llama3_2_1b": "llama3_1_8b",
    "llama3_2_3b": "llama3_1_8b",
    "gemma3_12b": "gemma3_4b",
}
TRAINED = [family for family in FAMILIES if family not in SAME]
pytestmark = pytest.mark.usefixtures("same_words")
PRESETS = ["default", "high_capacity", "memory_efficient", "quick_test"]


def of(family: str, preset: str = "default", *words: str) -> recipe.Recipe:
    return load(preset, parse_overrides([f"model={family}", *words]))


# The files


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_composes_with_every_preset(project: Path, preset: str, family: str) -> None:
    alone, composed, facts = load(preset), of(family, preset), read_model(family)
    said = facts.keys() - {"description"}
    assert {key: composed.values[key] for key in said} == {key: facts[key] for key in said}
    assert {key: item for key, item in composed.values.items() if key not in said} == {
        key: item for key, item in alone.values.items() if key not in said
    }
    assert composed["description"] == alone["description"]
    assert composed.values["model_name_or_path"].origin.startswith(f"models/{family}.yaml:")
    assert schema.upstream().keys() >= said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_can_be_planned_without_the_hub(project: Path, family: str) -> None:
    composed = of(family)
    model = base_model.find(composed["model_name_or_path"])
    assert model is not None and model.source.startswith("bundled")
    quantised = bool(model.config.get("quantization_config"))
    assert quantised == (not composed["load_in_4bit"])
    for preset in PRESETS:
        assert not [*conflicts.of_model(model, of(family, preset))]
    path = composed["chat_template_path"]
    assert path is None or (Path(path).is_file() and Path(path).parent == recipe.MODELS)


def test_an_override_wins_over_the_model_and_the_model_over_the_recipe(project: Path) -> None:
    composed = of("gpt_oss_20b", "default", "attn_implementation=flex_attention")
    assert composed.values["attn_implementation"] == Value("flex_attention", "SET")
    assert (composed["load_in_4bit"], load("default")["load_in_4bit"]) == (False, True)


def test_all_linear_is_every_models(project: Path) -> None:
    """Layers that a model names are in place of names that it does not have."""
    Path("recipes/everything.yaml").write_text("extends: default\nlora_target_modules: [all-linear]\n")
    assert of("phi4")["lora_target_modules"] == ["qkv_proj"]
    assert of("phi4", "everything")["lora_target_modules"] == ["all-linear"]
    assert of("phi4", "everything", "lora_target_modules=[o_proj]")["lora_target_modules"] == ["o_proj"]


def test_what_is_no_fact_of_a_model_is_refused(project: Path) -> None:
    text = (
        "description: Mine.\nmodel_name_or_path: org/mine\nlearning_rate: 1e-4\nmax_seq_length: 9\ndtipe: bfloat16\n"
    )
    Path("models/mine.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        of("mine")
    assert refused.value.problems == [
        "models/mine.yaml:3: learning_rate is a choice and no fact of a model; write it in recipes/, or SET=",
        f"models/mine.yaml:4: {schema.problem('max_seq_length', 9)}",
        "models/mine.yaml:5: dtipe: no such key; did you mean dtype?",
        "models/mine.yaml: model_revision missing; say it of every model",
    ]


def test_a_wrong_value_is_said_with_its_place_in_the_models_file(project: Path) -> None:
    Path("models/mine.yaml").write_text(
        "description: Mine.\nmodel_name_or_path: org/mine\nmodel_revision: main\ndtype: half\n"
    )
    with pytest.raises(InputError, match=r"models/mine.yaml:4: dtype: half is not one of"):
        of("mine")


@pytest.mark.parametrize("name", ["qwen3_5b", "../recipes/default", "", "[a]", "3"])
def test_a_model_that_is_not_there_is_refused_with_those_that_are(project: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^(no|invalid) model .*; there are .*gpt_oss_20b.*qwen3_4b"):
        of(name)


def test_what_is_decided_is_said(project: Path) -> None:
    job = jobs.check("tiny", overrides=["model=mistral_7b", "lora_r=4"])
    said = dict(job.decisions())
    model, template = "mistralai/Mistral-7B-Instruct-v0.3", "models/mistral.jinja"
    expected = f"model_name_or_path: {model}, model_revision: main, chat_template_path: {template}"
    assert said["model"] == expected
    assert said["override"] == "lora_r: 4"


def test_two_ways_to_quantise_are_refused(project: Path) -> None:
    with pytest.raises(InputError, match=r"SET: load_in_4bit and a quantization_config .* keep one"):
        of("gpt_oss_20b", "default", "load_in_4bit=true")


# The templates


def from_trl(name: str) -> str:
    from trl import chat_template_utils

    return (chat_template_utils._CHAT_TEMPLATES_DIR / f"{name}.jinja").read_text(encoding="utf-8")


Turns = list[tuple[str, str]]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " red cat"}, {"role": "assistant", "content": "odd "}],
    [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "odd"},
        {"role": "user", "content": "red red"},
        {"role": "assistant", "content": "even"},
    ],
    [
        {"role": "user", "content": "red"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "odd"},
    ],
]
TOOL = {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": TOOL}]])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "date"),
    [
        ("gpt_oss", "gptoss", "2025-08-05"),
        ("llama3", "llama3_2", "26 Jul 2024"),
        ("llama3", "llama3_1", None),
    ],
)
def test_a_template_renders_like_its_original_on_one_day(
    demo_words: Any, ours: str, theirs: str, date: str | None, prompt: bool, tools: list[Any] | None
) -> None:
    words = copy.deepcopy(demo_words)
    words.bos_token = demo_base.START
    template, original = (ROOT / "models" / f"{ours}.jinja").read_text(encoding="utf-8"), from_trl(theirs)
    assert "strftime_now" not in template
    assert ("strftime_now" in original) == (date is not None)

    on_the_day = re.sub(r"strftime_now\(.*?\)", f"'{date}'", original)

    def rendered(chat_template: str, messages: Any) -> str:
        return words.apply_chat_template(
            messages, tools=tools, chat_template=chat_template, add_generation_prompt=prompt, tokenize=False
        )

    for messages in CONVERSATIONS:
        assert rendered(template, messages) == rendered(on_the_day, messages)


def chat(opening: str, closing: str, first: str = "") -> Callable[[Turns, bool], str]:
    """A format as a function of the turns, and of whether an answer is asked for: `opening` has the {role}."""

    def render(turns: Turns, prompt: bool) -> str:
        turns = turns if not first or turns[0][0] == "system" else [("system", first), *turns]
        texts = [opening.format(role=role) + text + closing for role, text in turns]
        return "".join(texts) + (opening.format(role="assistant") if prompt else "")

    return render


def phi4_mini(turns: Turns, prompt: bool) -> str:
    return chat("<|{role}|>", "<|end|>")(turns, prompt) + ("" if prompt else "EOS")


def olmo2(turns: Turns, prompt: bool) -> str:
    ends = ["EOS" * (role == "assistant") + "\n" for role, _ in turns]
    ends[-1] = "EOS" if turns[-1][0] == "assistant" else "\n"
    texts = [f"<|{role}|>\n{text}{end}" for (role, text), end in zip(turns, ends, strict=True)]
    return "BOS" + "".join(texts) + ("<|assistant|>\n" if prompt else "")


def olmo3(turns: Turns, prompt: bool) -> str:
    first = "You are a helpful function-calling AI assistant. "
    first += "You do not currently have access to any functions. <functions></functions>"
    text = chat("<|im_start|>{role}\n", "<|im_end|>\n", first)(turns, False)
    text = text.removesuffix("<|im_end|>\n") + "EOS" if turns[-1][0] == "assistant" else text
    return text + ("<|im_start|>assistant\n" if prompt else "")


def mistral(turns: Turns, prompt: bool) -> str:
    system = "".join(text + "\n\n" for role, text in turns if role == "system")
    turns = [(role, text) for role, text in turns if role != "system"]
    texts = [f"[INST] {text}[/INST]" if role == "user" else f" {text.strip()}EOS" for role, text in turns]
    if turns[-1][0] == "user":
        texts[-1] = f"[INST] {system}{turns[-1][1]}[/INST]"
    return "BOS" + "".join(texts)


ENDS = {"bos_token": "BOS", "eos_token": "EOS"}
SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Each format as its model's own template has it, in words of this project, and what closes an answer.
FORMATS: dict[str, tuple[Callable[[Turns, bool], str], list[str]]] = {
    "chatml": (chat("<|im_start|>{role}\n", "<|im_end|>\n"), [" b c\n<|im_end|>", "e<|im_end|>"]),
    "smollm2": (chat("<|im_start|>{role}\n", "<|im_end|>\n", SMOLLM2), [" b c\n<|im_end|>", "e<|im_end|>"]),
    "phi4": (chat("<|im_start|>{role}<|im_sep|>", "<|im_end|>"), [" b c\n<|im_end|>", "e<|im_end|>"]),
    "phi4_mini": (phi4_mini, [" b c\n<|end|>", "e<|end|>"]),
    "olmo2": (olmo2, [" b c\nEOS", "eEOS"]),
    "olmo3": (olmo3, [" b c\n<|im_end|>", "eEOS"]),
    "mistral": (mistral, [" b cEOS", " eEOS"]),
}


def test_every_shipped_template_is_held_against_its_original() -> None:
    names = {path.stem for path in (ROOT / "models").glob("*.jinja")}
    assert names == {*FORMATS, "gpt_oss", "llama3"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_renders_the_format_and_marks_the_answers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (ROOT / "models" / f"{name}.jinja").read_text(encoding="utf-8")
    form, answers = FORMATS[name]
    for probe in templates.PROBES:
        for number in range(1, len(probe) + 1):
            turns = [(turn["role"], turn["content"]) for turn in probe[:number]]
            if {role for role, _ in turns} == {"system"}:
                continue
            for prompt in (False, True):
                how = {"chat_template": template, "return_assistant_tokens_mask": True, **ENDS}
                texts, marks = render_jinja_template([probe[:number]], add_generation_prompt=prompt, **how)
                assert texts == [form(turns, prompt)]
        assert [texts[0][start:end] for start, end in marks[0]] == answers


@pytest.mark.parametrize("name", ["olmo3", "mistral"])
def test_a_template_without_tools_says_so(name: str, demo_words: Any) -> None:
    from jinja2 import TemplateError

    template = (ROOT / "models" / f"{name}.jinja").read_text(encoding="utf-8")
    with pytest.raises(TemplateError, match="renders no tools"):
        demo_words.apply_chat_template(templates.PROBES[0], tools=[TOOL], chat_template=template, tokenize=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_trained_on_several_turns(project: Path, family: str) -> None:
    path = of(family)["chat_template_path"]
    template = Path(path).read_text(encoding="utf-8") if path else kind_of(family).template()
    assert templates.training_template(template) is not None


# The trainer

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + SEPARATOR + message['content'] + '<|im_end|>' + LINE -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant' + SEPARATOR -}}{%- endif -%}"""


def simple(user: str, assistant: str, prompt: str, start: str = "", end: str = "") -> str:
    """A template of user and assistant alone, as the expressions of a message `m`."""
    return (
        f"{{{{ {start or repr('')} }}}}{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ {user} }}}}"
        f"{{% else %}}{{{{ {assistant} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% else %}}{{{{ {end or repr('')} }}}}{{% endif %}}"
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """What a tokenizer of the family says, and what training on it comes to."""

    template: Callable[[], str]
    """TRL's copy where it has one; otherwise the format alone, without system messages and tools."""
    answer: str
    """What is trained on of a row whose answer is `{}`."""
    eos: str
    pad: str | None
    stops: tuple[str, ...] = ()
    """Of generation_config.json, where there are others than eos."""
    tokens: tuple[str, ...] = ()
    """Other special tokens that the template writes."""
    turns: str = ""
    """What is trained on of CONVERSATIONS[1]."""


QWEN3 = Family(
    lambda: from_trl("qwen3"),
    "<think>\n\n</think>\n\n{}<|im_end|>\n",
    "<|im_end|>",
    "<|endoftext|>",
    ("<|im_end|>", "<|endoftext|>"),
    ("<think>", "</think>"),
    "<think>\n\n</think>\n\nodd<|im_end|>\n<think>\n\n</think>\n\neven<|im_end|>\n",
)
LLAMA3 = Family(
    lambda: from_trl("llama3_2"),
    "{}<|eot_id|>",
    "<|eot_id|>",
    None,
    ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    "odd<|eot_id|>even<|eot_id|>",
)
GEMMA3 = Family(
    lambda: from_trl("gemma3"),
    "{}<end_of_turn>\n",
    "<eos>",
    "<pad>",
    ("<eos>", "<end_of_turn>"),
    ("<bos>", "<start_of_turn>"),
    "odd<end_of_turn>\neven<end_of_turn>\n",
)
KINDS = {
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "gemma3": GEMMA3,
    "mistral": Family(
        lambda: simple("'[INST] ' + m.content + '[/INST]'", "' ' + m.content + '</s>'", "''", start="'<s>'"),
        " {}</s>",
        "</s>",
        None,
        tokens=("<s>", "[INST]", "[/INST]"),
        turns=" odd</s> even</s>",
    ),
    "smollm3": Family(
        lambda: demo_base.CHAT_TEMPLATE,
        "{}<|im_end|>\n",
        "<|im_end|>",
        "<|im_end|>",
        turns="odd<|im_end|>even<|im_end|>",
    ),
    "phi4": Family(
        lambda: CHATML.replace("SEPARATOR", "'<|im_sep|>'").replace("LINE", "''"),
        "{}<|im_end|>",
        "<|im_end|>",
        "<|pad|>",
        tokens=("<|im_sep|>",),
        turns="odd<|im_end|>even<|im_end|>",
    ),
    "phi4_mini": Family(
        lambda: simple(
            "'<|user|>' + m.content + '<|end|>'",
            "'<|assistant|>' + m.content + '<|end|>'",
            "'<|assistant|>'",
            end="'<|endoftext|>'",
        ),
        "{}<|end|><|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        ("<|end|>", "<|endoftext|>"),
        ("<|user|>", "<|assistant|>"),
        "odd<|end|>even<|end|>",
    ),
    "olmo2": Family(
        lambda: simple(
            "'<|user|>\\n' + m.content + '\\n'",
            "'<|assistant|>\\n' + m.content + '<|endoftext|>'",
            "'<|assistant|>\\n'",
        ),
        "{}<|endoftext|>",
        "<|endoftext|>",
        "<|pad|>",
        turns="odd<|endoftext|>even<|endoftext|>",
    ),
    "olmo3": Family(
        lambda: simple(
            "'<|im_start|>user\\n' + m.content + '<|im_end|>\\n'",
            "'<|im_start|>assistant\\n' + m.content + ('<|endoftext|>' if loop.last else '<|im_end|>\\n')",
            "'<|im_start|>assistant\\n'",
        ),
        "{}<|endoftext|>",
        "<|endoftext|>",
        "<|pad|>",
        ("<|im_end|>", "<|endoftext|>"),
        turns="odd<|im_end|>even<|endoftext|>",
    ),
    "gpt_oss": Family(
        lambda: from_trl("gptoss"),
        "<|channel|>final<|message|>{}<|return|>",
        "<|return|>",
        "<|endoftext|>",
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        ("<|start|>", "<|end|>", "<|channel|>", "<|message|>"),
        "<|channel|>final<|message|>odd<|end|><|channel|>final<|message|>even<|return|>",
    ),
}


def kind_of(family: str) -> Family:
    return next(KINDS[name] for name in sorted(KINDS, key=len, reverse=True) if family.startswith(name))


def tiny_base(family: str, demo_words: Any, directory: Path) -> None:
    """A tiny random model of the family's architecture, with the demo's words and the family's special tokens."""
    kind = kind_of(family)
    words = copy.deepcopy(demo_words)
    special = [*kind.stops, *kind.tokens, kind.eos, *([kind.pad] if kind.pad else [])]
    words.add_special_tokens({"extra_special_tokens": list(dict.fromkeys(special))})
    words.eos_token, words.pad_token, words.chat_template = kind.eos, kind.pad, kind.template()
    words.bos_token = next((token for token in kind.tokens if token in ("<s>", "<bos>", "<|begin_of_text|>")), None)
    source = directory / "tokenizer"
    words.save_pretrained(source)
    config = json.loads(json.dumps(base_model.bundled()[of(family)["model_name_or_path"]]["config"]))
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config.get("text_config", config).update(ids)
    if "num_local_experts" in config:
        # Of which a token takes half, and not 32: they are no smaller in a small model.
        config["num_local_experts"] = 2 * config["num_experts_per_tok"]
    stops = words.convert_tokens_to_ids([*kind.stops]) or words.eos_token_id
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}), encoding="utf-8")
    base = directory / "base"
    tiny.build(base, config, source)
    if "quantization_config" in config:
        to_mxfp4(base, config["quantization_config"])


def to_mxfp4(base: Path, described: dict[str, Any]) -> None:
    """Make a saved gpt-oss an MXFP4 checkpoint, its experts as random codes: two a byte, and a scale for each 32."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    weights = load_file(base / "model.safetensors")
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.randint(256, (experts, out, width // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.randint(118, 122, (experts, out, width // 32), dtype=torch.uint8)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": described}), encoding="utf-8")


@pytest.fixture
def base_of(made_once: MadeOnce, demo_words: Any) -> Callable[[str], Path]:
    """The tiny base of a family, which is made once for all tests."""
    return lambda family: made_once(f"family-{family}", functools.partial(tiny_base, family, demo_words)) / "base"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainer, when its rows have been checked."""
    trainers: list[Any] = []
    check = verify.data

    def spy(trainer: Any, prepared_rows: int) -> Any:
        trainers.append(trainer)
        return check(trainer, prepared_rows)

    monkeypatch.setattr(verify, "data", spy)
    return trainers


ONE_STEP: dict[str, Any] = {
    "accelerate_config": "cpu",
    "train_file": "data/train.jsonl",
    "validation_file": None,
    "validation_split_size": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
    "dataloader_num_workers": 0,
    "global_batch_size": 4,
    "max_steps": 1,
    "warmup_steps": 0,
    "report_to": "none",
}


@pytest.mark.parametrize(("family", "trained"), SAME.items())
def test_another_size_is_the_same_model_with_the_same_keys(project: Path, family: str, trained: str) -> None:
    """But for its output embedding, which small models share with the input's."""
    one, other = (base_model.find(of(name)["model_name_or_path"]) for name in (family, trained))
    assert one is not None and other is not None
    assert {group.path for group in one.groups} - {"lm_head"} == {group.path for group in other.groups} - {"lm_head"}
    size = {"description", "model_name_or_path"}
    assert {key: item.value for key, item in read_model(family).items() if key not in size} == {
        key: item.value for key, item in read_model(trained).items() if key not in size
    }
    assert kind_of(family) is kind_of(trained)


@pytest.mark.parametrize("name", base_model.bundled())
def test_a_bundled_model_can_be_made_small_for_a_rehearsal(name: str) -> None:
    config = tiny.shrunk(base_model.bundled()[name]["config"], vocabulary=320)
    config.get_text_config().pad_token_id = None
    config.validate()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() < 4e6
    assert model.config.model_type == base_model.bundled()[name]["config"]["model_type"]


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_a_family_trains_on_answers_alone_and_learns_to_stop(
    project: Path, train_here: Callable[..., Any], seen: list[Any], base_of: Callable[[str], Path], family: str
) -> None:
    rows = alpaca_rows(4, seed=1)
    write_rows(project / "data" / "train.jsonl", rows)
    base = base_of(family)
    kind, composed = kind_of(family), of(family)
    effect = train_here("default", model=family, model_name_or_path=str(base), **ONE_STEP).facts()["in_effect"]

    trainer = seen[0]
    words = trainer.processing_class
    by_input = {row["input"]: row["output"] for row in rows}
    for row in trainer.train_dataset:
        first = next(index for index, label in enumerate(row["labels"]) if label != -100)
        assert row["labels"][first:] == row["input_ids"][first:]
        prompt, answer = words.decode(row["input_ids"][:first]), words.decode(row["input_ids"][first:])
        (expected,) = [output for text, output in by_input.items() if f"{text}" in prompt]
        assert answer == kind.answer.format(expected)
    # Each of them is the same that TRL makes of it.
    assert effect["data"]["rows_ending_with_eos"] == effect["data"]["rows"] == effect["data"]["rows_compared"] == 4

    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    padding = batch["attention_mask"] == 0
    assert padding.any() and (batch["labels"][padding] == -100).all()
    stops = words.convert_tokens_to_ids([*kind.stops, kind.eos])
    assert all(any(label in stops for label in labels.tolist()) for labels in batch["labels"])

    layers = trainer.model.config.get_text_config().num_hidden_layers
    assert effect["adapter"]["modules"] == dict.fromkeys(composed["lora_target_modules"], layers)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    counted = base_model.from_config(str(base), config, "a test")
    assert counted.elements() == effect["base"]["parameters"]
    assert effect["base"]["four_bit_share"] == (counted.four_bit_share if composed["load_in_4bit"] else 0)
    trained = counted.adapters(base_model.Asked.of(composed)).parameters(composed["lora_r"])
    assert trained == effect["adapter"]["trainable_parameters"]
    assert effect["run"]["max_steps"] == 1


MXFP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.slow
def test_gpt_oss_is_trained_on_the_values_of_its_mxfp4_weights(
    project: Path,
    train_here: Callable[..., Any],
    seen: list[Any],
    base_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With adapters on experts too, and not because the packages are missing that would leave the weights MXFP4."""
    from safetensors.torch import load_file

    asked: list[Any] = []
    built = train.Trainer.__init__

    def spy(self: Any, *arguments: Any, **kwargs: Any) -> None:
        asked.append(kwargs["quantization_config"])
        built(self, *arguments, **kwargs)

    monkeypatch.setattr(train.Trainer, "__init__", spy)

    write_rows(project / "data" / "train.jsonl", alpaca_rows(4, seed=1))
    base = base_of("gpt_oss_20b")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    effect = train_here(
        "default",
        model="gpt_oss_20b",
        model_name_or_path=str(base),
        lora_target_parameters=parameters,
        lora_dropout=0.0,
        **ONE_STEP,
    ).facts()["in_effect"]
    assert [(type(each).__name__, each.dequantize) for each in asked] == [("Mxfp4Config", True)]
    assert effect["base"]["dtypes"] == ["bfloat16"]
    assert effect["adapter"]["modules"] == {"q_proj": 2, "v_proj": 2, "gate_up_proj": 2, "down_proj": 2}

    stored = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    blocks, scales = stored[f"{name}_blocks"].long(), stored[f"{name}_scales"].float()
    codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    values = (torch.tensor(MXFP4)[codes] * torch.exp2(scales - 127)[..., None]).flatten(-2).transpose(1, 2)
    loaded = dict(seen[0].model.named_parameters())
    (weight,) = [value for key, value in loaded.items() if key.endswith("down_proj") and ".layers.0." in key]
    assert weight.dtype == torch.bfloat16 and torch.equal(weight.float(), values)

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    counted = base_model.from_config(str(base), config, "a test")
    trained = counted.adapters(base_model.Asked(("q_proj", "v_proj"), tuple(parameters))).parameters(32)
    assert trained == effect["adapter"]["trainable_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_several_turns_are_trained_on(
    project: Path, rows_here: Callable[..., Any], base_of: Callable[[str], Path], family: str
) -> None:
    write_rows(project / "data" / "train.jsonl", [{"messages": CONVERSATIONS[1]}] * 4)
    trainer, found = rows_here("default", model=family, model_name_or_path=str(base_of(family)), **ONE_STEP)
    trained = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    assert (found["rows_compared"], trainer.processing_class.decode(trained)) == (4, kind_of(family).turns)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "sizes"),
    # Of parts that stay as wide in a small model as in the whole.
    [
        (
            "qwen3_5",
            "Qwen3_5ForConditionalGeneration",
            {"text_config": {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_value_head_dim": 64}},
        ),
        ("mllama", "MllamaForConditionalGeneration", {"text_config": {"num_key_value_heads": 32}}),
    ],
    ids=["qwen3_5", "mllama"],
)
def test_plan_rehearsal_and_training_load_one_class(
    project: Path,
    train_here: Callable[..., Any],
    seen: list[Any],
    tmp_path: Path,
    family: str,
    name: str,
    sizes: dict[str, Any],
) -> None:
    write_rows(project / "data" / "train.jsonl", alpaca_rows(4, seed=1))
    config = AutoConfig.for_model(family, **sizes).to_dict() | {"architectures": [name]}
    tiny.build(tmp_path / "base", config, None)
    asked = {"lora_target_modules": ["all-linear"], "model_name_or_path": str(tmp_path / "base")}
    effect = train_here("default", **asked, **ONE_STEP).facts()["in_effect"]
    assert type(seen[0].model.get_base_model()).__name__ == name
    planned = plan.plan("default", overrides=[f"{key}={json.dumps(value)}" for key, value in asked.items()])
    assert planned["model"]["parameters"] == effect["base"]["parameters"]
    assert planned["adapter"]["trainable_parameters"] == effect["adapter"]["trainable_parameters"]
    assert planned["adapter"]["modules"] == effect["adapter"]["modules"]
    assert seen[0].model.get_base_model().config.architectures == [name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "positions", "sizes"),
    [
        ("gpt2", "GPT2LMHeadModel", "n_positions", {}),
        ("opt", "OPTForCausalLM", "max_position_embeddings", {"ffn_dim": 128, "word_embed_proj_dim": 128}),
        ("mpt", "MptForCausalLM", "max_seq_len", {"n_heads": 32}),
        ("bloom", "BloomForCausalLM", None, {}),
    ],
    ids=["gpt2", "opt", "mpt", "bloom"],
)
def test_older_families_train_until_their_positions_end(
    project: Path,
    train_here: Callable[..., Any],
    tmp_path: Path,
    family: str,
    name: str,
    positions: str | None,
    sizes: dict[str, int],
) -> None:
    write_rows(project / "data" / "train.jsonl", alpaca_rows(4, seed=1))
    asked = {"lora_target_modules": ["all-linear"], "attn_implementation": "eager"}
    config = AutoConfig.for_model(family, **sizes).to_dict() | {"architectures": [name]}
    for directory, number in (("base", 512), ("short", 16)):
        tiny.build(tmp_path / directory, config | ({positions: number} if positions else {}), None)
    effect = train_here("default", model_name_or_path=str(tmp_path / "base"), **asked, **ONE_STEP).facts()["in_effect"]
    assert effect["data"]["rows"] == 4 and effect["adapter"]["modules"]
    if positions:
        asked["model_name_or_path"] = str(tmp_path / "short")
        with pytest.raises(InputError, match=r"rows have up to \d+ tokens, .* has positions for 16 alone; set max"):
            train_here("default", name="short", **asked, **ONE_STEP)


@pytest.mark.slow
def test_a_base_that_bitsandbytes_stored_in_4_bit_is_trained_on(
    project: Path, tiny_model: Path, train_here: Callable[..., Any]
) -> None:
    stored = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=stored, dtype=torch.bfloat16)
    base.save_pretrained("stored")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained("stored")
    effect = train_here("tiny", model_name_or_path="./stored", **ONE_STEP, **BFLOAT16).facts()["in_effect"]
    assert effect["base"]["four_bit_layers"] == 14 and effect["run"]["max_steps"] == 1
    with pytest.raises(InputError, match="stored quantised by bitsandbytes, with load_in_4bit: true"):
        words = "model_name_or_path=./stored load_in_4bit=false dtype=bfloat16 bf16=true"
        jobs.lint_or_raise(jobs.check("tiny", overrides=[words]))


@pytest.mark.slow
def test_all_weights_of_a_model_for_more_than_text_are_not_trained(
    project: Path, train_here: Callable[..., Any], base_of: Callable[[str], Path]
) -> None:
    base = base_of("gemma3_4b")
    with pytest.raises(InputError, match=r"rows of text leave part of it without a gradient; train adapters"):
        train_here("tiny", model="gemma3_4b", model_name_or_path=str(base), use_peft=False, load_in_4bit=False)


def test_a_rehearsal_of_gpt_oss_has_whole_weights_and_says_so(project: Path) -> None:
    real = jobs.Job(of("gpt_oss_20b"), topology.read("ddp", "ACCEL"), [])
    base = tiny.find(real.recipe["model_name_or_path"], "main")
    tiny.build(base.directory, base.config, base.tokenizer)
    job = rehearse.rehearsal_of(real, base)
    assert job.resolved["model_init_kwargs"] == {}
    # The demo's tokenizer is in place of one that is not here, so its template is too.
    assert base.tokenizer is None and job.resolved["chat_template_path"] is None
    assert job.resolved["attn_implementation"] == "eager" and not any(rehearse.refusals(real))
    assert "dequantising is not rehearsed" in rehearse.description(job, real.topology, base)


def test_an_unpinned_model_is_pinned_where_it_is_named(project: Path) -> None:
    """The remedy is the command that writes into the model's file, not into a recipe that others compose with."""
    findings = plan.plan("tiny", overrides=["model=qwen3_4b"])["findings"]
    (found,) = [each for each in findings if each["rule"] == "model-unpinned"]
    assert found["instead"] == "make pin RECIPE=tiny MODEL=qwen3_4b"


@pytest.fixture
def adapted(
    project: Path, train_here: Callable[..., Any], base_of: Callable[[str], Path], made_once: MadeOnce
) -> Callable[..., Run]:
    """A run named `adapted` on the base of a family, trained once for all tests; gpt-oss's weights were made whole."""

    def give(family: str = "gpt_oss_20b") -> Run:
        write_rows(project / "data" / "train.jsonl", alpaca_rows(4, seed=1))
        base, here = base_of(family), Path("runs/adapted")

        def train(directory: Path) -> None:
            rate = {"learning_rate": 0.5, "lora_dropout": 0.0}
            train_here("default", name="adapted", model=family, model_name_or_path=str(base), **ONE_STEP, **rate)
            here.rename(directory)

        return Run(Path(shutil.copytree(made_once(f"run-adapted-{family}", train), here)))

    return give


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_4b", "gpt_oss_20b"])
def test_what_was_trained_on_such_a_base_is_scored_on_it(adapted: Callable[[str], Run], family: str) -> None:
    """A model for more than text, and one whose weights were made whole: base, adapter and template come together."""
    run = adapted(family)
    resolved = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    model, words = scoring.load(resolved, run.adapter, on_cpu=True)
    prompts: list[likelihood.Prompt] = [[{"role": "user", "content": text}] for text in ("red", "red cat")]
    with model.disable_adapter():
        before = [
            score
            for batch in likelihood.likelihoods(model, words, prompts, ["odd", "even"])
            for score in batch.values()
        ]
    after = [
        score for batch in likelihood.likelihoods(model, words, prompts, ["odd", "even"]) for score in batch.values()
    ]
    assert torch.tensor(before).isfinite().all() and not torch.allclose(torch.tensor(before), torch.tensor(after))
    assert words.chat_template == kind_of(family).template() or "2025-08-05" in words.chat_template


@pytest.mark.slow
def test_an_adapter_is_merged_into_weights_that_were_made_whole(
    adapted: Callable[..., Run], base_of: Callable[[str], Path], merge_here: Callable[..., Any]
) -> None:
    run = adapted()
    code, proof = merge_here("adapted")
    assert code == 0 and proof["kl"] < 1e-5 < proof["effect"]["kl"] and proof["quantised"] is None
    merged, found = AutoModelForCausalLM.from_pretrained(
        run.directory / "merged", dtype="auto", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    whole = Mxfp4Config(dequantize=True)
    base = AutoModelForCausalLM.from_pretrained(base_of("gpt_oss_20b"), dtype="bfloat16", quantization_config=whole)
    ours, theirs = dict(merged.named_parameters()), dict(base.named_parameters())
    assert {parameter.dtype for parameter in ours.values()} == {torch.bfloat16}
    changed = {name for name, parameter in ours.items() if not torch.equal(parameter, theirs[name])}
    assert changed == {name for name in ours if name.endswith(("q_proj.weight", "v_proj.weight"))}


@pytest.mark.slow
def test_an_adapter_on_weights_that_stay_quantised_is_not_merged(adapted: Callable[..., Run]) -> None:
    run = adapted()
    run.recipe.write_text(run.recipe.read_text().replace("dequantize: true", "dequantize: false"))
    # As of a run from before it was written down what it is known by.
    restate(run, identity=None)
    with pytest.raises(InputError, match=r"base is stored quantised, .* train on the weights made whole"):
        merge.merge("adapted")
    assert not (run.directory / "merged").exists()


@pytest.mark.slow
def test_the_code_in_the_card_loads_the_weights_as_they_were_trained(
    adapted: Callable[..., Run], base_of: Callable[[str], Path]
) -> None:
    """And says so itself: here they would be made whole unasked, for want of the packages that leave them MXFP4."""
    run = adapted()
    (code,) = re.findall(r"```python\n(.*?)```", card.card(run), re.DOTALL)
    code = code.replace("PATH OF THE BASE MODEL", str(base_of("gpt_oss_20b"))).replace(
        "max_new_tokens=64", "max_new_tokens=2"
    )
    assert "quantization_config=quantization" in code
    scope: dict[str, Any] = {}
    exec(code.replace("PATH OR HUB ID OF THIS DIRECTORY", str(run.adapter)), scope)  # noqa: S102, as its reader would
    assert isinstance(scope["quantization"], Mxfp4Config) and scope["quantization"].dequantize
    trained, _ = scoring.load(yaml.safe_load(run.recipe.read_text()), run.adapter, on_cpu=True)
    ours = scope["model"].state_dict()
    assert ours.keys() == trained.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in trained.state_dict().items())
    assert scope["model"].config._attn_implementation == "eager"


@pytest.mark.slow
def test_a_whole_model_made_of_quantised_weights_can_be_loaded_again(
    project: Path, train_here: Callable[..., Any], base_of: Callable[[str], Path]
) -> None:
    write_rows(project / "data" / "train.jsonl", alpaca_rows(4, seed=1))
    named = {"model": "gpt_oss_20b", "model_name_or_path": str(base_of("gpt_oss_20b"))}
    run = train_here("default", **named, use_peft=False, lora_target_modules=None, **ONE_STEP)
    model, _ = scoring.load(yaml.safe_load(run.recipe.read_text()), run.adapter, on_cpu=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
