"""Passwords and access tokens: how they are told, refused where they would be kept, and masked where text is shown.

What a recipe, a model's facts or an accelerate config says is written into the run directory, the report and the model
card that `push` uploads. A secret belongs in the environment, where the libraries look for it.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_recipes.recipes.recipe import Value

# Tokens by the prefixes of their issuers, and a private key in PEM.
_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|sk-(?=[\w-]*[0-9A-Z])[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|xox[abeoprs]-[\w-]{8,}|AIza[\w-]{30,})"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
# Of each alternative, by a letter that is always beside it, so that most texts need no search.
_MARKS = {
    "_": ("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "-": ("glpat-", "sk-", "xox", "PRIVATE KEY"),
    "A": ("AKIA", "ASIA", "AIza"),
}
# A name and password, or a password alone, before the host of an address.
_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_NAME = re.compile(
    r"(?:^|_)(?:(?:api|auth|access|hub)?(?:key|token)(?:_id|_value)?$"
    r"|(?:secret|password|passwd|passphrase|webhook|credentials?|authorization)(?:_|$))"
)
# Tokens that a model reads, by what they are for.
_READ_BY_MODELS = re.compile(
    r"(?:^|_)(?:bos|eos|eot|eom|pad|unk|sep|cls|mask|stop|start|end|begin|image|audio|video|vision|boi|eoi|special)"
    r"_token(?:_id)?$|_thinking_key$"
)
# A shorter value of the environment could be any word.
_SHORTEST = 8
# Letters of a key that a message repeats.
LONGEST_KEY = 200
REMEDY = "take it out and set the environment variable that is read instead (HF_TOKEN, WANDB_API_KEY, ...)"


@functools.lru_cache(1024)
def named(key: str) -> bool:
    """Whether a key, or an environment variable, is named as one that holds a secret: `hub_token`, `wandbApiKey`."""
    words = re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).lower()
    return bool(_NAME.search(words)) and not _READ_BY_MODELS.search(words)


def shaped(text: str) -> bool:
    """Whether a text holds what has the shape of an access token or a private key."""
    marks = (mark for letter, marks in _MARKS.items() if letter in text for mark in marks)
    return any(map(text.__contains__, marks)) and bool(_SHAPE.search(text))


def masked(text: str) -> str:
    """A text with `[secret]` in the place of each, known by its shape or as the value of an environment variable."""
    for value in _of_environment().values():
        text = text.replace(value, "[secret]")
    return _LOGIN.sub("[secret]", _SHAPE.sub("[secret]", text))


def what_in(text: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What of a secret a text holds, without repeating it; None if nothing.

    `environment` has the values of variables that are secrets; this process's own, if it is not given.
    """
    for name, value in (_of_environment() if environment is None else environment).items():
        if value in text:
            return f"the value of the environment variable {name}"
    if shaped(text):
        return "what looks like an access token or a private key"
    return "an address with a password" if _LOGIN.search(text) else None


def problems(values: "Mapping[str, Value]") -> dict[str, str]:
    """Of each key that holds a secret at any depth, the message that refuses it, which repeats nothing of it."""
    found = {}
    # To read it for each of hundreds of texts would take longer than all else that is asked of a recipe.
    environment = _of_environment()
    for key, item in values.items():
        if said := next(secrets_of(key, item.value, environment), None):
            found[key] = f"{masked(f'{item.origin}: {said}')}; a recipe is kept, shown and uploaded: {REMEDY}"
    return found


def secrets_of(
    key: str, value: Any, environment: Mapping[str, str] | None = None, named_above: bool = False
) -> Iterator[str]:
    """Where a key, or what lies below it, holds a secret, and by what that is told; `environment` as in `what_in`."""
    is_named = named_above or named(key.rpartition(".")[2])
    if what := what_in(key, environment):
        yield f"a key holds {what}"
    elif isinstance(value, Mapping):
        for below, item in value.items():
            yield from secrets_of(f"{key}.{below}", item, environment, is_named)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secrets_of(key, item, environment, is_named)
    # `token: true` asks for the one of the environment, and a model's key_id is a number.
    elif is_named and not isinstance(value, bool) and value not in (None, "") and not _is_number_of(key, value):
        yield f"{_shortened(key)} is named as a secret"
    elif isinstance(value, str) and (what := what_in(value, environment)):
        yield f"{_shortened(key)} holds {what}"


def _shortened(key: str) -> str:
    return key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}..."


def _is_number_of(key: str, value: Any) -> bool:
    return isinstance(value, int) and key.endswith("_id")


def _of_environment() -> dict[str, str]:
    """The values of environment variables that are named as secrets; KEY is the variable of `make why`."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "KEY" and len(value) >= _SHORTEST and named(name) and not name.endswith(("_PATH", "_FILE", "_DIR"))
    }
