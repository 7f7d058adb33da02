"""Bad input of every kind, one table a kind in tests/bad_inputs, each with the exact messages and exit code 2."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from sft_recipes import cli
from sft_recipes.recipes import recipe, topology

TABLES = ROOT / "tests" / "bad_inputs"
SCHEMAS: dict[str, Any] = {
    "nowhere": {"$ref": "#/$defs/none"},
    "away": {"properties": {"a": {"$ref": "http://localhost:1/schema.json"}}},
    "file": {"items": {"$ref": "file:///etc/passwd"}},
    "pattern": {"pattern": "("},
    "objekt": {"type": "objekt"},
}


def cases() -> list[Any]:
    found = []
    for path in sorted(TABLES.glob("*.yaml")):
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        for case in table.pop("cases"):
            case = table | case
            name = f"{path.stem}: {case.get('variables') or case.get('given') or case['run']}"
            found.append(pytest.param(case, id=name.encode("ascii", "backslashreplace").decode()[:100]))
    return found


def filled(text: str) -> str:
    """The text with `<<x*5000>>` written out."""
    return re.sub(r"<<(.+?)\*(\d+)>>", lambda found: found[1] * int(found[2]), text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One project for all cases, none of which may leave anything behind in it."""
    from conftest import TINY, alpaca_rows, write_rows

    place = tmp_path_factory.mktemp("bad")
    for name in ("recipes/default", "accelerate_configs/cpu", "accelerate_configs/ddp", "models/qwen3_4b"):
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f"{name}.yaml", place / f"{name}.yaml")
    (place / "recipes" / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (place / "clusters").mkdir()
    (place / "model").symlink_to(tiny_model)
    for split, rows in {"train": 64, "validation": 8}.items():
        write_rows(place / "data" / f"{split}.jsonl", alpaca_rows(rows, seed=rows))
    for name, schema in SCHEMAS.items():
        (place / f"{name}.json").write_text(json.dumps(schema), encoding="utf-8")
    (place / "not_utf8.jinja").write_bytes(b"\xff\xfe")
    for name in ("pipe.yaml", "pipe.jsonl", "pipe.jinja", "pipe.json"):
        os.mkfifo(place / name)
    return place


@pytest.mark.promise(
    "bad-input", "recipes, configs, rows, files, models, arguments and make variables of tests/bad_inputs"
)
@pytest.mark.parametrize("case", cases())
def test_bad_input_gets_its_message(
    case: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(place)
    made = place / case["file"].format(**case) if "file" in case else None
    if made:
        text = case.get("before", "") + filled(case["given"])
        made.write_bytes(text.encode("latin-1" if case.get("bytes") else "utf-8"))
    before = {path for path in place.rglob("*") if ".cache" not in path.parts}
    try:
        if "variables" in case:
            monkeypatch.setenv("GIVEN", " ".join(case["variables"]))
            for name, value in case["variables"].items():
                monkeypatch.setenv(name, filled(value))
        assert cli.main([filled(each.format(**case)) for each in shlex.split(case["run"])]) == 2
        assert {path for path in place.rglob("*") if ".cache" not in path.parts} == before
        folders = {"RECIPES": recipe.RECIPES, "MODELS": recipe.MODELS, "CONFIGS": topology.CONFIGS}
        there = {word: recipe.names(folder) for word, folder in folders.items()}
    finally:
        if made:
            made.unlink()
    says = case["says"] if isinstance(case["says"], list) else [case["says"]]
    said = "".join(f"error: {each}\n" for each in says)
    for word, names in there.items():
        said = said.replace(f"there are {word}", f"there are {', '.join(names)}")
    assert capsys.readouterr().err == said


def test_there_are_enough_of_them() -> None:
    assert len(cases()) >= 100


# A window's title, a red text, the screen cleared, a reversed reading direction, a bell, a carriage return.
HOSTILE = "\x1b]0;title\x07\x1b[31mred\x1b[2J\u202eabc\x07\rover"


def hostile(place: Path) -> None:
    """Files that are whole, with texts that would work on a terminal."""
    rows = [{"instruction": f"{HOSTILE} {number}", "output": HOSTILE, HOSTILE: 1} for number in range(8)]
    (place / "data" / f"{HOSTILE}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (place / "recipes" / "hostile.yaml").write_text(
        f"extends: default\ndescription: 'right \u202e to left'\n# {HOSTILE!a}\n", encoding="utf-8"
    )
    (place / f"{HOSTILE}.yaml").write_text(f"{json.dumps(HOSTILE)}: 1\nlearning_rate: 1e-4\n", encoding="utf-8")


@pytest.mark.promise("hostile", "escape codes in rows, names and recipes, by command")
@pytest.mark.parametrize("on_terminal", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["models"],
        ["show", "hostile", "--why"],
        ["show", HOSTILE],
        ["show", "tiny", f"--set=description={json.dumps(HOSTILE)}"],
        ["show", "tiny", f"--set={HOSTILE}=3"],
        ["plan", "hostile", "--accel=cpu", "--data=data/train.jsonl"],
        ["plan", "tiny", f"--data=data/{HOSTILE}.jsonl"],
        ["plan", "tiny", f"--accel={HOSTILE}"],
        ["plan", "tiny", "--data=rows.jsonl"],
        ["diff", "tiny", "hostile", "--accel=cpu", "--data=data/train.jsonl"],
        ["why", HOSTILE],
        ["audit", f"{HOSTILE}.yaml"],
        ["report", HOSTILE],
        ["compare", HOSTILE],
        [HOSTILE],
        ["plan", f"--{HOSTILE}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(HOSTILE, "HOSTILE"),
)
def test_nothing_that_is_printed_works_on_the_terminal(
    arguments: list[str],
    on_terminal: bool,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(place)
    hostile(place)
    (place / "rows.jsonl").write_text((place / "data" / f"{HOSTILE}.jsonl").read_text("utf-8"), encoding="utf-8")
    if on_terminal:
        # Colours are another test's; without them, whatever is no character of a text is somebody else's.
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cli.main(arguments)
    said = capsys.readouterr()
    assert said.out or said.err
    assert [char for char in said.out + said.err if not char.isprintable() and char != "\n"] == []
