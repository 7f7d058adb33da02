"""Where a recipe's model, rows and chat template lie: in a file, in a directory, or in a repository of the Hub."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft_recipes.errors import InputError, listed, shown
from sft_recipes.files import open_regular
from sft_recipes.terminal import count

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Recipe

# As huggingface_hub's `validate_repo_id` has it.
_REPOSITORY = re.compile(
    r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII
)
# What PEFT knows an adapter by, as a directory with it is an adapter to transformers too.
ADAPTER = "adapter_config.json"
# By its suffix TRL tells a template from a model whose template it would take.
TEMPLATES = (".jinja", ".j2")
# What a file may be called that somebody takes for a template, and no repository is.
_FILE = re.compile(r".*\.(?:jinja2|txt|tpl|tmpl|template|html|json|ya?ml|md)", re.IGNORECASE)
# The longest template of a model that transformers knows has a tenth of it.
_LARGEST = 2**20


def is_path(name: str) -> bool:
    """Whether a name can only be that of a file or directory."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def is_local(name: str) -> bool:
    """Whether a name can only be that of a file or directory, or is one that exists."""
    return is_path(name) or os.path.lexists(name)


def directory_with(file: str, name: str, revision: str = "main") -> Path | None:
    """Where a model of that name is on this machine with a file: its directory, or its snapshot in the Hub's cache."""
    directory = Path(name).expanduser()
    if (directory / file).is_file():
        return directory
    if is_path(name):
        return None
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir():
        # What reads the cache imports a client of HTTP, which takes as long as a plan.
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def damaged_weights(directory: Path) -> str | None:
    """What is wrong with the files of weights that a model in a directory is loaded from: missing, or cut off."""
    whole = [name for name in ("model.safetensors", "pytorch_model.bin") if (directory / name).is_file()][:1]
    indices = (directory / f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin"))
    index = next((path for path in indices if path.is_file()), None)
    if not whole and index is None:
        return None
    try:
        names = whole or sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})  # type: ignore[union-attr]
        missing = [name for name in names if not (directory / name).is_file()]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{index.name} is no index of weights"  # type: ignore[union-attr]
    if missing:
        return f"{listed(missing)} missing of its {count(len(names), 'file')} of weights"
    cut = [name for name in names if name.endswith(".safetensors") and _cut_off(directory / name)]
    return f"{listed(cut)} cut off or damaged" if cut else None


def _cut_off(path: Path) -> bool:
    """Whether a file of safetensors does not end where its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(length)) if length < size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0) != size
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return True


def nowhere(key: str, name: str, noun: str) -> str | None:
    """Why a name can be that of neither a directory nor a repository, as a sentence; None if it can."""
    if name.startswith("~") and not name.startswith("~/"):
        return f"{key}: {shown(name)} is in nobody's home; write the directory in full"
    if key == "dataset_name" and os.path.isfile(name):  # noqa: PTH113, of a name too long it is false
        return f"{key}: {name} is a file, and this names a directory or a Hub id; write train_file: {name}"
    if not is_local(name) and not _REPOSITORY.fullmatch(name):
        return f"{key}: {shown(name)} is no directory of a {noun}, and no Hub id such as ORG/NAME"
    return None


def is_adapter(name: str) -> bool:
    """Whether a directory holds an adapter, or is that of a run that does."""
    directory = Path(name).expanduser()
    return any((directory / place / ADAPTER).is_file() for place in (".", "adapter"))


def not_a_model(name: str) -> str:
    """That an adapter is none, and the key that names one."""
    return f"{name} is an adapter and no model; write adapter_name_or_path: {name}, which brings its own base"


def template(name: str) -> str:
    """The text of a chat template file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open_regular(Path(name)) as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise InputError(f"chat_template_path: {name} has more than {_LARGEST} bytes; it is no template")
        return text.decode("utf-8")
    except OSError as error:
        raise InputError(f"chat_template_path: {name} cannot be read: {error.strerror}; correct the path") from None
    except UnicodeDecodeError:
        raise InputError(f"chat_template_path: {name} is not UTF-8 text; save it as UTF-8") from None


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """What is wrong with the names themselves, as (key, problem)."""
    for key, noun in (("model_name_or_path", "saved model"), ("dataset_name", "dataset")):
        if recipe[key] and (found := nowhere(key, recipe[key], noun)):
            yield key, found
        elif key == "model_name_or_path" and recipe[key] and is_adapter(recipe[key]):
            yield key, f"{key}: {not_a_model(recipe[key])}"
    name = recipe["chat_template_path"]
    if not name:
        return
    instead = "name a .jinja file, or a model whose template is to be taken"
    if name.endswith(TEMPLATES):
        try:
            template(name)
        except InputError as error:
            yield "chat_template_path", str(error)
    elif Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json")):
            yield "chat_template_path", f"chat_template_path: {name} is a directory without a tokenizer; {instead}"
    elif is_local(name) or _FILE.fullmatch(name):
        wrong = "has not the suffix .jinja" if Path(name).exists() else "does not exist"
        yield "chat_template_path", f"chat_template_path: {name} {wrong}; {instead}"
    elif not _REPOSITORY.fullmatch(name):
        yield "chat_template_path", f"chat_template_path: {shown(name)} is no file and no Hub id; {instead}"
