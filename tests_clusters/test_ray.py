"""A run and a sweep on a real Ray cluster, which is this machine with two cores."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, facts, free_ports, program, said, step, until

from sft_recipes.runs import lock

TOOL = ROOT / ".cache" / "tools" / "ray" / "bin"
STEPS, LONGER = 12, 60
SETTINGS = (
    f"max_steps={STEPS} per_device_train_batch_size=8 logging_steps=1 eval_on_start=false task=null test_file=null "
    "group_column=null save_strategy=steps save_steps=6 eval_strategy=steps eval_steps=6"
)
OVER = "learning_rate=1e-3,2e-3 lora_r=8,16"
FOUR = [f"grid-t00{number}" for number in range(4)]


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where a cluster takes jobs, which has a site of the name `ray` and lives as long as the tests."""
    if not (TOOL / "ray").exists():
        pytest.skip("make test-clusters installs Ray")
    # Jobs run sft-recipes, and python is the one that has Ray.
    os.environ["PATH"] = f"{TOOL}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    gcs, dashboard, client = free_ports(3)
    address = f"http://127.0.0.1:{dashboard}"
    site = {"engine": "ray", "address": address, "shared": str(project), "grace_seconds": 120}
    (project / "clusters" / "ray.yaml").write_text(yaml.safe_dump(site))
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--disable-usage-stats"]
    # Where the machine is busy, Ray gives up after half a minute.
    for _ in range(3):
        # Its sockets allow no long names.
        folder = Path(tempfile.mkdtemp(prefix="ray"))
        with (folder / "said").open("w") as output:
            cluster = subprocess.Popen([*command, f"--temp-dir={folder}/ray"], stdout=output, stderr=output)
        started = functools.partial(_says_it_started, folder / "said")
        until(lambda cluster=cluster, started=started: started() or cluster.poll() is not None, 180)
        if cluster.poll() is None:
            break
        shutil.rmtree(folder)
    try:
        yield address
    finally:
        cluster.terminate()
        cluster.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _says_it_started(output: Path) -> bool:
    return "Ray runtime started" in output.read_text()


def launched(project: Path, name: str, settings: str) -> str:
    words = ("launch", "demo", "--on", "ray", "--site", "ray", "--accel", "cpu", "--name", name, "--set", settings)
    return program(project, *words).partition("submitted  job ")[2].partition("\n")[0]


def test_a_stopped_run_keeps_a_checkpoint_and_goes_on(address: str, project: Path) -> None:
    # Those of a trial are over before `ray job stop` has begun.
    longer = SETTINGS.replace(f"max_steps={STEPS}", f"max_steps={LONGER}")
    number = launched(project, "stopped", longer)
    until(lambda: step(project, "stopped") > 2, 200)
    assert "is being trained" in program(project, "status", "stopped")
    said("ray", "job", "stop", f"--address={address}", number.rpartition("/")[2])
    assert facts(project, "stopped")["status"] == "interrupted"
    told = program(project, "status", "stopped")
    assert f"job        {number} of ray: stopped" in told and ", checkpoint-" in told
    subprocess.run([sys.executable, "-m", "sft_recipes", "resume", "stopped"], cwd=project, check=True)
    assert facts(project, "stopped")["measured"]["step"] == LONGER
    assert "stopped    kept checkpoint-" in program(project, "logs", "stopped")
    assert not list(project.parent.rglob("pwned"))


def test_a_killed_trial_is_named_and_done_again_and_the_others_go_on(
    address: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    words = ["sweep", "demo", "--over", OVER, "--on", "ray", "--site", "ray", "--accel", "cpu", "--name", "grid"]
    words += ["--set", SETTINGS]
    told = program(project, *words)
    number = told.partition("submitted  job ")[2].partition(",")[0]
    assert f"job {number}, 4 trials" in told
    until(lambda: step(project, FOUR[1]), 300)
    # A core each of two.
    assert [step(project, name) for name in FOUR[2:]] == [0, 0]
    (pid,) = lock.ranks(Path("runs") / FOUR[1])
    os.kill(pid, signal.SIGKILL)
    until(lambda: "of ray: failed" in program(project, "status", FOUR[3]), 600)
    assert [facts(project, name)["status"] for name in FOUR] == ["finished", "failed", "finished", "finished"]
    assert f"not finished: {FOUR[1]} (1)" in program(project, "status", FOUR[1])
    told = program(project, *words)
    assert f"failed     {FOUR[1]} has not finished" in told and "was killed by SIGKILL" in told
    assert ", 1 trial; ray job stop" in told
    until(lambda: facts(project, FOUR[1])["status"] == "finished", 300)
    told = program(project, *words)
    assert "best       grid-t00" in told and "submitted" not in told
    trials = json.loads((project / "runs/grid.sweep/sweep.json").read_text())["trials"]
    assert [each["state"] for each in trials] == ["finished"] * 4
    # Each was trained once, but the one that was killed.
    assert [len(facts(project, name).get("resumed", [])) for name in FOUR] == [1, 2, 1, 1]
    assert not list(project.parent.rglob("pwned"))


def test_what_cannot_be_reached_is_one_message(address: str, project: Path) -> None:
    (port,) = free_ports(1)
    site = {"engine": "ray", "address": f"http://127.0.0.1:{port}", "shared": str(project)}
    (project / "clusters" / "nowhere.yaml").write_text(yaml.safe_dump(site))
    words = ("launch", "demo", "--on", "ray", "--site", "nowhere", "--accel", "cpu", "--name", "no", "--set", SETTINGS)
    told = program(project, *words, code=2)
    assert told.count("error: ") == 1
    assert "error: Ray refuses the job: Failed to connect to Ray at address: http://127.0.0.1:" in told
    assert not (project / "runs" / "no").exists()
