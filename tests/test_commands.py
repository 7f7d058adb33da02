"""The commands as a user types them: make targets, exit codes, messages, and every command of README.md."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, alpaca_rows, write_rows

from sft_recipes import cli
from sft_recipes.cli import app, main, words
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError
from sft_recipes.launch import launch, processes
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import conflicts, schema, topology
from sft_recipes.recipes.recipe import dump, load

TARGETS = "src/sft_recipes/shipped/commands.mk"
HOSTILE = [
    "x; touch pwned",
    "x' ; touch pwned ; '",
    'x" ; touch pwned ; "',
    "$(touch pwned)",
    "`touch pwned`",
    "$(shell touch pwned)",
    "../../etc/passwd",
    "/etc/passwd",
    "-h",
]


def make(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run make with this environment's Python as the active one, so that nothing is installed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment["VIRTUAL_ENV"] = sys.prefix
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project with the Makefile; the environment counts as installed, as it is."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", TARGETS):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    stamp = Path(sys.prefix) / ".sft-recipes"
    if not stamp.exists() or stamp.stat().st_mtime < (project / "pyproject.toml").stat().st_mtime:
        stamp.touch()
    return project


def test_help_names_every_target_in_one_line(checkout: Path) -> None:
    said = make("help", cwd=checkout).stdout
    written = (ROOT / "Makefile").read_text() + (ROOT / TARGETS).read_text()
    targets = set(re.findall(r"^([a-z][a-z_%-]*):", written, flags=re.MULTILINE))
    assert targets == set(re.findall(r"^  make (\S+) +\S", said, flags=re.MULTILINE))


def test_list_shows_each_recipe_with_its_idea(checkout: Path) -> None:
    said = make("list", cwd=checkout)
    assert said.returncode == 0, said.stderr
    names = [line.split()[0] for line in said.stdout.splitlines()]
    assert names[0] == "default"
    here, shipped = ({path.stem for path in (each / "recipes").glob("*.yaml")} for each in (checkout, ROOT))
    assert set(names) == here | shipped and here - shipped == {"tiny"}
    assert all(len(line.split()) > 4 for line in said.stdout.splitlines())


def received(target: str, variables: dict[str, str], cwd: Path) -> list[str]:
    """The arguments that the program takes from make, with a stub in its place that writes down its environment."""
    stub = cwd / "stub"
    stub.write_text("#!/bin/sh\nprintf '%s ' \"$@\" > received\nenv -0 > handed\n")
    stub.chmod(0o755)
    given = [f"{key}={value}" for key, value in variables.items()]
    done = make(target, *given, f"PROGRAM={stub}", cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (cwd / "received").read_text() == f"--make {target} "
    handed = dict(each.split("=", 1) for each in (cwd / "handed").read_text().split("\0") if each)
    assert variables.items() <= handed.items()
    assert sorted(handed["GIVEN"].split()) == sorted(variables)
    return cli.from_make(target, handed)


def refused_as_data(target: str, variables: dict[str, str], variable: str, cwd: Path, capsys: Any) -> None:
    """Neither make nor the shell reads anything into the variable, and the program refuses what it is given."""
    arguments = received(target, variables, cwd)
    value = variables[variable]
    if variable == "RUNS":
        # Several names, one argument each.
        assert arguments[-len(value.split()) :] == value.split()
    else:
        assert value in [*arguments, *(argument.partition("=")[2] for argument in arguments)]
    assert main(arguments) == 2
    assert "error: " in capsys.readouterr().err
    assert not list(cwd.rglob("pwned"))


@pytest.mark.promise("bad-input", "make variables that a shell or make would run")
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("variable", ["RECIPE", "ACCEL", "NAME", "SET"])
def test_make_variables_are_data(checkout: Path, capsys: pytest.CaptureFixture, variable: str, value: str) -> None:
    refused_as_data("train", {"RECIPE": "tiny", variable: value}, variable, checkout, capsys)
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("plan", "DATA"),
        ("recommend", "DATA"),
        ("plan", "GPU"),
        ("fit", "VRAM"),
        ("preview", "ROWS"),
        ("diff", "A"),
        ("diff", "B"),
        ("audit", "FILE"),
        ("rehearse", "NAME"),
        ("train", "SEEDS"),
        ("evaluate", "RUN"),
        ("report", "RUN"),
        ("compare", "RUNS"),
        ("compare", "OUT"),
        ("leaderboard", "OUT"),
        ("predict", "INPUT"),
        ("merge", "RUN"),
        ("chat", "RUN"),
        ("push", "REPO"),
        ("new", "NAME"),
        ("new", "FROM"),
        ("why", "KEY"),
    ],
)
def test_the_variables_of_other_targets_are_data_too(
    checkout: Path, capsys: pytest.CaptureFixture, target: str, variable: str
) -> None:
    given = {"RECIPE": "tiny", "VRAM": "24", "A": "tiny", "B": "tiny", "ACCEL": "cpu"}
    given |= {"RUN": "no_run", "RUNS": "no_run", "INPUT": "rows.jsonl", "REPO": "org/name", "NAME": "x", "KEY": "seed"}
    given[variable] = "x' ; touch pwned ; '$(shell touch pwned)`touch pwned`"
    read = {each.opts[-1].lstrip("-").upper() for each in cli.program(False).commands[target].params}
    given = {key: value for key, value in given.items() if key in read}
    refused_as_data(target, given, variable, checkout, capsys)


def test_the_program_that_make_starts_refuses_it_too(checkout: Path) -> None:
    said = make("train", "RECIPE=tiny", "NAME=x' ; touch pwned ; '$(shell touch pwned)", cwd=checkout)
    assert said.returncode == 2
    assert said.stderr.startswith("error: NAME=")
    assert "Traceback" not in said.stderr
    assert not list(checkout.rglob("pwned"))


def test_a_hostile_target_is_data_too(checkout: Path) -> None:
    said = make("train-x; touch pwned", cwd=checkout)
    assert said.returncode == 2
    assert not list(checkout.rglob("pwned"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "RECIPE=tiny", "LR=3"], "make plan does not read LR; it reads RECIPE, "),
        (["plan", "RECIPE=tiny", "SEEDS="], "make plan does not read SEEDS"),
        (["train", "RECIP=tiny"], "; did you mean RECIPE?"),
        (["train", "RECIP=tiny"], "make train needs RECIPE=: a name in recipes/"),
        (["train-tiny", "VRAM=24"], "make train does not read VRAM"),
        (["list", "RECIPE=$(shell touch pwned)"], "make list does not read RECIPE"),
        (["types", "RECIPE=tiny"], "make types does not read RECIPE"),
    ],
)
def test_a_variable_that_a_target_does_not_read_stops(checkout: Path, arguments: list[str], expected: str) -> None:
    said = make(*arguments, cwd=checkout)
    assert said.returncode == 2
    assert expected in said.stderr
    assert not (checkout / "runs").exists()
    assert not list(checkout.rglob("pwned"))


def test_variables_of_the_environment_may_be_for_others(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR", "3")
    monkeypatch.setenv("SEEDS", "$(shell touch pwned)")
    assert make("list", cwd=checkout).returncode == 0
    assert not list(checkout.rglob("pwned"))


def test_targets_that_are_made_together_share_their_variables(checkout: Path) -> None:
    said = make("list", "show", "RECIPE=high_capacity", cwd=checkout)
    assert said.returncode == 0, said.stderr
    assert "lora_r: 64" in said.stdout


def test_a_switch_that_is_turned_off_is_off() -> None:
    variables = {"RECIPE": "tiny", "TRACE": "0", "FETCH": "1", "GIVEN": "RECIPE TRACE FETCH"}
    assert cli.from_make("plan", variables) == ["plan", "--fetch", "--", "tiny"]
    variables = {"GIVEN": "NAME FORGET_BEST", "NAME": "x", "FORGET_BEST": "1"}
    assert cli.from_make("resume", variables) == ["resume", "--forget-best", "--", "x"]


def test_default_without_gpus_says_what_is_missing_and_three_ways_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    began = time.perf_counter()
    assert main(["train", "default"]) == 2
    assert time.perf_counter() - began < 3
    said = capsys.readouterr().err
    assert "ddp needs 4 GPUs, 0 are visible" in said
    assert re.findall(r"^  (\d)\. ", said, flags=re.MULTILINE) == ["1", "2", "3"]
    assert not Path("runs").exists()


def test_all_problems_are_reported_together(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_rows(project / "data" / "train.jsonl", [*alpaca_rows(3, 1), {"instruction": "x", "output": ""}])
    words = "per_device_train_batch_size=5 report_to=mlflow model_name_or_path=./nowhere"
    assert main(["train", "tiny", "--set", words, "--accel", "zero3"]) == 2
    said = capsys.readouterr().err
    for fragment in (
        "zero3 needs 4 GPUs",
        "global_batch_size 8 is not reachable",
        "report_to: mlflow is not installed",
        "./nowhere has no config.json",
        "data/train.jsonl:4: output is blank",
    ):
        assert fragment in said


COMMANDS = sorted(cli.program(False).commands)


def test_the_help_has_every_command_in_its_group(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    groups = dict(re.findall(r"^(\S.*):\n((?:  .*\n?)+)", said, flags=re.MULTILINE))
    listed = {name: re.findall(r"^  ([a-z]+) ", lines, flags=re.MULTILINE) for name, lines in groups.items()}
    assert list(listed)[1:] == [
        "Before it costs anything",
        "Train",
        "Is it better",
        "Use it",
        "Recipes",
        "This machine",
    ]
    assert sorted(name for group in [*listed][1:] for name in listed[group]) == COMMANDS
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_what_each_option_means(name: str, capsys: pytest.CaptureFixture) -> None:
    command = cli.program(False).commands[name]
    assert command.help and command.help.endswith(".")
    assert all(parameter.help for parameter in command.params)
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert " ".join(command.help.split()) in " ".join(said.split())
    assert "--json" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "tiny"], "No such command 'trian'. Did you mean 'train'?"),
        (["plan"], "Missing argument 'RECIPE'."),
        (["plan", "tiny", "--acel", "cpu"], "No such option: --acel (Possible options: --accel"),
        (["plan", "tiny", "--gpus", "0"], "the string '0' is not a whole number from 1 to 1000000"),
        (["fit", "tiny"], "Missing option '--vram'."),
        (["evaluate", "run", "--split", "train"], "'train' is not one of 'test', 'validation'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_answered_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert expected in said.err and "--help)" in said.err
    assert main([*arguments, "--json"]) == 2
    assert expected in json.loads(capsys.readouterr().out)["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["show", "high_capasity"], "high_capacity"),
        (["show", "tiny", "--model", "qwen3_8"], "qwen3_8b"),
        (["show", "tiny", "--accel", "zer02"], "zero2"),
        (["resume", "knwn"], "known"),
    ],
)
def test_a_name_that_is_nearly_right_is_told(
    project: Path, arguments: list[str], near: str, capsys: pytest.CaptureFixture
) -> None:
    launch.create(jobs.check("tiny"), "known")
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"(nearest: {near!r})" in said or f"; did you mean {near}?" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sft-recipes pr", "predict preview"),
        ("sft-recipes plan high_capacity", "high_capacity high_capacity_all_linear"),
        ("sft-recipes plan --model qwen3_8", "qwen3_8b"),
        ("sft-recipes train --accel zero3", "zero3 zero3_offload"),
        ("sft-recipes evaluate kn", "known"),
        ("sft-recipes why lora_al", "lora_alpha"),
    ],
)
def test_the_shell_completes_names(project: Path, line: str, expected: str) -> None:
    (project / "runs" / "known").mkdir(parents=True)
    (project / "runs" / "known" / "run.json").write_text("{}")
    variables = {"_SFT_RECIPES_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "sft_recipes"], env=os.environ | variables, capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.split()) == expected.split(), done.stderr


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sft-recipes {version('sft-recipes')}\n"


def test_a_reader_that_has_seen_enough_is_no_error(project: Path) -> None:
    pipeline = f"{shlex.quote(sys.executable)} -m sft_recipes keys | head -n 1"
    done = subprocess.run(["sh", "-c", pipeline], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_ctrl_c_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands.recipes, "names", stopped)
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "error: stopped; nothing half-written is left behind\n"


def test_json_holds_the_same_facts(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", "high_capacity", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert values["lora_r"] == {"value": 64, "origin": "recipes/high_capacity.yaml:3"}
    assert values["gradient_accumulation_steps"]["value"] == 4
    assert main(["list", "--json"]) == 0
    assert "high_capacity" in json.loads(capsys.readouterr().out)
    assert main(["keys", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lora_r"]["types"] == ["int"]
    assert main(["train", "nothing", "--json"]) == 2
    assert "no recipe 'nothing'" in json.loads(capsys.readouterr().out)["problems"][0]


@pytest.mark.parametrize("shown", ["tiny", "high_capacity"])
def test_show_names_the_origin_of_every_value(project: Path, capsys: pytest.CaptureFixture, shown: str) -> None:
    assert main(["show", shown, "--origin", "--set", "seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.search(r"# (recipes/\w+\.yaml:\d+|SET|derived: .+)$", line) for line in lines)
    assert any(line.startswith("seed: 7 ") and line.endswith("# SET") for line in lines)


def test_reasons_stand_beside_origins(checkout: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", "high_capacity", "--why", "--origin"]) == 0
    both = capsys.readouterr().out
    assert re.search(r"^lora_r: 64 +# recipes/high_capacity.yaml:3: \w+", both, flags=re.MULTILINE)
    assert main(["show", "high_capacity", "--why"]) == 0
    assert "high_capacity.yaml:3" not in capsys.readouterr().out
    said = make("show", "RECIPE=high_capacity", "WHY=1", cwd=checkout)
    assert (said.returncode, said.stdout) == (0, both)


def test_the_name_of_a_run_is_never_used_twice(project: Path, capsys: pytest.CaptureFixture) -> None:
    run = launch.create(jobs.check("tiny"), "taken")
    before = sorted(path.name for path in run.directory.iterdir())
    assert main(["train", "tiny", "--name", "taken"]) == 2
    assert "runs/taken exists and is never overwritten" in capsys.readouterr().err
    assert sorted(path.name for path in run.directory.iterdir()) == before


def test_one_process_at_a_time_trains_a_run(project: Path, capsys: pytest.CaptureFixture) -> None:
    run = launch.create(jobs.check("tiny"), "busy")
    with run.locked():
        assert main(["resume", "busy"]) == 2
    assert "is in use by another process" in capsys.readouterr().err


@pytest.mark.promise("same-run", "other rows, a finished run, an unknown one, and resumed")
@pytest.mark.parametrize("change", ["data", "finished", "unknown"])
def test_resume_refuses_what_is_not_the_same_run(project: Path, capsys: pytest.CaptureFixture, change: str) -> None:
    run = launch.create(jobs.check("tiny"), "known")
    if change == "data":
        write_rows(project / "data" / "train.jsonl", alpaca_rows(64, seed=9))
    if change == "finished":
        run.update(status="finished")
    assert main(["resume", "known" if change != "unknown" else "other"]) == 2
    expected = {
        "data": "have changed",
        "finished": "is finished",
        "unknown": "no run 'other' in runs/; there are known",
    }
    assert expected[change] in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on the loopback that answers as the Hub does for two models, and the commit that it names."""
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith(("/api/models/Qwen/Qwen3-8B", "/api/models/Qwen/Qwen3-4B"))
            body = json.dumps({"id": "Qwen/Qwen3-8B", "sha": commit} if known else {"error": "not found"}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield commit
    server.shutdown()


@pytest.mark.parametrize(
    ("given", "file", "where"),
    [
        (["default"], "recipes/default.yaml", 'the line "model_revision: main"'),
        (["high_capacity"], "recipes/high_capacity.yaml", "the end"),
        (["mine"], "recipes/mine.yaml", "below the model"),
        (["high_capacity", "--model", "qwen3_4b"], "models/qwen3_4b.yaml", 'the line "model_revision: main"'),
    ],
)
def test_pin_writes_the_commit_that_the_hub_names(
    project: Path, hub: str, given: list[str], file: str, where: str
) -> None:
    line = f"model_revision: {hub}"
    (project / "recipes/mine.yaml").write_text("extends: default\nmodel_name_or_path: Qwen/Qwen3-4B\nlora_r: 8\n")
    before = {path: path.read_text().splitlines() for path in project.glob("*/*.yaml")}
    assert main(["pin", *given]) == 0
    after = {path: path.read_text().splitlines() for path in before}
    changed = project / file
    assert {path for path in before if before[path] != after[path]} == {changed}
    if where == "the end":
        assert after[changed] == [*before[changed], line]
    elif where == "below the model":
        assert after[changed] == [*before[changed][:2], line, *before[changed][2:]]
    else:
        index = next(i for i, each in enumerate(before[changed]) if each.startswith("model_revision:"))
        assert after[changed] == [*before[changed][:index], line, *before[changed][index + 1 :]]


def test_pin_leaves_the_recipe_alone_when_the_hub_does_not_answer(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    path = project / "recipes" / "default.yaml"
    before = path.read_bytes()
    assert main(["pin", "default"]) == 2
    assert "the Hub does not answer for Qwen/Qwen3-8B" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main(["pin", "tiny"]) == 2
    assert "is not a Hub id" in capsys.readouterr().err


def test_the_launch_command_is_accepted_by_accelerate(project: Path) -> None:
    """For a topology that this machine does not have, as far as one can go without it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    job = jobs.check("tiny", accel="cpu")
    run = launch.create(job, "parsed")
    with run.locked():
        command = processes.command(run)
    assert command[1:3] == ["-m", "sft_recipes.train.accelerate_launch"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    assert (arguments.num_processes, arguments.mixed_precision, arguments.use_cpu) == (1, "no", True)
    assert arguments.training_script == "sft_recipes.train.process"
    assert arguments.training_script_args[0] == "runs/parsed"


def test_export_is_read_by_stock_trl(project: Path) -> None:
    assert main(["export", "tiny", "--out", "plain.yaml", "--accel", "cpu"]) == 0
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
    from trl.scripts.utils import DatasetMixtureConfig

    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, training, model, _ = parser.parse_args_and_config(["--config", "plain.yaml"])
    assert Path(script.dataset_name, "train.jsonl").is_file()
    assert (training.learning_rate, training.gradient_accumulation_steps, model.lora_r) == (0.01, 2, 8)


def test_no_token_is_written_anywhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_3f1c")
    launch.create(jobs.check("tiny"), "quiet")
    assert main(["train", "tiny", "--set", "hub_token=hf_canary_3f1c"]) == 2
    written = [path for path in project.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"hf_canary_3f1c" in path.read_bytes()]


PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """Every command that a page shows, in a block or in a line, without the comment behind it."""
    found = []
    for text in (page.read_text(encoding="utf-8") for page in PAGES):
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        found += [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
        found += re.findall(r"`((?:make|sft-recipes)\s[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [" ".join(command.partition(" #")[0].split()) for command in found]


def test_the_pages_have_commands() -> None:
    assert {"make train RECIPE=demo", "make test", "make train RECIPE=all_linear DATA=my.jsonl"} <= set(
        documented_commands()
    )


@pytest.mark.parametrize("command", sorted(set(documented_commands())))
def test_every_documented_command_reaches_the_program(checkout: Path, command: str) -> None:
    """Each target exists and each argument is one that the program takes; the demo itself is trained elsewhere."""
    program, *arguments = shlex.split(command)
    if program == "docker":
        # No image is built here; what follows its name is for the program.
        program, *arguments = arguments[arguments.index("sft-recipes") :] if arguments[0] == "run" else [program]
        assert arguments or "--tag sft-recipes ." in command
    if program == "docker":
        assert (ROOT / "Dockerfile").is_file()
    elif program == "make":
        done = make("--dry-run", *arguments, cwd=checkout)
        assert done.returncode == 0, done.stderr
        target, *given = arguments
        variables = dict(each.split("=", 1) for each in given)
        if target.startswith("train-"):
            target, variables["RECIPE"] = "train", target.removeprefix("train-")
        # A target without variables is spoken of, rather than called.
        if variables and target in cli.program(False).commands:
            for name in " ".join(variables.get(key, "") for key in ("RUN", "RUNS", "NAME")).split():
                (checkout / "runs" / name).mkdir(parents=True)
                (checkout / "runs" / name / "run.json").write_text("{}")
            taken = cli.from_make(target, variables | {"GIVEN": " ".join(variables)})
            cli.program(False).commands[target].make_context(target, taken[1:])
    elif program == "pip":
        # Installed from a wheel, in tests/test_package.py.
        assert arguments == ["install", "."] and (ROOT / "pyproject.toml").is_file()
    elif arguments[0] == "train":
        cli.program(False).commands["train"].make_context("train", arguments[1:])
    else:
        assert main(arguments) == 0


def spoken_of() -> dict[str, set[str]]:
    """The targets that messages, rules, evidence and recipes speak of with variables, and those variables."""
    found: dict[str, set[str]] = {}
    for folder in ("src", "recipes", "models", "accelerate_configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html", ".md", ".mk"):
                for target, given in re.findall(
                    r"\bmake ([a-z]+)((?: [A-Z_]+=\S*)+)", path.read_text(encoding="utf-8")
                ):
                    found.setdefault(target, set()).update(re.findall(r"(?: |^)([A-Z_]+)=", given))
    return found


def test_messages_name_targets_and_variables_that_there_are() -> None:
    found = spoken_of()
    assert {"resume", "evaluate", "train", "fit", "plan", "pin", "compare"} <= found.keys()
    for target, variables in found.items():
        assert variables <= app.parameters(target).keys(), target


@pytest.mark.parametrize(
    ("said", "spelt"),
    [
        ("finish it first: make resume NAME=first", "finish it first: sft-recipes resume first"),
        ("choose ACCEL=ddp, or SET=load_in_4bit=false", "choose --accel ddp, or --set load_in_4bit=false"),
        ("make compare RUNS='a b'; make rules", "sft-recipes compare a b; sft-recipes rules"),
        ("make evaluate RUN=a BASE=1 SET='x=1 y=2'.", "sft-recipes evaluate a --base --set 'x=1 y=2'."),
        ("make fit RECIPE=default GPUS=4 VRAM=24 finds it", "sft-recipes fit default --gpus 4 --vram 24 finds it"),
        ("make one with HF_TOKEN=x, or make resume RECIPE=x", "make one with HF_TOKEN=x, or make resume RECIPE=x"),
    ],
)
def test_without_make_the_program_speaks_of_its_own_commands(said: str, spelt: str) -> None:
    assert words.of_the_program(said) == spelt


def test_the_words_are_of_whoever_asks(checkout: Path) -> None:
    launch.create(jobs.check("tiny"), "taken")
    command = [sys.executable, "-m", "sft_recipes", "train", "tiny", "--name", "taken"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "sft-recipes resume taken" in done.stderr and "make " not in done.stderr
    assert "make resume NAME=taken" in make("train", "RECIPE=tiny", "NAME=taken", cwd=checkout).stderr


def test_pages_show_what_the_scripts_write() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import guide_tables
    import update_pages

    directory = Path.cwd()
    os.chdir(ROOT)
    try:
        for page in update_pages.PAGES:
            assert update_pages.render(page) == (ROOT / page).read_text(encoding="utf-8"), page
        rows = guide_tables.reference_rows().read_text(encoding="utf-8").splitlines()
        tokens = [len(row["prompt"] + row["completion"]) / 4 for row in map(json.loads, rows)]
        assert abs(sum(tokens) / len(tokens) - guide_tables.MEAN) < 2
        assert update_pages.rules_page() == (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    finally:
        os.chdir(directory)


def gpu_run(name: str) -> launch.Run:
    """A run that says it is on GPUs, without one."""
    run, chosen = launch.create(jobs.check("tiny"), name), topology.read(name, "a test", processes=1)
    run.accelerate.write_text(dump(chosen.config))
    run.update(topology=chosen.facts())
    return run


@pytest.mark.parametrize(
    ("visible", "accel", "expected"),
    [(None, "single_gpu", "0"), ("2,3", "single_gpu", "2"), ("2,3", "ddp", "2,3"), (None, "ddp", None)],
)
def test_one_process_sees_one_gpu(
    project: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, accel: str, expected: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    variables = processes.environment(gpu_run(accel))
    assert variables.get("CUDA_VISIBLE_DEVICES") == expected
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_every_tracker_of_transformers_is_taken_and_what_it_lacks_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    from sft_recipes.models import loading

    table = schema.DATA["trackers"]
    assert table.keys() == integration_utils.INTEGRATION_TO_CALLBACK.keys()
    cpu = topology.read("cpu", "a test")
    here = {"tensorboard"}
    for name, about in table.items():
        for variable in (*about.get("needs", ()), about.get("requires", "")):
            monkeypatch.delenv(variable, raising=False)
        found = [*map(str, conflicts.missing_tools(load("tiny", {"report_to": ["tensorboard", name]}), cpu))]
        if name in here:
            assert found == []
        elif about["modules"]:
            (said,) = found
            assert f"report_to: {name} is not installed; run " in said and f"pip install {about['pip']}, or" in said
        else:
            (said,) = found
            assert (
                said
                == f"report_to: {name} needs {about['requires']}, which is not set; export it, or set report_to: none"
            )
    # What it asks for beyond its package is said in its own words, before training.
    refused = pytest.raises(InputError, match="report_to: refused by transformers: CometCallback requires comet-ml")
    with refused, loading.refusals():
        integration_utils.CometCallback()


def test_an_optimizer_in_host_memory_needs_a_compiler(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not [*conflicts.missing_tools(load("tiny"), topology.read("zero3", "a test"), compilers=False)]
    (refusal,) = conflicts.missing_tools(load("tiny"), topology.read("zero3_offload", "a test"), compilers=False)
    assert "finds no C++ compiler; install one (apt-get install g++), or choose ACCEL=zero3" in str(refusal)


def test_an_optimizer_in_host_memory_gets_its_share_of_the_cores(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for name, threads in (("zero3", None), ("zero3_offload", "16")):
        assert processes.environment(gpu_run(name)).get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    "values",
    [{}, {"torch_compile": True}, {"torch_compile_mode": "default"}, {"attn_implementation": "flex_attention"}],
)
def test_what_trains_on_the_cpu_imports_no_compiler_unless_it_compiles(
    project: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    run = launch.create(jobs.check("tiny"), "here")
    run.recipe.write_text(dump(run.values() | values))
    assert processes.environment(run).get("TORCHDYNAMO_DISABLE") == (None if values else "1")
    assert "TORCHDYNAMO_DISABLE" not in processes.environment(gpu_run("single_gpu"))


def test_processes_find_ninja_beside_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ninja").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/no/such/directory")
    found = shutil.which("ninja", path=quiet_environment(on_cpu=False)["PATH"])
    assert found == str(tmp_path / "ninja")


def test_a_gpu_without_what_triton_needs_is_refused_before_the_first_step(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An installed Triton is one that can be found; here it is not imported.
    (project / "site" / "triton").mkdir(parents=True)
    (project / "site" / "triton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(project / "site")
    monkeypatch.setattr("sysconfig.get_path", lambda *names: str(project / "include"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(project / "bin"))
    tiny, single = load("tiny"), topology.read("single_gpu", "a test")
    compiler, headers = map(str, conflicts.missing_tools(tiny, single))
    assert "finds no C compiler; install one (apt-get install gcc)" in compiler
    assert f"{project / 'include'} has no Python.h; install them (apt-get install python3." in headers
    assert [*conflicts.missing_tools(tiny, topology.read("cpu", "a test"))] == []
    # Where the GPUs are another machine's, so are the compilers.
    assert {each.rule for each in conflicts.of_machine(tiny, single, [], {})} == {"devices-missing"}
    (project / "include").mkdir()
    (project / "include" / "Python.h").touch()
    (project / "bin").mkdir()
    (project / "bin" / "gcc").touch(mode=0o755)
    assert [*conflicts.missing_tools(tiny, single)] == []
