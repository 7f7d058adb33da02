"""What nobody has foreseen: one line that says whose fault it is and where its details are, instead of a traceback."""

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from sft_recipes.environment import debugging
from sft_recipes.recipes import secrets
from sft_recipes.runs import provenance

# Below the directory that the command runs in, beside everything else that can be deleted at any time.
FOLDER = Path(".cache") / "errors"
# What the machine refuses, whatever the program does.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def line_of(error: Exception) -> str:
    """The line for people, after the details were written; SFT_RECIPES_DEBUG=1 prints the traceback as well."""
    trace = secrets.masked("".join(traceback.format_exception(error)))
    if debugging():
        print(trace, end="", file=sys.stderr)
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        return f"{secrets.masked(where)}: {error.strerror}; make room, or work where files can be written"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    kept = _keep(_details(trace))
    where = f"the details are in {kept}" if kept else "the details cannot be written, SFT_RECIPES_DEBUG=1 prints them"
    return (
        f"this is a fault of sft-recipes, not of your input: {secrets.masked(what)[:200]}; {where}. "
        "Please read them through and send them to its maintainers, with what you did"
    )


def _details(trace: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    head = [
        f"command   {secrets.masked(provenance.command())}",
        f"time      {provenance.now()}",
        f"python    {platform.python_version()} on {platform.platform()}",
        f"versions  {versions}",
    ]
    return "\n".join([*head, "", trace])


def _keep(text: str) -> Path | None:
    """Write the details where they can be written; None where nothing can."""
    for where in (lambda: FOLDER, tempfile.gettempdir):
        try:
            folder = Path(where())
            path = folder / f"sft-recipes-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            folder.mkdir(parents=True, exist_ok=True)
            # What lies there already, be it a link, is of somebody else.
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None
