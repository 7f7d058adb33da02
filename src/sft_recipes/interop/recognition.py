"""Whose file is it? Several keys of one tool with a margin before any other tell, or it is refused."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.errors import InputError, did_you_mean
from sft_recipes.interop import importers
from sft_recipes.interop.importers import TOOLS
from sft_recipes.recipes import schema, secrets
from sft_recipes.recipes.recipe import Value
from sft_recipes.recipes.shipped import located

# A file is recognised by so many keys, and none but the tool may have more than this share of them.
_SIGNS, _MARGIN = 2, 0.5
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def recognise(path: Path, values: Mapping[str, Value], tool: str | None) -> tuple[str, tuple[str, ...]]:
    """Whose file it is: the tool with several of its signs there, clearly more than any other, and most keys known."""
    if tool is not None:
        if tool not in TOOLS:
            hint = did_you_mean(tool, TOOLS)
            raise InputError(f"no tool {plain(tool, 40)}; there are {', '.join(TOOLS)}{hint}")
        return tool, ()
    found = {
        name: tuple(key for key in flat(values, name) if key in of_tool.signs)
        for name, of_tool in TOOLS.items()
        if of_tool.of is None
    }
    best, *others = sorted(found, key=lambda name: -len(found[name]))
    say = "say which tool reads it with --tool (TOOL=)"
    rivals = [name for name in others if len(found[name]) > _MARGIN * len(found[best])]
    if len(found[best]) < _SIGNS or rivals:
        of = "; ".join(f"{', '.join(found[name])} of {name}" for name in (best, *rivals) if found[name])
        few = f"too little to tell ({of})" if of else f"no key of {', '.join(TOOLS)}"
        raise InputError(f"{path}: {few}; {say}")
    keys = flat(values, best)
    refuse_other(path, best, keys)
    strange = [key for key in keys if not importers.knows(best, key)]
    if 2 * len(strange) > len(keys):
        names = ", ".join(plain(key, 40) for key in strange[:4])
        raise InputError(
            f"{path}: it has {', '.join(found[best][:4])} of {best}, but {len(strange)} of its {len(keys)} keys are "
            f"not known as keys of that, such as {names}; if it is a file of {best} all the same, {say}"
        )
    variant = (name for name, each in TOOLS.items() if each.of == best and any(key in values for key in each.signs))
    return next(variant, best), found[best]


def refuse_other(path: Path, tool: str, file: Mapping[str, Any]) -> None:
    """Refuse a file that does something else than supervised fine-tuning."""
    if other := importers.refused(tool, file):
        raise InputError(f"{path}: a file of {TOOLS[tool].title}, but {other}; no recipe can be made of it")


def flat(values: Mapping[str, Value], tool: str) -> dict[str, Any]:
    """The keys of a file; of a tool that has sections, section.key."""
    file: dict[str, Any] = {}
    left = [(key, item.value) for key, item in reversed([*values.items()])]
    while left:
        key, value = left.pop()
        section = TOOLS[tool].nested and isinstance(value, Mapping) and value and key not in TOOLS[tool].keys
        if section and key.count(".") < schema.DEEPEST:
            left += [(f"{key}.{name}", inner) for name, inner in reversed([*value.items()])]
        else:
            file[key] = value
    if TOOLS[tool].nested:
        # Tools with sections have OmegaConf's references to another key.
        named = {key: found[1] for key, value in file.items() if (found := _REFERENCE.fullmatch(str(value)))}
        file |= {key: file[name] for key, name in named.items() if name in file}
    return file


def lines(path: Path) -> dict[str, int]:
    """The line of every key of a file that was read, and of every section.key in it."""
    found: dict[str, int] = {}
    left: list[tuple[str, Any]] = [("", yaml.compose(located(path).read_text("utf-8"), yaml.SafeLoader))]
    while left:
        section, node = left.pop()
        for key, value in node.value:
            name = f"{section}{key.value}"
            found[name] = key.start_mark.line + 1
            left += [(f"{name}.", value)] if isinstance(value, yaml.MappingNode) else []
    return found


def plain(words: str, longest: int = 1000) -> str:
    """One printable line without secrets."""
    line = "".join(char if char.isprintable() else " " for char in secrets.masked(words))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
