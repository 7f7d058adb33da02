"""What a tokenizer and its chat template cannot do with a recipe's rows: said by a plan, refused by a training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from sft_recipes.data import templates
from sft_recipes.errors import closest, listed, nearest
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
    renders: list[str]  # what its chat template writes of what rows may hold (`templates.PARTS`)
    variables: list[str]  # what its chat template can be told


def facts(tokenizer: Any) -> TokenizerFacts:
    """What `of_recipe` goes by."""
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
        "renders": templates.renders(template, tokenizer.special_tokens_map) if template is not None else [],
        "variables": templates.variables(template) if template is not None else [],
    }


def of_recipe(
    recipe: Recipe, known: TokenizerFacts, rows: Mapping[str, Any], config: Mapping[str, Any] | None, largest: int
) -> Iterator[Conflict]:
    """What a training with this tokenizer is refused for.

    Args:
        rows: Their `kind`, whether they are `conversational`, what they hold that not every template renders
            (`templates.PARTS`), and which `variables` they tell the template.
        config: The values of the language model's config; None where they are not known.
        largest: The largest token of the rows, as far as they have been tokenised.
    """
    base, path, conversational = recipe["model_name_or_path"], recipe["chat_template_path"], rows["conversational"]
    if not known["ends"]:
        token = known["eos_token"]
        what = f"eos_token {token!r} is no token of" if token else "no token ends a text in"
        such = f", such as {known['near']}" if known["near"] else ""
        yield Conflict("eos-token", f"{what} the tokenizer of {base}", f"set eos_token to one that it has{such}")
    template = path or f"the chat template of {base}"
    if conversational and not known["template"]:
        what = f"the rows are conversations, and the tokenizer of {base} has no chat template"
        remedy = "set chat_template_path to a .jinja file, the template that the model was trained with"
        yield Conflict("chat-template", what, remedy)
    # The loss is on every assistant turn then, which the template has to mark.
    elif rows["kind"] == "messages" and recipe.loss_on_answers and not known["marked"]:
        copy = "a copy of it with {% generation %} around the assistant's text; or give each row one answer"
        if known["alike"]:
            copy = f"{known['alike'][0]}, which renders the same and marks them"
        yield Conflict(
            "chat-template",
            f"some rows have several answers, and {template} does not mark them, so the loss cannot be computed on "
            "answers only",
            f"set chat_template_path to {copy}",
        )
    if known["template"]:
        yield from _unrendered(template, known, rows["holds"], rows["variables"])
        calls_asked = recipe["task"] == "generation" and "call answers" in rows["holds"]
        if calls_asked and "calls" in known["renders"] and "call answers" not in known["renders"]:
            yield Conflict(
                "chat-template",
                f"the task asks for calls of tools, and {template} does not write them as an object of JSON with name "
                "and arguments, so an evaluation could not read them",
                "set task: null, or set chat_template_path to a template that writes such objects",
            )
    if known["closes"] and not conversational:
        yield Conflict(
            "end-of-text-twice",
            f"the tokenizer of {base} appends {known['eos_token']} to a text, and so does TRL: each answer would end "
            "with two of them, both trained on, and each prompt with one",
            "take it out of post_processor in its tokenizer.json (or add_eos_token: false in tokenizer_config.json, "
            "where that is set), or write the rows as conversations",
        )
    embeddings = None if brings_tokens(path) or config is None else config.get("vocab_size")
    yield from beyond(base, max(largest, known["largest"]), embeddings)


def _unrendered(
    template: str, known: TokenizerFacts, holds: Sequence[str], variables: Sequence[str]
) -> Iterator[Conflict]:
    """What of the rows a chat template would leave out, so that the model never sees it."""
    words = {"tools": "tools", "calls": "calls of tools", "results": "results of tools", "reasoning": "reasoning"}
    lost = [part for part in holds if part not in known["renders"] and part != "call answers"]
    other = "set chat_template_path to a template that does, or take a model that has one"
    for parts, remedy in (
        ([part for part in lost if part != "reasoning"], f"{other}, such as model: qwen3_0_6b"),
        (["reasoning"] if "reasoning" in lost else [], f"{other}; or set drop_reasoning: true, which leaves it out"),
    ):
        if parts:
            what = " and ".join(words[part] for part in parts)
            reason = f"some rows have {what}, and {template} does not write them, so the model would never see them"
            yield Conflict("chat-template", reason, remedy)
    if unknown := [name for name in variables if name not in known["variables"]]:
        near = nearest(unknown[0], known["variables"])
        yield Conflict(
            "chat-template",
            f"chat_template_kwargs of some rows sets {listed(unknown)}, which {template} does not know, so it has no "
            "effect",
            f"delete it{near}, or set chat_template_path to a template that knows it",
        )


def beyond(base: str, largest: int, embeddings: int | None) -> Iterator[Conflict]:
    """Tokens for which the model has no embedding, as far as its embeddings are known."""
    if embeddings is not None and largest >= embeddings:
        yield Conflict(
            "tokens-beyond-embedding",
            f"the rows, or the end of text and padding, hold token {largest:,}, and {base} has embeddings for "
            f"{embeddings:,}",
            "take the tokenizer that the model was trained with, or save the model with its embeddings resized to the "
            "tokenizer's",
        )


def brings_tokens(template_path: str | None) -> bool:
    """Whether the chat template is another model's, whose tokens TRL adds and makes room for."""
    return template_path is not None and not template_path.endswith(TEMPLATES)
