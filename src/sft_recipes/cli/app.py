"""What every command has: its place in the help, `--json`, exit codes, errors for people, and variables of make."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Exit, Option, Typer, TyperException
from typer._coercion import RuntimeParam, build_runtime_param
from typer.core import TyperCommand, TyperGroup

from sft_recipes import terminal
from sft_recipes.errors import InputError, did_you_mean, refuse
from sft_recipes.recipes import secrets
from sft_recipes.terminal import print_lines, say_error

NAME = "sft-recipes"
# What Python makes of the bytes of a command line that are not UTF-8.
_UNDECODED = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass
class Result:
    """What a command has found: facts for `--json` (or the JSON file that holds them), lines for people, the code."""

    facts: Any = None
    lines: str | Iterable[tuple[str, str]] = ()
    code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 fine, 1 failed while running, 2 wrong input, 3 interrupted and resumable."""
    typed, arguments = arguments is None, list(sys.argv[1:] if arguments is None else arguments)
    if typed and arguments[:1] != ["--make"]:
        from sft_recipes.cli import words

        terminal.spelt_by(words.of_the_program)
    if arguments[:1] == ["--make"] and len(arguments) == 2:
        try:
            arguments = from_make(arguments[1], os.environ)
        except InputError as error:
            return _refused(error.problems)
    as_json = "--json" in arguments
    if what := next(filter(None, map(secrets.what_in, arguments)), None):
        # A command line is kept in run.json, and by the shell.
        return _refused([f"the command line holds {what}: {secrets.REMEDY}"], as_json=as_json)
    # A terminal of another encoding is shown what it can be shown.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        code = program(sys.stdout.isatty()).main(arguments or ["--help"], prog_name=NAME, standalone_mode=False)
        return code if arguments else 2
    except InputError as error:
        return _refused(error.problems, as_json=as_json)
    except TyperException as error:
        where = f" (see {context.command_path} --help)" if (context := getattr(error, "ctx", None)) else ""
        return _refused([f"{' '.join(error.format_message().split())}{where}"], as_json=as_json)
    except BrokenPipeError:
        return _no_reader()
    except Exception as error:
        from sft_recipes.cli import faults

        return _refused([faults.line_of(error)], as_json=as_json, code=1)


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
    known = parameters(command)
    goals = [goal.partition("-")[0] for goal in variables.get("GOALS", "").split()]
    read = set(known).union(*map(parameters, goals))
    for name in variables.get("GIVEN", "").split():
        if name not in read:
            problems.append(
                f"make {command} does not read {name}; it reads {', '.join(known)}{did_you_mean(name, read)}"
            )
    for name, parameter in known.items():
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
    refuse(problems)
    return [command, *options, "--", *positional]


def parameters(command: str) -> dict[str, Any]:
    """The parameters of a command by the variables that make has for them."""
    found = program(False).commands.get(command)
    return {
        (
            each.name if each.param_type_name == "argument" else each.opts[-1].lstrip("-").replace("-", "_")
        ).upper(): each
        for each in (found.params if found else ())
    }


def _refused(problems: Sequence[str], *, as_json: bool = False, code: int = 2) -> int:
    problems = [secrets.masked(problem) for problem in problems]
    if as_json:
        print(json.dumps({"problems": problems}, indent=2))
    for problem in problems:
        say_error(problem)
    return code


def _no_reader() -> int:
    # The reader has seen enough, as `head` does; what is left in the buffer must not be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _AsGiven(RuntimeParam):
    """What typer makes of a value: itself where that is text. For all else it imports pydantic, a third of a start."""

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.parameter_info.parser is not None:
            return self.parameter_info.parser(value)
        if self.annotation is str:
            return value
        if self.annotation == list[str]:
            return [*value]
        return build_runtime_param(param.type_descriptor)._coerce_value(value, param, ctx)


class _Light:
    """A command that reads its values so."""

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for each in found:
            known = each.type_descriptor
            each._runtime_param = each._runtime_param or _AsGiven(known.parameter_info, known.annotation)
        return found


class _Grouped(_Light, TyperGroup):
    """The commands by their groups, also where the help is plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel, commands in itertools.groupby(self.commands.values(), attrgetter("rich_help_panel")):
            with formatter.section(panel):
                formatter.write_dl([(each.name, each.help) for each in commands])


class _Command(_Light, TyperCommand):
    """A command none of whose arguments and options is given and says nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        parameters: list[Any] = self.params
        for each in parameters:
            value = given.get(each.name or "")
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str) and not text.strip():
                    raise BadParameter("it is empty; give it a value, or leave it out", ctx=ctx, param=each)
                if isinstance(text, str) and not text.isascii() and _UNDECODED.search(text):
                    raise BadParameter(f"{text!a} holds bytes that are not UTF-8", ctx=ctx, param=each)
        return super().parse_args(ctx, args)


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
                # What is left in the buffer finds out here, and not at exit, that nobody reads it any more.
                sys.stdout.flush()
                return result.code
            except InputError as error:
                return _refused(error.problems, as_json=as_json)
            except BrokenPipeError:
                return _no_reader()
            except KeyboardInterrupt:
                say_error("stopped; nothing half-written is left behind")
                return 1

        parameters: list[inspect.Parameter] = []
        for name, each in signature.parameters.items():
            parameters += inspect.signature(groups[name]).parameters.values() if name in groups else [each]
        flag = Annotated[bool, Option("--json", metavar="", help="the same facts as JSON")]
        parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag))
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters],
            return_annotation=int,
        )
        app.command(function.__name__.rstrip("_"), cls=_Command, rich_help_panel=panel)(run)
        return function

    return declare


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"{NAME} {version(NAME)}")
        raise Exit


@app.callback()
def top(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, metavar="", help="the version")
    ] = False,
) -> None:
    """Supervised fine-tuning recipes on TRL, checked."""
