"""Train the demo against the lowest and the highest versions that pyproject.toml allows: `make compat`.

Each has a fresh environment below .cache/compat. torch stays as constraints.txt pins it, since another build of it
weighs gigabytes: its range in pyproject.toml is not what this shows.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".cache" / "compat"
# Two evaluations and two checkpoints, then the evaluation of the run, with base and baselines, and the report.
SHORT = "max_steps=20 eval_steps=10 save_steps=10"
READ = ("recipes", "models", "accelerate_configs", "data")
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}


def main() -> int:
    """Say of each what was installed and whether the demo was trained; 1 if it was not everywhere."""
    PLACE.mkdir(parents=True, exist_ok=True)
    tools = _environment("tools", "uv")
    failed = 0
    for name, resolution in RESOLUTIONS.items():
        began = time.monotonic()
        try:
            versions = _resolve(tools, name, resolution)
            python = _environment(name, "-c", versions, "-e", ROOT)
            problem = _train(python, PLACE / f"{name}-project")
        except subprocess.CalledProcessError as error:
            problem = f"{error.cmd[0]} ended with code {error.returncode}"
        failed += problem is not None
        print(f"{name:8} {'passed' if problem is None else f'FAILED: {problem}'} ({time.monotonic() - began:.0f} s)")
        if problem is None:
            print(f"{'':8} {', '.join(_direct(python))}", flush=True)
    return int(failed > 0)


def _environment(name: str, *packages: object) -> Path:
    """A fresh environment with those packages; gives its Python."""
    folder = PLACE / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *map(str, packages)], check=True)
    return folder / "bin" / "python"


def _resolve(tools: Path, name: str, resolution: str) -> Path:
    """The constraints of a resolution, torch held."""
    held, versions = PLACE / "held.txt", PLACE / f"{name}.txt"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    held.write_text("".join(f"{pin}\n" for pin in pins if pin.startswith("torch==")), encoding="utf-8")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [str(tools.parent / "uv"), "pip", "compile", "--quiet", "--resolution", resolution]
    command += ["--constraint", str(held), "--python-version", python, "--output-file", str(versions)]
    command += [str(ROOT / "pyproject.toml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return versions


def _train(python: Path, project: Path) -> str | None:
    """Train the demo for a few steps in a project of its own; why it failed, if it did."""
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    for name in READ:
        (project / name).symlink_to(ROOT / name)
    # The demo's base model is built once.
    base = ROOT / ".cache" / "demo"
    base.mkdir(parents=True, exist_ok=True)
    (project / ".cache").mkdir()
    (project / ".cache" / "demo").symlink_to(base)
    program = [str(python), "-m", "sft_recipes"]
    for command in (["plan", "demo"], ["train", "demo", "--name", "demo", "--set", SHORT]):
        with (project / f"{command[0]}.txt").open("w", encoding="utf-8") as log:
            done = subprocess.run([*program, *command], cwd=project, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            return f"sft-recipes {command[0]} ended with code {done.returncode}, see {log.name}"
    run = project / "runs" / "demo"
    status, step = (json.loads((run / "run.json").read_text(encoding="utf-8"))[key] for key in ("status", "measured"))
    if status != "finished" or step["step"] != 20:
        return f"the run is {status} at step {step}"
    missing = [name for name in ("metrics.json", "report.html", "loss.png", "adapter") if not (run / name).exists()]
    return f"the run has no {', '.join(missing)}" if missing else None


def _direct(python: Path) -> list[str]:
    """What is installed of the packages that pyproject.toml names."""
    code = (
        "import re; from importlib.metadata import requires, version\n"
        "for each in requires('sft-recipes'):\n"
        "    if 'extra ==' not in each: name = re.match(r'[\\w-]+', each)[0]; print(name, version(name))"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
