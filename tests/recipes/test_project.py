"""A new recipe, a new project, and what editors are told of the keys."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT

from sft_recipes import cli
from sft_recipes.errors import InputError
from sft_recipes.recipes import editor, project, schema, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import load
from sft_recipes.recipes.why import reasons


@pytest.mark.usefixtures("project")
def test_a_new_recipe_is_three_lines_that_load_and_is_never_overwritten() -> None:
    path = project.new("mine", "all_linear")
    assert path == Path("recipes/mine.yaml")
    for_editors, extends, description, yours = path.read_text().splitlines()
    assert (extends, description) == ("extends: all_linear", "description: What mine tries, in one line.")
    assert yours.startswith("# The change, with its reason above it")
    loaded, base = load("mine"), load("all_linear")
    assert {key for key in base.values if loaded[key] != base[key]} == {"description"}
    # An editor finds the schema beside it, and it is nobody's reason for a value.
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", for_editors)
    assert json.loads((path.parent / named).read_text()) == editor.of("recipe")
    assert "yaml-language-server" not in str(reasons(loaded))
    with pytest.raises(InputError, match="exists and is never overwritten; choose another NAME="):
        project.new("mine", "default")
    with pytest.raises(InputError, match="NAME: invalid recipe name"):
        project.new("../mine", "default")


@pytest.mark.usefixtures("project")
def test_a_new_recipe_from_a_variant_does_what_the_variant_does() -> None:
    project.new("first", "small_data")
    project.new("mine", "first")
    loaded, variant = load("mine"), load("small_data")
    assert loaded.base is not None and loaded.base.name == "all_linear"
    assert {key for key in variant.values if loaded[key] != variant[key]} == {"description"}
    assert Path("recipes/mine.yaml").read_text().count("yaml-language-server") == 1


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("base", ["classification", "demo", "tiny"])
def test_a_new_recipe_for_rows_that_were_looked_at(base: str, capsys: pytest.CaptureFixture) -> None:
    classes = ("good: very", "bad", "neither")
    lines = ["text,label", *(f"row {n} says {classes[n % 3]},{classes[n % 3]}" for n in range(90))]
    Path("my rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert cli.main(["new", "mine", "--from", base, "--data", "my rows.csv"]) == 0
    loaded = load("mine")
    assert (loaded["train_file"], loaded["test_file"], loaded["group_column"]) == ("my rows.csv", None, None)
    assert loaded["data_columns"] == {"instruction": "text", "output": "label"}
    assert (loaded["task"], loaded["labels"]) == ("classification", sorted(classes))
    assert loaded["validation_split_size"] and loaded["test_split_size"] == 0.2
    text = Path("recipes/mine.yaml").read_text()
    assert "# 90 rows, each a user turn and the assistant's.\ntrain_file: my rows.csv\n" in text
    assert "# 3 classes in 90 rows: good: very 30, bad 30, neither 30.\ntask: classification\n" in text
    # What is said again stands there once, and no comment of what it replaces is left.
    keys = [line.partition(":")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(set(keys)) == len(keys)
    assert "Rows that nothing else sees" not in text
    capsys.readouterr()
    assert cli.main(["plan", "mine", "--json", "--set", "model_name_or_path=model"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["blocking"] == 0 and figures["evaluation"]["split"] == "test"


@pytest.mark.usefixtures("project")
def test_a_new_recipe_for_rows_that_are_no_classes(capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": f"b {n}"}]}
        for n in range(60)
    ]
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["new", "mine", "--from", "classification", "--data", "talks.jsonl"]) == 0
    loaded = load("mine")
    assert (loaded["task"], loaded["labels"], loaded["data_columns"]) == ("generation", None, None)
    assert cli.main(["new", "other", "--data", "talks.jsonl"]) == 0
    assert load("other")["task"] is None and load("other")["test_split_size"] == 0.0
    # JSON with a class in it, and rows of which none can be held out.
    answers = [json.dumps({"why": f"since {n}", "label": ("a", "b")[n % 2]}) for n in range(60)]
    Path("json.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p {n}", "completion": each}) + "\n" for n, each in enumerate(answers))
    )
    assert cli.main(["new", "third", "--data", "json.jsonl"]) == 0
    assert (load("third")["label_field"], load("third")["labels"]) == ("label", ["a", "b"])
    Path("few.jsonl").write_text(json.dumps(rows[0]) + "\n")
    capsys.readouterr()
    assert cli.main(["new", "fourth", "--data", "few.jsonl"]) == 2
    assert "puts all 1 rows of few.jsonl on one side" in capsys.readouterr().err
    assert not Path("recipes/fourth.yaml").exists()


def test_a_new_recipe_in_an_empty_folder_and_one_in_a_new_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine", "--from", "classification"]) == 0
    assert recipes.load("mine")["task"] == "classification"
    assert cli.main(["init", "a project"]) == 0
    made = {str(path.relative_to("a project")) for path in Path("a project").rglob("*") if path.is_file()}
    configs = {f"accelerate_configs/{name}.yaml" for name in topology.names()}
    assert made == {"Makefile", ".gitignore", "recipes/my_experiment.yaml", "recipes/.schema.json", *configs}
    said = capsys.readouterr().out
    assert "next: cd 'a project', put your rows" in said and said.count("wrote ") == len(made)
    before = {path: path.read_bytes() for path in Path("a project").rglob("*") if path.is_file()}
    assert cli.main(["init", "a project", "--name", "second"]) == 2
    assert "a project/Makefile exists and is never overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("a project").rglob("*") if path.is_file()}


def test_the_makefile_of_a_project_calls_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project.init(tmp_path, "mine", "default")
    stub = tmp_path / "stub"
    stub.write_text('#!/bin/sh\necho "$@ with $RECIPE: $SET"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", "train", "RECIPE=mine", "SET=a=$(b) 'c d'", f"PROGRAM={stub}"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("--make train with mine: a=$(b) 'c d'\n", "")
    listed = subprocess.run(["make", "help"], capture_output=True, text=True).stdout
    assert set(re.findall(r"^  make ([a-z]+) ", listed, re.MULTILINE)) == {*cli.program(False).commands, "help"}


FOLDERS = {"recipe": "recipes", "model": "models", "accelerate": "accelerate_configs", "cluster": "clusters"}


@pytest.mark.parametrize("kind", editor.KINDS)
def test_what_ships_is_what_an_editor_accepts(kind: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["schema", kind]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(found)
    for path in sorted((ROOT / FOLDERS[kind]).glob("*.yaml")):
        jsonschema.validate({key: item.value for key, item in recipes.read(path).items()}, found)


@pytest.mark.parametrize(
    "values",
    [
        {"lora_rank": 8},
        {"lora_r": 0},
        {"lora_r": "8"},
        {"learning_rate": 1},
        {"task": "ranking"},
        {"report_to": ["tensorbord"]},
        {"lora_target_modules": [1]},
        {"data_columns": {"instruction": 1}},
        {"max_steps": -2},
        {"hub_token": "x"},
        {"gradient_accumulation_steps": 4},
    ],
)
def test_an_editor_marks_what_the_loader_refuses(values: dict) -> None:
    assert not jsonschema.Draft7Validator(editor.of("recipe")).is_valid(values)
    assert all(schema.problem(key, value) for key, value in values.items())


def test_an_editor_explains_every_key() -> None:
    keys = editor.of("recipe")["properties"]
    assert set(keys) == set(schema.known())
    assert all(len(each["description"]) > 20 and "default" in each for each in keys.values())
    assert keys["lora_alpha"]["description"].startswith("Numerator of the adapter's scale, alpha / r.")
    assert keys["max_steps"]["anyOf"] == [{"type": "integer", "exclusiveMinimum": 0}, {"const": -1}]
