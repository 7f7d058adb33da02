"""Regenerate what pages show of recipes, accelerate configs, wings, rules and the demo: README.md and its kin (PAGES),
and docs/rules.md.

`python scripts/update_pages.py` trains the demo anew and replaces docs/demo/; with `--tables` only the tables and
the plan change. `--real` trains the demo's recipe on a real model too, which takes many minutes.
A test compares the pages with what `render` and `rules_page` give, so that none can drift.
"""

import argparse
import ast
import fnmatch
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import first_screen
import guide_tables
import performance_tables

from sft_recipes.plan import lint
from sft_recipes.recipes import clusters, topology
from sft_recipes.recipes import recipe as recipes
from sft_recipes.report import quality
from sft_recipes.runs.run import Run

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "docs" / "demo"
# A real model, in so few steps that a laptop's CPU can take them.
REAL = {
    "RECIPE": "demo",
    "MODEL": "smollm2_135m_packaged",
    "SET": "max_steps=30 eval_strategy=epoch save_strategy=epoch logging_steps=1",
}
# What the README shows of the demo's lines, by how they begin.
DEMO_SHOWN = (
    "$",
    "loss on",
    "adapter    r=",
    "schedule",
    "finished",
    "eval loss",
    "tuned",
    "base       macro F1",
    "trivial",
    "verdict",
    "report",
)
REAL_SHOWN = ("base       1", *(each for each in DEMO_SHOWN if each not in ("loss on", "schedule", "report")))


def topology_table() -> str:
    """One row an accelerate config, with the sentence that its file begins with."""
    lines = ["| `ACCEL=` | processes | what it is |", "|---|---|---|"]
    for name in topology.names():
        chosen = topology.read(name, "a page")
        first = (topology.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"| [`{name}`](../accelerate_configs/{name}.yaml) | {chosen.processes} | {first} |")
    return "\n".join(lines)


def rules_page() -> str:
    """docs/rules.md: every rule with its severity, what it finds and where that was seen."""
    lines = [
        "# Rules",
        "",
        "`make plan` and `make train` apply these. A blocking finding stops a run; a warning is worth a change; an",
        "info is worth knowing. A recipe keeps what it means to keep by naming the rule and the reason, and the run",
        "records both:",
        "",
        "```yaml",
        "silence: {warmup-share: the documented value}",
        "```",
        "",
        "Rules marked * cannot be silenced, because the run would be refused all the same. Refused before any rule",
        "is asked: unknown, renamed and mistyped keys (also `q_proj,v_proj` for a list), values that contradict each",
        "other (a best model without matching evaluations and saves), `trust_remote_code`, `push_to_hub`, tokens in a",
        "recipe, and an accelerate config that states facts of a recipe.",
    ]
    for severity in lint.SEVERITIES:
        lines += ["", f"## {severity}", "", "| rule | what it finds | seen or measured |", "|---|---|---|"]
        for rule in lint.rules().values():
            if rule.severity == severity:
                evidence = rule.evidence.replace("|", "\\|")
                formerly = f" (formerly {', '.join(rule.formerly)})" if rule.formerly else ""
                lines.append(f"| `{rule.id}`{' *' if rule.required else ''} | {rule.idea}{formerly} | {evidence} |")
    return "\n".join(lines) + "\n"


def model_table() -> str:
    """The models that any recipe can be trained on."""
    lines = ["| `MODEL=` | base model | |", "|---|---|---|"]
    for name in recipes.names(recipes.MODELS):
        values = recipes.read_model(name)
        base, text = (values[key].value for key in ("model_name_or_path", "description"))
        lines.append(f"| [`{name}`](../models/{name}.yaml) | {base} | {text} |")
    return "\n".join(lines)


def wing_table() -> str:
    """One row a wing of the layers contract, from the top: how its docstring begins, and its modules."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    layers, torch = tool["importlinter"]["contracts"][:2]
    allowed = [line.partition(" -> *")[0] for line in torch["ignore_imports"] if line.endswith(" -> *")]
    lines = ["| wing | what it is for | modules |", "|---|---|---|"]
    for name in itertools.chain.from_iterable(layer.split(" | ") for layer in layers["layers"]):
        path = ROOT / "src" / "sft_recipes" / name
        modules = []
        for module in sorted([*path.glob("[!_]*.py"), *path.glob("[!_]*/__init__.py")]):
            shown = module.stem if module.parent == path else module.parent.name
            star = "*" if any(fnmatch.fnmatch(f"sft_recipes.{name}.{shown}", each) for each in allowed) else ""
            modules.append(f"`{shown}`{star}")
        source, file = (path / "__init__.py", name) if path.is_dir() else (path.with_suffix(".py"), f"{name}.py")
        said = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        first = " ".join(said.split("\n\n")[0].split())
        lines.append(f"| [`{name}`](../src/sft_recipes/{file}) | {first} | {', '.join(modules)} |")
    return "\n".join(lines)


def demo_block() -> str:
    """Some lines of what the terminal showed when the demo was last trained for this page, and on what."""
    facts = json.loads((DEMO / "run.json").read_text(encoding="utf-8"))
    return f"{_terminal('terminal.txt', DEMO_SHOWN)}\n\n([All lines](docs/demo/terminal.txt). {_machine(facts)}.)"


def real_block() -> str:
    """The same of the demo's recipe on a real model, and its curves beside the demo's."""
    facts = json.loads((DEMO / "smollm2.json").read_text(encoding="utf-8"))
    return (
        f"{_terminal('smollm2.txt', REAL_SHOWN)}\n\n"
        "![Loss of the demo's model and of SmolLM2 over steps; macro F1 of the tuned SmolLM2, its base and trivial "
        "baselines, with intervals](docs/demo/smollm2.png)\n\n"
        f"([All lines](docs/demo/smollm2.txt). {_machine(facts)}.)"
    )


def _terminal(file: str, shown: tuple[str, ...]) -> str:
    """The lines that begin so, of which there must be some of each kind."""
    lines = [line for line in (DEMO / file).read_text(encoding="utf-8").splitlines() if line.startswith(shown)]
    if missing := [label for label in shown if not any(line.startswith(label) for line in lines)]:
        sys.exit(f"docs/demo/{file} has no line that begins with {', '.join(missing)}")
    return "\n".join(["```", *lines, "```"])


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers", "trl", "peft"))
    return f"{facts['cpus']} CPU cores, no GPU; {versions}"


def plan_block() -> str:
    """What the plan of the default recipe said of the demo's rows when this page was made."""
    return f"```\n{(DEMO / 'plan.txt').read_text(encoding='utf-8')}```"


def recommend_block() -> str:
    """What was recommended for the demo's rows when this page was made."""
    return f"```\n{(DEMO / 'recommend.txt').read_text(encoding='utf-8')}```"


def plan_verdict() -> str:
    """The lines that this plan opens with."""
    command, *lines = (DEMO / "plan.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        ["```", command, *itertools.takewhile(lambda line: line.startswith(("verdict", " ")), lines), "```"]
    )


def site_keys() -> str:
    """The keys of a site, with the engines that read them and what they mean."""
    lines = ["| key | engine | what it is |", "|---|---|---|"]
    for key, entry in clusters.KEYS.items():
        usual = f" {entry['default']} if not set." if "default" in entry else ""
        lines.append(f"| `{key}` | {', '.join(entry.get('engines', ['all']))} | {entry['means']}{usual} |")
    return "\n".join(lines)


# Where the generated sections of each page come from.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"demo": demo_block, "real": real_block, "verdict": plan_verdict},
    "docs/clusters.md": {"keys": site_keys},
    "docs/architecture.md": {"wings": wing_table},
    "docs/plan.md": {"plan": plan_block},
    "docs/execution.md": {"micro-batches": performance_tables.micro_batches},
    "docs/recommend.md": {"recommendation": recommend_block},
    "docs/where_it_runs.md": {"topologies": topology_table, "measured": performance_tables.measured},
    "docs/performance.md": {
        "ratios": performance_tables.ratios,
        "precision": performance_tables.precision,
        "performance": performance_tables.performance,
    },
    "recipes/README.md": {
        "presets": guide_tables.preset_table,
        "ideas": guide_tables.idea_table,
        "recipes": guide_tables.recipe_table,
        "models": model_table,
    },
    "docs/choosing.md": {
        "costs": guide_tables.costs,
        "guide": guide_tables.guide,
        "claims": guide_tables.claims,
        "origin": guide_tables.origin,
    },
}


def render(page: str) -> str:
    """A page with its generated sections replaced."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, made in PAGES[page].items():
        pattern = rf"(<!-- generated: {name} -->).*?(<!-- end -->)"
        # A function, because backslashes of a replacement text would be read as groups.
        text, found = re.subn(pattern, functools.partial(_between, made()), text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"{page} has {found} sections 'generated: {name}', not one")
    return text


def _between(content: str, section: re.Match[str]) -> str:
    return f"{section[1]}\n{content}\n{section[2]}"


def said(target: str, **variables: str) -> str:
    """A target of make as it is typed, and what it prints, in the words of those who come by make."""
    words = [f'{name}="{value}"' if " " in value else f"{name}={value}" for name, value in variables.items()]
    shown = " ".join(["make", target, *words])
    environment = os.environ | variables | {"GIVEN": " ".join(variables), "GOALS": target}
    command = [sys.executable, "-m", "sft_recipes", "--make", target]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return f"$ {shown}\n{done.stdout}"


def plan_demo() -> None:
    """Plan the default recipe with the demo's rows and keep what was said."""
    (DEMO / "plan.txt").write_text(said("plan", RECIPE="default", DATA="data/demo/train.jsonl"), encoding="utf-8")


def recommend_demo() -> None:
    """Recommend a recipe for the demo's rows and keep what was said."""
    told = said("recommend", DATA="data/demo/train.jsonl", GPU="rtx-4090")
    (DEMO / "recommend.txt").write_text(told, encoding="utf-8")


def train_demo() -> None:
    """Train the demo and keep what was said and drawn."""
    run = Path("runs") / "readme"
    shutil.rmtree(run, ignore_errors=True)
    (DEMO / "terminal.txt").write_text(said("train", RECIPE="demo", NAME="readme"), encoding="utf-8")
    shutil.copy(run / "loss.png", DEMO / "loss.png")
    keep(Run(run), "run.json")


def train_real() -> None:
    """Train the demo's recipe on a real model and keep what was said and measured."""
    run = Run(Path("runs") / "smollm2")
    shutil.rmtree(run.directory, ignore_errors=True)
    told = said("train", **REAL, NAME=run.name)
    (DEMO / "smollm2.txt").write_text(told, encoding="utf-8")
    keep(run, "smollm2.json", metrics=scores(run.evaluation("test")))


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is drawn and said of an evaluation."""
    kept = {key: metrics[key] for key in ("task", "primary", "rows", "verdict", "measured")}
    for group in ("models", "baselines"):
        # Single classes are shown nowhere.
        named = {name: each for name, each in metrics[group].items() if name != "always"}
        kept[group] = {name: {key: each[key] for key in quality.drawn(metrics)} for name, each in named.items()}
    return kept


def keep(run: Run, file: str, **more: Any) -> None:
    """Write what pages say of a run, with its curve."""
    facts = run.facts()
    kept = {key: facts[key] for key in ("recipe", "versions", "python", "cpus", "in_effect", "measured", "seconds")}
    kept["log"] = [
        {key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
        for entry in run.log_entries()
        if {"loss", "eval_loss"} & entry.keys()
    ]
    (DEMO / file).write_text(json.dumps(kept | more, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="leave the demo as it is")
    parser.add_argument("--real", action="store_true", help="train a real model too")
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.tables:
        train_demo()
    plan_demo()
    if not options.tables:
        plan = (DEMO / "plan.txt").read_text(encoding="utf-8").splitlines()
        first_screen.draw(Run(Path("runs") / "readme"), plan, DEMO / "first_screen.png")
    if options.real:
        train_real()
    logs = [json.loads((DEMO / file).read_text(encoding="utf-8")) for file in ("run.json", "smollm2.json")]
    first_screen.draw_beside(logs[0]["log"], logs[1], DEMO / "smollm2.png")
    recommend_demo()
    (ROOT / "docs" / "rules.md").write_text(rules_page(), encoding="utf-8")
    for page in PAGES:
        (ROOT / page).write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    main()
