"""The model card: README.md beside the adapter or the merged model, from the run directory and nothing else.

Paths of this machine are left out of it, because a card is published with the weights.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sft_recipes.files import write_whole
from sft_recipes.models import base_model, licences
from sft_recipes.models.licences import Licence
from sft_recipes.recipes import schema
from sft_recipes.report import page, quality, serving
from sft_recipes.report.report import evaluation
from sft_recipes.runs import earlier
from sft_recipes.runs.run import Run

Facts = dict[str, Any]

CARD, NOTICE = "README.md", "NOTICE"
# Keys of a recipe that say where files lie, not what was learned.
_PLACES = {
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"),
    *("train_file", "validation_file", "test_file", "json_schema", "output_dir", "run_name", "report_to"),
}


def write(run: Run) -> None:
    """Write the card, and the notice that the base's licence asks for, beside the adapter."""
    write_beside(run.adapter, run)


def write_beside(directory: Path, run: Run, proof: Facts | None = None) -> None:
    """Write `card` into a directory, and the notice that the base's licence asks for."""
    write_whole(directory / CARD, card(run, proof))
    recipe = run.values()
    put_notice(directory, licences.of(recipe["model_name_or_path"], recipe.get("model_revision", "main")))


def put_notice(directory: Path, licence: Licence | None) -> None:
    """Write the notice that a licence asks for, if it asks for one."""
    if licence and licence.notice:
        write_whole(directory / NOTICE, f"{licence.notice}\n")


def card(run: Run, proof: Facts | None = None) -> str:
    """The card of what training saved, or of the merged model if the proof of its merge is given."""
    from huggingface_hub import ModelCardData

    facts, recipe = run.facts(), run.values()
    metrics, _ = evaluation(run)
    adapter = bool(recipe.get("use_peft")) and proof is None
    base, dataset = hub_id(recipe["model_name_or_path"]), hub_id(facts["data"]["source"]["dataset_name"])
    four_bit = recipe.get("load_in_4bit") and recipe.get("use_peft")
    licence = licences.of(recipe["model_name_or_path"], recipe.get("model_revision", "main"))
    header = ModelCardData(
        **terms(licence),
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["sft", "trl", *(["qlora" if four_bit else "lora"] if recipe.get("use_peft") else [])],
    )
    gpus = sorted({gpu.split(",")[0] for gpu in facts["gpus"]})
    return page.markdown(
        "card.md",
        header=Markup(header.to_yaml()),  # noqa: S704, YAML that the Hub's own library has written
        run=run.name,
        facts=facts,
        recipe={key: recipe.get(key) for key in ("use_peft", "load_in_4bit", "lora_r", "lora_alpha", "max_length")},
        proof=proof,
        links=[{**link, "adapter": public("", link["adapter"])} for link in earlier.links(facts.get("continues"))],
        base=base,
        revision=recipe.get("model_revision", "main"),
        dataset=dataset,
        licence=licence,
        load=loading(recipe, facts, adapter=adapter),
        unserved=serving.refused(recipe) if adapter else [],
        serving=_serving(run, recipe, base, adapter=adapter),
        metrics=metrics,
        scores=quality.models_table(metrics) if metrics else None,
        groups=quality.groups_table(metrics) if metrics and metrics["groups"] and metrics["groups"]["by"] else None,
        measured={"eval_loss": [], **measured} if (measured := facts.get("measured")) else {},
        effect={"rows_cut": 0, "rows_lost": 0} | facts.get("in_effect", {}).get("data", {}),
        command=_command(facts),
        hardware="CPU" if facts["topology"]["use_cpu"] else " and ".join(gpus),
        settings=settings(recipe, facts),
    )


def terms(licence: Licence | None) -> Facts:
    """A licence in the keys of a card's metadata."""
    if licence is None:
        return {}
    of_other = {"license_name": licence.called, "license_link": licence.link} if licence.name == "other" else {}
    return {"license": licence.name, **of_other}


def hub_id(name: str | None) -> str | None:
    """The name if it is one on the Hub, None for a directory or file of this machine."""
    if name is None or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) or Path(name).exists():
        return None
    return name


def loading(recipe: Facts, facts: Facts, *, adapter: bool) -> Facts:
    """What loads the files in the precision they were trained in, as loading.py.jinja writes it."""
    base, dtype = hub_id(recipe["model_name_or_path"]), recipe.get("dtype", "float32")
    quantised: Facts = {}
    if adapter and recipe.get("load_in_4bit"):
        quantised = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": recipe.get("bnb_4bit_quant_type", "nf4"),
            "bnb_4bit_use_double_quant": bool(recipe.get("use_bnb_nested_quant")),
            "bnb_4bit_compute_dtype": dtype,
        }
    elif adapter and recipe.get("load_in_8bit"):
        quantised = {"load_in_8bit": True}
    arguments = {"revision": recipe.get("model_revision", "main")} if adapter and base else {}
    arguments |= {"dtype": dtype, "device_map": "auto"}
    if recipe.get("attn_implementation") == "eager":
        arguments["attn_implementation"] = "eager"
    if adapter:
        arguments |= {key: public(key, value) for key, value in base_model.further_arguments(recipe).items()}
    return {
        "adapter": adapter,
        "base": base or "PATH OF THE BASE MODEL",
        "quantised": quantised,
        "stored": base_model.described_quantisation(recipe) if adapter and not quantised else {},
        "arguments": arguments,
        "conversational": facts["data"]["conversational"],
    }


def _serving(run: Run, recipe: Facts, base: str | None, *, adapter: bool) -> Facts:
    here = "PATH OR HUB ID OF THIS DIRECTORY"
    revision = recipe.get("model_revision", "main") if adapter and base else None
    named = (base or "PATH OF THE BASE MODEL") if adapter else here
    return serving.served(run, adapter=here if adapter else None, base=named, tokenizer=run.adapter, revision=revision)


def _command(facts: Facts) -> Markup:
    """What trained it, as a span of code, whose fence is longer than any row of backticks in it."""
    changed = [f"{key}={_yaml(public(key, value))}" for key, value in facts["overrides"].items() if key not in _PLACES]
    setting = f" SET={shlex.quote(' '.join(map(shlex.quote, changed)))}" if changed else ""
    fence = "`" * (max(map(len, re.findall("`+", setting)), default=0) + 1)
    command = f"make train RECIPE={facts['recipe']} ACCEL={facts['topology']['name']}{setting}"
    return Markup(f"{fence}{command}{fence}")  # noqa: S704


def settings(recipe: Facts, facts: Facts) -> dict[str, str]:
    """The resolved recipe as YAML, key by key, without what says where files lie."""
    own = {key: value for key, value in facts["own"].items() if value is not None and key != "description"}
    kept = {key: public(key, value) for key, value in {**recipe, **own}.items() if key not in _PLACES}
    return {key: _yaml(value) for key, value in kept.items()}


def _yaml(value: Any) -> str:
    """A value as YAML on one line, so that none ends the block of code that it stands in."""
    text = schema.as_yaml(value)
    return json.dumps(value) if "\n" in text else text


def public(key: str, value: Any) -> Any:
    """A key's value, or `(local)` for what lies on this machine."""
    if isinstance(value, dict):
        return {each: public(each, held) for each, held in value.items()}
    if isinstance(value, list):
        return [public(key, held) for held in value]
    if key == "model_name_or_path":
        return hub_id(value) or "(local)"
    if isinstance(value, str) and (
        value.startswith(("/", "./", "../", "~")) or ("/" in value and Path(value).exists())
    ):
        return "(local)"
    return value
