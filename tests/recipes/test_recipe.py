"""Reading a recipe: base and overrides, YAML as people mean it, and all mistakes answered at once with their lines."""

import itertools
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from sft_recipes import cli
from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.recipe import LARGEST, Recipe, dump, load, parse_overrides

LEGAL = "model_name_or_path: org/model\ntrain_file: rows.jsonl\n"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in messages are then short, and whatever is written by mistake lies here."""
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes, name: str = "mine") -> Path:
    path = Path("recipes") / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def recipe(text: str, overrides: str = "") -> Recipe:
    write(LEGAL + text)
    return load("mine", parse_overrides(overrides))


def problems(text: str | bytes, overrides: str = "") -> list[str]:
    write(text)
    with pytest.raises(InputError) as raised:
        load("mine", parse_overrides(overrides))
    return raised.value.problems


def problem(text: str | bytes, overrides: str = "") -> str:
    (only,) = problems(text, overrides)
    return only


# Base, variant, overrides


def test_overrides_win_over_the_variant_and_the_variant_over_its_base() -> None:
    write(f"{LEGAL}lora_r: 8\nlora_alpha: 8\nseed: 1\nlora_dropout: 0.1\n", "default")
    write("extends: default\nlora_alpha: 16\nseed: 2\nmax_length: 256\n")
    loaded = load("mine", parse_overrides("seed=3 optim=sgd"))
    values = {key: (item.value, item.origin) for key, item in loaded.values.items()}
    assert loaded.name == "mine"
    assert values == {
        "model_name_or_path": ("org/model", "recipes/default.yaml:1"),
        "train_file": ("rows.jsonl", "recipes/default.yaml:2"),
        "lora_r": (8, "recipes/default.yaml:3"),
        "lora_alpha": (16, "recipes/mine.yaml:2"),
        "seed": (3, "SET"),
        "lora_dropout": (0.1, "recipes/default.yaml:6"),
        "max_length": (256, "recipes/mine.yaml:4"),
        "optim": ("sgd", "SET"),
    }
    derived = loaded.derive(seed=(4, "of a test")).values["seed"]
    assert (derived.value, derived.origin) == (4, "derived: of a test")


def test_unset_keys_have_the_default_of_trl_or_of_our_own_keys() -> None:
    loaded = recipe("lora_r: 8\n")
    assert (loaded["lora_r"], loaded["max_length"], loaded["global_batch_size"]) == (8, 1024, 64)
    assert loaded.upstream() == {"model_name_or_path": "org/model", "lora_r": 8}
    assert loaded.own()["train_file"] == "rows.jsonl"
    assert loaded.own()["data_format"] == "auto"


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("mine", "recipes/mine.yaml:1: a recipe cannot extend itself"),
        (
            "defalt",
            "recipes/mine.yaml:1: no recipe 'defalt' in recipes/ (nearest: 'default'); there are default, ",
        ),
        ("../../etc/passwd", "recipes/mine.yaml:1: invalid recipe name '../../etc/passwd': letters, "),
        ("[default, default]", "recipes/mine.yaml:1: invalid recipe name ['default', 'default']: letters, "),
        ("3", "recipes/mine.yaml:1: invalid recipe name 3: letters, "),
        ('""', "recipes/mine.yaml:1: invalid recipe name '': letters, "),
    ],
)
def test_a_base_that_cannot_be_one(extends: str, expected: str) -> None:
    write(LEGAL, "default")
    found = problems(f"extends: {extends}\n")
    assert expected in found[0]


def test_a_base_has_no_base_of_its_own() -> None:
    write(LEGAL, "default")
    write("extends: default\nlora_r: 8\n", "middle")
    assert problems("extends: middle\n")[0] == (
        "recipes/mine.yaml:1: middle itself extends default (recipes/middle.yaml); two files must tell the whole "
        "story, so extend default and write the difference here"
    )


def test_an_override_cannot_change_the_base_in_silence() -> None:
    write(f"{LEGAL}lora_r: 8\n", "default")
    with pytest.raises(InputError, match=r"SET: extends"):
        recipe("", "extends=default")


@pytest.mark.parametrize(
    "name",
    [
        "x; touch pwned",
        "../../etc/passwd",
        "/etc/passwd",
        "",
        ".hidden",
        "a/b",
        "$(touch pwned)",
        "a\n",
        "-x",
        "a" * 300,
    ],
)
def test_a_hostile_name_is_refused_and_nothing_happens(name: str, tmp_path: Path) -> None:
    write(LEGAL)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"invalid recipe name|no recipe"):
        load(name)
    assert cli.main(["show", "--", name]) == 2
    assert sorted(tmp_path.rglob("*")) == before


# Overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("learning_rate=1e-4 lora_r=16", {"learning_rate": 1e-4, "lora_r": 16}),
        (["lora_r=16 seed=1", "max_length=null"], {"lora_r": 16, "seed": 1, "max_length": None}),
        ("lora_target_modules=[q_proj,v_proj]", {"lora_target_modules": ["q_proj", "v_proj"]}),
        ("'lora_target_modules=[q_proj, v_proj]'", {"lora_target_modules": ["q_proj", "v_proj"]}),
        (
            'description="two words" train_file="my rows.jsonl"',
            {"description": "two words", "train_file": "my rows.jsonl"},
        ),
        (
            "data_columns={instruction: text, output: label} lora_r=16",
            {"data_columns": {"instruction": "text", "output": "label"}, "lora_r": 16},
        ),
        ("labels=[a, 'b c', \"d, ]\"] seed=1", {"labels": ["a", "b c", "d, ]"], "seed": 1}),
        ("data_columns={instruction: it's, output: 'l'}", {"data_columns": {"instruction": "it's", "output": "l"}}),
        ("description='a x={b' labels=[[a, b], [c]]", {"description": "a x={b", "labels": [["a", "b"], ["c"]]}),
        ("eval_strategy=no packing=false", {"eval_strategy": "no", "packing": False}),
        ("train_file=a=b.jsonl", {"train_file": "a=b.jsonl"}),
        ("train_file='$(touch pwned);`id`'", {"train_file": "$(touch pwned);`id`"}),
    ],
)
def test_overrides_are_words_as_a_shell_splits_them_and_values_of_yaml(text: Any, expected: dict[str, Any]) -> None:
    values = parse_overrides(text)
    assert {key: item.value for key, item in values.items()} == expected
    assert {item.origin for item in values.values()} <= {"SET"}
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora_r", ["SET: the string 'lora_r' is not key=value"]),
        ("=3", ["SET: the string '=3' is not key=value"]),
        ("lora_r=1 lora_r=2", ["SET: lora_r appears twice; keep one"]),
        ("description='open", ["SET: No closing quotation"]),
        ("x=[a, b", ["SET: the list or mapping behind x= has no end"]),
        ("x=[a]b", ["SET: x: the string '[a]b' is not a YAML value; quote it"]),
        ("seed=!!python/name:os.system", ["SET: seed: the string '!!python/name:os.system' is not a YAML value"]),
        (
            "seed=!!int x lora_r",
            ["SET: seed: the string '!!int", "SET: the string 'x' is", "SET: the string 'lora_r' is"],
        ),
    ],
)
def test_wrong_overrides_are_all_named(text: str, expected: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        parse_overrides(text)
    assert len(raised.value.problems) == len(expected)
    assert all(found.startswith(start) for found, start in zip(raised.value.problems, expected, strict=True))


def test_a_wrong_override_is_answered_as_a_wrong_line_is() -> None:
    assert problem(LEGAL, "lora_rr=3") == "SET: lora_rr: no such key; did you mean lora_r?"


# YAML as people mean it


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate: 2e-4", 2e-4),
        ("learning_rate: 2E-4", 2e-4),
        ("learning_rate: .5", 0.5),
        ("learning_rate: +1.e-1", 0.1),
        ("seed: 010", 10),
        ("eval_strategy: no", "no"),
        ("run_tag: 1:30", "1:30"),
        ("run_tag: 0x10", "0x10"),
        ("run_tag: 1_000", "1_000"),
        ("run_tag: 2026-01-02", "2026-01-02"),
        ("run_tag: on", "on"),
        ("packing: True", True),
        ("max_length: null", None),
        ("max_length:", None),
        ("max_length: ~", None),
        ("lora_target_modules: [no, yes]", ["no", "yes"]),
    ],
)
def test_values_are_those_of_yaml_1_2(line: str, expected: Any) -> None:
    key, value = line.replace("run_tag", "description").split(":", 1)
    assert recipe(f"{key}:{value}\n")[key] == expected
    assert type(recipe(f"{key}:{value}\n")[key]) is type(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("packing: no", "packing: expected true or false, got the string 'no'"),
        ("packing: 'False'", "packing: expected true or false, got the string 'False'"),
        (
            "max_steps: 1:30",
            "max_steps: expected a whole number, got the string '1:30'; write it without quotes or units",
        ),
        (
            "learning_rate: '2e-4'",
            "learning_rate: expected a number, got the string '2e-4'; write it without quotes or units",
        ),
        ("learning_rate: 2e-4 # fine\nlora_r: 4.5", "lora_r: expected a whole number, got 4.5"),
        ("model:\n  name: x\n  dtype: y", "a recipe is flat, so move name, dtype to the top level"),
        ("env:\n  LD_PRELOAD: ./evil.so", "env: no such key; a recipe is flat, so move LD_PRELOAD to the top level"),
        ("x: &a {learning_rate: 1e-4}\n", "x: no such key"),
        ("learning_rat: 1e-4", "learning_rat: no such key; did you mean learning_rate?"),
        ("output_dir: ../../etc/x", "output_dir does not belong in a recipe"),
    ],
)
def test_a_wrong_line_is_answered_with_its_place(line: str, expected: str) -> None:
    found = problem(f"{LEGAL}{line}\n")
    place = 4 if "\nlora_r" in line else 3
    assert found.startswith(f"recipes/mine.yaml:{place}: ")
    assert expected in found


def test_a_key_that_appears_twice_is_named_with_both_lines() -> None:
    assert problems(f"{LEGAL}lora_r: 8\nseed: 1\nlora_r: 16\nseed: 1\n") == [
        "recipes/mine.yaml:5: lora_r appears twice, first at recipes/mine.yaml:3; keep one",
        "recipes/mine.yaml:6: seed appears twice, first at recipes/mine.yaml:4; keep one",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "recipes/mine.yaml: empty; write keys as `lora_r: 32`, or start with `extends: default`"),
        ("# only a comment\n\n", "recipes/mine.yaml: empty"),
        ("- a\n- b\n", "recipes/mine.yaml:1: a recipe is a mapping of keys to values, not "),
        ("lora_r", "recipes/mine.yaml:1: a recipe is a mapping of keys to values, not "),
        (f"{LEGAL}\tlora_r: 8\n", "recipes/mine.yaml:3: not YAML: found character '\\t'"),
        (f"{LEGAL}lora_r: [8\n", "not YAML: "),
        (f"{LEGAL}---\nlora_r: 8\n", "recipes/mine.yaml:3: not YAML: but found another document"),
        ("lora_r: 8 # größer".encode("latin-1"), "recipes/mine.yaml: not UTF-8 text; save it as UTF-8"),
        (LEGAL.encode("utf-16"), "recipes/mine.yaml: not UTF-8 text; save it as UTF-8"),
        (b"lora_r: 8\0\n", "recipes/mine.yaml: not YAML: special characters are not allowed"),
        (b"#" * (LARGEST + 1), f"recipes/mine.yaml: 65537 bytes are too many for a recipe; at most {LARGEST}"),
    ],
)
def test_a_file_that_is_no_recipe(content: str | bytes, expected: str) -> None:
    assert expected in problem(content)


def test_a_file_of_the_largest_size_is_read() -> None:
    text = f"{LEGAL}lora_r: 8\n"
    assert load(write(text + "#" * (LARGEST - len(text))))["lora_r"] == 8


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: cannot be read: No such file"):
        load(Path("absent.yaml"))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/object/new:os.system ['touch pwned']",
        "!!python/name:os.system",
        "!mine x",
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!timestamp x",
        "!!timestamp 2026-01-02",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
        "&a [*a]",
        "[" * 1000 + "]" * 1000,
        "9" * 5000,
        '"\\ud800"',
    ],
)
@pytest.mark.parametrize("key", ["seed", "description"])
def test_a_value_that_is_not_plain_is_refused_and_never_run(key: str, value: str) -> None:
    found = problem(f"{LEGAL}{key}: {value}\n")
    assert found.startswith("recipes/mine.yaml:")
    assert len(found.encode()) < 500
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("key", "brackets"), [("bomb", "{}"), ("model_init_kwargs", "{}"), ("lora_target_modules", "[]")]
)
def test_a_bomb_of_anchors_is_refused_within_little_memory_and_text(key: str, brackets: str) -> None:
    levels = [f"&a [{', '.join('x' * 9)}]"]
    levels += [f"&{name} [{', '.join([f'*{below}'] * 9)}]" for below, name in itertools.pairwise("abcdefghi")]
    items = [f"k{number}: {level}" if brackets == "{}" else level for number, level in enumerate(levels)]
    path = write(f"{LEGAL}{key}: {brackets[0]}{', '.join(items)}{brackets[1]}\n")
    done = subprocess.run(
        [sys.executable, "-m", "sft_recipes", "show", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28)),
    )
    assert done.returncode == 2, done.stderr[-500:]
    assert "error: recipes/mine.yaml:3: " in done.stderr
    assert len(done.stderr) < 5000


# Old names

OLD = {
    "max_seq_length": (512, "write max_length: 512"),
    "torch_dtype": ("bfloat16", "write dtype: bfloat16"),
    "warmup_ratio": (0.03, "write warmup_steps: 0.03; below 1 it is a share of all steps"),
    "evaluation_strategy": ("epoch", "write eval_strategy: epoch"),
    "overwrite_output_dir": (True, "choose its directory with NAME="),
    "logging_dir": ("logs", "drop it; TensorBoard files lie in the run directory"),
    "group_by_length": (True, "write train_sampling_strategy: group_by_length"),
    "lora_bias": ("none", "drop it; TRL always trains with bias none"),
    "bnb_4bit_compute_dtype": ("bfloat16", "write dtype: bfloat16; it is also the 4-bit compute dtype"),
    "gradient_accumulation_steps": (4, "set global_batch_size"),
    "output_dir": ("out", "choose it with NAME="),
    "gradient_checkpointing": (True, "write activation_checkpointing: true"),
    "use_flash_attention_2": (False, "drop the key for false"),
    "cache_dir": ("./cache", "set the environment variable HF_HOME"),
}


def test_every_old_name_is_answered_with_its_line_and_what_to_write_all_at_once() -> None:
    write(LEGAL, "default")
    lines = [f"{key}: {json.dumps(value)}" for key, (value, _) in OLD.items()]
    found = problems("\n".join(["extends: default", *lines, "lora_rr: 3"]), "max_stepps=1")
    expected = [(f"recipes/mine.yaml:{number}: {key}", text) for number, (key, (_, text)) in enumerate(OLD.items(), 2)]
    expected += [("recipes/mine.yaml:16: lora_rr", "did you mean lora_r?"), ("SET: max_stepps", "mean max_steps?")]
    assert len(found) == len(expected)
    for message, (start, text) in zip(found, expected, strict=True):
        assert message.startswith(f"{start}")
        assert text in message


def test_an_unknown_base_does_not_hide_what_else_is_wrong() -> None:
    found = problems("extends: defalt\nlora_rr: 8\n")
    assert [message.split(": ")[0] for message in found] == ["recipes/mine.yaml:1", "recipes/mine.yaml:2"]


def test_a_json_preset_of_old_names_is_shown_as_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    preset = {
        "model_name_or_path": "openai/gpt-oss-20b",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "train_file": "data/train.jsonl",
        "validation_file": "data/validation.jsonl",
        "lora_r": 32,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
        "learning_rate": 2e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "warmup_steps": 100,
        "max_grad_norm": 1.0,
        "early_stopping_threshold": 0.01,
        **{key: value for key, (value, _) in OLD.items()},
    }
    text = json.dumps(preset, indent=2)
    Path("default.json").write_text(text)
    assert cli.main(["show", "default.json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == len(OLD)
    for line, (key, (_, replacement)) in zip(lines, OLD.items(), strict=True):
        number = text[: text.index(f'"{key}"')].count("\n") + 1
        assert line.startswith(f"error: default.json:{number}: {key} ")
        assert replacement in line


def test_a_json_recipe_without_mistakes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.json").write_text('{"model_name_or_path": "org/model",\n "train_file": "a b.jsonl", "seed": 1}')
    assert cli.main(["show", "mine.json", "--origin"]) == 0
    lines = [line.split("  # ") for line in capsys.readouterr().out.splitlines()]
    assert [(value.strip(), origin) for value, origin in lines] == [
        ("model_name_or_path: org/model", "mine.json:1"),
        ("train_file: a b.jsonl", "mine.json:2"),
        ("seed: 1", "mine.json:2"),
    ]


# DATA=

OWN_ROWS = """model_name_or_path: org/model
train_file: train.jsonl
validation_file: validation.jsonl
test_file: test.jsonl
data_columns: {instruction: ours}
group_column: kind
task: classification
labels: [a, b]
eval_strategy: epoch
"""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", {"validation_file": None, "validation_split_size": 0.1, "test_file": None, "test_split_size": 0.2}),
        ("", {"data_columns": None, "group_column": None, "labels": None, "task": "classification"}),
        # What SET says explicitly stays.
        ("validation_split_size=0.3", {"validation_split_size": 0.3, "test_split_size": 0.2}),
        ("validation_file=v.jsonl", {"validation_file": "v.jsonl", "validation_split_size": 0.0}),
        ("test_file=t.jsonl", {"test_file": "t.jsonl", "test_split_size": 0.0}),
        ("data_columns={instruction: text}", {"data_columns": {"instruction": "text"}}),
        ("group_column=tone labels=[c,d]", {"group_column": "tone", "labels": ["c", "d"]}),
        ("task=null", {"test_split_size": 0.0, "validation_split_size": 0.1}),
        ("eval_strategy=no", {"validation_split_size": 0.0}),
    ],
)
def test_data_takes_the_place_of_all_that_is_said_of_a_recipes_rows(overrides: str, expected: dict[str, Any]) -> None:
    write(OWN_ROWS)
    found = load("mine", f"data='my rows.csv' {overrides}")
    assert found["train_file"] == "my rows.csv"
    assert {key: found[key] for key in expected} == expected
    assert found.values["train_file"].origin == "DATA"
    given = {word.partition("=")[0] for word in overrides.split()}
    assert not given & set(found.replaced)
    assert load("mine", "task=classification").replaced == []


def test_data_keeps_the_share_that_a_recipe_has_chosen() -> None:
    write(f"{LEGAL}validation_split_size: 0.25\neval_strategy: epoch\n")
    found = load("mine", {"data": "mine.csv"})
    assert (found["validation_split_size"], found["test_split_size"]) == (0.25, 0.0)
    assert found.replaced == ["train_file"]
    write(LEGAL.replace("train_file: ", "dataset_name: "))
    assert load("mine", {"data": "mine.csv"})["dataset_name"] is None


# Contradictions

WHOLE = f"""{LEGAL}validation_split_size: 0.1
use_peft: true
lora_target_modules: [q_proj]
load_in_4bit: true
dtype: bfloat16
bf16: true
eval_strategy: epoch
save_strategy: epoch
load_best_model_at_end: true
early_stopping_patience: 2
"""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("model_name_or_path=null", "model_name_or_path is missing; name a Hub id or a local directory"),
        ("train_file=null", "name exactly one of train_file (a local file) and dataset_name (a Hub id)"),
        ("dataset_name=org/rows", "name exactly one of train_file (a local file) and dataset_name (a Hub id)"),
        ("load_in_8bit=true", "load_in_4bit and load_in_8bit are both true; keep one"),
        ("use_peft=false", "quantised weights cannot be trained themselves; set use_peft: true"),
        (
            "load_in_4bit=false load_in_8bit=true use_peft=false",
            "quantised weights cannot be trained themselves; set use_peft: true",
        ),
        ("dtype=auto", "dtype: auto cannot be the 4-bit compute dtype; write bfloat16"),
        ("lora_target_modules=null", "use_peft needs lora_target_modules, such as [q_proj, v_proj] or [all-linear]"),
        ("lora_target_modules=[]", "use_peft needs lora_target_modules, such as [q_proj, v_proj] or [all-linear]"),
        ("fp16=true", "bf16 and fp16 are both true; keep one"),
        (
            "eval_on_start=true eval_strategy=no load_best_model_at_end=false early_stopping_patience=0",
            "eval_on_start",
        ),
        (
            "eval_strategy=no early_stopping_patience=0",
            "load_best_model_at_end needs evaluations, but eval_strategy is",
        ),
        ("validation_split_size=0", "eval_strategy needs held-out rows: set validation_file or validation_split_size"),
        (
            "load_best_model_at_end=false",
            "early stopping needs load_best_model_at_end: true and metric_for_best_model; set both, or "
            "early_stopping_patience: 0",
        ),
        (
            "greater_is_better=true",
            "greater_is_better: true with metric_for_best_model: loss keeps the worst weights; drop it, the direction",
        ),
        (
            "greater_is_better=false metric_for_best_model=mean_token_accuracy",
            "greater_is_better: false with metric_for_best_model: mean_token_accuracy keeps the worst weights",
        ),
        ("save_strategy=steps", "load_best_model_at_end needs save_strategy equal to eval_strategy"),
        (
            "eval_strategy=steps save_strategy=steps eval_steps=30 save_steps=50",
            "load_best_model_at_end needs save_steps equal to eval_steps",
        ),
        (
            "eval_strategy=steps save_strategy=steps logging_steps=30 save_steps=50",
            "load_best_model_at_end needs save_steps equal to eval_steps",
        ),
    ],
)
def test_values_that_contradict_each_other(overrides: str, expected: str) -> None:
    assert expected in problem(WHOLE, overrides)


@pytest.mark.parametrize(
    ("metric", "larger"), [("eval_loss", False), ("loss", False), ("eval_mean_token_accuracy", True), (None, None)]
)
def test_the_direction_of_a_metric_follows_from_it(metric: str | None, larger: bool | None) -> None:
    write(WHOLE)
    chosen = load("mine", parse_overrides(f"metric_for_best_model={metric or 'null'}"))
    resolved = topology.resolve(chosen, topology.read("cpu", "a test", directory=ROOT / "accelerate_configs"))
    assert resolved["greater_is_better"] is larger


def test_early_stopping_without_evaluations_is_a_contradiction() -> None:
    found = problems(WHOLE, "eval_strategy=no load_best_model_at_end=false")
    assert found == [
        "recipes/mine.yaml:12: early_stopping_patience needs evaluations, but eval_strategy is no; set "
        "early_stopping_patience: 0, or eval_strategy: epoch"
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "train_file=null dataset_name=org/rows validation_split_size=0",
        "validation_split_size=0 validation_file=held_out.jsonl",
        "load_in_4bit=false load_in_8bit=true",
        "load_in_4bit=false use_peft=false lora_target_modules=null dtype=auto",
        "bf16=false fp16=true",
        "lora_target_modules=null lora_target_parameters=[experts.up]",
        "eval_strategy=no load_best_model_at_end=false early_stopping_patience=0 validation_split_size=0",
        "eval_strategy=steps save_strategy=steps eval_steps=30 save_steps=30",
        "eval_strategy=steps save_strategy=steps logging_steps=30 save_steps=30",
        "eval_strategy=steps eval_steps=30 save_strategy=best",
        "save_total_limit=1",
    ],
)
def test_values_that_do_not_contradict_each_other(overrides: str) -> None:
    write(WHOLE)
    assert load("mine", parse_overrides(overrides))["model_name_or_path"] == "org/model"


def test_all_contradictions_are_named_at_once_each_with_its_origin() -> None:
    assert problems("train_file: rows.jsonl\nload_in_4bit: true\n", "fp16=true bf16=true") == [
        "mine: model_name_or_path is missing; name a Hub id or a local directory",
        "recipes/mine.yaml:2: quantised weights cannot be trained themselves; set use_peft: true",
        "SET: bf16 and fp16 are both true; keep one",
    ]


# Out again


def test_what_is_dumped_is_read_back_as_it_was_by_yaml_1_1_too() -> None:
    values = {
        "eval_strategy": "no",
        "learning_rate": 2e-4,
        "adam_epsilon": 1e-8,
        "max_length": None,
        "lora_target_modules": ["no", "on", "q_proj"],
        "packing": False,
        "seed": 10,
        "description": "ü: # 010 1:30 " + "long " * 300,
        "sexagesimal": "1:30",
        "octal": "010",
        "number": "2e-4",
        "date": "2026-01-02",
        "empty": "",
        "lines": "a\nb\n",
        "activation_checkpointing_kwargs": {"use_reentrant": True, "nested": {"a": [1, 2.5, None]}},
    }
    text = dump(values)
    back = yaml.safe_load(text)
    assert back == values
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in values.items()}
    assert [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()] == list(values)


def test_a_resolved_recipe_is_read_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    resolved = topology.resolve(load("default"), topology.read("zero3", "a test"))
    assert yaml.safe_load(dump(resolved.upstream())) == resolved.upstream()


def test_libyaml_reads_a_recipe_as_pyyaml_does() -> None:
    """With the place of each value; and what is no YAML is said in PyYAML's words."""
    files = [
        path
        for folder in ("recipes", "models", "src/sft_recipes/recipes/evidence")
        for path in ROOT.glob(f"{folder}/*.yaml")
    ]
    texts = [path.read_text(encoding="utf-8") for path in files]
    texts += [
        "? a\n: b",
        "{a: 1, 'b': [x, 2e-4, 010]}",
        "a: |\n  b\n\n  c\n",
        "a: >-\n  b\n  c",
        "a: é # c\nb: ''",
        "\ufeffa: no",
    ]

    def pairs(loader: recipes._Loader) -> list[Any]:
        node = loader.get_single_node()
        return [
            (key.value, key.start_mark.line, loader.construct_object(value, deep=True)) for key, value in node.value
        ]

    assert len(files) > 100
    for text in texts:
        assert pairs(recipes._Fast(text)) == pairs(recipes._Loader(text)), text
    for wrong, said in {"a: b: c": "mapping values are not allowed here", "a: [1": "expected ',' or ']'"}.items():
        with pytest.raises(yaml.YAMLError, match=re.escape(said)):
            recipes._composed(wrong)
