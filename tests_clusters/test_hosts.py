"""torchrun on two hosts, which are two network namespaces: they meet, one is cut off, and the run goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import facts, program, step, until

ADDRESSES = {"sft-a": "10.77.0.1", "sft-b": "10.77.0.2"}
STEPS = 40
SETTINGS = (
    f"max_steps={STEPS} per_device_train_batch_size=8 logging_steps=1 eval_on_start=false task=null test_file=null "
    "group_column=null ddp_timeout=20 save_strategy=steps save_steps=5 eval_strategy=steps eval_steps=5"
)


def ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], capture_output=True).returncode


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces with an interface of the same name each, joined by a cable."""
    if ip("netns", "add", "sft-a"):
        pytest.skip("no network namespaces can be made here")
    try:
        ip("netns", "add", "sft-b")
        ip("link", "add", "cable0", "netns", "sft-a", "type", "veth", "peer", "name", "cable0", "netns", "sft-b")
        for name, address in ADDRESSES.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable0", "up")
        yield
    finally:
        for name in ADDRESSES:
            ip("netns", "delete", name)


def started(commands: list[str]) -> list[subprocess.Popen]:
    """Each command on its host, as a shell there takes it."""
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, "bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, command in zip(ADDRESSES, commands, strict=True)
    ]


def test_a_host_that_is_cut_off_ends_the_other_and_both_go_on(hosts: None, project: Path) -> None:
    site = {"engine": "torchrun", "hosts": [*ADDRESSES.values()], "network_interface": "cable0"}
    (project / "clusters" / "cable.yaml").write_text(yaml.safe_dump(site))
    told = program(
        project,
        *("launch", "demo", "--on", "torchrun", "--site", "cable", "--nodes", "2", "--gpus", "1"),
        *("--accel", "ddp_cpu", "--name", "cut", "--set", SETTINGS),
    )
    commands = [line for line in told.splitlines() if line.startswith("cd ")]
    both = started(commands)
    until(lambda: step(project, "cut") > 7, 300)
    ip("-n", "sft-b", "link", "set", "cable0", "down")
    # Twenty seconds of ddp_timeout, and what it takes to end.
    outputs = [each.communicate(timeout=120)[0] for each in both]
    assert [each.returncode for each in both] == [1, 1], outputs
    assert all(output.count("error: ") == 1 and "Traceback" not in output for output in outputs), outputs
    assert facts(project, "cut")["status"] == "failed"
    ip("-n", "sft-b", "link", "set", "cable0", "up")
    both = started(commands)
    outputs = [each.communicate(timeout=300)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert "continues from checkpoint-" in outputs[0] and f"finished   {STEPS} steps" in outputs[0]
    hosts_ = facts(project, "cut")["in_effect"]["run"]["hosts"]
    assert [(each["machine"], each["network"]) for each in hosts_] == [(0, "cable0"), (1, "cable0")]
