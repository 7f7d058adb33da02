"""Bad input of every kind, one table a kind in tests/bad_inputs, each with the exact messages and exit code 2."""

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

TABLES = ROOT / "tests" / "bad_inputs"


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
    (place / "model").symlink_to(tiny_model)
    for split, rows in {"train": 64, "validation": 8}.items():
        write_rows(place / "data" / f"{split}.jsonl", alpaca_rows(rows, seed=rows))
    (place / "not_utf8.jinja").write_bytes(b"\xff\xfe")
    for name in ("pipe.yaml", "pipe.jsonl", "pipe.jinja", "pipe.json"):
        os.mkfifo(place / name)
    return place


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
    finally:
        if made:
            made.unlink()
    says = case["says"] if isinstance(case["says"], list) else [case["says"]]
    assert capsys.readouterr().err == "".join(f"error: {each}\n" for each in says)


def test_there_are_enough_of_them() -> None:
    assert len(cases()) >= 100
