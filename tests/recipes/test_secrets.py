"""Secrets are refused where they would be kept, by a message that repeats nothing of them, and reach no file."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_recipes import cli
from sft_recipes.errors import InputError
from sft_recipes.evaluate import evaluate
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, secrets, topology
from sft_recipes.report import pages

# Of nobody: the shapes of real ones.
SHAPES = [
    "hf_" + "q" * 34,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 9,
    "sk-proj-" + "a1B2" * 10,
    "AKIA" + "ABCDEFGH" * 2,
    "xoxb-" + "123456789012-abcdef",
    "AIza" + "a1B2-" * 7,
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "https://me:word-of-mine@host.example/x",
]


def refusals(directory: Path, text: str, overrides: Any = ()) -> str:
    path = directory / "mine.yaml"
    path.write_text(f"model_name_or_path: a/b\ntrain_file: x.jsonl\nuse_peft: false\nload_in_4bit: false\n{text}\n")
    with pytest.raises(InputError) as error:
        recipes.load(path, overrides)
    return str(error.value)


def test_every_key_that_a_recipe_or_a_config_has_is_no_secret() -> None:
    keys = {*schema.known(), *schema.DATA["of_accelerate"], *schema.DATA["of_deepspeed"], "tokenizer_name", "lora_key"}
    assert {key for key in keys if secrets.named(key)} == {"lora_key"}
    of_models = (
        "pad_token_id",
        "num_key_value_heads",
        "key_mapping",
        "image_token",
        "added_tokens",
        "tokenizer_key_x",
    )
    assert not [key for key in of_models if secrets.named(key)]


@pytest.mark.promise("secrets", "keys named as secrets, at any depth of a recipe")
@pytest.mark.parametrize(
    "key", ["token", "hub_token", "api_key", "wandbApiKey", "AWS-Secret-Access-Key", "db_password", "Authorization"]
)
def test_a_key_that_is_named_as_a_secret_is_refused_at_any_depth(tmp_path: Path, key: str) -> None:
    for line in (
        f"{key}: word-of-mine",
        f"model_init_kwargs: {{{key}: word-of-mine}}",
        f"model_init_kwargs: {{headers: [{{a: 1}}, {{{key}: [1, word-of-mine]}}]}}",
        f"model_init_kwargs: {{{key}: {{any: 12345678}}}}",
        f"{key}: !!int word-of-mine",
        f"model_init_kwargs: {{a: {{{key}: !!float word-of-mine}}}}",
    ):
        said = refusals(tmp_path, line)
        assert "mine.yaml:5: " in said
        assert "word-of-mine" not in said and "12345678" not in said
    assert "HF_TOKEN" in refusals(tmp_path, f"model_init_kwargs: {{{key}: word-of-mine}}")


def test_what_is_no_secret_passes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model_name_or_path: a/b\ntrain_file: https-notes@home:x.jsonl\nuse_peft: false\nload_in_4bit: false\n"
        "model_revision: 0123456789abcdef0123456789abcdef01234567\neos_token: <|im_end|>\n"
        "model_init_kwargs: {token: true, pad_token_id: 0, num_key_value_heads: 4, image_token: <i>}\n"
        "description: A task-specific-and-quite-long sk-learn-like-baseline, hf_transfer, and KEY=value\n"
    )
    recipes.load(path)


@pytest.mark.promise("secrets", "values of known shapes anywhere in recipes and overrides")
@pytest.mark.parametrize("value", SHAPES)
def test_a_value_of_a_known_shape_is_refused_wherever_it_stands(tmp_path: Path, value: str) -> None:
    quoted = json.dumps(value)
    for line in (
        f"description: {quoted}",
        f"lora_r: {quoted}",
        f"model_init_kwargs: {{a: [{{b: {quoted}}}]}}",
        f"model_init_kwargs: {{{quoted}: 1}}",
        f"{quoted}: 1",
        f"learning_rate: !!float {quoted}",
    ):
        assert value[4:] not in refusals(tmp_path, line), line
    assert value[4:] not in refusals(tmp_path, "seed: 1", {"train_file": f"{value}.jsonl"})
    for words in (f"train_file={value}.jsonl", f"description={value!r}", f"lora_r=[{value}", value):
        assert value[4:] not in refusals(tmp_path, "seed: 1", words)


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    said = refusals(tmp_path, "model_init_kwargs: {token: word-of-mine}\ncolour: red", {"description": SHAPES[0]})
    assert "mine.yaml:5: model_init_kwargs.token is named as a secret" in said
    assert "mine.yaml:6: colour: no such key" in said
    assert "SET: description holds what looks like an access token" in said


@pytest.mark.promise("secrets", "tokens in a base recipe and an accelerate config")
def test_models_bases_and_accelerate_configs_are_searched_too(project: Path) -> None:
    base = project / "recipes" / "default.yaml"
    base.write_text(base.read_text() + "model_init_kwargs: {token: word-of-mine}\n")
    # Also where another value stands in its place: what a recipe changes is shown beside what it was.
    with pytest.raises(InputError, match=r"default\.yaml:\d+: model_init_kwargs\.token is named as a secret"):
        recipes.load("tiny", {"model_init_kwargs": None})
    config = project / "accelerate_configs" / "cpu.yaml"
    config.write_text(config.read_text() + "hub_token: word-of-mine\n")
    with pytest.raises(InputError, match=r"cpu\.yaml:\d+: hub_token is named as a secret") as error:
        topology.read("cpu", "a test")
    assert "word-of-mine" not in str(error.value)


@pytest.mark.promise("secrets", "tokens on the command line of plan, train and sweep")
@pytest.mark.parametrize(
    "command", [["plan", "tiny"], ["train", "tiny", "--name", "x"], ["sweep", "tiny", "--over", "lora_r=4,8"]]
)
def test_commands_refuse_them_before_anything_is_written(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "word-of-mine")
    before = sorted(project.rglob("*"))
    # Unquoted, as a shell hands it over, what stands there is no YAML.
    assert cli.main([*command, "--set", "model_init_kwargs={token: other-word}"]) == 2
    assert "other-word" not in capsys.readouterr().err
    for override in (
        "'model_init_kwargs={token: other-word}'",
        f"description={SHAPES[0]}",
        "description=word-of-mine",
    ):
        assert cli.main([*command, "--set", override]) == 2
        said = capsys.readouterr()
        assert "HF_TOKEN" in said.err
        assert not any(word in said.err + said.out for word in ("other-word", SHAPES[0], "word-of-mine"))
    assert cli.main([*command, "--json", "--accel", "word-of-mine"]) == 2
    said = capsys.readouterr()
    assert "MY_SERVICE_TOKEN" in json.loads(said.out)["problems"][0]
    assert "word-of-mine" not in said.err + said.out
    assert sorted(project.rglob("*")) == before


def every_byte(directory: Path) -> dict[str, bytes]:
    """What the files below a directory hold, those within archives too."""
    found = {}
    for path in (path for path in directory.rglob("*") if path.is_file()):
        found[str(path)] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path}!{name}": archive.read(name) for name in archive.namelist()}
    return found


@pytest.mark.promise("secrets", "three secrets in the environment of a run that is trained, evaluated and reported")
def test_no_secret_of_the_environment_reaches_a_file(
    project: Path, train_here: Callable[..., Any], scoring_here: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = {
        name: f"canary-{number}-7c1e9a" for number, name in enumerate(("HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD"))
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(project / "runs" / "kept" / "tensorboard"))
    run = train_here(name="kept", task="classification", report_to=["tensorboard"], save_strategy="epoch")
    with scoring_here():
        assert evaluate.evaluate("kept", split="validation", base=True)[0] == 0
    pages.write(run)
    held = every_byte(project)
    kinds = (
        "events.out.tfevents",
        "optimizer.pt!",
        "scheduler.pt",
        "run.json",
        "metrics-validation.json",
        "README.md",
    )
    assert all(any(kind in name for name in held) for kind in kinds), sorted(held)
    # A path of the test itself is found everywhere, so that what is searched is what is written.
    assert any(b"data/train.jsonl" in content for content in held.values())
    assert not [name for name, content in held.items() for value in canaries.values() if value.encode() in content]
    assert not [name for name in held if any(value in name for value in canaries.values())]
    assert yaml.safe_load(run.recipe.read_text())["report_to"] == ["tensorboard"]
    assert os.environ["HF_TOKEN"] == canaries["HF_TOKEN"]
