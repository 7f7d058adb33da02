"""The licence of a base model, which holds for what is made of it too, and what it asks of those who hand that on."""

import dataclasses
import re
from typing import Any

import yaml

from sft_recipes.recipes import places, schema

CARD = "README.md"
_TABLE = schema.table("sft_recipes.models", "licences.yaml")
_OF_MODELS = {model: licence for licence, models in _TABLE["models"].items() for model in models}


@dataclasses.dataclass(frozen=True)
class Licence:
    """A licence by its name on the Hub, and what it asks for."""

    name: str
    called: str | None = None  # what it is called, where its name is `other`
    link: str | None = None
    says: str | None = None  # what has to be said where the model is described
    begins: str | None = None  # what the name of the model has to begin with
    notice: str | None = None  # what has to stand in a text file of that name beside the model
    copy: bool = False  # whether a copy of the licence has to go with the model
    closed: bool = False  # whether what is made of the model may not be handed on

    @property
    def title(self) -> str:
        """What people read."""
        return self.called or self.name


def of(model: str, revision: str = "main") -> Licence | None:
    """The licence of a base by its name or directory, without the network; None where it is not known here.

    It is that of the models in models/, or what the model's own card says, if the card is on this machine.
    """
    if model in _OF_MODELS:
        return named(_OF_MODELS[model])
    from huggingface_hub import ModelCard

    directory = places.directory_with(CARD, model, revision)
    try:
        return from_card(ModelCard.load(directory / CARD).data) if directory else None
    except (OSError, ValueError, yaml.YAMLError):
        # A card that cannot be read says nothing.
        return None


def from_card(data: Any) -> Licence | None:
    """The licence that the metadata of a model's card name; None if they name none, or several."""
    name = getattr(data, "license", None)
    if not isinstance(name, str) or name in ("", "unknown"):
        return None
    found = named(name)
    called, link = (getattr(data, f"license_{part}", None) for part in ("name", "link"))
    # Anybody's text, of which nothing but an address becomes one.
    link = link if re.fullmatch(r"https://[^\s()<>]+", str(link)) else None
    return dataclasses.replace(found, called=called and str(called), link=found.link or link)


def named(name: str) -> Licence:
    """A licence by its name on the Hub."""
    return Licence(name, **_TABLE["licences"].get(name, {}))
