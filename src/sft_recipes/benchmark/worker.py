"""The process that measures: `python -m sft_recipes.benchmark.worker`, told a section at a time on its input.

Each line of the input is a section, its file and its seconds as JSON; each line of the output says that one is done.
What libraries print goes to the error stream. A section that kills this process costs only itself.
"""

import json
import os
import sys
from pathlib import Path

from sft_recipes import children
from sft_recipes.environment import quiet


def main() -> int:
    """Measure until there is no further line."""
    answers = children.answers()
    environment = dict(os.environ)
    quiet()

    from sft_recipes.benchmark import commands, device, measure, ratios, scale
    from sft_recipes.benchmark.section import Section

    here = device.find()
    sizes = scale.gpu() if here.gpu else scale.cpu()
    for line in sys.stdin:
        asked = json.loads(line)
        name, work = asked["section"], Path(asked["work"]) / asked["section"]
        if name == "facts":
            answers.write(json.dumps({"done": name, "hardware": here.facts()}) + "\n")
            answers.flush()
            continue
        work.mkdir(parents=True, exist_ok=True)
        section = Section(Path(asked["file"]), asked["seconds"])
        if name in ("road", "topologies"):
            getattr(commands, name)(section, sizes, environment)
        elif name == scale.RATIOS:
            ratios.ratios(section, sizes, here, work, environment)
        else:
            getattr(measure, name)(section, sizes, here, work)
        answers.write(json.dumps({"done": name}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
