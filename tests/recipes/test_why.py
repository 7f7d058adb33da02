"""What `why` says of a key, and the reasons of a whole recipe."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology, why


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def lines(key: str, recipe: str | None = None) -> list[tuple[str, str]]:
    return list(why.render(why.why(key, recipe)))


def test_a_value_is_shown_with_its_place_its_reason_and_its_neighbours() -> None:
    shown = dict(lines("lora_alpha", "high_capacity"))
    assert shown["value"].startswith("64 in high_capacity (recipes/high_capacity.yaml:5)\nDoubled with the rank")
    assert re.search(r"^32: default and \d+ others$", shown["recipes"], re.MULTILINE)
    assert "64: high_capacity" in shown["recipes"]
    assert ("with", "lora_r 64: the scale is alpha / r") in lines("lora_alpha", "high_capacity")
    assert ("with", "learning_rate 0.0002: nearly the same knob") in lines("lora_alpha", "high_capacity")
    assert shown["page"] == "docs/hyperparameters.md#10-lora-alpha-32"


def test_without_a_recipe_the_values_of_all_are_shown_and_none_of_one() -> None:
    labels = [label for label, _ in lines("lora_alpha")]
    assert "value" not in labels and labels.count("recipes") == 1
    assert ("with", "lora_r: the scale is alpha / r") in lines("lora_alpha")


def test_a_value_that_follows_from_others_is_derived_for_every_recipe() -> None:
    facts = why.why("gradient_accumulation_steps", "memory_efficient")
    assert facts["recipe"]["value"] == 8 and "x 4 processes" in facts["recipe"]["origin"]
    assert facts["recipes"]["default"] == 4 and facts["recipes"]["memory_efficient"] == 8


def test_a_recipe_s_value_is_what_it_resolves_to() -> None:
    for name in recipes.names():
        loaded = recipes.load(name)
        for key in ("learning_rate", "max_length", "packing_strategy", "lora_target_modules"):
            assert why.why(key)["recipes"][name] == loaded[key] == why.why(key, name)["recipe"]["value"]


def test_a_key_that_is_not_set_has_the_default_and_says_so() -> None:
    facts = why.why("packing_strategy", "default")
    assert (facts["recipe"]["value"], facts["recipe"]["origin"]) == ("bfd", "not set: the default")


def test_a_name_that_is_no_key_says_what_stands_in_its_place() -> None:
    assert dict(lines("lora_bias"))["no key"].startswith("TRL always trains with bias none")
    assert why.why("lora_bias")["recipes"] == {}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_alfa", "lora_alfa: no such key; did you mean lora_alpha?"),
        ("max_seq_length", "max_seq_length is not a key of TRL .*: write max_length"),
        ("output_dir", "output_dir does not belong in a recipe"),
        ("logging_strategy", "logging_strategy is a key without evidence here"),
        ("../../../recipes/default", "no such key"),
        ("xyzzy", "xyzzy: no such key; `sft-recipes keys` lists them"),
    ],
)
def test_what_is_not_known_is_said_with_what_helps(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        why.why(key)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no recipe 'defualt' in recipes/ \(nearest: 'default'\); there are default"):
        why.why("lora_r", "defualt")


def test_every_value_of_every_recipe_has_a_reason_of_one_line() -> None:
    for name in recipes.names():
        resolved = topology.resolve(recipes.load(name), topology.read("cpu", "a test"))
        reasons = why.reasons(resolved)
        assert reasons.keys() == resolved.values.keys()
        assert [key for key, reason in reasons.items() if not reason or "\n" in reason] == []
        assert [key for key, reason in reasons.items() if reason == "no evidence here"] == []


def test_a_reason_is_the_recipe_s_own_or_that_of_the_default_s_value() -> None:
    default, quick = (why.reasons(recipes.load(name)) for name in ("default", "quick_test"))
    assert default["lora_alpha"] == "documented, and the constant that LoRA Without Regret uses for every rank"
    assert quick["lora_r"].startswith("the default has 32. Rank of the adapter's two matrices")
    assert quick["early_stopping_patience"] == "One evaluation is too few to wait two for an improvement."
    # The heading of a group is no reason.
    assert default["use_peft"] == "0.2 % of the parameters to train, to store and to shard"
    assert default["model_name_or_path"].startswith("Dense, openly licensed")


def test_figures_come_from_committed_files() -> None:
    first, *_, last = json.loads((ROOT / "docs" / "demo" / "run.json").read_text())["measured"]["eval_loss"]
    said = [text for label, text in lines("eval_on_start") if label == "evidence"]
    assert said == [
        f"The demo's eval loss is {first['eval_loss']:.2f} before training and {last['eval_loss']:.2f} at step "
        f"{last['step']}.\ndocs/demo/run.json (verified)"
    ]


def test_without_the_repository_a_statement_names_the_file_of_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(why, "ROOT", tmp_path)
    why.entry.cache_clear()
    (each,) = why.why("eval_on_start")["evidence"]
    why.entry.cache_clear()
    assert each["says"] == "Measured; the figures are in docs/demo/run.json, which is not here."


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from sft_recipes import cli; from sft_recipes.recipes import recipe, why; "
        "list(why.render(why.why('lora_alpha', 'default'))); why.reasons(recipe.load('default')); "
        "print({'torch', 'numpy', 'transformers', 'trl'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == "set()\n"
