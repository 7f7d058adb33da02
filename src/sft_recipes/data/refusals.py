"""What a tokenizer and its chat template cannot do with a recipe's rows: said by a plan, refused by a training."""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from sft_recipes.data import templates
from sft_recipes.errors import closest
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.places import TEMPLATES
from sft_recipes.recipes.recipe import Recipe


class TokenizerFacts(TypedDict):
    """What is known of a tokenizer that has the recipe's tokens and chat template."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    largest: int  # of the ids of its end of text and padding
    ends: bool  # whether eos_token is one of its tokens
    near: str  # its token that is most like an eos_token that is none of them; empty if none is
    closes: bool  # whether it appends its end of text to plain text
    template: bool  # whether it has a chat template
    marked: bool  # whether the assistant's turns can be told in what the template renders
    alike: list[str]  # shipped templates that render the same, with these marks; none where its own has them


def facts(tokenizer: Any) -> TokenizerFacts:
    """What `refused` goes by."""
    vocabulary = tokenizer.get_vocab()
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")}
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    marked = template is not None and templates.training_template(template) is not None
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ids = [vocabulary[names[name]] for name in ("eos_token", "pad_token") if names[name] in vocabulary]
    return {
        **names,  # type: ignore[typeddict-item]
        "largest": max(ids, default=0),
        "ends": names["eos_token"] in vocabulary,
        "near": closest(names["eos_token"] or "", added, 0.4),
        "closes": tokenizer("a", verbose=False)["input_ids"][-1:] == [tokenizer.eos_token_id],
        "template": template is not None,
        "marked": marked,
        "alike": templates.alike(tokenizer) if template is not None and not marked else [],
    }


def refused(
    base: str,
    template_path: str | None,
    known: TokenizerFacts,
    *,
    conversational: bool,
    marks: bool,
    embeddings: int | None = None,
    largest: int = 0,
) -> Iterator[Conflict]:
    """What a training of rows with this tokenizer is refused for.

    Args:
        base: The model as the recipe names it.
        template_path: Where the recipe's chat template is, if it is not the tokenizer's own.
        known: What `facts` says of the tokenizer.
        conversational: Whether the rows are turns, which the template renders.
        marks: Whether the loss is on every assistant turn, which the template has to mark.
        embeddings: The rows of the model's embedding, where they are known and stay as they are.
        largest: The largest token of the rows, as far as they have been tokenised.
    """

    def wrong(rule: str, reason: str, remedy: str) -> Conflict:
        return Conflict(rule, "recipe", reason, remedy)

    if not known["ends"]:
        token = known["eos_token"]
        what = f"eos_token {token!r} is no token of" if token else "no token ends a text in"
        such = f", such as {known['near']}" if known["near"] else ""
        yield wrong("eos-token", f"{what} the tokenizer of {base}", f"set eos_token to one that it has{such}")
    template = template_path or f"the chat template of {base}"
    if conversational and not known["template"]:
        what = f"the rows are conversations, and the tokenizer of {base} has no chat template"
        remedy = "set chat_template_path to a .jinja file, the template that the model was trained with"
        yield wrong("chat-template", what, remedy)
    elif marks and not known["marked"]:
        copy = "a copy of it with {% generation %} around the assistant's text; or give each row one answer"
        if known["alike"]:
            copy = f"{known['alike'][0]}, which renders the same and marks them"
        yield wrong(
            "chat-template",
            f"some rows have several answers, and {template} does not mark them, so the loss cannot be computed on "
            "answers only",
            f"set chat_template_path to {copy}",
        )
    if known["closes"] and not conversational:
        yield wrong(
            "end-of-text-twice",
            f"the tokenizer of {base} appends {known['eos_token']} to a text, and so does TRL: each answer would end "
            "with two of them, both trained on, and each prompt with one",
            "take it out of post_processor in its tokenizer.json (or add_eos_token: false in tokenizer_config.json, "
            "where that is set), or write the rows as conversations",
        )
    yield from beyond(base, max(largest, known["largest"]), embeddings)


def beyond(base: str, largest: int, embeddings: int | None) -> Iterator[Conflict]:
    """Tokens for which the model has no embedding, as far as its embeddings are known."""
    if embeddings is not None and largest >= embeddings:
        yield Conflict(
            "tokens-beyond-embedding",
            "recipe",
            f"the rows, or the end of text and padding, hold token {largest:,}, and {base} has embeddings for "
            f"{embeddings:,}",
            "take the tokenizer that the model was trained with, or save the model with its embeddings resized to the "
            "tokenizer's",
        )


def of_recipe(
    recipe: Recipe, known: TokenizerFacts, rows: Mapping[str, Any], config: Mapping[str, Any] | None, largest: int
) -> Iterator[Conflict]:
    """What a training of a recipe, as it is written, is refused for.

    Args:
        recipe: The recipe.
        known: What `facts` says of its tokenizer.
        rows: Their `kind`, and whether they are `conversational`.
        config: The values of the language model's config; None where they are not known.
        largest: The largest token of the rows.
    """
    path = recipe["chat_template_path"]
    yield from refused(
        recipe["model_name_or_path"],
        path,
        known,
        conversational=rows["conversational"],
        marks=rows["kind"] == "messages" and recipe.loss_on_answers,
        embeddings=None if brings_tokens(path) or config is None else config.get("vocab_size"),
        largest=largest,
    )


def brings_tokens(template_path: str | None) -> bool:
    """Whether the chat template is another model's, whose tokens TRL adds and makes room for."""
    return template_path is not None and not template_path.endswith(TEMPLATES)
