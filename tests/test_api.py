"""The commands from Python: cheap to import, objects that can be shown, exceptions, and a notebook's surroundings."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, alpaca_rows, write_rows

import sft_recipes
from sft_recipes.api import RunResult, as_table
from sft_recipes.launch import launch, processes
from sft_recipes.plan import job as jobs

pytest_plugins = ["finished"]

HOSTILE = "<script>alert(1)</script>\x1b[2J&"


class Notebook(io.StringIO):
    """What a notebook puts in the place of sys.stdout: it takes text, and is no file of the system's."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_costs_nothing() -> None:
    code = (
        "import sys, time; before, began = set(sys.modules), time.perf_counter(); import sft_recipes; "
        "print(time.perf_counter() - began, *sorted(set(sys.modules) - before))"
    )
    seconds, *modules = python(code).split()
    assert float(seconds) < 0.1
    assert {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names} == {"sft_recipes"}


def test_a_plan_needs_no_torch(project: Path) -> None:
    recommended = "main(['recommend', 'data/train.jsonl', '--gpu', 'cpu', '--set', 'model_name_or_path=model'])"
    python(
        "import sys, sft_recipes as s; s.plan('tiny'); s.load_recipe('tiny'); from sft_recipes.cli import main; "
        f"sys.exit({recommended} or 'torch' in sys.modules)"
    )


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import sft_recipes.plan.job, sft_recipes.evaluate.terms; from sft_recipes.train import process",
        "from sft_recipes import plan; from sft_recipes.plan import job",
    ],
)
def test_a_wing_and_the_function_of_its_name_are_one(project: Path, first: str) -> None:
    """Whoever was imported first, `sft_recipes.plan` is asked for plans, and its modules are where they were."""
    code = (
        f"{first}\nimport sft_recipes, inspect\nfrom sft_recipes import plan\nimport sft_recipes.plan.gpus as gpus\n"
        "assert plan is sft_recipes.plan and gpus.find('h200')\n"
        "assert list(inspect.signature(plan).parameters)[:2] == ['recipe', 'overrides']\n"
        "try: plan('tinny')\nexcept sft_recipes.InputError as refused: print('tiny' in str(refused))\n"
        "print(callable(sft_recipes.train), callable(sft_recipes.evaluate))"
    )
    assert python(code).split() == ["True"] * 3


def test_everything_that_is_offered_is_there() -> None:
    assert all(getattr(sft_recipes, name) for name in sft_recipes.__all__)
    assert set(sft_recipes.__all__) <= set(dir(sft_recipes))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = sft_recipes.trian


def test_a_plan_is_an_object_and_a_table(project: Path) -> None:
    text = TINY.replace("A tiny model on a CPU.", json.dumps("".join(filter(str.isprintable, HOSTILE))))
    (project / "recipes" / "hostile.yaml").write_text(text)
    plan = sft_recipes.plan("recipes/hostile.yaml", {"learning_rate": 1e-3})
    assert plan.schedule["steps"] == plan["schedule"]["steps"] == 8
    assert repr(plan).startswith("<Plan of hostile on cpu: 8 steps, 0 of ") and "schedule" in dir(plan)
    assert "\nschedule   8 steps" in str(plan)
    table = plan._repr_html_()
    assert "<script>" not in table and "\x1b" not in table and "&lt;script&gt;alert(1)" in table
    assert table.count("<tr>") == len([*plan.lines()])
    with pytest.raises(AttributeError, match="Plan has no steps"):
        _ = plan.steps


def test_overrides_model_and_data_are_as_on_the_command_line(project: Path) -> None:
    write_rows(project / "mine.jsonl", alpaca_rows(16, seed=3))
    recipe = sft_recipes.load_recipe("tiny", {"lora_r": 4}, model="qwen3_4b", data=Path("mine.jsonl"))
    assert (recipe["lora_r"], recipe["model_name_or_path"], recipe["train_file"]) == (
        4,
        "Qwen/Qwen3-4B",
        "mine.jsonl",
    )
    assert recipe.values["lora_r"].origin == "SET"
    assert repr(recipe) == "Recipe('tiny': A tiny model on a CPU.)"
    assert sft_recipes.plan("tiny", data=Path("mine.jsonl")).data["train"]["rows_read"] == 13


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda: sft_recipes.plan("tiny", {"lora_rank": 8}), "lora_rank"),
        (lambda: sft_recipes.plan("nothing"), "no recipe 'nothing'"),
        (lambda: sft_recipes.train("tiny", {"global_batch_size": 7}), "global_batch_size 7 is not reachable"),
        (lambda: sft_recipes.train("tiny", name="a/b"), "is no run name"),
        (lambda: sft_recipes.load_run("none"), "no run 'none'"),
        (lambda: sft_recipes.load_run("elsewhere/none"), "elsewhere/none is no run's directory"),
        (lambda: sft_recipes.compare([]), "name at least two runs"),
    ],
)
def test_wrong_input_is_an_exception_with_all_problems(project: Path, call: Callable[[], Any], wrong: str) -> None:
    with pytest.raises(sft_recipes.InputError, match=re.escape(wrong)) as refused:
        call()
    assert refused.value.problems
    assert not Path("runs").exists()


def test_an_unfinished_run_can_be_looked_at(project: Path) -> None:
    run = launch.create(jobs.check("tiny"), "begun")
    run.update(status="failed", error=HOSTILE)
    run.log.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    found = sft_recipes.load_run(run.directory)
    assert (found.status, found.metrics, found.predictions, found.split) == ("failed", None, None, None)
    assert found.log.to_dict("records") == [{"step": 1, "loss": 2.5}]
    assert (found.recipe["lora_r"], found.recipe["global_batch_size"]) == (8, 8)
    assert repr(found) == "<Run runs/begun: tiny, failed>"
    assert "<script>" not in found._repr_html_()
    with pytest.raises(sft_recipes.InputError, match="is failed, not finished"):
        sft_recipes.load_model(found)


@pytest.mark.parametrize(("status", "code"), [("interrupted", 3), ("failed", 1), ("finished", 1), ("finished", 3)])
def test_how_a_run_ended_is_an_exception(
    project: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    def train(*arguments: Any, **options: Any) -> Any:
        run = launch.create(jobs.check("tiny"), "ended")
        run.update(status=status, error="no memory")
        return code, run

    monkeypatch.setattr(launch, "train", train)
    expected: Any = sft_recipes.TrainingFailed if status == "failed" else sft_recipes.EvaluationFailed
    with pytest.raises(sft_recipes.Interrupted if code == 3 else expected) as raised:
        sft_recipes.train("tiny")
    assert raised.value.run.name == "ended" and "runs/ended" in str(raised.value)
    if code == 3:
        assert ("resume=True" if status == "interrupted" else "evaluate('ended')") in str(raised.value)


def test_what_a_child_says_is_passed_on_where_stdout_is_no_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.create(jobs.check("tiny"), "noted")
    code = (
        "import sys; from pathlib import Path; from sft_recipes.runs.run import Run\n"
        "print('from the child', flush=True)\n"
        f"print('its errors', file=sys.stderr); Run(Path({str(run.directory)!r})).update(status='failed', error='x')"
    )
    monkeypatch.setattr(processes, "command", lambda run, place: [sys.executable, "-c", code])
    notebook = Notebook()
    monkeypatch.setattr(sys, "stdout", notebook)
    with run.locked():
        assert launch.launch(run) == launch.FAILED
    assert notebook.getvalue() == "from the child\nits errors\n"


def test_a_program_that_cannot_be_started_leaves_no_running_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.create(jobs.check("tiny"), "lost")
    monkeypatch.setattr(processes, "command", lambda run, place: ["/no/such/program"])
    with run.locked():
        assert launch.launch(run) == launch.FAILED
    assert run.facts()["status"] == "failed" and "/no/such/program" in run.facts()["error"]


def test_a_notebook_s_drawing_module_need_not_be_installed() -> None:
    code = (
        "import os; os.environ['MPLBACKEND'] = 'module://no_such_inline.backend'; "
        "from sft_recipes.report import charts\nwith charts.figure(1, 1, (2, 2)): pass\n"
        "import matplotlib.pyplot"
    )
    python(code)


def test_a_table_holds_text_alone() -> None:
    assert as_table([("a", "1 < 2\nb")]).endswith('<td style="text-align:left">1 &lt; 2<br>b</td></tr></table>')


@pytest.mark.long
@pytest.mark.slow
def test_the_examples_of_the_page_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, scoring_here: Any
) -> None:
    """The demo here is the tiny model; the kernel has an environment of its own."""
    task = "task: classification\ntest_file: data/validation.jsonl\nload_in_4bit: false\n"
    (project / "recipes" / "demo.yaml").write_text(TINY + task)
    write_rows(project / "data" / "validation.jsonl", alpaca_rows(40, seed=2))
    monkeypatch.setenv("MPLBACKEND", "module://no_such_inline.backend_inline")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, Any] = {}
    # How processes are started and what they say is seen by tests/test_notebook.py; each here would take ten seconds.
    request.getfixturevalue("launch_here")
    with scoring_here():
        for block in blocks:
            exec(compile(block, "docs/api.md", "exec"), names)  # noqa: S102, our own page
    run: RunResult = names["run"]
    assert (run.status, run.split, run.facts["command"]) == ("finished", "test", "from Python")
    assert (run.directory / "loss.png").is_file() and (run.directory / "report.html").is_file()
    assert len(run.predictions) == 40 and set(run.predictions["tuned.prediction"]) <= {"odd", "even"}
    assert "verdict" in run._repr_html_()
    assert repr(names["comparison"]) == "<Comparison of first, second>"
    assert "lora_A" in "".join(name for name, _ in names["model"].named_parameters())
