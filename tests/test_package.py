"""The package as people install it: a wheel, in an environment of its own, in a folder that is empty."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

# All that a wheel is made of.
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "src",
    "recipes",
    "models",
    "accelerate_configs",
    "clusters",
    "data/demo",
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The programs of an environment that has this package from its wheel, and all others from the present one."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    for name in SOURCES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
        else:
            shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True)
    venv.create(environment)
    programs = environment / "bin"
    (path,) = environment.glob("lib/*/site-packages")
    (path / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", str(programs / "python"), "install", "--no-deps", str(built)], check=True)
    return programs


def test_an_image_is_made_of_the_same_files() -> None:
    copied = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == {*SOURCES, "constraints.txt"}
    final = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", final, flags=re.MULTILINE)


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_folder(installed: Path, tmp_path: Path, tiny_model: Path, censuses: Path) -> None:
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    program, project = installed / "sft-recipes", tmp_path / "a project"

    def run(*command: str, cwd: Path = project) -> str:
        done = subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    package = run(str(installed / "python"), "-c", "import sft_recipes; print(sft_recipes.__file__)", cwd=tmp_path)
    assert Path(package.strip()).is_relative_to(installed.parent)
    run(str(program), "init", str(project), "--from", "demo", cwd=tmp_path)
    # What other tests have asked of this model, from two processes that import torch.
    (project / ".cache").mkdir(exist_ok=True)
    (project / ".cache" / "models").symlink_to(censuses)
    few = f"model_name_or_path={tiny_model} max_steps=2 eval_on_start=false task=null group_column=null test_file=null"
    said = run("make", "train", "RECIPE=my_experiment", "NAME=mine", f"SET={few}", f"PROGRAM={program}")
    assert "finished   2 steps" in said
    assert json.loads((project / "runs" / "mine" / "run.json").read_text())["status"] == "finished"
    assert "better than" not in said and not (project / "data").exists()
