"""Run directories that are damaged, changed, copied or somebody else's: one message each, and nothing is touched."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import alpaca_rows, write_rows
from finished import restate

from sft_recipes.cli import main
from sft_recipes.files import sealed
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.runs.run import Run

USES = {
    "report": ["report", "known"],
    "resume": ["resume", "known"],
    "evaluate": ["evaluate", "known"],
    "merge": ["merge", "known"],
    "predict": ["predict", "known", "--input", "data/train.jsonl", "--out", "out.jsonl"],
    "chat": ["chat", "known"],
    "push": ["push", "known", "--repo", "org/name"],
    "compare": ["compare", "known", "other"],
    "reproduce": ["reproduce", "known"],
}
ALL = tuple(USES)
MODELS = ("evaluate", "merge", "predict", "chat")
WORK = ("resume", *MODELS)


@pytest.fixture
def known(project: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run as it is when it has been trained and evaluated; no command here comes as far as its weights."""
    monkeypatch.setenv("HF_TOKEN", "none")
    made = launch.create(jobs.check("tiny", overrides=["task=classification"]), "known")
    made.adapter.mkdir()
    config = {"base_model_name_or_path": "model", "peft_type": "LORA", "auto_mapping": None, "megatron_config": None}
    (made.adapter / "adapter_config.json").write_text(json.dumps(config))
    (made.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    made.log.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    metrics = {"schema": 1, "task": "classification", "predict_by": "likelihood", "split": "test", "scored": 1}
    metrics |= {"primary": "macro_f1", "settings": {}, "models": {}, "baselines": {}, "verdict": {}, "measured": {}}
    made.metrics("test").write_text(json.dumps(metrics))
    made.predictions("test").write_text('{"row": 1, "leaked": false}\n')
    made.update(status="finished", measured={"step": 2, "eval_loss": [], "saved": sealed(made.adapter)})
    return made


def contents(run: Run) -> dict[str, str]:
    """What is in a run's directory, but for the locks."""
    files = [path for path in run.directory.rglob("*") if path.is_file() and path.name not in (".lock", ".ranks")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(use: str, run: Run, capsys: pytest.CaptureFixture) -> str:
    """What a command says when it refuses, which costs nothing that is there."""
    path, (is_, other) = run.directory / "run.json", ("finished", "interrupted")[:: -1 if use == "resume" else 1]
    # What is resumed has not ended, and everything else is asked of a run that has.
    path.write_bytes(path.read_bytes().replace(f'"status": "{other}"'.encode(), f'"status": "{is_}"'.encode(), 1))
    before = contents(run)
    capsys.readouterr()
    assert main(USES[use]) == 2, use
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "Traceback" not in said.err, said.err
    assert contents(run) == before and not Path("out.jsonl").exists() and not Path("runs/known-again").exists()
    return said.err


def facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Run], None]:
    def harm(run: Run) -> None:
        found = json.loads((run.directory / "run.json").read_text())
        change(found)
        (run.directory / "run.json").write_text(json.dumps(found))

    return harm


def written(name: str, text: str | bytes) -> Callable[[Run], None]:
    return lambda run: (run.directory / name).write_bytes(text.encode() if isinstance(text, str) else text) and None


def added(name: str, text: str) -> Callable[[Run], None]:
    return lambda run: written(name, (run.directory / name).read_text() + text)(run)


def missing(name: str) -> Callable[[Run], None]:
    return lambda run: (run.directory / name).unlink()


def adapter(**config: Any) -> Callable[[Run], None]:
    def harm(run: Run) -> None:
        path = run.adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        # Whoever gives the run away can write its checksums anew.
        restate(run, measured={"step": 2, "saved": sealed(run.adapter)})

    return harm


def link(name: str) -> Callable[[Run], None]:
    def harm(run: Run) -> None:
        (run.directory / name).unlink(missing_ok=True)
        Path("elsewhere").mkdir()
        (run.directory / name).symlink_to(Path("elsewhere").resolve())

    return harm


def other_base(run: Run) -> None:
    shutil.copytree(Path("model").resolve(), "changed")
    Path("model").unlink()
    Path("changed").rename("model")
    with Path("model/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")


BACK = "put the file back from a copy, or start a new run"
CHANGED = "runs/known is not as it was when it was started:\n  {}\nPut that back, or start a new run with it"
RUN_JSON = "runs/known/run.json is not as it was written: {}; " + BACK

DAMAGE: dict[str, tuple[Callable[[Run], Any], tuple[str, ...], str]] = {
    "run.json cut": (
        lambda run: written("run.json", (run.directory / "run.json").read_bytes()[:8])(run),
        ALL,
        f"runs/known/run.json cannot be read: Unterminated string starting at: line 2 column 3 (char 4); {BACK}",
    ),
    "run.json empty": (written("run.json", ""), ALL, f"runs/known/run.json cannot be read: it is empty; {BACK}"),
    "run.json a list": (written("run.json", "[1]"), ALL, RUN_JSON.format("it is a list of 1, not an object")),
    "run.json nested": (
        written("run.json", "[" * 100_000),
        ALL,
        "runs/known/run.json cannot be read: maximum recursion depth exceeded",
    ),
    "run.json with a bad byte": (
        written("run.json", b'{"schema": "\xff"}'),
        ALL,
        f"runs/known/run.json is no UTF-8 text: byte 13 is 0xff; {BACK}",
    ),
    "run.json of another version": (
        facts(lambda found: found.update(schema=2)),
        ALL,
        RUN_JSON.format("schema is the number 2, not 1"),
    ),
    "run.json without keys": (
        facts(lambda found: [found.pop(key) for key in ("own", "data")]),
        ALL,
        RUN_JSON.format("own is missing; data is missing"),
    ),
    "run.json with wrong values": (
        facts(lambda found: [found.update(status="done"), found["topology"].update(processes="two")]),
        ALL,
        RUN_JSON.format(
            "status is the string 'done', not running or interrupted or failed or finished; topology.processes is the "
            "string 'two', not a whole number"
        ),
    ),
    "run.json that names files elsewhere": (
        facts(lambda found: found["measured"].update(saved={"../../data/train.jsonl": {"bytes": 1, "sha256": ""}})),
        ALL,
        RUN_JSON.format("measured.saved names '../../data/train.jsonl', which is outside of its directory"),
    ),
    "a link out of the run": (
        link("tensorboard"),
        ALL,
        "runs/known/tensorboard is a link to ",
    ),
    "the log a link out of the run": (link("log.jsonl"), ALL, "runs/known/log.jsonl is a link to "),
    "no recipe.yaml": (
        missing("recipe.yaml"),
        ("report", "compare", "reproduce", *WORK),
        f"runs/known/recipe.yaml is missing; {BACK}",
    ),
    "no accelerate.yaml": (
        missing("accelerate.yaml"),
        ("reproduce", *WORK),
        f"runs/known/accelerate.yaml is missing; {BACK}",
    ),
    "a recipe that runs foreign code": (
        added("recipe.yaml", "trust_remote_code: true\n"),
        ("report", "compare", "reproduce", *WORK),
        "trust_remote_code does not belong in a recipe: no code out of a model repository is run",
    ),
    "a recipe with a token": (
        added("recipe.yaml", "hub_token: x\n"),
        ("report", "compare", "reproduce", *WORK),
        "recipe.yaml:52: hub_token is named as a secret",
    ),
    "a recipe with another value": (
        lambda run: run.recipe.write_text(run.recipe.read_text().replace("lora_r: 8", "lora_r: 16")),
        WORK,
        CHANGED.format("recipe.yaml has other content"),
    ),
    "a recipe with another directory": (
        lambda run: run.recipe.write_text(run.recipe.read_text().replace("runs/known", "data")),
        MODELS,
        CHANGED.format("recipe.yaml has other content"),
    ),
    "accelerate.yaml with more in it": (
        added("accelerate.yaml", "main_training_function: x\n"),
        ("reproduce", *WORK),
        "main_training_function is not a fact of where a recipe runs; drop it",
    ),
    "accelerate.yaml of other processes": (
        lambda run: run.accelerate.write_text(
            run.accelerate.read_text().replace("num_processes: 1", "num_processes: 2").replace("'NO'", "MULTI_GPU")
        ),
        ("reproduce", *WORK),
        "runs/known/accelerate.yaml and the topology in run.json are not the same; put the file back",
    ),
    "our own keys unknown": (
        facts(lambda found: found["own"].update(nonsense=3)),
        ("reproduce", *WORK),
        "runs/known/run.json: own: nonsense: no such key",
    ),
    "our own keys changed": (
        facts(lambda found: found["own"].update(early_stopping_patience=7)),
        WORK,
        CHANGED.format("run.json has another own, topology or data"),
    ),
    "rows from elsewhere": (
        facts(lambda found: found["data"]["source"].update(cache="/")),
        ("reproduce", *WORK),
        "runs/known/run.json: data.source: cache says nothing of rows; take it out",
    ),
    "an adapter for another base": (
        adapter(base_model_name_or_path="/elsewhere"),
        ("reproduce", *WORK),
        "runs/known/adapter/adapter_config.json: base_model_name_or_path is /elsewhere, where this run has model",
    ),
    "an adapter that imports modules": (
        adapter(auto_mapping={"parent_library": "os", "base_model_class": "x"}, megatron_config={}),
        ("reproduce", *WORK),
        'auto_mapping is {"parent_library": "os", "base_model_class": "x"}, where this run has null',
    ),
    "another base model": (
        other_base,
        WORK,
        CHANGED.format("base model model: model.safetensors has other content"),
    ),
    "a log with a bad byte": (
        written("log.jsonl", b'{"step": 1, "loss": 2.5}\n{"step": \xff}\n{"step": 3}\n'),
        ("report",),
        "runs/known/log.jsonl cannot be read: line 2 is no JSON: 'utf-8' codec can't decode byte 0xff",
    ),
    "a log of something else": (
        written("log.jsonl", '{"step": 1, "loss": "low"}\n'),
        ("report",),
        "runs/known/log.jsonl: entry 1: loss is the string 'low', not a number; take that line out",
    ),
    "metrics cut": (
        written("metrics.json", '{"schema": 1'),
        ("report", "compare"),
        "make it anew: make evaluate RUN=known",
    ),
    "predictions with a bad line": (
        written("predictions.jsonl", '{"row": 1}\n{"row": \n{"row": 3}\n'),
        ("report", "compare"),
        "runs/known/predictions.jsonl cannot be read: line 2 is no JSON: Expecting value: line 1 column 9 (char 8); "
        "make it anew: make evaluate RUN=known",
    ),
    "metrics that hold less": (
        lambda run: None,
        ("report",),
        "runs/known: its files are not as they are written (KeyError: 'outcome'); put them back",
    ),
}


@pytest.mark.promise(
    "foreign-run",
    "each file of a run cut, of another shape, changed, leading elsewhere or asking for code, by command",
)
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_message_and_is_left_as_it_is(
    name: str, known: Run, capsys: pytest.CaptureFixture, record_property: Callable[[str, int], None]
) -> None:
    harm, uses, message = DAMAGE[name]
    record_property("injected", len(uses))
    shutil.copytree(known.directory, "runs/other")
    harm(known)
    for use in uses:
        said = refused(use, known, capsys)
        assert message in said, (use, said)
    assert main(["leaderboard"]) == 0, capsys.readouterr().err


@pytest.mark.promise("damage", "metrics.json changed after the evaluation")
def test_what_an_evaluation_wrote_is_sealed(known: Run, capsys: pytest.CaptureFixture) -> None:
    known.update(evaluated={"test": sealed(known.directory, only=["metrics.json", "predictions.jsonl"])})
    known.metrics("test").write_text(known.metrics("test").read_text().replace('"scored": 1', '"scored": 2'))
    assert refused("report", known, capsys) == (
        "error: runs/known is not as it was evaluated: metrics.json does not match its checksum; make it anew: make "
        "evaluate RUN=known\n"
    )


def test_a_run_that_wrote_down_less_is_not_asked_for_it(known: Run) -> None:
    from sft_recipes.runs import identity

    facts(lambda found: [found.pop(key) for key in ("identity", "journal")])(known)
    known.recipe.write_text(known.recipe.read_text().replace("lora_r: 8", "lora_r: 16"))
    identity.check(known, training=True)


# Where it lies


@pytest.mark.promise("same-run", "the directory copied, or renamed, and resumed")
def test_a_copied_or_renamed_run_is_not_resumed(known: Run, capsys: pytest.CaptureFixture) -> None:
    restate(known, status="interrupted")
    copy = Run(Path(shutil.copytree(known.directory, "runs/copy")))
    for name in ("copy", "runs/copy"):
        assert main(["resume", name]) == 2
        said = capsys.readouterr().err
        assert "its directory is that of runs/known: give it its name back, or resume that one" in said
    known.directory.rename("runs/renamed")
    assert main(["resume", "renamed"]) == 2
    assert "give it its name back" in capsys.readouterr().err
    assert contents(copy) and not known.directory.exists()


@pytest.mark.promise("same-run", "the run resumed from another folder")
def test_a_run_is_not_resumed_from_another_folder(
    known: Run, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    restate(known, status="interrupted")
    (project / "away").mkdir()
    monkeypatch.chdir(project / "away")
    assert main(["resume", "../runs/known"]) == 2
    assert "it belongs to runs/known, seen from its project's root: run the command there" in capsys.readouterr().err
    assert not (project / "away" / "runs").exists()


def test_a_project_that_was_moved_as_a_whole_is_as_it_was(
    known: Run, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_recipes.runs import identity

    moved = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(project, moved, symlinks=True)
    monkeypatch.chdir(moved)
    identity.check(Run.open("known"), training=True)
    # A run may lie on another disk.
    known.directory.resolve()
    Path("runs/known").rename(moved / "disk")
    Path("runs/known").symlink_to(moved / "disk")
    identity.check(Run.open("known"), training=True)


@pytest.mark.promise("same-run", "recipe, rows and base changed at once")
def test_everything_that_is_not_as_it_was_is_one_message(known: Run, capsys: pytest.CaptureFixture) -> None:
    other_base(known)
    added("recipe.yaml", "# a note\n")(known)
    write_rows(Path("data/train.jsonl"), alpaca_rows(64, seed=9))
    said = refused("resume", known, capsys)
    base = "base model model: model.safetensors has other content"
    changes = "\n  ".join(["recipe.yaml has other content", base, "the data have changed"])
    assert said == f"error: {CHANGED.format(changes)}\n"


@pytest.mark.promise("foreign-run", "trust_remote_code written into the run's recipe.yaml")
def test_a_foreign_run_runs_no_code_by_resume(known: Run, capsys: pytest.CaptureFixture) -> None:
    facts(lambda found: found.pop("identity"))(known)
    added("recipe.yaml", "model_init_kwargs: {trust_remote_code: true}\n")(known)
    for use in ("resume", "reproduce"):
        said = refused(use, known, capsys)
        assert re.search(
            r"recipe.yaml asks for trust_remote_code, .* make train RECIPE=tiny NAME=known RESUME=1", said
        )
