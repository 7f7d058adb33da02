"""Recipes from rows and a machine: each fits and can be trusted, says why, and says what is not known."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, alpaca_rows, write_rows

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.plan import recommend
from sft_recipes.plan import recommended as page
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology


@pytest.fixture(scope="module")
def validate() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import validate_recommend

        yield validate_recommend


@pytest.fixture(scope="module")
def once() -> dict[tuple[str, str], dict[str, Any]]:
    """What was recommended already, by rows and machine."""
    return {}


@pytest.fixture
def made(validate: Any, once: dict[tuple[str, str], dict[str, Any]], project: Path) -> Callable[..., dict[str, Any]]:
    """The recommendation for made rows on a machine."""

    def made(rows: str, machine: str) -> dict[str, Any]:
        if (rows, machine) not in once:
            once[rows, machine] = validate.recommended_for(validate.write(rows, project), machine)
        return once[rows, machine]

    return made


@pytest.fixture(autouse=True)
def here(project: Path) -> Path:
    """In a directory with the shipped recipes and models."""
    return project


@pytest.mark.parametrize(
    ("rows", "machine", "kind"),
    [
        ("labels", "laptop", "classification"),
        ("numbers", "rtx-4090", "classification"),
        ("json_labels", "8 x h100-80gb", "classification"),
        ("extraction", "4 x a100-80gb", "extraction"),
        ("conversations", "a100-80gb", "conversation"),
        ("long", "8 x h100-80gb", "text"),
        ("outlier", "rtx-4090", "text"),
        ("few", "8 x h100-80gb", "text"),
        ("dirty", "a100-80gb", "classification"),
    ],
)
def test_what_is_recommended_fits_and_can_be_trained(
    validate: Any, made: Callable[..., dict[str, Any]], project: Path, rows: str, machine: str, kind: str
) -> None:
    facts = made(rows, machine)
    assert facts["data"]["kind"] == kind
    assert [*validate.problems(facts, project / "recipes" / "recommended.yaml")] == []


def recommended(path: str, *words: str, gpu: str = "rtx-4090", number: int | None = None) -> recommend.Decided:
    own = recipes.parse_overrides(words)
    return recommend.decide(recommend.rows_of(path, own), recommend.machine_of(gpu, number), own)


def test_rows_of_two_spellings_get_no_task_and_are_told(made: Callable[..., dict[str, Any]]) -> None:
    facts = made("dirty", "a100-80gb")
    assert "task" not in facts["recipe"]
    assert any("'Yes'" in each and "differ in case" in each for each in facts["unknown"])
    assert {"duplicate-rows", "classes-spelled-alike"} <= {each["rule"] for each in facts["findings"]}


def test_too_few_rows_are_called_so(made: Callable[..., dict[str, Any]]) -> None:
    facts = made("few", "8 x h100-80gb")
    assert "the rows are too few" in facts["recipe"]["global_batch_size"]["reason"]
    assert facts["machine"]["used"] == 4 and "4 more GPUs" in facts["recipe"]["accelerate_config"]["reason"]
    assert {"few-steps", "small-evaluation-set"} <= {each["rule"] for each in facts["findings"]}
    assert facts["recipe"]["lora_dropout"]["value"] == recipes.load("small_data")["lora_dropout"]


def test_one_long_row_does_not_decide_the_length(made: Callable[..., dict[str, Any]]) -> None:
    facts = made("outlier", "rtx-4090")
    assert facts["data"]["lengths"]["p100"] > 20 * facts["recipe"]["max_length"]["value"]
    assert 0.995 <= facts["costs"]["whole"] < 1


@pytest.mark.parametrize(
    ("rows", "gpus", "expected"),
    [
        (60, 1, (4, 4, 1)),
        (60, 8, (4, 4, 4)),
        (500, 1, (8, 2, 1)),
        (1900, 4, (16, 2, 4)),
        (1900, 3, (15, 2, 3)),
        (30_000, 8, (32, 2, 8)),
        (60_000, 1, (32, 1, 1)),
    ],
)
def test_batch_and_epochs_follow_the_amount(rows: int, gpus: int, expected: tuple[int, int, int]) -> None:
    batch, epochs, used = recommend.amount(rows, gpus)
    assert (batch, epochs, used) == expected
    assert batch % used == 0


def test_what_the_user_has_decided_is_kept(project: Path) -> None:
    chosen = recommended("data/train.jsonl", "model=llama3_2_1b", "load_in_4bit=true", "lora_r=8", "max_length=512")
    value = {key: value for key, (value, _) in chosen.values.items()}
    assert value["model_name_or_path"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert (value["load_in_4bit"], value["lora_r"], value["max_length"]) == (True, 8, 512)
    assert chosen.values["lora_r"][1] == "You set it."


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("model=llama3_2_1b", "none of those that meta-llama/Llama-3.2-1B-Instruct is for English"),
        ("model=qwen3_0_6b", "is for 119 languages"),
    ],
)
def test_languages_are_not_guessed(validate: Any, project: Path, base: str, said: str) -> None:
    chosen = recommended(str(validate.write("russian", project)), base)
    assert any("Cyrillic" in each and said in each for each in chosen.unknown)


def test_lengths_are_exact_where_the_tokenizer_is(project: Path) -> None:
    words = "model_name_or_path=model"
    rows = recommend.rows_of("data/train.jsonl", recipes.parse_overrides(words))
    assert rows.margin == 1 and rows.found["tokens_are"] == "exact"
    chosen = recommended("data/train.jsonl", words, gpu="laptop")
    assert not any("tokenizer" in each for each in chosen.unknown)
    assert any("what model was made for is not on record here" in each for each in chosen.unknown)
    assert chosen.values["accelerate_config"][0] == "cpu"


def test_the_command_writes_a_recipe_that_plan_takes(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_rows(project / "data" / "mine.jsonl", alpaca_rows(700, seed=3))
    arguments = ["recommend", "data/mine.jsonl", "--gpu", "a100-80gb", "--gpus", "2", "--name", "mine"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    path = project / facts["file"]
    said = "\n".join(text for _, text in page.render(facts, Path(facts["file"])))
    assert "wrote recipes/mine.yaml" in said and "make train RECIPE=mine GPUS=2" in said
    # Each key stands below its reason.
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [at for at, line in enumerate(lines) if re.match(r"[a-z]", line)]
    assert all(lines[at - 1].startswith("# ") for at in keys if not lines[at].startswith("description"))
    assert main(["plan", "mine", "--gpus", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["memory"]["allocated"], plan["schedule"]["steps"]) == (
        facts["costs"]["bytes"],
        facts["costs"]["steps"],
    )
    assert main(arguments) == 2
    assert "recipes/mine.yaml exists and is never overwritten" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").splitlines() == lines
    # What an alternative costs is what the plan says of it.
    larger = next(each for each in facts["alternatives"] if each["words"] == "MODEL=qwen3_14b")
    chosen = recommended(
        "data/mine.jsonl", "model=qwen3_14b", f"max_length={facts['costs']['max_length']}", gpu="a100-80gb", number=2
    )
    assert larger["bytes"] == chosen.figures["memory"]["allocated"] > facts["costs"]["bytes"]


def test_what_a_finding_would_stop_is_not_written(project: Path, capsys: pytest.CaptureFixture) -> None:
    words = "validation_file=data/train.jsonl model_name_or_path=model"
    assert main(["recommend", "data/train.jsonl", "--gpu", "cpu", "--set", words, "--name", "mine"]) == 2
    said = capsys.readouterr().out
    assert "blocking   split-overlap" in said and "nothing is written" in said
    assert not (project / "recipes" / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing argument 'DATA'"),
        (["data/nowhere.jsonl"], "data/nowhere.jsonl: no such file"),
        (["data/train.jsonl", "--gpu", "rtx-4080"], "did you mean rtx-4090?"),
        (["data/train.jsonl", "--gpu", "t4"], "t4 has no bfloat16"),
        (["data/train.jsonl", "--gpu", "cpu", "--gpus", "2"], "GPUS=2 says nothing of a CPU"),
        (["data/train.jsonl", "--model", "qwen3_8"], "no model 'qwen3_8'"),
        (["data/train.jsonl", "--gpu", "l4", "--set", "max_length=64 model=qwen3_14b load_in_4bit=false"], "nothing"),
        (["data/train.jsonl", "--gpu", "l4", "--set", "use_peft=false"], "make new FROM=full_finetune"),
        (["data/broken.jsonl"], "data/broken.jsonl:2"),
        (["data/train.jsonl", "--name", "../x"], "invalid recipe name '../x'"),
    ],
)
def test_what_cannot_be_recommended_is_refused_in_one_line(
    project: Path, capsys: pytest.CaptureFixture, arguments: list[str], expected: str
) -> None:
    (project / "data" / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    assert main(["recommend", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert expected in said.err


def test_a_visible_gpu_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [topology.Gpu("NVIDIA GeForce RTX 4090", 24564)] * 2
    monkeypatch.setattr(topology, "visible_gpus", lambda: gpus)
    assert str(recommend.machine_of(None, None)) == "2 x rtx-4090 of 24 GiB"
    monkeypatch.setattr(topology, "visible_gpus", lambda: [topology.Gpu("NVIDIA Riva", 100)])
    with pytest.raises(InputError, match="no figures for this machine's NVIDIA Riva"):
        recommend.machine_of(None, None)


def test_the_page_says_the_figures_of_the_code() -> None:
    page = (ROOT / "docs" / "recommend.md").read_text(encoding="utf-8")
    assert f"{recommend.MARGIN:g} times as many" in page and f"until they make {recommend.FEW_STEPS} steps" in page
    assert (recommend.MOST_HELD, recommend.ALIKE, recommend.RANKS[0]) == (0.2, 0.1, 16)
    assert all(words in page for words in ("at most a fifth", "at least a tenth faster", "| rank | 16, until"))
