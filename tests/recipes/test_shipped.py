"""What ships with the program, where a project has nothing of its own."""

from pathlib import Path

import pytest
from conftest import ROOT

from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology
from sft_recipes.recipes.shipped import FOLDERS, located
from sft_recipes.recipes.shipped import ROOT as SHIPPED


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_ships_is_the_repositorys_own() -> None:
    assert all((SHIPPED / name).resolve() == ROOT / name for name in FOLDERS)


@pytest.mark.parametrize("folder", ["recipes", "models", "accelerate_configs"])
def test_an_empty_folder_has_all_that_ships(empty: Path, folder: str) -> None:
    assert set(recipes.names(Path(folder))) == {path.stem for path in (ROOT / folder).glob("*.yaml")}
    for name in recipes.names(Path(folder)):
        if folder == "recipes":
            assert recipes.load(name).values
        elif folder == "models":
            template = recipes.load("default", f"model={name}")["chat_template_path"]
            assert template is None or Path(template).is_file()
        else:
            assert topology.read(name, "a test").name == name


def test_the_files_that_the_demo_names_are_those_that_ship(empty: Path) -> None:
    demo = recipes.load("demo")
    for key in ("train_file", "validation_file", "test_file"):
        assert Path(demo[key]).is_absolute() and Path(demo[key]).is_file()
        assert demo.values[key].origin.startswith("recipes/demo.yaml:")


def test_what_a_project_has_comes_first(empty: Path) -> None:
    for name, text in {
        "recipes/default.yaml": "model_name_or_path: org/mine\ntrain_file: data/demo/train.jsonl\n",
        "recipes/next.yaml": "extends: default\n",
        "recipes/other.yaml": "extends: all_linear\n",
        "data/demo/train.jsonl": "{}\n",
    }.items():
        (empty / name).parent.mkdir(parents=True, exist_ok=True)
        (empty / name).write_text(text)
    assert recipes.load("default")["model_name_or_path"] == recipes.load("next")["model_name_or_path"] == "org/mine"
    assert recipes.load("next")["train_file"] == "data/demo/train.jsonl"
    assert recipes.load("other")["lora_target_modules"] == ["all-linear"]


def test_a_file_that_was_named_by_its_path_is_that_file_or_none(empty: Path) -> None:
    (empty / "elsewhere").mkdir()
    with pytest.raises(InputError, match="no accelerate configs in"):
        topology.read("elsewhere/zero2.yaml", "a test")
    with pytest.raises(InputError, match=r"elsewhere/default.yaml: cannot be read: No such file"):
        recipes.load("elsewhere/default.yaml")
    (empty / "elsewhere" / "mine.yaml").write_text("extends: default\nlora_r: 8\n")
    assert recipes.load("elsewhere/mine.yaml")["lora_alpha"] == 32
    assert located("data/../recipes/default.yaml") == Path("data/../recipes/default.yaml")
    (empty / "recipes").mkdir()
    (empty / "recipes" / "default.yaml").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"no recipe 'default'|cannot be read"):
        recipes.load("default")
