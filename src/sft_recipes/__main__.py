"""`python -m sft_recipes` is the command `sft-recipes`."""

import sys

from sft_recipes.cli import main

sys.exit(main())
