"""A JSON schema of answers: read, checked as a whole before anything is trained, and never fetched from elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from sft_recipes.errors import InputError, refuse
from sft_recipes.files import open_regular


def read(name: str) -> Any:
    """The schema in a file, which `validator` takes.

    Raises:
        InputError: The file cannot be read, or is no schema that can be checked against.
    """
    try:
        with open_regular(Path(name)) as file:
            schema = json.loads(file.read())
    except OSError as error:
        raise InputError(f"json_schema: {name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"json_schema: {name} is not JSON: {error}") from None
    try:
        validator(schema)
    except InputError as error:
        raise InputError(*(f"json_schema: {name}: {problem}" for problem in error.problems)) from None
    return schema


def validator(schema: Any) -> Draft202012Validator:
    """What decides whether an answer is valid JSON of this schema (Draft 2020-12).

    Nothing is fetched: a reference to another document is an error.

    Raises:
        InputError: The schema is none, or refers to what it does not hold.
    """
    try:
        Draft202012Validator.check_schema(schema)
        whole = DRAFT202012.create_resource(schema)
        registry = Registry().with_resource("", whole).crawl()
        problems = sorted(set(_unresolvable(schema, registry.resolver())))
    except SchemaError as error:
        raise InputError(f"the JSON schema is not valid at {error.json_path}: {error.message}") from None
    except RecursionError:
        raise InputError("the JSON schema is nested too deeply; write parts of it below $defs") from None
    refuse(problems)
    return Draft202012Validator(schema, registry=registry)


def _unresolvable(node: Any, resolver: Any) -> Iterator[str]:
    """What is wrong with the references of a schema that lead nowhere."""
    if isinstance(node, dict):
        resolver = resolver.in_subresource(DRAFT202012.create_resource(node))
        for key in ("$ref", "$dynamicRef"):
            if isinstance(node.get(key), str):
                try:
                    resolver.lookup(node[key])
                except (Unresolvable, ValueError):
                    yield (
                        f"the JSON schema refers to {node[key]!r}, which is not in it, and nothing is fetched; "
                        "write that definition below $defs and refer to it as #/$defs/NAME"
                    )
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _unresolvable(child, resolver)
