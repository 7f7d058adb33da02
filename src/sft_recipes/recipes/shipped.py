"""What ships with the program: its recipes, models, accelerate configs, examples of sites and the demo's rows.

In the repository `shipped/` holds links to its own folders, in an installed package the files themselves.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1] / "shipped"
FOLDERS = ("recipes", "models", "accelerate_configs", "clusters", "data")


def located(path: str | Path) -> Path:
    """Where a file of a project is: below the working directory, or in the package where that has it alone."""
    path = Path(path)
    if path.parts[:1] and path.parts[0] in FOLDERS and ".." not in path.parts and not os.path.lexists(path):
        shipped = ROOT / path
        return shipped if shipped.exists() else path
    return path


def shipped_names(directory: Path) -> set[str]:
    """The files that ship for a folder of a project, by name; none for a folder of another kind."""
    return {path.stem for path in (ROOT / directory).glob("*.yaml")} if str(directory) in FOLDERS else set()
