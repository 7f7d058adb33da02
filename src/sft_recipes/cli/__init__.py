"""Which command is meant, and how does what it found look in a terminal?

`commands` has one function a command, `options` what their arguments mean, `app` what all of them have, and `faults`
what is said of what nobody has foreseen.
"""

from sft_recipes.cli import commands  # noqa: F401, which declares them
from sft_recipes.cli.app import from_make, main, program

__all__ = ["from_make", "main", "program"]
