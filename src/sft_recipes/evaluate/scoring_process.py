"""The process that scores: `python -m sft_recipes.evaluate.scoring_process WORKDIR`, as scoring.py says.

Ctrl-C reaches it together with the command that started it. While the libraries are imported, which takes seconds,
there is nothing to keep and nothing to say; afterwards what is answered is kept.
"""

import signal
import sys
from pathlib import Path

from sft_recipes.environment import importing, quiet


def main() -> int:
    """The exit code of `scoring.main`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with importing():
        # Before the other imports, which speak.
        quiet()
        from sft_recipes.evaluate import scoring

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return scoring.main(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
