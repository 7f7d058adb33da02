"""docs/architecture.md names what there is: wings, modules, functions and files; nothing is imported to see that."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PACKAGE = ROOT / "src" / "sft_recipes"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILE = re.compile(r"[\w./-]+(/|\.(py|ya?ml|json|md|toml))")
NAME = re.compile(r"[a-z_]+(\.\w+)+")


def named(text: str, form: re.Pattern[str]) -> set[str]:
    """What a page names in that form: its spans of code, and the words within those that are commands."""
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {word for span in spans for word in span.split() if form.fullmatch(word)}


def paths(text: str) -> set[str]:
    return named(text, FILE)


def names(text: str) -> set[str]:
    return named(text, NAME) - paths(text)


def is_there(path: str) -> bool:
    """Whether there is such a file or folder; NAME and KEY stand for any, and runs/ is made by the first run."""
    pattern = path.rstrip("/").replace("NAME", "*").replace("KEY", "*")
    beside = PACKAGE.glob(f"*/{pattern}") if "/" not in pattern else ()
    return path.startswith("runs/") or any(itertools.chain(ROOT.glob(pattern), beside))


def defined(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The functions, classes and variables of a module or a class by their names."""
    found: dict[str, ast.stmt] = {}
    for each in body:
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            found[each.name] = each
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            found |= {target.id: each for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something that a module or a class of it defines."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for part in parts[length:]:
            found = defined(body).get(part)
            if found is None:
                return False
            body = found.body if isinstance(found, ast.ClassDef) else []
        return True
    return False


@pytest.mark.parametrize("name", sorted(names(PAGE)))
def test_a_name_on_the_page_is_defined(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize("path", sorted(paths(PAGE)))
def test_a_path_on_the_page_is_there(path: str) -> None:
    assert is_there(path)


def test_what_is_not_there_is_found() -> None:
    text = (
        "`recipes.recipe.load` `recipes.recipe.unload` `plan.nothing.plan` `python scripts/no.py --all` `no/NAME.yaml`"
    )
    assert [name for name in sorted(names(text)) if not exists(name)] == ["plan.nothing.plan", "recipes.recipe.unload"]
    assert exists("runs.run.Run.open") and not exists("runs.run.Run.unopened")
    assert paths(text) == {"scripts/no.py", "no/NAME.yaml"} and not any(map(is_there, paths(text)))


def test_every_wing_of_the_contract_is_in_the_table_in_its_order() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    wings = [wing for layer in layers for wing in layer.split(" | ")]
    assert re.findall(r"^\| \[`(\w+)`\]\(\.\./src/sft_recipes/", PAGE, flags=re.MULTILINE) == wings


def test_the_road_goes_from_the_command_to_the_trainer() -> None:
    road = PAGE.partition("## The road of a recipe")[2].partition("\n## ")[0]
    steps = re.findall(r"^\| [a-z ]+ \| `([\w.]+)`", road, flags=re.MULTILINE)
    assert (steps[0], steps[-1]) == ("cli.commands.train", "launch.launch.finish")
    # Those of the training process, which the launcher starts by its name.
    assert '"sft_recipes.train.process"' in (PACKAGE / "launch" / "processes.py").read_text(encoding="utf-8")
    assert steps.index("launch.launch.train") < steps.index("train.process.main") < steps.index("train.train.build")


def test_what_stands_beside_the_package_is_of_its_version() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (version, PROJECT["project"]["license"])
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert changes[:2] == ["Unreleased", version]


def test_ci_runs_what_a_contributor_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make types", "make test"]
    python = next(step["with"]["python-version"] for step in steps if "with" in step)
    assert PROJECT["project"]["requires-python"] == f">={python}"


def test_the_clusters_are_tried_when_what_launches_on_them_has_changed() -> None:
    text = (ROOT / ".github" / "workflows" / "clusters.yml").read_text(encoding="utf-8")
    # YAML 1.1 reads "on" as true.
    started, jobs = yaml.safe_load(text)[True], yaml.safe_load(text)["jobs"]
    paths = started["push"]["paths"]
    assert started["pull_request"]["paths"] == paths and "src/sft_recipes/launch/**" in paths
    assert [path for path in paths if not [*ROOT.glob(path)]] == []
    runs = [step["run"] for step in jobs["check"]["steps"] if "run" in step]
    assert len(runs) == 1 and runs[0].endswith(" make test-clusters")


def test_the_hooks_call_tools_that_the_tests_bring() -> None:
    hooks = yaml.safe_load(Path(ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    tools = {match for hook in hooks for match in re.findall(r"/bin/([\w-]+)", hook["entry"])}
    assert tools == {"ruff", "lint-imports"}
    extras = " ".join(PROJECT["project"]["optional-dependencies"]["test"])
    assert "ruff>" in extras and "import-linter>" in extras


def test_the_index_of_the_pages_names_each() -> None:
    linked = set(re.findall(r"\]\(([\w/.]+\.md)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} == {
        each for each in linked if "/" not in each
    }
