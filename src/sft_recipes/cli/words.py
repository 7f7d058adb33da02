"""Whoever came by make is told make's targets and variables, everybody else the program's commands and options."""

import re
import shlex
from typing import Any

from sft_recipes.cli.app import NAME, parameters, program

_VALUE = r"""(?:'[^']*'|"[^"]*"|[^\s;,.:()'"]+(?:[.:][^\s;,.:()'"]+)*)"""
_TARGET = re.compile(rf"\bmake ([a-z]+)((?: [A-Z_]+={_VALUE})*)")
_VARIABLE = re.compile(rf"\b([A-Z_]+)=({_VALUE})")


def of_the_program(text: str) -> str:
    """A sentence in which `make resume NAME=x` is `sft-recipes resume x`, and `ACCEL=zero3` is `--accel zero3`."""
    return _VARIABLE.sub(_option, _TARGET.sub(_command, text))


def _command(found: re.Match[str]) -> str:
    command, given = found[1], dict(each.split("=", 1) for each in shlex.split(found[2]))
    known = parameters(command)
    if not known or not given.keys() <= known.keys():
        return found[0]
    words, options = [], []
    for name, value in given.items():
        if known[name].param_type_name == "argument":
            words += value.split() if known[name].nargs == -1 else [value]
        else:
            options += _words(known[name], value)
    return shlex.join([NAME, command, *words, *options])


def _option(found: re.Match[str]) -> str:
    name = found[1]
    for command in program(False).commands:
        each = parameters(command).get(name)
        if each is not None and each.param_type_name == "option":
            return shlex.join(_words(each, "".join(shlex.split(found[2]))))
    return found[0]


def _words(parameter: Any, value: str) -> list[str]:
    return [parameter.opts[-1]] if parameter.is_flag else [parameter.opts[-1], value]
