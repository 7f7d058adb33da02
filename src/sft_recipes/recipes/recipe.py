"""Recipes: read, extend, override, check, and say where every value came from.

Nothing here imports torch: a wrong recipe is answered in a fraction of a second.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sft_recipes.errors import InputError, nearest, refuse, shown
from sft_recipes.files import open_regular
from sft_recipes.recipes import adapters, conflicts, places, schema, secrets, sources
from sft_recipes.recipes.shipped import located, shipped_names

RECIPES = Path("recipes")
MODELS = Path("models")
# The keys that name a file which may ship with the program: the demo's rows, a model's chat template.
FILES = (*sources.KEYS, "chat_template_path")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LETTERS = "letters, digits, '_', '-' and '.' only"
# The origins of what the command line says.
GIVEN = ("SET", "DATA")
# What is said of a recipe's own rows, and of no others; and the share of others that is held out where it says none.
OF_ROWS = (
    *("dataset_name", "dataset_config", "validation_file", "test_file", "data_format", "data_columns", "group_column"),
    *("stopping_strategy", "labels", "label_field", "label_pattern", "json_schema"),
)
HELD_OUT = {"validation": 0.1, "test": 0.2}
# A recipe is read by people; what is larger than this is something else.
LARGEST = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Value:
    """A value and where it was written: `recipes/default.yaml:12`, `SET`, or a derivation."""

    value: Any
    origin: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe: its name, every value it sets with its origin, and the recipe that it extends."""

    name: str
    values: dict[str, Value]
    base: "Recipe | None" = None

    def __getitem__(self, key: str) -> Any:
        """The value of a known key: the recipe's, or the default of TRL or of our own keys."""
        if key in self.values:
            return self.values[key].value
        return _default(key)

    def derive(self, **derived: tuple[Any, str]) -> "Recipe":
        """The recipe with values that follow from others, each given as (value, how it was derived)."""
        return dataclasses.replace(
            self, values=self.values | {k: Value(v, f"derived: {o}") for k, (v, o) in derived.items()}
        )

    def upstream(self) -> dict[str, Any]:
        """The values that TRL's own parser reads, without ours."""
        return {key: item.value for key, item in self.values.items() if key not in schema.own()}

    def own(self) -> dict[str, Any]:
        """Our own keys, defaults included."""
        return {key: self[key] for key in schema.own()}

    @property
    def replaced(self) -> list[str]:
        """The keys that DATA= has taken the place of, those for shares apart; none without it."""
        return [key for key in ("train_file", *OF_ROWS) if key in self.values and self.values[key].origin == "DATA"]

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are recomputed; unset, it is TRL's default of the name that is deprecated."""
        chosen = self["activation_checkpointing"]
        return self["gradient_checkpointing"] if chosen is None else chosen

    @property
    def loss_on_answers(self) -> bool:
        """Whether the loss is on answers alone: by default, and where either of TRL's two keys asks for it."""
        return self["completion_only_loss"] is not False or bool(self["assistant_only_loss"])

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}: {self['description']})"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and truth values of YAML 1.2: 2e-4 is a number, `no` is text, 010 is ten."""

    # Its own table: the next lines must not change SafeLoader's.
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012, as PyYAML declares it
    # Mappings, lists and plain values only: no sets, dates or bytes by a tag.
    yaml_constructors: ClassVar[dict] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "seq", "map")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Without aliases, whose expansion has no bound."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping, none of whose names is there twice: PyYAML keeps the last one in silence."""
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[:40]!a} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A truth value, number or text. PyYAML would read 010 as octal eight; YAML 1.2 says ten."""
        kind = node.tag.rpartition(":")[2]
        try:
            text = self.construct_scalar(node)
            text.encode()
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            return {"int": int, "float": float, "str": str}[kind](text)
        except (ValueError, KeyError):
            # What cannot be read is not quoted: it may be a secret.
            said = f"a value cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from None


class _Fast(_Loader):
    """The same of events that libyaml reads, in a sixth of the time."""

    def __init__(self, stream: str) -> None:
        from yaml._yaml import CParser

        super().__init__(stream)
        events = CParser(stream)
        vars(self).update({name: getattr(events, name) for name in ("check_event", "peek_event", "get_event")})


for _kind in ("bool", "int", "float", "str"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_plain)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def names(directory: Path = RECIPES) -> list[str]:
    """The files of a directory by name, `default` first; a project's directory has those that ship too."""
    found = {path.stem for path in directory.glob("*.yaml")} | shipped_names(directory)
    return sorted(found, key=lambda name: (name != "default", name))


def find(kind: str, name: Any, directory: Path, origin: str = "") -> Path:
    """The file of a recipe, a model or an accelerate config (`kind`) by its name.

    Raises:
        InputError: There is no such file; says which there are.
    """
    where, have = f"{origin}: " if origin else "", names(directory)
    known = ", ".join(have)
    if kind == "model" and isinstance(name, str) and ("/" in name or places.is_local(name)):
        known += '; for a directory or a Hub id write SET="model_name_or_path=... model_revision=main"'
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{where}invalid {kind} name {name!r}: {LETTERS}; there are {known}")
    path = directory / f"{name}.yaml"
    if located(path).is_file():
        # What is wrong with a recipe is quoted, and a link may lead to what is nobody's recipe.
        if path.is_file() and path.resolve().parent != directory.resolve():
            raise InputError(f"{where}{path} is a link that leads out of {directory}/; copy the file there")
        return path
    if not have:
        raise InputError(f"{where}no {kind}s in {directory.absolute()}")
    raise InputError(f"{where}no {kind} {name!r} in {directory}/{nearest(name, have)}; there are {known}")


def read(path: Path) -> dict[str, Value]:
    """The keys of one YAML (or JSON) file, each with its file and line.

    Raises:
        InputError: The file cannot be read as a flat mapping, or names a key twice.
    """
    try:
        with open_regular(located(path)) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST:
                raise InputError(f"{path}: {size} bytes are too many for a recipe; at most {LARGEST}")
            loader, node = _composed(file.read().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise InputError(f"{where}: not YAML: {what}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; a recipe is flat") from None
    if node is None:
        raise InputError(f"{path}: empty; write keys as `lora_r: 32`, or start with `extends: default`")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}:1: a recipe is a mapping of keys to values, not a list or a single value")
    values: dict[str, Value] = {}
    problems = []
    for key_node, value_node in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{where}: a key is a word, not a list or a mapping")
            continue
        key = key_node.value
        if len(key) > schema.LONGEST_KEY:
            problems.append(f"{where}: {schema.problem(key, None)}")
            continue
        if key in values:
            problems.append(f"{where}: {key} appears twice, first at {values[key].origin}; keep one")
            continue
        try:
            values[key] = Value(loader.construct_object(value_node, deep=True), where)
        except yaml.YAMLError as error:
            said = f"{key}: {getattr(error, 'problem', error)}; write a plain value"
            problems.append(f"{where}: {secrets.masked(said)}")
    refuse(problems)
    return values


def _composed(text: str) -> tuple[_Loader, yaml.Node | None]:
    """The one document of a text, and what constructs its values."""
    if yaml.__with_libyaml__:
        # What it cannot read is PyYAML's to say, whose words are for people.
        with contextlib.suppress(yaml.YAMLError):
            loader: _Loader = _Fast(text)
            return loader, loader.get_single_node()
    loader = _Loader(text)
    return loader, loader.get_single_node()


# Where a word begins a list or a mapping.
_BRACKETED = re.compile(r"\s*(?P<key>[\w-]+=)(?=[\[{])")

# As a command line has them, as a mapping of keys to values, or read already.
Overrides = str | Iterable[str] | Mapping[str, Any]


def parse_overrides(text: Overrides) -> dict[str, Value]:
    """Overrides `key=value key=value`, split as a shell splits words with values read as YAML, or a mapping.

    A list or a mapping of YAML is one value up to its last bracket: `data_columns={instruction: text, output: label}`.

    Raises:
        InputError: A word is no `key=value`, or a value is no YAML.
    """
    if isinstance(text, Mapping):
        return {
            str(key): value
            if isinstance(value, Value)
            else Value(str(value) if isinstance(value, Path) else value, "SET")
            for key, value in text.items()
        }
    try:
        words = [word for part in ([text] if isinstance(text, str) else text) for word in _words(part)]
    except ValueError as error:
        raise InputError(f'SET: {error}; write SET="learning_rate=1e-4 lora_r=16"') from None
    # What is wrong is quoted, unless a secret was to be set: without quotes, it is a word of its own.
    secret = any(map(secrets.named, re.findall(r"[\w-]+", " ".join(words))))
    values: dict[str, Value] = {}
    problems = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            quoted = "what stands there" if secret else secrets.masked(shown(word))
            problems.append(f'SET: {quoted} is not key=value; write SET="learning_rate=1e-4 lora_r=16"')
            continue
        if len(key) > schema.LONGEST_KEY:
            problems.append(f"SET: {schema.problem(key, None)}")
            continue
        if key in values:
            problems.append(f"SET: {key} appears twice; keep one")
        try:
            values[key] = Value(yaml.load(value, Loader=_Loader), "SET")  # noqa: S506, a SafeLoader
        except (yaml.YAMLError, RecursionError):
            quoted = "what stands there" if secret else secrets.masked(shown(value))
            problems.append(f"SET: {key}: {quoted} is not a YAML value; quote it")
    refuse(problems)
    return values


def _words(text: str) -> Iterator[str]:
    """The words of a command line, those that begin a list or a mapping up to its end.

    Raises:
        ValueError: A quote or a bracket is not closed.
    """
    position = 0
    while position < len(text):
        if (found := _BRACKETED.match(text, position)) and (
            end := _closed(text, found.end(), found["key"])
        ) is not None:
            yield text[found.start("key") : end]
            position = end
            continue
        words = shlex.shlex(text[position:], posix=True, punctuation_chars=False)
        words.whitespace_split, words.commenters = True, ""
        if (word := words.get_token()) is None:
            return
        yield word
        position += words.instream.tell()  # type: ignore[attr-defined]


def _closed(text: str, start: int, key: str) -> int | None:
    """Where the list or mapping ends that begins at a position; None if it is one word without it."""
    depth, quote, before = 0, "", ""
    for position in range(start, len(text)):
        char = text[position]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and before in "{[,:":
            quote = char
        else:
            depth += (char in "{[") - (char in "}]")
        if depth == 0:
            ends = position + 1 == len(text) or text[position + 1].isspace()
            return position + 1 if ends else None
        before = before if char.isspace() else char
    raise ValueError(f"the list or mapping behind {key} has no end")


def as_words(overrides: Overrides) -> list[str]:
    """Overrides as the words of a command line, which `parse_overrides` reads as the same values."""
    if not isinstance(overrides, Mapping):
        return [overrides] if isinstance(overrides, str) else [*overrides]
    return [shlex.quote(f"{key}={json.dumps(value, default=str)}") for key, value in overrides.items()]


def read_model(name: Any) -> dict[str, Value]:
    """The facts of a model that any recipe can be trained with, `models/NAME.yaml`, each with its file and line.

    Raises:
        InputError: There is no such file, or it says what belongs in a recipe.
    """
    path = find("model", name, MODELS)
    values = read(path)
    problems = []
    for key, item in values.items():
        if key not in schema.known():
            problems.append(f"{item.origin}: {schema.problem(key, item.value)}")
        elif key not in schema.DATA["of_a_model"]:
            problems.append(
                f"{item.origin}: {key} is a choice and no fact of a model; write it in {RECIPES}/, or SET="
            )
    # A revision, too: the one that a recipe pins is another model's.
    missing = [key for key in ("description", "model_name_or_path", "model_revision") if key not in values]
    if missing:
        problems.append(
            f"{path}: {', '.join(missing)} missing; say {'it' if len(missing) == 1 else 'them'} of every model"
        )
    refuse(problems)
    return values


def file_of(recipe: str | Path, directory: Path = RECIPES) -> Path:
    """The file of a recipe by its name, or by its path.

    Raises:
        InputError: There is no recipe of that name.
    """
    as_path = isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml", ".json"))
    return Path(recipe) if as_path else find("recipe", str(recipe), directory)


def load(recipe: str | Path, overrides: Overrides = (), directory: Path = RECIPES) -> Recipe:
    """Read a recipe by its name (or a file by its path), over its base, under the overrides, and check every key.

    An override `model` names a file of models/, and `data` other rows (`_rows_given`); the values of both come before
    the other overrides. Of a recipe that continues from an adapter, base and shape are the adapter's
    (`adapters.continued`).

    Raises:
        InputError: With all problems of the recipe, its base, the model and the overrides at once.
    """
    given = parse_overrides(overrides)
    path = file_of(recipe, directory)
    own = read(path)
    base = own.get("extends")
    values: dict[str, Value] = {}
    problems = []
    if base is not None and base.value is not None:
        try:
            parent = find_base(base.value, path.parent, base.origin)
            if parent == path:
                raise InputError(f"{base.origin}: a recipe cannot extend itself")
            values = read(parent)
            if "extends" in values:
                problems.append(
                    f"{base.origin}: {base.value} itself extends {values['extends'].value} ({parent}); two files must "
                    f"tell the whole story, so extend {values['extends'].value} and write the difference here"
                )
        except InputError as error:
            problems += error.problems
    if "extends" in given:
        problems.append("SET: extends cannot be overridden; name the other recipe instead")
    extended = Recipe(str(base.value), values) if values and base else None
    values = {**values, **own}
    if "model" in given:
        try:
            values |= _facts(read_model(given.pop("model").value), values)
        except InputError as error:
            problems += error.problems
    if "data" in given:
        values |= _rows_given(given.pop("data").value, values, given)
    values = {key: item for key, item in {**values, **given}.items() if key != "extends"}
    values |= _shipped_files(values)
    if extended:
        # What the base says is shown beside what the recipe says instead.
        inherited = {key: item for key, item in extended.values.items() if values.get(key) != item}
        problems += secrets.problems(inherited).values()
    problems += refused(values)
    loaded = Recipe(path.stem, values, extended)
    if not problems and loaded["adapter_name_or_path"]:
        loaded = adapters.continued(loaded)
    if not problems:
        for each in conflicts.of_values(loaded):
            problems.append(f"{values[each.key].origin if each.key in values else loaded.name}: {each}")
    refuse(problems)
    return loaded


def _rows_given(file: Any, values: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """What DATA= says in place of all that a recipe says of its own rows; what `given` says besides is its own."""

    def said(key: str) -> Any:
        item = given.get(key) or values.get(key)
        return _default(key) if item is None else item.value

    found = {key: _default(key) for key in OF_ROWS if key not in given and said(key) != _default(key)}
    wanted = {"validation": said("eval_strategy") != "no", "test": said("task") is not None}
    for split, share in HELD_OUT.items():
        own, size = f"{split}_file", f"{split}_split_size"
        # The share of a recipe that names a file was never its choice.
        if wanted[split] and not {own, size} & given.keys() and (own in found or not said(size)):
            found[size] = share
    return {key: Value(value, "DATA") for key, value in {"train_file": file, **found}.items()}


def _default(key: str) -> Any:
    return (schema.own().get(key) or schema.upstream()[key])["default"]


def _shipped_files(values: Mapping[str, Value]) -> dict[str, Value]:
    """The files that a recipe names where the program's own copies are the only ones, with where those are."""
    named = {key: values[key] for key in FILES if key in values}
    found = {key: sources.renamed(item.value, _where) for key, item in named.items()}
    return {
        key: dataclasses.replace(named[key], value=value) for key, value in found.items() if value != named[key].value
    }


def _where(name: str) -> str:
    """The name of a file as it is written, or where the program's own copy is if that is the only one."""
    path = located(name)
    return name if path == Path(name) else str(path)


def find_base(name: Any, beside: Path, origin: str = "") -> Path:
    """The file of the recipe that another one extends: beside it, else where a recipe of that name is found."""
    return find("recipe", name, RECIPES if name in names() and name not in names(beside) else beside, origin)


def refused(values: Mapping[str, Value], *, resolved: bool = False) -> list[str]:
    """What no recipe may say among these values, one by one, each with its place.

    Args:
        resolved: as `schema.problem` takes it.
    """
    secret = secrets.problems(values)
    found = {
        key: schema.problem(key, item.value, resolved=resolved) for key, item in values.items() if key not in secret
    }
    return [*secret.values(), *(f"{values[key].origin}: {text}" for key, text in found.items() if text)]


def _facts(model: Mapping[str, Value], recipe: Mapping[str, Value]) -> dict[str, Value]:
    """What a model says over a recipe, whose idea stays the recipe's."""
    targets = recipe.get("lora_target_modules")
    # A model names its layers where a recipe's names are not among them; all-linear is every model's.
    kept = {"description", *(["lora_target_modules"] if targets and targets.value == ["all-linear"] else [])}
    return {key: item for key, item in model.items() if key not in kept}


class Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which YAML 1.2 reads as a number, such as 2e-4, as our loader does."""


Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def dump(values: Mapping[str, Any]) -> str:
    """Flat YAML that readers of YAML 1.1, stock `trl sft --config` among them, and of 1.2 understand the same way."""
    return yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


def line(key: str, value: Any) -> str:
    """One line of the recipe that YAML 1.1 and 1.2 read alike; characters that do not print are escaped."""
    printable = schema.as_yaml(value).isprintable()
    style = '"' if isinstance(value, str) and not printable else None
    alone = style is not None or isinstance(value, (list, dict))
    dumped = yaml.dump(
        value if alone else {key: value},
        Dumper=Dumper,
        default_flow_style=alone,
        default_style=style,
        allow_unicode=printable,
        width=10**6,
    ).rstrip()
    return f"{key}: {dumped}" if alone else dumped
