"""The task of a run as SkyPilot's own client reads it, without a cloud."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, program

PYTHON = ROOT / ".cache" / "tools" / "skypilot" / "bin" / "python"
READ = """\
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps([task.name, task.num_nodes, resources.accelerators, resources.use_spot, task.volumes, task.run]))
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="make test-clusters installs SkyPilot")
def test_sky_reads_the_task(project: Path) -> None:
    site = yaml.safe_load((ROOT / "clusters" / "skypilot_example.yaml").read_text()) | {"shared": str(project)}
    (project / "clusters").mkdir(exist_ok=True)
    (project / "clusters" / "sky.yaml").write_text(yaml.safe_dump(site))
    words = ["--on", "skypilot", "--nodes", "2", "--site", "sky", "--accel", "ddp", "--dry", "--name", "sky"]
    words += ["--set", "bf16=true dtype=bfloat16 per_device_train_batch_size=1"]
    program(project, "launch", "demo", *words)
    file = project / "runs" / "sky" / "job.sky.yaml"
    done = subprocess.run([PYTHON, "-c", READ, file], capture_output=True, text=True, check=True)
    name, nodes, accelerators, spot, volumes, run = json.loads(done.stdout.splitlines()[-1])
    assert (name, nodes, accelerators, spot) == ("sky", 2, {"H100": 8}, True)
    assert volumes == {str(project): "projects"}
    assert run == yaml.safe_load(file.read_text())["run"]
