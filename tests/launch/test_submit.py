"""Jobs for other machines: planned, written and refused, without any engine (tests_clusters has a real one)."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import alpaca_rows, write_rows

from sft_recipes import cli
from sft_recipes.launch import launch, processes, slurm, submit
from sft_recipes.recipes import clusters, editor
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import Run

HOSTILE = 'it\'s $(touch pwned) "a" `touch pwned`; touch pwned \\ %j'


def job(name: str, *arguments: str) -> dict[str, Any]:
    """The run.json of a dry run on SLURM of that name."""
    assert cli.main(["launch", *arguments, "--on", "slurm", "--dry", "--name", name]) == 0
    return Run.open(name).facts()


def options(text: str) -> list[str]:
    return [word for line in text.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]


def executed(text: str, project: Path, **variables: str) -> list[list[str]]:
    """The words that srun and module are called with, and those of scontrol, when a shell runs a job file."""
    tools = project / "tools"
    tools.mkdir()
    for tool, code in {"srun": 3, "scontrol": 0, "module": 0}.items():
        stub = f"#!/bin/sh\nprintf '%s\\0' {tool} \"$@\" >> called; printf '\\n\\0' >> called; exit {code}\n"
        (tools / tool).write_text(stub)
        (tools / tool).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", **variables}
    done = subprocess.run(["bash", "-s"], input=text, text=True, env=environment, cwd=project, capture_output=True)
    assert (done.returncode, done.stderr) == (3, "")
    calls = (project / "called").read_text().split("\n\0")
    return [call.removesuffix("\0").split("\0") for call in calls if call]


def test_a_job_is_planned_for_all_its_processes_and_written_beside_the_recipe(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    (project / "clusters").mkdir()
    site = "engine: slurm\ngpus_per_node: 4\nnetwork_gigabits: 8\npartition: gpu\ncpus_per_node: 16\n"
    (project / "clusters" / "ours.yaml").write_text(site)
    words = ["tiny", "--site", "ours", "--accel", "ddp", "--nodes", "2", "--set", "global_batch_size=32 bf16=true"]
    facts = job("two", *words)
    said = capsys.readouterr().out
    assert facts["topology"] == {"name": "ddp", "backend": "ddp", "processes": 8, "zero_stage": None, "use_cpu": False}
    assert facts["status"] == "interrupted"
    wanted = {"engine": "slurm", "site": "ours", "nodes": 2, "processes_per_node": 4, "id": None}
    assert facts["job"] == wanted
    assert "4 per device x 8 processes x 1 accumulation = 32 rows a step" in said
    assert re.search(r"traffic    each process sends [\d.]+ [KM]iB in a step, which takes at least [\de.-]+ s", said)
    text = Path("runs/two/job.sbatch").read_text()
    assert text in said and "nothing is submitted; sbatch runs/two/job.sbatch does it" in said
    asked = options(text)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--partition=gpu", "--requeue"} <= set(asked)
    assert {"--cpus-per-task=16", "--signal=USR1@300", f"--chdir={project}"} <= set(asked)
    # What is configured is what accelerate is told, and no config knows of machines.
    assert "num_machines: 1" in Path("runs/two/accelerate.yaml").read_text()
    run = Run.open("two")
    with run.locked(1):
        command = processes.command(run, processes.place(2, 1, "n1:29500"))
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    given, _, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    assert (given.num_machines, given.machine_rank, given.num_processes) == (2, 1, 8)
    assert (given.main_process_ip, given.main_process_port, given.rdzv_backend) == ("n1", 29500, "static")
    assert cli.main(["status", "two"]) == 0
    assert "written for slurm, and started by hand" in capsys.readouterr().out
    assert cli.main(["logs", "two"]) == 2
    assert "runs/two: no job has written anything yet" in capsys.readouterr().err


def test_nothing_that_a_site_or_a_path_says_is_run(project: Path) -> None:
    site = Site("x", {"modules": [HOSTILE], "partition": HOSTILE, "gpu_type": "a100", "network_interface": "ib0"})
    run = launch.create(submit._job("tiny", 1, site, {"accel": "cpu"})[0], "hostile")
    folder = project / HOSTILE
    text = slurm.script(run, site, folder, 2, 8, 5400.0)
    assert {f"--partition={HOSTILE}", f"--chdir={folder}", "--time=90", "--gpus-per-node=a100:8"} <= set(options(text))
    calls = executed(text, project, SLURM_RESTART_COUNT="2")
    assert calls[0] == ["module", "load", HOSTILE]
    assert calls[1][:6] == ["srun", "--export=ALL", "--kill-on-bad-exit=1", "bash", "-c", slurm.ON_EACH_NODE]
    assert calls[1][6:] == ["bash", sys.executable, "-m", "sft_recipes", "resume", "hostile", "--machines", "2"]
    # It has ended with 3, so it goes on.
    assert calls[2:] == [["scontrol", "requeue", "12345"]]
    place = {"SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "PORT": "22347", "AGAIN": "again"}
    done = subprocess.run(
        ["bash", "-c", slurm.ON_EACH_NODE, "bash", "printf", "%s\\n", HOSTILE],
        env=place | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [HOSTILE, "--machine", "1", "--head", "10.0.0.1:22347"]
    # Told to stop, by a signal to the shell too, the first node ends with 0, so that srun ends no other for it.
    stopped = ["bash", "-c", slurm.ON_EACH_NODE, "bash", "sh", "-c", "kill -USR1 $PPID; exit 3", "sh"]
    assert subprocess.run(stopped, env=place | {"PATH": os.environ["PATH"]}).returncode == 0
    assert (project / "again").exists()
    for container in ("apptainer", "pyxis"):
        image = Site("x", {"container": container, "container_image": HOSTILE})
        words = shlex.split(slurm.script(run, image, folder, 1, 8, None).partition("\nsrun ")[2].partition("\n")[0])
        assert words[-3:] == ["sft-recipes", "resume", "hostile"]
        assert HOSTILE in words if container == "apptainer" else f"--container-image={HOSTILE}" in words
    (_, command), (_, other) = submit.commands(run, Site("x", {"hosts": ["a", "b"]}), folder, 2)
    # A shell reads it as these words.
    assert shlex.split(command)[:3] == ["cd", str(folder), "&&"]
    assert shlex.split(other)[-4:] == ["--machine", "1", "--head", "a:29500"]
    assert not list(project.rglob("pwned"))


def test_a_port_that_another_job_of_the_node_has_is_not_taken() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        taken = first.getsockname()[1]
        # The shell's arithmetic takes a job's number, which begins at 20000 here.
        environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": str((taken - 20000) % 10000)}
        text = slurm.PORT.replace("20000", str(taken - (taken - 20000) % 10000))
        done = subprocess.run(["bash", "-c", f"{text}; echo $PORT"], env=environment, capture_output=True, text=True)
    assert int(done.stdout) > taken and not done.stderr


def test_a_longer_training_than_a_job_may_take_is_continued(project: Path) -> None:
    planned = {"time": {"seconds": [3600.0, 36000.0]}}
    assert submit.time_limit({"time": None}, Site(None, {})) == (None, 1)
    assert submit.time_limit({"time": None}, Site("x", {"max_hours": 2})) == (7200.0, 1)
    assert submit.time_limit(planned, Site("x", {"max_hours": 24})) == (1.5 * 36000 + 900, 1)
    # 15 hours with the margin, in jobs of 4 hours, a third of an hour of each of which trains nothing.
    assert submit.time_limit(planned, Site("x", {"max_hours": 4})) == (14400.0, 5)


def test_a_job_is_refused_as_a_whole_where_it_cannot_be_submitted(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (project / "clusters").mkdir()
    site = "engine: slurm\nshared: {}\nenvironment: [NO_SUCH_VARIABLE]\n"
    (project / "clusters" / "ours.yaml").write_text(site.format("/no such folder"))
    monkeypatch.setenv("PATH", "/nowhere")
    write_rows(project / "data" / "train.jsonl", [*alpaca_rows(3, 1), {"instruction": "x", "output": ""}])
    words = ["launch", "tiny", "--on", "slurm", "--accel", "ddp", "--gpus", "3", "--site", "ours"]
    words += ["--set", "bf16=true"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    for fragment in (
        "sbatch is not in PATH; launch on a machine that submits SLURM jobs, or write the job alone with DRY=1",
        "clusters/ours.yaml: shared: there is no folder /no such folder on this machine",
        "clusters/ours.yaml: environment: NO_SUCH_VARIABLE is not set here; export it, or take it out",
        "global_batch_size 8 is not reachable with per_device_train_batch_size 4 on 3 processes",
        "data/train.jsonl:4: output is blank",
    ):
        assert said.count(fragment) == 1
    assert said.count("error: ") == 5 and not Path("runs").exists()
    (project / "clusters" / "ours.yaml").write_text(site.format(project / "clusters"))
    assert f"{project.resolve()} is not in {project / 'clusters'}" in "".join(
        submit._missing("torchrun", clusters.read("ours", "slurm"))
    )


def test_what_sbatch_refuses_is_one_message_and_leaves_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tools = project / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid account' >&2; exit 1\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert cli.main(["launch", "tiny", "--on", "slurm", "--accel", "cpu", "--name", "no"]) == 2
    said = capsys.readouterr().err
    assert said == "error: SLURM refuses the job: invalid account; nothing was submitted\n"
    assert not Path("runs/no").exists()
    (tools / "sbatch").write_text("#!/bin/sh\necho \"$@\" >> asked; echo '77;cluster'\n")
    words = ["launch", "tiny", "--on", "slurm", "--accel", "cpu", "--name", "yes", "--seeds", "7 8"]
    assert cli.main([*words, "--set", "seed=1"]) == 2
    assert capsys.readouterr().err == "error: SET: seed is what SEEDS sets; leave it out of SET\n"
    assert cli.main(words) == 0
    files = [f"runs/yes-seed{seed}/job.sbatch" for seed in (7, 8)]
    assert Path("asked").read_text() == "".join(f"--parsable {file}\n" for file in files)
    assert Run.open("yes-seed8").facts()["job"]["id"] == "77"
    assert [Run.open(f"yes-seed{seed}").values()["seed"] for seed in (7, 8)] == [7, 8]
    said = capsys.readouterr().out
    assert "submitted  job 77" in said and "make compare RUNS='yes-seed7 yes-seed8'" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--machines", "2", "--machine", "2", "--head", "a:1"], "MACHINE=2: 2 machines are 0 to 1"),
        (
            ["--machines", "2"],
            "MACHINES=2 meet nowhere; write where the others reach machine 0, such as HEAD=node1:29500",
        ),
        (["--machines", "2", "--head", "a"], "HEAD=a is no HOST:PORT"),
        (["--machines", "2", "--head", "a:99999"], "HEAD=a:99999 is no HOST:PORT"),
        (["--machines", "3", "--head", "a:1"], "MACHINES=3: 2 processes cannot be as many on each"),
        (
            ["--machines", "2", "--machine", "1", "--head", "a:1"],
            "has 0 visible GPUs, and ddp on 2 machines needs",
        ),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], expected: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job("placed", "tiny", "--accel", "ddp", "--gpus", "2", "--set", "bf16=true")
    capsys.readouterr()
    assert cli.main(["resume", "placed", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_starts_that_take_no_step_come_to_an_end(project: Path, capsys: pytest.CaptureFixture) -> None:
    job("stuck", "tiny", "--accel", "cpu")
    run = Run.open("stuck")
    run.update(launches=[{"from_step": 4, "to_step": 4, "seconds": 1.0}] * launch.STARTS)
    capsys.readouterr()
    assert cli.main(["resume", "stuck"]) == 2
    assert "5 starts of its job in a row took no step" in capsys.readouterr().err


def test_an_editor_marks_what_a_site_may_not_say() -> None:
    schema = editor.of("cluster")
    for key, value in {"partion": "a", "gpus_per_node": 0, "environment": ["A=b"], "engine": "sky"}.items():
        assert not jsonschema.Draft7Validator(schema).is_valid({"engine": "slurm", key: value})
        assert clusters.problem(key, value)
    assert all(len(each["description"]) > 20 for each in schema["properties"].values())
