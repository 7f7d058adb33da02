"""The commands: a signature and a docstring are the help of each, and a `Result` is what it prints.

Each imports what it needs when it runs, so that `--help` and a wrong recipe answer at once.
"""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, BadParameter, Exit, Option, Typer, TyperException
from typer.core import TyperGroup

from sft_recipes.errors import InputError, nearest
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema
from sft_recipes.terminal import counting_rows, in_colour, print_lines, table

NAME = "sft-recipes"


@dataclasses.dataclass
class Result:
    """What a command has found: facts for `--json` (or the JSON file that holds them), lines for people, the code."""

    facts: Any = None
    lines: str | Iterable[tuple[str, str]] = ()
    code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 fine, 1 failed while running, 2 wrong input, 3 interrupted and resumable."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--make"]:
        try:
            arguments = from_make(arguments[1], os.environ)
        except InputError as error:
            return _refused(error.problems)
    # A terminal of another encoding is shown what it can be shown.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        code = program(sys.stdout.isatty()).main(arguments or ["--help"], prog_name=NAME, standalone_mode=False)
        return code if arguments else 2
    except TyperException as error:
        where = f" (see {context.command_path} --help)" if (context := getattr(error, "ctx", None)) else ""
        return _refused([f"{' '.join(error.format_message().split())}{where}"], as_json="--json" in arguments)
    except BrokenPipeError:
        return _no_reader()


@functools.cache
def program(boxes: bool) -> Any:
    """The command line, its help drawn for a terminal or as plain text."""
    from typer.main import get_command

    app.rich_markup_mode = "rich" if boxes else None
    return get_command(app)


def from_make(command: str, variables: Mapping[str, str]) -> list[str]:
    """The arguments of a command that make calls: each option by its name in capitals, data that no shell has seen.

    `GIVEN` lists the variables of make's own command line; those of the environment may be for somebody else.

    Raises:
        InputError: One of them is not read by the command, or one that it needs is missing.
    """
    options, positional, problems = [], [], []
    parameters = _variables(command)
    goals = [goal.partition("-")[0] for goal in variables.get("GOALS", "").split()]
    read = set(parameters).union(*map(_variables, goals))
    for name in variables.get("GIVEN", "").split():
        if name not in read:
            problems.append(
                f"make {command} does not read {name}{nearest(name, read)}; it reads {', '.join(parameters)}"
            )
    for name, parameter in parameters.items():
        value = variables.get(name, "")
        if not value:
            if parameter.required:
                problems.append(f"make {command} needs {name}=: {parameter.help}")
        elif parameter.param_type_name == "argument":
            positional += value.split() if parameter.nargs == -1 else [value]
        elif not parameter.is_flag:
            options.append(f"{parameter.opts[-1]}={value}")
        elif value.lower() not in ("0", "false", "no", "off"):
            options.append(parameter.opts[-1])
    if problems:
        raise InputError(*problems)
    return [command, *options, "--", *positional]


def _variables(command: str) -> dict[str, Any]:
    """The parameters of a command by the variables that make has for them."""
    found = program(False).commands.get(command)
    return {
        (each.name if each.param_type_name == "argument" else each.opts[-1].lstrip("-")).upper(): each
        for each in (found.params if found else ())
    }


def _refused(problems: Sequence[str], *, as_json: bool = False) -> int:
    if as_json:
        print(json.dumps({"problems": list(problems)}, indent=2))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def _no_reader() -> int:
    # The reader has seen enough, as `head` does; what is left in the buffer must not be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Grouped(TyperGroup):
    """The commands by their groups, also where the help is plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel, commands in itertools.groupby(self.commands.values(), attrgetter("rich_help_panel")):
            with formatter.section(panel):
                formatter.write_dl([(each.name, each.help) for each in commands])


app = Typer(cls=_Grouped, pretty_exceptions_enable=False)


def command(panel: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Declare a function as the command of its name, in a group of the help; each gets `--json`.

    An argument of the function that is a dataclass stands for an option each of its fields.
    """

    def declare(function: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(function)
        groups: dict[str, Any] = {
            name: each.annotation
            for name, each in signature.parameters.items()
            if dataclasses.is_dataclass(each.annotation)
        }

        @functools.wraps(function)
        def run(*, as_json: bool, **options: Any) -> int:
            for name, group in groups.items():
                options[name] = group(**{field.name: options.pop(field.name) for field in dataclasses.fields(group)})
            try:
                # With --json the lines for people go to stderr, and stdout holds the facts alone.
                with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                    result = function(**options)
                if not as_json:
                    print_lines(result.lines)
                elif isinstance(result.facts, Path):
                    print(result.facts.read_text(encoding="utf-8"), end="")
                elif result.facts is not None:
                    print(json.dumps(result.facts, indent=2))
                return result.code
            except InputError as error:
                return _refused(error.problems, as_json=as_json)
            except BrokenPipeError:
                return _no_reader()
            except KeyboardInterrupt:
                print("error: stopped; nothing half-written is left behind", file=sys.stderr)
                return 1

        parameters: list[inspect.Parameter] = []
        for name, each in signature.parameters.items():
            parameters += inspect.signature(groups[name]).parameters.values() if name in groups else [each]
        flag = Annotated[bool, Option("--json", help="the same facts as JSON")]
        parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag))
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters],
            return_annotation=int,
        )
        app.command(function.__name__.rstrip("_"), rich_help_panel=panel)(run)
        return function

    return declare


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"{NAME} {version(NAME)}")
        raise Exit


@app.callback()
def top(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="the version")] = False,
) -> None:
    """Supervised fine-tuning recipes on TRL, checked."""


def _whole(given: str | int) -> int:
    text = str(given)
    if not text.isdigit() or int(text) < 1:
        raise BadParameter(f"{text!r} is not a whole number above 0")
    return int(text)


# What the shell completes.


def _accelerate_configs() -> list[str]:
    from sft_recipes.recipes import topology

    return topology.names()


def _gpus() -> list[str]:
    from sft_recipes.plan import gpus

    return list(gpus.known())


def _runs() -> list[str]:
    return sorted(path.parent.name for path in Path("runs").glob("*/run.json"))


def _argument(metavar: str, text: str, known: Callable[[], list[str]] | None = None) -> Any:
    return Argument(metavar=metavar, help=text, autocompletion=known, show_default=False)


def _option(name: str, metavar: str, text: str, known: Callable[[], list[str]] | None = None) -> Any:
    return Option(f"--{name}", metavar=metavar, help=text, autocompletion=known)


def _flag(name: str, text: str) -> Any:
    return Option(f"--{name}", help=text)


def _number(name: str, metavar: str, text: str) -> Any:
    return Option(f"--{name}", metavar=metavar, help=text, parser=_whole)


A_RECIPE = "a name in recipes/, such as default"
RecipeName = Annotated[str, _argument("RECIPE", A_RECIPE, lambda: recipes.names())]
RunName = Annotated[str, _argument("RUN", "the run's name", _runs)]
Gpu = Annotated[
    str | None, _option("gpu", "NAME", "a GPU to plan for, such as a100-80gb; the visible one without it", _gpus)
]
Split = Annotated[Literal["test", "validation"], Option("--split", help="which rows")]
Overrides = Annotated[list[str] | None, _option("set", "'KEY=VALUE ...'", "override recipe keys")]
Model = Annotated[
    str | None,
    _option("model", "NAME", "a model of models/, instead of the recipe's", lambda: recipes.names(recipes.MODELS)),
]


@dataclasses.dataclass
class Changes:
    """What a command changes of a recipe."""

    overrides: Overrides = None
    data: Annotated[str | None, _option("data", "FILE", "training rows, instead of the recipe's train_file")] = None
    model: Model = None

    @property
    def words(self) -> list[str]:
        """All of it as overrides."""
        words = [*(self.overrides or ())]
        if self.model is not None:
            words.append(_word("model", self.model))
        if self.data is not None:
            words += [_word("train_file", self.data), "dataset_name=null"]
        return words


@dataclasses.dataclass
class Job(Changes):
    """What a command changes of a recipe, and where it runs."""

    accel: Annotated[
        str | None, _option("accel", "NAME", "an accelerate config of accelerate_configs/", _accelerate_configs)
    ] = None
    gpus: Annotated[int | None, _number("gpus", "N", "processes, instead of the accelerate config's")] = None

    @property
    def where(self) -> dict[str, Any]:
        return {"accel": self.accel, "processes": self.gpus, "overrides": self.words}


def _word(key: str, text: str) -> str:
    return shlex.quote(f"{key}={json.dumps(text)}")


BEFORE, TRAIN, BETTER = "Before it costs anything", "Train", "Is it better"
USE, RECIPES, MACHINE = "Use it", "Recipes", "This machine"


@command(BEFORE)
def plan(
    recipe: RecipeName,
    job: Job,
    gpu: Gpu = None,
    trace: Annotated[bool, _flag("trace", "also run the real modules on tensors without data")] = False,
    fetch: Annotated[bool, _flag("fetch", "get the model's config and tokenizer from the Hub first")] = False,
    why: Annotated[bool, _flag("why", "say all the evidence of each finding")] = False,
) -> Result:
    """Say what a recipe will do before it runs."""
    from sft_recipes.models import base_model
    from sft_recipes.plan import plan

    if fetch:
        base_model.fetch(recipes.load(recipe, recipes.parse_overrides(job.words)))
    with counting_rows() as on_progress:
        figures = plan.plan(recipe, gpu=gpu, traced=trace, on_progress=on_progress, **job.where)
    return Result(figures, plan.render(figures, whole=why), 2 if figures["blocking"] else 0)


@command(BEFORE)
def fit(
    recipe: RecipeName,
    vram: Annotated[float, _option("vram", "GIB", "memory of one GPU, in GiB")],
    changes: Changes,
    gpus: Annotated[int, _number("gpus", "N", "how many GPUs")] = 1,
) -> Result:
    """Find the largest micro-batch that fits the same global batch."""
    from sft_recipes.plan import fit, plan

    with counting_rows() as on_progress:
        found = fit.fit(*plan.to_fit(recipe, changes.words, on_progress), gpus, vram)
    facts = fit.facts(found)
    return Result(facts, fit.render(facts), 0 if found.best else 2)


@command(BEFORE)
def preview(
    recipe: RecipeName,
    changes: Changes,
    rows: Annotated[int, _number("rows", "N", "how many rows")] = 5,
    seed: Annotated[int | None, _option("seed", "N", "random rows instead of the first")] = None,
    html: Annotated[Path | None, _option("html", "FILE", "write a page instead")] = None,
) -> Result:
    """Show rows as the trainer sees them."""
    from sft_recipes.plan import preview

    with contextlib.redirect_stdout(sys.stderr):
        facts = preview.preview(recipe, overrides=changes.words, rows=rows, seed=seed)
    if html:
        return Result(facts, _written(html, preview.as_html(facts)))
    return Result(facts, preview.as_text(facts, colour=in_colour()).removesuffix("\n"))


@command(BEFORE)
def diff(
    a: Annotated[str, _argument("A", "a recipe", lambda: recipes.names())],
    b: Annotated[str, _argument("B", "another recipe", lambda: recipes.names())],
    job: Job,
    gpu: Gpu = None,
) -> Result:
    """Show what two recipes do differently, why, and what follows."""
    from sft_recipes.plan import diff

    facts = diff.diff(a, b, gpu=gpu, **job.where)
    return Result(facts, diff.render(facts))


@command(BEFORE)
def rehearse(
    recipe: RecipeName,
    job: Job,
    name: Annotated[str | None, _option("name", "NAME", "the rehearsal's name")] = None,
) -> Result:
    """Run a recipe for a few steps with a tiny model, on CPU processes."""
    from sft_recipes.launch import rehearse

    code, run = rehearse.rehearse(recipe, run_name=name, **job.where)
    return Result(run.facts(), code=code)


@command(BEFORE)
def audit(
    file: Annotated[Path, _argument("FILE", "YAML of TRL, alignment-handbook, Axolotl, LLaMA-Factory")],
    tool: Annotated[str | None, _option("tool", "NAME", "whose it is, where its keys do not tell")] = None,
    gpus: Annotated[int | None, _number("gpus", "N", "processes it was written for, where it does not say")] = None,
    out: Annotated[Path | None, _option("out", "FILE", "write the recipe there")] = None,
) -> Result:
    """Check another tool's SFT configuration, and translate it into a recipe."""
    from sft_recipes.interop import audit

    made = audit.audit(file, tool, gpus)
    for path in audit.write(made, out) if out else ():
        print(f"wrote {path}", file=sys.stderr)
    return Result(audit.facts(made), audit.render(made), 0 if made.complete else 2)


@command(BEFORE)
def rules() -> Result:
    """List every rule that plan and train apply."""
    from sft_recipes.plan import lint

    facts = [
        {"rule": rule.id, "severity": rule.severity, "idea": rule.idea, "evidence": rule.evidence}
        for rule in lint.rules().values()
    ]
    return Result(facts, table([[each["rule"], each["severity"], each["idea"]] for each in facts]))


@command(TRAIN)
def train(
    recipe: RecipeName,
    job: Job,
    name: Annotated[
        str | None, _option("name", "NAME", "the run's name; the recipe's name and the time without it")
    ] = None,
    resume: Annotated[bool, _flag("resume", "continue the run --name, if it is the same recipe")] = False,
    seeds: Annotated[str | None, _option("seeds", "'N ...'", "train once for each, one after another")] = None,
) -> Result:
    """Fine-tune a recipe into runs/NAME."""
    from sft_recipes.launch import launch
    from sft_recipes.launch import seeds as several

    named: dict[str, Any] = {"run_name": name, "resume": resume}
    if seeds is not None:
        code, runs = several.train_seeds(recipe, seeds, **named, **job.where)
        return Result([run.facts() for run in runs], code=code)
    code, run = launch.train(recipe, **named, **job.where)
    return Result(run.facts(), code=code)


@command(TRAIN)
def resume(name: Annotated[str, _argument("NAME", "the run's name", _runs)]) -> Result:
    """Continue an interrupted run from its newest whole checkpoint."""
    from sft_recipes.launch import launch

    code, run = launch.resume(name)
    return Result(run.facts(), code=code)


@command(TRAIN)
def sweep(
    recipe: RecipeName,
    over: Annotated[str, _option("over", "'KEY=VALUE,VALUE KEY=LOW..HIGH'", "what is varied")],
    job: Job,
    trials: Annotated[
        int | None, _number("trials", "N", "let Optuna choose so many; all combinations without it")
    ] = None,
    jobs: Annotated[int | None, _number("jobs", "N", "trials at a time; one for each GPU without it")] = None,
    name: Annotated[str | None, _option("name", "NAME", "the runs are NAME-t000 and so on")] = None,
    out: Annotated[Path | None, _option("out", "FILE", "write the best as this recipe")] = None,
) -> Result:
    """Train a recipe with several values, compare them, and write the best as a recipe."""
    from sft_recipes.launch import sweep

    code, facts = sweep.sweep(recipe, over, trials=trials, jobs=jobs, run_name=name, out=out, **job.where)
    return Result(facts, code=code)


@command(BETTER)
def evaluate(
    run: RunName,
    split: Annotated[
        Literal["test", "validation"] | None,
        Option("--split", help="test without it, or validation where there are no test rows"),
    ] = None,
    base: Annotated[bool, _flag("base", "score the base model on the same rows too")] = False,
    overrides: Overrides = None,
    data: Annotated[str | None, _option("data", "FILE", "rows to evaluate on, instead of the test_file")] = None,
) -> Result:
    """Score a finished run on rows it has not seen, with intervals."""
    from sft_recipes.evaluate import evaluate
    from sft_recipes.report import pages
    from sft_recipes.runs.run import Run

    rows = [] if data is None else [_word("test_file", data)]
    code, path = evaluate.evaluate(run, split=split, base=base, overrides=[*(overrides or ()), *rows])
    if path:
        pages.write(Run.open(run))
    return Result(path, code=code)


@command(BETTER)
def report(run: RunName) -> Result:
    """Write the report of a run anew."""
    from sft_recipes.report import report
    from sft_recipes.runs.run import Run

    path = str(report.write(Run.open(run)))
    return Result({"file": path}, f"wrote {path}")


@command(BETTER)
def compare(
    runs: Annotated[list[str], _argument("RUN...", "the runs' names", _runs)],
    split: Split = "test",
    out: Annotated[Path | None, _option("out", "FILE", "write a page (.html), Markdown (.md) or CSV (.csv)")] = None,
) -> Result:
    """Say what runs changed, what came of it, and which differences are real."""
    from sft_recipes.report import compare, report

    _check_form(out, (".html", ".md", ".csv"))
    return _tables(compare.compare(runs, split), out, page=report.comparison)


@command(BETTER)
def leaderboard(
    split: Split = "test",
    out: Annotated[Path | None, _option("out", "FILE", "write Markdown (.md) or CSV (.csv)")] = None,
) -> Result:
    """Rank the evaluated runs, as far as they can be told apart."""
    from sft_recipes.report import compare

    _check_form(out, (".md", ".csv"))
    return _tables(compare.leaderboard(split), out)


def _check_form(out: Path | None, forms: Sequence[str]) -> None:
    if out is not None and out.suffix not in forms:
        raise InputError(f"OUT={out}: end the file's name in {' or '.join(forms)}, which says what is written")


def _tables(facts: Any, out: Path | None, page: Any = None) -> Result:
    """The tables for people, or a file in the form that its name says."""
    from sft_recipes.report import tables

    if out is None:
        return Result(facts, tables.render(facts))
    if out.suffix == ".html":
        return Result(facts, _written(out, write=lambda: page(facts, out)))
    return Result(facts, _written(out, tables.as_markdown(facts) if out.suffix == ".md" else tables.as_csv(facts)))


@command(USE)
def predict(
    run: RunName,
    rows: Annotated[Path, _option("input", "FILE", "rows with prompts")],
    out: Annotated[Path | None, _option("out", "FILE", "JSON lines; beside the input without it")] = None,
) -> Result:
    """Write what a run answers to the rows of a file."""
    from sft_recipes.deploy import predict

    code, path = predict.predict(run, rows, out)
    return Result({"file": str(path)}, code=code)


@command(USE)
def chat(run: RunName, base: Annotated[bool, _flag("base", "begin with the base model")] = False) -> Result:
    """Talk to a run in the terminal."""
    from sft_recipes.deploy import chat

    return Result(code=chat.chat(run, base=base))


@command(USE)
def merge(
    run: RunName,
    out: Annotated[Path | None, _option("out", "FOLDER", "runs/RUN/merged without it")] = None,
) -> Result:
    """Merge a run's adapter into unquantised base weights, and prove it."""
    from sft_recipes.deploy import merge

    code, proof = merge.merge(run, out)
    return Result(proof, code=code)


@command(USE)
def push(
    run: RunName,
    repo: Annotated[str, _option("repo", "ORG/NAME", "the repository, made if it is not there")],
    merged: Annotated[bool, _flag("merged", "upload the merged model instead")] = False,
    public: Annotated[bool, _flag("public", "a new repository is public, not private")] = False,
) -> Result:
    """Upload a run's adapter to the Hub."""
    from sft_recipes.deploy import push

    return Result(push.push(run, repo, merged=merged, public=public))


@command(RECIPES)
def list_() -> Result:
    """List the recipes and the one idea of each."""
    ideas = {name: recipes.load(name)["description"] for name in recipes.names()}
    if not ideas:
        raise InputError(f"no recipes in {recipes.RECIPES.absolute()}; run from the project's root")
    return Result(ideas, table([*ideas.items()]))


@command(RECIPES)
def models() -> Result:
    """List the models that any recipe can be trained on."""
    found = {name: recipes.read_model(name)["description"].value for name in recipes.names(recipes.MODELS)}
    return Result(found, table([*found.items()]))


@command(RECIPES)
def show(
    recipe: RecipeName,
    job: Job,
    origin: Annotated[bool, _flag("origin", "say where each value comes from")] = False,
    why: Annotated[bool, _flag("why", "say one reason for each value")] = False,
) -> Result:
    """Print a resolved recipe: its base, overrides and what follows from them."""
    from sft_recipes.recipes import why as evidence

    resolved = _resolved(recipe, job)
    reasons = evidence.reasons(resolved) if why else {}
    values, lines = {}, {}
    for key, item in resolved.values.items():
        reason = {"why": reasons[key]} if why else {}
        values[key] = {"value": item.value, "origin": item.origin} | reason
        beside = dict.fromkeys([*([item.origin] if origin else []), *reason.values()])
        lines[f"{key}: {schema.as_yaml(item.value)}"] = f"# {': '.join(beside)}" if beside else ""
    # A long description must not push what stands beside the others out of sight.
    width = min(48, max(map(len, lines)))
    text = "\n".join(f"{line:<{width}}  {beside}" if beside else line for line, beside in lines.items())
    return Result({"name": resolved.name, "values": values}, text)


def _resolved(name: str, job: Job) -> recipes.Recipe:
    from sft_recipes.recipes import topology

    # A file is shown by its path too, so that a foreign preset can be checked before it becomes a recipe.
    named = Path(name) if name.endswith((".yaml", ".yml", ".json")) else name
    recipe = recipes.load(named, recipes.parse_overrides(job.words))
    chosen = job.accel or recipe["accelerate_config"]
    if chosen is None:
        return recipe
    return topology.resolve(recipe, topology.read(chosen, "ACCEL" if job.accel else "the recipe", job.gpus))


@command(RECIPES)
def why(
    key: Annotated[str, _argument("KEY", "a key of a recipe, such as lora_alpha", lambda: list(schema.known()))],
    recipe: Annotated[
        str | None,
        _argument("RECIPE", "a name in recipes/, for its value and its neighbours", lambda: recipes.names()),
    ] = None,
) -> Result:
    """Say what a key does, why it has its value, and what to change first when it is wrong."""
    from sft_recipes.recipes import why

    facts = why.why(key, recipe)
    return Result(facts, why.render(facts))


@command(RECIPES)
def keys() -> Result:
    """List every key a recipe may set, with type and default."""
    known = schema.known()
    rows = [
        [key, f"{' or '.join(each['types'])}, {schema.as_yaml(each['default'])} if not set  ({each['class']})"]
        for key, each in known.items()
    ]
    return Result(known, table(rows))


@command(RECIPES)
def new(
    name: Annotated[str, _argument("NAME", "the new recipe's name")],
    base: Annotated[str, _option("from", "RECIPE", "the recipe that it extends", lambda: recipes.names())] = "default",
) -> Result:
    """Write a recipe of three lines that extends another."""
    path = str(recipes.write_new(name, base))
    return Result({"file": path}, f"wrote {path}\nnext: put the change it tries into it, then make plan RECIPE={name}")


@command(RECIPES)
def export(
    recipe: RecipeName,
    out: Annotated[Path, _option("out", "FILE", "the YAML file to write")],
    job: Job,
) -> Result:
    """Write a resolved recipe that stock `trl sft --config` reads."""
    from sft_recipes.data import preparation
    from sft_recipes.plan.job import with_data

    resolved = _resolved(recipe, job)
    prepared = preparation.prepare(**preparation.source_of(resolved), cache=preparation.CACHE)
    stock = with_data(resolved, prepared).derive(output_dir=(f"runs/{resolved.name}-trl", "stock trl needs one"))
    return Result(stock.upstream(), _written(out, recipes.dump(stock.upstream())))


@command(RECIPES)
def pin(recipe: RecipeName, model: Model = None) -> Result:
    """Write the Hub's current commit of the base model into its file."""
    from sft_recipes.recipes import pin

    path, commit = pin.pin(recipe, Changes(model=model).words)
    return Result({"file": str(path), "model_revision": commit}, f"{path}: model_revision: {commit}")


@command(MACHINE)
def gpu(
    budget: Annotated[int, _number("budget", "SECONDS", "in all")] = 400,
    only: Annotated[str, _option("only", "'SECTION ...'", "these sections; all without it")] = "",
    out: Annotated[Path, _option("out", "FOLDER", "where the result is written")] = Path("benchmarks"),
) -> Result:
    """Measure this machine: memory, speed, accelerate configs, within a budget of seconds."""
    from sft_recipes.benchmark import program

    code, path = program.benchmark(budget, out, only.split())
    return Result(path, code=code)


def _written(path: Path, text: str = "", write: Callable[[], object] | None = None) -> str:
    """Write a file that the user has named, and say so."""
    from sft_recipes.files import write_whole

    try:
        write() if write else write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return f"wrote {path}"


if __name__ == "__main__":
    sys.exit(main())
