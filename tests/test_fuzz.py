"""What nobody thought of: recipes, overrides, rows and other tools' files are read or refused, and nothing else."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_recipes.data import preparation
from sft_recipes.errors import InputError
from sft_recipes.interop import audit, importers
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, topology

pytestmark = pytest.mark.promise("fuzz", "recipes, overrides, configs, rows, other tools' files drawn by hypothesis")
# The same inputs each time, so that a failure is one for everybody; the deadline is what finds a hang.
bounded = settings(
    max_examples=80,
    derandomize=True,
    deadline=2000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LEGAL = {"model_name_or_path": "org/model", "train_file": "rows.jsonl"}
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", " ", "no", "2e-4", "a\nb", "\x1b[31m", "../x", "~x", "x" * 5000, "[", "{{"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**20, -1, 0, 2**31, 10**400])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.integers() | st.none(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*schema.known(), *schema.RENAMED, *schema.REFUSED]) | TEXTS


def read_or_refused(read: Any, *arguments: Any, **named: Any) -> Any:
    """What is read; a refusal has whole sentences, of a length that a person reads."""
    try:
        return read(*arguments, **named)
    except InputError as error:
        assert error.problems
        assert all(each.strip() and len(each) < 4000 for each in error.problems), error.problems
        return None


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/base.yaml").write_text(json.dumps(LEGAL), encoding="utf-8")
    record_property("injected", bounded.max_examples)


@bounded
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_values_from_python(values: dict[str, Any]) -> None:
    loaded = read_or_refused(recipes.load, "base", values)
    if loaded:
        # What is accepted can be written down and read again as the same.
        Path("again.yaml").write_text(recipes.dump(recipes.load("base", values).upstream()), encoding="utf-8")
        assert recipes.load(Path("again.yaml"), {"train_file": loaded["train_file"]}).upstream() == loaded.upstream()


@bounded
@given(KEYS, VALUES)
def test_every_key_with_any_value(key: str, value: Any) -> None:
    problem = schema.problem(key, value)
    assert problem is None or (problem.strip() and len(problem) < 4000)


@bounded
@given(st.text(max_size=200) | st.dictionaries(KEYS, VALUES, max_size=4).map(lambda each: yaml.safe_dump(each)))
def test_recipe_files(text: str) -> None:
    Path("recipes/mine.yaml").write_text(text, encoding="utf-8", errors="replace")
    read_or_refused(recipes.load, "mine")


@bounded
@given(st.binary(max_size=200))
def test_recipe_files_of_any_bytes(content: bytes) -> None:
    Path("recipes/mine.yaml").write_bytes(content)
    read_or_refused(recipes.load, "mine")


WORDS = st.builds("{}={}".format, KEYS, TEXTS | VALUES.map(str)) | st.text(
    "=[]{}'\"\\ ,:#&*!|>%@`-?\n\t" + string.digits
)


@bounded
@given(st.lists(WORDS, max_size=3).map(" ".join))
def test_overrides_of_a_command_line(text: str) -> None:
    read_or_refused(recipes.load, "base", text)


@bounded
@given(st.dictionaries(st.sampled_from([*topology.KEYS]) | TEXTS, VALUES, max_size=4), st.none() | st.integers())
def test_accelerate_configs(values: dict[str, Any], processes: int | None) -> None:
    config = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 3}} | values
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    chosen = read_or_refused(topology.read, "./mine.yaml", "a test", processes)
    if chosen:
        read_or_refused(topology.resolve, recipes.load("base"), chosen)


FIELDS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system", "role", "from"]
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "human"]) | VALUES, "content": VALUES}
    ),
    max_size=4,
)
ROWS = st.dictionaries(FIELDS | TEXTS, VALUES | TURNS, max_size=4)
LINES = st.lists(ROWS.map(lambda row: json.dumps(row, default=str, skipkeys=True)) | st.text(max_size=30), max_size=4)


def prepared(name: str, share: float) -> None:
    made = read_or_refused(
        preparation.prepare, train_file=name, validation_file=None, validation_split_size=share, cache=Path("cache")
    )
    # Nothing half-written is left.
    assert [path.name for path in Path("cache").glob(".*")] == []
    assert made is None or (made.directory / "train.jsonl").is_file()


@bounded
@given(LINES.map("\n".join), st.sampled_from([0.0, 0.5]))
def test_rows_as_json(text: str, share: float) -> None:
    Path("rows.jsonl").write_text(text, encoding="utf-8", errors="replace")
    prepared("rows.jsonl", share)


@bounded
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "txt"]))
def test_rows_of_any_bytes(content: bytes, suffix: str) -> None:
    Path(f"rows.{suffix}").write_bytes((b"PAR1" if suffix == "parquet" else b"") + content)
    prepared(f"rows.{suffix}", 0.0)


THEIRS = st.sampled_from(
    sorted({*schema.upstream(), *schema.RENAMED, "base_model", "datasets", "adapter", "sequence_len", "batch_size"})
)


@bounded
@given(st.dictionaries(THEIRS | TEXTS, VALUES, max_size=5), st.sampled_from([None, *importers.TOOLS]))
def test_files_of_other_tools(values: dict[str, Any], tool: str | None) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    made = read_or_refused(audit.audit, Path("theirs.yaml"), tool)
    if made:
        assert audit.render(made) and json.dumps(audit.facts(made))
